"""The fast layout of the Inception network against its graph as published."""

import os
import warnings
from pathlib import Path

import pytest
import torch
from tests.metrics import narrow_inception
from torch import Tensor

from etude.metrics.inception import SIDE, Conv, Mixed, Network


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return narrow_inception.state()


def large(count: int) -> Tensor:
    return 255 * torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_features_are_those_of_the_published_graph(state: dict[str, Tensor]) -> None:
    network, images = Network(state).eval(), large(2)
    found, wanted = network(images), narrow_inception.features(state, images)
    assert found.shape == (2, network.num_features) == (2, 128)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_published_shapes_make_2048_features() -> None:
    with torch.device("meta"):
        shapes = {name: torch.empty(value.shape) for name, value in narrow_inception.state(1).items()}
        network = Network(shapes)
    assert network.num_features == 2048
    # Scale-free batch norm: three numbers a channel become one.
    assert sum(p.numel() for p in network.parameters()) == 21_768_352


def test_batch_norm_is_folded() -> None:
    state = {"a.weight": torch.tensor([[[[2.0]]]]), "a.beta": torch.tensor([1.0]), "a.mean": torch.tensor([3.0]),
             "a.var": torch.tensor([0.249])}  # fmt: skip
    # (2 x - 3) / sqrt(0.249 + 0.001) + 1 = 4 x - 5.
    found = Conv(state, "a")(torch.tensor([5.0, 1.0]).view(2, 1, 1, 1))
    torch.testing.assert_close(found.flatten(), torch.tensor([15.0, 0.0]))


@torch.inference_mode()
def test_a_border_pixel_is_pooled_over_what_is_there(state: dict[str, Tensor]) -> None:
    block = Mixed(state, "mixed", short=1, long=2)
    # Of a constant map the mean is the constant at the border too, if the padding is left out.
    out = block(torch.full((1, 12, 5, 5), 3.0))[0, -2:]
    torch.testing.assert_close(out, out[:, 2:3, 2:3].expand_as(out))


@pytest.mark.parametrize("name", ["conv.weight", "mixed_4.tower_1.conv_3.var", "mixed_10.tower_2_conv.beta"])
def test_a_missing_layer_is_named(state: dict[str, Tensor], name: str) -> None:
    with pytest.raises(KeyError, match=name.replace(".", r"\.")):
        Network({key: value for key, value in state.items() if key != name})


@pytest.mark.real_data
@torch.inference_mode()
def test_features_are_those_of_the_published_file() -> None:
    if "ETUDE_INCEPTION" not in os.environ:
        pytest.skip("no Inception weights: set ETUDE_INCEPTION to the file")
    path = Path(os.environ["ETUDE_INCEPTION"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        published = torch.jit.load(path, map_location="cpu").eval()
    images = large(3)
    wanted = published.layers((images - 128) / 128).flatten(1)
    found = Network(published.layers.state_dict()).eval()(images)
    assert found.shape == (3, 2048)
    assert ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max() < 1e-5
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
