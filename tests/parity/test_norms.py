"""The normalisations beside PyTorch's own layers, and batch-instance normalisation beside a slow twin in NumPy."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from etude.nn.fast_norms import BatchInstanceNorm, BatchNorm, GroupNorm, InstanceNorm, LayerNorm

SHAPES = [(4, 6, 5, 7), (2, 6, 1, 3), (1, 6, 4, 4), (3, 6, 8, 8)]
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}

# Ours and PyTorch's, of six channels.
PAIRS: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    "batch": (BatchNorm, nn.BatchNorm2d),
    "instance": (InstanceNorm, lambda c, affine=True, **o: nn.InstanceNorm2d(c, affine=affine, **o)),
    "layer": (LayerNorm, lambda c, **o: nn.GroupNorm(1, c, **o)),
    "group of 3": (
        lambda c, **o: GroupNorm(c, 2, **o),
        lambda c, **o: nn.GroupNorm(2, c, **o),
    ),
    "group of 2": (
        lambda c, **o: GroupNorm(c, 3, **o),
        lambda c, **o: nn.GroupNorm(3, c, **o),
    ),
}
OPTIONS: list[dict[str, Any]] = [{}, {"eps": 0.1}, {"affine": False}, {"affine": False, "eps": 1e-3}]


def normal(*shape: int, seed: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * std + mean


def close(actual: Tensor, expected: Tensor, rtol: float = 1e-5) -> None:
    """Within ``rtol`` of the largest value: a sum of many values has no smaller error where it happens to be near 0."""
    atol = rtol * max(1.0, expected.abs().max().item()) if expected.numel() else 0.0
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rtol, atol=atol)


def pair(kind: str, options: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Ours, and PyTorch's with the same parameters in float64."""
    ours, theirs = (make(6, **options) for make in PAIRS[kind])
    assert {name for name, _ in ours.named_parameters()} == {name for name, _ in theirs.named_parameters()}
    with torch.no_grad():
        for number, parameter in enumerate(ours.parameters()):
            parameter.copy_(normal(6, seed=number, mean=0.3))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs.double()


