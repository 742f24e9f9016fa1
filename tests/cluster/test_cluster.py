"""A real Ray cluster of two nodes on this machine: nodes and workers are killed, grids and searches stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.core import toy
from tests.forks import Fork

from etude import cli, registry
from etude.core.checkpoint import read_weights
from etude.runs.experiment import Grid, settings
from etude.runs.grid import Item

pytest.importorskip("ray", reason="the extra `ray` is not installed")
psutil = pytest.importorskip("psutil", reason="comes with the extra `ray`")

PATIENCE = 300.0
STEPS = 200
TINY = (
    f"loop.max-steps={STEPS} loop.save-every=4 loop.log-every=2 loop.eval-every=20 model.width=4 data.size=16 "
    "episodes.way=5 episodes.per-step=2 evaluation.ways=5 evaluation.episodes=20 evaluation.pool-episodes=20 "
    "evaluation.val-episodes=20"
).split()
GRID = ["study", "protonet", "resize", "--preset", "smoke", "--set", *TINY]
STUDY = registry.load("protonet")


def items(runs: Path) -> list[Item]:
    return Grid(STUDY, "resize", "smoke", settings(STUDY, "smoke", TINY), runs).items([0])


NAMES = [item.name for item in items(Path())]


class Nodes:
    """Two nodes of one core each; the second may be killed."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("nodes.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)], env=toy.child_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.address = self._answer()

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        print(word, file=self.process.stdin, flush=True)
        assert self._answer() == self.address

    def _answer(self) -> str:
        assert self.process.stdout is not None
        found = self.process.stdout.readline().strip()
        assert found, "the cluster has ended"
        return found

    def close(self) -> None:
        try:
            self.process.communicate(timeout=PATIENCE)
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.close()


def start(*words: str) -> "subprocess.Popen[str]":
    return Fork(
        ["-m", "etude", *words], env=toy.child_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def interrupt(child: "subprocess.Popen[str]") -> None:
    """Ctrl-C: a terminal tells all that the command has started."""
    os.killpg(child.pid, signal.SIGINT)


def end(child: "subprocess.Popen[str]", status: int = 0) -> tuple[str, str]:
    try:
        out, said = child.communicate(timeout=PATIENCE)
    finally:
        child.kill()
    assert child.returncode == status, said
    return out, said


def wait_for(due: Callable[[], Any], child: "subprocess.Popen[str]") -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := due()):
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def trained(name: str) -> list[Any]:
    """The processes that train a run."""
    found: list[Any] = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "etude.runs.child" in words and any(name in word for word in words):
            found.append(process)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs, undisturbed, one after another with a thread each: other threads add up in another order.

    In this process, which has PyTorch.
    """
    runs = tmp_path_factory.mktemp("whole")
    for item in items(runs):
        assert cli.main(list(item.flags())) == 0
    return runs / "protonet"


def assert_same(path: Path, whole: Path) -> None:
    assert len(toy.metrics(whole)) == STEPS // 2
    assert toy.metrics(path) == toy.metrics(whole)
    theirs, ours = (json.loads((run / "summary.json").read_text()) for run in (whole, path))
    for name in ("step", "steps_trained", "validation", "results", "parameters", "extra", "overrides", "command"):
        assert ours[name] == theirs[name], name
    # On storage all is kept, here the chosen one.
    weights = sorted(path.glob("checkpoints/*/weights.safetensors"))
    assert weights
    for file in weights:
        assert toy.same(read_weights(file)[0], read_weights(whole / file.relative_to(path))[0])


def test_a_node_is_killed_while_it_trains(cluster: Nodes, whole: Path, tmp_path: Path):
    """Both nodes train; what the second one trained goes on on the first, from its last checkpoint."""
    cluster.tell("add")
    grid = start(*GRID, "--runs", str(tmp_path), "--ray", cluster.address)
    paths = [tmp_path / "protonet" / name for name in NAMES]
    wait_for(lambda: all(list(path.glob("checkpoints/step-*")) for path in paths), grid)
    assert all(len(trained(name)) == 1 for name in NAMES), "one on each node"
    cluster.tell("kill")
    out, said = end(grid)
    assert out.count(" ran ") == 2
    lost = [line for line in said.splitlines() if line.startswith("lost: ")]
    assert len(lost) == 1
    assert "it goes on elsewhere (1 of 5)" in lost[0]
    for path in paths:
        assert_same(path, whole / path.name)
        lines = path.with_name(f"{path.name}.log").read_text().splitlines()
        begun = [line for line in lines if line.startswith("etude: on ")]
        assert [": etude resume " in line for line in begun] == ([False, True] if path.name in lost[0] else [False])
        assert [p.name for p in sorted((path / "checkpoints").iterdir())] == [
            p.name for p in sorted((whole / path.name / "checkpoints").iterdir())
        ]
    assert not any(trained(name) for name in NAMES)


def test_a_worker_is_killed_and_runs_lie_on_storage(cluster: Nodes, whole: Path, tmp_path: Path):
    """The node's own disk is lost with the worker; the run comes back from the storage."""
    cluster.tell("add")
    runs, store = tmp_path / "runs", tmp_path / "store"
    grid = start(*GRID, "--runs", str(runs), "--ray", cluster.address, "--storage", f"file://{store}")
    killed = NAMES[0]
    wait_for(lambda: list((store / "protonet" / killed).glob("checkpoints/step-*/manifest.json")), grid)
    (child,) = trained(killed)
    os.kill(child.ppid(), signal.SIGKILL)
    assert not (runs / "protonet" / killed).exists(), "it comes when it has ended"
    _, said = end(grid)
    assert f"lost: {killed} (" in said
    for name in NAMES:
        assert_same(runs / "protonet" / name, whole / name)
        assert len(list((runs / "protonet" / name).glob("checkpoints/step-*"))) == 1
        steps = [path.name for path in (store / "protonet" / name).glob("checkpoints/step-*")]
        assert sorted(steps) == sorted(path.name for path in (whole / name).glob("checkpoints/step-*"))
    log = (runs / "protonet" / f"{killed}.log").read_text()
    assert log.count(": etude resume ") == 1
    shops = Path(tempfile.gettempdir()) / f"etude-{os.getuid()}"
    assert shops.is_dir()
    assert not list(shops.glob(f"attempt-*/runs/protonet/{killed}/summary.json"))


