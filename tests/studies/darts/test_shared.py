"""Cells whose edges share their work are the cells of the equation; partial channels, shares of edges, extra skips."""

import copy
import math
from typing import Any

import pytest
import torch
from tests.studies.darts.common import SMALL, draw
from torch import Tensor, nn

from etude.studies.darts.genotype import INPUTS, KINDS, OPERATIONS, Edge, edges, parse
from etude.studies.darts.mixed import MixedCell, MixedOperation
from etude.studies.darts.model import FoundCell
from etude.studies.darts.shared import SharedCell, SharedEdges
from etude.studies.darts.supernet import SuperNetwork, edge_shares

B, NODES, SIDE = 3, 2, 8
BEFORE = (5, 6)
E, NONE = len(edges(NODES)), OPERATIONS.index("none")


def cell_input(*, after_reduction: bool) -> tuple[Tensor, Tensor]:
    """Outputs of the two cells before; the first of twice the side where a reduction lies between them."""
    first = SIDE * (1 + after_reduction)
    return (
        draw(B, BEFORE[0], first, first, seed=1).requires_grad_(),
        draw(B, BEFORE[1], SIDE, SIDE, seed=2).requires_grad_(),
    )


def pair(channels: int, **options: Any) -> tuple[MixedCell, SharedCell]:
    """A cell in both forms, with statistics that are no longer those of the start."""
    torch.manual_seed(0)
    shared = SharedCell(NODES, BEFORE, channels, **options).double()
    with torch.no_grad():
        shared(*cell_input(after_reduction=options["after_reduction"]), draw(E, len(OPERATIONS)).softmax(1))
    plain = MixedCell(NODES, BEFORE, channels, **options).double()
    shared.give(plain)
    return plain, shared


def given(shared: SharedCell, like: MixedCell) -> MixedCell:
    """What a shared cell holds, laid out as the plain one has it."""
    other = copy.deepcopy(like)
    shared.give(other)
    return other


def with_gradients(shared: SharedCell) -> SharedCell:
    """A copy in whose parameters the gradients stand."""
    other = copy.deepcopy(shared)
    for mine, theirs in zip(other.parameters(), shared.parameters(), strict=True):
        assert theirs.grad is not None
        mine.data = theirs.grad
    return other


def close(left: Any, right: Any) -> None:
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("partial", "remedies", "training"),
    [(1, False, True), (1, True, True), (2, True, True), (4, True, True), (4, False, True), (2, True, False)],
)
@pytest.mark.parametrize(("reduction", "after_reduction"), [(False, False), (True, False), (False, True), (True, True)])
def test_a_shared_cell_is_the_plain_one(
    reduction: bool, after_reduction: bool, partial: int, remedies: bool, training: bool
) -> None:
    """In values, all gradients and running statistics; with shares of the edges and an extra skip, and without."""
    options = {"reduction": reduction, "after_reduction": after_reduction, "partial": partial, "auxiliary": remedies}
    plain, shared = (cell.train(training) for cell in pair(8, **options))
    shares = edge_shares(draw(E, seed=4), NODES) if remedies else None
    found: list[tuple[Any, ...]] = []
    for cell in (plain, shared):
        inputs = cell_input(after_reduction=after_reduction)
        alpha_EO = draw(E, len(OPERATIONS), seed=3).requires_grad_()
        own = None if shares is None else shares.clone().requires_grad_()
        out = cell(*inputs, alpha_EO.softmax(1), own, 0.7 if remedies else 0.0)
        (out * draw(*out.shape, seed=5)).sum().backward()
        found.append((out.detach(), *(x.grad for x in inputs), alpha_EO.grad, None if own is None else own.grad))
    assert found[0][0].shape == (B, NODES * 8, SIDE // (1 + reduction), SIDE // (1 + reduction))
    assert all(part is None or part.abs().max() > 1e-3 for part in found[0]), "nothing is equal for being zero"
    close(found[1], found[0])

    close(plain.state_dict(), given(shared, plain).state_dict())
    gradients = dict(given(with_gradients(shared), plain).named_parameters())
    for name, parameter in plain.named_parameters():
        close(parameter.grad, gradients[name])


def test_a_training_pass_moves_the_statistics_that_are_compared() -> None:
    _, shared = pair(4, reduction=False, after_reduction=False)
    before = {name: buffer.clone() for name, buffer in shared.named_buffers()}
    x = cell_input(after_reduction=False)
    shared(*x, draw(E, len(OPERATIONS)).softmax(1))
    assert all(not torch.equal(buffer, before[name]) for name, buffer in shared.named_buffers())
    shared.eval()(*x, draw(E, len(OPERATIONS)).softmax(1))
    after = {name: buffer.clone() for name, buffer in shared.named_buffers()}
    shared(*x, draw(E, len(OPERATIONS)).softmax(1))
    assert all(torch.equal(buffer, after[name]) for name, buffer in shared.named_buffers())


def networks(**options: Any) -> tuple[SuperNetwork, SuperNetwork]:
    """A network of mixtures in both forms, from one seed and with alphas that differ much."""
    made: list[SuperNetwork] = []
    for shared in (False, True):
        torch.manual_seed(0)
        net = SuperNetwork(4, 3, 5, NODES, shared=shared, **options)
        for kind in KINDS:
            nn.init.normal_(net.alpha[kind], generator=torch.Generator().manual_seed(1))
        made.append(net.double())
    return made[0], made[1]


@pytest.mark.parametrize(
    "options", [{}, {"partial": 2, "edge_norm": True}, {"auxiliary": True}, {"partial": 2, "auxiliary": True}]
)
def test_a_network_of_shared_cells_is_the_plain_one(options: dict[str, Any]) -> None:
    found: list[Any] = []
    for net in networks(**options):
        rows: list[Any] = []
        for _ in range(2):
            logits, named = net(draw(B, 3, SIDE, SIDE, seed=6), 0.6)
            gradients = torch.autograd.grad((logits * draw(B, 5, seed=7)).sum(), net.architecture)
            rows += [logits.detach(), named["features"].detach(), *gradients]
        with torch.no_grad():
            rows.append(net.eval()(draw(B, 3, SIDE, SIDE, seed=6), 0.6)[0])
        found.append(rows)
    close(found[1], found[0])
    # Of none too: what it takes, the others lack.
    by_normal = found[1][2]
    assert by_normal.shape == (E, len(OPERATIONS))
    assert (by_normal[:, NONE].abs() > 1e-6).all()


def test_channels_that_come_last_in_memory_change_nothing() -> None:
    """Of the shared form, whose norms are given slices of a table as their scale."""
    found: list[list[Tensor]] = []
    for last in (False, True):
        _, net = networks(partial=2, edge_norm=True)
        net, x = net.float(), draw(B, 3, SIDE, SIDE, seed=6, dtype=torch.float32)
        if last:
            net, x = (
                net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
            )  # fmt: skip
        out = net(x)[0]
        loss = (out * draw(B, 5, seed=7, dtype=torch.float32)).sum()
        found.append([out.detach(), *torch.autograd.grad(loss, [*net.architecture, *net.weights])])
    for mine, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-4 * max(1.0, theirs.abs().max().item()))


