"""The U-Net generator and the patch discriminator of pix2pix.

Isola et al. 2017, appendix 6.1. The generator halves the picture down to one pixel and doubles it up again; each layer
on the way up also sees the one of its size on the way down. The discriminator judges overlapping patches. In the form
that is counted everywhere (the authors' PyTorch one), convolutions before a batch norm have no bias, the first and the
innermost layer have no norm, and at 256 pixels with 64 filters there are 54,413,955 and 2,768,705 parameters.

Shape suffixes: N pictures, C channels, H height, W width.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from etude.core.randomness import upload
from etude.nn.adversarial import start_normal

TestNorm = Literal["batch", "running"]
DROPOUT_LAYERS = 3
# By the pixels that one logit sees: how many layers of stride 2 the discriminator has; the pixel one has none at all.
PATCHES = {1: 0, 16: 1, 34: 2, 70: 3, 142: 4, 286: 5}


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that in a test may take each picture's own statistics.

    The paper tests with the statistics of the test batch, of one picture (section 3.4): every picture is then
    normalised by itself, whatever others are computed beside it. With ``running`` it is PyTorch's layer.
    """

    def __init__(self, channels: int, test: TestNorm) -> None:
        super().__init__(channels)
        self.test = test

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if self.training or self.test == "running":
            return super().forward(x_NCHW)
        var, mean = torch.var_mean(x_NCHW, (2, 3), correction=0, keepdim=True)
        scale = self.weight[:, None, None] * (var + self.eps).rsqrt()
        return (x_NCHW - mean) * scale + self.bias[:, None, None]


class Generator(nn.Module):
    """Pictures to pictures, both in [-1, 1].

    Args:
        size: height and width, a power of two.
        width: filters of the first layer.
        widest: filters of the inner layers, as a multiple of ``width``; the published network has 8.
        dropout: the probability of a zero in the decoder's first three layers, the network's only noise.
        test_norm: see `BatchNorm`.
        channels: C of both pictures.
    """

    def __init__(
        self,
        size: int,
        *,
        width: int = 64,
        widest: int = 8,
        dropout: float = 0.5,
        test_norm: TestNorm = "batch",
        channels: int = 3,
    ) -> None:
        super().__init__()
        halvings = size.bit_length() - 1
        assert size == 1 << halvings
        self.size, self.dropout = size, dropout
        widths = [width * min(1 << depth, widest) for depth in range(halvings)]
        self.down = nn.ModuleList()
        for depth, (before, after) in enumerate(pairwise([channels, *widths])):
            layers: list[nn.Module] = [nn.LeakyReLU(0.2)] if depth else []
            layers.append(nn.Conv2d(before, after, 4, 2, 1, bias=False))
            # The innermost map is one pixel: normalised by itself it would be zero.
            layers += [BatchNorm(after, test_norm)] if 0 < depth < halvings - 1 else []
            self.down.append(nn.Sequential(*layers))
        self.up = nn.ModuleList()
        for depth in reversed(range(1, halvings)):
            before, after = widths[depth] * (1 if depth == halvings - 1 else 2), widths[depth - 1]
            conv = nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)
            self.up.append(nn.Sequential(nn.ReLU(), conv, BatchNorm(after, test_norm)))
        self.last = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(2 * width, channels, 4, 2, 1), nn.Tanh())
        self.noisy = min(DROPOUT_LAYERS, halvings - 1)
        self.widths = widths
        start_normal(self)

    def noise(self, count: int, draw: torch.Generator) -> list[Tensor]:
        """The dropout of the decoder's first layers for ``count`` pictures: masks of 0 and 1 / (1 - p), on the CPU."""
        kept = 1 - self.dropout
        masks: list[Tensor] = []
        for layer in range(self.noisy):
            side = 2 << layer
            shape = (count, self.widths[len(self.widths) - 2 - layer], side, side)
            masks.append((torch.rand(shape, generator=draw) < kept).float() / kept)
        return masks

    def forward(self, x_NCHW: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """Pictures of the same shape.

        Args:
            x_NCHW: H and W are ``size``.
            noise: what `noise` drew, on the network's device; empty for none.
        """
        passed: list[Tensor] = []
        for layer in self.down:
            x_NCHW = layer(x_NCHW)
            passed.append(x_NCHW)
        inner = passed.pop()
        for place, layer in enumerate(self.up):
            inner = layer(inner)
            if place < len(noise):
                inner = inner * noise[place].to(inner.dtype)
            inner = torch.cat([passed.pop(), inner], 1)
        return self.last(inner)


class Discriminator(nn.Module):
    """A picture with its input to one logit a patch: positive for real.

    Args:
        patch: pixels that a logit sees: 70 as published; 1, 16, 34, 142, 286.
        width: filters of the first layer.
        channels: of the input and the picture together.
    """

    def __init__(self, patch: int = 70, *, width: int = 64, channels: int = 6) -> None:
        super().__init__()
        strided = PATCHES[patch]
        if patch == 1:
            layers: list[nn.Module] = [nn.Conv2d(channels, width, 1), nn.LeakyReLU(0.2, inplace=True)]
            layers += [nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width)]
            layers += [nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(2 * width, 1, 1)]
        else:
            layers = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
            widths = [width * min(1 << depth, 8) for depth in range(strided + 1)]
            for depth, (before, after) in enumerate(pairwise(widths), 1):
                stride = 2 if depth < strided else 1
                layers += [nn.Conv2d(before, after, 4, stride, 1, bias=False), nn.BatchNorm2d(after)]
                layers.append(nn.LeakyReLU(0.2, inplace=True))
            layers.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.layers = nn.Sequential(*layers)
        start_normal(self)

    def forward(self, input_NCHW: Tensor, *outputs_NCHW: Tensor) -> Tensor:
        """Logits ``[K N, 1, patches, patches]`` of K pictures for each input, the first of all inputs first.

        Convolutions take them as one batch; batch norm takes each N by themselves, as in K calls.
        """
        images = torch.cat([torch.cat([input_NCHW, output], 1) for output in outputs_NCHW])
        for layer in self.layers:
            split = isinstance(layer, nn.BatchNorm2d) and len(outputs_NCHW) > 1
            images = torch.cat([layer(part) for part in images.split(len(input_NCHW))]) if split else layer(images)
        return images


def crop_and_mirror(pairs_N2HWC: Tensor, size: int, generator: torch.Generator, *, mirror: bool) -> Tensor:
    """A window of each pair, both pictures alike, every second pair mirrored (section 3.4 and appendix 6.2).

    Args:
        pairs_N2HWC: uint8, square; their memory is not changed.
        size: height and width of the windows.
        generator: on the CPU, so that every device draws the same.
        mirror: whether to mirror, with probability 1/2.
    """
    num, _, side = pairs_N2HWC.shape[:3]
    device = pairs_N2HWC.device
    first_2N = upload(torch.randint(0, side - size + 1, (2, num), generator=generator), device)
    mirrored_N = upload(torch.rand(num, generator=generator) < 0.5, device) & mirror
    if side == size and not mirror:
        return pairs_N2HWC
    along = torch.arange(size, device=device)
    rows_NH = first_2N[0, :, None] + along
    columns_NW = first_2N[1, :, None] + torch.where(mirrored_N[:, None], size - 1 - along, along)
    item_N = torch.arange(num, device=device)[:, None, None]
    # Indices on both sides of a slice put their own axes first: [N, H, W, 2, 3].
    cut_NHW2C = pairs_N2HWC[item_N, :, rows_NH[:, :, None], columns_NW[:, None, :]]
    return cut_NHW2C.movedim(3, 1)
