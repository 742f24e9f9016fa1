"""Small models, small tasks of both phases, and what reads their faults."""

from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from etude.core import randomness
from etude.core.checkpoint import WeightsHeader, save_weights
from etude.core.config import override, to_dict
from etude.core.runtime import Runtime
from etude.scenes import slot_library
from etude.scenes.slot_library import Library
from etude.studies.slotdiffusion.model import Painter, SlotDiffusion, schedule_of
from etude.studies.slotdiffusion.study import SlotDiffusionConfig, smoke
from etude.studies.slotdiffusion.task import SlotDiffusionTask
from etude.studies.slotdiffusion.vae import VAE
from etude.studies.slotdiffusion.vae_files import build_vae
from etude.studies.slotdiffusion.vae_task import VAETask

M = TypeVar("M", bound=nn.Module)
B, K, S, C, SIDE = 4, 3, 8, 3, 8
"""Of the small settings: images of a batch, slots and their size, channels and side of a latent."""
PLAIN: dict[str, Any] = {
    "vae__width": 4, "vae__multipliers": (1, 2), "vae__codes": 16, "model__size": 16, "model__num_slots": K,
    "model__slot_size": S, "model__iterations": 2, "model__eval_iterations": 2, "model__features": 8,
    "model__hidden": 8, "model__width": 4, "chain__steps": 20, "sample__steps": 3, "sample__ancestral": 4,
    "data__most": 20, "batch__size": B,
}  # fmt: skip


def settings(**changes: Any) -> SlotDiffusionConfig:
    """The smoke preset, smaller: 16 training scenes, 2 and 2; ``model__size=32`` sets ``model.size``."""
    return override(smoke(), {name.replace("__", "."): value for name, value in (PLAIN | changes).items()})


def make(**changes: Any) -> SlotDiffusionTask:
    config = settings(**changes)
    return SlotDiffusionTask(config, Runtime(config.loop, config.seed))


def make_vae(**changes: Any) -> VAETask:
    config = settings(phase="vae", **changes)
    return VAETask(config, Runtime(config.loop, config.seed))


def network(*, seed: int = 0, **changes: Any) -> SlotDiffusion:
    """With all weights away from zero, see `alive`."""
    config = settings(**changes)
    randomness.seed_globals(seed, "init", 0)
    return alive(SlotDiffusion(config.model, config.vae.channels))


def autoencoder(*, seed: int = 0, **changes: Any) -> VAE:
    randomness.seed_globals(seed, "init", 0)
    return build_vae(settings(**changes).vae).requires_grad_(False).eval()


def alive(module: M) -> M:
    """Noise in place of the weights that begin at zero: a new U-Net answers zero, whatever it is asked."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return module


def painter(net: SlotDiffusion, **changes: Any) -> Painter:
    """``sample__steps=3`` and so on are settings."""
    config = settings(**changes)
    return Painter(net.eval(), autoencoder(**changes), schedule_of(config.chain), config.sample, config.seed)


def saved(path: Path, *, seed: int = 0, half: bool = False, **changes: Any) -> Path:
    """A weights file of a trained slotdiffusion."""
    header = WeightsHeader("slotdiffusion", to_dict(settings(**changes)), {})
    modules = {"model": network(seed=seed, **changes), "vae": autoencoder(seed=seed, **changes)}
    save_weights(path, modules, header, half=half)
    return path


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pictures(count: int = B, size: int = 16, seed: int = 0) -> Tensor:
    """Noise ``[count, 3, size, size]`` within [-1, 1]."""
    return draw(count, 3, size, size, seed=seed).clamp(-1, 1)


def one_line(caught: pytest.ExceptionInfo[ValueError], *parts: str) -> None:
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


def build(net: SlotDiffusion, slots_NS: Tensor, seed: int = 0) -> Library:
    return slot_library.build(slots_NS, net.config.num_slots, seed, net.card)


def load(path: Path, net: SlotDiffusion) -> Library:
    shape = {name: getattr(net.config, name) for name in ("num_slots", "slot_size", "size")}
    return slot_library.load(path, "slotdiffusion", shape, net.card)
