"""A cell by name, file or search: counted and drawn, for `etude show darts CELL`."""

import os
from pathlib import Path

from etude.core.errors import UserError, nearest
from etude.draw.figures import save_figure
from etude.studies.darts.figures import cells, node_name
from etude.studies.darts.genotype import KINDS, OPERATIONS, known_cells, read
from etude.studies.darts.model import CellNetwork
from etude.studies.darts.study import STUDY


def show(word: str, out: Path | None) -> None:
    """Count a cell's operations and the parameters of its network, and draw it.

    Args:
        word: a published cell's name, a JSON file, or the run folder of a search.
        out: the picture's file; None: named for the cell.

    Raises:
        UserError: no such cell, or a picture that cannot be written.
    """
    if word not in known_cells() and not os.path.exists(word):
        known = nearest(word, [*STUDY.presets, *known_cells()])
        raise UserError(f"darts has no preset or cell '{word}'{known}; your own cell is given as a JSON file")
    genotype, name = read(word), Path(word).absolute().stem
    target = out or Path(f"{name}.png")
    if target.suffix != ".png":
        raise UserError(f"{target} is no .png file: give --out NAME.png")
    for kind in KINDS:
        print(f"{kind} cell")
        for node, of_node in enumerate(genotype.cell(kind)):
            parts = [f"{edge.operation} of {node_name(edge.source)}" for edge in of_node]
            print(f"  node {node} = {' + '.join(parts)}")
        counts = {name: genotype.count(name, kind) for name in OPERATIONS if genotype.count(name, kind)}
        print("  " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    made = CellNetwork(genotype, auxiliary=False).num_parameters
    print(f"{made:,} parameters with 20 cells of 36 channels and ten classes, the auxiliary head not counted")
    save_figure(target, lambda path: cells(path, genotype, name))
    print(f"drawn: {target}")
