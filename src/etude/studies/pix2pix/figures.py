"""The pictures of a run: loss curves, sheets of translations, error maps.

Shape suffixes as in model.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from etude.draw.figures import curves, figure, maps, metric_curves
from etude.draw.metrics import rows_of
from etude.studies.pix2pix.task import Pix2PixTask

ROWS = 10
_SHEETS = 2
_WORST = 128
"""The difference, in levels, that the brightest colour of an error map stands for."""


def draw(task: Pix2PixTask, folder: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw all pictures of a run into ``folder``."""
    learning_curves(folder / "curves.png", metrics)
    count = min(ROWS * _SHEETS, len(task.pairs.splits["test"]))
    given = task.take("test", slice(0, count))[:, 0].cpu().numpy()
    truth, made = task.truth("test")[:count].numpy(), task.translate("test")[:count].numpy()
    names = task.pairs.splits["test"].names[:count]
    for sheet, start in enumerate(range(0, count, ROWS), 1):
        rows = slice(start, start + ROWS)
        translations(folder / f"translations-{sheet}.png", given[rows], truth[rows], made[rows], names[rows])
    errors(folder / "errors.png", truth[:ROWS], made[:ROWS], names[:ROWS])


def learning_curves(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Both networks' losses, the L1 distance of training, and what validation measures."""
    metric_curves(path, metrics, [
        ("Adversarial losses", "loss", {"generator": "train/generator", "discriminator": "train/discriminator"}),
        ("Distance of training pictures", "L1, of -1 to 1", {"train": "train/l1"}),
        ("Distance of validation pictures", "L1, of 255", {"val": "val/l1"}),
        ("Likeness of validation pictures", "SSIM", {"val": "val/ssim"}),
    ])  # fmt: skip


def translations(
    path: Path, given_NHWC: np.ndarray, truth_NHWC: np.ndarray, made_NHWC: np.ndarray, names: Sequence[str]
) -> None:
    """One row a pair: input, truth, output, and how far the output is off."""
    headings = ("input", "truth", "output", "error")
    off_NHW = np.stack([_off(truth, made) for truth, made in zip(truth_NHWC, made_NHWC, strict=True)])
    off_NHWC = (mpl.colormaps["magma"](np.clip(off_NHW / _WORST, 0, 1))[..., :3] * 255).astype(np.uint8)
    size, gap = given_NHWC.shape[1], max(2, given_NHWC.shape[1] // 32)
    # One picture of all: so many axes would take many seconds.
    sheet = np.full((len(names) * (size + gap) - gap, len(headings) * (size + gap) - gap, 3), 255, np.uint8)
    places = [column * (size + gap) for column in range(max(len(names), len(headings)))]
    for column, images in enumerate((given_NHWC, truth_NHWC, made_NHWC, off_NHWC)):
        for row, image in enumerate(images):
            sheet[places[row] : places[row] + size, places[column] : places[column] + size] = image
    with figure(path, 1.55 * len(headings) + 0.6, 1.55 * len(names) + 0.3) as drawn:
        ax = drawn.subplots()
        ax.imshow(sheet)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.set_xticks([places[column] + size / 2 for column in range(len(headings))], headings)
        ax.set_yticks([places[row] + size / 2 for row in range(len(names))], [_short(name) for name in names])


def errors(path: Path, truth_NHWC: np.ndarray, made_NHWC: np.ndarray, names: Sequence[str]) -> None:
    """Draw how far each pixel is off, and the mean over the pictures."""
    found = [(_short(name), _off(truth_NHWC[row], made_NHWC[row])) for row, name in enumerate(names)]
    found.append(("mean", np.mean([off for _, off in found], 0)))
    with maps(path, len(found), 4, 2.0, 2.1, "mean absolute difference, of 255") as (_, axes):
        for ax, (name, off) in zip(axes, found, strict=True):
            ax.imshow(off, cmap="magma", vmin=0, vmax=_WORST)
            ax.set_title(f"{name}: {off.mean():.1f}", fontsize=8)


def compared(path: Path, title: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Validation distance and likeness of several runs, by legend the lines of each metrics.jsonl."""
    panels = (("Distance", "L1, of 255", "l1"), ("Signal to noise", "PSNR, dB", "psnr"), ("Likeness", "SSIM", "ssim"))
    curves(path, [
        (f"{heading} of validation pictures", label, {run: rows_of(rows, f"val/{name}") for run, rows in runs.items()})
        for heading, label, name in panels
    ], title=title)  # fmt: skip


def _off(truth_HWC: np.ndarray, made_HWC: np.ndarray) -> np.ndarray:
    """Mean absolute difference over the channels, in levels."""
    return np.abs(truth_HWC.astype(np.float32) - made_HWC).mean(-1)


def _short(name: str) -> str:
    stem = Path(name).stem
    return stem if len(stem) <= 16 else f"{stem[:15]}…"
