"""The tab of the runs: what trains now, how far it is, its curves, last numbers and pictures."""

import base64
import functools
import html
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from etude.core.errors import UserError
from etude.core.files import read_json
from etude.core.run_folder import RunFolder
from etude.report.results import in_use
from etude.serve.kit import markup
from etude.serve.kit.site import Site, answering, current_tab, metrics_of

TITLE = "runs"
_EVERY = 5.0
"""Seconds between two looks."""
_MOST_PANELS = 15
_MOST_PICTURES = 24
_LARGEST_PICTURE = 4 * 2**20
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
    """A run folder as it stands now."""

    name: str
    """``STUDY/NAME``."""
    path: Path
    preset: str
    state: str
    """``going``, ``ended``, ``stopped early``, ``interrupted`` or ``just begun``."""
    step: int
    max_steps: int | None
    seconds: float
    """Of training so far."""
    written: float
    """When something was last written, in seconds since 1970."""


def find(runs: Path) -> list[Run]:
    """All runs of a folder, of known studies or not: those that write first, then the newest."""
    root = runs.resolve()
    found = {path.parent for name in ("metrics.jsonl", "config.yaml") for path in root.glob(f"*/*/{name}")}
    states = [_run(path, root) for path in found if path.resolve().is_relative_to(root)]
    return sorted(states, key=lambda run: (run.state != "going", -run.written, run.name))


def _run(path: Path, root: Path) -> Run:
    rows = metrics_of(path)
    name = str(path.relative_to(root))
    preset, max_steps = _settings(path, _time(path / "config.yaml"))
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    written = max((_time(path / file) for file in ("metrics.jsonl", "config.yaml", "checkpoints")), default=0.0)
    step = max((row["step"] for row in rows), default=0)
    state = _state(path, rows, seconds, written)
    return Run(name, path, preset, state, step, max_steps, seconds[-1] if seconds else 0.0, written)


@functools.lru_cache(maxsize=1000)
def _settings(path: Path, written: float) -> tuple[str, int | None]:
    """A run's preset and steps; YAML is slow to read, and a run's does not change."""
    try:
        record = RunFolder(path).record
        return record.preset, int(record.config["loop"]["max_steps"])
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return "?", None


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _state(path: Path, rows: Sequence[Mapping[str, Any]], seconds: Sequence[float], written: float) -> str:
    if (path / "summary.json").is_file():
        try:
            return "stopped early" if read_json(path / "summary.json").get("stopped_early") else "ended"
        except (UserError, AttributeError):
            return "ended"
    # Evaluations and checkpoints take their time between two lines, and a busy machine stretches all.
    gaps = [after - before for before, after in zip(seconds[-20:], seconds[-19:], strict=False)]
    if in_use(path) or time.time() - written < max(60.0, 4 * max(gaps, default=0.0)):
        return "going" if rows else "just begun"
    return "interrupted"


def metric_names(runs: Sequence[Run]) -> list[str]:
    """What some runs measured, the usual ones first; parts of a mixture or a histogram are left out."""
    names = {
        name
        for run in runs
        for row in metrics_of(run.path)
        for name in row
        if name not in ("step", "seconds") and name.count("/") < 2
    }
    return [*(name for name in _FIRST if name in names), *sorted(names - set(_FIRST))]


def curve(run: Run, metric: str) -> list[tuple[int, float]]:
    """A metric over steps."""
    return [(row["step"], row[metric]) for row in metrics_of(run.path) if metric in row]


def last_numbers(run: Run) -> list[list[str]]:
    """Each metric's last value, with its step."""
    rows = metrics_of(run.path)
    found: dict[str, tuple[float, int]] = {}
    for row in rows:
        found |= {name: (value, row["step"]) for name, value in row.items()}
    names = [name for name in metric_names([run]) if name in found]
    return [[name, f"{found[name][0]:.4g}", f"{found[name][1]:,}"] for name in names]


def results_of(run: Run) -> list[list[str]]:
    """The final numbers of a run that has ended: metric, value, split."""
    try:
        rows = read_json(run.path / "summary.json")["results"]
        return [[str(row["metric"]), f"{row['value']:.4g} {row['unit']}".strip(), str(row["split"])] for row in rows]
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return []


