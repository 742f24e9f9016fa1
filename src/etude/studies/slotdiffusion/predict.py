"""Find the objects of your own pictures, and let a diffusion draw them again, changed, or anew.

``etude predict slotdiffusion photo.png --output found`` writes where each slot looks and the picture drawn again from
noise and its slots. With two pictures ``--edit`` exchanges slots between them, as in ``etude predict slotdiffusion
a.png b.png --edit swap:2:5 move:3 delete:7``; slots are numbered as on the sheets. ``--compose 16`` puts slots of a
library together. ``--sampler`` and ``--steps`` say how they are drawn.

A picture that is not square is cut as the training pictures were, see `etude.data.clevrtex`. Shape suffixes as in
model.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.core import randomness
from etude.core.checkpoint import load_weights
from etude.core.config import from_dict
from etude.core.errors import UserError
from etude.core.loop import progress_bar
from etude.core.runtime import resolve_device
from etude.data.prediction import refuse_existing, save_png
from etude.draw.figures import save_figure
from etude.metrics.segmentation import squared_error
from etude.nn.pixels import prepare, to_bytes
from etude.scenes import prediction
from etude.scenes.edits import shares_of
from etude.scenes.prediction import Prediction, SceneOptions, ScenePainter, tell
from etude.scenes.scores import segments
from etude.scenes.source import SAMPLE
from etude.studies.slotdiffusion import figures
from etude.studies.slotdiffusion.model import (
    Painter,
    SlotDiffusion,
    attention_masks,
    card,
    schedule_of,
)
from etude.studies.slotdiffusion.samplers import check_steps, halving
from etude.studies.slotdiffusion.study import SlotDiffusionConfig
from etude.studies.slotdiffusion.vae import VAE
from etude.studies.slotdiffusion.vae_files import build_vae

__all__ = ["Options", "Prediction", "example", "predict", "tell"]
_BATCH = 16
STREAM = "predict/paint"
"""Of the noise that pictures begin with."""


@dataclass(frozen=True)
class Options(SceneOptions):
    output: Path = Path("slotdiffusion")
    """The folder for the results: of each picture NAME-slots.png, a sheet, NAME-mask.png, a slot's number a pixel, and
    NAME-again.png, drawn from noise and the slots; of an edit NAME-edited.png (the first, where several are tried) and
    edit.png, a sheet of all; of compositions 000.png and so on and compositions.png."""
    sampler: str | None = None
    """ancestral, ddim, dpm-solver++, or path/to/file.py:Name; the run's own where none is named."""
    steps: int | None = None
    """How often the network is asked for a picture; the run's own where none is named."""
    guidance: float | None = None
    """Weight of the slots against no slots; 1: none."""
    denoising: bool = False
    """Also write NAME-denoising.png: how the first picture comes out of the noise."""


def predict(weights: Path, extra: Mapping[str, Any] | None, options: Options) -> list[Prediction]:
    """Do what the options say.

    Args:
        weights: a safetensors file that `etude export` or a checkpoint wrote.
        extra: unused.
        options: the inputs and where results go.

    Raises:
        UserError: see `etude.scenes.prediction.predict`; and for a number of steps that cannot be.
    """
    options.check()
    if options.denoising and (options.compose or options.edit is not None):
        raise UserError("--denoising shows how a picture is drawn again: leave out --edit and --compose")
    return prediction.predict(_Painter(read_networks(weights).painter(options), options), weights, options)


@dataclass(frozen=True)
class Networks:
    """What a weights file holds, ready for use."""

    model: SlotDiffusion
    vae: VAE
    config: SlotDiffusionConfig

    def painter(self, options: Options) -> Painter:
        """What draws as the options say, and where they say nothing as the run did."""
        sample = self.config.sample
        if options.steps is not None:
            check_steps(options.steps, self.config.chain.steps)
            sample = replace(sample, steps=options.steps)
        if options.sampler is not None:
            sample = replace(sample, sampler=options.sampler)
        if options.guidance is not None:
            # So written that NaN is refused.
            if not 0 <= options.guidance < math.inf:
                raise UserError(f"--guidance must be 0 or more, not {options.guidance:g}")
            if options.guidance != 1 and not self.config.optim.drop:
                raise UserError(
                    f"--guidance {options.guidance:g}: this model never went without slots in training (optim.drop 0), "
                    "so there is nothing to guide away from: give 1"
                )
            sample = replace(sample, guidance=options.guidance)
        return Painter(self.model, self.vae, schedule_of(self.config.chain), sample, options.seed)