def test_ctrl_c_of_a_grid(cluster: Nodes, whole: Path, tmp_path: Path):
    """On a cluster of its own: what trains is saved, the cluster ends, the command goes on."""
    words = [*GRID, "--runs", str(tmp_path), "--ray"]
    grid, paths = start(*words, "local"), [tmp_path / "protonet" / name for name in NAMES]
    # Before they train, which takes no longer than to look.
    wait_for(lambda: any((path / "config.yaml").exists() for path in paths), grid)
    started = psutil.Process(grid.pid).children(recursive=True)
    listening = {at.ip for process in (psutil.Process(grid.pid), *started) for at in listens(process)}
    assert listening
    assert listening <= LOOPBACK
    wait_for(lambda: any(list(path.glob("checkpoints/step-*")) for path in paths), grid)
    interrupt(grid)
    _, said = end(grid, status=130)
    assert "saved first" in said
    assert not any(trained(name) for name in NAMES)
    assert not psutil.wait_procs(started, timeout=30)[1], "its cluster has ended"
    begun = [path for path in paths if list(path.glob("checkpoints/step-*"))]
    assert begun
    for path in begun:
        assert not (path / "summary.json").exists()
        assert "saved: `etude resume" in path.with_name(f"{path.name}.log").read_text()
    # On the nodes that are there, for time's sake.
    out, _ = end(start(*words, cluster.address))
    assert out.count(" ran ") == 2
    for path in paths:
        assert_same(path, whole / path.name)


LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def listens(process: Any) -> list[Any]:
    try:
        return [at.laddr for at in process.net_connections("inet") if at.status == psutil.CONN_LISTEN]
    except psutil.Error:
        return []


def test_what_no_node_has_is_one_line(cluster: Nodes, tmp_path: Path):
    words = [*GRID, "--runs", str(tmp_path), "--ray", cluster.address]
    for child in [start(*words, *more) for more in (["--gpus", "0.5"], ["--cpus", "64"])]:
        _, said = end(child, status=2)
        assert said.count("\n") == 1
        assert "no node of the cluster has " in said
        assert "lower --cpus or --gpus" in said
    assert not list(tmp_path.iterdir())