def pictures_of(run: Run, runs: Path) -> str:
    """The pictures of a run, as HTML that holds their files as they are."""
    root, found = runs.resolve(), []
    for file in sorted((run.path / "figures").glob("*.png"))[:_MOST_PICTURES]:
        try:
            if not file.resolve().is_relative_to(root) or file.stat().st_size > _LARGEST_PICTURE:
                continue
            body = file.read_bytes()
        except OSError:
            continue
        if body.startswith(b"\x89PNG"):
            name = html.escape(file.stem)
            address = f"data:image/png;base64,{base64.b64encode(body).decode()}"
            told = f"{name} of {html.escape(run.name)}"
            found.append(f"<figure><img src='{address}' alt='{told}'><figcaption>{name}</figcaption></figure>")
    return f"<div class='pictures'>{''.join(found)}</div>" if found else ""


def overview(runs: Sequence[Run]) -> list[list[str]]:
    """A line a run: name, preset, state, progress, time trained, last written."""
    return [[run.name, run.preset, run.state, _progress(run), _span(run.seconds), _clock(run.written)] for run in runs]


def _clock(written: float) -> str:
    """Not how long ago, which would make the page another one at each look."""
    return time.strftime("%d %b %H:%M", time.localtime(written))


def _progress(run: Run) -> str:
    if not run.max_steps:
        return f"{run.step:,}"
    return f"{run.step:,} of {run.max_steps:,} ({100 * run.step / run.max_steps:.0f} %)"


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def panels(run: Run) -> str:
    """The curves of everything that a run measures, as HTML."""
    from etude.draw import svg

    found, _ = svg.panels(metrics_of(run.path))
    return f"<div class='plots'>{''.join(svg.draw(panel) for panel in found[:_MOST_PANELS])}</div>" if found else ""


def beside(runs: Sequence[Run], metric: str | None) -> str:
    """One metric of several runs in one panel, as HTML; the runs are numbered, for their names are long."""
    from etude.draw import svg

    lines = {str(number): curve(run, metric or "") for number, run in enumerate(runs, start=1)}
    key = "".join(
        f"<li value='{number}'>{html.escape(run.name)}{'' if lines[str(number)] else ' (has none)'}</li>"
        for number, run in enumerate(runs, start=1)
    )
    drawn = {name: ([x for x, _ in line], [y for _, y in line]) for name, line in lines.items() if line}
    if not drawn:
        return ""
    return f"<div class='plots wide'>{svg.draw(svg.Panel(metric or '', drawn))}<ol>{key}</ol></div>"


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
    def looked(one: str | None, several: list[str] | None, metric: str | None) -> Any:
        runs = find(site.runs)
        known = [run.name for run in runs]
        # A choice that holds is not sent back: the visitor may have made another meanwhile.
        menu = _menu(known, one, _first(runs))
        one = one if one in known else _first(runs)
        chosen = [run for run in runs if run.name in (several or [])]
        metrics = metric_names(chosen)
        measured = _menu(metrics, metric, metrics[0] if metrics else None)
        metric = metric if metric in metrics else metrics[0] if metrics else None
        run = next((run for run in runs if run.name == one), None)
        heads = ("run", "preset", "state", "step", "trained", "written")
        none = "<p>No runs yet: <code>etude run resnet smoke</code> makes one in seconds.</p>"
        return (
            markup.table("Runs", heads, overview(runs)) if runs else none,
            menu,
            panels(run) if run else "",
            numbers_of(run) if run else "",
            gr.update(choices=known),
            measured,
            beside(chosen, metric),
        )

    @answering
    def pictured(one: str | None) -> Any:
        run = next((run for run in find(site.runs) if run.name == one), None)
        return pictures_of(run, site.runs) if run else ""

    parts = [table, one, plots, numbers, several, metric, together]
    here = current_tab()
    gr.on([here.select, timer.tick, one.input, several.input, metric.input], looked, [one, several, metric], parts,
          concurrency_id=TITLE, show_progress="hidden", trigger_mode="always_last")  # fmt: skip
    one.change(pictured, one, gallery, show_progress="hidden", trigger_mode="always_last")
    # Nobody looks before the tab is chosen.
    here.select(lambda on: gr.Timer(active=on), follow, timer, show_progress="hidden")
    follow.input(lambda on: gr.Timer(active=on), follow, timer, show_progress="hidden")


def _menu(names: Sequence[str], chosen: str | None, other: str | None) -> Any:
    return gr.update(choices=names) if chosen in names else gr.update(choices=names, value=other)


def _first(runs: Sequence[Run]) -> str | None:
    return next((run.name for run in runs if run.step), runs[0].name if runs else None)
