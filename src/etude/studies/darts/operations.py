"""The eight operations of the search space (Liu et al. 2019, section 3.1), and what goes before a cell.

All take maps ``[B, C, H, W]`` to ``[B, C, H / stride, W / stride]``, with a stride of 1 or 2 and an even H and W for
the latter. Convolutions come in the order ReLU, convolution, batch norm. While searching the norms have no weights of
their own (``affine=False``), for those would rescale what alpha weighs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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
        return self.norm(torch.cat([every_second(self.first, x), every_second(self.second, x[:, :, 1:, 1:])], 1))


def every_second(halving: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of stride 2.

    Pixels of few channels are taken first: oneDNN's backward pass of a stride writes beyond its memory there.
    """
    if x.device.type == "cpu" and halving.in_channels < 8:
        return functional.conv2d(x[:, :, ::2, ::2], halving.weight)
    return halving(x)


class Depthwise(nn.Conv2d):
    """A convolution of every channel by itself, in the form that is fastest where it runs.

    On the CPU the gradient of five columns of weights is taken as that of three and three, which has a fast path
    there. A dilation of two needs no holes once every second pixel stands beside every second: with a stride of two
    the others are not looked at at all.

    Args:
        channels: of the map.
        kernel: 3 or 5.
        stride: 1 or 2.
        dilation: 1 or 2.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(channels, channels, kernel, stride, padding, dilation, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        side, stride, dilation = self.kernel_size[0], self.stride[0], self.dilation[0]
        if dilation == 2 and not x.shape[2] % 2 and not x.shape[3] % 2:
            if stride == 2:
                return convolved(x[:, :, ::2, ::2], self.weight, 1)
            return together(convolved(apart(x), self.weight, 1))
        if dilation == 1:
            return convolved(x, self.weight, stride)
        return functional.conv2d(x, self.weight, None, stride, side // 2 * dilation, dilation, self.groups)


def apart(x_BCHW: Tensor) -> Tensor:
    """Four maps of every second pixel for each: ``[4 B, C, H / 2, W / 2]``. H and W are even."""
    batch, channels, height, width = x_BCHW.shape
    x_BhiwjC = x_BCHW.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width // 2, 2, channels)
    x_NhwC = x_BhiwjC.permute(2, 4, 0, 1, 3, 5).reshape(4 * batch, height // 2, width // 2, channels)
    return x_NhwC.permute(0, 3, 1, 2)


def together(x_NChw: Tensor) -> Tensor:
    """The inverse of `apart`: ``[4 B, C, h, w]`` -> ``[B, C, 2 h, 2 w]``."""
    total, channels, height, width = x_NChw.shape
    x_ijBhwC = x_NChw.permute(0, 2, 3, 1).reshape(2, 2, total // 4, height, width, channels)
    x_BHWC = x_ijBhwC.permute(2, 3, 0, 4, 1, 5).reshape(total // 4, 2 * height, 2 * width, channels)
    return x_BHWC.permute(0, 3, 1, 2)


def convolved(x_BCHW: Tensor, weight: Tensor, stride: int) -> Tensor:
    """A depthwise convolution without holes, the side kept but for the stride.

    Args:
        x_BCHW: maps.
        weight: ``[C, 1, k, k]``, k odd.
        stride: 1 or 2.
    """
    wide = weight.shape[3] == 5 and stride == 1 and x_BCHW.device.type == "cpu"
    if wide and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
        return _Wide.apply(x_BCHW, weight)  # pyright: ignore[reportReturnType]
    return functional.conv2d(x_BCHW, weight, None, stride, weight.shape[3] // 2, 1, weight.shape[0])


class _Wide(torch.autograd.Function):
    """`convolved` by 5 x 5 weights, with the gradient of the weights in two halves that share the middle column."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight)
        return functional.conv2d(x_BCHW, weight, None, 1, 2, 1, weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = _back(outputs[0], x, weight, (2, 2), (True, False))[0] if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return of_x, None
        narrow = weight[..., :3].contiguous()
        left, right = (
            _back(outputs[0], functional.pad(x, edge), narrow, (2, 0), (False, True))[1] for edge in ((2, 0), (0, 2))
        )
        return of_x, torch.cat([left, right[..., 1:]], 3)


def _back(of_out: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], wanted: tuple[bool, bool]) -> Any:
    """The gradients of a depthwise convolution by its input and its weights, those that are wanted."""
    return torch.ops.aten.convolution_backward(
        of_out, x, weight, None, (1, 1), padding, (1, 1), False, (0, 0), len(weight), (*wanted, False)
    )


class DilatedConv(nn.Sequential):
    """A depthwise convolution with holes, and a 1x1 one."""

    def __init__(self, channels: int, kernel: int, stride: int, *, affine: bool = True) -> None:
        super().__init__(
            nn.ReLU(), Depthwise(channels, kernel, stride, 2), nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        )  # fmt: skip


class SeparableConv(nn.Sequential):
    """A depthwise and a 1x1 convolution, twice; the stride is the first's."""

    def __init__(self, channels: int, kernel: int, stride: int, *, affine: bool = True) -> None:
        layers: list[nn.Module] = []
        for step in (stride, 1):
            layers += [
                nn.ReLU(), Depthwise(channels, kernel, step), nn.Conv2d(channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels, affine=affine),
            ]  # fmt: skip
        super().__init__(*layers)


def _skip(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=affine)


Make = Callable[[int, int, bool], nn.Module]
"""A maker takes channels, stride, and whether norms have weights of their own."""

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
"""The makers of the operations, by the names of `etude.studies.darts.genotype.OPERATIONS`."""


def drop_path(x_BCHW: Tensor, keep: float, coin_B: Tensor) -> Tensor:
    """Leave an edge out for some images, and make up for it in the others (Larsson et al. 2017, FractalNet).

    Args:
        x_BCHW: the edge's output.
        keep: the share of the images that keep it.
        coin_B: uniform in [0, 1).
    """
    return x_BCHW * ((coin_B < keep).to(x_BCHW.dtype) / keep)[:, None, None, None]
