"""The parts of this study that leave etude: its networks, its slot library, and graphs for ONNX.

Shape suffixes as in model.py and vae.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from etude.nn.graph import Graph
from etude.nn.pixels import prepare, to_bytes
from etude.scenes import slot_library
from etude.scenes.export import FindsSlots, smooth_pictures
from etude.studies.slotdiffusion.model import SlotDiffusion, attention_masks
from etude.studies.slotdiffusion.study import UNTRAINED, SlotDiffusionConfig
from etude.studies.slotdiffusion.vae import VAE
from etude.studies.slotdiffusion.vae_files import build_vae

HUB_TASK = "image-to-image"
ALONE = {"vae.weights": UNTRAINED}
"""The settings of a run that only has what was exported: the autoencoder's weights lie among its own."""
companions = slot_library.companions


def networks(config: SlotDiffusionConfig, tensors: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """The networks of an exported file, by the names their tensors have there."""
    vae: dict[str, nn.Module] = {"vae": build_vae(config.vae)}
    return vae if config.phase == "vae" else {"model": SlotDiffusion(config.model, config.vae.channels), **vae}


class Encodes(nn.Module):
    """Pictures as bytes ``[B, H, W, 3]`` to latents ``[B, D, h, w]``, see `VAE.encode`."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pictures_BHWC: Tensor) -> tuple[Tensor]:
        return (self.vae.encode(prepare(pictures_BHWC)),)


class Decodes(nn.Module):
    """Latents ``[B, D, h, w]`` to pictures, see `VAE.decode`."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z_BDhw: Tensor) -> tuple[Tensor, Tensor]:
        if self.vae.kind == "vq":
            # All distances at once: a graph cannot take them in as many parts as there is memory for.
            codes_KD = self.vae.quantize.embedding.weight
            z_MD = z_BDhw.movedim(1, -1).flatten(0, 2)
            codes_M = (codes_KD.square().sum(1) - 2 * z_MD @ codes_KD.mT).argmin(1)
            z_BDhw = codes_KD[codes_M].unflatten(0, (z_BDhw.shape[0], *z_BDhw.shape[2:])).movedim(-1, 1)
        made_BCHW = self.vae.decode(z_BDhw, quantize=False)
        return to_bytes(made_BCHW), made_BCHW


class Finds(FindsSlots):
    """Pictures as bytes ``[B, H, W, 3]`` to slots and their shares of each pixel, as `etude predict` under seed 0."""

    def forward(self, pictures_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model(
            prepare(pictures_BHWC), self.noise(pictures_BHWC), spread=0.0, iterations=self.config.eval_iterations
        )
        return found.slots_BKS.float(), attention_masks(found.attention_BTKN, self.model.places, self.config.size)


def graphs(config: SlotDiffusionConfig, modules: Mapping[str, nn.Module]) -> list[Graph]:
    """The autoencoder's two halves and, of the second phase, pictures to slots; the sampler is no graph."""
    vae = modules["vae"]
    assert isinstance(vae, VAE)
    draw = torch.Generator().manual_seed(0)
    stride, channels, size = vae.stride, vae.latent_channels, config.model.size

    def pictures(count: int, height: int, width: int) -> Tensor:
        return smooth_pictures(count, height * stride, width * stride, draw)

    def latents(count: int, height: int, width: int) -> Tensor:
        return torch.randn(count, channels, height, width, generator=draw)

    sides = {1: stride * torch.export.Dim("h", min=2, max=1024), 2: stride * torch.export.Dim("w", min=2, max=1024)}
    kind = "the mean" if vae.kind == "kl" else "before rounding to codes"
    pixels = f"uint8 [N, H, W, 3], RGB, both sides multiples of {stride}"
    found = [
        Graph(
            Encodes(vae), {"pictures": pictures(2, 4, 6)}, ("latents",),
            {"pictures": f"{pixels}; trained on {size} x {size}; mapped to [-1, 1] in the graph",
             "latents": f"float32 [N, {channels}, H / {stride}, W / {stride}], {kind}, not scaled"},
            {"pictures": {0: "N", **sides}},
            [(pictures(1, 8, 8),), (pictures(3, 2, 4),)], name="encoder",
        ),
        Graph(
            Decodes(vae), {"latents": latents(2, 4, 6)}, ("pictures", "values"),
            {"latents": f"float32 [N, {channels}, H / {stride}, W / {stride}], not scaled"
                        + ("; rounded to codes in the graph" if vae.kind == "vq" else ""),
             "pictures": pixels, "values": "float32 [N, 3, H, W], the same before rounding, about [-1, 1]"},
            {"latents": {0: "N", 2: torch.export.Dim("h", min=2, max=1024), 3: torch.export.Dim("w", min=2, max=1024)}},
            [(latents(1, 8, 8),), (latents(3, 2, 5),)], name="decoder",
        ),
    ]  # fmt: skip
    if "model" in modules:
        model = modules["model"]
        assert isinstance(model, SlotDiffusion)
        finds = Finds(model.encoder, config.model)
        masks = f"float32 [N, {config.model.num_slots}, {size}, {size}], each slot's share of a pixel by its attention"
        found.append(finds.graph({"slots": finds.about, "masks": masks}, draw, "slots"))
    return found
