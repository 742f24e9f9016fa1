"""What the benchmarks share: sides timed in turn, their medians, and the bars a lead must reach.

A side is one way of doing the work: etude's, or a peer's. Each of its blocks is one timed stretch of it. A new
benchmark makes its sides (`timed`), runs them (`interleave`), prints `speed_table` and `tell_bars`, and writes its
`report`. The protocol is in benchmarks/README.md.
"""

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import tyro
from rich.console import Console
from rich.table import Table

from etude.core.errors import UserError
from etude.core.files import write_json
from etude.runs.environment import environment

ETUDE = "etude"
Opts = TypeVar("Opts")


@dataclass(frozen=True)
class Block:
    """One timed stretch of work."""

    count: int
    """Units of work done: pictures, tokens, episodes."""
    seconds: float

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.count / self.seconds

    def as_json(self, unit: str) -> dict[str, float]:
        """The block with its count under the name ``unit``."""
        return {unit: self.count, "seconds": self.seconds}


# The blocks of a benchmark may carry more than a count and seconds.
AnyBlock = TypeVar("AnyBlock", bound=Block)
# It gets the number of the repeat, so that its draws differ between repeats and are the same in the next run.
Side = Callable[[int], AnyBlock]


def timed(work: Callable[[int], object], count: int, *, calls: int = 1) -> Side[Block]:
    """A side with ``calls`` calls of ``work`` in a block.

    Args:
        work: gets the number of the call, which goes on from block to block, as the steps of a training do. On a
            device that works on its own it must wait for the result.
        count: units of work in a block, that is, of all its calls together.
    """
    numbers = itertools.count()

    def run(repeat: int) -> Block:
        start = time.perf_counter()
        for number in itertools.islice(numbers, calls):
            work(number)
        return Block(count, time.perf_counter() - start)

    return run


