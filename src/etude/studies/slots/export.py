"""The parts of this study that leave etude: the autoencoder, its slot library, and graphs for ONNX.

Shape suffixes as in model.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from etude.nn.graph import Graph
from etude.nn.pixels import prepare, to_bytes
from etude.scenes import slot_library
from etude.scenes.export import FindsSlots
from etude.studies.slots.model import SlotAutoencoder
from etude.studies.slots.study import SlotsConfig

HUB_TASK = "image-segmentation"
companions = slot_library.companions


def networks(config: SlotsConfig, tensors: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """The network of an exported file, by the name its tensors have there."""
    return {"model": SlotAutoencoder(config.model)}


class Finds(FindsSlots):
    """Pictures as bytes ``[B, H, W, 3]`` to slots, masks and reconstructions."""

    def forward(self, pictures_BHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        iterations = self.config.eval_iterations
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
    masks, pictures = (
        f"float32 [N, K, {size}, {size}], each slot's share of a pixel",
        f"uint8 [N, {size}, {size}, 3], RGB",
    )
    finds = Finds(model, config.model)
    found = finds.graph({"slots": finds.about, "masks": masks, "reconstructions": pictures}, draw, "model")
    two, *others = (torch.randn(*shape, width, generator=draw) for shape in ((2, slots), (1, 3), (3, slots + 2)))
    paints = Graph(
        Paints(model), {"slots": two}, ("pictures", "values", "masks"),
        {"slots": f"float32 [N, K, {width}], any number of slots, in any order",
         "pictures": pictures,
         "values": f"float32 [N, 3, {size}, {size}], the same before rounding, about [-1, 1]",
         "masks": masks},
        {"slots": {0: "N", 1: "K"}}, [(other,) for other in others], name="decoder",
    )  # fmt: skip
    return [found, paints]
