"""The decoder against a plain form, its coarse beginning, sets of slots, checkpoints, settings that make no sense."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.studies.slots.common import draw, network, one_line, settings
from torch import Tensor, nn
from torch.nn import functional

from etude.core.checkpoint import WeightsHeader, load_weights, read_weights, save_weights
from etude.core.config import to_dict
from etude.core.errors import UserError
from etude.nn.pixels import prepare, to_bytes
from etude.scenes.scores import segments
from etude.studies.slots.model import BroadcastDecoder, make_decoder
from etude.studies.slots.study import STUDY

B, K, S = 2, 3, 8


def decoder(size: int = 16, **options: Any) -> BroadcastDecoder:
    torch.manual_seed(0)
    given_options: dict[str, Any] = {"width": 4, "layers": 0} | options
    return BroadcastDecoder(S, size, **given_options).double()


# --- the plain form ---


def doubled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A transposed convolution: zeros between the values, and a convolution with the kernel turned about."""
    count, channels, height, width = x.shape
    spaced = x.new_zeros(count, channels, height, 2, width, 2)
    spaced[:, :, :, 0, :, 0] = x
    spaced = spaced.reshape(count, channels, 2 * height, 2 * width)
    return functional.conv2d(spaced, weight.transpose(0, 1).flip(2, 3), bias, padding=2)


def plain(net: BroadcastDecoder, slots_MS: Tensor, side: int, size: int) -> Tensor:
    """The slots at every place, the positions added, and every layer in full."""
    p = dict(net.named_parameters())
    line = torch.linspace(0, 1, side)
    y, x = line[:, None].expand(side, side), line[None, :].expand(side, side)
    # The places are kept in float32.
    places = torch.stack([y, x, 1 - y, 1 - x], -1).double()
    code = places @ p["positions.linear.weight"].T + p["positions.linear.bias"]
    maps = (slots_MS[:, None, None, :] + code).movedim(-1, 1)
    names = [name.removesuffix(".weight") for name in p if name.endswith("weight")]
    layers = [name for name in names if name.startswith(("first", "ups", "further"))]
    for name in layers:
        weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
        layer = doubled if maps.shape[-1] < size else lambda *given: functional.conv2d(*given, padding=2)
        maps = layer(maps, weight, bias).clamp(min=0)
    return functional.conv2d(maps, p["last.weight"], p["last.bias"], padding=1)


@pytest.mark.parametrize(
    ("size", "side", "layers"),
    [(16, 8, 0), (16, 8, 2), (16, 16, 1), (16, 16, 3), (32, 16, 1), (32, 8, 0), (32, 8, 1), (8, 1, 0)],
)
def test_it_is_the_plain_form(size: int, side: int, layers: int) -> None:
    """Values and all gradients, in float64."""
    net, slots = decoder(size, side=side, layers=layers), draw(5, S).requires_grad_()
    found, wanted = net(slots), plain(net, slots, side, size)
    assert found.shape == (5, 4, size, size)
    torch.testing.assert_close(found, wanted)
    pull, leaves = torch.randn_like(wanted), [slots, *net.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad((found * pull).sum(), leaves), torch.autograd.grad((wanted * pull).sum(), leaves)
    )


def test_the_published_forms_have_their_parameters() -> None:
    """Locatello et al. 2020, tables 4 and 5: five layers of 5x5, or three at full resolution, and one of 3x3."""
    five, last, code = 64 * 64 * 25 + 64, 4 * 64 * 9 + 4, 4 * 64 + 64
    clevr, small = BroadcastDecoder(64, 128), BroadcastDecoder(64, 64, side=64, layers=3)
    assert sum(p.numel() for p in clevr.parameters()) == code + 5 * five + last == 514_948
    assert sum(p.numel() for p in small.parameters()) == code + 3 * five + last


# --- coarse ---


def bilinear(x: Tensor) -> Tensor:
    """Twice as many places, whose middles lie a quarter of the way to the next, edges repeated."""
    for axis in (2, 3):
        count = x.shape[axis]
        before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, count - 1)], axis)
        after = torch.cat([x.narrow(axis, 1, count - 1), x.narrow(axis, count - 1, 1)], axis)
        pairs = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
        x = pairs.flatten(axis, axis + 1)
    return x


