"""The benchmark of the residual networks runs from end to end, and both sides' maps are the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def test_quick(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="wants the extra `bench`")
    report = tmp_path / "speed.json"
    command = [sys.executable, "benchmarks/resnet.py", "--quick", "--threads", "1", "--json", str(report)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(report.read_text())
    assert written["quick"]
    assert written["agreement"]["holds"]
    assert 0 <= written["agreement"]["difference"] <= 1e-3
    assert {"etude", "torchvision, no worker", "torchvision, channels last"} <= set(written["blocks"]["training"])
    assert {"etude", "grad-cam, one picture at a time"} <= set(written["blocks"]["grad-cam"])
    for sides in written["blocks"].values():
        assert all(block["seconds"] > 0 and block["images"] > 0 for row in sides.values() for block in row)
    assert len(written["bars"]) == 2
    assert not any(bar["judged"] for bar in written["bars"].values())


def test_a_folder_that_is_not_there(root: Path) -> None:
    pytest.importorskip("torchvision", reason="wants the extra `bench`")
    command = [sys.executable, "benchmarks/resnet.py", "--folder", "nowhere"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    assert "nowhere does not exist" in done.stderr
    assert "Traceback" not in done.stderr
