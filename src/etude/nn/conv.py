"""Convolution blocks that two studies share."""

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
