"""The space of NAS-Bench-201 (Dong and Yang 2020, section 2): a cell of four nodes, five operations on its six edges.

A node is the sum of its edges from all earlier nodes; the first is the cell's input, the last its output. A network is
a stem, three stages of the same number of cells with residual blocks of stride 2 between them, and a classifier. As
every edge is kept, ``none`` among its operations, a cell is read off a mixture edge by edge.

Shape suffixes: B images, C channels, H W pixels, E edges, O operations.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from etude.core.errors import UserError, nearest
from etude.nn.pixels import StandardizedColours
from etude.studies.darts.operations import Zero

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""The operations in the order of the benchmark."""
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""The edges ``(source, node)`` in the order of a cell's name, and of alpha's rows."""
KIND = "cell"
STAGES = 3
SPREAD = 1e-3
"""Deviation of alpha's first values."""


@dataclass(frozen=True)
class BenchCell:
    """A cell: the operation on each of `EDGES`."""

    operations: tuple[str, ...]

    @property
    def text(self) -> str:
        """The benchmark's name of the cell, such as ``|none~0|+|none~0|none~1|+|none~0|none~1|none~2|``."""
        nodes = [
            "".join(
                f"|{name}~{source}" for name, (source, to) in zip(self.operations, EDGES, strict=True) if to == node
            )
            for node in (1, 2, 3)
        ]
        return "+".join(f"{node}|" for node in nodes)

    def count(self, operation: str, kind: str = KIND) -> int:
        """The number of edges that have an operation."""
        return self.operations.count(operation)

    def to_dict(self) -> dict[str, Any]:
        return {KIND: self.text}


def parse(text: str) -> BenchCell:
    """A cell from its name.

    Raises:
        UserError: another form, or an unknown operation.
    """
    words = [word for node in text.split("+") for word in node.strip("|").split("|")]
    names = [word.partition("~")[0] for word in words]
    if (unknown := next((name for name in names if name not in OPERATIONS), None)) is not None:
        raise UserError(f"NAS-Bench-201 has no operation {unknown!r}{nearest(unknown, OPERATIONS)}")
    cell = BenchCell(tuple(names))
    if len(names) != len(EDGES) or cell.text != text:
        raise UserError(
            f"{text!r} is no cell of NAS-Bench-201: give six operations as in {BenchCell(('none',) * 6).text}"
        )
    return cell


def all_cells() -> list[BenchCell]:
    """All 15,625 cells; the last edge's operation changes fastest."""
    digits = torch.cartesian_prod(*[torch.arange(len(OPERATIONS))] * len(EDGES)).tolist()
    return [BenchCell(tuple(OPERATIONS[digit] for digit in row)) for row in digits]


def derive(weights_EO: Tensor) -> BenchCell:
    """The cell that a mixture has come to: of each edge the operation that weighs most."""
    return BenchCell(tuple(OPERATIONS[which] for which in weights_EO.argmax(1).tolist()))


