"""A real run, killed with SIGKILL ten times and resumed, ends as one that nobody touched: bit for bit.

The other studies, and the other faults, are tried by benchmarks/faults.py: see tests/benchmarks/test_faults.py.
"""

import json
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.core import toy
from tests.forks import Fork

from etude.core.checkpoint import read_resume, read_weights

STEPS = 150
FLAGS = (
    f"--loop.max-steps {STEPS} --loop.save-every 3 --loop.log-every 2 --loop.eval-every 10 --model.width 4 "
    "--data.size 16 --episodes.way 5 --episodes.per-step 2 --evaluation.ways 5 --evaluation.episodes 20 "
    "--evaluation.pool-episodes 20 --evaluation.val-episodes 20"
).split()
PATIENCE = 300.0


def start(runs: Path, name: str) -> "subprocess.Popen[str]":
    """`etude run`, or `etude resume` where the run was begun."""
    path = runs / "protonet" / name
    words = ["run", "protonet", "smoke", "--name", name, "--runs", str(runs), *FLAGS]
    if (path / "config.yaml").exists():
        words = ["resume", str(path)]
    return Fork(
        ["-m", "etude", *words], env=toy.child_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def steps(path: Path) -> list[int]:
    return sorted(int(p.name[5:]) for p in (path / "checkpoints").glob("step-*"))


def kill(child: "subprocess.Popen[str]", due: Callable[[], bool], delay: float) -> bool:
    """Kill a process some time after something was seen. Returns whether it was still there."""
    deadline = time.monotonic() + PATIENCE
    while child.poll() is None and not due():
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.002)
    time.sleep(delay)
    child.kill()
    _, said = child.communicate()
    assert child.returncode in (-9, 0), said
    return child.returncode == -9


def files(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def summary(path: Path) -> dict[str, Any]:
    """The summary without the two things that a repeated run may have otherwise."""
    found = json.loads((path / "summary.json").read_text())
    assert found.pop("train_seconds") > 0
    assert found.pop("peak_memory_mb") > 0
    return found


def test_ten_kills_change_nothing(tmp_path: Path, request: pytest.FixtureRequest):
    draw = random.Random(4)
    path, whole = tmp_path / "protonet" / "killed", tmp_path / "protonet" / "whole"
    undisturbed = start(tmp_path, "whole")
    request.addfinalizer(undisturbed.kill)
    kills = 0

    def at_once() -> bool:
        return True

    def later(count: int) -> Callable[[], bool]:
        newest = max(steps(path), default=0)
        return lambda: max(steps(path), default=0) >= newest + count

    def in_a_save() -> bool:
        return any((path / "checkpoints").glob(".step-*.tmp"))

    def trained() -> bool:
        return max(steps(path), default=0) == STEPS

    # The first while it still imports; then around steps and saves; the last while it evaluates and draws.
    for due in (at_once, None, in_a_save, None, in_a_save, None, at_once, None, in_a_save, trained):
        child = start(tmp_path, "killed")
        request.addfinalizer(child.kill)
        delay = draw.uniform(0, 0.3) if due is None else draw.uniform(0, 1) if due in (at_once, trained) else 0.0
        kills += kill(child, due or later(draw.randint(1, 9)), delay)
    assert kills == 10, "every kill met a living process"
    assert not (path / "summary.json").exists()

    for child in (start(tmp_path, "killed"), undisturbed):
        _, said = child.communicate(timeout=PATIENCE)
        assert child.returncode == 0, said

    assert toy.metrics(path) == toy.metrics(whole)
    assert len(toy.metrics(path)) == STEPS // 2
    assert summary(path) == summary(whole)
    assert summary(path)["results"]
    assert steps(path) == steps(whole)
    for step in steps(whole):
        ours, theirs = (run / "checkpoints" / f"step-{step:08d}" for run in (path, whole))
        tensors, header = read_weights(ours / "weights.safetensors")
        again, header_again = read_weights(theirs / "weights.safetensors")
        assert toy.same(tensors, again)
        assert header == header_again
        assert toy.same(read_resume(ours / "resume.pt"), read_resume(theirs / "resume.pt"))
    assert files(path) == files(whole), "nothing is missing, and no kill left anything behind"


def test_the_comparison_has_teeth(tmp_path: Path):
    """A single line, weight or number that differs is seen."""
    one, other = (toy.train(tmp_path / name, toy.config(4, seed=seed)) for name, seed in (("a", 0), ("b", 1)))
    assert toy.metrics(one.run.path) != toy.metrics(other.run.path)
    assert not toy.same(one.checkpoints.load_resume(4), other.checkpoints.load_resume(4))
