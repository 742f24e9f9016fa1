"""What of this study leaves etude: the autoencoder, its slot library, and graphs for ONNX.

Shape suffixes as in model.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from etude.core import randomness
from etude.nn import slot_library
from etude.nn.graph import Graph
from etude.nn.pixels import prepare, to_bytes
from etude.studies.slots.model import SlotAutoencoder
from etude.studies.slots.study import SlotsConfig

HUB_TASK = "image-segmentation"
TOLERANCE = 1e-3
"""Of slots: every iteration enlarges the rounding of the one before it."""
companions = slot_library.companions


def networks(config: SlotsConfig, tensors: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """The network of an exported file, by the name its tensors have there."""
    return {"model": SlotAutoencoder(config.model)}


class Finds(nn.Module):
    """Pictures as bytes ``[B, H, W, 3]`` to slots, masks and reconstructions.

    A Gaussian start is the one that `etude predict` draws under seed 0.
    """

    def __init__(self, model: SlotAutoencoder) -> None:
        super().__init__()
        self.model = model
        config = model.config
        draw = randomness.generator(0, "predict/slots", 0)
        self.noise_1KS: Tensor
        self.register_buffer("noise_1KS", torch.randn(1, config.num_slots, config.slot_size, generator=draw))

    def forward(self, pictures_BHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noise_BKS = self.noise_1KS.expand(pictures_BHWC.shape[0], -1, -1)
        iterations = self.model.config.eval_iterations
        made_BCHW, named = self.model(prepare(pictures_BHWC), noise_BKS, spread=0.0, iterations=iterations)
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
        # Smooth ones, as photographs are: of white noise no slot wins a place, and rounding decides.
        coarse = torch.rand(count, 3, 4, 4, generator=draw)
        fine = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
        return (fine * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def vectors(count: int, number: int) -> Tensor:
        return torch.randn(count, number, width, generator=draw)

    masks = f"float32 [N, K, {size}, {size}], each slot's share of a pixel"
    finds = Graph(
        Finds(model), {"pictures": pictures(2)}, ("slots", "masks", "reconstructions"),
        {"pictures": f"uint8 [N, {size}, {size}, 3], RGB; mapped to [-1, 1] in the graph",
         "slots": f"float32 [N, {slots}, {width}]; a Gaussian start is that of seed 0", "masks": masks,
         "reconstructions": f"uint8 [N, {size}, {size}, 3], RGB"},
        {"pictures": {0: "N"}}, [(pictures(1),), (pictures(3),)], tolerance=TOLERANCE,
    )  # fmt: skip
    paints = Graph(
        Paints(model), {"slots": vectors(2, slots)}, ("pictures", "values", "masks"),
        {"slots": f"float32 [N, K, {width}], any number of slots, in any order",
         "pictures": f"uint8 [N, {size}, {size}, 3], RGB",
         "values": f"float32 [N, 3, {size}, {size}], the same before rounding, about [-1, 1]", "masks": masks},
        {"slots": {0: "N", 1: "K"}}, [(vectors(1, 3),), (vectors(3, slots + 2),)], name="decoder",
    )  # fmt: skip
    return [finds, paints]
