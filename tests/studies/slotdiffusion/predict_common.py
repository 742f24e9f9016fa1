"""A small model with slots that matter, its files, and what predictions of it must be."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.studies.resnet.common import pixels
from torch import Tensor, nn

from etude.core import randomness
from etude.core.checkpoint import WeightsHeader, save_weights
from etude.core.config import override, to_dict
from etude.nn.pixels import prepare, to_bytes
from etude.scenes import slot_library
from etude.scenes.scores import segments
from etude.scenes.slot_library import Library
from etude.studies.slotdiffusion.model import (
    Painter,
    SlotDiffusion,
    attention_masks,
    schedule_of,
)
from etude.studies.slotdiffusion.study import SlotDiffusionConfig, smoke
from etude.studies.slotdiffusion.vae import VAE
from etude.studies.slotdiffusion.vae_files import build_vae

K, S, SIDE = 3, 8, 16
_PLAIN: dict[str, Any] = {
    "model__size": SIDE, "model__num_slots": K, "model__slot_size": S, "model__iterations": 2,
    "model__eval_iterations": 2, "model__features": 8, "model__hidden": 8, "model__width": 4, "vae__width": 4,
    "vae__multipliers": (1, 2), "chain__steps": 10, "sample__steps": 3, "sample__ancestral": 0, "optim__drop": 0.1,
}  # fmt: skip


def settings(**changes: Any) -> SlotDiffusionConfig:
    """The smoke preset, smaller, and trained with drop; ``model__size=32`` sets ``model.size``."""
    return override(smoke(), {name.replace("__", "."): value for name, value in (_PLAIN | changes).items()})


def networks(seed: int = 0, **changes: Any) -> tuple[SlotDiffusion, VAE]:
    """The parts in evaluation mode; what begins at zero, and would hide the slots, is drawn."""
    config = settings(**changes)
    # Of the seeds whose slots share the pictures below.
    randomness.seed_globals(seed + 2, "init", 0)
    parts = SlotDiffusion(config.model, config.vae.channels).eval(), build_vae(config.vae).eval()
    for part in parts:
        for weight in part.parameters():
            if not weight.any():
                nn.init.normal_(weight, std=0.3)
    parts[0].scale.fill_(1.5)
    with torch.no_grad():
        # Slots that differ, and contrast.
        parts[0].encoder.attention.to_queries.weight.mul_(8)
        parts[1].decoder.conv_out.weight.mul_(2)
    return parts


def saved(path: Path, seed: int = 0, **changes: Any) -> Path:
    """A model's weights file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model, vae = networks(seed, **changes)
    header = WeightsHeader("slotdiffusion", to_dict(settings(**changes)), {})
    save_weights(path, {"model": model, "vae": vae}, header)
    return path


def slots_file(path: Path, count: int = 20) -> Library:
    """A library of slots that were drawn, of the model."""
    slots_NS = torch.randn(count, S, generator=torch.Generator().manual_seed(1))
    library = slot_library.build(slots_NS, K, 0, networks()[0].card)
    path.parent.mkdir(parents=True, exist_ok=True)
    library.save(path, "slotdiffusion", to_dict(settings()))
    return library


def painter(seed: int = 0, **changes: Any) -> Painter:
    config = settings(**changes)
    return Painter(*networks(**changes), schedule_of(config.chain), config.sample, seed)


@torch.no_grad()
def found_in(paths: Sequence[Path | str], seed: int = 0, **changes: Any) -> tuple[Tensor, Tensor]:
    """Slots ``[B, K, S]`` and segments ``[B, H, W]`` of pictures of the model's size, each looked at alone."""
    model, _ = networks(**changes)
    noise_1KS = torch.randn(1, K, S, generator=randomness.generator(seed, "predict/slots", 0))
    found = [
        model.encoder(prepare(torch.from_numpy(pixels(path))[None]), noise_1KS, spread=0.0, iterations=2)
        for path in paths
    ]
    masks = [segments(attention_masks(one.attention_BTKN, model.encoder.places, SIDE)) for one in found]
    return torch.cat([one.slots_BKS for one in found]), torch.cat(masks)


def painted(slots_KS: Tensor, seed: int = 0, number: int = 0, **changes: Any) -> np.ndarray:
    """The bytes of one picture."""
    return to_bytes(painter(seed, **changes).paint(slots_KS[None], [number], "predict/paint"))[0].numpy()


def assert_close(path: Path | str, wanted: np.ndarray) -> None:
    """Up to what a batch's sums round to."""
    off = np.abs(pixels(path).astype(int) - wanted)
    assert off.max() <= 1, off.max()
