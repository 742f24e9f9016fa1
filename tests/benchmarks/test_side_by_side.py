"""What the benchmarks share: the order of the blocks, medians and leads worked out by hand, and the bars."""

import importlib
import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console


@pytest.fixture
def shared(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/side_by_side.py; a benchmark finds it beside itself, in the folder that its command line names."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return importlib.import_module("side_by_side")


@pytest.mark.parametrize("warm_up", [True, False])
def test_sides_take_turns(shared: Any, warm_up: bool) -> None:
    called: list[tuple[str, int]] = []

    def side(name: str) -> Any:
        def run(repeat: int) -> Any:
            called.append((name, repeat))
            return shared.Block(len(called), 1.0)

        return run

    blocks = shared.interleave({"A": side("A"), "B": side("B")}, 3, warm_up=warm_up)
    # The turn that is not counted has a number that no other has.
    first = [("A", 3), ("B", 3)] if warm_up else []
    assert called == [*first, ("A", 0), ("B", 0), ("A", 1), ("B", 1), ("A", 2), ("B", 2)]
    skipped = len(first)
    counts = {name: [block.count - skipped for block in row] for name, row in blocks.items()}
    assert counts == {"A": [1, 3, 5], "B": [2, 4, 6]}


def test_a_block_is_timed_over_all_its_calls(shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    numbers: list[int] = []

    def work(number: int) -> None:
        nonlocal now
        numbers.append(number)
        now += 0.5

    monkeypatch.setattr(shared, "time", SimpleNamespace(perf_counter=lambda: now))
    run = shared.timed(work, 96, calls=3)
    assert not numbers
    # 96 in three calls of half a second.
    assert run(0) == shared.Block(96, 1.5)
    assert run(1).rate == 64
    # A training's steps go on from block to block.
    assert numbers == [0, 1, 2, 3, 4, 5]


def test_medians_and_leads(shared: Any) -> None:
    # 5, 2 and 40 a second: neither their mean, 15.7, nor what all blocks together make, 6.3.
    ours = [shared.Block(10, 2.0), shared.Block(30, 15.0), shared.Block(80, 2.0)]
    # 1 and 3 a second.
    theirs = [shared.Block(4, 4.0), shared.Block(6, 2.0)]
    assert shared.median_rate(ours) == 5
    assert shared.median_rate(theirs) == 2
    assert shared.lead(ours, theirs) == 2.5
    assert shared.lead(theirs, ours) == 0.4


def test_speed_table(shared: Any) -> None:
    blocks = {
        "etude": [shared.Block(3000, 2.0), shared.Block(5000, 2.0), shared.Block(4000, 2.0)],
        "peer": [shared.Block(1000, 2.0), shared.Block(3000, 2.0), shared.Block(1600, 2.0)],
    }
    # What has not run gets no column.
    table = shared.speed_table("Training", "images", blocks, ("etude", "etude, compiled"))
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns == {
        "side": ["etude", "peer"],
        "median images/s": ["2,000.0", "800.0"],
        "best images/s": ["2,500.0", "1,500.0"],
        "etude is": ["", "2.50x"],
    }


def test_bars(shared: Any) -> None:
    bars = {
        "over": shared.Bar(2.504, 2.0),
        "just": shared.Bar(2.0, 2.0),
        "under": shared.Bar(1.999, 2.0),
        "broken": shared.Bar(math.nan, 0.5),
    }

    def told(judged: bool) -> list[str]:
        out = io.StringIO()
        shared.tell_bars(Console(file=out, soft_wrap=True), bars, judged=judged)
        return out.getvalue().splitlines()

    assert told(judged=True) == [
        "pass: over: 2.50x, bar 2x",
        "pass: just: 2.00x, bar 2x",
        # Two decimals hide by how little.
        "FAIL: under: 2.00x, bar 2x",
        "FAIL: broken: nanx, bar 0.5x",
    ]
    assert told(judged=False)[2] == "not judged (quick): under: 2.00x, bar 2x"
    written = shared.bars_as_json(bars, judged=True)
    assert written["over"] == {"lead": 2.504, "bar": 2.0, "judged": True, "pass": True}
    assert written["under"] == {"lead": 1.999, "bar": 2.0, "judged": True, "pass": False}
    assert not any(bar["judged"] for bar in shared.bars_as_json(bars, judged=False).values())


def test_blocks_in_json(shared: Any) -> None:
    tables = {"training": {"etude": [shared.Block(8, 0.5), shared.Block(8, 0.25)], "peer": []}}
    assert shared.blocks_as_json(tables, "images") == {
        "training": {"etude": [{"images": 8, "seconds": 0.5}, {"images": 8, "seconds": 0.25}], "peer": []}
    }


def test_report(shared: Any) -> None:
    tables, bars = {"training": {"etude": [shared.Block(8, 0.5)]}}, {"training": shared.Bar(3.0, 2.0)}
    written = shared.report("made-up", tables, "images", bars, about={"cores": 2}, repeats=1, quick=True)
    assert written == {
        "benchmark": "made-up",
        "quick": True,
        "environment": {"cores": 2},
        "repeats": 1,
        "blocks": {"training": {"etude": [{"images": 8, "seconds": 0.5}]}},
        "bars": {"training": {"lead": 3.0, "bar": 2.0, "judged": False, "pass": True}},
    }
