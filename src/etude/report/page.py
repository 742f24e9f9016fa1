"""The HTML report: one file, its pictures inside."""

import base64
import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from etude import __version__
from etude.core.files import read_json, write_atomic
from etude.core.study import Study
from etude.report.reference import Comparison
from etude.report.results import committed, comparisons, summaries


def write_report(path: Path, studies: Sequence[Study], runs: Sequence[Path]) -> Path:
    """Write the report of some studies: comparisons, every finished run, its numbers and pictures.

    Args:
        path: the HTML file.
        studies: in the order of the page.
        runs: folders of local runs; the committed results are in it in any case.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        sections=[_section(study, runs) for study in studies],
        version=__version__,
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    write_atomic(path, page)
    return path


def _section(study: Study, runs: Sequence[Path]) -> dict[str, Any]:
    found = summaries(study, runs)
    return {
        "study": study,
        "comparisons": [_row(row) for row in comparisons([study], runs)],
        "pictures": _pictures(folder / study.name for folder in [committed(), *runs]),
        "runs": [_run(study, name, summary, [committed(), *runs]) for name, summary in found.items()],
    }


def _row(row: Comparison) -> dict[str, Any]:
    interval = f"{row.interval[0]:.2f} to {row.interval[1]:.2f}" if row.interval else ""
    return {
        "row": row,
        "ours": "" if row.ours is None else f"{row.ours:.2f}",
        "interval": interval,
        "seeds": ", ".join(map(str, row.seeds)),
        "mark": row.verdict.split()[0],
    }


def _run(study: Study, name: str, summary: dict[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
    folder = next(place for place in (f / study.name / name for f in folders) if (place / "summary.json").exists())
    about = folder / "environment.json"
    return {
        "name": name,
        "summary": summary,
        "environment": read_json(about) if about.exists() else None,
        "pictures": _pictures([folder / "figures"]),
    }


def _pictures(folders: Iterable[Path]) -> list[dict[str, str]]:
    """The pictures of some folders by name; of two of one name the first."""
    found: dict[str, Path] = {}
    for folder in folders:
        for picture in sorted(folder.glob("*.png")):
            found.setdefault(picture.stem, picture)
    return [
        {"name": name, "data": base64.b64encode(path.read_bytes()).decode()} for name, path in sorted(found.items())
    ]
