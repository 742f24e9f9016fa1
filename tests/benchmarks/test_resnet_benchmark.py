"""The benchmark of the residual networks runs from end to end, and both sides' maps are the same."""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest


def test_quick(quick: Callable[[str], Any]) -> None:
    pytest.importorskip("torchvision", reason="wants the extra `bench`")
    written = quick("resnet")
    assert written["agreement"]["holds"]
    assert 0 <= written["agreement"]["difference"] <= 1e-3
    assert {"etude", "torchvision, no worker", "torchvision, channels last"} <= set(written["blocks"]["training"])
    assert {"etude", "grad-cam, one picture at a time"} <= set(written["blocks"]["grad-cam"])
    for sides in written["blocks"].values():
        assert all(block["seconds"] > 0 and block["images"] > 0 for row in sides.values() for block in row)
    assert len(written["bars"]) == 2


def test_a_folder_that_is_not_there(benchmark_run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    pytest.importorskip("torchvision", reason="wants the extra `bench`")
    done = benchmark_run("resnet", "--folder", "nowhere")
    assert done.returncode == 1
    assert "nowhere does not exist" in done.stderr
    assert "Traceback" not in done.stderr
