"""The network: published sizes, shapes, shortcuts, initial weights, and the statistics that travel with it."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.studies.resnet.common import random_images
from torch import Tensor, nn
from torch.nn import functional

from etude.core.errors import UserError
from etude.nn.fast_norms import BatchNorm, make_norm
from etude.studies.resnet.model import Block, ResNet, gates, pad_shortcut
from etude.studies.resnet.study import NORMS, ModelConfig
from etude.studies.resnet.task import build_model


def network(n: int = 1, classes: int = 5, norm: str = "bn", **options: Any) -> ResNet:
    torch.manual_seed(0)
    return ResNet(n, classes, partial(make_norm, norm), **options)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# --- size ---


@pytest.mark.parametrize(
    ("n", "classes", "published"),
    [
        (3, 10, 269_722),
        (5, 10, 464_154),
        (7, 10, 658_586),
        (9, 10, 853_018),
        (18, 10, 1_727_962),
        (2, 25, 173_481),
    ],
)
def test_published_parameter_counts(n: int, classes: int, published: int) -> None:
    model = build_model(ModelConfig(n=n, num_classes=classes))
    assert parameters(model) == published
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == model.num_layers == 6 * n + 2


@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_adds_what_it_should(norm: str) -> None:
    """Two parameters a channel, and a gate for bin; without a norm, a bias for each convolution's channels."""
    channels = [m.out_channels for m in network(n=2, norm="none").modules() if isinstance(m, nn.Conv2d)]
    bare = parameters(network(n=2)) - 2 * sum(channels)
    each = {"bin": 3, "none": 1}.get(norm, 2)
    model = network(n=2, norm=norm)
    assert parameters(model) == bare + each * sum(channels)
    biased = {m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert biased == {norm == "none"}
    assert len(gates(model)) == (len(channels) if norm == "bin" else 0)


def test_width_and_stages() -> None:
    model = network(n=2, width=6)
    widths = {name: block.channels for name, block in model.blocks()}
    assert widths == {f"stage{s}.block{b}": 6 * 2 ** (s - 1) for s in (1, 2, 3) for b in (1, 2)}
    strides = {name: block.stride for name, block in model.blocks()}
    assert [name for name, stride in strides.items() if stride != 1] == ["stage2.block1", "stage3.block1"]
    assert model.linear.in_features == 24


@pytest.mark.parametrize(("n", "classes", "width"), [(0, 10, 16), (-1, 10, 16), (3, 0, 16), (3, 10, 0)])
def test_impossible_sizes_are_named(n: int, classes: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"not {n}, {classes} and {width}"):
        ResNet(n, classes, BatchNorm, width=width)


# --- what comes out ---


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 17), (5, 8), (4, 4)])
@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_intermediates_by_name(height: int, width: int, shortcut: Any) -> None:
    model = network(n=2, shortcut=shortcut)
    logits, named = model(normal(3, 3, height, width))
    assert logits.shape == (3, 5)
    sizes = [(height, width)]
    for _ in range(2):
        sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    expected = {"stem": (3, 16, height, width)}
    for stage, (h, w) in enumerate(sizes):
        expected |= {f"stage{stage + 1}.block{b}": (3, 16 * 2**stage, h, w) for b in (1, 2)}
    expected["pooled"] = (3, 64)
    assert {name: tuple(value.shape) for name, value in named.items()} == expected
    assert list(named) == list(expected), "from the picture to the classes"
    torch.testing.assert_close(named["pooled"], named["stage3.block2"].mean((2, 3)))
    torch.testing.assert_close(logits, model.linear(named["pooled"]))
    assert all((named[name] >= 0).all() for name in named), "all of them are rectified"


def test_the_network_is_what_the_paper_draws() -> None:
    """Figure 2 and section 4.2, written out for n = 1 without a norm."""
    model = network(norm="none").double()
    for p in model.parameters():
        p.data.normal_(generator=torch.Generator().manual_seed(p.numel())).mul_(0.2)
    x_NCHW = normal(2, 3, 9, 7).double()
    y = functional.conv2d(x_NCHW, model.conv.weight, model.conv.bias, padding=1).relu()
    for (_, block), stride in zip(model.blocks(), (1, 2, 2), strict=True):
        inner = functional.conv2d(y, block.conv1.weight, block.conv1.bias, stride=stride, padding=1).relu()
        inner = functional.conv2d(inner, block.conv2.weight, block.conv2.bias, padding=1)
        same = y[:, :, ::stride, ::stride]
        missing = inner.shape[1] - same.shape[1]
        y = (inner + torch.cat([same, torch.zeros(2, missing, *same.shape[2:]).double()], dim=1)).relu()
    logits = y.mean((2, 3)) @ model.linear.weight.T + model.linear.bias
    torch.testing.assert_close(model(x_NCHW)[0], logits)


