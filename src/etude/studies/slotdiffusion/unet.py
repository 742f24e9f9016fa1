r"""The U-Net that predicts the noise in a latent picture, told of the objects by slots.

The residual block, the transformer block and the order of the blocks with four levels are those of the report of seed
000 (its listings of part 2); the assignment of seed 001, section 2.2.2, asks for the same parts. On the way down a
level has ``depth`` residual blocks, on the way up one more, and each of them is given one map of the way down:

    conv1                                                          the full map, no transformers
    R1         R2         D1                                         skips: conv1, R1, R2, D1
    R3 T1      R4 T2      D2                                                T1, T2, D2
    R5 T3      R6 T4      D3                                                T3, T4, D3
    R7 T5      R8 T6                                                        T5, T6
    R9 T7      R10                                                 the middle
    R11 T8     R12 T9     R13 T10   U1                              taken: T6, T5, D3
    R14 T11    R15 T12    R16 T13   U2                                     T4, T3, D2
    R17 T14    R18 T15    R19 T16   U3                                     T2, T1, D1
    R20        R21        R22                                              R2, R1, conv1
    norm, SiLU, conv2

What the seeds leave open: the feed-forward network is two linear layers with a GELU, four times as wide in between;
only residual blocks have dropout; queries, keys and values have no bias; norms of maps take 32 groups of channels, or
fewer where there are fewer than 64. The second convolution of a residual block and the last convolution begin at zero
(Ho et al. 2020, in their code), so a block begins as its first stage, and the network by predicting zero. All else
begins as PyTorch has it.

Keys and values depend on the slots alone, not on the map or the time: `UNet.context` makes those of all layers, and
they serve all steps of a sampler.

Shape suffixes: B images, C channels, H W places of the map, N = H W of them in a row, E the size of the time's
embedding, K slots, S a slot's size, D a head's size; M = number of heads.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from etude.core.errors import UserError
from etude.nn.norms import choose_groups

Mode = Literal["normal", "down", "up"]
Blocks = Literal["course", "latent"]
KeysAndValues = tuple[Tensor, Tensor]
"""The keys and values of one layer: ``[B, M, K, D]`` each."""
GROUPS = 32


def _group_norm(channels: int) -> nn.GroupNorm:
    # PyTorch's one kernel takes less time and memory than etude's own.
    return nn.GroupNorm(choose_groups(channels, GROUPS), channels)


# --- time ---


def time_code(t_B: Tensor, size: int) -> Tensor:
    r"""Sines, then cosines, of the time at rates from 1 to 1/10000: ``[B, size]``, float32 at least.

    $$\sin(r_i t), \quad \cos(r_i t), \qquad r_i = 10000^{-i / (n - 1)}, \quad i = 0, \dots, n - 1, \quad n = size / 2$$

    The size is even, at least 4. Source: Vaswani et al. 2017, section 3.5, with the spacing of Ho et al. 2020.
    """
    half = size // 2
    t_B = t_B.to(torch.promote_types(t_B.dtype, torch.float32))
    places = torch.arange(half, dtype=t_B.dtype, device=t_B.device)
    angles = t_B[:, None] * torch.exp(places * (-math.log(10000) / (half - 1)))
    return torch.cat((angles.sin(), angles.cos()), -1)


class TimeEmbedding(nn.Module):
    """The code of the time, a linear layer, SiLU, a linear layer (Ho et al. 2020, appendix B), and SiLU again.

    Every residual block begins with the SiLU of the embedding, so it is here, once.

    Shape: ``[B]`` -> ``[B, size]``.
    """

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.width = width
        self.linear1 = nn.Linear(width, size)
        self.linear2 = nn.Linear(size, size)

    def forward(self, t_B: Tensor) -> Tensor:
        code = time_code(t_B, self.width).to(self.linear1.weight.dtype)
        return functional.silu(self.linear2(functional.silu(self.linear1(code))))


# --- blocks ---


class ResidualBlock(nn.Module):
    r"""Two stages, the time added between them; the shortcut is round the second alone.

    $$h = f(\operatorname{SiLU}(\operatorname{GN}(x))) + W e, \qquad
    y = h + \operatorname{conv}(\operatorname{dropout}(\operatorname{SiLU}(\operatorname{GN}(h))))$$

    $f$ is a 3x3 convolution; the average of each 2 x 2 places where the map is halved; bilinear interpolation where it
    is doubled. The last two keep the channels.

    Shape: ``[B, in_channels, H, W]``, ``[B, E]`` -> ``[B, channels, H', W']``.
    Dropout is drawn from the global generator, which the loop keys in each step.
    """

    def __init__(
        self, in_channels: int, channels: int, time_size: int, *, mode: Mode = "normal", dropout: float = 0.0
    ) -> None:
        super().__init__()
        assert mode == "normal" or in_channels == channels, "pooling and interpolation keep the channels"
        self.mode: Mode = mode
        self.norm1 = _group_norm(in_channels)
        # The time's layer has a bias already.
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False) if mode == "normal" else None
        self.time = nn.Linear(time_size, channels)
        self.norm2 = _group_norm(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        _zero_(self.conv2)

    def forward(self, x_BCHW: Tensor, time_BE: Tensor) -> Tensor:
        """The map; ``time_BE`` has gone through SiLU, and may be ``[1, E]``."""
        h = functional.silu(self.norm1(x_BCHW))
        if self.conv1 is not None:
            h = self.conv1(h)
        elif self.mode == "down":
            h = functional.avg_pool2d(h, 2)
        else:
            h = functional.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False)
        h = h + self.time(time_BE)[:, :, None, None]
        return h + self.conv2(self.dropout(functional.silu(self.norm2(h))))


class LatentResidualBlock(ResidualBlock):
    r"""The residual block of latent diffusion: the shortcut goes round all of it, by a 1x1 convolution if need be.

    Shape and arguments: see `ResidualBlock`; it keeps the size of the map.
    """

    def __init__(self, in_channels: int, channels: int, time_size: int, *, dropout: float = 0.0) -> None:
        super().__init__(in_channels, channels, time_size, dropout=dropout)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == channels else nn.Conv2d(in_channels, channels, 1)

    def forward(self, x_BCHW: Tensor, time_BE: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x_BCHW))) + self.time(time_BE)[:, :, None, None]
        return self.shortcut(x_BCHW) + self.conv2(self.dropout(functional.silu(self.norm2(h))))


class Resize(nn.Module):
    """A 3x3 convolution that halves the map by its stride, or follows a doubling (nearest neighbour).

    Shape: ``[B, C, H, W]`` -> ``[B, C, H', W']``; the time is not used.
    """

    def __init__(self, channels: int, mode: Mode) -> None:
        super().__init__()
        self.mode: Mode = mode
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if mode == "down" else 1, padding=1)

    def forward(self, x_BCHW: Tensor, _time_BE: Tensor) -> Tensor:
        return self.conv(x_BCHW if self.mode == "down" else functional.interpolate(x_BCHW, scale_factor=2.0))


def _zero_(conv: nn.Conv2d) -> None:
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)


def _heads(x_BNC: Tensor, heads: int) -> Tensor:
    """Channels parted among the heads: ``[B, M, N, D]``, no copy."""
    return x_BNC.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(q_BMND: Tensor, k_BMKD: Tensor, v_BMKD: Tensor) -> Tensor:
    """Every query's mean of the values, the heads side by side again: ``[B, N, C]``."""
    return functional.scaled_dot_product_attention(q_BMND, k_BMKD, v_BMKD).transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """The places of a map ask each other (Vaswani et al. 2017, section 3.2.2).

    Shape: ``[B, N, C]`` -> ``[B, N, C]``.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # Three layers in one.
        self.queries_keys_values = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, x_BNC: Tensor) -> Tensor:
        q, k, v = (_heads(part, self.heads) for part in self.queries_keys_values(x_BNC).chunk(3, -1))
        return self.out(_attend(q, k, v))


class CrossAttention(nn.Module):
    """The places of a map ask the slots.

    Shape: ``[B, N, C]`` and what `keys_and_values` made -> ``[B, N, C]``.
    """

    def __init__(self, channels: int, slot_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries = nn.Linear(channels, channels, bias=False)
        self.to_keys_and_values = nn.Linear(slot_size, 2 * channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def keys_and_values(self, slots_BKS: Tensor) -> KeysAndValues:
        keys, values = self.to_keys_and_values(slots_BKS).chunk(2, -1)
        return _heads(keys, self.heads), _heads(values, self.heads)

    def forward(self, x_BNC: Tensor, keys_and_values: KeysAndValues) -> Tensor:
        return self.out(_attend(_heads(self.queries(x_BNC), self.heads), *keys_and_values))


class TransformerBlock(nn.Module):
    r"""Self-attention, attention to the slots, two linear layers; each normalised, then added.

    $$x \leftarrow x + \operatorname{LN}(f(x))$$

    The norm is of what is added, as the seed has it, not of what goes in.

    Shape: ``[B, C, H, W]`` -> ``[B, C, H, W]``. A map that is channels last in memory is not copied.
    """

    def __init__(self, channels: int, slot_size: int, heads: int) -> None:
        super().__init__()
        self.attention1 = SelfAttention(channels, heads)
        self.attention2 = CrossAttention(channels, slot_size, heads)
        self.feed_forward = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))

    def forward(self, x_BCHW: Tensor, keys_and_values: KeysAndValues) -> Tensor:
        x_BNC = x_BCHW.permute(0, 2, 3, 1).flatten(1, 2)
        x_BNC = x_BNC + self.norm1(self.attention1(x_BNC))
        x_BNC = x_BNC + self.norm2(self.attention2(x_BNC, keys_and_values))
        x_BNC = x_BNC + self.norm3(self.feed_forward(x_BNC))
        return x_BNC.unflatten(1, x_BCHW.shape[2:]).permute(0, 3, 1, 2)


class GatedGELU(nn.Module):
    """A linear layer to twice the size; one half times the GELU of the other (Shazeer 2020)."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 2 * size)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.linear(x).chunk(2, -1)
        return x * functional.gelu(gate)


