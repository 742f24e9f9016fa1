"""What of this study leaves etude: the autoencoder, its slot library, and graphs for ONNX.

Shape suffixes as in model.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from etude.nn.graph import SLOT_TOLERANCE, FindsSlots, Graph, smooth_pictures
from etude.nn.pixels import prepare, to_bytes
from etude.scenes import slot_library
from etude.studies.slots.model import SlotAutoencoder
from etude.studies.slots.study import SlotsConfig

HUB_TASK = "image-segmentation"
companions = slot_library.companions


def networks(config: SlotsConfig, tensors: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """The network of an exported file, by the name its tensors have there."""
    return {"model": SlotAutoencoder(config.model)}


class Finds(FindsSlots):
    """Pictures as bytes ``[B, H, W, 3]`` to slots, masks and reconstructions.

    A Gaussian start is the one that `etude predict` draws under seed 0.
    """

    def __init__(self, model: SlotAutoencoder) -> None:
        super().__init__(model.config.num_slots, model.config.slot_size)
        self.model = model

    def forward(self, pictures_BHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        iterations = self.model.config.eval_iterations
        made_BCHW, named = self.model(
            prepare(pictures_BHWC), self.noise(pictures_BHWC), spread=0.0, iterations=iterations
        )
        return named["slots"], named["masks"], to_bytes(made_BCHW)


class Paints(nn.Module):
    """Slots ``[B, K, S]`` to pictures and masks."""

    def __init__(self, model: SlotAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, slots_BKS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made_BCHW, named = self.model.decode(slots_BKS)
        return to_bytes(made_BCHW), made_BCHW, named["masks"]


def graphs(config: SlotsConfig, modules: Mapping[str, nn.Module]) -> list[Graph]:
    """Pictures to slots, and slots to pictures."""
    model = modules["model"]
    assert isinstance(model, SlotAutoencoder)
    size, slots, width = config.model.size, config.model.num_slots, config.model.slot_size
    draw = torch.Generator().manual_seed(0)

    def pictures(count: int) -> Tensor:
        return smooth_pictures(count, size, size, draw)

    def vectors(count: int, number: int) -> Tensor:
        return torch.randn(count, number, width, generator=draw)

    masks = f"float32 [N, K, {size}, {size}], each slot's share of a pixel"
    finds = Graph(
        Finds(model), {"pictures": pictures(2)}, ("slots", "masks", "reconstructions"),
        {"pictures": f"uint8 [N, {size}, {size}, 3], RGB; mapped to [-1, 1] in the graph",
         "slots": f"float32 [N, {slots}, {width}]; a Gaussian start is that of seed 0", "masks": masks,
         "reconstructions": f"uint8 [N, {size}, {size}, 3], RGB"},
        {"pictures": {0: "N"}}, [(pictures(1),), (pictures(3),)], tolerance=SLOT_TOLERANCE,
    )  # fmt: skip
    paints = Graph(
        Paints(model), {"slots": vectors(2, slots)}, ("pictures", "values", "masks"),
        {"slots": f"float32 [N, K, {width}], any number of slots, in any order",
         "pictures": f"uint8 [N, {size}, {size}, 3], RGB",
         "values": f"float32 [N, 3, {size}, {size}], the same before rounding, about [-1, 1]", "masks": masks},
        {"slots": {0: "N", 1: "K"}}, [(vectors(1, 3),), (vectors(3, slots + 2),)], name="decoder",
    )  # fmt: skip
    return [finds, paints]
