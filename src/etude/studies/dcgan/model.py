"""The generator and the discriminator of DCGAN, and their conditional forms.

Radford, Metz, Chintala 2016, "Unsupervised representation learning with deep convolutional generative adversarial
networks", section 3: strided convolutions in place of pooling, batch norm in both but the generator's last and the
discriminator's first layer, ReLU and tanh in the one, leaky ReLU in the other.

With classes (Mirza and Osindero 2014) the generator's noise is followed by the class as a one-hot vector, and the
discriminator's picture by one plane a class, which is one where the class is meant.

Shape suffixes: N images, Z noise, C channels, H height, W width.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from etude.core.errors import UserError
from etude.nn.adversarial import spectral_norm, start_normal

NORMS = ("batch", "spectral", "none")


def stages(size: int) -> tuple[int, int]:
    """The smallest map's side, 4 or 7, and how often it is doubled to give ``size``.

    Raises:
        UserError: ``size`` is not 4 or 7 times a power of two, from 8 on.
    """
    for base in (4, 7):
        doublings = (size // base).bit_length() - 1
        if size >= 2 * base and base << doublings == size:
            return base, doublings
    raise UserError(f"pictures of {size} pixels cannot be made: give 28, 32, 56, 64, 112, 128 or 256")


class Generator(nn.Module):
    """Noise to pictures in [-1, 1], of ``size`` pixels high and wide.

    The last hidden layer has ``width`` filters, and each layer before it twice as many. ``num_classes`` is 0 for none.
    """

    def __init__(self, noise: int, size: int, *, channels: int = 1, width: int = 64, num_classes: int = 0) -> None:
        super().__init__()
        base, doublings = stages(size)
        self.noise, self.size, self.channels, self.num_classes = noise, size, channels, num_classes
        widths = [width << power for power in reversed(range(doublings))]
        layers: list[nn.Module] = [nn.ConvTranspose2d(noise + num_classes, widths[0], base, bias=False)]
        for before, after in pairwise(widths):
            layers += [nn.BatchNorm2d(before), nn.ReLU(inplace=True)]
            layers.append(nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False))
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.ConvTranspose2d(width, channels, 4, 2, 1)]
        self.layers = nn.Sequential(*layers, nn.Tanh())
        start_normal(self)

    def forward(self, z_NZ: Tensor, labels_N: Tensor | None = None) -> Tensor:
        """Pictures ``[N, C, H, W]`` of noise and, where there are classes, of int64 labels."""
        if self.num_classes:
            assert labels_N is not None, "a conditional generator is told the classes"
            z_NZ = torch.cat([z_NZ, functional.one_hot(labels_N, self.num_classes).to(z_NZ.dtype)], 1)
        return self.layers(z_NZ[:, :, None, None])


class Discriminator(nn.Module):
    """Pictures of ``size`` pixels high and wide to one logit each: positive for real.

    The first layer has ``width`` filters, and each one after it twice as many. ``num_classes`` is 0 for none. The norm
    is batch; spectral, which takes batch norm's place in every layer; or none.
    """

    def __init__(
        self, size: int, *, channels: int = 1, width: int = 64, num_classes: int = 0, norm: str = "batch"
    ) -> None:
        super().__init__()
        base, doublings = stages(size)
        self.num_classes = num_classes
        widths = [channels + num_classes, *(width << power for power in range(doublings))]
        layers: list[nn.Module] = []
        for place, (before, after) in enumerate(pairwise(widths)):
            normed = norm == "batch" and place > 0
            layers.append(nn.Conv2d(before, after, 4, 2, 1, bias=not normed))
            layers += [nn.BatchNorm2d(after)] if normed else []
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        layers.append(nn.Conv2d(widths[-1], 1, base))
        self.layers = nn.Sequential(*layers)
        start_normal(self)
        if norm == "spectral":
            for layer in self.layers:
                if isinstance(layer, nn.Conv2d):
                    spectral_norm(layer)

    def forward(self, images_NCHW: Tensor, labels_N: Tensor | None = None) -> Tensor:
        """Logits ``[N]``."""
        if self.num_classes:
            assert labels_N is not None, "a conditional discriminator is told the classes"
            planes = functional.one_hot(labels_N, self.num_classes).to(images_NCHW.dtype)[:, :, None, None]
            images_NCHW = torch.cat([images_NCHW, planes.expand(-1, -1, *images_NCHW.shape[2:])], 1)
        return self.layers(images_NCHW).flatten()
