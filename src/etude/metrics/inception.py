"""The Inception network of 2015-12-05 laid out for speed: the same weights, the same features.

Szegedy et al. 2016 (v3), in the form that FID was defined with (Heusel et al. 2017): average pools that leave the
padding out, and a max pool in the last block. The published file holds a TorchScript graph; here are its layers, with
each batch norm folded into its convolution, channels last, the 1x1 convolutions that read one map joined into one, and
the 1x1 convolution behind an average pool put before it, where it commutes and leaves less to pool.

Shape suffixes: N images, C channels, H height, W width, F features (2,048).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 299
_EPS = 1e-3
_TAIL = ("weight", "beta", "mean", "var")


class Conv(nn.Module):
    """Convolution and ReLU, batch norm folded in.

    Args:
        state: the published network's weights.
        names: one layer, or several 1x1 convolutions of one map, whose outputs are put one after the other.
        stride: of the kernel.
        same: whether the map keeps its size, by zeros around it.
    """

    def __init__(self, state: Mapping[str, Tensor], *names: str, stride: int = 1, same: bool = True) -> None:
        super().__init__()
        weights, biases = [], []
        for name in names:
            weight, beta, mean, var = (state[f"{name}.{part}"].double() for part in _TAIL)
            # The published batch norm has a shift and no scale.
            scale = (var + _EPS).rsqrt()
            weights.append(weight * scale[:, None, None, None])
            biases.append(beta - mean * scale)
        weight = torch.cat(weights).float().contiguous(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.cat(biases).float(), requires_grad=False)
        height, width = weight.shape[2:]
        self.stride, self.padding = stride, (height // 2, width // 2) if same else (0, 0)
        self.sizes = [len(bias) for bias in biases]

    def linear(self, x_NCHW: Tensor) -> Tensor:
        """Without the ReLU."""
        return functional.conv2d(x_NCHW, self.weight, self.bias, self.stride, self.padding)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.linear(x_NCHW).relu_()


def _chain(state: Mapping[str, Tensor], name: str, first: int, last: int, *, down: bool = False) -> nn.Sequential:
    """The layers ``conv_<first>`` to ``conv_<last>`` of a tower; ``down``: the last one halves the map."""
    layers = []
    for place in range(first, last + 1):
        halves = down and place == last
        layers.append(Conv(state, f"{name}.conv_{place}", stride=2 if halves else 1, same=not halves))
    return nn.Sequential(*layers)


class Mixed(nn.Module):
    """Four branches on one map: 1x1; 1x1 and one more or two; 1x1 and more; average pool and 1x1.

    Blocks ``mixed`` to ``mixed_2`` and ``mixed_4`` to ``mixed_7``.
    """

    def __init__(self, state: Mapping[str, Tensor], name: str, short: int, long: int) -> None:
        super().__init__()
        branches = [f"{name}{tower}.conv" for tower in ("", ".tower", ".tower_1", ".tower_2")]
        self.heads = Conv(state, *branches)
        self.short = _chain(state, f"{name}.tower", 1, short)
        self.long = _chain(state, f"{name}.tower_1", 1, long)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        straight, short, long, pooled = self.heads.linear(x_NCHW).split(self.heads.sizes, 1)
        pooled = functional.avg_pool2d(_whole(pooled), 3, 1, 1, count_include_pad=False)
        short, long = self.short(_whole(short).relu_()), self.long(_whole(long).relu_())
        return torch.cat([straight.relu(), short, long, pooled.relu_()], 1)


class Down(nn.Module):
    """Halves the map: strided convolutions beside a max pool. Blocks ``mixed_3`` and ``mixed_8``."""

    def __init__(self, state: Mapping[str, Tensor], name: str, towers: Mapping[str, int], *, plain: bool) -> None:
        super().__init__()
        self.plain = Conv(state, f"{name}.conv", stride=2, same=False) if plain else None
        self.heads = Conv(state, *(f"{name}.{tower}.conv" for tower in towers))
        self.chains = nn.ModuleList(
            _chain(state, f"{name}.{tower}", 1, last, down=True) for tower, last in towers.items()
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        heads = self.heads(x_NCHW).split(self.heads.sizes, 1)
        maps = [self.plain(x_NCHW)] if self.plain is not None else []
        maps += [chain(_whole(head)) for chain, head in zip(self.chains, heads, strict=True)]
        return torch.cat([*maps, functional.max_pool2d(x_NCHW, 3, 2)], 1)


class Wide(nn.Module):
    """Branches that end in a 1x3 and a 3x1 side by side. Blocks ``mixed_9`` and ``mixed_10``.

    Args:
        largest: max pool in the pooled branch, else average.
    """

    def __init__(self, state: Mapping[str, Tensor], name: str, *, largest: bool) -> None:
        super().__init__()
        self.largest = largest
        branches = [f"{name}.{layer}" for layer in ("conv", "tower_conv", "tower_1_conv")]
        self.heads = Conv(state, *branches, *([] if largest else [f"{name}.tower_2_conv"]))
        self.pooled = Conv(state, f"{name}.tower_2_conv") if largest else None
        self.second = Conv(state, f"{name}.tower_1_conv_1")
        ends = [f"{name}.{tower}_mixed_conv{end}" for tower in ("tower", "tower_1") for end in ("", "_1")]
        self.ends = nn.ModuleList(Conv(state, end) for end in ends)
        last = self.heads.sizes[-1] if self.pooled is None else self.pooled.sizes[0]
        self.num_channels = self.heads.sizes[0] + sum(len(state[f"{end}.beta"]) for end in ends) + last

    def forward(self, x_NCHW: Tensor) -> Tensor:
        straight, short, long, *rest = self.heads.linear(x_NCHW).split(self.heads.sizes, 1)
        if self.pooled is not None:
            pooled = self.pooled(functional.max_pool2d(x_NCHW, 3, 1, 1))
        else:
            pooled = functional.avg_pool2d(_whole(rest[0]), 3, 1, 1, count_include_pad=False).relu_()
        short, long = _whole(short).relu_(), self.second(_whole(long).relu_())
        ends = [end(branch) for end, branch in zip(self.ends, (short, short, long, long), strict=True)]
        return torch.cat([straight.relu(), *ends, pooled], 1)


def _whole(part_NCHW: Tensor) -> Tensor:
    """A part of a map's channels as a map of its own."""
    return part_NCHW.contiguous(memory_format=torch.channels_last)


