"""The exports of this study: its network, and its graphs for ONNX.

Shape suffixes as in model.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from etude.nn.graph import Graph
from etude.studies.protonet.model import Distance, prototypes
from etude.studies.protonet.study import ProtonetConfig
from etude.studies.protonet.task import build_distance, build_encoder, to_input

HUB_TASK = "image-classification"


def networks(config: ProtonetConfig, tensors: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """The network of an exported file, by the name its tensors have there."""
    return {"encoder": build_encoder(config.model, config.data.size)}


class Embeds(nn.Module):
    """Drawings as bytes ``[N, H, W]`` to embeddings ``[N, D]``."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, drawings_NHW: Tensor) -> tuple[Tensor]:
        return (self.encoder(to_input(drawings_NHW))[0],)


class Classifies(nn.Module):
    """Support ``[N, K, H, W]`` and queries ``[Q, H, W]``, bytes, to distances and probabilities ``[Q, N]``."""

    def __init__(self, encoder: nn.Module, distance: Distance, temperature: float) -> None:
        super().__init__()
        self.embeds, self.distance, self.temperature = Embeds(encoder), distance, temperature

    def forward(self, support_NKHW: Tensor, queries_QHW: Tensor) -> tuple[Tensor, Tensor]:
        (z_MD,) = self.embeds(support_NKHW.flatten(0, 1))
        centres_ND = prototypes(z_MD.unflatten(0, support_NKHW.shape[:2]))
        distances_QN = self.distance(self.embeds(queries_QHW)[0], centres_ND)
        return distances_QN, (-distances_QN / self.temperature).softmax(-1)


def graphs(config: ProtonetConfig, modules: Mapping[str, nn.Module]) -> list[Graph]:
    """Drawings to embeddings, and a few examples a class with queries to distances."""
    side, encoder = config.data.size, modules["encoder"]
    draw = torch.Generator().manual_seed(0)

    def drawings(*shape: int) -> Tensor:
        return torch.randint(0, 256, (*shape, side, side), generator=draw, dtype=torch.uint8)

    ink = f"ink 255 on paper 0, the drawing in the middle of a square of {side} x {side} pixels"
    embeds = Graph(
        Embeds(encoder), {"drawings": drawings(3)}, ("embeddings",),
        {"drawings": f"uint8 [N, {side}, {side}], {ink}; scaled to [0, 1] in the graph",
         "embeddings": "float32 [N, D]"},
        {"drawings": {0: "N"}}, [(drawings(1),), (drawings(7),)],
    )  # fmt: skip
    classifies = Graph(
        Classifies(encoder, build_distance(config.model), config.model.temperature),
        {"support": drawings(3, 2), "queries": drawings(4)}, ("distances", "probabilities"),
        {"support": f"uint8 [N, K, {side}, {side}], K drawings of each of N classes, {ink}; scaled in the graph",
         "queries": f"uint8 [Q, {side}, {side}], likewise",
         "distances": f"float32 [Q, N], {config.model.distance}, from each query to each class's mean embedding",
         "probabilities": "float32 [Q, N], over the N classes"},
        {"support": {0: "N", 1: "K"}, "queries": {0: "Q"}},
        [(drawings(5, 1), drawings(1)), (drawings(2, 5), drawings(9))], name="classify",
    )  # fmt: skip
    return [embeds, classifies]
