"""An autoencoder whose bottleneck is a set of slots, one an object (Locatello et al. 2020).

Every slot is decoded by itself to a picture and a mask; a softmax over the slots makes the masks share each pixel:

$$m = \\operatorname{softmax}_{slots}(\\hat m), \\qquad \\hat x = \\sum_k m_k \\cdot c_k$$

Shape suffixes: B images, K slots, M = B K slots of all images, S a slot's size, C channels (3 colours), H W pixels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from etude.nn.conv import he_
from etude.nn.plugin import resolve
from etude.nn.user_part import tried_module
from etude.scenes.broadcast import BroadcastConv
from etude.scenes.encoder import PositionCode, build_encoder
from etude.scenes.slot_library import CARD
from etude.studies.slots.study import ModelConfig

MAPS = 4
"""The maps that a decoder makes of a slot: three colours, and the mask before the softmax."""
_KERNEL = 5


class BroadcastDecoder(nn.Module):
    """A slot at every place of a small map, positions added, and convolutions up to the picture's size.

    With a map of 8 x 8 and one further layer it is the decoder that Locatello et al. 2020 have for CLEVR (table 4);
    with a map of the picture's size and three layers that of their smaller sets (table 5). Layers that double the map
    are transposed 5x5 convolutions; the last one is 3x3.

    Where `coarse` is set, bilinear interpolation of the result stands in place of the last doubling, at a fifth of the
    cost. That layer begins as the interpolation of its channels, so that little changes when it takes over.

    Shape: ``[M, S]`` -> ``[M, 4, size, size]``.

    Args:
        slot_size: S.
        size: of the picture.
        side: of the map that the slots are put on; the size divided by a power of two.
        width: channels of each layer.
        layers: 5x5 convolutions at the picture's size before the last; at least one where ``side`` is the size.
        coarse: whether it begins coarse; there are two doublings at least and no further layers then.
    """

    stage: Tensor

    def __init__(
        self, slot_size: int, size: int, *, side: int = 8, width: int = 64, layers: int = 1, coarse: bool = False
    ) -> None:
        super().__init__()
        self.positions = PositionCode(slot_size, side, side)
        doublings = (size // side).bit_length() - 1
        assert side << doublings == size, "a map that doubles up to the picture"
        self.first = BroadcastConv(slot_size, width, _KERNEL, side, stride=2 if doublings else 1)
        options: dict[str, Any] = {"kernel_size": _KERNEL, "padding": _KERNEL // 2}
        ups = [nn.ConvTranspose2d(width, width, stride=2, output_padding=1, **options) for _ in range(doublings - 1)]
        self.ups = nn.ModuleList(ups)
        further = layers if doublings else layers - 1
        self.further = nn.ModuleList(nn.Conv2d(width, width, **options) for _ in range(further))
        self.last = nn.Conv2d(width, MAPS, 3, 1, 1)
        he_(self)
        nn.init.xavier_uniform_(self.last.weight)
        # With the weights, so that a checkpoint knows how it decodes.
        self.register_buffer("stage", torch.tensor(int(coarse)))
        self._coarse = coarse
        self.register_load_state_dict_post_hook(_note_stage)
        if coarse:
            assert ups, "a doubling to leave out"
            assert not further, "no layer after it"
            _interpolating_(ups[-1])

    @property
    def coarse(self) -> bool:
        """True while interpolation stands in place of the last doubling."""
        return self._coarse

    @coarse.setter
    def coarse(self, value: bool) -> None:
        self._coarse = value
        self.stage.fill_(int(value))

    def forward(self, slots_MS: Tensor) -> Tensor:
        x = functional.relu(self.first(slots_MS, self.positions()))
        layers = [*self.ups, *self.further]
        for layer in layers[:-1] if self._coarse else layers:
            # In place: no convolution needs its own result for its gradient.
            x = layer(x).relu_()
        x = self.last(x)
        if not self._coarse:
            return x
        x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        # Several processes wait for a gradient of every parameter.
        return x + 0 * torch.stack([parameter.sum() for parameter in layers[-1].parameters()]).sum()


def _note_stage(decoder: nn.Module, _: Any) -> None:
    assert isinstance(decoder, BroadcastDecoder)
    decoder.coarse = bool(decoder.stage)


@torch.no_grad()
def _interpolating_(up: nn.ConvTranspose2d) -> None:
    """Make a doubling layer the bilinear interpolation of each channel."""
    # Every second result lies on a value, the others between two: half a pixel off `interpolate`'s.
    line = torch.tensor([0.0, 0.5, 1.0, 0.5, 0.0])
    up.weight.zero_()
    for channel in range(up.in_channels):
        up.weight[channel, channel] = line[:, None] * line[None, :]
    if up.bias is not None:
        up.bias.zero_()


DECODERS: dict[str, Any] = {"broadcast": BroadcastDecoder}


def make_decoder(name: str, slot_size: int, size: int, **options: Any) -> nn.Module:
    """A decoder by its name in `DECODERS`, or a user's own as ``path/to/file.py:Name``, tried out at once.

    A user's own is made with the slots' and the pictures' size, a built-in one with the options too.
    """
    kind = resolve(name, DECODERS, "decoder")
    if name in DECODERS:
        return kind(slot_size, size, **options)
    zeros, wanted = torch.zeros(2, slot_size), [2, MAPS, size, size]
    return tried_module(f"decoder {name}", lambda: kind(slot_size, size), [zeros], wanted)[0]


class SlotAutoencoder(nn.Module):
    """Encoder, Slot Attention, decoder.

    ``coarse`` says whether a broadcast decoder begins coarse. ``forward`` takes pictures ``[B, 3, H, W]`` in [-1, 1],
    see `prepare`, and returns their reconstructions and the intermediates by name: ``slots`` ``[B, K, S]``,
    ``attention`` ``[B, T, K, N]``, ``contents`` ``[B, K, 3, H, W]`` and ``masks`` ``[B, K, H, W]``.
    """

    def __init__(self, config: ModelConfig, *, coarse: bool = False) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.decoder = make_decoder(
            config.decoder, config.slot_size, config.size, side=config.broadcast, width=config.decoder_width,
            layers=config.decoder_layers, coarse=coarse,
        )  # fmt: skip

    def forward(
        self, images_BCHW: Tensor, noise_BKS: Tensor | None = None, *, spread: float = 1.0,
        iterations: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        found = self.encoder(images_BCHW, noise_BKS, spread=spread, iterations=iterations)
        image_BCHW, named = self.decode(found.slots_BKS)
        return image_BCHW, {"slots": found.slots_BKS, "attention": found.attention_BTKN, **named}

    def decode(self, slots_BKS: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures of any number of slots; their order means nothing."""
        maps_BKCHW = self.decoder(slots_BKS.flatten(0, 1)).unflatten(0, slots_BKS.shape[:2])
        contents_BKCHW, logits_BKHW = maps_BKCHW[:, :, :3].float(), maps_BKCHW[:, :, 3].float()
        masks_BKHW = functional.softmax(logits_BKHW, 1)
        image_BCHW = (masks_BKHW[:, :, None] * contents_BKCHW).sum(1)
        return image_BCHW, {"contents": contents_BKCHW, "masks": masks_BKHW}

    @torch.no_grad()
    def card(self, slots_KS: Tensor) -> Tensor:
        """The picture of some slots, made as small as ``[3, 8, 8]``, by which a slot library knows the model."""
        image_BCHW, _ = self.decode(slots_KS[None].to(next(self.parameters()).device))
        return functional.adaptive_avg_pool2d(image_BCHW[0].float().cpu(), CARD)
