"""The pictures of a run: what is drawn is what was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from tests.studies.resnet.common import make
from torch.nn import functional

from etude.core.errors import UserError
from etude.studies.resnet import figures
from etude.studies.resnet.cam import class_means, overlay, package_cam
from etude.studies.resnet.task import GATE_BINS, ResNetTask

DRAWN = {"curves.png", "confusion.png", "gates.png", "grad-cam.png", "grad-cam-means.png"}


@pytest.fixture(scope="module")
def gated() -> ResNetTask:
    """Barely trained, with batch-instance norms."""
    task = make(model__norm="bin", cam_classes=["disc", "cross"])
    for step in range(15):
        task.train_step(step)
    return task


@pytest.fixture(scope="module")
def metrics(gated: ResNetTask) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    rows = {name if "/" in name else f"val/{name}": value for name, value in gated.evaluate().items()}
    later = {name: value / 2 for name, value in rows.items()}
    return [{"step": 5, "train/loss": 1.0}, {"step": 10, **rows}, {"step": 20, "train/loss": 0.5, **later}]


def lines(ax: Axes) -> dict[str, tuple[list[float], list[float]]]:
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines()}


def images(ax: Axes) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for image in ax.get_images()]


def test_every_picture_is_drawn(
    gated: ResNetTask, metrics: list[dict[str, Any]], tmp_path: Path, drawn: list[Figure]
) -> None:
    figures.draw(gated, tmp_path, metrics)
    assert {path.name for path in tmp_path.iterdir()} == DRAWN
    assert len(drawn) == 5
    for path in tmp_path.iterdir():
        pixels = np.asarray(Image.open(path).convert("L"))
        assert min(pixels.shape) > 100
        assert pixels.std() > 10, "not a blank page"


def test_a_run_without_gates_has_no_picture_of_them(metrics: list[dict[str, Any]], tmp_path: Path) -> None:
    figures.draw(make(model__norm="none", cam_classes=["disc"]), tmp_path, metrics)
    assert {path.name for path in tmp_path.iterdir()} == DRAWN - {"gates.png"}


def test_learning_curves(metrics: list[dict[str, Any]], tmp_path: Path, drawn: list[Figure]) -> None:
    figures.learning_curves(tmp_path / "curves.png", metrics)
    loss, error, accuracy, f1 = drawn[0].axes

    def of(name: str, turned: bool = False) -> tuple[list[int], list[float]]:
        values = [row[name] for row in metrics[1:]]
        return [10, 20], [100 - value for value in values] if turned else values

    assert lines(loss) == {"train": of("fit/loss"), "val": of("val/loss")}
    assert lines(error) == {"train": of("fit/accuracy", True), "val": of("val/accuracy", True)}
    assert lines(accuracy) == {"train": of("fit/accuracy"), "val": of("val/accuracy")}
    assert lines(f1) == {
        f"{legend} {kind}": of(f"{key}/{kind}_f1")
        for legend, key in (("train", "fit"), ("val", "val")) for kind in ("macro", "micro")
    }  # fmt: skip


def test_the_confusion_matrix(tmp_path: Path, drawn: list[Figure]) -> None:
    """Rows are what pictures are of; a class without pictures is a row of zeros."""
    truth, taken = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 2, 1, 0])
    figures.confusion(tmp_path / "confusion.png", truth, taken, ["a", "b", "c"])
    ax = drawn[0].axes[0]
    np.testing.assert_allclose(images(ax)[0], [[75, 0, 25], [50, 50, 0], [0, 0, 0]])
    assert {(*text.get_position(), text.get_text()) for text in ax.texts} == {
        (0, 0, "75"), (2, 0, "25"), (0, 1, "50"), (1, 1, "50"),
    }  # fmt: skip
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("is", "taken for")


def test_gates_over_time(gated: ResNetTask, metrics: list[dict[str, Any]], tmp_path: Path, drawn: list[Figure]) -> None:
    figures.gate_history(tmp_path / "gates.png", list(gated.gates), metrics)
    panels = [ax for ax in drawn[0].axes if ax.get_images() and ax.get_title()]
    assert [ax.get_title() for ax in panels] == [
        "stem", *(f"stage{s}.block1.norm{k}" for s in (1, 2, 3) for k in (1, 2)),
    ]  # fmt: skip
    for ax, name in zip(panels, gated.gates, strict=True):
        expected = [[row[f"gates/{name}/{number}"] for row in metrics[1:]] for number in range(GATE_BINS)]
        np.testing.assert_allclose(images(ax)[0], expected)
        # The lowest bin lies at the bottom.
        assert ax.get_images()[0].origin == "lower"
        assert tuple(ax.get_images()[0].get_extent()) == (0, 20, 0, 1)


# --- Grad-CAM sheets ---


def answers(task: ResNetTask) -> torch.Tensor:
    """Logits of the validation pictures by hand: class 0 has two wrong, 1 none wrong, 2 none right, 3 three right."""
    labels = task.pictures.splits["val"].labels_N
    taken = labels.clone()
    place = {number: (labels == number).nonzero().flatten() for number in range(4)}
    taken[place[0][[4, 9]]] = torch.tensor([2, 3])
    taken[place[2]] = 1
    taken[place[3][3:]] = 0
    return functional.one_hot(taken, 4).float()


def cells(drawn: Figure, rows: int) -> list[list[Axes]]:
    axes = drawn.axes
    assert len(axes) == 10 * rows
    return [axes[10 * row : 10 * row + 10] for row in range(rows)]


def test_the_sheet_shows_five_right_and_five_wrong_of_each_class(
    gated: ResNetTask, tmp_path: Path, drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gated, "config", make().config)
    by_hand = answers(gated)
    monkeypatch.setattr(gated, "logits", lambda split: by_hand)
    figures.cam_sheet(tmp_path / "sheet.png", gated)
    val = gated.pictures.splits["val"]
    taken = by_hand.argmax(1)
    table = cells(drawn[0], 4)
    shown = [[len(ax.get_images()) for ax in line] for line in table]
    assert shown == [[1] * 5 + [1, 1, 0, 0, 0], [1] * 5 + [0] * 5, [0] * 5 + [1] * 5, [1, 1, 1, 0, 0] + [1] * 5]
    assert [line[0].get_ylabel() for line in table] == ["disc", "square", "triangle", "cross"]
    for number, line in enumerate(table):
        of_class = val.labels_N == number
        for first, rows in (
            (0, (of_class & (taken == number)).nonzero().flatten()[:5].tolist()),
            (5, (of_class & (taken != number)).nonzero().flatten()[:5].tolist()),
        ):
            for ax, row in zip(line[first:], rows, strict=False):
                # The true class, whatever it was taken for.
                cam = package_cam(gated.model, gated.model.prepare(val.images_NHWC[[row]]), torch.tensor([number]))[0]
                expected = overlay(val.images_NHWC[row].numpy(), cam).astype(int)
                assert abs(images(ax)[0].astype(int) - expected).max() <= 2
                assert ax.get_xlabel() == ("" if first == 0 else gated.pictures.classes[int(taken[row])])
    green, orange = (table[0][column].spines["left"].get_edgecolor() for column in (0, 5))
    assert green != orange


def test_the_sheet_of_asked_classes(gated: ResNetTask, tmp_path: Path, drawn: list[Figure]) -> None:
    figures.cam_sheet(tmp_path / "sheet.png", gated)
    assert [line[0].get_ylabel() for line in cells(drawn[0], 2)] == ["disc", "cross"]


def test_a_sheet_of_an_unknown_class_is_refused_before_training() -> None:
    other = make(cam_classes=["disk"])
    with pytest.raises(UserError, match="no class 'disk'; did you mean 'disc'"):
        _ = other.pictures


def test_means_of_each_class(gated: ResNetTask, tmp_path: Path, drawn: list[Figure]) -> None:
    figures.cam_means(tmp_path / "means.png", gated)
    test = gated.pictures.splits["test"]
    maps, counts = class_means(gated.model, test.images_NHWC, test.labels_N, 4)
    panels = [ax for ax in drawn[0].axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == [
        f"{name} ({count})" for name, count in zip(gated.pictures.classes, counts.tolist(), strict=True)
    ]
    assert counts.sum() > 0
    for ax, expected in zip(panels, maps, strict=True):
        np.testing.assert_allclose(images(ax)[0], expected, atol=1e-6)


def test_names_that_are_too_long_are_cut() -> None:
    assert figures._short("WHITE-BREASTED-KINGFISHER", 14) == "White Breaste…"
    assert figures._short("Cattle-Egret", 14) == "Cattle Egret"


# --- runs beside each other ---


def test_compared_runs(tmp_path: Path, drawn: list[Figure]) -> None:
    """One of 40 steps and one of 10: each over the share of its own."""

    def run(steps: Sequence[int], offset: float) -> list[Mapping[str, float]]:
        names = ("fit/loss", "val/accuracy", "val/macro_f1")
        return [{"step": s, **{name: s + offset + i for i, name in enumerate(names)}} for s in steps] + [{"step": 99}]

    runs = {"bn-torch": run((10, 20, 40), 0.25), "bn": run((5, 10), 0.5), "none yet": []}
    figures.compared(tmp_path / "compared.png", "norms on birds", runs)
    loss, error, accuracy, f1 = drawn[0].axes
    for ax, name, turned in (
        (loss, "fit/loss", False), (error, "val/accuracy", True), (accuracy, "val/accuracy", False),
        (f1, "val/macro_f1", False),
    ):  # fmt: skip
        found = lines(ax)
        assert list(found) == list(runs)
        for legend, last in (("bn-torch", 40), ("bn", 10)):
            rows = [row for row in runs[legend] if name in row]
            steps, values = found[legend]
            assert steps == [row["step"] / last for row in rows]
            assert values == [100 - row[name] if turned else row[name] for row in rows]
        assert found["none yet"] == ([], [])
        styles = {str(line.get_label()): line.get_linestyle() for line in ax.get_lines()}
        assert styles["bn-torch"] == "--" != styles["bn"]
    assert drawn[0].get_suptitle() == "norms on birds"
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == list(runs)
    assert (tmp_path / "compared.png").stat().st_size > 5000
