"""A search over settings: what is suggested, what falls behind, how it goes on. Its engine trains nothing."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from etude import registry
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder, RunRecord
from etude.runs.grid import STOPPED, LocalEngine
from etude.runs.search import Ledger, Trial, read_search

pytest.importorskip("optuna", reason="the extra `tune` is not installed")

from etude.runs import tuner
from etude.runs.tuner import Search

STUDY = registry.load("protonet")
LAST = 9
"""The steps of a run; each is evaluated."""


class Engine(LocalEngine):
    """Runs whose score is their learning rate times the step; each waits until the search has seen where it is."""

    def __init__(self, jobs: int = 1) -> None:
        super().__init__(jobs)
        self.commands: list[list[str]] = []
        self.looks: Counter[Path] = Counter()
        self.asked: set[Path] = set()
        self.ends: dict[float, Callable[[], int]] = {}
        """What runs of a learning rate do in place of training."""
        self.changed = threading.Condition()

    def submit(self, command: Sequence[str], log: Path) -> Future[int]:
        self.commands.append(list(command))
        return self.pool.submit(self.train, command, log)

    def train(self, command: Sequence[str], log: Path) -> int:
        path = log.with_suffix("")
        if command[0] == "run":
            rate = float(command[command.index("--optim.lr") + 1])
            RunFolder.create(path, RunRecord("protonet", "smoke", "smoke", {"optim.lr": rate}, {}))
        run = RunFolder.open(path)
        rate = run.record.overrides["optim.lr"]
        begun = len(list(run.metrics()))
        for step in range(begun + 1, LAST + 1):
            if step == 2 and rate in self.ends:
                log.write_text("etude: the loss is not finite\n")
                return self.ends[rate]()
            run.append_metrics({"step": step, "val/accuracy": rate * step})
            with self.changed:
                # By the third look what followed from one that saw the line is done.
                seen = self.looks[path] + 3
                assert self.changed.wait_for(lambda seen=seen: self.looks[path] >= seen, timeout=60)
            if log in self.asked:
                return STOPPED
        run.write_summary({"step": LAST})
        return 0

    def metrics(self, path: Path) -> list[dict[str, Any]]:
        rows = list(RunFolder(path).metrics())
        with self.changed:
            self.looks[path] += 1
            self.changed.notify_all()
        return rows

    def stop(self, log: Path) -> None:
        self.asked.add(log)

    def monitor(self, words: Sequence[str]) -> dict[str, str]:
        return {"metric": "accuracy", "direction": "max"}


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(tuner, "_POLL", 0.005)
    made = Engine()
    yield made
    made.pool.shutdown()


def searched(folder: Path, engine: Engine, number: int, *words: str, grace: int = 1) -> tuple[list[Trial], list[str]]:
    """A call of a search: its trials afterwards, and what it said."""
    words = words or ("optim.lr=0.1,0.2,0.3,0.4",)
    about = {"study": "protonet", "preset": "smoke", "set": {}, "search": sorted(words), "seed": 0}
    ledger, said = Ledger.open(folder / "protonet" / "x.tune.json", about), []
    ranges = read_search(STUDY, "smoke", words, {})
    search = Search(ledger, ranges, engine, said.append, metrics=engine.metrics, last=LAST, grace=grace, reduction=3)
    search.run(number)
    assert Ledger.open(ledger.path, about) == ledger, "each change is written"
    return ledger.trials, said


def trained(folder: Path, number: int) -> int:
    return len(list(RunFolder(folder / "protonet" / f"x-{number:03d}").metrics()))


def test_what_falls_behind_is_stopped(tmp_path: Path, engine: Engine):
    trials, said = searched(tmp_path, engine, 4)
    rates = [trial.settings["optim.lr"] for trial in trials]
    assert sorted(rates) == [0.1, 0.2, 0.3, 0.4], "no combination twice"
    for number, (rate, trial) in enumerate(zip(rates, trials, strict=True), start=1):
        best = rate == max(rates[:number])
        assert trial.state == ("done" if best else "stopped")
        assert trained(tmp_path, number) == (LAST if best else 1), "at the first rung"
    assert any(trial.state == "stopped" for trial in trials)
    assert f"trial 1: optim.lr={rates[0]} (run: {tmp_path}/protonet/x-001)" in said
    # There are no more.
    assert searched(tmp_path, engine, 9) == (trials, [])


def test_the_rungs_are_powers_of_the_reduction(tmp_path: Path, engine: Engine):
    """Of scores that grow alike, one that is behind at the third step is stopped there, not before."""
    trials, _ = searched(tmp_path, engine, 4, grace=3)
    assert {trained(tmp_path, trial.number) for trial in trials if trial.state == "stopped"} == {3}


def test_without_a_grace_nothing_is_stopped(tmp_path: Path, engine: Engine):
    trials, _ = searched(tmp_path, engine, 4, grace=0)
    assert [trial.state for trial in trials] == ["done"] * 4


def test_what_earlier_calls_have_tried_counts(tmp_path: Path, engine: Engine):
    first, _ = searched(tmp_path, engine, 1, "optim.lr=log:1e-3:1e-1")
    engine.commands.clear()
    trials, _ = searched(tmp_path, engine, 6, "optim.lr=log:1e-3:1e-1")
    assert trials[0] == first[0]
    assert len(engine.commands) == 5
    rates = [trial.settings["optim.lr"] for trial in trials]
    assert len(set(rates)) == 6
    assert all(1e-3 <= rate <= 1e-1 for rate in rates)
    # The first trial is the only one to compare the second with.
    assert trials[1].state == ("done" if rates[1] > rates[0] else "stopped")


def test_what_is_searched_over_may_change_places(tmp_path: Path, engine: Engine):
    words = ["optim.lr=0.1,0.2", "model.width=int:4:5"]
    searched(tmp_path, engine, 2, *words, grace=0)
    trials, _ = searched(tmp_path, engine, 9, *reversed(words), grace=0)
    found = sorted((trial.settings["optim.lr"], trial.settings["model.width"]) for trial in trials)
    assert found == [(0.1, 4), (0.1, 5), (0.2, 4), (0.2, 5)]


@pytest.mark.parametrize("kind", ["int:2:5", "logint:2:5", "float:2:5"])
def test_numbers_of_each_kind(kind: str, tmp_path: Path, engine: Engine):
    name = "optim.lr" if kind.startswith("float") else "loop.max-steps"
    if name != "optim.lr":
        engine.train = lambda command, log: 0
    trials, _ = searched(tmp_path, engine, 4, f"{name}={kind}", grace=0)
    values = [trial.settings[name.replace("-", "_")] for trial in trials]
    assert len(set(values)) == 4
    assert all(2 <= value <= 5 for value in values)
    assert all(isinstance(value, float if kind.startswith("float") else int) for value in values)


def test_a_run_that_fails_is_not_made_again(tmp_path: Path, engine: Engine):
    engine.ends = {0.1: lambda: 2}
    for _ in range(2):
        trials, _ = searched(tmp_path, engine, 4, grace=0)
        assert {trial.settings["optim.lr"]: trial.state for trial in trials} == {
            0.1: "failed", 0.2: "done", 0.3: "done", 0.4: "done",
        }  # fmt: skip
    assert len(engine.commands) == 4


def away() -> int:
    raise ConnectionError("the storage is away")


@pytest.mark.parametrize("end", [lambda: STOPPED, lambda: -9, away])
def test_what_was_stopped_from_outside_goes_on(end: Callable[[], int], tmp_path: Path, engine: Engine):
    engine.ends = {0.1: end}
    trials, said = searched(tmp_path, engine, 4, grace=0)
    (begun,) = [trial for trial in trials if trial.state == "begun"]
    assert begun.settings == {"optim.lr": 0.1}
    assert trained(tmp_path, begun.number) == 1
    assert any(line.endswith("(the storage is away)") for line in said) == (end is away)
    engine.ends, engine.commands = {}, []
    trials, _ = searched(tmp_path, engine, 4, grace=0)
    assert engine.commands == [["resume", f"{tmp_path}/protonet/x-{begun.number:03d}"]]
    assert [trial.state for trial in trials] == ["done"] * 4


def test_trials_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuner, "_POLL", 0.005)
    most, running = [], set[str]()

    class Busy(Engine):
        def train(self, command: Sequence[str], log: Path) -> int:
            running.add(log.name)
            most.append(len(running))
            time.sleep(0.05)
            running.remove(log.name)
            return 0

    engine = Busy(jobs=2)
    searched(tmp_path, engine, 4)
    engine.pool.shutdown()
    assert max(most) == 2


def test_nothing_to_search_by(tmp_path: Path, engine: Engine):
    engine.monitor = lambda words: {}
    with pytest.raises(UserError, match="the study 'protonet' chooses nothing by validation"):
        searched(tmp_path, engine, 1)
    engine.monitor = lambda words: {"fault": "data.folder is missing"}
    with pytest.raises(UserError, match=r"no trial could begin: data\.folder is missing"):
        searched(tmp_path, engine, 1)
    assert not list(tmp_path.iterdir())


def test_a_record_of_before_is_read(tmp_path: Path, engine: Engine):
    """The file of a search that Ray Tune made goes on."""
    trials = [
        {"number": 1, "settings": {"optim.lr": 0.4}, "state": "failed", "reason": "it was lost 6 times"},
        {"number": 2, "settings": {"optim.lr": 0.3}, "state": "begun", "reason": ""},
    ]
    about = {"study": "protonet", "preset": "smoke", "set": {}, "search": ["optim.lr=0.1,0.2,0.3,0.4"], "seed": 0}
    path = tmp_path / "protonet" / "x.tune.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"format": 1, "about": about, "monitor": ["accuracy", "max"], "trials": trials}))
    found, _ = searched(tmp_path, engine, 2)
    assert [(trial.number, trial.state) for trial in found] == [(1, "failed"), (2, "done")]
    assert found[0].reason == "it was lost 6 times"
