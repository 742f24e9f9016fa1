"""The tab of the runs: what trains now, how far it is, its curves, last numbers and pictures."""

import contextlib
import functools
import html
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from etude.core.errors import UserError
from etude.core.files import read_json
from etude.core.run_folder import RunFolder
from etude.draw import svg
from etude.draw.metrics import rows_of
from etude.draw.pictures import read_picture
from etude.report.page import duration
from etude.report.results import in_use
from etude.serve.kit import markup
from etude.serve.kit.site import Site, answering, current_tab, metrics_of

TITLE = "runs"
_EVERY = 5.0
"""Seconds between two looks."""
_MOST_PANELS = 15
_MOST_PICTURES = 24
_WIDEST = 1400
"""Pixels of a picture."""
CSS = """
.plots { --c0: #0072B2; --c1: #D55E00; --c2: #009E73; --c3: #CC79A7; --c4: #E69F00; --c5: #56B4E9; }
.plots.wide { grid-template-columns: minmax(0, 32rem); }
.whole-words .et-table th, .whole-words .et-table td { white-space: nowrap; overflow-wrap: normal; }
.whole-words .et-table td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 10rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 0.8rem; }
.pictures figure { margin: 0; }
.pictures img { width: 100%; border: 1px solid var(--border-color-primary); }
.pictures figcaption { font-size: 0.85rem; text-align: center; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 0.8rem; }
"""

_FIRST = ("val/loss", "val/accuracy", "train/loss", "loss")
"""Metrics that are shown before any is chosen."""


@dataclass(frozen=True)
class Run:
    """A run folder as it stands now, of a known study or not."""

    name: str
    """``STUDY/NAME``."""
    path: Path
    rows: Sequence[Mapping[str, Any]]
    """The lines of its metrics.jsonl."""
    written: float
    """When something was last written, in seconds since 1970."""

    @property
    def step(self) -> int:
        return max((row["step"] for row in self.rows), default=0)

    @property
    def seconds(self) -> float:
        """The seconds of training so far."""
        return max((row.get("seconds", 0.0) for row in self.rows), default=0.0)

    @property
    def preset(self) -> str:
        return _settings(self.path, _time(self.path / "config.yaml"))[0]

    @property
    def state(self) -> str:
        """Returns ``going``, ``ended``, ``stopped early``, ``interrupted`` or ``just begun``."""
        if (self.path / "summary.json").is_file():
            with contextlib.suppress(UserError, AttributeError):
                return "stopped early" if read_json(self.path / "summary.json").get("stopped_early") else "ended"
            return "ended"
        # Evaluations and checkpoints take their time between two lines, and a busy machine stretches all.
        seconds = rows_of(self.rows, "seconds")[1][-20:]
        gaps = [after - before for before, after in itertools.pairwise(seconds)]
        if in_use(self.path) or time.time() - self.written < max(60.0, 4 * max(gaps, default=0.0)):
            return "going" if self.rows else "just begun"
        return "interrupted"

    @property
    def progress(self) -> str:
        most = _settings(self.path, _time(self.path / "config.yaml"))[1]
        return f"{self.step:,} of {most:,} ({100 * self.step / most:.0f} %)" if most else f"{self.step:,}"


def find(runs: Path) -> list[Run]:
    """All runs of a folder, of known studies or not: those that write first, then the newest."""
    root = runs.resolve()
    paths = {path.parent for name in ("metrics.jsonl", "config.yaml") for path in root.glob(f"*/*/{name}")}
    found = [
        Run(
            str(path.relative_to(root)),
            path,
            metrics_of(path),
            max(_time(path / name) for name in ("metrics.jsonl", "config.yaml", "checkpoints")),
        )
        for path in paths
        if path.resolve().is_relative_to(root)
    ]
    return sorted(found, key=lambda run: (run.state != "going", -run.written, run.name))


@functools.lru_cache(maxsize=1000)
def _settings(path: Path, written: float) -> tuple[str, int]:
    """A run's preset and steps; YAML is slow to read, and a run's does not change."""
    try:
        record = RunFolder(path).record
        # Where epochs are asked for, the data said how many steps these are.
        steps = record.config["loop"]["max_steps"] or read_json(path / "environment.json").get("steps", 0)
        return record.preset, int(steps)
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return "?", 0


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def metric_names(runs: Sequence[Run]) -> list[str]:
    """The metrics of some runs, the usual ones first; parts of a mixture or a histogram are left out."""
    names = {name for run in runs for row in run.rows for name in row if name.count("/") < 2} - {"step", "seconds"}
    return [*(name for name in _FIRST if name in names), *sorted(names - set(_FIRST))]


def last_numbers(run: Run) -> list[list[str]]:
    """Each metric's last value, with its step."""
    found = {name: (value, row["step"]) for row in run.rows for name, value in row.items()}
    return [[name, f"{found[name][0]:.4g}", f"{found[name][1]:,}"] for name in metric_names([run])]


def results_of(run: Run) -> list[list[str]]:
    """The final numbers of a run that has ended: metric, value, split."""
    try:
        rows = read_json(run.path / "summary.json")["results"]
        return [[str(row["metric"]), f"{row['value']:.4g} {row['unit']}".strip(), str(row["split"])] for row in rows]
    except (UserError, KeyError, TypeError, ValueError):
        return []


