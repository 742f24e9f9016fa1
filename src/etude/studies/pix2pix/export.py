"""The part of this study that leaves etude: the generator, and its graph for ONNX.

Shape suffixes as in model.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from etude.core import randomness
from etude.nn.graph import Graph
from etude.nn.pixels import prepare, to_bytes
from etude.studies.pix2pix.model import Generator
from etude.studies.pix2pix.study import Pix2PixConfig
from etude.studies.pix2pix.task import build_generator

HUB_TASK = "image-to-image"


def networks(config: Pix2PixConfig, tensors: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """The network of an exported file, by the name its tensors have there."""
    return {"generator": build_generator(config.model)}


class Translates(nn.Module):
    """Pictures as bytes to pictures as bytes, with the dropout that `etude predict` has under seed 0."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator
        masks = generator.noise(1, randomness.generator(0, "predict/noise", 0)) if generator.dropout else []
        self.noisy = len(masks)
        for layer, mask in enumerate(masks):
            self.register_buffer(f"mask{layer}", mask)

    def forward(self, pictures_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        masks = [self.get_buffer(f"mask{layer}") for layer in range(self.noisy)]
        noise = [mask.expand(pictures_NHWC.shape[0], -1, -1, -1) for mask in masks]
        made_NCHW = self.generator(prepare(pictures_NHWC), noise)
        return to_bytes(made_NCHW), made_NCHW


def graphs(config: Pix2PixConfig, modules: Mapping[str, nn.Module]) -> list[Graph]:
    """Pictures to pictures."""
    generator = modules["generator"]
    assert isinstance(generator, Generator)
    size = config.model.size
    draw = torch.Generator().manual_seed(0)

    def pictures(count: int) -> Tensor:
        return torch.randint(0, 256, (count, size, size, 3), generator=draw, dtype=torch.uint8)

    about = {
        "pictures": f"uint8 [N, {size}, {size}, 3], RGB, shrunk as the training pictures were (`scale` of the extra); "
        "mapped to [-1, 1] in the graph",
        "translations": f"uint8 [N, {size}, {size}, 3], RGB; with dropout, that of seed 0",
        "values": f"float32 [N, 3, {size}, {size}], the same before rounding, in [-1, 1]",
    }
    outputs = ("translations", "values")
    return [Graph(Translates(generator), {"pictures": pictures(2)}, outputs, about, {"pictures": {0: "N"}},
                  [(pictures(1),), (pictures(3),)])]  # fmt: skip