def test_the_norms_stand_where_figure_2_has_them() -> None:
    order: list[str] = []
    model = network()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | BatchNorm):
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    model(normal(2, 3, 8, 8))
    blocks = [f"stages.{s}.0.{part}" for s in range(3) for part in ("conv1", "norm1", "conv2", "norm2")]
    assert order == ["conv", "norm", *blocks]


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 4, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0)])
def test_what_is_no_picture_is_refused(shape: tuple[int, ...]) -> None:
    model = network()
    with pytest.raises(ValueError, match=r"the network takes \[N, 3, H, W\]") as caught:
        # Past the shapes that are checked in tests only.
        model.forward.__wrapped__(model, torch.zeros(shape))
    assert str(list(shape)) in str(caught.value)


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_trains_and_pictures_do_not_meet_in_evaluation(norm: str) -> None:
    model = network(norm=norm)
    x_NCHW, labels_N = normal(8, 3, 16, 16), torch.arange(8) % 5
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(4):
        loss = functional.cross_entropy(model(x_NCHW)[0], labels_N)
        losses.append(loss.item())
        sgd.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        sgd.step()
    assert losses[-1] < losses[0]
    model.eval()
    whole, _ = model(x_NCHW)
    alone = torch.cat([model(x[None])[0] for x in x_NCHW])
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5)
    strangers = torch.cat([x_NCHW[:1], 30 * normal(3, 3, 16, 16, seed=9)])
    torch.testing.assert_close(model(strangers)[0][0], whole[0], rtol=1e-4, atol=1e-5)


def test_batch_norm_in_training_does_mix_pictures() -> None:
    """Else the test above would hold in training too, and prove nothing."""
    model, x_NCHW = network(), normal(8, 3, 16, 16)
    assert not torch.allclose(model(x_NCHW)[0][:4], model(x_NCHW[:4])[0], atol=1e-3)


# --- shortcuts ---


def slow_pad(x_NCHW: np.ndarray, channels: int, stride: int) -> np.ndarray:
    num, old, height, width = x_NCHW.shape
    out = np.zeros((num, channels, -(-height // stride), -(-width // stride)), x_NCHW.dtype)
    for c in range(old):
        for i in range(out.shape[2]):
            for j in range(out.shape[3]):
                out[:, c, i, j] = x_NCHW[:, c, i * stride, j * stride]
    return out


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(0, 5), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3))
def test_pad_shortcut_is_its_slow_twin(channels: int, more: int, height: int, width: int, stride: int) -> None:
    x_NCHW = normal(2, channels, height, width)
    out = pad_shortcut(x_NCHW, channels + more, stride)
    np.testing.assert_array_equal(out.numpy(), slow_pad(x_NCHW.numpy(), channels + more, stride))


def test_new_channels_lie_after_the_old_ones_and_are_zero() -> None:
    x_NCHW = normal(1, 2, 4, 4)
    out = pad_shortcut(x_NCHW, 5, 2)
    assert torch.equal(out[:, :2], x_NCHW[:, :, ::2, ::2])
    assert (out[:, 2:] == 0).all()
    assert pad_shortcut(x_NCHW, 2, 1) is x_NCHW


def test_a_block_that_computes_nothing_is_its_shortcut() -> None:
    block = Block(3, 6, 2, BatchNorm, "pad", biased=False)
    nn.init.zeros_(block.norm2.weight)
    x_NCHW = normal(4, 3, 7, 7).abs()
    torch.testing.assert_close(block(x_NCHW), pad_shortcut(x_NCHW, 6, 2))


def test_projection_stands_only_where_the_shape_changes() -> None:
    pad, projection = network(n=3), network(n=3, shortcut="projection")
    where = [name for name, block in projection.blocks() if block.projection is not None]
    assert where == ["stage2.block1", "stage3.block1"]
    assert parameters(projection) - parameters(pad) == 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert all(block.projection is None for _, block in pad.blocks())
    block = next(block for name, block in projection.blocks() if name == "stage2.block1")
    assert block.projection is not None
    conv = block.projection[0]
    assert (conv.kernel_size, conv.stride) == ((1, 1), (2, 2))
    nn.init.zeros_(block.norm2.weight)
    x_NCHW = normal(4, 16, 5, 5)
    torch.testing.assert_close(block(x_NCHW), block.projection(x_NCHW).relu())


def test_projections_without_a_norm_have_a_bias() -> None:
    block = next(b for name, b in network(norm="none", shortcut="projection").blocks() if name == "stage3.block1")
    assert block.projection is not None
    assert block.projection[0].bias is not None


# --- initial weights ---


def test_convolutions_start_as_he_et_al_have_it() -> None:
    """Normal with deviation sqrt(2 / fan in); biases at zero."""
    model = network(n=3, norm="none")
    for name, conv in ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)):
        values = conv.weight.detach().flatten()
        deviation = (2 / (conv.in_channels * 9)) ** 0.5
        # Four standard errors of a mean and of a deviation of so many draws.
        error = 4 / len(values) ** 0.5
        assert values.mean().item() == pytest.approx(0, abs=error * deviation), name
        assert values.std().item() == pytest.approx(deviation, rel=error / 2**0.5), name
        assert (values.abs() > 2 * deviation).float().mean().item() == pytest.approx(0.0455, abs=0.035), name
        assert conv.bias is not None
        assert (conv.bias == 0).all()


