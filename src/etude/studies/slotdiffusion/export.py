"""What of this study leaves etude: its networks, its slot library, and graphs for ONNX.

Shape suffixes as in model.py and vae.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from etude.nn.graph import SLOT_TOLERANCE, FindsSlots, Graph, smooth_pictures
from etude.nn.pixels import prepare, to_bytes
from etude.scenes import slot_library
from etude.studies.slotdiffusion.model import SlotDiffusion, attention_masks
from etude.studies.slotdiffusion.study import UNTRAINED, SlotDiffusionConfig
from etude.studies.slotdiffusion.vae import VAE
from etude.studies.slotdiffusion.vae_files import build_vae

HUB_TASK = "image-to-image"
ALONE = {"vae.weights": UNTRAINED}
"""Settings of a run that only has what was exported: the autoencoder's weights lie among its own."""
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
        # Bytes are in range, which `encode` would look for and a graph cannot ask.
        encoded = self.vae.quant_conv(self.vae.encoder(prepare(pictures_BHWC)))
        return (encoded.chunk(2, 1)[0] if self.vae.kind == "kl" else encoded,)


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

    def __init__(self, model: SlotDiffusion) -> None:
        super().__init__(model.config.num_slots, model.config.slot_size)
        self.model = model

    def forward(self, pictures_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        encoder, config = self.model.encoder, self.model.config
        found = encoder(
            prepare(pictures_BHWC), self.noise(pictures_BHWC), spread=0.0, iterations=config.eval_iterations
        )
        return found.slots_BKS.float(), attention_masks(found.attention_BTKN, encoder.places, config.size)


def graphs(config: SlotDiffusionConfig, modules: Mapping[str, nn.Module]) -> list[Graph]:
    """The autoencoder's two halves and, of the second phase, pictures to slots; the sampler is no graph."""
    vae = modules["vae"]
    assert isinstance(vae, VAE)
    draw = torch.Generator().manual_seed(0)
    stride, channels, size = vae.stride, vae.latent_channels, config.model.size

    def pictures(count: int, height: int, width: int) -> Tensor:
        return smooth_pictures(count, height, width, draw)

    def latents(count: int, height: int, width: int) -> Tensor:
        return torch.randn(count, channels, height, width, generator=draw)

    sides = {1: stride * torch.export.Dim("h", min=2, max=1024), 2: stride * torch.export.Dim("w", min=2, max=1024)}
    kind = "the mean" if vae.kind == "kl" else "before rounding to codes"
    pixels = f"uint8 [N, H, W, 3], RGB, both sides multiples of {stride}"
    found = [
        Graph(
            Encodes(vae), {"pictures": pictures(2, 4 * stride, 6 * stride)}, ("latents",),
            {"pictures": f"{pixels}; trained on {size} x {size}; mapped to [-1, 1] in the graph",
             "latents": f"float32 [N, {channels}, H / {stride}, W / {stride}], {kind}, not scaled"},
            {"pictures": {0: "N", **sides}},
            [(pictures(1, 8 * stride, 8 * stride),), (pictures(3, 2 * stride, 4 * stride),)], name="encoder",
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
    model = modules.get("model")
    if model is not None:
        assert isinstance(model, SlotDiffusion)
        slots, width = config.model.num_slots, config.model.slot_size
        found.append(Graph(
            Finds(model), {"pictures": pictures(2, size, size)}, ("slots", "masks"),
            {"pictures": f"uint8 [N, {size}, {size}, 3], RGB; mapped to [-1, 1] in the graph",
             "slots": f"float32 [N, {slots}, {width}]; a Gaussian start is that of seed 0",
             "masks": f"float32 [N, {slots}, {size}, {size}], each slot's share of a pixel by its attention"},
            {"pictures": {0: "N"}}, [(pictures(1, size, size),), (pictures(3, size, size),)], name="slots",
            tolerance=SLOT_TOLERANCE,
        ))  # fmt: skip
    return found
