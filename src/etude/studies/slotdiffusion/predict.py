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

from torch import Tensor

from etude.core.errors import Refused, UserError
from etude.data.clevrtex import read_picture
from etude.data.prediction import picture_files, refuse_existing
from etude.draw.figures import save_figure
from etude.nn.pixels import prepare, to_bytes
from etude.scenes import prediction
from etude.scenes.prediction import BATCH, Advance, Found, Prediction, SceneOptions, ScenePainter, tell
from etude.scenes.source import SAMPLE
from etude.studies.slotdiffusion import figures
from etude.studies.slotdiffusion.export import networks
from etude.studies.slotdiffusion.model import Painter, SlotDiffusion, attention_masks, schedule_of
from etude.studies.slotdiffusion.samplers import check_steps, halving
from etude.studies.slotdiffusion.study import SlotDiffusionConfig
from etude.studies.slotdiffusion.vae import VAE

__all__ = ["Options", "Prediction", "example", "predict", "tell"]
STREAM = "predict/paint"
"""The stream of the noise that pictures begin with."""


@dataclass(frozen=True)
class Options(SceneOptions):
    output: Path = Path("slotdiffusion")
    """The folder for the results: of each picture NAME-slots.png, a sheet, NAME-mask.png, a slot's number a pixel, and
    NAME-again.png, drawn from noise and the slots; of an edit NAME-edited.png (the first, where several are tried) and
    edit.png, a sheet of all; of compositions 000.png and so on and compositions.png."""
    sampler: str | None = None
    """ancestral, ddim, dpm-solver++, or path/to/file.py:Name; the run's own where none is named."""
    steps: int | None = None
    """The number of times that the network is asked for a picture; the run's own where none is named."""
    guidance: float | None = None
    """Weight of the slots against no slots; 1: none."""
    denoising: bool = False
    """Also write NAME-denoising.png: how the first picture comes out of the noise."""


def predict(weights: Path, extra: Mapping[str, Any] | None, options: Options) -> list[Prediction | Refused]:
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
    painter = ScenePaintings(read_networks(weights).painter(options))
    if not options.denoising:
        return prediction.predict(painter, weights, options)
    paths = picture_files(options.inputs)
    strip = options.output / f"{paths[0].stem}-denoising.png"
    refuse_existing([strip], paths, force=options.force)
    image_HWC = read_picture(paths[0], painter.config.size, options.max_pixels)
    answers = prediction.predict(painter, weights, options)
    slots_1KS, sampling = painter.find([image_HWC]).slots_NKS, painter.painter.config
    title = f"{sampling.sampler}, {sampling.steps} steps: read from top left to bottom right"
    save_figure(strip, lambda to: figures.denoising(to, title, painter.painter, slots_1KS, STREAM))
    return [*answers, Prediction(str(paths[0]), str(strip))]


@dataclass(frozen=True)
class Networks:
    """The networks of a weights file, ready for use."""

    model: SlotDiffusion
    vae: VAE
    config: SlotDiffusionConfig

    def painter(self, options: Options) -> Painter:
        """The painter that draws as the options say, and where they say nothing as the run did."""
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
    config, modules = prediction.read_networks(weights, "slotdiffusion", SlotDiffusionConfig, networks)
    if "model" not in modules:
        raise UserError(
            f"{weights} is an autoencoder alone: train slots on it, as in etude run slotdiffusion laptop --vae.weights "
            f"{weights}"
        )
    model, vae = modules["model"], modules["vae"]
    assert isinstance(model, SlotDiffusion)
    assert isinstance(vae, VAE)
    return Networks(model, vae, config)


class ScenePaintings(ScenePainter):
    """A `Painter`, as `etude.scenes.prediction` uses it."""

    study, endings = "slotdiffusion", ("-slots.png", "-mask.png", "-again.png")
    titles = ("picture", "noise + slots", "slots")

    def __init__(self, painter: Painter) -> None:
        super().__init__(painter.model, painter.seed)
        self.painter, self.steps = painter, painter.config.steps

    def decompose(self, images_NHWC: Tensor, noise_NKS: Tensor) -> Found:
        encoder, config = self.network.encoder, self.config
        slots = encoder(prepare(images_NHWC), noise_NKS, spread=0.0, iterations=config.eval_iterations)
        masks_NKHW = attention_masks(slots.attention_BTKN, encoder.places, config.size).cpu()
        return Found(slots.slots_BKS.float().cpu(), masks_NKHW, figures.parts_of(images_NHWC.cpu(), masks_NKHW))

    def paint(self, slots_NKS: Tensor, numbers: Sequence[int], advance: Advance) -> Tensor:
        def part(rows: slice) -> Tensor:
            def on_step(*_: Any) -> None:
                advance(rows.stop - rows.start)

            return to_bytes(self.painter.paint(slots_NKS[rows], numbers[rows], STREAM, on_step)).cpu()

        return halving(part, len(slots_NKS), BATCH)


def example(out: Path) -> list[str]:
    """The words of an `etude predict` on what comes with the package; what it writes goes into ``out``."""
    return ["slotdiffusion", str(SAMPLE), "--output", str(out / "slotdiffusion")]
