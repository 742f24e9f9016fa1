"""The pictures of a slotdiffusion run: what is reconstructed, where slots look, how noise becomes a picture.

Shape suffixes as in model.py.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.draw.figures import attention, curves, figure, grid, sheet
from etude.draw.metrics import rows_of
from etude.nn.pixels import prepare, to_bytes
from etude.scenes import figures
from etude.scenes.figures import SHOWN, both_splits
from etude.studies.slotdiffusion.model import Painter
from etude.studies.slotdiffusion.task import SlotDiffusionTask
from etude.studies.slotdiffusion.vae_task import VAETask

MOMENTS = 20
"""The most pictures of a sheet of denoising."""


def draw(task: SlotDiffusionTask | VAETask, folder: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw the pictures of a run of either phase into ``folder``."""
    if isinstance(task, VAETask):
        _draw_vae(task, folder, metrics)
    else:
        _draw_diffusion(task, folder, metrics)


def _draw_vae(task: VAETask, folder: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    bound = "divergence" if task.vae.kind == "kl" else "codebook"
    curves(
        folder / "curves.png",
        [
            ("Reconstruction", "absolute error", both_splits(metrics, "error")),
            ("Validation", "PSNR, dB", {"validation": rows_of(metrics, "val/psnr")}),
            ("Latents", bound, {"training": rows_of(metrics, f"train/{bound}")}),
        ],
    )
    images_NHWC = task.scenes.splits["test"].images_NHWC[:SHOWN]
    made_NHWC = torch.cat([to_bytes(made) for _, _, made, _ in task.reconstruct(images_NHWC)]).cpu()
    off = (made_NHWC.int() - images_NHWC.cpu().int()).abs().float().mean(-1)
    rows = [
        ("picture", list(images_NHWC.cpu().numpy())),
        ("autoencoder", list(made_NHWC.numpy())),
        ("error x 4", [np.uint8(4 * row) for row in off.numpy().clip(0, 63)]),
    ]
    grid(folder / "reconstructions.png", rows)


def _draw_diffusion(task: SlotDiffusionTask, folder: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    figures.learning_curves(folder / "curves.png", metrics, "Noise", "loss")
    scenes = task.scenes.splits["test"]
    count = min(SHOWN, len(scenes))
    images_NHWC, masks_NHW = scenes.images_NHWC[:count], scenes.masks_NHW[:count].cpu()
    noise_NKS = task.noise(count, "figure/slots", 0)
    found = list(task.decompose(images_NHWC, noise_NKS))
    slots_NKS = torch.cat([batch.slots_BKS for batch in found])
    attention_NTKN, shares_NKHW = (
        torch.cat([batch.named[name] for batch in found]).float().cpu() for name in ("attention", "masks")
    )
    made_NHWC = task.paint(slots_NKS, "figure/paint", "pictures")
    with torch.no_grad():
        again_NHWC = to_bytes(task.vae.decode(task.vae.encode(prepare(images_NHWC)))).cpu()
    images_NHWC = images_NHWC.cpu()
    again = {"autoencoder": again_NHWC, "noise + slots": made_NHWC}
    figures.reconstructions(folder / "reconstructions.png", images_NHWC, again, masks_NHW, shares_NKHW)
    parts_NKHWC = parts_of(images_NHWC, shares_NKHW)
    figures.slots(folder / "slots.png", images_NHWC, "noise + slots", made_NHWC, parts_NKHWC)
    attention(folder / "attention.png", images_NHWC[0], attention_NTKN[0], task.mean.encoder.places)
    fast = (task.config.sample.sampler, task.config.sample.steps)
    slow = ("ancestral", task.config.sample.ancestral)
    for name, (sampler, steps) in {"denoising": fast, "denoising-ancestral": slow}.items():
        if steps:
            painter = task.painter(sampler=sampler, steps=steps)
            title = f"{sampler}, {steps} steps: read from top left to bottom right"
            denoising(folder / f"{name}.png", title, painter, slots_NKS[:1], "figure/paint")
    count = min(figures.COMPOSED, len(task.scenes.splits["val"]))
    figures.compositions(folder, task, "slotdiffusion", "drawn", count)


def parts_of(images_NHWC: Tensor, shares_NKHW: Tensor) -> np.ndarray:
    """The part of a picture that each slot looks at, as bytes ``[N, K, H, W, 3]``; the rest is white."""
    return (255 - shares_NKHW[..., None] * (255 - images_NHWC[:, None].float())).byte().numpy()


def moments(painter: Painter, slots_1KS: Tensor, stream: str) -> tuple[Tensor, Tensor]:
    """Latents on the way from noise to a picture, `MOMENTS` at most and evenly apart; the last is the picture.

    Returns:
        Bytes ``[M, H, W, 3]`` of the latents with their noise, and of what the network took them for.
    """
    steps = painter.config.steps
    most = min(MOMENTS, steps)
    wanted = {round((place + 1) * steps / most) for place in range(most)}
    kept: list[Tensor] = []
    guessed: list[Tensor] = []

    def keep(step: int, _: int, z_BChw: Tensor, z0_BChw: Tensor) -> None:
        if step in wanted:
            kept.append(z_BChw)
            guessed.append(z0_BChw)

    last_1Chw = painter.latents(slots_1KS, slice(0, 1), stream, keep)
    if not kept:
        # A sampler of the user's own may tell nothing of its steps.
        kept, guessed = [last_1Chw], [last_1Chw]
    noisy, clean = (to_bytes(painter.decode(torch.cat(rows))).cpu() for rows in (kept, guessed))
    return noisy, clean


def denoising(path: Path, title: str, painter: Painter, slots_1KS: Tensor, stream: str) -> None:
    """Draw how a picture comes out of the noise, and what the network took it for at each moment."""
    noisy, clean = moments(painter, slots_1KS, stream)
    columns = min(10, len(noisy))
    rows = math.ceil(len(noisy) / columns)
    with figure(path, 0.95 * columns, 1.9 * rows + 0.9) as page:
        page.suptitle(title, fontsize=9)
        for ax, images, told in zip(
            page.subplots(2, 1), (noisy, clean), ("the latent", "what the network takes it for"), strict=True
        ):
            ax.imshow(sheet(images, columns))
            ax.set_title(told)
            ax.set_axis_off()
