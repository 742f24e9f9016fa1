"""A cell of mixtures, with the work of its edges shared: equal to `etude.studies.darts.mixed.MixedCell`, and faster.

Of all edges that leave one node

- what has no weights is computed once: the rectified map, both poolings and their norms, the channels that go round;
- convolutions of one type are one convolution in groups, a group an edge;
- an operation's weight in the mixture is the scale of its last norm, which has none of its own: the mixture costs no
  pass over the maps, and alpha's gradient is one that the norm gives anyway;
- dilated convolutions run on every second pixel beside every second, where they need no holes;
- ``none`` is left out, for it adds zeros. Its alpha learns all the same, through the softmax.

Shape suffixes: B images, C channels of a node, P channels that go through the operations, H W pixels, T edges that
leave a node (its targets), E edges, O operations.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from etude.studies.darts.genotype import INPUTS, OPERATIONS
from etude.studies.darts.mixed import MixedCell, inputs_of
from etude.studies.darts.operations import MAKERS, Depthwise, apart, every_second, together

_KERNELS = {"sep_conv_3x3": (3, 1), "sep_conv_5x5": (5, 1), "dil_conv_3x3": (3, 2), "dil_conv_5x5": (5, 2)}
"""Kernel and dilation of each operation that convolves."""
_AT = {name: place for place, name in enumerate(OPERATIONS)}


def scaled_norm(norm: nn.BatchNorm2d, x_BCHW: Tensor, scale_C: Tensor) -> Tensor:
    """A batch norm without weights of its own, with given ones."""
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    # The backward pass of maps whose channels come last takes a scale for contiguous whether it is or not.
    scale_C = scale_C.contiguous()
    momentum, shift_C = norm.momentum or 0.0, torch.zeros_like(scale_C)
    mean_C, var_C = norm.running_mean, norm.running_var
    return functional.batch_norm(x_BCHW, mean_C, var_C, scale_C, shift_C, norm.training, momentum, norm.eps)


class GroupedConv(nn.Module):
    """A separable or dilated convolution of every edge that leaves a node.

    Shape: rectified maps, one copy an edge, ``[B, T x P, H, W]`` -> ``[B, T x P, H / stride, W / stride]``.
    """

    def __init__(self, name: str, width: int, targets: int, stride: int) -> None:
        super().__init__()
        kernel, dilation = _KERNELS[name]
        total = targets * width
        self.depthwise, self.pointwise, self.norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for step in (stride, 1) if dilation == 1 else (stride,):
            # One with holes is given pixels that were taken apart, so that it needs none.
            self.depthwise.append(Depthwise(total, kernel, step if dilation == 1 else 1))
            self.pointwise.append(nn.Conv2d(total, total, 1, groups=targets, bias=False))
            self.norms.append(nn.BatchNorm2d(total, affine=False))

    def forward(self, x: Tensor, scale_C: Tensor) -> Tensor:
        last = len(self.norms) - 1
        for number, (depthwise, pointwise, norm) in enumerate(
            zip(self.depthwise, self.pointwise, self.norms, strict=True)
        ):
            x = pointwise(depthwise(x))
            if number < last:
                x = functional.relu(norm(x))
        return scaled_norm(self.norms[last], x, scale_C)  # pyright: ignore[reportArgumentType]


class GroupedReduce(nn.Module):
    """`etude.studies.darts.operations.FactorizedReduce` of every edge that leaves a node."""

    def __init__(self, channels: int, targets: int) -> None:
        super().__init__()
        self.targets, half = targets, channels // 2
        self.first = nn.Conv2d(channels, targets * half, 1, 2, bias=False)
        self.second = nn.Conv2d(channels, targets * (channels - half), 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(targets * channels, affine=False)

    def forward(self, rectified: Tensor, scale_C: Tensor) -> Tensor:
        parts = every_second(self.first, rectified), every_second(self.second, rectified[:, :, 1:, 1:])
        side = [part.unflatten(1, (self.targets, -1)) for part in parts]
        return scaled_norm(self.norm, torch.cat(side, 2).flatten(1, 2), scale_C)


class SharedEdges(nn.Module):
    """All edges that leave one node.

    Args:
        channels: C, the channels of a node.
        targets: T, the edges that leave the node.
        stride: 1 or 2.
        partial: K: one of K channels goes through the operations, see `MixedOperation`.
        auxiliary: whether each edge has a skip beside its mixture.
    """

    def __init__(self, channels: int, targets: int, stride: int, partial: int = 1, *, auxiliary: bool = False) -> None:
        super().__init__()
        self.channels, self.targets, self.stride, self.partial = channels, targets, stride, partial
        self.width = channels // partial
        self.convolutions = nn.ModuleDict({name: GroupedConv(name, self.width, targets, stride) for name in _KERNELS})
        self.pools = nn.ModuleDict(
            {
                name: nn.Sequential(MAKERS[name](self.width, stride, False), nn.BatchNorm2d(self.width, affine=False))
                for name in OPERATIONS if "pool" in name
            }
        )  # fmt: skip
        self.reduce = GroupedReduce(self.width, targets) if stride == 2 else None
        self.around = nn.MaxPool2d(2) if stride == 2 else nn.Identity()
        self.auxiliary = GroupedReduce(channels, targets) if auxiliary and stride == 2 else None

    def forward(self, x: Tensor, weights_TO: Tensor, shares_T: Tensor | None) -> list[Tensor]:
        """The sums that the node adds to each target, ``[B, C, H, W]`` each; partial channels before the shuffle."""
        part = x[:, : self.width] if self.partial > 1 else x
        if shares_T is not None:
            weights_TO = weights_TO * shares_T[:, None]
        rectified = functional.relu(part)
        # Unlike `repeat` this keeps channels last in memory.
        repeated = torch.cat([rectified] * self.targets, 1)
        scale_CO = weights_TO.repeat_interleave(self.width, 0)
        total = self._sum(("sep_conv_3x3", "sep_conv_5x5"), repeated, scale_CO)
        dilated = "dil_conv_3x3", "dil_conv_5x5"
        if self.stride == 2:
            total = total + self._sum(dilated, repeated[:, :, ::2, ::2], scale_CO)
        else:
            # Taken apart before there are copies for every edge, and put together once.
            found = self._sum(dilated, torch.cat([apart(rectified)] * self.targets, 1), scale_CO)
            total = total + together(found)
        if self.reduce is not None:
            total = total + self.reduce(rectified, scale_CO[:, _AT["skip_connect"]])
        maps = {name: pool(part) for name, pool in self.pools.items()}
        if self.reduce is None:
            maps["skip_connect"] = part
        names = list(maps)
        weights_TM = weights_TO[:, [_AT[name] for name in names]]
        made: list[Tensor] = []
        for target, own in enumerate(total.split(self.width, 1)):
            for weight, name in zip(weights_TM[target], names, strict=True):
                own = own + weight * maps[name]
            made.append(own)
        if self.partial == 1:
            return made
        rest = self.around(x[:, self.width :])
        shares = [1.0] * self.targets if shares_T is None else shares_T
        return [torch.cat([own, share * rest], 1) for own, share in zip(made, shares, strict=True)]

    def _sum(self, names: tuple[str, str], x: Tensor, scale_CO: Tensor) -> Tensor:
        first, second = (self.convolutions[name](x, scale_CO[:, _AT[name]]) for name in names)
        return first + second

    def skips(self, x: Tensor, skip: float, shares_T: Tensor | None) -> list[Tensor]:
        """The maps that the auxiliary skips add to each target, ``[B, C, H, W]`` each."""
        shares_T = x.new_ones(self.targets) if shares_T is None else shares_T
        if self.auxiliary is None:
            return [skip * share * x for share in shares_T]
        scale_C = skip * shares_T.repeat_interleave(self.channels)
        return list(self.auxiliary(functional.relu(x), scale_C).split(self.channels, 1))

    def beside(self, plain: Sequence[Any]) -> Iterator[tuple[nn.Module, Sequence[nn.Module]]]:
        """Each layer, beside those that it stands for in edges of the plain form, target by target."""
        operations = {name: [edge.operations[place] for edge in plain] for name, place in _AT.items()}
        for name, mine in self.convolutions.items():
            layers: Any = zip(mine.depthwise, mine.pointwise, mine.norms, strict=True)  # pyright: ignore[reportArgumentType]
            for stage, parts in enumerate(layers):
                # A rectifier begins each stage of the plain form.
                for place, part in enumerate(parts, start=4 * stage + 1):
                    yield part, [one[place] for one in operations[name]]
        yield from ((mine, operations[name]) for name, mine in self.pools.items())
        for mine, theirs in (
            (self.reduce, operations["skip_connect"]),
            (self.auxiliary, [edge.auxiliary for edge in plain]),
        ):
            if mine is not None:
                for part in ("first", "second", "norm"):
                    yield getattr(mine, part), [getattr(one, part) for one in theirs]


class SharedCell(nn.Module):
    """A cell of mixtures with the arguments and the result of `MixedCell`."""

    def __init__(
        self, num_nodes: int, before: tuple[int, int], channels: int, *, reduction: bool, after_reduction: bool,
        partial: int = 1, auxiliary: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.inputs = inputs_of(before, channels, after_reduction=after_reduction)
        self.num_nodes, self.channels = num_nodes, num_nodes * channels
        self.partial, self.auxiliary = partial, auxiliary
        # The last node has no targets.
        self.sources = nn.ModuleList(
            SharedEdges(
                channels, num_nodes - max(0, source - INPUTS + 1), 2 if reduction and source < INPUTS else 1, partial,
                auxiliary=auxiliary,
            )
            for source in range(INPUTS + num_nodes - 1)
        )  # fmt: skip

    def rows(self, source: int) -> list[int]:
        """The rows of alpha of the edges that leave a node."""
        first = max(0, source - INPUTS + 1)
        return [sum(INPUTS + node for node in range(target)) + source for target in range(first, self.num_nodes)]

    def forward(
        self, earlier: Tensor, last: Tensor, weights_EO: Tensor, shares_E: Tensor | None = None, skip: float = 0.0
    ) -> Tensor:
        nodes = [layer(x) for layer, x in zip(self.inputs, (earlier, last), strict=True)]
        sums: list[list[Tensor]] = [[] for _ in range(self.num_nodes)]
        skips: list[list[Tensor]] = [[] for _ in range(self.num_nodes)]
        for source, leaving in enumerate(self.sources):
            if source >= INPUTS:
                nodes.append(self._node(sums[source - INPUTS], skips[source - INPUTS]))
            rows, first = self.rows(source), max(0, source - INPUTS + 1)
            shares_T = None if shares_E is None else shares_E[rows]
            for target, part in enumerate(leaving(nodes[source], weights_EO[rows], shares_T), start=first):
                sums[target].append(part)
            if self.auxiliary:
                for target, part in enumerate(leaving.skips(nodes[source], skip, shares_T), start=first):  # pyright: ignore[reportArgumentType, reportCallIssue]
                    skips[target].append(part)
        nodes.append(self._node(sums[-1], skips[-1]))
        return torch.cat(nodes[INPUTS:], 1)

    def _node(self, sums: list[Tensor], skips: list[Tensor]) -> Tensor:
        total = sum(sums[1:], sums[0])
        if self.partial > 1:
            total = functional.channel_shuffle(total, self.partial)
        return sum(skips, total)

    @torch.no_grad()
    def give(self, plain: MixedCell) -> None:
        """Give the weights and statistics to a cell in its plain form, so that both compute the same."""
        layers: list[tuple[nn.Module, Sequence[nn.Module]]] = [(self.inputs, [plain.inputs])]
        for source, leaving in enumerate(self.sources):
            layers += leaving.beside([plain.edges[row] for row in self.rows(source)])  # pyright: ignore[reportCallIssue]
        for mine, theirs in layers:
            states = [part.state_dict() for part in theirs]
            for name, value in mine.state_dict().items():
                alike = states[0][name].shape == value.shape
                rows = [value] * len(states) if alike else value.split(len(value) // len(states))
                for state, own in zip(states, rows, strict=True):
                    state[name].copy_(own)
