"""Find the objects of your own pictures with trained slots, change them, or compose new scenes.

``etude predict slots photo.png --output found`` writes which slot each pixel belongs to, and a sheet of what every slot
holds. ``--edit`` takes slots out of a picture or moves them to another: ``etude predict slots a.png b.png --edit
swap:2:5 move:3 delete:7``; slots are numbered as on the sheets. ``--compose 16`` puts slots of a library together.

A picture that is not square is cut as the training pictures were, see `etude.data.clevrtex`. Shape suffixes as in
model.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etude.core.errors import Refused
from etude.nn.pixels import prepare, to_bytes
from etude.scenes import prediction
from etude.scenes.prediction import BATCH, Advance, Found, Prediction, SceneOptions, ScenePainter, tell
from etude.scenes.source import SAMPLE
from etude.studies.slots.export import networks
from etude.studies.slots.figures import parts_of
from etude.studies.slots.model import SlotAutoencoder
from etude.studies.slots.study import SlotsConfig

__all__ = ["Options", "Prediction", "example", "predict", "tell"]


@dataclass(frozen=True)
class Options(SceneOptions):
    output: Path = Path("slots")
    """The folder for the results: of each picture NAME-slots.png, a sheet, and NAME-mask.png, a slot's number a pixel;
    of an edit NAME-edited.png (the first, where several are tried) and edit.png, a sheet of all; of compositions
    000.png and so on and compositions.png."""


def predict(weights: Path, extra: Mapping[str, Any] | None, options: Options) -> list[Prediction | Refused]:
    """Do what the options say.

    Args:
        weights: a safetensors file that `etude export` or a checkpoint wrote.
        extra: unused.
        options: the inputs and where results go.

    Raises:
        UserError: see `etude.scenes.prediction.predict`.
    """
    options.check()
    return prediction.predict(Painter(read_model(weights)[0], options.seed), weights, options)


def read_model(weights: Path) -> tuple[SlotAutoencoder, SlotsConfig]:
    """The network of a weights file, ready for use on the best device there is, and its configuration."""
    config, modules = prediction.read_networks(weights, "slots", SlotsConfig, networks)
    model = modules["model"]
    assert isinstance(model, SlotAutoencoder)
    return model, config


class Painter(ScenePainter):
    """A trained `SlotAutoencoder`, as `etude.scenes.prediction` uses it."""

    study, endings = "slots", ("-slots.png", "-mask.png")
    titles = ("picture", "reconstruction", "slots")

    def decompose(self, images_NHWC: Tensor, noise_NKS: Tensor) -> Found:
        iterations = self.config.eval_iterations
        made_NCHW, named = self.network(prepare(images_NHWC), noise_NKS, spread=0.0, iterations=iterations)
        slots_NKS, masks_NKHW = named["slots"].cpu(), named["masks"].cpu()
        parts_NKHWC = parts_of(named["contents"].float().cpu(), masks_NKHW)
        return Found(slots_NKS, masks_NKHW, parts_NKHWC, made_NCHW.float().cpu())

    @torch.inference_mode()
    def paint(self, slots_NKS: Tensor, numbers: Sequence[int], advance: Advance) -> Tensor:
        device = next(self.network.parameters()).device
        made: list[Tensor] = []
        for part_NKS in slots_NKS.split(BATCH):
            made.append(to_bytes(self.network.decode(part_NKS.to(device))[0]).cpu())
            advance(len(part_NKS))
        return torch.cat(made)


def example(out: Path) -> list[str]:
    """The words of an `etude predict` on what comes with the package; what it writes goes into ``out``."""
    return ["slots", str(SAMPLE), "--output", str(out / "slots")]
