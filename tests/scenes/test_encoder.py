"""Codes of positions, the encoders against PyTorch's layers and torchvision's ResNet-18, a user's own, the whole."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from etude.core.errors import UserError
from etude.nn.conv import he_
from etude.scenes.encoder import ConvEncoder, PositionCode, ResNet18Encoder, SlotEncoder, make_encoder, noise_scale
from etude.scenes.slot_attention import SlotAttention


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


# --- positions ---


def test_positions_are_distances_to_the_four_sides() -> None:
    code = PositionCode(4, 3, 5)
    with torch.no_grad():
        code.linear.weight.copy_(torch.eye(4))
        code.linear.bias.zero_()
    found = code()
    assert found.shape == (4, 3, 5)
    down, right = torch.tensor([0, 0.5, 1]), torch.tensor([0, 0.25, 0.5, 0.75, 1])
    torch.testing.assert_close(found[0], down[:, None].expand(3, 5))
    torch.testing.assert_close(found[1], right[None, :].expand(3, 5))
    torch.testing.assert_close(found[2], down.flip(0)[:, None].expand(3, 5))
    torch.testing.assert_close(found[3], right.flip(0)[None, :].expand(3, 5))


def test_positions_are_mapped_linearly() -> None:
    code = PositionCode(2, 2, 3)
    with torch.no_grad():
        code.linear.weight.copy_(torch.tensor([[1.0, 10, 100, 1000], [0, 0, 0, 2]]))
        code.linear.bias.copy_(torch.tensor([0.5, 3]))
    # Of the place in the second row and the second column: y = 1, x = .5.
    assert code()[:, 1, 1].tolist() == [1 + 5 + 0 + 500 + 0.5, 2 * 0.5 + 3]
    assert set(code.state_dict()) == {"linear.weight", "linear.bias"}, "the grid is not in a checkpoint"


# --- four convolutions ---


@pytest.mark.parametrize(("strides", "side"), [((1, 1, 1, 1), 16), ((1, 2, 1, 1), 8), ((1, 2, 2, 1), 4)])
def test_conv_is_four_layers_of_pytorch(strides: tuple[int, ...], side: int) -> None:
    net, x = ConvEncoder(6, strides).double(), draw(2, 3, 16, 16)
    found = net(x)
    assert found.shape == (2, 6, side, side)
    state = list(net.state_dict().values())
    assert [tuple(value.shape) for value in state[::2]] == [(6, 3, 5, 5), *[(6, 6, 5, 5)] * 3]
    for place, stride in enumerate(strides):
        x = functional.conv2d(x, state[2 * place], state[2 * place + 1], stride, 2).clamp(min=0)
    torch.testing.assert_close(found, x)
    assert found.min() == 0, "a ReLU after the last one too"


# --- ResNet-18 ---


def test_resnet18_has_the_published_number_of_parameters() -> None:
    net = ResNet18Encoder(64)
    assert count(net) - count(net.last) == 11_168_832
    assert count(net.last) == 512 * 64 + 64


def theirs() -> nn.Module:
    """torchvision's, with group norms, a stem for small pictures and three strides fewer."""
    net = torchvision.models.resnet18(norm_layer=lambda channels: nn.GroupNorm(32, channels))
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    first: Any = net.layer4[0]
    first.conv1.stride = first.downsample[0].stride = (1, 1)
    parts = (net.conv1, net.bn1, net.relu, net.layer1, net.layer2, net.layer3, net.layer4)
    return nn.Sequential(*parts)


def test_resnet18_is_torchvisions() -> None:
    """Values and the gradients of every weight and of the picture, in float64."""
    ours, twin = ResNet18Encoder(5).double(), theirs().double()
    draws = torch.Generator().manual_seed(1)
    last = {id(parameter) for parameter in ours.last.parameters()}
    mine = [parameter for parameter in ours.parameters() if id(parameter) not in last]
    other = list(twin.parameters())
    with torch.no_grad():
        for left, right in zip(mine, other, strict=True):
            # Norms that do nothing would hide that they are in the wrong order.
            if left.ndim == 1:
                left += 0.3 * torch.randn(left.shape, generator=draws, dtype=left.dtype)
            right.copy_(left)
    x, y = draw(2, 3, 16, 16).requires_grad_(), draw(2, 3, 16, 16).requires_grad_()
    found, wanted = ours(x), ours.last(twin(y))
    assert found.shape == (2, 5, 4, 4)
    torch.testing.assert_close(found, wanted)
    pull = draw(2, 5, 4, 4, seed=2)
    torch.testing.assert_close(
        torch.autograd.grad((found * pull).sum(), [x, *mine]), torch.autograd.grad((wanted * pull).sum(), [y, *other])
    )


