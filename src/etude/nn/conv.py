"""Convolution blocks that two studies share, and how they start."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class ConvBlock(nn.Module):
    """Convolution 3x3, batch normalisation, ReLU, max pooling 2x2.

    Shape: ``[n, in_channels, h, w]`` -> ``[n, out_channels, h // 2, w // 2]``.
    Source: Vinyals et al. 2016, section 4.1; Snell et al. 2017, section 3.1.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        # The maximum commutes with the monotone ReLU, and a quarter of the pixels are left to rectify.
        return functional.relu(functional.max_pool2d(self.norm(self.conv(x)), 2))


@torch.no_grad()
def he_(module: nn.Module) -> None:
    """Start every convolution below so that a ReLU after it keeps the values' mean square (He et al. 2015); no bias.

    A transposed convolution sums only every ``stride``-th value of its kernel along each axis.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            summed = layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]
            if isinstance(layer, nn.ConvTranspose2d):
                summed /= layer.stride[0] * layer.stride[1]
            nn.init.normal_(layer.weight, std=(2 / summed) ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