def test_coarse_is_the_interpolation_of_the_smaller_picture() -> None:
    net, slots = decoder(side=4, coarse=True), draw(3, S)
    smaller = decoder(8, side=4)
    state = net.state_dict()
    smaller.load_state_dict({name: value for name, value in state.items() if name in smaller.state_dict()})
    smaller.coarse = False
    torch.testing.assert_close(net(slots), bilinear(smaller(slots)))


def test_what_waits_has_a_gradient_of_zero() -> None:
    """Several processes wait for one of every parameter."""
    net = decoder(side=4, coarse=True)
    net(draw(3, S)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.abs().max() > 0) != name.startswith("ups.0"), name
    net.coarse = False
    net.zero_grad()
    net(draw(3, S)).square().sum().backward()
    layer: Any = net.ups[0]
    waited = layer.weight
    assert waited.grad is not None
    assert waited.grad.abs().max() > 0


def test_the_layer_that_waits_begins_as_an_interpolation() -> None:
    net, x = decoder(32, side=4, coarse=True), draw(2, 4, 8, 8)
    ups: list[Any] = list(net.ups)
    found = ups[-1](x)
    torch.testing.assert_close(found[:, :, ::2, ::2], x)
    torch.testing.assert_close(found[:, :, 1:-1:2, ::2], (x[:, :, :-1] + x[:, :, 1:]) / 2)
    torch.testing.assert_close(found[:, :, ::2, 1:-1:2], (x[..., :-1] + x[..., 1:]) / 2)
    torch.testing.assert_close(
        found[:, :, 1:-1:2, 1:-1:2], (x[:, :, :-1, :-1] + x[:, :, 1:, :-1] + x[:, :, :-1, 1:] + x[:, :, 1:, 1:]) / 4
    )
    with pytest.raises(AssertionError):
        torch.testing.assert_close(ups[0](x)[:, :, ::2, ::2], x)


class Flat(nn.Module):
    """In place of the first layer: the same at every place."""

    def forward(self, slots_MS: Tensor, _: Tensor) -> Tensor:
        return slots_MS[:, :4, None, None].expand(-1, -1, 8, 8)


def test_what_is_flat_does_not_change_when_it_takes_over() -> None:
    net, other, slots = decoder(side=4, coarse=True), decoder(side=4), draw(3, S)
    for each in (net, other):
        each.first = Flat()  # pyright: ignore[reportAttributeAccessIssue]
    before = net(slots)
    net.coarse = False
    inner = (..., slice(3, -3), slice(3, -3))
    torch.testing.assert_close(net(slots)[inner], before[inner])
    assert (other(slots) - before)[inner].abs().mean() > 1e-2


