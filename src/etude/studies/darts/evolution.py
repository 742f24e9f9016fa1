"""Searches that train one cell after another: at random, or by regularised evolution (Real et al. 2019)."""

from collections import deque
from collections.abc import Callable

import torch

from etude.studies.darts.nb201 import EDGES, OPERATIONS, BenchCell

Trained = Callable[[BenchCell], float]
"""The validation accuracy that a cell reaches in a short training."""


def draw_cell(draw: torch.Generator) -> BenchCell:
    """A cell, each operation equally likely on each edge."""
    return BenchCell(
        tuple(OPERATIONS[n] for n in torch.randint(len(OPERATIONS), (len(EDGES),), generator=draw).tolist())
    )


def mutated(cell: BenchCell, draw: torch.Generator) -> BenchCell:
    """The cell with another operation on one edge."""
    edge = int(torch.randint(len(EDGES), (), generator=draw))
    others = [name for name in OPERATIONS if name != cell.operations[edge]]
    name = others[int(torch.randint(len(others), (), generator=draw))]
    return BenchCell((*cell.operations[:edge], name, *cell.operations[edge + 1 :]))


def random_search(trained: Trained, budget: int, draw: torch.Generator) -> BenchCell:
    """The cell of ``budget`` drawn ones that validates best."""
    return max((draw_cell(draw) for _ in range(budget)), key=trained)


def evolve(trained: Trained, budget: int, draw: torch.Generator, *, population: int = 10, sample: int = 3) -> BenchCell:
    """The best of ``budget`` cells: the best of a sample is mutated, its child joins the population, the oldest goes.

    Args:
        trained: the validation accuracy of a cell.
        budget: the number of cells that are trained, those that are drawn at first among them.
        draw: the numbers of chance.
        population: the cells that live at a time (the paper: 100 of 20,000).
        sample: the cells of which the best is a parent (the paper: 25).
    """
    alive: deque[tuple[float, BenchCell]] = deque()
    history: list[tuple[float, BenchCell]] = []
    while len(history) < budget:
        if len(alive) < population:
            child = draw_cell(draw)
        else:
            chosen = torch.randint(len(alive), (sample,), generator=draw).tolist()
            child = mutated(max((alive[n] for n in chosen), key=lambda pair: pair[0])[1], draw)
        alive.append((trained(child), child))
        history.append(alive[-1])
        if len(alive) > population:
            alive.popleft()
    return max(history, key=lambda pair: pair[0])[1]
