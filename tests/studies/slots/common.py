"""A small model, a small task, and what reads their faults."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from etude.core import randomness
from etude.core.checkpoint import WeightsHeader, save_weights
from etude.core.config import override, to_dict
from etude.core.runtime import Runtime
from etude.scenes import slot_library
from etude.scenes.slot_library import Library
from etude.studies.slots.model import SlotAutoencoder
from etude.studies.slots.study import SlotsConfig, smoke
from etude.studies.slots.task import SlotsTask

_PLAIN: dict[str, Any] = {
    "model__size": 16, "model__num_slots": 3, "model__slot_size": 8, "model__iterations": 2,
    "model__eval_iterations": 2, "model__features": 8, "model__hidden": 8, "model__decoder_width": 4,
    "data__most": 20, "batch__size": 4,
}  # fmt: skip
COARSE: dict[str, Any] = {"model__broadcast": 4, "optim__coarse_steps": 3}
"""Two doublings, of which the last waits for three steps."""


def settings(**changes: Any) -> SlotsConfig:
    """The smoke preset, smaller: 16 training scenes, 2 and 2; ``model__size=32`` sets ``model.size``."""
    return override(smoke(), {name.replace("__", "."): value for name, value in (_PLAIN | changes).items()})


def make(**changes: Any) -> SlotsTask:
    config = settings(**changes)
    return SlotsTask(config, Runtime(config.loop, config.seed))


def network(*, coarse: bool = False, seed: int = 0, **changes: Any) -> SlotAutoencoder:
    randomness.seed_globals(seed, "init", 0)
    return SlotAutoencoder(settings(**changes).model, coarse=coarse)


def saved(path: Path, seed: int = 0, **changes: Any) -> Path:
    """A network's weights file."""
    header = WeightsHeader("slots", to_dict(settings(**changes)), {})
    save_weights(path, {"model": network(seed=seed, **changes)}, header)
    return path


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def one_line(caught: pytest.ExceptionInfo[ValueError], *parts: str) -> None:
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


def build(net: SlotAutoencoder, slots_NS: Tensor, seed: int) -> Library:
    return slot_library.build(slots_NS, net.config.num_slots, seed, net.card)


def load(path: Path, net: SlotAutoencoder) -> Library:
    shape = {name: getattr(net.config, name) for name in ("num_slots", "slot_size", "size")}
    return slot_library.load(path, "slots", shape, net.card)
