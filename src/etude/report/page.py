"""The report: one HTML file with everything inside it, or the same as Markdown."""

import datetime
import os
import shlex
import urllib.parse
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jinja2
from markupsafe import Markup

from etude import __version__, registry
from etude.core.config import to_yaml
from etude.core.errors import UserError
from etude.core.files import write_atomic
from etude.core.study import Study
from etude.core.summary import committed
from etude.draw import svg
from etude.draw.pictures import Picture, read_picture
from etude.report.claims import Judgement, judgements
from etude.report.prose import Readme
from etude.report.reference import Comparison
from etude.report.results import Run, compared, comparisons, faults, find_runs, read_run
from etude.report.verdict import VERDICTS
from etude.runs.text import code, escaped, fence

Format = Literal["html", "markdown"]
# In pixels, of pictures in a page of many runs and in that of one.
_NARROW, _BROAD = 900, 1400
_MARKS = {"exceeds": "▲", "matches": "✓", "below": "▽", "one seed": "◔", "proxy": "≈", "not run": "○"}


class RunPart:
    """A run as the templates see it.

    Args:
        run: as it was read.
        study: that it is of.
        anchor: its name within the page.
        widest: pixels of a picture.
        above: pictures that stand with the study, and are not repeated here.
    """

    def __init__(self, run: Run, study: Study, anchor: str, widest: int, above: Set[Path] = frozenset()) -> None:
        self.run, self.anchor = run, anchor
        figures = _figures(run)
        self.pictures, unread = _pictures([path for path in figures if path not in above], study, widest)
        self.above = [path.stem for path in figures if path in above]
        self.notes = [*run.notes, *unread]
        panels, self.others = svg.panels(run.metrics)
        self.curves = [svg.draw(panel) for panel in panels]
        self.measures = [
            (f"{where}/{panel.title}", *map(svg.short, (ys[0], ys[-1], min(ys), max(ys))))
            for panel in panels
            for where, (_, ys) in panel.lines.items()
        ]
        self.settings = [
            (name, str(value).lower() if isinstance(value, bool) else str(value))
            for name, value in run.record.overrides.items()
        ]
        self.resume = "" if run.status == "finished" else shlex.join(["etude", "resume", str(run.path)])
        self.at = f"step {run.step:,}" + (f" of {run.max_steps:,}" if run.max_steps is not None else "")
        self.environment = [
            (name.capitalize(), str(value))
            for name, value in run.environment.items()
            if not isinstance(value, dict) and value is not None
        ]
        versions, data = (run.environment.get(name) for name in ("versions", "data"))
        if isinstance(versions, dict):
            self.environment.append(("Versions", ", ".join(f"{name} {value}" for name, value in versions.items())))
        self.checksums = list(data.items()) if isinstance(data, dict) else []
        facts = [("Preset", f"{run.record.preset} of {study.name}"), ("Scale", run.record.scale), ("Seed", run.seed)]
        self.facts = [*facts, *self._training(run.summary), ("Energy", "not measured")]

    def _training(self, summary: Mapping[str, Any] | None) -> list[tuple[str, str]]:
        """Steps, time, memory and parameters, as far as they are known."""
        if summary is None:
            run, unknown = self.run, "told at the end of a run"
            saved = "no checkpoint yet" if run.saved is None else f"newest checkpoint of step {run.saved:,}"
            seconds = max((row.get("seconds", 0.0) for row in run.metrics), default=0.0)
            steps = f"{self.at.removeprefix('step ')}; {saved}"
            known = [("Steps", steps), ("Training time", duration(seconds))]
            return [*known, ("Peak memory", unknown), ("Parameters", unknown)]
        about, chosen = summary.get("validation"), ", the last"
        if isinstance(about, dict) and isinstance(about.get("best"), int | float):
            chosen = f", chosen by validation: {about.get('metric')} {svg.short(about['best'])}"
        counts = "; ".join(f"{name} {count:,}" for name, count in summary["parameters"].items())
        return [
            ("Steps", f"{summary['steps_trained']:,}{' (stopped early)' if summary.get('stopped_early') else ''}"),
            ("Weights", f"of step {summary['step']:,}{chosen}"),
            ("Training time", duration(float(summary["train_seconds"]))),
            ("Peak memory", f"{summary['peak_memory_mb']:,} MB"),
            ("Parameters", counts or "none"),
        ]

    @property
    def standing(self) -> str:
        """Finished, or how far it is."""
        going = f"still going: {self.at} so far" if self.run.status == "still going" else f"interrupted at {self.at}"
        return "finished" if self.run.status == "finished" else going


@dataclass(frozen=True)
class Section:
    """A study in the page."""

    study: Study
    readme: Readme
    comparisons: list[Comparison]
    pictures: list[Picture]
    runs: list[RunPart]
    notes: list[str] = field(default_factory=list)
    """Pictures that cannot be read, one line each."""
    claims: list[Judgement] = field(default_factory=list)

    @property
    def ours(self) -> list[Comparison]:
        """The published numbers that a training stands beside; the others are `missing`."""
        return [row for row in self.comparisons if row not in self.missing]

    @property
    def missing(self) -> list[Comparison]:
        return [row for row in self.comparisons if row.verdict == "not run"]

    def verdicts(self, verdict: str) -> int:
        return sum(row.verdict == verdict for row in self.comparisons)

    @property
    def decided(self) -> str:
        """The share of the tested claims that are upheld, in words."""
        tested = [row for row in self.claims if row.verdict != "not tested"]
        return f"{sum(row.verdict == 'upheld' for row in tested)} of {len(tested)} tested"

    def standing(self, *, finished: bool) -> int:
        return sum((part.run.status == "finished") == finished for part in self.runs)


