r"""Cells as data: which operation leads from which node to which.

A cell has two inputs, the outputs of the two cells before it (nodes 0 and 1), and four intermediate nodes (2 to 5),
each the sum of two edges: an operation on the output of an earlier node. The cell's output are its intermediate nodes
side by side. A network is made of two kinds of cell: normal ones, and two reductions that halve the map.

The search relaxes the choice (Liu et al. 2019, "DARTS", eq. 2): every edge is a mixture of all operations under
$\operatorname{softmax}(\alpha)$. A cell is read off it by keeping, of each node, the two edges whose best operation but
`none` weighs most (section 2.4).
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from etude.core.errors import UserError, nearest
from etude.core.files import write_json

OPERATIONS = (
    "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3",
    "dil_conv_5x5",
)  # fmt: skip
"""The operations in the order of the paper's code, which is that of alpha's columns."""
INPUTS = 2
"""Number of nodes that come from the cells before."""
FOUND = "figures/genotype.json"
"""The file of a search's run folder that holds the found cells."""
EDGES = 2
"""Number of edges that lead to each intermediate node of a found cell."""
KNOWN = Path(__file__).parent / "genotypes"
"""Cells found on CIFAR-10: darts-v1, darts-v2 (Liu et al. 2019) and pc-darts (Xu et al. 2020) by papers, found by the
preset `laptop` with seed 2."""
NODES = 4
"""Number of intermediate nodes of a cell that is drawn at random, which the published cells have too."""
RANDOM = "random-"
Kind = Literal["normal", "reduction"]
KINDS: tuple[Kind, ...] = ("normal", "reduction")


@dataclass(frozen=True)
class Edge:
    """An operation on the output of an earlier node."""

    operation: str
    source: int


Cell = tuple[tuple[Edge, ...], ...]
"""The edges of each intermediate node, from node 2."""


@dataclass(frozen=True)
class Genotype:
    """The two cells that a network is built of."""

    normal: Cell
    reduction: Cell

    def cell(self, kind: str) -> Cell:
        return self.normal if kind == "normal" else self.reduction

    def to_dict(self) -> dict[str, Any]:
        """The genotype as JSON holds it: for each kind a list of nodes, each a list of ``[operation, source]``."""
        return {kind: [[[e.operation, e.source] for e in node] for node in self.cell(kind)] for kind in KINDS}

    @property
    def text(self) -> str:
        """The genotype as one line of JSON, which `from_text` takes."""
        return as_text(self)

    def count(self, operation: str, kind: str = "normal") -> int:
        """The number of edges of a cell that have an operation."""
        return sum(edge.operation == operation for node in self.cell(kind) for edge in node)


def edges(num_nodes: int) -> list[tuple[int, int]]:
    """All edges that a cell may have, ``(source, node)``, in the order of alpha's rows: node after node."""
    return [(source, INPUTS + node) for node in range(num_nodes) for source in range(INPUTS + node)]


def parse(raw: object, origin: str) -> Genotype:
    """A genotype from what JSON holds, see `Genotype.to_dict`.

    Args:
        raw: of any shape.
        origin: where it is from, for the error.

    Raises:
        UserError: in one line: a missing cell or edge, an unknown operation, a node that takes a later one.
    """
    if not isinstance(raw, Mapping) or not set(KINDS) <= set(raw):
        raise UserError(f"{origin} is no genotype: give a JSON object with {' and '.join(KINDS)}")
    return Genotype(**{kind: _cell(raw[kind], f"{origin}: {kind} cell") for kind in KINDS})


def _cell(raw: object, where: str) -> Cell:
    if not isinstance(raw, Sequence) or isinstance(raw, str) or not raw:
        raise UserError(f"{where} has no nodes: give a list of nodes, each a list of [operation, source]")
    return tuple(_node(node, f"{where}, node {INPUTS + place}", INPUTS + place) for place, node in enumerate(raw))


def _node(raw: object, where: str, number: int) -> tuple[Edge, ...]:
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        raise UserError(f"{where} is no list of edges, as [['sep_conv_3x3', 0], ['skip_connect', 1]]")
    if len(raw) != EDGES:
        count = f"{len(raw)} edge{'s' * (len(raw) != 1)}"
        raise UserError(f"{where} has {count}, not {EDGES}: add or take out what is wrong")
    found: list[Edge] = []
    for edge in raw:
        if not isinstance(edge, Sequence) or isinstance(edge, str) or len(edge) != 2:
            raise UserError(f"{where} has the edge {json.dumps(edge)}: give [operation, source]")
        operation, source = edge
        if operation not in OPERATIONS:
            raise UserError(f"{where} has no operation {operation!r}{nearest(str(operation), OPERATIONS)}")
        if isinstance(source, bool) or not isinstance(source, int):
            raise UserError(f"{where} takes {json.dumps(source)}: give a node's number")
        if source >= number:
            raise UserError(f"{where} takes node {source}, which does not come before it: a cycle")
        if source < 0:
            raise UserError(f"{where} takes node {source}: nodes are numbered from 0")
        if operation == "none":
            raise UserError(f"{where} has the operation none, which leads nothing: choose another")
        found.append(Edge(operation, source))
    return tuple(found)


def known_cells() -> list[str]:
    """The names of the cells that come with the package."""
    return sorted(file.stem for file in KNOWN.glob("*.json"))


def read(path: Path | str) -> Genotype:
    """A genotype from a JSON file or the run folder of a search, or one that comes with the package by its name.

    Raises:
        UserError: no such file or name, a folder that holds no cell, or see `parse`.
    """
    names = known_cells()
    path = KNOWN / f"{path}.json" if str(path) in names else Path(path)
    if os.path.isdir(path):
        if not (path / FOUND).is_file():
            raise UserError(f"{path} is no search that has ended: it has no {FOUND}; give the run folder of one")
        path = path / FOUND
    if not os.path.isfile(path):
        raise UserError(f"no genotype {path}{nearest(str(path), names)}; your own is given as a JSON file")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({' '.join(str(error).split())}): write it anew") from error
    return parse(raw, path.name)


def write(path: Path, genotype: Genotype) -> None:
    """Write a JSON file that `read` takes."""
    write_json(path, genotype.to_dict())


def as_text(genotype: Genotype) -> str:
    """The genotype as one line of JSON, which `from_text` takes."""
    return json.dumps(genotype.to_dict(), separators=(",", ":"))


def from_text(text: str) -> Genotype:
    """A genotype from a configuration: JSON, or what `read` takes.

    Raises:
        UserError: neither, or see `parse`.
    """
    if not text.startswith("{"):
        return read(text)
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"genotype: the JSON cannot be read ({' '.join(str(error).split())})") from error
    return parse(raw, "genotype")


def is_random(text: str) -> bool:
    """Returns whether a configuration asks for a cell drawn at random, ``random-N``."""
    return text.startswith(RANDOM) and text.removeprefix(RANDOM).isdecimal()
