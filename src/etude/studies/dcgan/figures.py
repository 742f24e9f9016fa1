"""The pictures of a dcgan run: losses, and what one noise became after the first, the middle and the last epoch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.draw.figures import figure, metric_curves, sheet
from etude.studies.dcgan.task import DCGANTask

LINE = 96
"""The shade between the digits of a sheet, which are black and white."""


def draw(task: DCGANTask, folder: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw all pictures of a run into ``folder``."""
    learning_curves(folder / "curves.png", metrics)
    if task.snapshots:
        steps_per_epoch = len(task.split("train")[0]) // task.config.batch.size
        snapshots(folder / "samples.png", task.snapshots, steps_per_epoch)
    digits(folder / "digits.png", task)


def learning_curves(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Both losses; the discriminator's logits of real and drawn pictures; diversity at the evaluations."""
    metric_curves(path, metrics, [
        ("Losses", "loss", {"discriminator": "train/discriminator", "generator": "train/generator"}),
        ("Logits of the discriminator", "mean logit", {"real": "train/logit_real", "fake": "train/logit_fake"}),
        ("Diversity of what is drawn", "share of real diversity", {"against real": "val/diversity"}),
        ("What the classifier takes for the digit", "accuracy, %", {"right digit": "val/label_accuracy"}),
    ])  # fmt: skip


def snapshots(path: Path, pictures: Mapping[int, Tensor], steps_per_epoch: int) -> None:
    """Draw what the same noises became after some steps, bytes ``[N, H, W]`` by step, side by side."""
    with figure(path, 3.4 * len(pictures), 3.8) as drawn:
        axes = drawn.subplots(1, len(pictures), squeeze=False)[0]
        for ax, (step, images_NHW) in zip(axes, sorted(pictures.items()), strict=True):
            ax.imshow(sheet(images_NHW, 10, LINE), cmap="gray", vmin=0, vmax=255)
            ax.set_title(f"after epoch {step / steps_per_epoch:.3g} (step {step:,})")
            ax.set_axis_off()


def digits(path: Path, task: DCGANTask, rows: int = 8) -> None:
    """Real digits above, drawn ones below; where the network knows classes, a column is a digit."""
    images_NHW, labels_N = task.split("test")
    columns = 10
    wanted_N = torch.arange(columns, device=labels_N.device).repeat(rows)
    noise_NZ = task.noise(rows * columns, "figure/noise", 0)
    known = task.config.model.conditional
    drawn_NHW = task.draw(noise_NZ, wanted_N if known else None)[:, 0].cpu()
    found = [(labels_N == digit).nonzero().flatten()[:3] for digit in range(columns)]
    real = torch.stack([images_NHW[part].cpu() for part in found if len(part) == 3]).transpose(0, 1)
    with figure(path, 5.2, 0.52 * (rows + 3) + 1.0) as page:
        top, bottom = page.subplots(2, 1, height_ratios=(3, rows))
        top.imshow(sheet(real.flatten(0, 1), columns, LINE), cmap="gray", vmin=0, vmax=255)
        top.set_title("real test digits")
        bottom.imshow(sheet(drawn_NHW, columns, LINE), cmap="gray", vmin=0, vmax=255)
        bottom.set_title("drawn, a column for each digit asked for" if known else "drawn")
        for ax in (top, bottom):
            ax.set_axis_off()
