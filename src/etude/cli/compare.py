"""``etude compare [STUDY]``: our numbers beside the published ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from etude import studies
from etude.cli.flags import parse
from etude.cli.table import show
from etude.report.reference import Comparison
from etude.report.results import comparisons


@dataclass(frozen=True)
class Options:
    study: Annotated[str, tyro.conf.Positional] = ""
    """One study; all of them where none is named."""
    runs: Path = Path("runs")
    """Where local runs are, beside the committed results."""
    json: bool = False
    """Print a JSON list."""


def main(args: list[str]) -> int:
    options = parse(Options, args, prog="etude compare", description=__doc__ or "")
    names = (options.study,) if options.study else studies.NAMES
    rows = comparisons([studies.load(name) for name in names], [options.runs])
    if options.json:
        show([row.to_dict() for row in rows], as_json=True)
    else:
        print_comparisons(rows)
    return 0


def print_comparisons(rows: Sequence[Comparison]) -> None:
    """The comparison as a table, with the protocols of both sides in notes below it."""
    notes: dict[str, int] = {}

    def note(text: str) -> str:
        return f"({notes.setdefault(text, len(notes) + 1)})" if text else ""

    table: list[dict[str, Any]] = []
    for row in rows:
        interval = f"{row.interval[0]:.2f} to {row.interval[1]:.2f}" if row.interval else ""
        table.append(
            {
                "study": row.study,
                "experiment": row.experiment,
                "cell": row.cell,
                "metric": f"{row.metric} {row.unit}".strip(),
                "split": row.split,
                "published": f"{row.claim} {note(row.published_protocol)}",
                "source": row.source,
                "ours": "" if row.ours is None else f"{row.ours:.2f} {note(row.protocol)}",
                "95 %": interval,
                "seeds": row.seeds,
                "scale": row.scale,
                "verdict": row.verdict,
            }
        )
    show(table)
    for text, number in notes.items():
        print(f"({number}) {text}")
    print("95 %: over seeds where there are several, else of the one run's own measurement.")