def step(norm: nn.Module, x: Tensor, dy: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradients of input and parameters."""
    x = x.detach().requires_grad_()
    norm.zero_grad()
    y = norm(x)
    y.backward(dy.to(y.dtype))
    assert x.grad is not None
    grads = {name: p.grad.clone() for name, p in norm.named_parameters() if p.grad is not None}
    return y.detach(), {"x": x.grad} | grads


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", PAIRS)
def test_it_is_pytorchs_layer(kind: str, options: dict[str, Any], shape: tuple[int, ...], layout: str) -> None:
    """PyTorch's in float64 and contiguous: channels last, its batch norm sums in single precision, and the gradient of
    its instance norm is wrong for a batch of one."""
    single, theirs = pair(kind, options)
    double = copy.deepcopy(single).double()
    for number in range(4):
        # The last step is one of evaluation.
        for norm in (single, double, theirs):
            norm.train(number < 3)
        x = normal(*shape, seed=number, mean=2.0, std=1.5).float()
        dy = normal(*shape, seed=number + 10, mean=0.5).float()
        expected_y, expected = step(theirs, x.double(), dy)
        x, dy = (t.contiguous(memory_format=FORMATS[layout]) for t in (x, dy))
        for norm, rtol in ((single, 1e-5), (double, 1e-11)):
            y, grads = step(norm, x if norm is single else x.double(), dy)
            close(y, expected_y, rtol)
            assert set(grads) == set(expected)
            for name, grad in grads.items():
                close(grad, expected[name], rtol)
        if kind == "batch":
            for name, value in theirs.named_buffers():
                close(double.get_buffer(name), value, 1e-11)
                close(single.get_buffer(name), value, 1e-5)


@pytest.mark.parametrize("kind", PAIRS)
def test_single_precision_beside_single_precision(kind: str) -> None:
    ours, theirs = pair(kind, {})
    theirs = theirs.float()
    x, dy = normal(8, 6, 9, 9, seed=1).float(), normal(8, 6, 9, 9, seed=2).float()
    y, grads = step(ours, x, dy)
    expected_y, expected = step(theirs, x, dy)
    close(y, expected_y)
    for name, grad in grads.items():
        close(grad, expected[name])


@pytest.mark.parametrize(
    "options", [{"momentum": 0.3}, {"momentum": 1.0, "eps": 1e-2}, {"momentum": 0.0}, {"momentum": None}], ids=str
)
def test_running_statistics(options: dict[str, Any]) -> None:
    ours, theirs = BatchNorm(6, **options), nn.BatchNorm2d(6, **options).double()
    for number in range(5):
        x = normal(3, 6, 2, 3, seed=number, mean=number, std=0.5 + number).float()
        ours(x), theirs(x.double())
        assert ours.num_batches_tracked.item() == theirs.num_batches_tracked.item() == number + 1
        close(ours.running_mean, theirs.running_mean)
        close(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    x = normal(1, 6, 1, 1, seed=9).float()
    close(ours(x), theirs(x.double()))
    assert ours.num_batches_tracked.item() == 5, "evaluation tracks nothing"


def test_the_running_variance_is_the_unbiased_one() -> None:
    norm = BatchNorm(1, momentum=1.0)
    norm(torch.tensor([0.0, 1.0, 2.0, 7.0]).view(4, 1, 1, 1))
    assert norm.running_mean.item() == pytest.approx(2.5)
    assert norm.running_var.item() == pytest.approx((2.5**2 + 1.5**2 + 0.5**2 + 4.5**2) / 3)


def test_layer_norm_is_pytorchs_where_no_value_has_a_scale_of_its_own() -> None:
    ours = LayerNorm(6, affine=False, eps=1e-3).double()
    theirs = nn.LayerNorm([6, 4, 5], elementwise_affine=False, eps=1e-3).double()
    x, dy = normal(3, 6, 4, 5, seed=1, mean=3.0), normal(3, 6, 4, 5, seed=2)
    y, grads = step(ours, x, dy)
    expected_y, expected = step(theirs, x, dy)
    close(y, expected_y, 1e-11)
    close(grads["x"], expected["x"], 1e-11)


@pytest.mark.parametrize("affine", [True, False])
def test_state_dicts_are_exchanged_with_pytorch(affine: bool) -> None:
    ours, theirs = BatchNorm(6, affine=affine), nn.BatchNorm2d(6, affine=affine)
    for source in (ours, theirs):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.uniform_(0.5, 1.5)
        for number in range(3):
            source(normal(4, 6, 3, 3, seed=number, mean=number).float())
    assert set(ours.state_dict()) == set(theirs.state_dict())
    x = normal(2, 6, 3, 3, seed=7).float()
    to_theirs, to_ours = nn.BatchNorm2d(6, affine=affine), BatchNorm(6, affine=affine)
    to_theirs.load_state_dict(ours.state_dict(), strict=True)
    to_ours.load_state_dict(theirs.state_dict(), strict=True)
    for source, target in ((ours, to_theirs), (theirs, to_ours)):
        for name, value in source.state_dict().items():
            assert target.state_dict()[name].dtype == value.dtype
            assert torch.equal(target.state_dict()[name], value)
        close(target.eval()(x), source.eval()(x))


# --- batch-instance normalisation ---


def bin_in_numpy(
    x: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    rho: np.ndarray,
    running: tuple[np.ndarray, np.ndarray] | None,
    eps: float,
) -> np.ndarray:
    """Nam and Kim 2018, equations 1 to 4, one map at a time."""
    y = np.empty_like(x)
    for c in range(x.shape[1]):
        values = x[:, c].ravel()
        if running is None:
            mean, variance = values.sum() / values.size, ((values - values.mean()) ** 2).sum() / values.size
        else:
            mean, variance = running[0][c], running[1][c]
        for n in range(x.shape[0]):
            of_map = x[n, c]
            by_batch = (of_map - mean) / np.sqrt(variance + eps)
            by_instance = (of_map - of_map.mean()) / np.sqrt(((of_map - of_map.mean()) ** 2).mean() + eps)
            y[n, c] = (rho[c] * by_batch + (1 - rho[c]) * by_instance) * gamma[c] + beta[c]
    return y


def bin_norm(**options: Any) -> BatchInstanceNorm:
    """With parameters, gates and running statistics that differ from their defaults."""
    norm = BatchInstanceNorm(3, **options).double()
    with torch.no_grad():
        for number, tensor in enumerate((*norm.parameters(), norm.running_mean)):
            tensor.copy_(normal(3, seed=number, mean=0.2))
        norm.gate.copy_(torch.tensor([0.25, 0.9, 0.6]))
        norm.running_var.copy_(torch.tensor([0.5, 2.0, 1.1]))
    return norm


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 3, 3, 2), (1, 3, 2, 2), (2, 3, 1, 4)], ids=str)
def test_batch_instance_norm_is_its_twin(shape: tuple[int, ...], training: bool, layout: str) -> None:
    norm = bin_norm(eps=0.01).train(training)
    x = normal(*shape, seed=5, mean=1.0, std=2.0).contiguous(memory_format=FORMATS[layout])
    dy = normal(*shape, seed=6)
    values = {"x": x.numpy()} | {name: p.detach().numpy() for name, p in norm.named_parameters()}
    running = None if training else (norm.running_mean.numpy().copy(), norm.running_var.numpy().copy())

    def twin(values: dict[str, np.ndarray]) -> np.ndarray:
        return bin_in_numpy(*(values[name] for name in ("x", "weight", "bias", "gate")), running, norm.eps)

    def slope(name: str, index: tuple[int, ...]) -> float:
        """Of the sum of ``y * dy``, by central differences."""
        sides = []
        for change in (1e-5, -1e-5):
            moved = values[name].copy()
            moved[index] += change
            sides.append((twin(values | {name: moved}) * dy.numpy()).sum())
        return (sides[0] - sides[1]) / 2e-5

    y, grads = step(norm, x, dy)
    np.testing.assert_allclose(y.numpy(), twin(values), rtol=1e-11, atol=1e-11)
    assert set(grads) == set(values)
    for name, grad in grads.items():
        numeric = np.array([slope(name, index) for index in np.ndindex(values[name].shape)])
        np.testing.assert_allclose(grad.numpy().ravel(), numeric, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_the_ends_of_the_gate_are_the_two_norms(gate: float, affine: bool) -> None:
    """In outputs, gradients and, at 1, in evaluation after several steps; tracked statistics are always the batch's."""
    mixed = BatchInstanceNorm(6, affine=affine, momentum=0.3).double()
    batch = BatchNorm(6, affine=affine, momentum=0.3).double()
    one = batch if gate == 1 else InstanceNorm(6, affine=affine).double()
    with torch.no_grad():
        mixed.gate.fill_(gate)
        for number, (parameter, other) in enumerate(zip(mixed.parameters(), one.parameters(), strict=False)):
            if parameter is not mixed.gate:
                parameter.copy_(normal(6, seed=number))
                other.copy_(parameter)
    for number in range(4):
        for norm in (mixed, batch, one):
            norm.train(number < 3)
        x, dy = normal(3, 6, 4, 4, seed=number, mean=number), normal(3, 6, 4, 4, seed=number + 10)
        y, grads = step(mixed, x, dy)
        expected_y, expected = step(one, x, dy)
        if one is not batch:
            batch(x)
        close(y, expected_y, 1e-11)
        for name, grad in expected.items():
            close(grads[name], grad, 1e-11)
        for name, value in batch.named_buffers():
            close(mixed.get_buffer(name), value, 1e-11)


def test_gates_start_at_the_batch_and_are_clamped() -> None:
    norm = BatchInstanceNorm(4)
    assert norm.gate.tolist() == [1, 1, 1, 1]
    with torch.no_grad():
        norm.gate.copy_(torch.tensor([-0.5, 0.0, 0.4, 1.7]))
    norm.clamp_gate()
    assert norm.gate.tolist() == pytest.approx([0, 0, 0.4, 1])
    assert norm.gate.requires_grad