class Network(nn.Module):
    """The whole network up to its features.

    Args:
        state: ``layers.state_dict()`` of the published TorchScript file.

    Raises:
        KeyError: a layer is not there.
        RuntimeError: a layer has another shape.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        max_pool = nn.MaxPool2d(3, 2)
        last = Wide(state, "mixed_10", largest=True)
        self.num_features = last.num_channels
        self.layers = nn.Sequential(
            Conv(state, "conv", stride=2, same=False),
            Conv(state, "conv_1", same=False),
            Conv(state, "conv_2"),
            max_pool,
            Conv(state, "conv_3"),
            Conv(state, "conv_4", same=False),
            max_pool,
            *(Mixed(state, name, short=1, long=2) for name in ("mixed", "mixed_1", "mixed_2")),
            Down(state, "mixed_3", {"tower": 2}, plain=True),
            *(Mixed(state, f"mixed_{place}", short=2, long=4) for place in (4, 5, 6, 7)),
            Down(state, "mixed_8", {"tower": 1, "tower_1": 3}, plain=False),
            Wide(state, "mixed_9", largest=False),
            last,
        )

    def forward(self, x_N3HW: Tensor) -> Tensor:
        """Features ``[N, F]`` of pictures of 299 x 299 pixels with values from 0 to 255."""
        x_N3HW = ((x_N3HW - 128) / 128).contiguous(memory_format=torch.channels_last)
        return self.layers(x_N3HW).mean((2, 3))
