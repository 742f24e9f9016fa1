"""The tab of the runs: what trains now, how far it is, its curves, last numbers and pictures."""

import json
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from etude.core.errors import UserError
from etude.core.files import read_json
from etude.core.run_folder import RunFolder
from etude.data.images import list_images, read_image
from etude.web.site import Site, answering, current_tab

TITLE = "runs"
_EVERY = 5.0
"""Seconds between two looks."""
_POINTS = 300
"""Of a curve on the page."""
_MOST_PICTURES = 24
_FIRST = ("val/loss", "val/accuracy", "train/loss", "loss")
"""Metrics that are shown before any is chosen."""

_read: dict[Path, tuple[tuple[int, int], list[dict[str, Any]]]] = {}
_reading = threading.Lock()


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


def metrics_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl with a step; a broken line is passed over. Read again only when it changed."""
    file = path / "metrics.jsonl"
    try:
        about = file.stat()
        stamp = (about.st_mtime_ns, about.st_size)
        with _reading:
            known = _read.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    rows: list[dict[str, Any]] = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    with _reading:
        _read[path] = stamp, rows
    return rows


def find(runs: Path) -> list[Run]:
    """All runs of a folder, of known studies or not: those that write first, then the newest."""
    root = runs.resolve()
    found = {path.parent for name in ("metrics.jsonl", "config.yaml") for path in root.glob(f"*/*/{name}")}
    states = [_run(path, root) for path in found if path.resolve().is_relative_to(root)]
    return sorted(states, key=lambda run: (run.state != "going", -run.written, run.name))


def _run(path: Path, root: Path) -> Run:
    rows = metrics_of(path)
    preset, max_steps, name = "?", None, str(path.relative_to(root))
    try:
        record = RunFolder(path).record
        preset = record.preset
        max_steps = int(record.config["loop"]["max_steps"])
    except (UserError, OSError, KeyError, TypeError, ValueError):
        pass
    seconds = [float(row["seconds"]) for row in rows if isinstance(row.get("seconds"), int | float)]
    written = max((_time(path / file) for file in ("metrics.jsonl", "config.yaml", "checkpoints")), default=0.0)
    step = max((row["step"] for row in rows), default=0)
    state = _state(path, rows, seconds, written)
    return Run(name, path, preset, state, step, max_steps, seconds[-1] if seconds else 0.0, written)


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
    if _held(path / ".lock") or time.time() - written < max(60.0, 4 * max(gaps, default=0.0)):
        return "going" if rows else "just begun"
    return "interrupted"


def _held(lock: Path) -> bool:
    """Whether a process of this machine holds a run, as Linux tells; to try the lock could stop one that begins."""
    try:
        about, lines = lock.stat(), Path("/proc/locks").read_text().splitlines()
    except OSError:
        return False
    place = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    return any(" FLOCK " in f" {line} " and place in line.split() for line in lines)


def metric_names(runs: Sequence[Run]) -> list[str]:
    """What some runs measured, the usual ones first; parts of a mixture or a histogram are left out."""
    names = {
        name
        for run in runs
        for row in metrics_of(run.path)
        for name, value in row.items()
        if name not in ("step", "seconds") and name.count("/") < 2 and _is_number(value)
    }
    return [*(name for name in _FIRST if name in names), *sorted(names - set(_FIRST))]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def curve(run: Run, metric: str) -> list[tuple[int, float]]:
    """A metric over steps, at most some 300 points of it."""
    rows = [(row["step"], float(row[metric])) for row in metrics_of(run.path) if _is_number(row.get(metric))]
    places = np.unique(np.linspace(0, len(rows) - 1, min(_POINTS, len(rows))).round().astype(int)) if rows else []
    return [rows[place] for place in places]


def last_numbers(run: Run) -> list[list[str]]:
    """Each metric's last value, with its step."""
    rows = metrics_of(run.path)
    found: dict[str, tuple[float, int]] = {}
    for row in rows:
        found |= {name: (value, row["step"]) for name, value in row.items() if _is_number(value)}
    names = [name for name in metric_names([run]) if name in found]
    return [[name, f"{found[name][0]:.4g}", f"{found[name][1]:,}"] for name in names]


def results_of(run: Run) -> list[list[str]]:
    """The final numbers of a run that has ended: metric, value, split."""
    try:
        rows = read_json(run.path / "summary.json")["results"]
        return [[str(row["metric"]), f"{row['value']:.4g} {row['unit']}".strip(), str(row["split"])] for row in rows]
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return []


