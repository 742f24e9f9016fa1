"""The residual network of He et al. 2016, section 4.2: 6n + 2 layers for small pictures.

Shape suffixes: N images, C channels, H W pixels, R classes; NHWC pictures as bytes, NCHW as the network takes them.
"""

from collections.abc import Callable, Iterator
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from etude.nn.norms import BatchInstanceNorm, NoNorm
from etude.nn.pixels import StandardizedColours

Shortcut = Literal["pad", "projection"]
MakeNorm = Callable[[int], nn.Module]


def pad_shortcut(x_NCHW: Tensor, channels: int, stride: int) -> Tensor:
    """The identity where the shape changes: every ``stride``-th pixel, new channels zero (option A of section 3.3)."""
    if stride == 1 and channels == x_NCHW.shape[1]:
        return x_NCHW
    thin = x_NCHW[:, :, ::stride, ::stride]
    return functional.pad(thin, (0, 0, 0, 0, 0, channels - x_NCHW.shape[1]))


class Block(nn.Module):
    """Two 3x3 convolutions, each normalised at once, and a shortcut around both (figure 2).

    Shape: ``[N, in_channels, H, W]`` -> ``[N, channels, ceil(H / stride), ceil(W / stride)]``.
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, make_norm: MakeNorm, shortcut: Shortcut, biased: bool
    ) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=biased)
        self.norm1 = make_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=biased)
        self.norm2 = make_norm(channels)
        changes = stride != 1 or in_channels != channels
        self.projection: nn.Module | None = None
        if changes and shortcut == "projection":
            self.projection = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=biased), make_norm(channels)
            )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = functional.relu(self.norm1(self.conv1(x_NCHW)))
        y_NCHW = self.norm2(self.conv2(y_NCHW))
        if self.projection is not None:
            return functional.relu(y_NCHW + self.projection(x_NCHW))
        return functional.relu(y_NCHW + pad_shortcut(x_NCHW, self.channels, self.stride))


class ResNet(StandardizedColours):
    """A 3x3 convolution, three stages of n blocks with 16, 32 and 64 filters, mean pooling, one linear layer.

    269,722 parameters for n = 3 and ten classes with batch normalisation; 6n + 2 weighted layers.

    Source: He et al. 2016, section 4.2. Convolutions start as He et al. 2015 have it. Where the norm is none,
    convolutions have a bias, which a norm's shift makes superfluous elsewhere.

    Args:
        n: blocks a stage, 1 or more.
        num_classes: r.
        make_norm: makes the norm that follows a convolution of so many filters.
        shortcut: ``pad`` has no parameters, as published; ``projection`` is a 1x1 convolution where the shape changes.
        width: filters of the first stage.

    ``forward`` takes what `prepare` makes of pictures, and returns logits ``[N, R]`` and the intermediates by name:
    ``stem``, ``stage1.block1`` and so on, ``pooled``.
    """

    def __init__(
        self, n: int, num_classes: int, make_norm: MakeNorm, *, shortcut: Shortcut = "pad", width: int = 16
    ) -> None:
        super().__init__()
        if n < 1 or num_classes < 1 or width < 1:
            raise ValueError(f"n, the classes and the width are 1 or more, not {n}, {num_classes} and {width}")
        biased = isinstance(make_norm(width), NoNorm)
        self.n = n
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=biased)
        self.norm = make_norm(width)
        self.stages = nn.ModuleList()
        channels = width
        for stage in range(3):
            blocks = nn.ModuleList()
            for number in range(n):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(Block(channels, width * 2**stage, stride, make_norm, shortcut, biased))
                channels = width * 2**stage
            self.stages.append(blocks)
        self.linear = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def num_layers(self) -> int:
        """Weighted layers, shortcuts not counted: 6n + 2."""
        return 6 * self.n + 2

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """The blocks by name, from the picture to the classes."""
        for s, stage in enumerate(self.stages, start=1):
            for b, block in enumerate(stage, start=1):  # pyright: ignore[reportArgumentType]
                yield f"stage{s}.block{b}", block

    def forward(self, x_NCHW: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n r"], dict[str, Tensor]]:
        if x_NCHW.shape[1] != 3 or min(x_NCHW.shape[2:]) < 1:
            raise ValueError(f"pictures of shape {list(x_NCHW.shape)}: the network takes [N, 3, H, W]")
        named = {"stem": functional.relu(self.norm(self.conv(x_NCHW)))}
        x_NCHW = named["stem"]
        for name, block in self.blocks():
            x_NCHW = named[name] = block(x_NCHW)
        named["pooled"] = x_NCHW.mean((2, 3))
        return self.linear(named["pooled"]), named


def gates(model: nn.Module) -> dict[str, BatchInstanceNorm]:
    """The batch-instance norms of a network, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BatchInstanceNorm)}