def test_norms_start_as_the_identity_of_their_channels() -> None:
    model = network(norm="bin")
    for norm in gates(model).values():
        assert norm.weight is not None
        assert norm.bias is not None
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()
        assert (norm.gate == 1).all()
    assert list(gates(model)) == ["norm", *(f"stages.{s}.0.norm{k}" for s in range(3) for k in (1, 2))]


# --- the statistics of the training pictures ---


@pytest.mark.parametrize("count", [1, 37])
def test_statistics_are_those_of_numpy(count: int) -> None:
    images_NHWC = random_images(count, 9, 5, 3)
    images_NHWC[..., 1] //= 3
    model = network()
    model.set_statistics(images_NHWC)
    values = images_NHWC.numpy().astype(np.float64).reshape(-1, 3)
    np.testing.assert_allclose(model.mean.numpy(), values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(model.std.numpy(), values.std(0), rtol=1e-6)


def test_statistics_of_more_pictures_than_one_piece_has() -> None:
    images_NHWC = random_images(5000, 2, 1, 3)
    model = network()
    model.set_statistics(images_NHWC)
    np.testing.assert_allclose(model.mean.numpy(), images_NHWC.numpy().reshape(-1, 3).mean(0), rtol=1e-6)


def test_one_colour_everywhere_does_not_divide_by_zero() -> None:
    model, images_NHWC = network(), torch.full((4, 3, 3, 3), 7, dtype=torch.uint8)
    model.set_statistics(images_NHWC)
    assert torch.equal(model.mean, torch.full((3,), 7.0))
    assert torch.equal(model.std, torch.ones(3))
    assert (model.prepare(images_NHWC) == 0).all()


def test_prepared_pictures_have_mean_0_and_deviation_1() -> None:
    images_NHWC = random_images(20, 6, 7, 3)
    images_NHWC[..., 2] //= 5
    before = images_NHWC.clone()
    model = network()
    model.set_statistics(images_NHWC)
    x_NCHW = model.prepare(images_NHWC)
    assert x_NCHW.shape == (20, 3, 6, 7)
    assert x_NCHW.dtype == torch.float32
    assert x_NCHW.is_contiguous(memory_format=torch.channels_last)
    values = x_NCHW.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(values.mean(1), torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(1, correction=0), torch.ones(3).double(), atol=1e-5, rtol=0)
    assert torch.equal(images_NHWC, before)


def test_statistics_travel_with_the_weights() -> None:
    one, two = network(), network()
    one.set_statistics(random_images(4, 5, 5, 3))
    two.load_state_dict(one.state_dict())
    assert torch.equal(two.mean, one.mean)
    assert torch.equal(two.std, one.std)
    assert not any(name == "mean" or name == "std" for name, _ in one.named_parameters())


# --- a user's norm, and groups ---

PARTS = """
from torch import nn

class Mine(nn.BatchNorm2d):
    pass

class Flat(nn.Module):
    def __init__(self, channels):
        super().__init__()
    def forward(self, x):
        return x.flatten(1)

class NoArguments(nn.Module):
    def __init__(self):
        super().__init__()
"""


def test_a_user_s_norm_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PARTS)
    torch.manual_seed(0)
    mine = build_model(ModelConfig(n=1, norm=f"{path}:Mine"))
    torch.manual_seed(0)
    built_in = build_model(ModelConfig(n=1, norm="bn-torch"))
    x_NCHW = normal(2, 3, 8, 8)
    assert type(mine.norm).__name__ == "Mine"
    torch.testing.assert_close(mine(x_NCHW)[0], built_in(x_NCHW)[0])
    for name, fault in (("Flat", "must map"), ("NoArguments", "TypeError"), ("Nothing", "has no 'Nothing'")):
        with pytest.raises(UserError, match=fault) as caught:
            build_model(ModelConfig(n=1, norm=f"{path}:{name}"))
        assert "\n" not in str(caught.value)


def test_groups_are_those_asked_for() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = [build_model(ModelConfig(n=1, norm="gn", groups=groups)) for groups in (1, 8, 16)]
    # A group of one channel would be instance normalisation.
    assert [[norm.groups for norm in (m.norm, m.stages[2][0].norm2)] for m in models] == [[1, 1], [8, 8], [8, 16]]
    with pytest.warns(UserWarning, match=r"16 channels takes 8 group\(s\) in place of 16"):
        build_model(ModelConfig(n=1, norm="gn", groups=16))