def pictures_of(run: Run, runs: Path) -> str:
    """The pictures of a run as HTML; one that cannot be read is left out, and a link that leads out of ``runs``."""
    found: list[str] = []
    for file in sorted((run.path / "figures").glob("*.png"))[:_MOST_PICTURES]:
        with contextlib.suppress(UserError):
            if file.resolve().is_relative_to(runs.resolve()):
                name, uri = html.escape(file.stem), read_picture(file, run.name, _WIDEST).uri
                shown = f"<img src='{uri}' alt='{name} of {html.escape(run.name)}'>"
                found.append(f"<figure>{shown}<figcaption>{name}</figcaption></figure>")
    return f"<div class='pictures'>{''.join(found)}</div>" if found else ""


def overview(runs: Sequence[Run]) -> list[list[str]]:
    """A line a run: name, preset, state, progress, time trained, last written."""
    # Not how long ago it was written, which would make the page another one at each look.
    return [
        [run.name, run.preset, run.state, run.progress, duration(run.seconds),
         time.strftime("%d %b %H:%M", time.localtime(run.written))] for run in runs
    ]  # fmt: skip


def panels(run: Run) -> str:
    """The curves of everything that a run measures, as HTML."""
    found, _ = svg.panels(run.rows)
    return f"<div class='plots'>{''.join(svg.draw(panel) for panel in found[:_MOST_PANELS])}</div>" if found else ""


def beside(runs: Sequence[Run], metric: str | None) -> str:
    """One metric of several runs in one panel, as HTML; the runs are numbered, for their names are long."""
    lines = {str(number): rows_of(run.rows, metric or "") for number, run in enumerate(runs, start=1)}
    measured = {number: line for number, line in lines.items() if line[0]}
    key = "".join(
        f"<li value='{number}'>{html.escape(run.name)}{'' if number in measured else ' (has none)'}</li>"
        for number, run in zip(lines, runs, strict=True)
    )
    if not measured:
        return ""
    return f"<div class='plots wide'>{svg.draw(svg.Panel(metric or '', measured))}<ol>{key}</ol></div>"


def numbers_of(run: Run) -> str:
    """Last and final numbers, as HTML."""
    final = results_of(run)
    tables = markup.table("Last numbers", ("metric", "last", "at step"), last_numbers(run))
    tables += markup.table("Final numbers", ("metric", "value", "split"), final) if final else ""
    return f"<div class='numbers'>{tables}</div>"


def tab(site: Site) -> None:
    gr.Markdown(f"What trains now, and what has ended, below `{site.runs}`.")
    table = gr.HTML(elem_classes="whole-words")
    follow = gr.Checkbox(True, label=f"Look again every {_EVERY:.0f} seconds")
    one = gr.Dropdown([], label="Run", interactive=True)
    plots = gr.HTML()
    numbers = gr.HTML(elem_classes="whole-words")
    gallery = gr.HTML()
    with gr.Accordion("Runs beside each other", open=False):
        with gr.Row():
            several = gr.Dropdown([], multiselect=True, label="Runs", max_choices=6, interactive=True, scale=3,
                                  min_width=280)  # fmt: skip
            metric = gr.Dropdown([], label="Metric", interactive=True, min_width=200)
        together = gr.HTML()
    timer = gr.Timer(_EVERY, active=False)

    @answering
    def look(one: str | None, several: list[str] | None, metric: str | None) -> Any:
        runs = find(site.runs)
        known = {run.name: run for run in runs}
        first = next((run.name for run in runs if run.step), next(iter(known), None))
        chosen = [run for run in runs if run.name in (several or [])]
        metrics = metric_names(chosen)
        run = known.get(one or "", known.get(first or ""))
        heads = ("run", "preset", "state", "step", "trained", "written")
        none = "<p>No runs yet: <code>etude run resnet smoke</code> makes one in seconds.</p>"
        return (
            markup.table("Runs", heads, overview(runs)) if runs else none,
            _menu(list(known), one, first),
            panels(run) if run else "",
            numbers_of(run) if run else "",
            gr.update(choices=list(known)),
            _menu(metrics, metric, next(iter(metrics), None)),
            beside(chosen, metric if metric in metrics else next(iter(metrics), None)),
        )

    @answering
    def pictured(one: str | None) -> Any:
        run = next((run for run in find(site.runs) if run.name == one), None)
        return pictures_of(run, site.runs) if run else ""

    parts = [table, one, plots, numbers, several, metric, together]
    here = current_tab()
    gr.on([here.select, timer.tick, one.input, several.input, metric.input], look, [one, several, metric], parts,
          concurrency_id=TITLE, show_progress="hidden", trigger_mode="always_last")  # fmt: skip
    one.change(pictured, one, gallery, show_progress="hidden", trigger_mode="always_last")
    # Nobody looks before the tab is chosen.
    here.select(lambda on: gr.Timer(active=on), follow, timer, show_progress="hidden")
    follow.input(lambda on: gr.Timer(active=on), follow, timer, show_progress="hidden")


def _menu(names: Sequence[str], chosen: str | None, other: str | None) -> Any:
    # A choice that holds is not sent back: the visitor may have made another meanwhile.
    return gr.update(choices=names) if chosen in names else gr.update(choices=names, value=other)
