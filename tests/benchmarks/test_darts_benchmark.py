"""The benchmark of architecture search runs from end to end, and both forms' losses are the same."""

from collections.abc import Callable
from typing import Any


def test_quick(quick: Callable[[str], Any]) -> None:
    written = quick("darts")
    assert written["agreement"]["holds"]
    names = {
        "search step, first order", "search step, second order", "search step, partial channels",
        "retraining step, DARTS V2",
    }  # fmt: skip
    assert set(written["agreement"]["by"]) == set(written["blocks"]) == set(written["bars"]) == names
    assert all(0 <= apart <= 1e-4 for apart in written["agreement"]["by"].values())
    assert all(set(blocks) == {"etude", "plain form"} for blocks in written["blocks"].values())
