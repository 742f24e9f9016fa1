r"""The network that is searched: every edge a mixture of all operations (Liu et al. 2019, eq. 2).

$$\bar o(x) = \sum_o \frac{\exp \alpha_o}{\sum_{o'} \exp \alpha_{o'}} \, o(x)$$

Normal cells share one alpha, reduction cells another. This is the straightforward form, edge by edge and operation by
operation.

Shape suffixes: B images, C channels, H W pixels, E edges, O operations.
"""

import torch
from torch import Tensor, nn

from etude.studies.darts.genotype import INPUTS, OPERATIONS, Genotype, derive, edges
from etude.studies.darts.network import STEM, reductions
from etude.studies.darts.operations import MAKERS, FactorizedReduce, ReLUConvNorm

SPREAD = 1e-3
"""Deviation of alpha's first values."""


class MixedOperation(nn.Module):
    """All operations on one edge."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.operations = nn.ModuleList()
        for name in OPERATIONS:
            made = MAKERS[name](channels, stride, False)
            # What is pooled would else be of another size than what is normalised.
            pooled = nn.Sequential(made, nn.BatchNorm2d(channels, affine=False)) if "pool" in name else made
            self.operations.append(pooled)

    def forward(self, x: Tensor, weights_O: Tensor) -> Tensor:
        parts: list[Tensor] = []
        for weight, operation in zip(weights_O, self.operations, strict=True):
            parts.append(weight * operation(x))
        return sum(parts[1:], parts[0])


class MixedCell(nn.Module):
    """A cell with an edge from every node to every later one."""

    def __init__(
        self, num_nodes: int, before: tuple[int, int], channels: int, *, reduction: bool, after_reduction: bool
    ) -> None:
        super().__init__()
        first = FactorizedReduce if after_reduction else ReLUConvNorm
        inputs = [first(before[0], channels, affine=False), ReLUConvNorm(before[1], channels, affine=False)]
        self.inputs = nn.ModuleList(inputs)
        self.num_nodes, self.channels = num_nodes, num_nodes * channels
        self.edges = nn.ModuleList(
            MixedOperation(channels, 2 if reduction and source < INPUTS else 1) for source, _ in edges(num_nodes)
        )

    def forward(self, earlier: Tensor, last: Tensor, weights_EO: Tensor) -> Tensor:
        nodes = [layer(x) for layer, x in zip(self.inputs, (earlier, last), strict=True)]
        place = 0
        for _ in range(self.num_nodes):
            parts = [self.edges[place + source](x, weights_EO[place + source]) for source, x in enumerate(nodes)]
            place += len(nodes)
            nodes.append(sum(parts[1:], parts[0]))
        return torch.cat(nodes[INPUTS:], 1)


class SuperNetwork(nn.Module):
    """Cells of mixtures; 1,930,618 parameters with the paper's 16 channels and 8 layers, alpha not counted.

    Args:
        channels: of each node of the first cells; doubled at every reduction.
        layers: cells.
        num_classes: of the result.
        num_nodes: intermediate nodes of a cell.

    Attributes:
        alpha: by kind of cell, ``[E, O]``; learned by another optimiser than the weights.
    """

    def __init__(self, channels: int = 16, layers: int = 8, num_classes: int = 10, num_nodes: int = 4) -> None:
        super().__init__()
        self.halved = reductions(layers)
        stem = STEM * channels
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem))
        before, width, after_reduction = (stem, stem), channels, False
        cells: list[MixedCell] = []
        for layer in range(layers):
            reduction = layer in self.halved
            width *= 2 if reduction else 1
            cells.append(MixedCell(num_nodes, before, width, reduction=reduction, after_reduction=after_reduction))
            before, after_reduction = (before[1], cells[-1].channels), reduction
        self.cells = nn.ModuleList(cells)
        self.classifier = nn.Linear(before[1], num_classes)
        shape = (len(edges(num_nodes)), len(OPERATIONS))
        self.alpha = nn.ParameterDict({kind: SPREAD * torch.randn(shape) for kind in ("normal", "reduction")})

    @property
    def weights(self) -> list[nn.Parameter]:
        """All parameters but alpha."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("alpha.")]

    @property
    def genotype(self) -> Genotype:
        """What alpha says now."""
        return Genotype(derive(self.alpha["normal"]), derive(self.alpha["reduction"]))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``[B, classes]``, and by name ``features`` ``[B, C, h, w]``."""
        weights = {kind: alpha_EO.softmax(1) for kind, alpha_EO in self.alpha.items()}
        earlier = last = self.stem(images_BCHW)
        for layer, cell in enumerate(self.cells):
            kind = "reduction" if layer in self.halved else "normal"
            earlier, last = last, cell(earlier, last, weights[kind])
        return self.classifier(last.mean((2, 3))), {"features": last}
