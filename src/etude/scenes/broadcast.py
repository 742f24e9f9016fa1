r"""The first layer of a spatial broadcast decoder at a fraction of its cost.

Watters et al. 2019, "Spatial broadcast decoder": a vector stands at every place of a map, positions are added, and
convolutions decode the map; Locatello et al. 2020 do so with every slot. The first convolution is linear,

$$W * (s + p) = W * p + W * s,$$

and of its two terms the first is the same for all slots, so that it is computed once. In the second the map is
constant: but for a rim as wide as the kernel reaches, where zeros come in, its result repeats itself from place to
place. It is computed on a map just larger than the kernel and its inner part repeated. The result is that of the plain
form up to rounding.

Shape suffixes: M slots (of all images), S a slot's size, O channels of the result, H height, W width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class BroadcastConv(nn.Module):
    """A convolution of slots that stand at every place of a map with positions added.

    Args:
        slot_size: S.
        channels: O.
        kernel: side of the kernel.
        side: H and W of the map that the slots are put on.
        stride: 1 keeps the map's size; 2 doubles it, by a transposed convolution. The kernel is odd.
    """

    def __init__(self, slot_size: int, channels: int, kernel: int, side: int, *, stride: int = 1) -> None:
        super().__init__()
        assert kernel % 2 == 1, "an odd kernel"
        assert stride in (1, 2), "a stride of 1 or 2"
        padding = kernel // 2
        if stride == 1:
            self.conv: nn.Conv2d | nn.ConvTranspose2d = nn.Conv2d(slot_size, channels, kernel, 1, padding)
        else:
            self.conv = nn.ConvTranspose2d(slot_size, channels, kernel, 2, padding, output_padding=1)
        self.side, self.stride, self.kernel = side, stride, kernel

    def forward(self, slots_MS: Tensor, positions_SHW: Tensor) -> Tensor:
        """``conv(slots at every place + positions)``, ``[M, O, stride H, stride W]``."""
        small = min(self.side, 2 * self.kernel)
        constant_MSHW = slots_MS[:, :, None, None].expand(-1, -1, small, small)
        weight, padding = self.conv.weight, self.kernel // 2
        if self.stride == 1:
            alone_MOHW = functional.conv2d(constant_MSHW, weight, None, 1, padding)
        else:
            alone_MOHW = functional.conv_transpose2d(constant_MSHW, weight, None, 2, padding, output_padding=1)
        for axis in (2, 3):
            alone_MOHW = self._longer(alone_MOHW, self.side - small, axis)
        return alone_MOHW + self.conv(positions_SHW[None])

    def _longer(self, map_MOHW: Tensor, places: int, axis: int) -> Tensor:
        """A constant map's result where it had that many more places along an axis."""
        if places == 0:
            return map_MOHW
        # The middle is as far from the zeros as can be. It repeats with the stride.
        middle = map_MOHW.shape[axis] // 2 // self.stride * self.stride
        before, after = map_MOHW.split([middle, map_MOHW.shape[axis] - middle], axis)
        repeats = [places if dim == axis else 1 for dim in range(4)]
        return torch.cat([before, after.narrow(axis, 0, self.stride).repeat(repeats), after], axis)
