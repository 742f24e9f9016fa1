"""Cells as graphs, what a mixture weighs, the pictures of a run.

A cell is drawn from left to right: the outputs of the two cells before it, the intermediate nodes, the output. The
graph is laid out here, so that no drawing program need be installed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from etude.core.files import write_json
from etude.draw.figures import PALETTE, figure, metric_curves
from etude.studies.darts.genotype import (
    FOUND,
    INPUTS,
    KINDS,
    OPERATIONS,
    Cell,
    Genotype,
    edges,
    from_text,
    write,
)
from etude.studies.darts.nb201 import EDGES as BENCH_EDGES
from etude.studies.darts.nb201 import KIND
from etude.studies.darts.nb201 import OPERATIONS as BENCH_OPERATIONS
from etude.studies.darts.nb201_task import BenchSearchTask, ScoreTask
from etude.studies.darts.retrain_task import RetrainTask
from etude.studies.darts.scores import SCORES
from etude.studies.darts.search_task import SearchTask

_COLOURS: dict[str, str] = dict(zip(OPERATIONS[1:], PALETTE, strict=True))
_SHORT = {
    "max_pool_3x3": "max 3", "avg_pool_3x3": "avg 3", "skip_connect": "skip", "sep_conv_3x3": "sep 3",
    "sep_conv_5x5": "sep 5", "dil_conv_3x3": "dil 3", "dil_conv_5x5": "dil 5", "nor_conv_1x1": "conv 1",
    "nor_conv_3x3": "conv 3", "none": "none",
}  # fmt: skip
_FRAMES = 6
"""Cells of a strip of growth."""


def draw(task: SearchTask | RetrainTask | ScoreTask, folder: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw the pictures of a run of any phase into ``folder``, and write the cells that a search found there."""
    if isinstance(task, ScoreTask):
        ranks(folder / "ranks.png", task)
        return
    if isinstance(task, BenchSearchTask):
        write_json(folder / Path(FOUND).name, task.genotype.to_dict())
        search_curves(folder / "curves.png", metrics)
        watch_curves(folder / "watch.png", metrics)
        names = [f"{source} to {node}" for source, node in BENCH_EDGES]
        mixtures(folder / "mixtures.png", metrics, {KIND: names}, BENCH_OPERATIONS)
        return
    if isinstance(task, RetrainTask):
        cells(folder / "cells.png", task.genotype, task.cell())
        metric_curves(folder / "curves.png", metrics, [
            ("loss", "cross-entropy", {"train": "train/loss", "val": "val/loss"}),
            ("accuracy", "% right", {"train": "train/accuracy", "val": "val/accuracy"}),
            ("learning rate", "rate", {"weights": "train/rate"}),
        ])  # fmt: skip
        return
    found = task.genotype
    assert isinstance(found, Genotype)
    write(folder / Path(FOUND).name, found)
    cells(folder / "cells.png", found, "the found cells")
    search_curves(folder / "curves.png", metrics)
    watch_curves(folder / "watch.png", metrics)
    mixtures(folder / "mixtures.png", metrics, edge_names(task.config.model.nodes))
    if task.rows:
        growth(folder / "growth.png", [(int(row["step"]), from_text(row["genotype"])) for row in task.rows])


