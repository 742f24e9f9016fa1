"""benchmarks/endurance.py: the line through the samples, and a training watched for seconds."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import endurance


def test_the_slope_is_that_of_numpy():
    seconds = np.array([0.0, 600.0, 1800.0, 3600.0, 4000.0])
    values = np.array([10.0, 12.0, 11.0, 15.0, 15.5])
    rise, error = endurance.slope(seconds, values)
    (expected, _), covariance = np.polyfit(seconds / 3600, values, 1, cov="unscaled")
    rest = values - np.polyval(np.polyfit(seconds / 3600, values, 1), seconds / 3600)
    assert rise == pytest.approx(expected)
    assert error == pytest.approx(np.sqrt(covariance[0, 0] * (rest**2).sum() / 3))


def test_a_training_is_watched(tmp_path: Path, benchmark_run: Callable[..., subprocess.CompletedProcess[str]]):
    words = ["protonet", "smoke", "--minutes", "0.2", "--every", "0.2"]
    small = ["--", "--loop.save-every", "5", "--loop.eval-every", "50", "--data.size", "16", "--model.width", "4"]
    done = benchmark_run("endurance", *words, "--json", str(tmp_path / "e"), *small)
    # So short a training still grows: the status may be 1 for that alone.
    assert done.returncode in (0, 1), done.stderr
    assert all(line.startswith("FAIL: memory grows") for line in done.stdout.splitlines() if "FAIL" in line)
    assert "stopped at step" in done.stdout
    found = json.loads((tmp_path / "e").read_text())
    rows = found["samples"]
    assert found["status"] == 130
    assert len(rows) > 5
    assert all(row["rss_mb"] > 50 and row["checkpoints"] <= 4 for row in rows)
    assert rows[-1]["step"] > rows[0]["step"]
    assert rows[-1]["metrics_kb"] > rows[0]["metrics_kb"]


SOUND: dict[str, float] = {
    "rss_mb": 500.0, "checkpoints": 4, "checkpoint_mb": 3.0, "folder_mb": 12.5, "metrics_kb": 90.0, "lines": 24,
    "step": 200,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "status", "memory", "says"),
    [
        ({}, 130, (4.0, 0.1), None),
        ({}, 130, (9.0, 0.1), "memory grows by 9.0 +- 0.1 MB an hour"),
        ({}, 130, (9.0, 3.0), None),
        ({}, -9, (0.0, 0.1), "it ended with -9"),
        ({"checkpoints": 5}, 130, (0.0, 0.1), "5 checkpoints, and 2 are kept"),
        ({"folder_mb": 14.0}, 130, (0.0, 0.1), "13.9 MB in the folder beside the metrics"),
        ({"lines": 400}, 130, (0.0, 0.1), "400 lines of metrics by step 200"),
    ],
)
def test_what_is_wrong_is_found(changed: dict[str, float], status: int, memory: tuple[float, float], says: str | None):
    loop = {"keep": 2, "save_every": 10, "log_every": 10, "eval_every": 100}
    faults = endurance.judge({"loop": loop, "status": status}, [SOUND, SOUND | changed], memory)
    assert len(faults) == (says is not None)
    assert says is None or faults[0].startswith(says)


def test_what_vanishes_while_it_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b").write_bytes(b"45")
    assert endurance.size(tmp_path) == 5
    monkeypatch.setattr(endurance.os, "walk", lambda folder: [(str(folder), [], ["a", "gone"])])
    assert endurance.size(tmp_path) == 3
