"""Classify your own pictures with a trained residual network.

The network, its norm and n are read from the weights. Shape suffixes as in model.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from PIL import Image

from etude.core.errors import UserError
from etude.core.files import one_line_faults
from etude.data import classify
from etude.data.classify import Network, Prediction
from etude.studies.resnet.cam import overlay, package_cam
from etude.studies.resnet.model import ResNet
from etude.studies.resnet.study import ResNetConfig
from etude.studies.resnet.task import build_model


@dataclass(frozen=True)
class Options:
    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Pictures to classify, or folders of pictures."""
    output: Path | None = None
    """A file for the predictions, one class a line in the order of the inputs (of a folder, by name)."""
    indices: bool = False
    """Write the number of the class into the output file, from 0 in the order of the names, instead of its name."""
    cam: Path | None = None
    """A folder for what the network looked at: each picture under the Grad-CAM of the class it was taken for."""
    max_pixels: int = 64_000_000
    """Larger pictures are refused."""


def read_network(weights: Path, extra: Mapping[str, Any] | None) -> Network[ResNet, ResNetConfig]:
    """See `classify.read_network`."""
    return classify.read_network("resnet", ResNetConfig, lambda config: build_model(config.model), weights, extra)


def predict(weights: Path, extra: Mapping[str, Any] | None, options: Options) -> list[Prediction]:
    """Classify the inputs; the order of the answers is theirs.

    Args:
        weights: a safetensors file that `etude export` or a checkpoint wrote.
        extra: what the run's summary adds where the file is a checkpoint.
        options: the inputs and where answers go.

    Raises:
        UserError: a missing or broken picture, folder or weights file, in one line; no file is written then.
    """
    paths = classify.inputs(options.inputs)
    network = read_network(weights, extra)
    model = network.model
    _refuse_clashes(paths, options.cam)
    answers: list[Prediction] = []
    maps: list[tuple[Path, np.ndarray]] = []
    for batch, images_NHWC in classify.batches(paths, network.config.data, options.max_pixels):
        x_NCHW = model.prepare(images_NHWC)
        with torch.no_grad():
            found = classify.predictions(batch, model(x_NCHW)[0], network.classes)
        answers += found
        if options.cam is not None:
            cams_NHW = package_cam(model, x_NCHW, torch.tensor([answer.index for answer in found]))
            shown = (overlay(image, cam) for image, cam in zip(images_NHWC.numpy(), cams_NHW, strict=True))
            maps += zip(batch, shown, strict=True)
    if options.cam is not None:
        with one_line_faults(options.cam):
            options.cam.mkdir(parents=True, exist_ok=True)
            for path, image in maps:
                Image.fromarray(image).save(options.cam / f"{path.stem}-cam.png")
    classify.write(options.output, answers, indices=options.indices)
    return answers


def _refuse_clashes(paths: list[Path], folder: Path | None) -> None:
    """Two pictures of one name would write one overlay."""
    if folder is None:
        return
    seen: dict[str, Path] = {}
    for path in paths:
        other = seen.setdefault(path.stem, path)
        if other is not path:
            raise UserError(
                f"{other} and {path} would both write {path.stem}-cam.png: give other names, or one at a time"
            )


def example(out: Path) -> list[str]:
    """The words of an `etude predict` on what comes with the package; what it writes goes into ``out``."""
    from etude.data.cifar10 import sample_folder

    return ["resnet", str(sample_folder())]