def test_an_extra_skip_of_weight_zero_is_none_at_all() -> None:
    """The extra skip counts as much as it is told to."""
    _, net = networks(auxiliary=True)
    x = draw(B, 3, SIDE, SIDE, seed=6)
    with torch.no_grad():
        whole, half, without = (net.eval()(x, skip)[0] for skip in (1.0, 0.5, 0.0))
    bare = SuperNetwork(4, 3, 5, NODES).double()
    bare.load_state_dict({name: value for name, value in net.state_dict().items() if name in bare.state_dict()})
    close(bare.eval()(x)[0], without)
    assert not torch.allclose(whole, half)
    assert not torch.allclose(half, without)


@pytest.mark.parametrize("shared", [True, False])
def test_the_papers_count(shared: bool) -> None:
    with torch.device("meta"):
        net = SuperNetwork(shared=shared)
    assert sum(weight.numel() for weight in net.weights) == 1_930_618
    assert [list(alpha.shape) for alpha in net.architecture] == [[14, 8], [14, 8]]


def test_fewer_channels_are_fewer_weights_by_hand() -> None:
    """Of one node a cell: two edges of stride 1 or 2, of a quarter of 8 channels."""

    def weights(cell: nn.Module) -> int:
        return sum(p.numel() for p in cell.parameters())

    inputs = 8 * (BEFORE[0] + BEFORE[1])
    # Separable ones have two of each, dilated ones one; a 1x1 convolution of 2 channels has 4 weights.
    mixture = 2 * (9 * 2 + 4) + 2 * (25 * 2 + 4) + (9 * 2 + 4) + (25 * 2 + 4)
    for reduction in (False, True):
        # The factorised reduction of a skip is a 1x1 convolution as well.
        expected = inputs + 2 * (mixture + 4 * reduction)
        for make in (MixedCell, SharedCell):
            made = make(1, BEFORE, 8, reduction=reduction, after_reduction=False, partial=4)
            assert weights(made) == expected


def test_a_mixture_of_one_cell_is_that_cell() -> None:
    """Of the edges that a found cell has, its operations; of all others none. Nodes and edges are wired alike."""
    genotype = parse(SMALL, "small")
    torch.manual_seed(0)
    for kind in KINDS:
        cell = tuple(
            tuple(Edge("sep_conv_3x3", edge.source) if "pool" in edge.operation else edge for edge in node)
            for node in genotype.cell(kind)
        )
        options = {"reduction": kind == "reduction", "after_reduction": True}
        plain, found = (MixedCell(NODES, BEFORE, 4, **options).double(), FoundCell(cell, BEFORE, 4, **options).double())
        shared = SharedCell(NODES, BEFORE, 4, **options).double()
        shared.give(plain)
        found.inputs.load_state_dict(plain.inputs.state_dict(), strict=False)
        weights = torch.zeros(E, len(OPERATIONS), dtype=torch.float64)
        weights[:, NONE] = 1
        for node, of_node in enumerate(cell):
            for place, edge in enumerate(of_node):
                row = edges(NODES).index((edge.source, INPUTS + node))
                weights[row] = 0
                weights[row, OPERATIONS.index(edge.operation)] = 1
                mine = plain.edges[row].operations[OPERATIONS.index(edge.operation)]  # pyright: ignore
                found.operations[node][place].load_state_dict(mine.state_dict(), strict=False)  # pyright: ignore
        x = cell_input(after_reduction=True)
        for mixture in (plain, shared):
            close(mixture.eval()(*x, weights), found.eval()(*x))