def search_curves(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Loss and accuracy of both halves and of the validation split, and the rate."""
    # While alpha waits its loss is not taken, and stands as zero.
    metrics = [{k: v for k, v in row.items() if (k, v) != ("train/alpha_loss", 0)} for row in metrics]
    learned = "weights' half, in training"
    metric_curves(path, metrics, [
        ("loss of the mixture", "cross-entropy", {
            learned: "train/loss", "alpha's half, in training": "train/alpha_loss", "alpha's half": "alpha/loss",
            "val": "val/loss",
        }),
        ("accuracy of the mixture", "% right", {
            learned: "train/accuracy", "alpha's half": "alpha/accuracy", "val": "val/accuracy",
        }),
        ("learning rate", "rate", {"weights": "train/rate"}),
    ])  # fmt: skip


def watch_curves(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Skips of the cells that alpha says, its entropy, the largest eigenvalue where it was measured."""
    metric_curves(path, metrics, [
        ("skips of the cell", "edges", {"normal": "val/skips", "reduction": "val/reduction_skips"}),
        ("entropy of the mixture", "nats", {"normal": "val/entropy", "reduction": "val/reduction_entropy"}),
        ("what the chosen cell reaches trained", "% right", {
            "CIFAR-10": "table/cifar10", "CIFAR-100": "table/cifar100", "ImageNet16-120": "table/imagenet16",
        }),
        ("largest eigenvalue by alpha", "", {"Hessian": "val/eigenvalue"}),
    ])  # fmt: skip


def mixtures(
    path: Path, metrics: Sequence[Mapping[str, Any]], named: Mapping[str, Sequence[str]],
    operations: Sequence[str] = OPERATIONS,
) -> None:  # fmt: skip
    """Draw the weight of each operation on each edge at the last evaluation; ``named`` are edges by kind of cell."""
    last = next((row for row in reversed(metrics) if f"mixture/{next(iter(named))}/0/{operations[0]}" in row), None)
    if last is None:
        return
    with figure(path, 0.5 + 5.25 * len(named), 1.2 + 0.3 * max(map(len, named.values()))) as page:
        axes = page.subplots(1, len(named), squeeze=False)[0]
        for ax, (kind, names) in zip(axes, named.items(), strict=True):
            table_EO = np.array(
                [[last[f"mixture/{kind}/{row}/{name}"] for name in operations] for row in range(len(names))]
            )
            ax.grid(visible=False)
            shown = ax.imshow(table_EO, cmap="viridis", vmin=0, aspect="auto")
            title = "the cell" if kind == KIND else f"{kind} cell"
            ax.set(title=f"{title}, step {last['step']}", ylabel="edge")
            ax.set_xticks(range(len(operations)), [_SHORT[name] for name in operations])
            ax.set_yticks(range(len(names)), names)
            for (row, column), weight in np.ndenumerate(table_EO):
                shade = "black" if weight > 0.6 * table_EO.max() else "white"
                ax.text(column, row, f"{100 * weight:.0f}", ha="center", va="center", color=shade, fontsize=7)
            page.colorbar(shown, ax=ax, label="weight (in the cells: %)")


def ranks(path: Path, task: ScoreTask) -> None:
    """Each score of the cells beside what they reach on CIFAR-10, and their rank correlation."""
    found, reached_N = task.ranks(), [task.table.of(cell.text)["cifar10"] for cell in task.cells]
    with figure(path, 3.4 * len(SCORES), 3.4) as page:
        for place, (ax, (name, (value, low, high))) in enumerate(
            zip(page.subplots(1, len(SCORES), sharey=True), found.items(), strict=True)
        ):
            ax.scatter(task.scores_NS[:, place].numpy(), reached_N, s=4, alpha=0.5)
            ax.set(title=f"{value:.2f} ({low:.2f} to {high:.2f})", xlabel=name.replace("_", " "))
            ax.set_ylim(50, 95)
        page.axes[0].set_ylabel("CIFAR-10, % right after 200 epochs")


def edge_names(num_nodes: int) -> dict[str, list[str]]:
    """The names of the edges of both kinds of cell that are searched, in the order of alpha's rows."""
    names = [" to ".join(map(node_name, edge)) for edge in edges(num_nodes)]
    return dict.fromkeys(KINDS, names)


def growth(path: Path, found: Sequence[tuple[int, Genotype]]) -> None:
    """The cells that alpha said at some evaluations, from the first to the last."""
    places = sorted({round(place) for place in np.linspace(0, len(found) - 1, min(_FRAMES, len(found)))})
    with figure(path, 3.6 * len(places), 5.0) as page:
        axes = page.subplots(2, len(places), squeeze=False)
        for column, place in enumerate(places):
            step, genotype = found[place]
            for row, kind in enumerate(KINDS):
                _graph(axes[row][column], genotype.cell(kind), f"{kind}, step {step}", 6)


def cells(path: Path, genotype: Genotype, title: str) -> None:
    """Both cells of a genotype."""
    with figure(path, 7.5, 6.8) as page:
        page.suptitle(title)
        for ax, kind in zip(page.subplots(2, 1), KINDS, strict=True):
            _graph(ax, genotype.cell(kind), f"{kind} cell", 8)


def node_name(number: int) -> str:
    """The name of a node: the cells before are k-2 and k-1."""
    return ("k-2", "k-1")[number] if number < INPUTS else str(number - INPUTS)


def _graph(ax: Any, cell: Cell, title: str, size: int) -> None:
    """A cell on a line: of each node one edge comes in an arc above, the other below, the higher the further it comes
    from, so that no edge runs through a node and no two of one side lie on each other."""
    from matplotlib.patches import FancyArrowPatch

    nodes = INPUTS + len(cell)
    labels = [*map(node_name, range(nodes)), "k = " + " | ".join(str(node) for node in range(len(cell)))]
    # The output's name is long.
    places = [*range(nodes), nodes + 0.35 + 0.05 * len(cell)]
    for x, label in zip(places, labels, strict=True):
        fill = "#d9ead3" if x < INPUTS else "#cfe2f3" if x < nodes else "#fff2cc"
        box = {"boxstyle": "round,pad=0.3", "fc": fill, "ec": "#666666"}
        ax.text(x, 0, label, ha="center", va="center", fontsize=size + 1, zorder=3, bbox=box)
    for node, of_node in enumerate(cell):
        target = INPUTS + node
        for number, edge in enumerate(of_node):
            span, side, colour = target - edge.source, 1 - 2 * number, _COLOURS[edge.operation]
            # The middle of an arc is half as high as this times its span.
            bend = 0.5 + 0.12 / span
            arc = FancyArrowPatch(
                (edge.source, 0.1 * side), (target, 0.1 * side), connectionstyle=f"arc3,rad={-bend * side}",
                arrowstyle="-|>", mutation_scale=9, color=colour, linewidth=1.3, shrinkA=5, shrinkB=5, zorder=1,
                linestyle="--" if edge.operation == "skip_connect" else "-",
            )  # fmt: skip
            ax.add_patch(arc)
            middle = (edge.source + target) / 2, side * (0.1 + bend * span / 2)
            box = {"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.9}
            text = _SHORT[edge.operation]
            ax.text(*middle, text, ha="center", va="center", fontsize=size, color=colour, zorder=2, bbox=box)
    height = 0.3 + (0.5 * (nodes - 1) + 0.12) / 2
    ax.set(title=title, xlim=(-0.4, places[-1] + 0.6), ylim=(-height, height), aspect="equal")
    ax.set_axis_off()
