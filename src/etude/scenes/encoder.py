"""The way from pictures to slots: a convolutional network, a code of positions, a small network, Slot Attention.

Shape suffixes: B images, C channels, H W pixels, h w places of a feature map, N = h w inputs, D their channels,
K slots, S a slot's size.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from etude.nn.conv import he_
from etude.nn.fast_norms import GroupNorm
from etude.nn.norms import choose_groups
from etude.nn.plugin import resolve
from etude.nn.user_part import tried_module
from etude.scenes.config import SlotEncoderConfig
from etude.scenes.slot_attention import SlotAttention, Slots, glorot_
from etude.scenes.slot_attention_plain import PlainSlotAttention


class PositionCode(nn.Module):
    """A learned linear map of how far a place is from each side: ``[y, x, 1 - y, 1 - x]``, each from 0 to 1.

    Locatello et al. 2020, appendix E.2, where it is called a soft position embedding.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, channels)
        glorot_(self)
        y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
        self.grid_HW4: Tensor
        self.register_buffer("grid_HW4", torch.stack([y, x, 1 - y, 1 - x], -1), persistent=False)

    def forward(self) -> Tensor:
        """The code ``[C, h, w]``."""
        return self.linear(self.grid_HW4).permute(2, 0, 1)


class ConvEncoder(nn.Sequential):
    """Four 5x5 convolutions, each followed by a ReLU.

    Shape: ``[B, 3, H, W]`` -> ``[B, channels, h, w]``.
    Source: Locatello et al. 2020, table 3, strides of 1; the course's report of seed 003 has strides 1, 2, 2, 1.
    """

    def __init__(self, channels: int, strides: Sequence[int] = (1, 1, 1, 1)) -> None:
        layers: list[nn.Module] = []
        for place, stride in enumerate(strides):
            layers += [nn.Conv2d(channels if place else 3, channels, 5, stride, padding=2), nn.ReLU(inplace=True)]
        super().__init__(*layers)
        # With less, the features are so small beside the positions that slots see where things are, not what.
        he_(self)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each normalised over groups of channels, and a shortcut (He et al. 2016, figure 2).

    Shape: ``[B, in_channels, H, W]`` -> ``[B, channels, ceil(H / stride), ceil(W / stride)]``.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = _group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = _group_norm(channels)
        self.projection: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            conv = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.projection = nn.Sequential(conv, _group_norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(y + self.projection(x))


class ResNet18Encoder(nn.Module):
    """ResNet-18 with group norms, for small pictures, then a 1x1 convolution.

    The stem is a 3x3 convolution without pooling, and of the four stages of two blocks the second and the third halve
    the map, so that it ends at a quarter of the picture: 32 x 32 places of 128 x 128 pixels, as the report of seed 000
    has it. 11,168,832 parameters but for the last convolution, with 64 filters in the stem.

    Shape: ``[B, 3, H, W]`` -> ``[B, channels, H / 4, W / 4]``.
    Source: He et al. 2016, table 1; Wu and He 2018 for the norms.

    Args:
        channels: of the result.
        width: filters of the stem and the first stage; each stage has twice as many as the one before.
        stages: 4, or 3 (2,775,104 parameters), which leaves out the last.
        projection: whether the last convolution is there; else ``channels`` is what the last stage has.
    """

    def __init__(self, channels: int, width: int = 64, stages: int = 4, *, projection: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = _group_norm(width)
        blocks: list[nn.Module] = []
        before = width
        for stage, stride in enumerate((1, 2, 2, 1)[:stages]):
            for number in range(2):
                blocks.append(ResidualBlock(before, width * 2**stage, stride if number == 0 else 1))
                before = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Conv2d(before, channels, 1) if projection else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks(functional.relu(self.norm(self.conv(x)))))


def _group_norm(channels: int) -> GroupNorm:
    return GroupNorm(channels, choose_groups(channels, 32))


ENCODERS: dict[str, Any] = {"conv": ConvEncoder, "resnet18": ResNet18Encoder}


def make_encoder(name: str, channels: int, size: int, **options: Any) -> tuple[nn.Module, tuple[int, int]]:
    """An encoder by its name in `ENCODERS`, or a user's own as ``path/to/file.py:Name``, tried out at once.

    A user's own is made with ``channels`` alone, a built-in one with the options too.

    Returns:
        The module, which maps ``[B, 3, size, size]`` to ``[B, channels, h, w]``, and h and w.
    """
    kind = resolve(name, ENCODERS, "encoder")
    given = options if name in ENCODERS else {}
    zeros, wanted = torch.zeros(1, 3, size, size), [1, channels, "h", "w"]
    encoder, answer = tried_module(f"encoder {name}", lambda: kind(channels, **given), [zeros], wanted)
    height, width = answer.shape[-2:]
    return encoder, (height, width)


class SlotEncoder(nn.Module):
    """Pictures to slots, as figure 2 of the assignment (seed 001) and Locatello et al. 2020, section 3.1.

    Its encoder maps pictures to ``[B, channels, h, w]``, ``places`` are h and w, and ``features`` is D
    (None: the same number).
    """

    def __init__(
        self, encoder: nn.Module, places: tuple[int, int], channels: int, attention: SlotAttention,
        features: int | None = None,
    ) -> None:  # fmt: skip
        features = features or channels
        super().__init__()
        self.places = places
        self.encoder = encoder
        self.positions = PositionCode(channels, *places)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, features), nn.ReLU(), nn.Linear(features, features))
        glorot_(self.mlp)
        self.attention = attention

    def features(self, images_BCHW: Tensor) -> Tensor:
        """The inputs that the slots attend to, ``[B, N, D]``; places row by row."""
        x_BNhw = self.encoder(images_BCHW) + self.positions()
        return self.mlp(self.norm(x_BNhw.flatten(2).mT))

    def forward(
        self, images_BCHW: Tensor, noise_BKS: Tensor | None = None, *, spread: float = 1.0,
        iterations: int | None = None,
    ) -> Slots:  # fmt: skip
        """The slots and their attention; see `SlotAttention.forward`."""
        return self.attention(self.features(images_BCHW), noise_BKS, spread=spread, iterations=iterations)


def build_encoder(config: SlotEncoderConfig) -> SlotEncoder:
    """The network of a configuration."""
    options: dict[str, dict[str, Any]] = {
        "conv": {"strides": config.strides},
        "resnet18": {
            "width": config.encoder_width, "stages": config.encoder_stages, "projection": config.encoder_projection,
        },
    }  # fmt: skip
    unprojected = config.encoder == "resnet18" and not config.encoder_projection
    channels = config.encoder_width << config.encoder_stages - 1 if unprojected else config.features
    encoder, places = make_encoder(config.encoder, channels, config.size, **options.get(config.encoder, {}))
    kind = PlainSlotAttention if config.form == "plain" else SlotAttention
    attention = kind(
        config.num_slots, config.features, config.slot_size, iterations=config.iterations, hidden=config.hidden,
        init=config.init, implicit=config.implicit,
    )  # fmt: skip
    return SlotEncoder(encoder, places, channels, attention, config.features)


def noise_scale(step: int, steps: int) -> float:
    """The factor of the noise of ``bilevel`` slots: from 1 to 0 by half a cosine over some steps; 0 steps: no noise.

    After Jia et al. 2023, who let it fade over the first 30,000.
    """
    return (1 + math.cos(math.pi * min(1.0, step / steps))) / 2 if steps else 0.0
