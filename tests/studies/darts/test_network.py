"""Operations, networks of found cells, the network of mixtures."""

import pytest
import torch
from torch import Tensor, nn

from etude.core.errors import UserError
from etude.studies.darts.choice import random_cell
from etude.studies.darts.genotype import OPERATIONS, Genotype, read
from etude.studies.darts.mixed import MixedOperation
from etude.studies.darts.model import CellNetwork, reductions
from etude.studies.darts.operations import MAKERS, FactorizedReduce, drop_path
from etude.studies.darts.supernet import SuperNetwork

B, C = 3, 4


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_shapes(name: str, stride: int) -> None:
    made = MAKERS[name](C, stride, True)
    assert made(draw(B, C, 8, 8)).shape == (B, C, 8 // stride, 8 // stride)
    assert set(MAKERS) == set(OPERATIONS)


@pytest.mark.parametrize(
    ("name", "stride", "count"),
    [
        ("none", 1, 0), ("skip_connect", 1, 0), ("max_pool_3x3", 2, 0),
        ("skip_connect", 2, C * C + 2 * C), ("sep_conv_3x3", 1, 2 * (9 * C + C * C + 2 * C)),
        ("sep_conv_5x5", 2, 2 * (25 * C + C * C + 2 * C)), ("dil_conv_3x3", 1, 9 * C + C * C + 2 * C),
        ("dil_conv_5x5", 2, 25 * C + C * C + 2 * C),
    ],
)  # fmt: skip
def test_parameters(name: str, stride: int, count: int) -> None:
    assert sum(p.numel() for p in MAKERS[name](C, stride, True).parameters()) == count


def test_none_and_skip_by_hand() -> None:
    x = draw(B, C, 8, 8)
    assert torch.equal(MAKERS["skip_connect"](C, 1, True)(x), x)
    assert not MAKERS["none"](C, 2, True)(x).any()


def test_a_mean_does_not_count_what_is_beyond_the_edge() -> None:
    assert torch.equal(MAKERS["avg_pool_3x3"](C, 1, True)(torch.ones(1, C, 4, 4)), torch.ones(1, C, 4, 4))


def test_a_reduction_sees_even_and_odd_places() -> None:
    made = FactorizedReduce(1, 2)
    made.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    for conv in (made.first, made.second):
        nn.init.ones_(conv.weight)
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.equal(made(x)[0], torch.stack([x[0, 0, ::2, ::2], x[0, 0, 1::2, 1::2]]))


def test_dropped_paths_keep_their_mean() -> None:
    coin = torch.tensor([0.1, 0.5, 0.9])
    found = drop_path(torch.ones(3, 1, 1, 1), 0.75, coin).flatten()
    assert found.tolist() == pytest.approx([1 / 0.75, 1 / 0.75, 0])


# --- networks of found cells ---


@pytest.mark.parametrize(("name", "count"), [("darts-v1", 3_169_414), ("darts-v2", 3_349_342), ("pc-darts", 3_634_678)])
def test_published_counts(name: str, count: int) -> None:
    with torch.device("meta"):
        assert CellNetwork(read(name)).num_parameters == count


@pytest.mark.parametrize("layers", [2, 3, 5, 8])
def test_a_network_of_any_cell(layers: int) -> None:
    generator = torch.Generator().manual_seed(layers)
    net = CellNetwork(Genotype(random_cell(4, generator), random_cell(4, generator)), C, layers, 7)
    logits, named = net(draw(B, 3, 32, 32))
    assert logits.shape == named["auxiliary"].shape == (B, 7)
    assert named["features"].shape[2:] == (8, 8)
    (logits.sum() + named["auxiliary"].sum()).backward()
    assert "auxiliary" not in net.eval()(draw(B, 3, 32, 32))[1]


def test_too_few_layers() -> None:
    assert reductions(20) == (6, 13)
    with pytest.raises(UserError, match="1 layers have no room for two reductions"):
        CellNetwork(read("darts-v2"), C, 1)


def test_paths_are_dropped_by_their_coins() -> None:
    net = CellNetwork(read("darts-v2"), C, 3).eval()
    x, kept = draw(B, 3, 32, 32), torch.zeros(B)
    whole = net(x)[0]
    assert torch.equal(net(x, 1.0, [[kept] * 8] * 3)[0], whole), "all kept"
    lost = torch.tensor([0.0, 0.9, 0.0])
    found = net(x, 1.0 - 1e-12, [[lost] * 8] * 3)[0]
    torch.testing.assert_close(found, whole)
    found = net(x, 0.5, [[kept, *[lost] * 7], *[[kept] * 8] * 2])[0]
    again = net(x[:1], 0.5, [[kept[:1]] * 8] * 3)[0]
    torch.testing.assert_close(found[:1], again)
    assert not torch.allclose(found[1], net(x, 0.5, [[kept] * 8] * 3)[0][1])


# --- the network of mixtures ---


@pytest.mark.parametrize("place", range(len(OPERATIONS)))
def test_a_mixture_of_one_is_that_one(place: int) -> None:
    torch.manual_seed(0)
    mixed, x = MixedOperation(C, 2).eval(), draw(B, C, 8, 8)
    weights = torch.nn.functional.one_hot(torch.tensor(place), len(OPERATIONS)).float()
    torch.testing.assert_close(mixed(x, weights), mixed.operations[place](x))


def test_alpha_and_weights_have_gradients_of_their_own() -> None:
    net = SuperNetwork(C, 3)
    logits, named = net(draw(B, 3, 16, 16))
    assert named["features"].shape == (B, 4 * 4 * C, 4, 4)
    logits.square().sum().backward()
    assert all(alpha.grad is not None and alpha.grad.any() for alpha in net.alpha.values())
    assert all(weight.grad is not None for weight in net.weights)
    held = {id(weight) for weight in net.weights}
    assert not held & {id(alpha) for alpha in net.alpha.values()}
    assert len(net.weights) == len(list(net.parameters())) - 2


def test_it_says_its_cell() -> None:
    net = SuperNetwork(C, 2)
    with torch.no_grad():
        net.alpha["normal"][:, OPERATIONS.index("dil_conv_5x5")] = 1
        net.alpha["reduction"][:, OPERATIONS.index("max_pool_3x3")] = 1
    assert net.genotype.count("dil_conv_5x5") == 8
    assert net.genotype.count("max_pool_3x3", "reduction") == 8