def pictures_of(run: Run, runs: Path) -> list[tuple[np.ndarray, str]]:
    """The pictures of a run, as pixels, with their names."""
    root, found = runs.resolve(), []
    try:
        files = list_images(run.path / "figures")
    except UserError:
        return []
    for file in files[:_MOST_PICTURES]:
        try:
            if file.resolve().is_relative_to(root):
                found.append((read_image(file, "RGB", max_pixels=30_000_000), file.stem))
        except UserError:
            continue
    return found


def overview(runs: Sequence[Run]) -> list[list[str]]:
    """A line a run: name, preset, state, progress, time trained, last written."""
    now = time.time()
    return [
        [run.name, run.preset, run.state, _progress(run), _span(run.seconds), f"{_span(now - run.written)} ago"]
        for run in runs
    ]


def _progress(run: Run) -> str:
    if not run.max_steps:
        return f"{run.step:,}"
    return f"{run.step:,} of {run.max_steps:,} ({100 * run.step / run.max_steps:.0f} %)"


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def tab(site: Site) -> None:
    import pandas as pd

    gr.Markdown(f"What trains now, and what has ended, below `{site.runs}`.")
    follow = gr.Checkbox(True, label=f"Look again every {_EVERY:.0f} seconds")
    empty = gr.Markdown()
    table = gr.Dataframe(headers=["run", "preset", "state", "step", "trained", "written"], interactive=False,
                         label="Runs", max_height=320, wrap=True, buttons=[],
                         column_widths=["36%", "9%", "12%", "20%", "11%", "12%"])  # fmt: skip
    with gr.Row():
        names = gr.Dropdown([], multiselect=True, label="Runs to draw", interactive=True, scale=3)
        metric = gr.Dropdown([], label="Metric", interactive=True, scale=1)
    plot = gr.LinePlot(x="step", y="value", color="run", label="Curves", height=400, buttons=[])
    with gr.Row():
        one = gr.Dropdown([], label="One run more closely", interactive=True)
    with gr.Row():
        numbers = gr.Dataframe(headers=["metric", "last", "at step"], interactive=False, label="Last numbers",
                               max_height=340, buttons=[])  # fmt: skip
        final = gr.Dataframe(headers=["metric", "value", "split"], interactive=False, label="Final numbers",
                             max_height=340, buttons=[], visible=False)  # fmt: skip
    gallery = gr.Gallery(label="Pictures", visible=False, columns=3, object_fit="contain", interactive=False,
                         format="png", buttons=["fullscreen"])  # fmt: skip
    timer = gr.Timer(_EVERY, active=False)

    def curves(runs: Sequence[Run], metric: str | None) -> Any:
        points = [(step, value, run.name) for run in runs for step, value in (curve(run, metric) if metric else [])]
        return gr.update(value=pd.DataFrame(points, columns=["step", "value", "run"]), y_title=metric or "value")

    @answering
    def looked(chosen: list[str] | None, metric: str | None, one: str | None) -> Any:
        runs = find(site.runs)
        known = [run.name for run in runs]
        chosen = [name for name in chosen or [] if name in known] or _first(runs)
        shown = [run for run in runs if run.name in chosen]
        metrics = metric_names(shown)
        metric = metric if metric in metrics else metrics[0] if metrics else None
        one = one if one in known else (chosen[0] if chosen else None)
        closer = next((run for run in runs if run.name == one), None)
        ended = results_of(closer) if closer else []
        line = "" if runs else "No runs yet: `etude run resnet smoke` makes one in seconds."
        return (
            line, overview(runs), gr.update(choices=known, value=chosen), gr.update(choices=metrics, value=metric),
            curves(shown, metric), gr.update(choices=known, value=one), last_numbers(closer) if closer else [],
            gr.update(value=ended, visible=bool(ended)),
        )  # fmt: skip

    @answering
    def pictured(one: str | None) -> Any:
        run = next((run for run in find(site.runs) if run.name == one), None)
        found = pictures_of(run, site.runs) if run else []
        return gr.update(value=found, visible=bool(found))

    parts = [empty, table, names, metric, plot, one, numbers, final]
    asked = [names, metric, one]
    gr.on([current_tab().select, timer.tick, names.input, metric.input, one.input], looked, asked, parts,
          concurrency_id=TITLE, show_progress="hidden", trigger_mode="always_last")  # fmt: skip
    one.change(pictured, one, gallery, concurrency_id=TITLE, show_progress="hidden")
    # Nobody looks before the tab is chosen.
    current_tab().select(lambda on: gr.Timer(active=on), follow, timer, show_progress="hidden")
    follow.input(lambda on: gr.Timer(active=on), follow, timer, show_progress="hidden")


def _first(runs: Sequence[Run]) -> list[str]:
    going = [run.name for run in runs if run.state == "going"]
    return going[:4] or [run.name for run in runs if run.step][:1]
