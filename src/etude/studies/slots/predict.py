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

import numpy as np
import torch
from torch import Tensor

from etude.core import randomness
from etude.core.checkpoint import load_weights
from etude.core.config import from_dict
from etude.core.loop import progress_bar
from etude.core.runtime import resolve_device
from etude.data.prediction import save_png
from etude.draw.figures import save_figure
from etude.metrics.segmentation import squared_error
from etude.nn.pixels import prepare, to_bytes
from etude.scenes import prediction
from etude.scenes.edits import shares_of
from etude.scenes.prediction import Prediction, SceneOptions, ScenePainter, tell
from etude.scenes.scores import segments
from etude.scenes.source import SAMPLE
from etude.studies.slots import figures
from etude.studies.slots.model import SlotAutoencoder, card
from etude.studies.slots.study import SlotsConfig

__all__ = ["Options", "Prediction", "example", "predict", "tell"]
_BATCH = 16


@dataclass(frozen=True)
class Options(SceneOptions):
    output: Path = Path("slots")
    """The folder for the results: of each picture NAME-slots.png, a sheet, and NAME-mask.png, a slot's number a pixel;
    of an edit NAME-edited.png (the first, where several are tried) and edit.png, a sheet of all; of compositions
    000.png and so on and compositions.png."""


def predict(weights: Path, extra: Mapping[str, Any] | None, options: Options) -> list[Prediction]:
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
    """The network of a weights file, ready for use on the best device there is."""
    tensors, header = prediction.read_network(weights, "slots")
    config = from_dict(SlotsConfig, header.config, origin=str(weights))
    model = SlotAutoencoder(config.model)
    load_weights({"model": model}, tensors, weights)
    return model.eval().to(resolve_device("auto")).to(memory_format=torch.channels_last), config


@dataclass(frozen=True)
class Found:
    """What a network makes of some pictures; ``named`` as `SlotAutoencoder` has it."""

    images_BCHW: Tensor
    made_BCHW: Tensor
    named: Mapping[str, Tensor]


@torch.inference_mode()
def find(model: SlotAutoencoder, images: Sequence[np.ndarray], seed: int) -> Found:
    """What the model makes of some pictures; a picture's slots begin the same whatever is beside it."""
    config, device = model.config, next(model.parameters()).device
    images_BCHW = prepare(torch.from_numpy(np.stack(images)).to(device))
    draw = randomness.generator(seed, "predict/slots", 0)
    noise_1KS = torch.randn(1, config.num_slots, config.slot_size, generator=draw).to(device)
    noise_BKS = noise_1KS.expand(len(images), -1, -1)
    made_BCHW, named = model(images_BCHW, noise_BKS, spread=0.0, iterations=config.eval_iterations)
    return Found(images_BCHW, made_BCHW.float(), named)


@torch.inference_mode()
def decoded(model: SlotAutoencoder, slots_NKS: Tensor) -> Tensor:
    """The pictures of slots, as bytes ``[N, H, W, 3]`` on the CPU."""
    device = next(model.parameters()).device
    return torch.cat([to_bytes(model.decode(part.to(device))[0]).cpu() for part in slots_NKS.split(_BATCH)])


class Painter(ScenePainter):
    """A trained network, as `etude.scenes.prediction` uses it."""

    study, endings = "slots", ("-slots.png", "-mask.png")
    titles = ("picture", "reconstruction", "slots")

    def __init__(self, model: SlotAutoencoder, seed: int) -> None:
        super().__init__(model.config)
        self.model, self.seed = model, seed

    def find(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        named = find(self.model, images, self.seed).named
        return named["slots"].cpu(), named["masks"].cpu()

    def paint(self, slots_NKS: Tensor, numbers: Sequence[int], title: str) -> Tensor:
        return decoded(self.model, slots_NKS)

    def card(self, slots_KS: Tensor) -> Tensor:
        return card(self.model, slots_KS)

    def describe(
        self, paths: Sequence[Path], files: Sequence[Sequence[Path]], images: Sequence[np.ndarray]
    ) -> list[Prediction]:
        answers: list[Prediction] = []
        with progress_bar() as bar:
            shown = bar.add_task("finding", total=len(paths), note="")
            for start in range(0, len(paths), _BATCH):
                some = images[start : start + _BATCH]
                found = find(self.model, some, self.seed)
                masks_BKHW = found.named["masks"].cpu()
                contents_BKCHW = found.named["contents"].float().cpu()
                made, real = ((x.cpu() + 1) / 2 for x in (found.made_BCHW, found.images_BCHW))
                error_B = squared_error(made, real)
                segments_BHW, made_BHWC = segments(masks_BKHW), to_bytes(found.made_BCHW).cpu()
                for place, image in enumerate(some):
                    (page, mask), one = files[start + place], slice(place, place + 1)
                    picture = torch.from_numpy(image)[None]
                    parts = (picture, made_BHWC[one], contents_BKCHW[one], masks_BKHW[one])
                    save_figure(page, lambda to, parts=parts: figures.slots(to, *parts))
                    save_png(mask, segments_BHW[place].to(torch.uint8).numpy())
                    shares = shares_of(segments_BHW[place], self.config.num_slots)
                    error = error_B[place].item()
                    answers.append(Prediction(str(paths[start + place]), str(page), len(shares), shares, error))
                    bar.advance(shown)
        return answers


def example(out: Path) -> list[str]:
    """The words of an `etude predict` on what comes with the package; what it writes goes into ``out``."""
    return ["slots", str(SAMPLE), "--output", str(out / "slots")]