# --- partial channels ---


@pytest.mark.parametrize("stride", [1, 2])
def test_only_one_in_k_channels_goes_through_the_operations(stride: int) -> None:
    """Of 8 channels and K = 4 the first two; what is done to the others no operation sees."""
    torch.manual_seed(0)
    mixed = MixedOperation(8, stride, 4).double().eval()
    seen: list[Tensor] = []
    for operation in mixed.operations:
        operation.register_forward_hook(lambda _, args, out: seen.append(out))
    x, weights = draw(B, 8, SIDE, SIDE), draw(8).softmax(0)
    other = x.clone()
    other[:, 2:] = draw(B, 6, SIDE, SIDE, seed=9)
    one, two = mixed(x, weights), mixed(other, weights)
    assert len(seen) == 16
    for before, after in zip(seen[:8], seen[8:], strict=True):
        assert before.shape[1] == 2
        assert torch.equal(before, after)
    # Shuffled: the two that went through stand at 0 and 4, between them the six that went round, in twos.
    assert torch.equal(one[:, [0, 4]], two[:, [0, 4]])
    close(one[:, [0, 4]], sum(weight * made for weight, made in zip(weights, seen[:8], strict=True)))
    around = nn.functional.max_pool2d(other[:, 2:], 2) if stride == 2 else other[:, 2:]
    assert torch.equal(two[:, [1, 5, 2, 6, 3, 7]], around)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_shared_form_sends_the_same_channels_round(stride: int) -> None:
    torch.manual_seed(0)
    leaving = SharedEdges(8, 2, stride, 4).double().eval()
    x, weights = draw(B, 8, SIDE, SIDE), draw(2, 8).softmax(1)
    other = x.clone()
    other[:, 2:] = draw(B, 6, SIDE, SIDE, seed=9)
    shares = torch.tensor([0.25, 0.75], dtype=torch.float64)
    around = nn.functional.max_pool2d(other[:, 2:], 2) if stride == 2 else other[:, 2:]
    for target, (one, two) in enumerate(zip(leaving(x, weights, shares), leaving(other, weights, shares), strict=True)):
        assert torch.equal(one[:, :2], two[:, :2])
        close(two[:, 2:], shares[target] * around)


# --- shares of edges, extra skips ---


def test_shares_by_hand() -> None:
    beta = torch.tensor([0, math.log(3), 0, 0, math.log(2)])
    torch.testing.assert_close(edge_shares(beta, 2), torch.tensor([0.25, 0.75, 0.25, 0.25, 0.5]))


@pytest.mark.parametrize("num_nodes", [1, 2, 4])
def test_the_shares_of_a_node_sum_to_one(num_nodes: int) -> None:
    shares = edge_shares(draw(len(edges(num_nodes))), num_nodes)
    into: dict[int, float] = {}
    for (_, node), share in zip(edges(num_nodes), shares.tolist(), strict=True):
        into[node] = into.get(node, 0.0) + share
    assert list(into) == [INPUTS + node for node in range(num_nodes)]
    assert list(into.values()) == pytest.approx([1.0] * num_nodes)


def test_shares_have_a_say_in_the_cell() -> None:
    """An edge whose operation weighs most, but which itself weighs little, is left out."""
    net = SuperNetwork(4, 2, 5, NODES, edge_norm=True)
    with torch.no_grad():
        net.alpha["normal"].zero_()
        net.beta["normal"].zero_()
        net.alpha["normal"][2, OPERATIONS.index("sep_conv_5x5")] = 3.0
    assert {edge.source for edge in net.genotype.normal[1]} == {0, 1}
    with torch.no_grad():
        net.beta["normal"][2] = -5.0
    assert {edge.source for edge in net.genotype.normal[1]} == {1, 2}
    assert [list(beta.shape) for beta in net.beta.values()] == [[E], [E]]
    assert [id(one) for one in net.architecture] == [id(one) for one in (*net.alpha.values(), *net.beta.values())]


def test_an_extra_skip_adds_its_input() -> None:
    torch.manual_seed(0)
    mixed, x, weights = MixedOperation(4, 1, auxiliary=True).double().eval(), draw(B, 4, 8, 8), draw(8).softmax(0)
    close(mixed(x, weights, 0.5) - mixed(x, weights, 0.0), 0.5 * x)
