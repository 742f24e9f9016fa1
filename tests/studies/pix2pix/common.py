"""A small task."""

from typing import Any

import torch

from etude.core.config import override
from etude.core.runtime import Runtime
from etude.studies.pix2pix.study import Pix2PixConfig, smoke
from etude.studies.pix2pix.task import Pix2PixTask


def settings(**changes: Any) -> Pix2PixConfig:
    """The smoke preset, smaller, with a constant rate; ``model__width=4`` sets ``model.width``."""
    plain = {"data__pairs": 8, "model__width": 4, "model__discriminator_width": 4, "optim__decay_from": 1.0}
    return override(smoke(), {name.replace("__", "."): value for name, value in (plain | changes).items()})


def make(**changes: Any) -> Pix2PixTask:
    config = settings(**changes)
    return Pix2PixTask(config, Runtime(config.loop, config.seed))


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
