"""The six normalisations: gradients, memory layouts, precision, invariances, edges, bad input, and users' own norms.

tests/parity/test_norms.py holds them against PyTorch's layers and a twin in NumPy.
"""

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from etude.core.errors import UserError
from etude.nn import norms
from etude.nn.fast_norms import (
    NORMS,
    BatchInstanceNorm,
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    batch_instance_normalize,
    make_norm,
    normalize,
)
from etude.nn.norms import NoNorm, Pool, choose_groups

FUZZ = settings(max_examples=40, deadline=None, derandomize=True)
POOLS: tuple[Pool, ...] = ("batch", "instance", "layer", "group")
MAKERS: dict[str, Callable[..., nn.Module]] = {
    "bn": BatchNorm,
    "in": InstanceNorm,
    "bin": BatchInstanceNorm,
    "ln": LayerNorm,
    "gn": lambda c, **options: GroupNorm(c, 2, **options),
}


def normal(*shape: int, seed: int = 0, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * std + mean


def make(name: str, num_channels: int = 4, **options: Any) -> Any:
    """A norm in float64 whose every parameter and running statistic differs from its default."""
    norm = MAKERS[name](num_channels, **options).double()
    with torch.no_grad():
        for number, tensor in enumerate((*norm.parameters(), *norm.buffers())):
            if tensor.ndim:
                tensor.copy_(normal(num_channels, seed=number).abs() * 0.2 + 0.3)
    return norm


# Each keeps the values that it is given (the last repeats the first image), and is differentiable.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: functional.pad(x, (1, 2, 0, 3, 2, 1, 1, 1))[1:-1, 2:-1, :-3, 1:-2],
    "every second": lambda x: torch.stack([x, -x], -1).flatten(-2)[..., ::2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch innermost": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "expanded": lambda x: x[:1].expand(len(x), -1, -1, -1),
}


def outcome(norm: nn.Module, x: Tensor, dy: Tensor, layout: str = "contiguous") -> list[Tensor]:
    """The output and the gradients of the input and all parameters, the input in a layout."""
    norm.zero_grad()
    x = x.detach().requires_grad_()
    y = norm(LAYOUTS[layout](x))
    y.backward(dy)
    return [y.detach(), x.grad, *(p.grad for p in norm.parameters())]  # pyright: ignore[reportReturnType]


def same(actual: list[Tensor], expected: list[Tensor], **tolerance: float) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


# --- gradients ---


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MAKERS)
def test_gradients_are_those_of_finite_differences(name: str, training: bool, layout: str) -> None:
    norm = make(name).train(training)
    x = normal(3, 4, 3, 2, mean=1.0).requires_grad_()
    parameters = tuple(norm.parameters())
    assert len(parameters) == (3 if name == "bin" else 2)
    # The check moves the parameters in place.
    assert gradcheck(lambda x, *_: norm(LAYOUTS[layout](x)), (x, *parameters))


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_without_scale_and_shift(name: str) -> None:
    norm = make(name, affine=False)
    assert (norm.weight, norm.bias) == (None, None)
    assert gradcheck(norm, (normal(2, 4, 2, 3).requires_grad_(),))


@pytest.mark.parametrize("parts", ["weight", "bias"])
@pytest.mark.parametrize("pool", POOLS)
def test_a_scale_or_a_shift_alone(pool: Pool, parts: str) -> None:
    table = normal(4, seed=3).requires_grad_()

    def one(x: Tensor, table: Tensor) -> Tensor:
        weight, bias = (table, None) if parts == "weight" else (None, table)
        return normalize(x, weight, bias, pool=pool, groups=2)[0]

    assert gradcheck(one, (normal(2, 4, 2, 3).requires_grad_(), table))


