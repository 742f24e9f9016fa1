"""The benchmark of pix2pix runs from end to end, and both forms' losses are the same."""

from collections.abc import Callable
from typing import Any

import pytest


def test_quick(quick: Callable[[str], Any]) -> None:
    pytest.importorskip("torchvision", reason="wants the extra `bench`")
    written = quick("pix2pix")
    assert written["agreement"]["holds"]
    assert 0 <= written["agreement"]["difference"] <= 1e-4
    assert {"etude", "plain form, no worker"} <= set(written["blocks"]["training"])
    for row in written["blocks"]["training"].values():
        assert all(block["seconds"] > 0 and block["pairs"] > 0 for block in row)
    assert len(written["bars"]) == 1
