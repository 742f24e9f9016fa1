"""Graphs from pictures to slots, as ONNX files have them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from etude.core import randomness
from etude.nn.graph import Graph
from etude.scenes.config import SlotEncoderConfig

TOLERANCE = 1e-3
"""The tolerance of slots: every iteration enlarges the rounding of the one before it."""


def smooth_pictures(count: int, height: int, width: int, draw: torch.Generator) -> Tensor:
    """Bytes ``[N, H, W, 3]`` to check slots with: of white noise no slot wins a place, and rounding decides."""
    coarse = torch.rand(count, 3, 4, 4, generator=draw)
    fine = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (fine * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class FindsSlots(nn.Module):
    """The base of networks from bytes ``[B, H, W, 3]`` to slots; a Gaussian start is `etude predict`'s under seed 0.

    Args:
        model: the network, or a part of it.
        config: its configuration.
    """

    def __init__(self, model: Any, config: SlotEncoderConfig) -> None:
        super().__init__()
        self.model: Any = model
        self.config = config
        draw = randomness.generator(0, "predict/slots", 0)
        self.noise_1KS: Tensor
        self.register_buffer("noise_1KS", torch.randn(1, config.num_slots, config.slot_size, generator=draw))
        self.about = f"float32 [N, {config.num_slots}, {config.slot_size}]; a Gaussian start is that of seed 0"
        """The description of the slots."""

    def noise(self, pictures_BHWC: Tensor) -> Tensor:
        """The same start ``[B, K, S]`` for each picture."""
        return self.noise_1KS.expand(pictures_BHWC.shape[0], -1, -1)

    def graph(self, outputs: Mapping[str, str], draw: torch.Generator, name: str) -> Graph:
        """The graph of that name, checked with pictures that are drawn; ``outputs`` are described by name."""
        size = self.config.size
        told = {"pictures": f"uint8 [N, {size}, {size}, 3], RGB; mapped to [-1, 1] in the graph"} | dict(outputs)
        two, *others = (smooth_pictures(count, size, size, draw) for count in (2, 1, 3))
        return Graph(
            self, {"pictures": two}, tuple(outputs), told, {"pictures": {0: "N"}}, [(other,) for other in others],
            name, TOLERANCE,
        )  # fmt: skip