@pytest.mark.parametrize("width", [2, 8, 20])
def test_resnet18_may_be_narrow(width: int) -> None:
    net = ResNet18Encoder(7, width)
    assert net(torch.randn(1, 3, 32, 32)).shape == (1, 7, 8, 8)
    assert net.last.in_channels == 8 * width


def test_resnet18_starts_as_he_says() -> None:
    """A deviation of the root of two over the results that an input takes part in."""
    torch.manual_seed(0)
    net = ResNet18Encoder(8, 16)
    block: Any = net.blocks[2]
    weight = block.conv2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 32)), rel=0.03)


def test_the_other_layers_start_as_glorot_says() -> None:
    """As in the authors' code: uniform weights of the variance two over what comes in and goes out, and no bias."""
    torch.manual_seed(0)
    encoder = ConvEncoder(16)
    net = SlotEncoder(encoder, (4, 4), 16, SlotAttention(3, 16, 8))
    attention = net.attention
    for layer in (net.mlp[0], net.mlp[2], net.positions.linear, attention.to_queries, attention.mlp[0]):
        assert isinstance(layer, nn.Linear)
        bound = math.sqrt(6 / (layer.weight.shape[0] + layer.weight.shape[1]))
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert layer.bias is None or (layer.bias == 0).all()
    # Each half of the layer that is two has the start of one.
    for half in attention.to_keys_and_values.weight.chunk(2):
        bound = math.sqrt(6 / sum(half.shape))
        assert 0.8 * bound < half.abs().max() <= bound


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_start_so_that_a_relu_keeps_the_mean_square(stride: int, transposed: bool) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"stride": stride, "padding": 2}
    if transposed:
        layer: nn.Module = nn.ConvTranspose2d(32, 32, 5, output_padding=stride - 1, **options)
    else:
        layer = nn.Conv2d(32, 32, 5, **options)
    he_(layer)
    x = torch.randn(8, 32, 24, 24).relu()
    # A ReLU leaves half of the mean square of what is as often below zero as above.
    before, after = (part[:, :, 4:-4, 4:-4].square().mean().item() for part in (x, layer(x)))
    assert after / 2 / before == pytest.approx(1, rel=0.1)


# --- a user's own ---

