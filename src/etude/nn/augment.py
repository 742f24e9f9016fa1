"""Augmentation of whole batches on the device."""

import torch
from jaxtyping import UInt8
from torch import Tensor

from etude.core.randomness import upload


def crop_and_flip(
    images_NHWC: UInt8[Tensor, "n h w 3"],
    fill_C: UInt8[Tensor, "3"],
    generator: torch.Generator,
    *,
    pad: int,
    flip: bool,
) -> UInt8[Tensor, "n h w 3"]:
    """Pad, cut out a window of the old size at random, and mirror every second picture (He et al. 2016, section 4.2).

    The padding, ``pad`` pixels on each side, has the training mean's colour, which the network sees as zero. The
    generator is on the CPU, so that every device draws the same.
    """
    num, height, width, _ = images_NHWC.shape
    device = images_NHWC.device
    shift_2N = upload(torch.randint(-pad, pad + 1, (2, num), generator=generator), device)
    mirrored_N = upload(torch.rand(num, generator=generator) < 0.5, device) & flip
    if not pad and not flip:
        return images_NHWC
    across_W = torch.arange(width, device=device)
    columns_NW = torch.where(mirrored_N[:, None], width - 1 - across_W, across_W) + shift_2N[1, :, None]
    rows_NH = torch.arange(height, device=device) + shift_2N[0, :, None]
    inside_NHW = _within(rows_NH, height)[:, :, None] & _within(columns_NW, width)[:, None, :]
    # One index into all pixels of the batch: a copy of three bytes each.
    pixel_NHW = rows_NH.clamp(0, height - 1)[:, :, None] * width + columns_NW.clamp(0, width - 1)[:, None, :]
    pixel_NHW = pixel_NHW + (torch.arange(num, device=device) * (height * width))[:, None, None]
    cut_NHWC = images_NHWC.reshape(-1, 3)[pixel_NHW]
    return torch.where(inside_NHW[..., None], cut_NHWC, fill_C)


def _within(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)


def cutout(x_NCHW: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Blank a square of each standardised picture, part of which may lie outside (DeVries and Taylor 2017).

    Blank is 0, the mean; a ``side`` of 0 blanks none. The generator is on the CPU, as in `crop_and_flip`.
    """
    num, _, height, width = x_NCHW.shape
    device = x_NCHW.device
    centre_2N = [upload(torch.randint(size, (num,), generator=generator), device) for size in (height, width)]
    if not side:
        return x_NCHW
    hit = [
        _within(torch.arange(size, device=device) - centre[:, None] + side // 2, side)
        for size, centre in zip((height, width), centre_2N, strict=True)
    ]
    return x_NCHW.masked_fill((hit[0][:, :, None] & hit[1][:, None, :])[:, None], 0)
