r"""The network that is searched: every edge a mixture of all operations (Liu et al. 2019, eq. 2).

$$\bar o(x) = \sum_o \frac{\exp \alpha_o}{\sum_{o'} \exp \alpha_{o'}} \, o(x)$$

Normal cells share one alpha, reduction cells another.

Of later work, as options: partial channels and edge normalisation (Xu et al. 2020, "PC-DARTS", sections 3.1 and 3.2),
an auxiliary skip (Chu et al. 2021, "DARTS-", section 3.2).

Shape suffixes: B images, C channels, H W pixels, E edges, O operations.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from etude.nn.pixels import StandardizedColours
from etude.studies.darts.choice import derive
from etude.studies.darts.genotype import INPUTS, KINDS, OPERATIONS, Genotype, edges, from_text
from etude.studies.darts.mixed import MixedCell
from etude.studies.darts.model import STEM, reductions
from etude.studies.darts.shared import SharedCell

SPREAD = 1e-3
"""Deviation of alpha's first values."""


class SuperNetwork(StandardizedColours):
    """Cells of mixtures; 1,930,618 parameters with the paper's 16 channels and 8 layers, alpha not counted.

    Args:
        channels: the channels of each node of the first cells, a multiple of ``partial``; doubled at every reduction.
        layers: the number of cells.
        num_classes: the number of classes.
        num_nodes: the intermediate nodes of a cell.
        partial: 1: all channels go through the operations; K: one of K.
        edge_norm: whether the edges into a node have weights of their own, softmax(beta).
        auxiliary: whether every edge has a skip beside its mixture.
        shared: whether edges share their work (`SharedCell`), or each stands by itself (`MixedCell`).

    Attributes:
        alpha: by kind of cell, ``[E, O]``; learned by another optimiser than the weights.
        beta: by kind of cell, ``[E]``, with ``edge_norm`` alone; learned with alpha.
    """

    kinds = KINDS
    operations = OPERATIONS
    read = staticmethod(from_text)

    def __init__(
        self, channels: int = 16, layers: int = 8, num_classes: int = 10, num_nodes: int = 4, *, partial: int = 1,
        edge_norm: bool = False, auxiliary: bool = False, shared: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        assert channels % partial == 0
        self.halved, self.num_nodes = reductions(layers), num_nodes
        stem = STEM * channels
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem))
        before, width, after_reduction = (stem, stem), channels, False
        cells: list[SharedCell] = []
        given: list[dict[str, Any]] = []
        for layer in range(layers):
            reduction = layer in self.halved
            width *= 2 if reduction else 1
            given.append({
                "num_nodes": num_nodes, "before": before, "channels": width, "reduction": reduction,
                "after_reduction": after_reduction, "partial": partial, "auxiliary": auxiliary,
            })  # fmt: skip
            cells.append(SharedCell(**given[-1]))
            before, after_reduction = (before[1], cells[-1].channels), reduction
        self.cells = nn.ModuleList(cells)
        self.classifier = nn.Linear(before[1], num_classes)
        shape = (len(edges(num_nodes)), len(OPERATIONS))
        self.alpha = nn.ParameterDict({kind: SPREAD * torch.randn(shape) for kind in KINDS})
        self.beta = nn.ParameterDict({kind: SPREAD * torch.randn(shape[0]) for kind in KINDS if edge_norm})
        if not shared:
            # Last, so that both forms begin with the same numbers.
            plain = [MixedCell(**arguments) for arguments in given]
            for cell, other in zip(cells, plain, strict=True):
                cell.give(other)
            self.cells = nn.ModuleList(plain)

    @property
    def architecture(self) -> list[nn.Parameter]:
        """Alpha, and beta where there is one."""
        return [*self.alpha.values(), *self.beta.values()]

    @property
    def weights(self) -> list[nn.Parameter]:
        """All other parameters."""
        own = {id(parameter) for parameter in self.architecture}
        return [parameter for parameter in self.parameters() if id(parameter) not in own]

    def mixture(self, kind: str) -> tuple[Tensor, Tensor | None]:
        """The mixture of a kind of cell: weights of the operations ``[E, O]`` and of the edges ``[E]``."""
        weights_EO = self.alpha[kind].softmax(1)
        return weights_EO, edge_shares(self.beta[kind], self.num_nodes) if kind in self.beta else None

    @property
    def genotype(self) -> Genotype:
        """The cells that alpha, and beta where there is one, choose now."""
        return Genotype(*(derive(*self.mixture(kind)) for kind in KINDS))

    def forward(
        self, images_BCHW: Tensor, skip: float = 0.0, noise: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits ``[B, classes]``, and by name ``features`` ``[B, C, h, w]``.

        Args:
            images_BCHW: standardised pictures.
            skip: the weight of the auxiliary skips.
            noise: by kind of cell, what is added to the operations' weights ``[E, O]``.
        """
        mixtures: dict[str, tuple[Tensor, Tensor | None]] = {kind: self.mixture(kind) for kind in KINDS}
        if noise is not None:
            mixtures = {kind: (weights_EO + noise[kind], beta_E) for kind, (weights_EO, beta_E) in mixtures.items()}
        earlier = last = self.stem(images_BCHW)
        for layer, cell in enumerate(self.cells):
            weights_EO, shares_E = mixtures["reduction" if layer in self.halved else "normal"]
            earlier, last = last, cell(earlier, last, weights_EO, shares_E, skip)
        return self.classifier(last.mean((2, 3))), {"features": last}


def edge_shares(beta_E: Tensor, num_nodes: int) -> Tensor:
    """The softmax of beta over the edges that lead to one node ``[E]`` (Xu et al. 2020, eq. 5)."""
    return torch.cat([part.softmax(0) for part in beta_E.split([INPUTS + node for node in range(num_nodes)])])