TUNE = ["tune", "protonet", "smoke", "--search", "optim.lr=1e-30,1e-3,1e-29,1e-28"]


def test_a_search_stops_what_falls_behind(cluster: Nodes, tmp_path: Path):
    """A rate that learns and three that learn nothing: all but the first are stopped, saved, and can be resumed."""
    cluster.tell("add")
    some = ["--set", *TINY, "loop.eval-every=10", "--grace", "10", "--reduction", "2"]
    words = [*TUNE, *some, "--runs", str(tmp_path), "--ray", cluster.address, "--json", "--jobs", "1"]
    out, said = end(start(*words, "--trials", "3"))
    trials = json.loads(out)
    assert len(trials) == 3
    states = {trial["optim.lr"]: trial["state"] for trial in trials}
    assert "stopped" in states.values()
    assert "done" in states.values()
    for trial in trials:
        path = Path(trial["run"])
        rows = [row["val/accuracy_5way"] for row in toy.metrics(path) if "val/accuracy_5way" in row]
        assert trial["best"] == max(rows)
        assert (path / "summary.json").exists() == (trial["state"] == "done")
        if trial["state"] == "stopped":
            assert trial["trained"] < STEPS
            assert trial["reason"] == f"fell behind: `etude resume {path}` goes on"
            log = path.with_name(f"{path.name}.log").read_text()
            assert "saved: `etude resume" in log, "it was asked, not killed"
    assert "best on validation: trial " in said
    shutil.rmtree(tmp_path / "protonet")


def test_a_search_is_lost_stopped_and_gathered(cluster: Nodes, tmp_path: Path):
    """On storage: a worker is killed, Ctrl-C, the same command goes on, and gathers again what is not here."""
    cluster.tell("add")
    runs, store = tmp_path / "runs" / "protonet", tmp_path / "store" / "protonet"
    some = ["--set", *TINY, "loop.max-steps=400", "loop.eval-every=100"]
    words = [
        "tune", "protonet", "smoke", "--search", "optim.lr=1e-3,1e30", *some, "--trials", "2", "--json",
        "--no-early-stop", "--runs", str(runs.parent), "--ray", cluster.address, "--storage", f"file://{store.parent}",
    ]  # fmt: skip

    def newest() -> tuple[int, str]:
        found = store.glob("tune-smoke-*/checkpoints/step-*/manifest.json")
        return max(((int(path.parent.name[5:]), path.parts[-4]) for path in found), default=(0, ""))

    search = start(*words)
    step, name = wait_for(lambda: newest()[0] >= 4 and newest(), search)
    (child,) = wait_for(lambda: trained(name), search)
    os.kill(child.ppid(), signal.SIGKILL)
    log = store / f"{name}.log"
    wait_for(lambda: ": etude resume " in log.read_text() and newest()[0] > step + 4, search)
    interrupt(search)
    out, said = end(search, status=130)
    assert "trials begun and saved: the same command goes on with them" in said
    # The other trial may have failed by then.
    (row,) = [row for row in json.loads(out) if row["optim.lr"] == 1e-3]
    assert (row["state"], row["run"]) == ("begun", str(runs / name))
    assert list((runs / name).glob("checkpoints/step-*/manifest.json")), "what was saved is here"
    assert not (runs / name / "summary.json").exists()
    assert not trained(name)

    out, said = end(start(*words))
    rows = {row["optim.lr"]: row for row in json.loads(out)}
    assert len(rows) == 2
    assert rows[1e-3] | {"best": 0, "step": 0} == {
        "trial": row["trial"], "optim.lr": 1e-3, "best": 0, "step": 0, "trained": 400, "state": "done",
        "run": str(runs / name), "reason": "",
    }  # fmt: skip
    assert rows[1e30]["state"] == "failed"
    assert "not finite" in rows[1e30]["reason"], "its log was brought"
    steps = [line["step"] for line in toy.metrics(runs / name)]
    assert steps == sorted(set(steps))
    assert "best on validation: " in said

    # As if the command had died before it gathered.
    shutil.rmtree(runs / name)
    again, _ = end(start(*words))
    assert json.loads(again) == json.loads(out)
