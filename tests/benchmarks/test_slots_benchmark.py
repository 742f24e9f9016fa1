"""The benchmark of Slot Attention runs from end to end, and all sides' results are the same."""

from collections.abc import Callable
from typing import Any

import pytest


def test_quick(quick: Callable[[str], Any]) -> None:
    pytest.importorskip("slot_attention", reason="wants the extra `bench`")
    written = quick("slots")
    assert written["agreement"]["holds"]
    assert set(written["agreement"]["by"]) == {"8 x 8 inputs", "training step"}
    assert all(0 <= apart <= 1e-4 for apart in written["agreement"]["by"].values())
    assert set(written["blocks"]["8 x 8 inputs"]) == {"etude", "slot-attention"}
    assert set(written["blocks"]["training step"]) == {"etude", "plain form"}
    assert len(written["bars"]) == 2
