"""The benchmark of the word problems runs from end to end, and all sides compute the same."""

from collections.abc import Callable
from typing import Any

import pytest


def test_quick(quick: Callable[[str], Any]) -> None:
    pytest.importorskip("transformers", reason="wants the extra `bench` or `bert`")
    written = quick("text2math")
    assert written["agreement"]["holds"]
    assert len(written["agreement"]["differences"]) == 5
    assert all(0 <= difference <= 1e-3 for difference in written["agreement"]["differences"].values())
    beam, training = set(written["blocks"]["beam"]), set(written["blocks"]["training"])
    assert {"etude", "transformers around etude's network", "one hypothesis at a time"} <= beam
    assert {"etude", "tutorial, a sentence at a time"} <= training
    for sides in written["blocks"].values():
        assert all(block["seconds"] > 0 and block["count"] > 0 for row in sides.values() for block in row)
    assert len(written["bars"]) == 3
