"""The benchmark of the norms runs from end to end, and all sides compute the same."""

from collections.abc import Callable
from typing import Any


def test_quick(quick: Callable[[str], Any]) -> None:
    written = quick("norms")
    assert written["agree"]
    assert len(written["differences"]) == 30
    assert all(value < 1e-4 for value in written["differences"].values())
    tables = written["blocks"]
    assert {"bn, eager, channels last", "bin, eager, contiguous", "gn, training step"} <= set(tables)
    for sides in tables.values():
        assert set(sides) == {"etude", "plain reference", "PyTorch"}
        assert all(block["seconds"] > 0 and block["turns"] > 0 for row in sides.values() for block in row)
    assert set(written["bars"]) == {f"{name}, eager, channels last" for name in ("bn", "in", "bin", "ln", "gn")}