@dataclass(frozen=True)
class Report:
    """Everything that a report says, whatever its format."""

    title: str
    sections: list[Section]
    faults: list[str] = field(default_factory=list)
    """The folders that were left out, one line each."""
    one_run: bool = False

    def write(self, path: Path, kind: Format = "html") -> Path:
        """Write it to ``path``."""
        environment = _environment(autoescape=kind == "html")

        def link(picture: Path) -> str:
            """The place of a picture, seen from the report's folder."""
            return urllib.parse.quote(Path(os.path.relpath(picture.resolve(), path.parent.resolve())).as_posix())

        environment.filters |= {"text": escaped, "code": code, "fence": fence, "link": link}
        template = environment.get_template("report.html.j2" if kind == "html" else "report.md.j2")
        write_atomic(path, template.render(report=self))
        return path


def write_report(path: Path, studies: Sequence[Study], runs: Sequence[Path], kind: Format = "html") -> Path:
    """Write the report of some studies, the committed results and the ``runs`` folders: numbers, curves, pictures."""
    return of_studies(studies, runs).write(path, kind)


def of_studies(studies: Sequence[Study], runs: Sequence[Path]) -> Report:
    """The report of some studies, or of all."""
    title = "etude: report" if len(studies) > 1 else f"{studies[0].title}: report"
    left_out = faults(studies, runs)
    sections: list[Section] = []
    for study in studies:
        found, refused = find_runs(study, runs)
        sections.append(_section(study, found, comparisons([study], runs), runs))
        left_out += [line for line in refused if line not in left_out]
    return Report(title, sections, left_out)


def of_run(path: Path) -> Report:
    """The report of one run, finished or not.

    Raises:
        UserError: the folder is no run, or one of a study that etude does not have.
    """
    run = read_run(path)
    try:
        study = registry.load(run.record.study)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    summaries = {} if run.summary is None else {run.name: run.summary}
    rows = compared(study, summaries, [])
    rows = [row for row in rows if row.ours is not None]
    readme = Readme(study.folder / "README.md")
    part = RunPart(run, study, f"{study.name}-run", _BROAD)
    return Report(f"{study.title}: {run.name}", [Section(study, readme, rows, [], [part])], one_run=True)


def _section(study: Study, found: Sequence[Run], rows: list[Comparison], runs: Sequence[Path]) -> Section:
    readme = Readme(study.folder / "README.md")
    words = {committed() / name: alt for name, alt in readme.pictures().items() if (committed() / name).is_file()}
    beside = [path for place in [committed(), *runs] for path in sorted((place / study.name).glob("*.png"))]
    chosen = list(dict.fromkeys([*words, *beside]))
    if not any(path.parent.name == "figures" for path in chosen):
        # A README that shows none of a run's pictures: those of the first run that stands beside a published number.
        counted = {name for row in rows[:1] for name in row.runs}
        chosen += [path for run in found if run.name in counted for path in _figures(run)]
    shown, notes = _pictures(chosen, study, _NARROW, words)
    parts = [RunPart(run, study, f"{study.name}-{number}", _NARROW, set(chosen)) for number, run in enumerate(found, 1)]
    return Section(study, readme, rows, shown, parts, notes, judgements([study], runs))


def _figures(run: Run) -> list[Path]:
    """A run's pictures; its curves are drawn anew where there are metrics."""
    paths = sorted((run.path / "figures").glob("*.png"))
    return [path for path in paths if not (run.metrics and path.name == "curves.png")]


def _pictures(
    paths: Sequence[Path], study: Study, widest: int, words: Mapping[Path, str] | None = None
) -> tuple[list[Picture], list[str]]:
    """The pictures that can be read, and one line for each that cannot."""
    found: list[Picture] = []
    notes: list[str] = []
    for path in paths:
        try:
            found.append(read_picture(path, study.name, widest, study.shows(path) or (words or {}).get(path, "")))
        except UserError as error:
            notes.append(f"{error}: left out")
    return found, notes


def duration(seconds: float) -> str:
    """Seconds in words: 95.0 s, 39 min, 1 h 5 min."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _environment(*, autoescape: bool) -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=autoescape, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.globals |= {
        "version": __version__,
        "made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "marks": _MARKS,
        "verdicts": VERDICTS,
        "plot_style": Markup(svg.STYLE),
        "ours": lambda row: "" if row.ours is None else f"{row.ours:.{_places(row.ours, row.unit)}f}",
        "interval": _interval,
        "baseline": lambda row: "" if row.baseline is None else f"{row.baseline:.4g} ({row.baseline_name})",
        "value": _measured,
        "yaml": to_yaml,
    }
    return made


def _places(value: float, unit: str) -> int:
    """Decimals: of per cents and large numbers two tell enough, of an index between 0 and 1 they do not."""
    return 2 if unit == "%" or abs(value) >= 1 else 4


def _interval(row: Comparison) -> str:
    if row.interval is None or row.ours is None:
        return ""
    return " to ".join(f"{end:.{_places(row.ours, row.unit)}f}" for end in row.interval)


def _measured(row: Mapping[str, Any]) -> str:
    places = _places(float(row["value"]), row["unit"])
    width = f" ± {row['half_width']:.{places}f}" if row["half_width"] is not None else ""
    return f"{row['value']:.{places}f}{width} {row['unit']}".strip()
