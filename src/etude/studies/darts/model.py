"""Networks of cells: the one that is trained once a cell is found (Liu et al. 2019, section 3.2, appendix A.2).

Shape suffixes: B images, C channels, H W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from etude.core.errors import UserError
from etude.nn.pixels import StandardizedColours
from etude.studies.darts.genotype import INPUTS, Cell, Genotype
from etude.studies.darts.operations import MAKERS, FactorizedReduce, ReLUConvNorm, drop_path

STEM = 3
"""Channels of the stem, as a multiple of those of the first cells."""
AUXILIARY = (128, 768)
"""Channels of the auxiliary head."""


def reductions(layers: int) -> tuple[int, int]:
    """The places of the two reduction cells: at a third and at two thirds.

    Raises:
        UserError: too few layers for two different ones.
    """
    places = layers // 3, 2 * layers // 3
    if places[0] == places[1] or layers < 1:
        raise UserError(f"{layers} layers have no room for two reductions, at a third and two thirds: give 2 or more")
    return places


class FoundCell(nn.Module):
    """A cell of a genotype.

    Shape: two maps of ``before`` channels, the first possibly of twice the side -> ``[B, nodes x channels, H, W]``, of
    half the second's side in a reduction.

    Args:
        cell: the edges.
        before: channels of the outputs of the last but one and of the last cell.
        channels: the channels of each node.
        reduction: whether the cell halves the map.
        after_reduction: whether the last cell did, so that the last but one's output is of twice the side.
    """

    def __init__(
        self, cell: Cell, before: tuple[int, int], channels: int, *, reduction: bool, after_reduction: bool
    ) -> None:
        super().__init__()
        first = FactorizedReduce if after_reduction else ReLUConvNorm
        self.inputs = nn.ModuleList([first(before[0], channels), ReLUConvNorm(before[1], channels)])
        self.sources = [[edge.source for edge in node] for node in cell]
        self.operations = nn.ModuleList(
            nn.ModuleList(
                MAKERS[edge.operation](channels, 2 if reduction and edge.source < INPUTS else 1, True) for edge in node
            )
            for node in cell
        )
        self.channels = len(cell) * channels

    def forward(
        self, earlier: Tensor, last: Tensor, keep: float = 1.0, coins: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The cell's output.

        Args:
            earlier: the output of the last but one cell.
            last: the output of the last cell.
            keep: the share of the images that keep an edge.
            coins: uniform numbers ``[B]`` for each edge; None: all edges are kept.
        """
        nodes = [layer(x) for layer, x in zip(self.inputs, (earlier, last), strict=True)]
        place = 0
        for sources, operations in zip(self.sources, self.operations, strict=True):
            parts: list[Tensor] = []
            for source, operation in zip(sources, operations, strict=True):  # pyright: ignore[reportArgumentType]
                part = operation(nodes[source])
                if coins is not None and not isinstance(operation, nn.Identity):
                    part = drop_path(part, keep, coins[place])
                parts.append(part)
                place += 1
            nodes.append(sum(parts[1:], parts[0]))
        return torch.cat(nodes[INPUTS:], 1)


class AuxiliaryHead(nn.Sequential):
    """Classes from the map after two thirds, 8 x 8, which adds a loss there in training (Szegedy et al. 2015).

    Shape: ``[B, C, 8, 8]`` -> ``[B, classes]``.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        small, wide = AUXILIARY
        super().__init__(
            nn.ReLU(), nn.AvgPool2d(5, 3, count_include_pad=False), nn.Conv2d(channels, small, 1, bias=False),
            nn.BatchNorm2d(small), nn.ReLU(), nn.Conv2d(small, wide, 2, bias=False), nn.BatchNorm2d(wide), nn.ReLU(),
            nn.Flatten(), nn.Linear(wide, num_classes),
        )  # fmt: skip


class CellNetwork(StandardizedColours):
    """A stem, cells of two kinds, global average pooling, a linear layer.

    With 36 channels, 20 layers and ten classes the published cells have, but for the auxiliary head, 3,169,414
    (DARTS V1), 3,349,342 (DARTS V2) and 3,634,678 (PC-DARTS) parameters.

    Args:
        genotype: the cells.
        channels: the channels of each node of the first cells; doubled at every reduction.
        layers: the number of cells.
        num_classes: the number of classes.
        auxiliary: whether there is an auxiliary head.
    """

    def __init__(
        self, genotype: Genotype, channels: int = 36, layers: int = 20, num_classes: int = 10, *, auxiliary: bool = True
    ) -> None:
        super().__init__()
        halved = self.halved = reductions(layers)
        stem = STEM * channels
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem))
        before, width, after_reduction = (stem, stem), channels, False
        cells: list[FoundCell] = []
        self.auxiliary: AuxiliaryHead | None = None
        self.auxiliary_after = halved[1]
        for layer in range(layers):
            reduction = layer in halved
            width *= 2 if reduction else 1
            cell = genotype.cell("reduction" if reduction else "normal")
            cells.append(FoundCell(cell, before, width, reduction=reduction, after_reduction=after_reduction))
            before, after_reduction = (before[1], cells[-1].channels), reduction
            if layer == self.auxiliary_after and auxiliary:
                self.auxiliary = AuxiliaryHead(before[1], num_classes)
        self.cells = nn.ModuleList(cells)
        self.classifier = nn.Linear(before[1], num_classes)

    @property
    def num_parameters(self) -> int:
        """The number of parameters without those of the auxiliary head, which is left after training."""
        return sum(p.numel() for name, p in self.named_parameters() if not name.startswith("auxiliary."))

    def forward(
        self, images_BCHW: Tensor, keep: float = 1.0, coins: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``[B, classes]``, and by name ``features`` ``[B, C, h, w]`` of the last cell and, in training,
        ``auxiliary`` ``[B, classes]``.

        Args:
            images_BCHW: normalised pictures.
            keep: the share of the images that keep an edge, see `drop_path`.
            coins: uniform numbers ``[B]`` for each edge of each cell; None: all edges are kept.
        """
        earlier = last = self.stem(images_BCHW)
        named: dict[str, Tensor] = {}
        for layer, cell in enumerate(self.cells):
            earlier, last = last, cell(earlier, last, keep, None if coins is None else coins[layer])
            if layer == self.auxiliary_after and self.auxiliary is not None and self.training:
                named["auxiliary"] = self.auxiliary(last)
        named["features"] = last
        return self.classifier(last.mean((2, 3))), named