class ReLUConvNorm(nn.Sequential):
    """ReLU, a convolution, batch norm: ``[B, in, H, W]`` -> ``[B, out, H / stride, W / stride]``."""

    def __init__(self, before: int, channels: int, side: int, stride: int = 1, *, affine: bool = True) -> None:
        super().__init__(
            nn.ReLU(), nn.Conv2d(before, channels, side, stride, side // 2, bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        )  # fmt: skip


MAKERS: dict[str, Callable[[int, bool], nn.Module]] = {
    "none": lambda channels, affine: Zero(1),
    "skip_connect": lambda channels, affine: nn.Identity(),
    "nor_conv_1x1": lambda channels, affine: ReLUConvNorm(channels, channels, 1, affine=affine),
    "nor_conv_3x3": lambda channels, affine: ReLUConvNorm(channels, channels, 3, affine=affine),
    "avg_pool_3x3": lambda channels, affine: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
}
"""The makers of the operations, of channels and whether norms have weights of their own."""


class FixedCell(nn.Module):
    """A cell of given operations."""

    def __init__(self, cell: BenchCell, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(MAKERS[name](channels, True) for name in cell.operations)

    def forward(self, x: Tensor, *mixture: Any) -> Tensor:
        return run_cell(x, lambda edge, source: self.edges[edge](source))


class MixedCell(nn.Module):
    """A cell of mixtures: every edge the weighted sum of all operations (Liu et al. 2019, eq. 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(nn.ModuleList(MAKERS[name](channels, False) for name in OPERATIONS) for _ in EDGES)

    def forward(self, x: Tensor, weights_EO: Tensor, skip: float = 0.0) -> Tensor:
        def mixed(edge: int, source: Tensor) -> Tensor:
            # The first operation is none, whose part of the sum is zero.
            parts = [
                w * op(source)
                for w, op in zip(weights_EO[edge][1:], list(self.edges[edge].children())[1:], strict=True)
            ]
            return sum(parts[1:], parts[0]) + skip * source

        return run_cell(x, mixed)


def run_cell(x: Tensor, edge: Callable[[int, Tensor], Tensor]) -> Tensor:
    """The last node of a cell; ``edge(number, source)`` is what an edge makes of its source."""
    nodes = [x]
    for node in (1, 2, 3):
        parts = [edge(number, nodes[source]) for number, (source, to) in enumerate(EDGES) if to == node]
        nodes.append(sum(parts[1:], parts[0]))
    return nodes[-1]


class Reduction(nn.Module):
    """The residual block between two stages: half the side, twice the channels."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.body = nn.Sequential(ReLUConvNorm(before, 2 * before, 3, 2), ReLUConvNorm(2 * before, 2 * before, 3))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(before, 2 * before, 1, bias=False))

    def forward(self, x: Tensor, *mixture: Any) -> Tensor:
        return self.shortcut(x) + self.body(x)


class _Network(StandardizedColours):
    """The stem, three stages and the classifier; ``make(channels)`` gives a cell."""

    def __init__(self, channels: int, layers: int, num_classes: int, make: Callable[[int], nn.Module]) -> None:
        super().__init__()
        assert layers % STAGES == 0
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        parts: list[nn.Module] = []
        for stage in range(STAGES):
            parts += [Reduction(channels << (stage - 1))] if stage else []
            parts += [make(channels << stage) for _ in range(layers // STAGES)]
        self.cells = nn.ModuleList(parts)
        self.norm = nn.BatchNorm2d(channels << (STAGES - 1))
        self.classifier = nn.Linear(channels << (STAGES - 1), num_classes)

    def logits(self, images_BCHW: Tensor, *mixture: Any) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.stem(images_BCHW)
        for part in self.cells:
            x = part(x, *mixture)
        x = self.norm(x).relu()
        return self.classifier(x.mean((2, 3))), {"features": x}


class BenchNetwork(_Network):
    """The network of a cell; the benchmark's have 16 channels and 15 cells.

    Args:
        cell: the cell.
        channels: those of the first stage.
        layers: the number of cells, a multiple of three.
        num_classes: the number of classes.
    """

    def __init__(self, cell: BenchCell, channels: int = 16, layers: int = 15, num_classes: int = 10) -> None:
        super().__init__(channels, layers, num_classes, lambda width: FixedCell(cell, width))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``[B, classes]``, and by name ``features`` ``[B, C, h, w]``."""
        return self.logits(images_BCHW)


class BenchSuperNetwork(_Network):
    """The network that is searched; see `BenchNetwork` for the arguments.

    Attributes:
        alpha: by the one kind of cell, ``[E, O]``; learned by another optimiser than the weights.
    """

    kinds = (KIND,)
    operations = OPERATIONS
    read = staticmethod(parse)

    def __init__(self, channels: int = 16, layers: int = 15, num_classes: int = 10) -> None:
        super().__init__(channels, layers, num_classes, MixedCell)
        self.alpha = nn.ParameterDict({KIND: SPREAD * torch.randn(len(EDGES), len(OPERATIONS))})

    @property
    def architecture(self) -> list[nn.Parameter]:
        return list(self.alpha.values())

    @property
    def weights(self) -> list[nn.Parameter]:
        """All other parameters."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("alpha.")]

    def mixture(self, kind: str = KIND) -> tuple[Tensor, None]:
        """The weights of the operations ``[E, O]``, and no shares of edges."""
        return self.alpha[kind].softmax(1), None

    @property
    def genotype(self) -> BenchCell:
        """The cell that alpha chooses now."""
        return derive(self.mixture()[0])

    def forward(
        self, images_BCHW: Tensor, skip: float = 0.0, noise: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``[B, classes]``, and by name ``features``.

        Args:
            images_BCHW: standardised pictures.
            skip: the weight of the auxiliary skips.
            noise: by kind, what is added to the operations' weights ``[E, O]``.
        """
        weights_EO = self.mixture()[0]
        return self.logits(images_BCHW, weights_EO if noise is None else weights_EO + noise[KIND], skip)
