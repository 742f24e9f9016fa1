"""Classify your own pictures with a trained residual network.

The network, its norm and n are read from the weights. Shape suffixes as in model.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etude.core.errors import Refused
from etude.data import classify
from etude.data.classify import Network, Prediction
from etude.data.prediction import read_input, result_files, save_png
from etude.studies.resnet.cam import beside_photo, package_cam
from etude.studies.resnet.model import ResNet
from etude.studies.resnet.study import ResNetConfig
from etude.studies.resnet.task import build_model


@dataclass(frozen=True)
class Options(classify.Options):
    cam: Path | None = None
    """A folder for what the network looked at: each picture beside itself under the Grad-CAM of the class it was taken
    for, both at the picture's own size."""


def load(weights: Path, extra: Mapping[str, Any] | None) -> Network[ResNet, ResNetConfig]:
    """See `classify.read_network`."""
    return classify.read_network("resnet", ResNetConfig, lambda config: build_model(config.model), weights, extra)


def predict(weights: Path, extra: Mapping[str, Any] | None, options: Options) -> list[Prediction | Refused]:
    """Classify the inputs; the order of the answers is theirs. See `classify.read_network` for the arguments.

    Raises:
        UserError: no picture that can be read, or a missing or broken folder or weights file; no file is written then.
    """
    paths = classify.inputs(options.inputs)
    network = load(weights, extra)
    files = result_files(paths, options.cam, ("-cam.png",), force=True) if options.cam is not None else []
    maps: list[np.ndarray] = []

    def look(_: list[Path], images_NHWC: Tensor, found: list[Prediction]) -> None:
        taken_N = torch.tensor([answer.index for answer in found])
        maps.extend(package_cam(network.model, network.model.prepare(images_NHWC), taken_N))

    answers = classify.classified(network, paths, options.max_pixels, look if files else None)
    cams = iter(maps)
    for (file,), path, answer in zip(files, paths, answers, strict=True) if files else ():
        if not isinstance(answer, Refused):
            photo_HWC = read_input(path, "RGB", options.max_pixels)
            save_png(file, beside_photo(photo_HWC, next(cams), network.config.data.fit))
    classify.write(options.output, answers, indices=options.indices)
    return answers


def example(out: Path) -> list[str]:
    """The words of an `etude predict` on what comes with the package; what it writes goes into ``out``."""
    from etude.data.cifar10 import sample_folder

    return ["resnet", str(sample_folder())]