MINE = """
from torch import nn
import torch

class Good(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 4, 4)
        self.drop = nn.Dropout(0.5)
    def forward(self, x):
        return self.drop(self.conv(x))[:, :, 1:]

class Flat(Good):
    def forward(self, x):
        return self.conv(x).flatten(2)

class Narrow(Good):
    def __init__(self, channels):
        super().__init__(channels - 1)

class Pair(Good):
    def forward(self, x):
        return self.conv(x), x

class Raises(Good):
    def __init__(self, channels):
        raise RuntimeError("no\\nroom")

class RaisesLater(Good):
    def forward(self, x):
        raise KeyError("weights")

class Nothing(nn.Module):
    def __init__(self):
        super().__init__()

def function(channels):
    return lambda x: x

number = 3
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_a_users_encoder(mine: Path) -> None:
    encoder, places = make_encoder(f"{mine}:Good", 6, 16)
    assert places == (3, 4)
    assert encoder.training, "it is tried in evaluation mode and given back in training mode"


@pytest.mark.parametrize(("options", "side"), [({}, 16), ({"strides": (2, 1, 2, 1)}, 4)])
def test_a_built_in_encoder_takes_options(options: dict[str, Any], side: int) -> None:
    encoder, places = make_encoder("conv", 4, 16, **options)
    assert isinstance(encoder, ConvEncoder)
    assert places == (side, side)
    wide, places = make_encoder("resnet18", 4, 16, width=2)
    assert isinstance(wide, ResNet18Encoder)
    assert wide.conv.out_channels == 2
    assert places == (4, 4)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Flat", "must map [1, 3, 16, 16] to [1, 6, h, w], not [1, 6, 16]"),
        ("Narrow", "must map [1, 3, 16, 16] to [1, 6, h, w], not [1, 5, 3, 4]"),
        ("Pair", "must map [1, 3, 16, 16] to [1, 6, h, w], not ("),
        ("Raises", "failed on [1, 3, 16, 16]: RuntimeError: no room"),
        ("RaisesLater", "failed on [1, 3, 16, 16]: KeyError: 'weights'"),
        ("Nothing", "failed on [1, 3, 16, 16]: TypeError"),
        ("function", "is no torch.nn.Module"),
        ("number", "failed on [1, 3, 16, 16]: TypeError"),
        ("Godo", "has no 'Godo'; did you mean 'Good'?"),
    ],
)
def test_a_users_encoder_that_does_not_fit(mine: Path, name: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        make_encoder(f"{mine}:{name}", 6, 16)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"), [("nowhere.py:Good", "no file nowhere.py"), ("resnet81", "did you mean 'resnet18'?")]
)
def test_no_such_encoder(name: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        make_encoder(name, 6, 16)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


# --- the whole ---


def test_noise_fades() -> None:
    assert noise_scale(0, 100) == 1
    assert noise_scale(50, 100) == pytest.approx(0.5)
    assert noise_scale(25, 100) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert noise_scale(100, 100) == noise_scale(1000, 100) == 0
    assert noise_scale(0, 0) == noise_scale(7, 0) == 0
    values = [noise_scale(step, 20) for step in range(25)]
    assert values == sorted(values, reverse=True)


def slot_encoder() -> SlotEncoder:
    torch.manual_seed(0)
    encoder, places = make_encoder("conv", 6, 8, strides=(1, 2, 1, 1))
    net = SlotEncoder(encoder, places, 6, SlotAttention(3, 6, 5, iterations=2)).double()
    with torch.no_grad():
        net.norm.weight.uniform_(0.5, 1.5)
        net.norm.bias.uniform_(-0.5, 0.5)
    return net


def test_features_by_hand() -> None:
    """A place at a time: the sum with its position, centred and scaled, then two layers."""
    net, images = slot_encoder(), draw(2, 3, 8, 8)
    p = {name: value.detach() for name, value in net.state_dict().items()}
    maps = net.encoder(images).detach()
    found = net.features(images)
    assert found.shape == (2, 16, 6)
    for row in range(4):
        for column in range(4):
            y, x = row / 3, column / 3
            place = torch.tensor([y, x, 1 - y, 1 - x], dtype=torch.float64)
            v = maps[:, :, row, column] + p["positions.linear.weight"] @ place + p["positions.linear.bias"]
            centred = v - v.mean(1, keepdim=True)
            v = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * p["norm.weight"] + p["norm.bias"]
            v = (v @ p["mlp.0.weight"].T + p["mlp.0.bias"]).clamp(min=0) @ p["mlp.2.weight"].T + p["mlp.2.bias"]
            torch.testing.assert_close(found[:, 4 * row + column], v, rtol=1e-6, atol=1e-7)


def test_slots_are_those_of_the_features() -> None:
    net, images, noise = slot_encoder(), draw(2, 3, 8, 8), draw(2, 3, 5, seed=1)
    wanted = net.attention(net.features(images), noise, iterations=4)
    found = net(images, noise, iterations=4)
    assert torch.equal(found.slots_BKS, wanted.slots_BKS)
    assert found.attention_BTKN.shape == (2, 4, 3, 16)
    assert net(images, noise).attention_BTKN.shape == (2, 2, 3, 16)


def test_spread_reaches_the_start() -> None:
    net, images, noise = slot_encoder(), draw(2, 3, 8, 8), draw(2, 3, 5, seed=1)
    net.attention = SlotAttention(3, 6, 5, init="bilevel").double()
    wanted = net.attention(net.features(images), noise, spread=0.5).slots_BKS
    found = net(images, noise, spread=0.5).slots_BKS
    assert torch.equal(found, wanted)
    assert not torch.equal(found, net(images, noise, spread=0.0).slots_BKS)
    assert torch.equal(net(images, noise, spread=0.0).slots_BKS, net(images, spread=0.0).slots_BKS)


def test_resnet18_without_its_last_stage_is_torchvisions_with_group_norms() -> None:
    net = ResNet18Encoder(256, stages=3, projection=False).double()
    assert sum(parameter.numel() for parameter in net.parameters()) == 2_775_104
    twin = torchvision.models.resnet18(norm_layer=lambda channels: nn.GroupNorm(32, channels)).double()
    twin.conv1, twin.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False).double(), nn.Identity()
    twin.layer4 = twin.avgpool = twin.fc = nn.Identity()
    ours, theirs = list(net.parameters()), list(twin.parameters())
    assert [parameter.shape for parameter in ours] == [parameter.shape for parameter in theirs]
    with torch.no_grad():
        for parameter, other in zip(ours, theirs, strict=True):
            other.copy_(parameter)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(net(x), twin(x).view(2, 256, 4, 4))
