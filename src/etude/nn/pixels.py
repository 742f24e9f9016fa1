"""Pictures as bytes and as what networks take.

Shape suffixes: N pictures, C colours, H W pixels.
"""

import torch
from torch import Tensor


def prepare(images_NHWC: Tensor) -> Tensor:
    """Bytes ``[N, H, W, C]`` as pictures ``[N, C, H, W]`` in [-1, 1], channels last in memory."""
    return (images_NHWC.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def to_bytes(images_NCHW: Tensor) -> Tensor:
    """Pictures in [-1, 1] as bytes ``[N, H, W, C]``."""
    return ((images_NCHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