def read_networks(weights: Path) -> Networks:
    """The networks of a weights file, on the best device there is."""
    tensors, header = prediction.read_network(weights, "slotdiffusion")
    config = from_dict(SlotDiffusionConfig, header.config, origin=str(weights))
    if config.phase == "vae":
        raise UserError(
            f"{weights} is an autoencoder alone: train slots on it, as in etude run slotdiffusion laptop --vae.weights "
            f"{weights}"
        )
    model, vae = SlotDiffusion(config.model, config.vae.channels), build_vae(config.vae)
    load_weights({"model": model, "vae": vae}, tensors, weights)
    device = resolve_device("auto")
    for part in (model, vae):
        part.eval().to(device).to(memory_format=torch.channels_last)
    return Networks(model, vae, config)


@torch.inference_mode()
def find(model: SlotDiffusion, images: Sequence[np.ndarray], seed: int) -> tuple[Tensor, Tensor]:
    """Slots ``[B, K, S]`` and masks ``[B, K, H, W]``; a picture's begin the same whatever is beside it."""
    config, device = model.config, model.scale.device
    draw = randomness.generator(seed, "predict/slots", 0)
    noise_1KS = torch.randn(1, config.num_slots, config.slot_size, generator=draw).to(device)
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(images), _BATCH):
        images_BCHW = prepare(torch.from_numpy(np.stack(images[start : start + _BATCH])).to(device))
        noise_BKS = noise_1KS.expand(len(images_BCHW), -1, -1)
        slots = model.encoder(images_BCHW, noise_BKS, spread=0.0, iterations=config.eval_iterations)
        masks_BKHW = attention_masks(slots.attention_BTKN, model.encoder.places, config.size)
        found.append((slots.slots_BKS.float().cpu(), masks_BKHW.cpu()))
    slots_parts, masks_parts = zip(*found, strict=True)
    return torch.cat(slots_parts), torch.cat(masks_parts)


class _Painter(ScenePainter):
    """A painter, as `etude.scenes.prediction` uses it."""

    study, endings = "slotdiffusion", ("-slots.png", "-mask.png", "-again.png")
    titles = ("picture", "noise + slots", "slots")

    def __init__(self, painter: Painter, options: Options) -> None:
        super().__init__(painter.model.config)
        self.painter, self.options = painter, options

    def find(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        return find(self.painter.model, images, self.options.seed)

    def paint(self, slots_NKS: Tensor, numbers: Sequence[int], title: str) -> Tensor:
        """The steps are shown on a bar; for the numbers see `Painter.latents`."""
        count, steps = len(slots_NKS), self.painter.config.steps
        with progress_bar() as bar:
            shown = bar.add_task(title, total=count * steps, note="")

            def part(rows: slice) -> Tensor:
                def tell_bar(*_: Any) -> None:
                    bar.advance(shown, rows.stop - rows.start)

                return to_bytes(self.painter.paint(slots_NKS[rows], numbers[rows], STREAM, tell_bar)).cpu()

            return halving(part, count, _BATCH)

    def card(self, slots_KS: Tensor) -> Tensor:
        return card(self.painter.model, slots_KS)

    def describe(
        self, paths: Sequence[Path], files: Sequence[Sequence[Path]], images: Sequence[np.ndarray]
    ) -> list[Prediction]:
        strip = self.options.output / f"{paths[0].stem}-denoising.png"
        if self.options.denoising:
            refuse_existing([strip], paths, force=self.options.force)
        slots_NKS, masks_NKHW = self.find(images)
        # One noise for all: a picture's result does not depend on what is beside it.
        made_NHWC = self.paint(slots_NKS, [0] * len(paths), "drawing")
        answers: list[Prediction] = []
        for row, (page, mask, again) in enumerate(files):
            image_NHWC, one = torch.from_numpy(images[row])[None], slice(row, row + 1)
            parts = (image_NHWC, made_NHWC[one], masks_NKHW[one])
            save_figure(page, lambda to, parts=parts: figures.slots(to, *parts))
            segments_HW = segments(masks_NKHW[one])[0]
            save_png(mask, segments_HW.to(torch.uint8).numpy())
            save_png(again, made_NHWC[row].numpy())
            shares = shares_of(segments_HW, self.config.num_slots)
            made, real = (x.permute(0, 3, 1, 2) / 255.0 for x in (made_NHWC[one], image_NHWC))
            error = squared_error(made, real).item()
            answers.append(Prediction(str(paths[row]), str(page), len(shares), shares, error))
        if self.options.denoising:
            sampling = self.painter.config
            title = f"{sampling.sampler}, {sampling.steps} steps: read from top left to bottom right"
            save_figure(strip, lambda to: figures.denoising(to, title, self.painter, slots_NKS[:1], STREAM))
            answers.append(Prediction(str(paths[0]), str(strip)))
        return answers


def example(out: Path) -> list[str]:
    """The words of an `etude predict` on what comes with the package; what it writes goes into ``out``."""
    return ["slotdiffusion", str(SAMPLE), "--output", str(out / "slotdiffusion")]