class LatentTransformerBlock(TransformerBlock):
    r"""The transformer block of latent diffusion: what goes in is normalised, and 1x1 convolutions stand around it.

    $$y = \operatorname{conv}(\operatorname{GN}(x)), \qquad y \leftarrow y + f_i(\operatorname{LN}(y)),
    \quad i = 1, 2, 3, \qquad x + \operatorname{conv}(y)$$

    The last convolution begins at zero; the feed-forward network is gated.

    Shape: ``[B, C, H, W]`` -> ``[B, C, H, W]``.
    Source: Rombach et al. 2022, table 15; Wu et al. 2023 take it as it is.
    """

    def __init__(self, channels: int, slot_size: int, heads: int) -> None:
        super().__init__(channels, slot_size, heads)
        self.feed_forward = nn.Sequential(GatedGELU(channels, 4 * channels), nn.Linear(4 * channels, channels))
        self.norm = nn.GroupNorm(choose_groups(channels, GROUPS), channels, eps=1e-6)
        self.conv_in = nn.Conv2d(channels, channels, 1)
        self.conv_out = nn.Conv2d(channels, channels, 1)
        _zero_(self.conv_out)

    def forward(self, x_BCHW: Tensor, keys_and_values: KeysAndValues) -> Tensor:
        y_BNC = self.conv_in(self.norm(x_BCHW)).permute(0, 2, 3, 1).flatten(1, 2)
        y_BNC = y_BNC + self.attention1(self.norm1(y_BNC))
        y_BNC = y_BNC + self.attention2(self.norm2(y_BNC), keys_and_values)
        y_BNC = y_BNC + self.feed_forward(self.norm3(y_BNC))
        return x_BCHW + self.conv_out(y_BNC.unflatten(1, x_BCHW.shape[2:]).permute(0, 3, 1, 2))


