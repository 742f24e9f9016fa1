"""The eight operations of the search space (Liu et al. 2019, section 3.1), and what goes before a cell.

All take maps ``[B, C, H, W]`` to ``[B, C, H / stride, W / stride]``, with a stride of 1 or 2 and an even H and W for
the latter. Convolutions come in the order ReLU, convolution, batch norm. While searching the norms have no weights of
their own (``affine=False``), for those would rescale what alpha weighs.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class Zero(nn.Module):
    """``none``: no connection."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class ReLUConvNorm(nn.Sequential):
    """ReLU, a 1x1 convolution, batch norm: ``[B, in, H, W]`` -> ``[B, out, H, W]``."""

    def __init__(self, in_channels: int, channels: int, *, affine: bool = True) -> None:
        super().__init__(
            nn.ReLU(), nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels, affine=affine)
        )


class FactorizedReduce(nn.Module):
    """Half the side without pooling: two 1x1 convolutions of stride 2, one of them a pixel further on, side by side."""

    def __init__(self, in_channels: int, channels: int, *, affine: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, channels // 2, 1, 2, bias=False)
        self.second = nn.Conv2d(in_channels, channels - channels // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(x)
        return self.norm(torch.cat([self.first(x), self.second(x[:, :, 1:, 1:])], 1))


def _depthwise(channels: int, kernel: int, stride: int, dilation: int) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(channels, channels, kernel, stride, padding, dilation, channels, bias=False)


class DilatedConv(nn.Sequential):
    """A depthwise convolution with holes, and a 1x1 one."""

    def __init__(self, channels: int, kernel: int, stride: int, *, affine: bool = True) -> None:
        super().__init__(
            nn.ReLU(), _depthwise(channels, kernel, stride, 2), nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        )  # fmt: skip


class SeparableConv(nn.Sequential):
    """A depthwise and a 1x1 convolution, twice; the stride is the first's."""

    def __init__(self, channels: int, kernel: int, stride: int, *, affine: bool = True) -> None:
        layers: list[nn.Module] = []
        for step in (stride, 1):
            layers += [
                nn.ReLU(), _depthwise(channels, kernel, step, 1), nn.Conv2d(channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels, affine=affine),
            ]  # fmt: skip
        super().__init__(*layers)


def _skip(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=affine)


Make = Callable[[int, int, bool], nn.Module]
"""Of channels, stride, and whether norms have weights."""

MAKERS: dict[str, Make] = {
    "none": lambda channels, stride, affine: Zero(stride),
    "max_pool_3x3": lambda channels, stride, affine: nn.MaxPool2d(3, stride, 1),
    # Places beyond the edge do not count.
    "avg_pool_3x3": lambda channels, stride, affine: nn.AvgPool2d(3, stride, 1, count_include_pad=False),
    "skip_connect": _skip,
    "sep_conv_3x3": lambda channels, stride, affine: SeparableConv(channels, 3, stride, affine=affine),
    "sep_conv_5x5": lambda channels, stride, affine: SeparableConv(channels, 5, stride, affine=affine),
    "dil_conv_3x3": lambda channels, stride, affine: DilatedConv(channels, 3, stride, affine=affine),
    "dil_conv_5x5": lambda channels, stride, affine: DilatedConv(channels, 5, stride, affine=affine),
}
"""By the names of `etude.studies.darts.genotype.OPERATIONS`."""


def drop_path(x_BCHW: Tensor, keep: float, coin_B: Tensor) -> Tensor:
    """Leave an edge out for some images, and make up for it in the others (Larsson et al. 2017, FractalNet).

    Args:
        x_BCHW: the edge's output.
        keep: the share of the images that keep it.
        coin_B: uniform in [0, 1).
    """
    return x_BCHW * ((coin_B < keep).to(x_BCHW.dtype) / keep)[:, None, None, None]
