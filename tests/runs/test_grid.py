"""A grid of runs: order, failures, what is done, what was begun."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest
from tests.core import toy

from etude.core.config import as_flags
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder, RunRecord
from etude.runs.grid import STOPPED, Item, LocalEngine, Outcome, run_grid

# What stands for `etude`: it ends a run, fails, or ends without a result.
SCRIPT = """
import json, sys, time
from pathlib import Path
verb, *rest = sys.argv[1:]
path = Path(rest[-1])
if "fail" in rest:
    print("a line before")
    print("etude: the loss is not finite at step 3", file=sys.stderr)
    raise SystemExit(2)
if "vanish" not in rest:
    path.mkdir(parents=True, exist_ok=True)
    (path / "summary.json").write_text("{}")
"""


class Engine(LocalEngine):
    """Runs the script above; notes what it was given."""

    def __init__(self, jobs: int = 2) -> None:
        super().__init__(jobs)
        self.commands: list[list[str]] = []

    def submit(self, command: Sequence[str], log: Path) -> Future[int]:
        self.commands.append(list(command))
        return self.pool.submit(self.run, command, log)

    def run(self, command: Sequence[str], log: Path) -> int:
        if "explode" in command:
            raise ConnectionError("the node is gone")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            words = [sys.executable, "-S", "-c", SCRIPT, *command]
            return subprocess.run(words, stdout=file, stderr=file, check=False).returncode


@pytest.fixture
def engine():
    made = Engine()
    yield made
    made.close()


@pytest.fixture
def item(tmp_path: Path) -> Callable[..., Item]:
    def make(name: str, *words: str, after: tuple[str, ...] = ()) -> Item:
        path = tmp_path / "runs" / name
        return Item(name, path, lambda: ["run", *words, str(path)], after)

    return make


def quiet(text: str) -> None:
    assert "\n" not in text


def states(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    return [(outcome.item.name, outcome.state) for outcome in outcomes]


def test_every_run_ends_and_the_order_is_that_of_the_items(engine: Engine, item: Callable[..., Item]):
    said: list[str] = []
    items = [item("c", after=("a",)), item("b"), item("a")]
    outcomes = run_grid(items, engine, said.append)
    assert states(outcomes) == [("c", "ran"), ("b", "ran"), ("a", "ran")]
    assert sorted(line for line in said if line.startswith("ran")) == ["ran: a", "ran: b", "ran: c"]
    assert said.index("ran: a") < said.index(f"queued: c (log: {items[0].log})")


def test_a_failed_run_is_named_and_stops_no_other(engine: Engine, item: Callable[..., Item]):
    outcomes = run_grid([item("a"), item("b", "fail"), item("c")], engine, quiet)
    assert states(outcomes) == [("a", "ran"), ("b", "failed"), ("c", "ran")]
    assert (outcomes[1].status, outcomes[1].reason) == (2, "etude: the loss is not finite at step 3")


def test_what_follows_a_failure_waits(engine: Engine, item: Callable[..., Item]):
    items = [item("a", "fail"), item("b", after=("a",)), item("c", after=("b",)), item("d")]
    outcomes = run_grid(items, engine, quiet)
    assert states(outcomes) == [("a", "failed"), ("b", "waits"), ("c", "waits"), ("d", "ran")]
    assert outcomes[1].reason == "a has not ended well"
    assert outcomes[2].reason == "b has not ended well"
    assert len(engine.commands) == 2


def test_one_good_predecessor_is_enough(engine: Engine, item: Callable[..., Item]):
    items = [item("a", "fail"), item("b"), item("c", "fail"), item("d", after=("a", "b")), item("e", after=("a", "c"))]
    outcomes = run_grid(items, engine, quiet)
    assert states(outcomes) == [("a", "failed"), ("b", "ran"), ("c", "failed"), ("d", "ran"), ("e", "waits")]
    assert outcomes[4].reason == "a, c has not ended well"


def test_it_waits_for_all_of_its_predecessors(engine: Engine, item: Callable[..., Item]):
    """Though the first has ended well, the second may do better."""
    first, second = item("a"), item("b")
    seen: list[tuple[bool, bool]] = []

    def flags() -> list[str]:
        seen.append((first.done, second.done))
        return ["run", str(first.path.parent / "c")]

    run_grid([Item("c", first.path.parent / "c", flags, after=("a", "b")), first, second], engine, quiet)
    assert seen == [(True, True)]


def test_a_second_call_runs_only_what_is_missing(engine: Engine, item: Callable[..., Item]):
    run_grid([item("a"), item("b", "fail"), item("c", after=("b",))], engine, quiet)
    engine.commands.clear()
    outcomes = run_grid([item("a"), item("b"), item("c", after=("b",))], engine, quiet)
    assert states(outcomes) == [("a", "done"), ("b", "ran"), ("c", "ran")]
    assert [command[-1].rsplit("/", 1)[1] for command in engine.commands] == ["b", "c"]
    assert states(run_grid([item("a"), item("b")], engine, quiet)) == [("a", "done"), ("b", "done")]


def test_a_run_that_was_begun_is_resumed(engine: Engine, item: Callable[..., Item]):
    RunFolder.create(item("a").path, RunRecord("toy", "smoke", "smoke", {}, {}))
    outcomes = run_grid([item("a"), item("b")], engine, quiet)
    assert states(outcomes) == [("a", "ran"), ("b", "ran")]
    assert engine.commands == [["resume", str(item("a").path)], ["run", str(item("b").path)]]


def test_the_words_are_asked_for_once_the_run_before_has_ended(engine: Engine, item: Callable[..., Item]):
    first = item("a")
    seen: list[bool] = []

    def flags() -> list[str]:
        seen.append(first.done)
        return ["run", str(first.path.parent / "b")]

    run_grid([first, Item("b", first.path.parent / "b", flags, after=("a",))], engine, quiet)
    assert seen == [True]


def test_words_that_cannot_be_made_are_a_failure(engine: Engine, item: Callable[..., Item]):
    def flags() -> list[str]:
        raise UserError("no best checkpoint")

    outcomes = run_grid([Item("a", item("a").path, flags), item("b")], engine, quiet)
    assert states(outcomes) == [("a", "failed"), ("b", "ran")]
    assert outcomes[0].reason == "no best checkpoint"


def test_a_run_without_a_result_has_failed(engine: Engine, item: Callable[..., Item]):
    outcomes = run_grid([item("a", "vanish")], engine, quiet)
    assert states(outcomes) == [("a", "failed")]
    assert (outcomes[0].status, outcomes[0].reason) == (1, "it printed nothing")


def test_an_engine_that_breaks_is_a_failure_of_the_run(engine: Engine, item: Callable[..., Item]):
    outcomes = run_grid([item("a", "explode"), item("b")], engine, quiet)
    assert states(outcomes) == [("a", "failed"), ("b", "ran")]
    assert outcomes[0].reason == "ConnectionError: the node is gone"


def test_a_run_that_follows_none_of_the_grid_is_our_fault(engine: Engine, item: Callable[..., Item]):
    """And must not spin for ever."""
    for items in ([item("b", after=("nowhere",))], [item("a", after=("b",)), item("b", after=("a",))]):
        with pytest.raises(AssertionError, match="follow runs that are not in the grid"):
            run_grid(items, engine, quiet)


def test_a_grid_of_nothing(engine: Engine):
    assert run_grid([], engine, quiet) == []


def test_flags_are_read_back_by_the_command_line():
    from etude import registry
    from etude.core.config import override
    from etude.runs.flags import parse

    study = registry.load("protonet")
    preset = study.preset("smoke").build()
    overrides = {
        "warm_start": True, "loop.compile": False, "evaluation.ways": (3,), "optim.lr": 3e-4, "loop.max_steps": 7,
        "selected_run": "runs/a b", "data.resize": "nearest",
    }  # fmt: skip
    assert parse(study.config, as_flags(overrides), prog="etude", default=preset) == override(preset, overrides)


def test_this_machine_runs_real_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in toy.child_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    engine = LocalEngine(3)
    assert engine.environment["OMP_NUM_THREADS"] == "2", "the cores are shared among the jobs"
    try:
        fine = engine.submit(["list"], tmp_path / "logs" / "fine.log")
        wrong = engine.submit(["lst"], tmp_path / "logs" / "wrong.log")
        assert (fine.result(), wrong.result()) == (0, 2)
        again = engine.submit(["lst"], tmp_path / "logs" / "wrong.log")
        assert again.result() == 2
    finally:
        engine.close()
    assert "protonet" in (tmp_path / "logs" / "fine.log").read_text()
    lines = (tmp_path / "logs" / "wrong.log").read_text().splitlines()
    assert len(lines) == 2, "a second attempt is added to the log"
    assert lines[0].startswith("etude: no verb 'lst'; did you mean 'list'?")


def test_what_runs_here_is_asked_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in toy.child_environment().items():
        monkeypatch.setenv(name, value)
    words = ["run", "protonet", "smoke", "--runs", str(tmp_path), "--loop.max-steps", "1000000", "--name"]
    logs = {name: tmp_path / "protonet" / f"{name}.log" for name in ("one", "two")}
    engine = LocalEngine(2)
    try:
        first, second = (engine.submit([*words, name], log) for name, log in logs.items())
        deadline = time.monotonic() + 300
        while not all((tmp_path / "protonet" / name / "metrics.jsonl").exists() for name in ("one", "two")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        engine.stop(logs["one"])
        assert first.result() == STOPPED
        assert "`etude resume" in logs["one"].read_text()
        assert not second.done()
        engine.stop(tmp_path / "nowhere.log")
    finally:
        engine.close()
    assert "`etude resume" in logs["two"].read_text()
    assert second.result() == STOPPED


def test_more_jobs_than_cores_have_a_thread_each(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    engine = LocalEngine(4)
    assert engine.environment["OMP_NUM_THREADS"] == "1"
    engine.close()