@pytest.mark.parametrize("options", [{"side": 8}, {"side": 4, "layers": 1}, {"side": 16, "layers": 1}])
def test_no_doubling_can_wait_elsewhere(options: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        decoder(coarse=True, **options)


@pytest.mark.parametrize("coarse", [True, False])
def test_a_checkpoint_knows_how_it_decodes(tmp_path: Path, coarse: bool) -> None:
    options: dict[str, Any] = {"model__broadcast": 4}
    net, other = network(coarse=coarse, **options), network(coarse=not coarse, seed=1, **options)
    slots = draw(B, K, S, dtype=torch.float32)
    path = tmp_path / "weights.safetensors"
    save_weights(path, {"model": net}, WeightsHeader("slots", to_dict(settings(**options)), {}))
    load_weights({"model": other}, read_weights(path)[0], path)
    assert isinstance(other.decoder, BroadcastDecoder)
    assert other.decoder.coarse is coarse
    assert torch.equal(other.decode(slots)[0], net.decode(slots)[0])
    # It is not for the weights alone that it does.
    other.decoder.coarse = not coarse
    assert not torch.equal(other.decode(slots)[0], net.decode(slots)[0])
    assert int(other.decoder.stage) == (not coarse)


# --- sets of slots ---


def test_masks_share_every_pixel() -> None:
    net, slots = network(), draw(B, K, S, dtype=torch.float32)
    image, named = net.decode(slots)
    assert image.shape == (B, 3, 16, 16)
    assert named["contents"].shape == (B, K, 3, 16, 16)
    torch.testing.assert_close(named["masks"].sum(1), torch.ones(B, 16, 16))
    maps = net.decoder(slots.flatten(0, 1)).view(B, K, 4, 16, 16)
    weights = maps[:, :, 3].exp() / maps[:, :, 3].exp().sum(1, keepdim=True)
    torch.testing.assert_close(named["masks"], weights)
    torch.testing.assert_close(image, sum(weights[:, k, None] * maps[:, k, :3] for k in range(K)))
    assert torch.equal(segments(named["masks"]), maps[:, :, 3].argmax(1))


@given(st.permutations(range(5)))
def test_the_order_of_the_slots_means_nothing(order: list[int]) -> None:
    net, slots = network().double(), draw(B, 5, S)
    (image, named), (permuted, other) = net.decode(slots), net.decode(slots[:, order])
    torch.testing.assert_close(permuted, image, rtol=1e-5, atol=1e-6)
    for name in ("contents", "masks"):
        torch.testing.assert_close(other[name], named[name][:, order])


@pytest.mark.parametrize("init", ["gaussian", "bilevel"])
def test_slots_that_start_in_another_order_end_in_it(init: str) -> None:
    net, images = network(model__init=init), draw(B, 3, 16, 16, dtype=torch.float32)
    noise, order = draw(B, K, S, seed=1, dtype=torch.float32), [2, 0, 1]
    attention = net.encoder.attention
    image, named = net(images, noise)
    if init == "bilevel":
        with torch.no_grad():
            attention.start.copy_(attention.start[:, order])
    permuted, other = net(images, noise[:, order])
    assert named["attention"].shape == (B, 2, K, 64)
    torch.testing.assert_close(permuted, image, rtol=1e-4, atol=1e-5)
    for name, dim in (("slots", 1), ("masks", 1), ("contents", 1), ("attention", 2)):
        wanted = named[name].index_select(dim, torch.tensor(order))
        torch.testing.assert_close(other[name], wanted, rtol=1e-4, atol=1e-5)


# --- bytes ---


def test_bytes_and_back() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    assert images.unique().numel() == 256
    prepared = prepare(images)
    assert prepared.shape == (1, 3, 16, 16)
    assert (prepared.min().item(), prepared.max().item()) == (-1, 1)
    assert prepared.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(to_bytes(prepared), images)
    # Out of range, and halves.
    assert to_bytes(torch.tensor([-3.0, 3.0, 0.0])[:, None, None, None]).flatten().tolist() == [0, 255, 128]


# --- a user's own decoder ---

MINE = """
import torch
from torch import nn

class Good(nn.Module):
    def __init__(self, slot_size, size):
        super().__init__()
        self.size = size
        self.linear = nn.Linear(slot_size, 4 * size * size)
        self.drop = nn.Dropout(0.5)
    def forward(self, slots):
        return self.drop(self.linear(slots)).view(-1, 4, self.size, self.size)

class Three(Good):
    def forward(self, slots):
        return super().forward(slots)[:, :3]

class Raises(Good):
    def __init__(self, slot_size, size):
        raise ValueError("no\\nroom")

class RaisesLater(Good):
    def forward(self, slots):
        raise IndexError("slots")

class Pair(Good):
    def forward(self, slots):
        return [slots]

class NoSize(nn.Module):
    def __init__(self, slot_size):
        super().__init__()
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_a_users_decoder_trains(mine: Path) -> None:
    net = network(model__decoder=f"{mine}:Good")
    assert net.decoder.training, "it is tried in evaluation mode and given back in training mode"
    image, _ = net(draw(B, 3, 16, 16, dtype=torch.float32), draw(B, K, S, seed=1, dtype=torch.float32))
    image.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.decoder.parameters())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Three", "must map [2, 8] to [2, 4, 16, 16], not [2, 3, 16, 16]"),
        ("Pair", "must map [2, 8] to [2, 4, 16, 16], not list"),
        ("Raises", "failed on [2, 8]: ValueError: no room"),
        ("RaisesLater", "failed on [2, 8]: IndexError: slots"),
        ("NoSize", "failed on [2, 8]: TypeError"),
        ("Goood", "has no 'Goood'; did you mean 'Good'?"),
    ],
)
def test_a_users_decoder_that_does_not_fit(mine: Path, name: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        network(model__decoder=f"{mine}:{name}")
    one_line(caught, says)


def test_no_such_decoder() -> None:
    with pytest.raises(UserError) as caught:
        make_decoder("brodcast", S, 16)
    one_line(caught, "no decoder 'brodcast'", "did you mean 'broadcast'?")


def test_a_users_encoder_is_found(tmp_path: Path) -> None:
    path = tmp_path / "encoder.py"
    path.write_text("from torch import nn\n\n\ndef mine(channels):\n    return nn.Conv2d(3, channels, 8, 8)\n")
    net = network(model__encoder=f"{path}:mine")
    assert isinstance(net.encoder.encoder, nn.Conv2d)
    assert net.encoder.places == (2, 2)
    assert network(model__encoder="resnet18", model__encoder_width=2).encoder.places == (4, 4)


# --- settings ---


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model__num_slots": 1}, "model.num_slots must be at least 2 (one slot has nothing to share), not 1"),
        ({"model__size": 12}, "model.size must be a multiple of 8 up to 512, not 12"),
        ({"model__size": 0}, "model.size must be a multiple of 8"),
        ({"model__size": 1024}, "up to 512"),
        ({"model__broadcast": 12}, "model.broadcast must be one of 16, 8, 4, 2, 1 for 16 px, not 12"),
        ({"model__size": 24, "model__broadcast": 8}, "model.broadcast must be one of 24, 12, 6, 3 for 24 px, not 8"),
        ({"model__strides": (1, 3, 1, 1)}, "model.strides must be of 1 and 2"),
        ({"model__strides": (1, 1, 1)}, "model.strides"),
        ({"model__broadcast": 16}, "model.decoder_layers must be at least 1, not 0"),
        ({"model__decoder_layers": -1}, "model.decoder_layers must be at least 0, not -1"),
        ({"model__init": "normal"}, "model.init"),
        *(
            ({f"model__{name}": 0}, f"model.{name} must be at least 1, not 0")
            for name in (
                "slot_size", "iterations", "eval_iterations", "encoder_width", "features", "hidden", "decoder_width",
            )
        ),
        ({"optim__coarse_steps": 3}, "optim.coarse_steps must be 0 unless a broadcast decoder doubles twice"),
        ({"optim__coarse_steps": 3, "model__broadcast": 4, "model__decoder_layers": 1}, "has model.decoder_layers 0"),
        ({"optim__coarse_steps": 3, "model__broadcast": 4, "model__decoder": "mine.py:Mine"}, "optim.coarse_steps"),
        ({"optim__coarse_steps": -1}, "optim.coarse_steps must be 0 or more"),
        ({"optim__lr": 0.0}, "optim.lr must be above 0"),
        ({"optim__warmup": -1}, "optim.warmup must be 0 or more"),
        ({"optim__clip": -1.0}, "optim.clip must be 0 or more"),
        ({"optim__sparsity": -0.1}, "optim.sparsity must be 0 or more"),
        ({"optim__noise_steps": -1}, "optim.noise_steps must be 0 or more"),
        ({"optim__halve_every": 0}, "optim.halve_every must be at least 1"),
        ({"data__source": "folder"}, "data.folder must be a path (--data.folder), not empty"),
        ({"data__most": 9}, "data.most must be 0, or at least 10, not 9"),
        ({"metric__watched": -1}, "metric.watched must be 0 or more"),
        ({"metric__library": -1}, "metric.library must be 0 or more"),
        ({"batch__parts": 3}, "batch.size must be a multiple of batch.parts (3), not 4"),
        ({"table": "tabel"}, "table"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        settings(**changes)
    one_line(caught, says)


@pytest.mark.parametrize("name", sorted(STUDY.presets))
def test_every_preset_can_be(name: str) -> None:
    config: Any = STUDY.preset(name).build()
    assert config.model.num_slots >= 2
    for experiment in STUDY.experiments.values():
        assert len({job.name for job in experiment.jobs(name)}) == len(experiment.jobs(name))
