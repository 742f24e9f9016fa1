"""`etude tune` on this machine, with real runs."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.core import toy

pytest.importorskip("optuna", reason="the extra `tune` is not installed")

WORDS = [
    "tune", "protonet", "smoke", "--search", "optim.lr=1e-3,1e30", "--trials", "2", "--json", "--no-early-stop",
    "--set", "loop.max-steps=40", "loop.save-every=2", "loop.eval-every=10", "model.width=4", "data.size=16",
    "episodes.way=5", "episodes.per-step=2", "evaluation.ways=5", "evaluation.episodes=20",
    "evaluation.pool-episodes=20", "evaluation.val-episodes=20",
]  # fmt: skip


def start(*words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "etude", *words]
    return subprocess.Popen(
        command, env=toy.child_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_search_is_stopped_and_goes_on(tmp_path: Path):
    words, folder = [*WORDS, "--runs", str(tmp_path)], tmp_path / "protonet"
    search = start(*words)
    deadline = time.monotonic() + 300
    while not (found := list(folder.glob("*/checkpoints/step-*"))):
        assert search.poll() is None, search.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    search.send_signal(signal.SIGINT)
    out, said = search.communicate(timeout=300)
    assert search.returncode == 130, said
    assert "trials begun and saved: the same command goes on with them" in said
    path = found[0].parents[1]
    (row,) = [row for row in json.loads(out) if row["run"] == str(path)]
    assert (row["optim.lr"], row["state"]) == (1e-3, "begun")
    assert not (path / "summary.json").exists()
    assert "saved: `etude resume" in path.with_name(f"{path.name}.log").read_text(), "it was asked, not killed"

    search = start(*words)
    out, said = search.communicate(timeout=300)
    assert search.returncode == 0, said
    rows = {row["optim.lr"]: row for row in json.loads(out)}
    scores = [line["val/accuracy_5way"] for line in toy.metrics(path) if "val/accuracy_5way" in line]
    assert rows[1e-3] | {"step": 0} == {
        "trial": row["trial"], "optim.lr": 1e-3, "best": max(scores), "step": 0, "trained": 40, "state": "done",
        "run": str(path), "reason": "",
    }  # fmt: skip
    assert rows[1e30]["state"] == "failed"
    assert "not finite" in rows[1e30]["reason"]
    steps = [line["step"] for line in toy.metrics(path)]
    assert steps == sorted(set(steps))
    assert f"best on validation: trial {row['trial']}: {path}: etude run protonet smoke --loop.max-steps 40" in said


def test_a_study_without_a_metric_is_one_line(tmp_path: Path):
    search = start("tune", "dcgan", "smoke", "--search", "optim.lr=1e-4,1e-3", "--runs", str(tmp_path))
    out, said = search.communicate(timeout=300)
    assert (search.returncode, out, said.count("\n")) == (2, "", 1)
    assert "the study 'dcgan' chooses nothing by validation" in said