@pytest.mark.parametrize("dy_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MAKERS)
def test_no_layout_changes_a_value(name: str, layout: str, dy_layout: str) -> None:
    """Large enough for vectorised kernels; the gradient that comes in has a layout of its own."""
    norm = make(name, 8)
    x, dy = normal(5, 8, 9, 7, mean=1.0), normal(5, 8, 9, 7, seed=1)
    if layout == "expanded":
        x = LAYOUTS[layout](x).contiguous()
    dy = LAYOUTS[dy_layout](dy)
    actual = outcome(copy.deepcopy(norm), x, dy, layout)
    expected = outcome(norm, x, dy.contiguous())
    if layout == "expanded":
        # The gradient of one image that stands for all is their sum.
        expected[1] = torch.cat([expected[1].sum(0, keepdim=True), torch.zeros_like(x[1:])])
    same(actual, expected)


def test_the_gradient_of_a_sum() -> None:
    """It comes in as one number that is expanded."""
    for name in MAKERS:
        x = normal(3, 4, 5, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
        norm = make(name)
        norm(x).sum().backward()
        torch.testing.assert_close(norm.bias.grad, torch.full((4,), 75.0, dtype=torch.float64))
        if name in ("bn", "in", "bin"):
            torch.testing.assert_close(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("pool", POOLS)
def test_the_plain_one_is_the_same_and_differentiable_twice(pool: Pool) -> None:
    x = normal(3, 4, 2, 2, mean=1.0).requires_grad_()
    weight, bias = normal(4, seed=1).requires_grad_(), normal(4, seed=2).requires_grad_()
    fast = normalize(x, weight, bias, pool=pool, groups=2, eps=0.1)
    plain = norms.normalize(x, weight, bias, pool=pool, groups=2, eps=0.1)
    dy = normal(*x.shape, seed=3)
    same(list(fast), list(plain))
    assert not any(table.requires_grad for table in (*fast[1:], *plain[1:]))
    same(*(list(torch.autograd.grad(y[0], (x, weight, bias), dy)) for y in (fast, plain)))
    inputs = (x, weight, bias)
    assert gradgradcheck(lambda *t: norms.normalize(*t, pool=pool, groups=2, eps=0.1)[0], inputs)


@pytest.mark.parametrize("tracked", [False, True])
def test_the_plain_mixture_is_the_same_and_differentiable_twice(tracked: bool) -> None:
    x, gate = normal(3, 4, 2, 2, mean=1.0).requires_grad_(), torch.rand(4).double().requires_grad_()
    inputs = (x, normal(4, seed=1).requires_grad_(), normal(4, seed=2).requires_grad_(), gate)
    running = (normal(4, seed=3), normal(4, seed=4).abs() + 0.5) if tracked else ()
    fast = batch_instance_normalize(*inputs, *running, eps=0.1)
    plain = norms.batch_instance_normalize(*inputs, *running, eps=0.1)
    dy = normal(*x.shape, seed=3)
    same(list(fast), list(plain))
    same(*(list(torch.autograd.grad(y[0], inputs, dy)) for y in (fast, plain)))
    assert gradgradcheck(lambda *t: norms.batch_instance_normalize(*t, *running, eps=0.1)[0], inputs)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_plain_layer_does_what_the_fast_one_does(name: str, layout: str) -> None:
    """Three steps of training and one of evaluation: values, gradients, running statistics."""
    options: dict[str, Any] = {"num_groups": 2} if name == "gn" else {}
    plain, fast = make_norm(name, 4, "plain", **options).double(), make(name)
    assert type(plain) is norms.NORMS[name]
    assert isinstance(fast, norms.NORMS[name])
    plain.load_state_dict(fast.state_dict())
    for step in range(4):
        x, dy = normal(3, 4, 5, 6, seed=step, mean=2.0), normal(3, 4, 5, 6, seed=step + 9)
        same(*(outcome(norm.train(step < 3), x, dy, layout) for norm in (plain, fast)))
        same(*(list(norm.buffers()) for norm in (plain, fast)))


@pytest.mark.parametrize("name", MAKERS)
def test_the_fast_ones_refuse_a_second_derivative(name: str) -> None:
    x = normal(3, 4, 2, 2).requires_grad_()
    (dx,) = torch.autograd.grad(make(name)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_backward_twice_with_a_kept_graph() -> None:
    """No saved tensor is written over."""
    for name in MAKERS:
        x, dy = normal(3, 4, 3, 3).requires_grad_(), normal(3, 4, 3, 3, seed=1)
        y = make(name)(x)
        first, second = (torch.autograd.grad(y, x, dy, retain_graph=True)[0] for _ in range(2))
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", MAKERS)
def test_input_and_incoming_gradient_are_left_alone(name: str) -> None:
    for layout in ("contiguous", "channels last"):
        x, dy = LAYOUTS[layout](normal(3, 4, 3, 3)), LAYOUTS[layout](normal(3, 4, 3, 3, seed=1))
        before = x.clone(), dy.clone()
        make(name)(x.requires_grad_()).backward(dy)
        assert torch.equal(x, before[0])
        assert torch.equal(dy, before[1])


def test_only_what_needs_a_gradient_gets_one() -> None:
    for name in MAKERS:
        norm = make(name).requires_grad_(False)
        x = normal(3, 4, 3, 3).requires_grad_()
        norm(x).sum().backward()
        assert x.grad is not None
        assert all(p.grad is None for p in norm.parameters())
        norm.requires_grad_(True)(normal(3, 4, 3, 3)).sum().backward()
        assert all(p.grad is not None for p in norm.parameters())


# --- layouts, types, precision ---


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MAKERS)
def test_the_layout_of_the_input_is_kept(name: str, training: bool) -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = normal(3, 4, 5, 6).contiguous(memory_format=memory_format).requires_grad_()
        dy = normal(3, 4, 5, 6, seed=1).contiguous(memory_format=memory_format)
        y = make(name).train(training)(x)
        y.backward(dy)
        assert y.stride() == x.stride()
        assert x.grad is not None
        assert x.grad.stride() == x.stride()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MAKERS)
def test_half_precision_is_computed_in_single(name: str, dtype: torch.dtype, training: bool) -> None:
    norm = make(name, 8).float().train(training)
    twin = copy.deepcopy(norm)
    # A sum of these squares is beyond the range of float16.
    x, dy = normal(4, 8, 16, 16, mean=20, std=20).to(dtype), normal(4, 8, 16, 16, seed=1).to(dtype)
    half, single = outcome(norm, x, dy), outcome(twin, x.float(), dy.float())
    assert [t.dtype for t in half] == [dtype, dtype] + [torch.float32] * (len(half) - 2)
    step = torch.finfo(dtype).eps
    for one, other in zip(half, single, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=step, atol=1e-5)
    for buffer, other in zip(norm.buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, other)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MAKERS)
def test_a_layer_in_bfloat16(name: str, training: bool) -> None:
    norm = make(name).to(torch.bfloat16).train(training)
    x, dy = normal(3, 4, 6, 6).to(torch.bfloat16), normal(3, 4, 6, 6, seed=1).to(torch.bfloat16)
    results = outcome(norm, x, dy)
    assert {t.dtype for t in results} == {torch.bfloat16}
    single = copy.deepcopy(norm).float()
    for one, other in zip(results, outcome(single, x.float(), dy.float()), strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.02, atol=0.1)


@pytest.mark.parametrize("name", MAKERS)
def test_autocast_changes_no_statistic(name: str) -> None:
    norm = make(name).float()
    twin = copy.deepcopy(norm)
    x, dy = normal(3, 4, 6, 6, mean=30).float(), normal(3, 4, 6, 6, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = outcome(norm, x, dy)
        assert norm(x.bfloat16()).dtype == torch.bfloat16
    same(cast, outcome(twin, x, dy))


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_large_mean_does_not_drown_the_variance(name: str, layout: str) -> None:
    """A mean of squares less a squared mean would be of the size of its own rounding error: 1000 squared is 1e6."""
    norm = make(name, 8, eps=1e-5).float()
    x = LAYOUTS[layout](normal(16, 8, 16, 16, mean=1000).float())
    dy = LAYOUTS[layout](normal(16, 8, 16, 16, seed=1).float())
    exact = outcome(copy.deepcopy(norm).double(), x.double(), dy.double(), layout)
    for one, other, share in zip(outcome(norm, x, dy, layout), exact, (1e-4, 1e-4, 5e-4, 1e-4, 5e-3), strict=False):
        # A mean is a float whose last place is worth 6e-5. The gradient of a gate is of differences between means.
        torch.testing.assert_close(one.double(), other, rtol=0, atol=share * other.abs().max().item())
    small = LAYOUTS[layout](normal(16, 8, 16, 16, mean=1000, std=0.05).float())
    exact_y = copy.deepcopy(norm).double()(small.double())
    torch.testing.assert_close(norm(small).double(), exact_y, rtol=0, atol=5e-3)


# --- what each of them is ---


def over(pool: Pool, x: Tensor) -> Tensor:
    """With the values that share a mean in the last dimension; two groups of channels."""
    return {
        "batch": x.transpose(0, 1).flatten(1),
        "instance": x.flatten(2),
        "layer": x.flatten(1),
        "group": x.unflatten(1, (2, -1)).flatten(2),
    }[pool]


@pytest.mark.parametrize("pool", POOLS)
def test_values_that_share_a_mean_have_mean_0_and_variance_1(pool: Pool) -> None:
    x = normal(3, 4, 5, 6, mean=7, std=3)
    y, mean, variance = normalize(x, None, None, pool=pool, groups=2, eps=0.0)
    values = over(pool, y)
    torch.testing.assert_close(values.mean(-1), torch.zeros_like(values[..., 0]))
    torch.testing.assert_close(values.square().mean(-1), torch.ones_like(values[..., 0]))
    assert mean.shape == variance.shape == {"batch": (1, 4), "layer": (3, 1)}.get(pool, (3, 4))
    if pool == "group":
        mean, variance = mean[:, ::2], variance[:, ::2]
    torch.testing.assert_close(mean.flatten(), over(pool, x).mean(-1).flatten())
    torch.testing.assert_close(variance.flatten(), over(pool, x).var(-1, correction=0).flatten())


SEEDS = st.integers(0, 9999)


@FUZZ
@given(SEEDS, st.sampled_from(["in", "ln", "gn"]), st.floats(0.01, 100), st.floats(-100, 100))
def test_scale_and_shift_of_an_image_change_nothing(seed: int, name: str, scale: float, shift: float) -> None:
    norm, x = make(name, eps=0.0), normal(3, 4, 3, 5, seed=seed)
    moved = x.clone()
    moved[1] = moved[1] * scale + shift
    torch.testing.assert_close(norm(moved), norm(x), rtol=1e-6, atol=1e-6)


@FUZZ
@given(SEEDS, st.sampled_from(["bn", "in", "bin"]), st.floats(0.01, 100), st.floats(-100, 100))
def test_scale_and_shift_of_a_channel_change_nothing(seed: int, name: str, scale: float, shift: float) -> None:
    norm, x = make(name, eps=0.0), normal(3, 4, 3, 5, seed=seed)
    moved = x.clone()
    moved[:, 2] = moved[:, 2] * scale + shift
    torch.testing.assert_close(norm(moved), norm(x), rtol=1e-6, atol=1e-6)


def test_scale_of_an_image_changes_a_norm_over_the_batch() -> None:
    for name in ("bn", "bin"):
        norm, x = make(name), normal(3, 4, 3, 5)
        moved = torch.cat([x[:1] * 3, x[1:]])
        assert not torch.allclose(norm(moved)[1:], norm(x)[1:], atol=0.05)


@FUZZ
@given(SEEDS, st.sampled_from(list(MAKERS)), st.integers(1, 6))
def test_the_order_of_the_batch_permutes_the_output(seed: int, name: str, num_images: int) -> None:
    norm, x = make(name), normal(num_images, 4, 3, 5, seed=seed)
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(norm(x[order]), norm(x)[order])


@FUZZ
@given(SEEDS, st.sampled_from(list(MAKERS)))
def test_the_order_of_the_pixels_permutes_the_output(seed: int, name: str) -> None:
    norm, x = make(name), normal(2, 4, 3, 5, seed=seed)
    order = torch.randperm(15, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(norm(x.flatten(2)[..., order].view_as(x)), norm(x).flatten(2)[..., order].view_as(x))


@FUZZ
@given(SEEDS, st.integers(1, 5), st.sampled_from([1, 2, 3, 6]))
def test_groups_lie_between_layer_and_instance(seed: int, num_images: int, groups: int) -> None:
    """A group of all channels is layer norm, one of one channel is instance norm, and a group is a layer of its own."""
    x = normal(num_images, 6, 3, 4, seed=seed)

    def by(pool: Pool, x: Tensor, groups: int = 1) -> Tensor:
        return normalize(x, None, None, pool=pool, groups=groups)[0]

    torch.testing.assert_close(by("group", x, 1), by("layer", x))
    torch.testing.assert_close(by("group", x, 6), by("instance", x))
    parts = torch.cat([by("layer", part) for part in x.chunk(groups, 1)], 1)
    torch.testing.assert_close(by("group", x, groups), parts)


@FUZZ
@given(SEEDS, st.sampled_from(["in", "ln", "gn"]))
def test_an_image_does_not_see_the_rest_of_its_batch(seed: int, name: str) -> None:
    norm, x = make(name), normal(4, 4, 3, 5, seed=seed)
    torch.testing.assert_close(norm(x)[2:3], norm(x[2:3]))
    assert torch.equal(norm(x), norm.eval()(x))


def test_a_batch_of_one_is_an_instance() -> None:
    batch, instance, mixed = make("bn"), make("in"), make("bin")
    for norm in (instance, mixed):
        norm.load_state_dict({name: batch.state_dict()[name] for name in ("weight", "bias")}, strict=False)
    x, dy = normal(1, 4, 2, 3), normal(1, 4, 2, 3, seed=1)
    expected = outcome(instance, x, dy)
    same(outcome(batch, x, dy), expected)
    same(outcome(mixed, x, dy)[:4], expected)
    torch.testing.assert_close(mixed.gate.grad, torch.zeros_like(mixed.gate))


@pytest.mark.parametrize("name", ["bn", "ln", "gn"])
def test_maps_of_one_pixel(name: str) -> None:
    x, dy = normal(5, 4, 1, 1), normal(5, 4, 1, 1, seed=1)
    norm = make(name)
    pool: Pool = norm.pool
    expected = norms.normalize(x, norm.weight, norm.bias, pool=pool, groups=norm.groups)[0]
    for layout in ("contiguous", "channels last"):
        torch.testing.assert_close(outcome(norm, x, dy, layout)[0], expected.detach())


def test_constant_maps_become_the_shift() -> None:
    for name in MAKERS:
        norm = make(name)
        y, dx = outcome(norm, torch.full((2, 4, 3, 3), 5.0, dtype=torch.float64), normal(2, 4, 3, 3))[:2]
        torch.testing.assert_close(y, norm.bias[:, None, None].detach().expand_as(y))
        assert dx.isfinite().all()


# --- running statistics ---


@pytest.mark.parametrize("name", ["bn", "bin"])
def test_evaluation_tracks_nothing_and_training_does(name: str) -> None:
    norm = make(name)
    before = copy.deepcopy(norm.state_dict())
    norm.eval()(normal(3, 4, 3, 3))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    norm.train()(normal(3, 4, 3, 3))
    assert norm.num_batches_tracked == 1
    assert not torch.equal(norm.running_mean, before["running_mean"])
    assert not torch.equal(norm.running_var, before["running_var"])


@pytest.mark.parametrize("name", ["bn", "bin"])
def test_a_batch_in_evaluation_is_its_images(name: str) -> None:
    norm, x = make(name).eval(), normal(4, 4, 3, 3)
    torch.testing.assert_close(norm(x), torch.cat([norm(image[None]) for image in x]))


def test_no_gradient_passes_through_running_statistics() -> None:
    for name in ("bn", "bin"):
        norm = make(name)
        norm(normal(3, 4, 3, 3).requires_grad_())
        assert not any(buffer.requires_grad for buffer in norm.buffers())
        assert norm.running_mean.grad_fn is None


def test_instances_keep_no_statistics() -> None:
    for name in ("in", "ln", "gn"):
        assert not list(make(name).buffers())


# --- bad input ---


def one_line(caught: pytest.ExceptionInfo[ValueError], *parts: str) -> None:
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


@pytest.mark.parametrize("name", [*MAKERS, "none"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 5, 4, 4), (4, 4, 4), (4,), (2, 4, 4, 4, 4), (2, 4), ()], ids=str)
def test_a_wrong_shape(name: str, shape: tuple[int, ...]) -> None:
    norm = NoNorm(4) if name == "none" else MAKERS[name](4)
    for training in (True, False):
        with pytest.raises(ValueError, match="of 4 channels wants") as caught:
            norm.train(training)(torch.zeros(shape))
        one_line(caught, type(norm).__name__, "[N, 4, H, W]", str(list(shape)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
@pytest.mark.parametrize("name", MAKERS)
def test_what_is_not_floating_point(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="floating-point") as caught:
        MAKERS[name](4)(torch.zeros(2, 4, 3, 3, dtype=dtype))
    one_line(caught, str(dtype), "convert")


def test_a_variance_of_one_value() -> None:
    cases: list[tuple[nn.Module, tuple[int, ...]]] = [
        (BatchNorm(4), (1, 4, 1, 1)),
        (InstanceNorm(4), (3, 4, 1, 1)),
        (BatchInstanceNorm(4), (3, 4, 1, 1)),
        (BatchInstanceNorm(4).eval(), (3, 4, 1, 1)),
        (LayerNorm(1), (3, 1, 1, 1)),
        (GroupNorm(1, 1), (3, 1, 1, 1)),
    ]
    for norm, shape in cases:
        with pytest.raises(ValueError, match=r"variance of 1 value") as caught:
            norm(torch.zeros(shape))
        one_line(caught, type(norm).__name__, str(list(shape)), "give more images or larger maps")
    assert BatchNorm(4).eval()(torch.zeros(1, 4, 1, 1)).shape == (1, 4, 1, 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MAKERS)
def test_an_empty_batch(name: str, training: bool) -> None:
    norm = MAKERS[name](4).train(training)
    before = copy.deepcopy(norm.state_dict())
    for layout in ("contiguous", "channels last"):
        x = LAYOUTS[layout](torch.zeros(0, 4, 3, 5))
        if training and name in ("bn", "bin"):
            with pytest.raises(ValueError, match="variance of 0 value") as caught:
                norm(x)
            one_line(caught, "[0, 4, 3, 5]", "give more images")
        else:
            y, dx, *grads = outcome(norm, x, torch.zeros(0, 4, 3, 5))
            assert y.shape == dx.shape == x.shape
            assert len(grads) == (3 if name == "bin" else 2)
            assert all(torch.equal(grad, torch.zeros(4)) for grad in grads)
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


@pytest.mark.parametrize("name", MAKERS)
def test_empty_maps(name: str) -> None:
    for num_images in (0, 2):
        with pytest.raises(ValueError, match="variance of 0 value"):
            MAKERS[name](4)(torch.zeros(num_images, 4, 0, 3))


def test_no_channels() -> None:
    for make_one in (*MAKERS.values(), NoNorm):
        with pytest.raises(ValueError, match="a norm of 0 channels: give 1 or more"):
            make_one(0)


def test_none_is_what_it_was_given() -> None:
    norm, x = NoNorm(4), normal(2, 4, 3, 3)
    assert norm(x) is x
    assert not norm.state_dict()


def test_they_print_what_they_are() -> None:
    assert repr(BatchNorm(4, momentum=0.2)) == "BatchNorm(4, eps=1e-05, affine=True, momentum=0.2)"
    assert repr(GroupNorm(8, 4, affine=False)) == "GroupNorm(8, eps=1e-05, affine=False, groups=4)"


# --- groups ---


@pytest.mark.parametrize(
    ("num_channels", "wished", "groups"),
    [
        (16, 8, 8), (64, 8, 8), (16, 32, 8), (16, 16, 8), (16, 7, 4), (12, 5, 4), (12, 12, 6), (1, 1, 1), (1, 8, 1),
        (2, 8, 1), (7, 8, 1), (13, 2, 1), (9, 8, 3), (10, 1, 1),
    ],
)  # fmt: skip
def test_the_number_of_groups(num_channels: int, wished: int, groups: int) -> None:
    assert choose_groups(num_channels, wished) == groups
    if groups == wished:
        norm = GroupNorm(num_channels, wished)
    else:
        with pytest.warns(UserWarning, match=rf"takes {groups} group\(s\) in place of {wished}"):
            norm = GroupNorm(num_channels, wished)
    assert norm.groups == groups


@FUZZ
@given(st.integers(1, 300), st.integers(1, 300))
def test_groups_are_the_most_that_were_allowed(num_channels: int, wished: int) -> None:
    groups = choose_groups(num_channels, wished)
    allowed = [g for g in range(1, wished + 1) if num_channels % g == 0 and num_channels // g >= 2]
    assert groups == max(allowed, default=1)


@pytest.mark.parametrize("wished", [0, -3])
def test_no_groups(wished: int) -> None:
    for ask in (choose_groups, GroupNorm, lambda c, wished: make_norm("gn", c, num_groups=wished)):
        with pytest.raises(ValueError, match=rf"{wished} groups: give 1 or more"):
            ask(8, wished)


# --- by name ---


def test_every_name_makes_a_norm_of_so_many_channels() -> None:
    kinds = [nn.BatchNorm2d, BatchNorm, InstanceNorm, BatchInstanceNorm, LayerNorm, GroupNorm, NoNorm]
    assert list(NORMS) == ["bn-torch", "bn", "in", "bin", "ln", "gn", "none"]
    for name, kind in zip(NORMS, kinds, strict=True):
        norm = make_norm(name, 16)
        assert type(norm) is kind
        assert norm.training
        assert norm(torch.randn(2, 16, 4, 4)).shape == (2, 16, 4, 4)
        assert sum(p.numel() for p in norm.parameters()) == {"none": 0, "bin": 48}.get(name, 32)
    assert make_norm("gn", 16, num_groups=4).groups == 4
    assert make_norm("bn", 16, momentum=0.5).momentum == 0.5


OWN = """
import torch
from torch import nn

class Own(nn.Module):
    def __init__(self, num_channels, power=1.0):
        super().__init__()
        self.scale, self.power = nn.Parameter(torch.ones(num_channels, 1, 1)), power
    def forward(self, x):
        return x * self.scale

class Short(Own):
    def forward(self, x):
        return x[:, 1:]

class Pair(Own):
    def forward(self, x):
        return x, {}

class Faulty(Own):
    def forward(self, x):
        raise RuntimeError("no\\nsuch  thing")

class Bare(nn.Module):
    def __init__(self):
        super().__init__()

def function(num_channels):
    return lambda x: x

number = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_a_users_own_norm(own: Path) -> None:
    norm = make_norm(f"{own}:Own", 6)
    assert norm.training
    assert norm.get_parameter("scale").shape == (6, 1, 1)
    assert not norm.get_parameter("scale").grad_fn
    assert make_norm(f"{own}:Own", 6, power=2.0).power == 2.0


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("Short", "must map [2, 6, 4, 4] to [2, 6, 4, 4], not [2, 5, 4, 4]"),
        ("Pair", "must map [2, 6, 4, 4] to [2, 6, 4, 4], not ("),
        ("Faulty", "failed on [2, 6, 4, 4]: RuntimeError: no such thing"),
        ("Bare", "failed on [2, 6, 4, 4]: TypeError: "),
        ("function", "is no torch.nn.Module"),
        ("number", "failed on [2, 6, 4, 4]: TypeError: "),
        ("None", "has no 'None'"),
    ],
)
def test_faults_of_a_users_own_norm(own: Path, name: str, fault: str) -> None:
    with pytest.raises(UserError) as caught:
        make_norm(f"{own}:{name}", 6)
    one_line(caught, str(own), fault)


def test_an_option_that_a_users_own_norm_does_not_take(own: Path) -> None:
    with pytest.raises(UserError, match="num_groups") as caught:
        make_norm(f"{own}:Own", 6, num_groups=2)
    one_line(caught, "TypeError")


def test_an_unknown_name() -> None:
    with pytest.raises(UserError) as caught:
        make_norm("bnn", 8)
    one_line(caught, "no norm 'bnn'", "did you mean", "path/to/file.py:Name")


# --- the compiler ---


COMPILED = """
import copy, sys
import torch
from etude.nn.fast_norms import make_norm

torch.set_num_threads(1)
for training in (True, False):
    torch.manual_seed(0)
    norm = make_norm(sys.argv[1], 8, **({"num_groups": 2} if sys.argv[1] == "gn" else {})).train(training)
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.ndim:
            tensor.data.uniform_(0.3, 0.8)
    twin = copy.deepcopy(norm)
    compiled = torch.compile(norm, fullgraph=True)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x, dy = (torch.randn(5, 8, 6, 7).add(m).contiguous(memory_format=memory_format) for m in (2, 0))
        results = []
        for one in (compiled, twin):
            one.zero_grad()
            leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
            y = one(leaf)
            y.backward(dy)
            assert y.stride() == leaf.grad.stride() == x.stride()
            results.append([y.detach(), leaf.grad, *(p.grad for p in one.parameters()), *one.buffers()])
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(compiled(x), twin(x), rtol=1e-5, atol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("name", MAKERS)
def test_compiled_it_is_the_same(name: str) -> None:
    """In a process without the tests' checks of shapes and types, which the compiler cannot look into."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, name], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
