"""Depthwise convolutions in their fast forms are plain ones; what takes a map apart and puts it together."""

from typing import Any

import pytest
import torch
from tests.studies.darts.common import draw
from torch import Tensor, nn
from torch.nn import functional

from etude.studies.darts import operations
from etude.studies.darts.operations import Depthwise, apart, drop_path, together

C = 3


def plain(layer: Depthwise) -> nn.Conv2d:
    """PyTorch's own, with the same weights; its padding keeps the side."""
    kernel, dilation = layer.kernel_size[0], layer.dilation[0]
    padding = dilation * (kernel - 1) // 2
    made = nn.Conv2d(C, C, kernel, layer.stride[0], padding, dilation, C, bias=False).to(layer.weight.dtype)
    made.load_state_dict(layer.state_dict())
    return made


def passed(layer: nn.Module, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    x_BCHW = x_BCHW.detach().requires_grad_()
    out = layer(x_BCHW)
    (out * draw(*out.shape, seed=8, dtype=out.dtype)).sum().backward()
    (weight,) = layer.parameters()
    return out.detach(), x_BCHW.grad, weight.grad


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 7), (6, 9), (2, 2), (5, 4), (1, 1)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_depthwise_convolution_is_a_plain_one(
    kernel: int, stride: int, dilation: int, height: int, width: int, channels_last: bool
) -> None:
    """In values and both gradients."""
    torch.manual_seed(0)
    layer, x = Depthwise(C, kernel, stride, dilation).double(), draw(2, C, height, width)
    if channels_last:
        layer, x = layer.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    expected = passed(plain(layer), x)
    torch.testing.assert_close(passed(layer, x), expected, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_map_whose_gradient_is_not_wanted(dilation: int) -> None:
    layer, x = Depthwise(C, 5, 1, dilation).double(), draw(2, C, 8, 8)
    (by_weight,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
    other = plain(layer)
    torch.testing.assert_close(by_weight, torch.autograd.grad(other(x).square().sum(), other.weight)[0])
    layer.requires_grad_(False)
    x.requires_grad_()
    (by_x,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(by_x, torch.autograd.grad(other(x).square().sum(), x)[0])


def test_the_wide_kernel_by_differences() -> None:
    words = (draw(2, C, 6, 5).requires_grad_(), draw(C, 1, 5, 5, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(operations._Wide.apply, words)


def test_the_wide_kernel_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is faster, and only there: with gradients, without a stride, in full precision."""
    used: list[int] = []
    apply = operations._Wide.apply

    def noted(*words: Any) -> Any:
        used.append(len(words))
        return apply(*words)

    monkeypatch.setattr(operations._Wide, "apply", noted)
    x = torch.randn(2, C, 8, 8)
    for layer, count in (
        (Depthwise(C, 5), 1), (Depthwise(C, 5, 1, 2), 1), (Depthwise(C, 5, 2, 2), 1), (Depthwise(C, 5, 2), 0),
        (Depthwise(C, 3), 0),
    ):  # fmt: skip
        used.clear()
        layer(x)
        assert len(used) == count
        with torch.no_grad():
            layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        assert len(used) == count


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_half_precision(kernel: int, stride: int, dilation: int) -> None:
    torch.manual_seed(0)
    layer, x = Depthwise(C, kernel, stride, dilation), torch.randn(2, C, 8, 8, requires_grad=True)
    expected = plain(layer)(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.float().square().sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


def test_it_is_kept_and_counted_as_any_convolution() -> None:
    layer = Depthwise(C, 5, 2, 2)
    assert [(name, tuple(value.shape)) for name, value in layer.state_dict().items()] == [("weight", (C, 1, 5, 5))]
    assert layer.bias is None


# --- apart and together ---


def test_apart_by_hand() -> None:
    """Even rows and even columns, even rows and odd columns, and so on."""
    x = draw(2, C, 6, 4)
    expected = torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)])
    assert torch.equal(apart(x), expected)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 6), (8, 2)])
def test_together_undoes_apart(height: int, width: int, channels_last: bool) -> None:
    x = draw(3, C, height, width)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    assert torch.equal(together(apart(x)), x)
    parts = draw(12, C, height, width)
    assert torch.equal(apart(together(parts)), parts)


# --- dropped paths ---


def test_a_kept_path_is_the_path() -> None:
    x = draw(4, C, 2, 2)
    assert torch.equal(drop_path(x, 1.0, torch.tensor([0.0, 0.5, 0.9, 1 - 2**-24])), x)


def test_dropped_paths_keep_their_mean() -> None:
    x = torch.ones(20_000, 1, 1, 1)
    out = drop_path(x, 0.8, torch.rand(20_000, generator=torch.Generator().manual_seed(0)))
    assert set(out.unique().tolist()) == {0.0, 1.25}
    # Four standard deviations of the mean: each is 1.25 or 0 with a deviation of a half.
    assert abs(out.mean().item() - 1) < 4 * 0.5 / 20_000**0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_dropped_paths_keep_their_type(dtype: torch.dtype) -> None:
    out = drop_path(torch.ones(2, C, 2, 2, dtype=dtype), 0.5, torch.tensor([0.1, 0.6]))
    assert out.dtype == dtype
    assert out[0].eq(2).all()
    assert out[1].eq(0).all()


def test_functional_padding_is_the_layers() -> None:
    """The side is kept but for the stride, rounded up."""
    for side in (7, 8):
        for stride in (1, 2):
            for kernel in (3, 5):
                x = functional.pad(torch.ones(1, C, 1, 1), (0, side - 1, 0, side - 1))
                for dilation in (1, 2):
                    out = Depthwise(C, kernel, stride, dilation)(x)
                    assert out.shape[2:] == (-(-side // stride), -(-side // stride))
