r"""A cell of mixtures as the equation has it, edge by edge and operation by operation (Liu et al. 2019, eq. 2).

$$\bar o(x) = \sum_o \frac{\exp \alpha_o}{\sum_{o'} \exp \alpha_{o'}} \, o(x)$$

This is the form to read, and ``--search.mixture plain`` searches with it. Otherwise a search takes
`etude.studies.darts.shared.SharedCell`, which is equal and faster.

Shape suffixes: B images, C channels, H W pixels, E edges, O operations.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from etude.studies.darts.genotype import INPUTS, OPERATIONS, edges
from etude.studies.darts.operations import MAKERS, FactorizedReduce, ReLUConvNorm


def inputs_of(before: tuple[int, int], channels: int, *, after_reduction: bool) -> nn.ModuleList:
    """The two layers that bring the outputs of the two cells before to a cell's channels and side."""
    first = FactorizedReduce if after_reduction else ReLUConvNorm
    return nn.ModuleList([first(before[0], channels, affine=False), ReLUConvNorm(before[1], channels, affine=False)])


class MixedOperation(nn.Module):
    """All operations on one edge.

    Args:
        channels: the channels of the map.
        stride: 1 or 2.
        partial: one of so many channels goes through the operations, the rest goes round them.
        auxiliary: whether there is a skip beside the mixture.
    """

    def __init__(self, channels: int, stride: int, partial: int = 1, *, auxiliary: bool = False) -> None:
        super().__init__()
        self.partial, self.width = partial, channels // partial
        self.operations = nn.ModuleList()
        for name in OPERATIONS:
            made = MAKERS[name](self.width, stride, False)
            # What is pooled would else be of another size than what is normalised.
            pooled = nn.Sequential(made, nn.BatchNorm2d(self.width, affine=False)) if "pool" in name else made
            self.operations.append(pooled)
        self.around = nn.MaxPool2d(2) if stride == 2 else nn.Identity()
        self.auxiliary = MAKERS["skip_connect"](channels, stride, False) if auxiliary else None

    def forward(self, x: Tensor, weights_O: Tensor, skip: float = 0.0) -> Tensor:
        part = x[:, : self.width]
        parts: list[Tensor] = []
        for weight, operation in zip(weights_O, self.operations, strict=True):
            parts.append(weight * operation(part))
        made = sum(parts[1:], parts[0])
        if self.partial > 1:
            rest = self.around(x[:, self.width :])
            made = functional.channel_shuffle(torch.cat([made, rest], 1), self.partial)
        return made if self.auxiliary is None else made + skip * self.auxiliary(x)


class MixedCell(nn.Module):
    """A cell with an edge from every node to every later one.

    Args:
        num_nodes: intermediate nodes.
        before: channels of the outputs of the last but one and of the last cell.
        channels: the channels of each node.
        reduction: whether the cell halves the map.
        after_reduction: whether the last cell did.
        partial: see `MixedOperation`.
        auxiliary: see `MixedOperation`.
    """

    def __init__(
        self, num_nodes: int, before: tuple[int, int], channels: int, *, reduction: bool, after_reduction: bool,
        partial: int = 1, auxiliary: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.inputs = inputs_of(before, channels, after_reduction=after_reduction)
        self.num_nodes, self.channels = num_nodes, num_nodes * channels
        self.edges = nn.ModuleList(
            MixedOperation(channels, 2 if reduction and source < INPUTS else 1, partial, auxiliary=auxiliary)
            for source, _ in edges(num_nodes)
        )

    def forward(
        self, earlier: Tensor, last: Tensor, weights_EO: Tensor, shares_E: Tensor | None = None, skip: float = 0.0
    ) -> Tensor:
        """The cell's output ``[B, nodes x channels, H, W]``.

        Args:
            earlier: the output of the last but one cell.
            last: the output of the last cell.
            weights_EO: the weight of each operation on each edge.
            shares_E: the share of each edge in its node; None: 1.
            skip: the weight of the auxiliary skips.
        """
        nodes = [layer(x) for layer, x in zip(self.inputs, (earlier, last), strict=True)]
        place = 0
        for _ in range(self.num_nodes):
            total: Tensor | None = None
            for x in nodes:
                part = self.edges[place](x, weights_EO[place], skip)
                part = part if shares_E is None else shares_E[place] * part
                total = part if total is None else total + part
                place += 1
            assert total is not None
            nodes.append(total)
        return torch.cat(nodes[INPUTS:], 1)
