"""Pictures as bytes and as what networks take.

Shape suffixes: N pictures, C colours, H W pixels.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn


def prepare(images_NHWC: Tensor) -> Tensor:
    """Map bytes ``[N, H, W, C]`` to pictures ``[N, C, H, W]`` in [-1, 1], channels last in memory."""
    return (images_NHWC.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def to_bytes(images_NCHW: Tensor) -> Tensor:
    """Pictures in [-1, 1] as bytes ``[N, H, W, C]``."""
    return ((images_NCHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class StandardizedColours(nn.Module):
    """A network that standardises each colour by its mean and deviation over the training pictures.

    Attributes:
        mean: ``[3]``, of bytes; travels with the weights.
        std: ``[3]``, likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))

    @torch.no_grad()
    def set_statistics(self, images_NHWC: UInt8[Tensor, "n h w 3"]) -> None:
        """Note the mean and deviation of each colour over the training pictures."""
        counts = torch.zeros(3, 256, dtype=torch.float64, device=images_NHWC.device)
        for part in images_NHWC.split(4096):
            for colour in range(3):
                counts[colour] += part[..., colour].flatten().bincount(minlength=256)
        values = torch.arange(256, dtype=torch.float64, device=images_NHWC.device)
        share = counts / counts.sum(1, keepdim=True)
        mean = share @ values
        std = ((values - mean[:, None]).square() * share).sum(1).sqrt()
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=1))

    def prepare(self, images_NHWC: UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
        """Map bytes to the network's input: each colour with mean 0 and deviation 1 over the training pictures."""
        x_NHWC = images_NHWC.to(self.mean.dtype).sub_(self.mean).div_(self.std)
        # Channels come last in memory, as the convolutions want them.
        return x_NHWC.permute(0, 3, 1, 2)