# --- the network ---


class Level(nn.Module):
    """The blocks of one size of map: residual ones, after each a transformer or none, and the one to the next size."""

    def __init__(
        self, residuals: Sequence[ResidualBlock], transformers: Sequence[TransformerBlock],
        change: ResidualBlock | Resize | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        assert len(transformers) in (0, len(residuals))
        # Cast, because a list of modules does not say of which.
        self.residuals = cast("Sequence[ResidualBlock]", nn.ModuleList(residuals))
        self.transformers = cast("Sequence[TransformerBlock]", nn.ModuleList(transformers))
        self.change = change


class UNet(nn.Module):
    """The noise in a latent picture at a time, given slots.

    Parameters with slots of 192 and multipliers 1, 2, 3, 4: 29,670,211 at width 64, 116,118,979 at 128 and
    259,346,499 at 192. With ``latent`` blocks 134,243,523 at 128, of which 192 are `no_slots`.

    Args:
        channels: C of the latent picture.
        width: channels of the first level, an even number.
        multipliers: channels of each level as a multiple of the width; each further level has half the side.
        slot_size: S.
        heads: of every attention; divides the channels of all levels but the first.
        dropout: in the residual blocks.
        depth: residual blocks of a level on the way down; one more on the way up.
        blocks: ``course``: the seed's, see above; ``latent``: those of latent diffusion.
        head_size: channels of a head; 0: each level has ``heads`` of them.

    Raises:
        UserError: numbers that do not fit each other.
    """

    def __init__(
        self, channels: int = 3, width: int = 128, multipliers: Sequence[int] = (1, 2, 3, 4), slot_size: int = 192, *,
        heads: int = 8, dropout: float = 0.1, depth: int = 2, blocks: Blocks = "course", head_size: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if width < 4 or width % 2:
            raise UserError(f"a U-Net {width} wide: the code of the time wants an even width of 4 or more")
        widths = [width * multiplier for multiplier in multipliers]
        for wide in widths[1:] or widths:
            if head_size and wide % head_size:
                raise UserError(f"heads of {head_size} channels do not fit {wide}: give a size that divides it")
            if not head_size and (heads < 1 or wide % heads):
                raise UserError(f"{heads} heads cannot share {wide} channels: give heads that divide them")
        self.channels, self.slot_size = channels, slot_size
        time_size = 4 * width

        def residual(in_channels: int, wide: int, mode: Mode = "normal") -> ResidualBlock:
            if blocks == "latent":
                return LatentResidualBlock(in_channels, wide, time_size, dropout=dropout)
            return ResidualBlock(in_channels, wide, time_size, mode=mode, dropout=dropout)

        def resize(wide: int, mode: Mode) -> ResidualBlock | Resize:
            return Resize(wide, mode) if blocks == "latent" else residual(wide, wide, mode)

        def transformer(wide: int) -> TransformerBlock:
            kind = LatentTransformerBlock if blocks == "latent" else TransformerBlock
            return kind(wide, slot_size, wide // head_size if head_size else heads)

        self.time = TimeEmbedding(width, time_size)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        # The channels of the maps that are kept for the way up, and those of the newest map.
        kept, before = [width], width
        last = len(widths) - 1
        down, up = [], []
        for place, wide in enumerate(widths):
            residuals = [residual(wide if number else before, wide) for number in range(depth)]
            transformers = [transformer(wide) for _ in range(depth if place else 0)]
            down.append(Level(residuals, transformers, resize(wide, "down") if place < last else None))
            kept += [wide] * (depth + (place < last))
            before = wide
        self.down = cast("Sequence[Level]", nn.ModuleList(down))
        self.middle1 = residual(before, before)
        self.middle_transformer = transformer(before)
        self.middle2 = residual(before, before)
        for place, wide in reversed(list(enumerate(widths))):
            residuals = [residual(kept.pop() + (wide if number else before), wide) for number in range(depth + 1)]
            transformers = [transformer(wide) for _ in range(depth + 1 if place else 0)]
            up.append(Level(residuals, transformers, resize(wide, "up") if place else None))
            before = wide
        self.up = cast("Sequence[Level]", nn.ModuleList(up))
        self.norm = _group_norm(before)
        self.conv2 = nn.Conv2d(before, channels, 3, padding=1)
        _zero_(self.conv2)
        self.no_slots = nn.Parameter(torch.zeros(1, 1, slot_size))

    def dropped(self, slots_BKS: Tensor, drop_B: Tensor) -> Tensor:
        """The slots, `no_slots` in place of all those of some images (Ho and Salimans 2022, algorithm 1).

        A training that is to guide calls it in every step, so that `no_slots` always has a gradient.
        """
        return torch.where(drop_B[:, None, None], self.no_slots, slots_BKS)

    def context(self, slots_BKS: Tensor) -> list[KeysAndValues]:
        """The keys and values of all transformer blocks in the order of their calls, for any number of such calls.

        There may be any number of slots; their order means nothing.
        """
        return [block.attention2.keys_and_values(slots_BKS) for block in self._transformers()]

    def _transformers(self) -> Iterator[TransformerBlock]:
        for level in self.down:
            yield from level.transformers
        yield self.middle_transformer
        for level in self.up:
            yield from level.transformers

    def forward(
        self, z_BCHW: Tensor, t_B: Tensor, slots_BKS: Tensor | None = None, *,
        context: Sequence[KeysAndValues] | None = None,
    ) -> Tensor:  # fmt: skip
        """The predicted noise ``[B, C, H, W]``.

        Args:
            z_BCHW: noisy latent pictures; sides that can be halved as often as there are further levels.
            t_B: their times, or one for all: ``[1]``.
            slots_BKS: slots. Without these and a context, `no_slots` stands for them.
            context: what `context` made of slots, in place of slots.
        """
        if context is None:
            context = self.context(self.no_slots.expand(len(z_BCHW), -1, -1) if slots_BKS is None else slots_BKS)
        pairs = iter(context)
        time_BE = self.time(t_B)
        x = self.conv1(z_BCHW)
        skips = [x]
        for level in self.down:
            for number, residual in enumerate(level.residuals):
                x = residual(x, time_BE)
                if level.transformers:
                    x = level.transformers[number](x, next(pairs))
                skips.append(x)
            if level.change is not None:
                x = level.change(x, time_BE)
                skips.append(x)
        x = self.middle1(x, time_BE)
        x = self.middle_transformer(x, next(pairs))
        x = self.middle2(x, time_BE)
        for level in self.up:
            for number, residual in enumerate(level.residuals):
                x = residual(torch.cat((skips.pop(), x), 1), time_BE)
                if level.transformers:
                    x = level.transformers[number](x, next(pairs))
            if level.change is not None:
                x = level.change(x, time_BE)
        return self.conv2(functional.silu(self.norm(x)))
