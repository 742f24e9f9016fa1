"""The part of this study that leaves etude: the network that draws, and its graph for ONNX.

Shape suffixes as in model.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from etude.nn.graph import Graph
from etude.studies.dcgan.model import Generator
from etude.studies.dcgan.study import DCGANConfig
from etude.studies.dcgan.task import NUM_CLASSES, build_generator, to_bytes

HUB_TASK = "unconditional-image-generation"


def networks(config: DCGANConfig, tensors: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """The network of an exported file, by the name its tensors have there."""
    return {"generator": build_generator(config.model)}


class Draws(nn.Module):
    """Noise ``[N, Z]`` and, of a conditional generator, digits ``[N]`` to pictures."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, noise_NZ: Tensor, digits_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
        made_NCHW = self.generator(noise_NZ, digits_N)
        return to_bytes(made_NCHW)[:, 0], made_NCHW[:, 0]


def graphs(config: DCGANConfig, modules: Mapping[str, nn.Module]) -> list[Graph]:
    """Noise to digits."""
    generator = modules["generator"]
    assert isinstance(generator, Generator)
    draw = torch.Generator().manual_seed(0)
    size, noise = config.model.size, config.model.noise

    def given(count: int) -> dict[str, Tensor]:
        z_NZ = torch.randn(count, noise, generator=draw)
        return {"noise": z_NZ} | ({"digits": torch.arange(count) % NUM_CLASSES} if config.model.conditional else {})

    about = {
        "noise": f"float32 [N, {noise}], independent standard normal numbers",
        "digits": f"int64 [N], the digit to draw, 0 to {NUM_CLASSES - 1}",
        "pictures": f"uint8 [N, {size}, {size}], ink 255 on 0",
        "values": f"float32 [N, {size}, {size}], the same before rounding, in [-1, 1]",
    }
    examples = given(3)
    others = [tuple(given(count).values()) for count in (1, 20)]
    free = {name: {0: "N"} for name in examples}
    return [Graph(Draws(generator), examples, ("pictures", "values"), about, free, others)]
