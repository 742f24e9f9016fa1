"""The parts that the tabs that classify share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etude.data import SAMPLES
from etude.serve.kit.site import read

PHOTOS = SAMPLES / "cifar10"
"""One of each class."""


@dataclass(frozen=True)
class Seen:
    """The classes that a network took a picture for."""

    probabilities: dict[str, float]
    """All classes, the likeliest first."""
    image_HWC: np.ndarray
    """The picture as the network got it."""


def seen(network: Any, path: str | None) -> Seen:
    """The answer of a network, see `etude.data.classify.Network`, to a visitor's picture."""
    import torch

    from etude.data.classify import predictions
    from etude.data.images import fitted

    size, fit = network.config.data.size, network.config.data.fit
    image_HWC = fitted(read(path, min_side=size), size, fit)
    with torch.no_grad():
        logits_1R = network.model(network.model.prepare(torch.from_numpy(image_HWC)[None]))[0]
    [found] = predictions([Path(str(path))], logits_1R, network.classes)
    return Seen(dict(sorted(found.probabilities.items(), key=lambda row: -row[1])), image_HWC)
