"""The pictures of a run: curves, confusion matrix, gates over time, Grad-CAM sheets."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from etude.draw.figures import PALETTE, curves, figure, maps
from etude.draw.metrics import rows_of
from etude.studies.resnet.cam import class_means, overlay, package_cam, sheet_classes
from etude.studies.resnet.task import GATE_BINS, ResNetTask

_EACH = 5
_NAMED = 60
"""Classes up to which a confusion matrix has names and numbers, and mean maps are drawn."""


def draw(task: ResNetTask, folder: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw all pictures of a run into ``folder``."""
    learning_curves(folder / "curves.png", metrics)
    test = task.pictures.splits["test"]
    confusion(folder / "confusion.png", test.labels_N, task.logits(test).argmax(1), task.pictures.classes)
    if task.gates:
        gate_history(folder / "gates.png", list(task.gates), metrics)
    cam_sheet(folder / "grad-cam.png", task)
    cam_means(folder / "grad-cam-means.png", task)


def learning_curves(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Loss, error, accuracy and F1 of the validation split and of a fixed part of the training split."""

    def lines(name: str, of: Any = float) -> dict[str, Any]:
        found = {"train": rows_of(metrics, f"fit/{name}"), "val": rows_of(metrics, f"val/{name}")}
        return {legend: (steps, [of(value) for value in values]) for legend, (steps, values) in found.items()}

    f1 = [(legend, kind, line) for kind in ("macro", "micro") for legend, line in lines(f"{kind}_f1").items()]
    curves(path, [
        ("Loss", "cross-entropy", lines("loss")),
        ("Error", "error, %", lines("accuracy", lambda value: 100 - value)),
        ("Accuracy", "accuracy, %", lines("accuracy")),
        ("F1", "F1, %", {f"{legend} {kind}": line for legend, kind, line in sorted(f1, key=lambda row: row[:2])}),
    ])  # fmt: skip


def confusion(path: Path, truth_N: Tensor, taken_N: Tensor, classes: Sequence[str]) -> None:
    """The confusion matrix of the test split, each row in per cent of its class."""
    count = len(classes)
    counts = (truth_N * count + taken_N).bincount(minlength=count**2).view(count, count).cpu().numpy()
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    named = count <= _NAMED
    side = 1.6 + 0.42 * min(count, _NAMED)
    with figure(path, side + 0.8, side) as drawn:
        ax = drawn.subplots()
        shown = ax.imshow(share, cmap="Blues", vmin=0, vmax=100)
        ax.grid(visible=False)
        if named:
            ax.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
            ax.set_yticks(range(len(classes)), classes)
        numbers = "" if named else ", by number"
        ax.set(xlabel=f"taken for{numbers}", ylabel=f"is{numbers}", title="Test pictures, % of each class")
        for (row, column), value in np.ndenumerate(share) if named else ():
            if value >= 0.5:
                colour = "white" if value > 50 else "black"
                ax.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
        drawn.colorbar(shown, ax=ax, shrink=0.8)


def gate_history(path: Path, names: Sequence[str], metrics: Sequence[Mapping[str, Any]]) -> None:
    """The histograms of each batch-instance norm of its gates over time: 1 is batch, 0 is instance normalisation."""
    options: Any = {"sharex": True, "sharey": True}
    with maps(path, len(names), 5, 2.1, 1.7, "share of the channels", **options) as (page, axes):
        for ax, name in zip(axes, names, strict=True):
            bins = [rows_of(metrics, f"gates/{name}/{number}") for number in range(GATE_BINS)]
            ax.set_axis_on()
            ax.imshow(
                np.array([values for _, values in bins]), origin="lower", aspect="auto", vmin=0, vmax=1, cmap="viridis",
                extent=(0, max(bins[0][0]), 0, 1), interpolation="nearest",
            )  # fmt: skip
            ax.grid(visible=False)
            ax.set_title(_layer(name), fontsize=8)
        page.supxlabel("step", fontsize=9)
        page.supylabel("gate", fontsize=9)


def cam_sheet(path: Path, task: ResNetTask) -> None:
    """Draw five recognised and five mistaken validation pictures of each class, with what the network saw.

    The map is of the class that the picture is of, whatever it was taken for. The pictures are the first in the order
    of the split.
    """
    val, names = task.pictures.splits["val"], task.pictures.classes
    taken_N = task.logits(val).argmax(1)
    classes = sheet_classes(names, task.config.cam_classes)
    chosen: list[list[int]] = []
    for number in classes:
        of_class = val.labels_N == number
        right, wrong = (
            (of_class & mask).nonzero().flatten()[:_EACH].tolist() for mask in (taken_N == number, taken_N != number)
        )
        chosen.append(right + [-1] * (_EACH - len(right)) + wrong + [-1] * (_EACH - len(wrong)))
    rows = [row for line in chosen for row in line if row >= 0]
    images = val.images_NHWC[rows]
    maps = dict(zip(rows, package_cam(task.model, task.model.prepare(images), val.labels_N[rows]), strict=True))
    with figure(path, 1.05 * 2 * _EACH + 1.2, 1.22 * len(classes) + 0.6) as drawn:
        axes = drawn.subplots(len(classes), 2 * _EACH, squeeze=False)
        for line, (number, members) in enumerate(zip(classes, chosen, strict=True)):
            for column, row in enumerate(members):
                ax = axes[line, column]
                ax.set(xticks=[], yticks=[])
                ax.grid(visible=False)
                if row < 0:
                    ax.spines[:].set_visible(False)
                    continue
                right = column < _EACH
                ax.imshow(overlay(val.images_NHWC[row].cpu().numpy(), maps[row]))
                ax.spines[:].set_visible(True)
                ax.spines[:].set(color=PALETTE[2] if right else PALETTE[1], linewidth=1.5)
                if not right:
                    ax.set_xlabel(_short(names[int(taken_N[row])], 20), fontsize=6.5, labelpad=1)
            axes[line, 0].set_ylabel(_short(names[number], 20), fontsize=7)
        drawn.suptitle(
            "Grad-CAM of the true class, validation pictures: five recognised (green), five taken for what is written",
            fontsize=9,
        )


def cam_means(path: Path, task: ResNetTask) -> None:
    """The mean map of each class over its recognised test pictures."""
    test, names = task.pictures.splits["test"], task.pictures.classes
    drawn = min(len(names), _NAMED)
    test = test.take((test.labels_N < drawn).nonzero().flatten())
    means, counts = class_means(task.model, test.images_NHWC, test.labels_N, drawn)
    rows = list(zip(names[:drawn], means.cpu().numpy(), counts.tolist(), strict=True))
    with maps(path, len(rows), 5, 1.6, 1.8) as (page, axes):
        for ax, (name, mean, count) in zip(axes, rows, strict=True):
            ax.imshow(mean, cmap="jet", vmin=0, vmax=1)
            ax.set_title(f"{_short(name, 18)} ({count})", fontsize=7)
        first = f" of the first {len(rows)} classes" if len(rows) < len(names) else ""
        page.suptitle(f"Mean Grad-CAM of each class over its recognised test pictures{first}", fontsize=9)


def _layer(name: str) -> str:
    """``stages.0.1.norm2`` as the intermediates are named, from 1: ``stage1.block2.norm2``."""
    found = re.match(r"stages\.(\d+)\.(\d+)\.", name)
    if found is None:
        return "stem" if name == "norm" else name
    return f"stage{int(found[1]) + 1}.block{int(found[2]) + 1}.{name[found.end() :]}"


def _short(name: str, length: int) -> str:
    words = name.replace("-", " ").replace("_", " ").title() if name.isupper() else name.replace("-", " ")
    return words if len(words) <= length else words[: length - 1] + "…"


def compared(path: Path, title: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Validation error, accuracy and macro F1, and training loss, of several runs, by legend the lines of each
    metrics.jsonl."""
    panels = (
        ("Training loss", "cross-entropy", "fit/loss", float),
        ("Validation error", "error, %", "val/accuracy", lambda accuracy: 100 - accuracy),
        ("Validation accuracy", "accuracy, %", "val/accuracy", float),
        ("Validation macro F1", "F1, %", "val/macro_f1", float),
    )

    def line(rows: Sequence[Mapping[str, Any]], name: str, of: Any) -> tuple[list[float], list[float]]:
        steps, values = rows_of(rows, name)
        # Runs of other batch sizes take other numbers of steps for the same pictures.
        return [step / max(steps) for step in steps], [of(value) for value in values]

    curves(path, [
        (heading, label, {run: line(rows, name, of) for run, rows in runs.items()})
        for heading, label, name, of in panels
    ], title=title, across="share of the training", dashed="bn-torch")  # fmt: skip