def interleave(sides: Mapping[str, Side[AnyBlock]], repeats: int, *, warm_up: bool) -> dict[str, list[AnyBlock]]:
    """Run the sides in turn, A B A B, after one turn that is not counted: a machine's drift meets all sides alike.

    Returns:
        The ``repeats`` blocks of every side. The turn that is not counted has the number ``repeats``, no block's own.
    """
    for run in sides.values() if warm_up else ():
        run(repeats)
    blocks: dict[str, list[AnyBlock]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name, run in sides.items():
            blocks[name].append(run(repeat))
    return blocks


def median_rate(blocks: Sequence[Block]) -> float:
    """Units a second."""
    return statistics.median(block.rate for block in blocks)


def lead(ours: Sequence[Block], theirs: Sequence[Block]) -> float:
    """The ratio of the median rates, above 1 where ours is the faster."""
    return median_rate(ours) / median_rate(theirs)


# The report


def begun(options: Any, *packages: str) -> tuple[int, Console, dict[str, Any]]:
    """How often each side is timed, where to print, and `surroundings`; sets the number of threads.

    Args:
        options: a benchmark's, with ``repeats``, ``quick`` and ``threads``.
        packages: the peers'.
    """
    torch.set_num_threads(options.threads)
    return options.repeats or (1 if options.quick else 5), Console(soft_wrap=True), surroundings(*packages)


def surroundings(*packages: str) -> dict[str, Any]:
    """What the speeds depend on: `environment`, versions of the peers' packages, and the load average.

    Called before the sides are made, so that the load is that of other work.
    """
    versions = {package: metadata.version(package) for package in packages}
    return environment() | versions | {"load_average": os.getloadavg()}


def machine(about: Mapping[str, Any]) -> str:
    """Of `surroundings`, what each benchmark's first line says."""
    return (
        f"{about['processor']}, {about['cores']} cores, {torch.get_num_threads()} threads, "
        f"load {about['load_average'][0]:.1f}; torch {torch.__version__}"
    )


def new_table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    """An empty table with these headings, the columns of ``numbers`` right-justified."""
    table = Table(title=title, title_justify="left")
    for heading in words:
        table.add_column(heading)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def speed_table(title: str, unit: str, blocks: Mapping[str, Sequence[Block]], ours: Sequence[str] = (ETUDE,)) -> Table:
    """Units a second of each side, median and best, and the lead over it of each of ``ours`` that has run."""
    ours = [name for name in ours if name in blocks]
    table = new_table(title, ["side"], [f"median {unit}/s", f"best {unit}/s", *(f"{name} is" for name in ours)])
    for name, row in blocks.items():
        best = max(block.rate for block in row)
        leads = ["" if name == our else f"{lead(blocks[our], row):.2f}x" for our in ours]
        table.add_row(name, f"{median_rate(row):,.1f}", f"{best:,.1f}", *leads)
    return table


@dataclass(frozen=True)
class Bar:
    """A lead, and the least that it is to be."""

    lead: float
    least: float

    @property
    def passed(self) -> bool:
        return self.lead >= self.least


def tell_bars(console: Console, bars: Mapping[str, Bar], *, judged: bool) -> None:
    """Print a line for each bar. A quick run's are not judged: its blocks are too short to tell anything."""
    for name, bar in bars.items():
        verdict = "not judged (quick)" if not judged else "pass" if bar.passed else "FAIL"
        console.print(f"{verdict}: {name}: {bar.lead:.2f}x, bar {bar.least:g}x")


def bars_as_json(bars: Mapping[str, Bar], *, judged: bool) -> dict[str, dict[str, float | bool]]:
    return {
        name: {"lead": bar.lead, "bar": bar.least, "judged": judged, "pass": bar.passed} for name, bar in bars.items()
    }


def blocks_as_json(
    tables: Mapping[str, Mapping[str, Sequence[Block]]], unit: str
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Every block by table and side, its count under the name ``unit``."""
    return {
        table: {side: [block.as_json(unit) for block in row] for side, row in blocks.items()}
        for table, blocks in tables.items()
    }


def report(
    benchmark: str, tables: Mapping[str, Mapping[str, Sequence[Block]]], unit: str, bars: Mapping[str, Bar], *,
    about: Mapping[str, Any], repeats: int, quick: bool,
) -> dict[str, Any]:  # fmt: skip
    """What a benchmark writes as JSON, to which it adds what only it has."""
    return {
        "benchmark": benchmark,
        "quick": quick,
        "environment": dict(about),
        "repeats": repeats,
        "blocks": blocks_as_json(tables, unit),
        "bars": bars_as_json(bars, judged=not quick),
    }


def conclude(
    benchmark: str, blocks: Mapping[str, Sequence[Block]], unit: str, bars: Mapping[str, Bar], *,
    apart: float, tolerance: float, console: Console, json: Path | None, about: Mapping[str, Any], repeats: int,
    quick: bool,
) -> int:  # fmt: skip
    """End a benchmark of training steps: say whether losses agree and bars are met, write the JSON.

    Args:
        benchmark: its name.
        blocks: of each side.
        unit: what is counted.
        bars: to judge, unless quick.
        apart: the largest difference of a first step's loss.
        tolerance: the most that it may be.
        console: where it is printed.
        json: the file; None: none.
        about: see `surroundings`.
        repeats: blocks of each side.
        quick: whether speeds mean nothing.

    Returns:
        the exit status: 1 where losses disagree.
    """
    agree = apart <= tolerance
    console.print(f"{'agree' if agree else 'DISAGREE'}: largest difference of a first step's loss {apart:.1e}")
    tell_bars(console, bars, judged=not quick)
    if json is not None:
        written = report(benchmark, {"training": blocks}, unit, bars, about=about, repeats=repeats, quick=quick)
        write_json(json, written | {"agreement": {"difference": apart, "holds": agree}})
    return 0 if agree else 1


def run(main: Callable[[Opts], int], options: type[Opts], about: str | None, name: str) -> NoReturn:
    """Leave with what a benchmark's ``main`` returns for the command line's options; a user's fault is one line."""
    try:
        sys.exit(main(tyro.cli(options, description=about)))
    except UserError as error:
        sys.exit(f"benchmarks/{name}.py: {error}")
