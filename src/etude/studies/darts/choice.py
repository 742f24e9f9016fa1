"""The choice of a cell: the one that a mixture has come to, or one that chance draws.

Shape suffixes: E edges of a cell, O operations.
"""

import torch
from torch import Tensor

from etude.core import randomness
from etude.studies.darts.genotype import (
    EDGES,
    INPUTS,
    NODES,
    OPERATIONS,
    RANDOM,
    Cell,
    Edge,
    Genotype,
    from_text,
    is_random,
)


def derive(weights_EO: Tensor, shares_E: Tensor | None = None) -> Cell:
    """The cell that a mixture has come to.

    Each node keeps the two edges whose best operation but ``none`` weighs most, the heavier first; equal edges stand in
    the order of their numbers.

    Args:
        weights_EO: the weight of each operation on each edge, the softmax of alpha; see `edges` and `OPERATIONS`.
        shares_E: the share of each edge in its node, by which its operations' weights are multiplied; None: 1.
    """
    weights_EO = weights_EO.detach().double() * (1 if shares_E is None else shares_E.detach().double()[:, None])
    weights_EO[:, OPERATIONS.index("none")] = -1
    best_E, which_E = weights_EO.max(1)
    nodes: list[tuple[Edge, ...]] = []
    start = 0
    while start < len(weights_EO):
        incoming = INPUTS + len(nodes)
        rows = best_E[start : start + incoming].argsort(descending=True, stable=True)[:EDGES].tolist()
        nodes.append(tuple(Edge(OPERATIONS[int(which_E[start + row])], row) for row in rows))
        start += incoming
    assert start == len(weights_EO), "all edges of a whole number of nodes"
    return tuple(nodes)


def random_cell(num_nodes: int, generator: torch.Generator) -> Cell:
    """A cell drawn at random: each node has two different sources, and any operation but ``none`` on each edge."""
    real = OPERATIONS[1:]
    nodes: list[tuple[Edge, ...]] = []
    for node in range(num_nodes):
        sources = torch.randperm(INPUTS + node, generator=generator)[:EDGES].tolist()
        which = torch.randint(len(real), (EDGES,), generator=generator).tolist()
        nodes.append(tuple(Edge(real[index], source) for index, source in zip(which, sources, strict=True)))
    return tuple(nodes)


def chosen(text: str, seed: int) -> Genotype:
    """The genotype of a configuration, see `etude.studies.darts.genotype.from_text`; ``random-N`` is the N-th that the
    seed draws."""
    if not is_random(text):
        return from_text(text)
    draw = randomness.generator(seed, "cell", int(text.removeprefix(RANDOM)))
    # Also where the network of the cell is built without memory.
    with torch.device("cpu"):
        return Genotype(random_cell(NODES, draw), random_cell(NODES, draw))
