"""Trackers beside metrics.jsonl: what they hold is what the file holds."""

import json
import sqlite3
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.core import toy
from tests.core.test_loop import Crash, crash, interrupt

from etude.core.errors import Interrupted, UserError
from etude.runs.tracking import Sink, open_sinks


def rows(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The metrics of a run by name."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in toy.metrics(path):
        step = row.pop("step")
        for name, value in row.items():
            found.setdefault(name, []).append((step, pytest.approx(value, rel=1e-6)))
    return found


def board(path: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads from a run's events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_holds_the_metrics(tmp_path: Path):
    toy.train(tmp_path / "run", toy.config(12, trackers=["tensorboard"]))
    assert board(tmp_path / "run") == rows(tmp_path / "run")
    assert len(rows(tmp_path / "run")["train/loss"]) == 6


@pytest.mark.parametrize("step", [2, 6, 11])
def test_tensorboard_after_a_crash_shows_each_step_once(tmp_path: Path, step: int):
    """What the resumed run writes again hides what was there, and hides no more than that."""
    settings = toy.config(12, log_every=1, trackers=["tensorboard"])
    with pytest.raises(Crash):
        toy.train(tmp_path / "run", settings, {step: crash})
    # Event files are ordered by the second in their names.
    time.sleep(1.1)
    toy.train(tmp_path / "run", settings)
    assert [s for s, _ in board(tmp_path / "run")["train/loss"]] == list(range(1, 13))
    assert board(tmp_path / "run") == rows(tmp_path / "run")


def test_trackers_are_closed_where_a_run_is_stopped(tmp_path: Path):
    """Else what they hold back in memory would be lost."""
    threads = threading.active_count()
    settings = toy.config(12, log_every=1, trackers=["tensorboard"])
    with pytest.raises(Interrupted):
        toy.train(tmp_path / "run", settings, {5: interrupt})
    assert [step for step, _ in board(tmp_path / "run")["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert threading.active_count() == threads, "the writer's thread has ended"


def test_trackio_holds_the_metrics_without_a_network(tmp_path: Path):
    where = {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}

    def train(folder: str, **changes: int) -> None:
        child = toy.start(tmp_path / folder / "run", where, log_every=2, trackers=["trackio"], **changes)
        _, printed = child.communicate(timeout=300)
        assert child.returncode == 0, printed

    def stored() -> dict[str, list[tuple[int, dict[str, float]]]]:
        with sqlite3.connect(tmp_path / "trackio" / "etude.db") as base:
            lines = base.execute("select run_id, run_name, step, metrics from metrics order by id").fetchall()
        base.close()
        found: dict[str, list[tuple[int, dict[str, float]]]] = {}
        for run, name, step, metrics in lines:
            assert name.startswith("toys-run")
            found.setdefault(run, []).append((step, json.loads(metrics)))
        return found

    train("toys", max_steps=6)
    want = [(row.pop("step"), row) for row in toy.metrics(tmp_path / "toys" / "run")]
    assert list(stored().values()) == [want]
    # A new run in a folder of the same name elsewhere is no part of the first.
    train("more/toys", max_steps=6)
    assert list(stored().values()) == [want, want]


@pytest.mark.parametrize(("tracker", "module"), [("tensorboard", "torch.utils.tensorboard"), ("trackio", "trackio")])
def test_a_missing_tracker_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str, module: str):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"the tracker {tracker} is not installed: `uv sync --extra track`") as caught:
        toy.train(tmp_path / "run", toy.config(2, trackers=[tracker]))
    assert "\n" not in str(caught.value)


def test_no_tracker_is_no_sink(tmp_path: Path):
    assert open_sinks((), tmp_path, 0) == []
    assert list(tmp_path.iterdir()) == []


def test_a_sink_is_what_the_loop_calls(tmp_path: Path):
    (sink,) = open_sinks(("tensorboard",), tmp_path, 0)
    assert isinstance(sink, Sink)
    sink.log({"a": 1.0}, 3)
    sink.close()
    assert board(tmp_path) == {"a": [(3, 1.0)]}
