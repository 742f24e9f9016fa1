"""The benchmark of the U-Net runs from end to end, a kept context changes nothing, and networks are of a size."""

from collections.abc import Callable
from typing import Any

import pytest


def test_quick(quick: Callable[[str], Any]) -> None:
    pytest.importorskip("diffusers", reason="wants the extra `bench`")
    written = quick("slotdiffusion")
    assert written["agreement"]["holds"]
    assert written["agreement"]["difference"] == 0
    assert all(0 <= apart <= 0.03 for apart in written["agreement"]["sizes"].values())
    training, sampling, samplers = written["blocks"].values()
    assert set(training) == {"etude", "diffusers"}
    assert set(sampling) == {"etude", "etude, context in every step", "diffusers"}
    assert set(samplers) == {"dpm-solver++, 2 steps", "ancestral, 40 steps"}
    assert len(written["bars"]) == 4
