"""The benchmark beside easyfsl runs from end to end, and both sides agree."""

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.skipif(importlib.util.find_spec("easyfsl") is None, reason="easyfsl comes with the extra 'bench'")
def test_quick(quick: Callable[[str], Any]) -> None:
    written = quick("protonet")
    assert all(check["holds"] for check in written["agreements"])
    sides = {table: set(blocks) for table, blocks in written["blocks"].items()}
    assert {"etude", "easyfsl"} <= sides["training"]
    assert all({"etude", "easyfsl, pictures"} <= sides[name] for name in ("5-way 1-shot", "20-way 5-shot"))
    keys = {"episodes", "seconds", "one_off_seconds"}
    assert all(set(block) == keys for table in written["blocks"].values() for row in table.values() for block in row)
