"""Slot Attention against a NumPy twin; what it must not depend on; where gradients must arrive; half precision."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from etude.scenes.slot_attention import EPSILON, GRUCell, SlotAttention
from etude.scenes.slot_attention_plain import PlainSlotAttention

INITS = ("gaussian", "learned", "bilevel")
B, N, D, K, S = 3, 20, 7, 4, 6


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def module(
    dtype: torch.dtype = torch.float64, *, kind: type[SlotAttention] = SlotAttention, **options: Any
) -> SlotAttention:
    torch.manual_seed(0)
    made = kind(K, D, S, **options).to(dtype)
    with torch.no_grad():
        # Norms that do nothing would hide that they are left out.
        for norm in (made.norm_inputs, made.norm_slots, made.norm_mlp):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
    return made


# --- the twin ---


def twin(net: SlotAttention, inputs_BND: Tensor, slots_BKS: Tensor, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 1 of the paper line by line, an image at a time."""
    p = {name: value.detach().numpy() for name, value in net.state_dict().items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return centred / deviation * p[f"{name}.weight"] + p[f"{name}.bias"]

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    w_r, w_z, w_n = np.split(p["gru.weight_ih"], 3)
    v_r, v_z, v_n = np.split(p["gru.weight_hh"], 3)
    b_r, b_z, b_n = np.split(p["gru.bias_ih"], 3)
    c_r, c_z, c_n = np.split(p["gru.bias_hh"], 3)
    all_slots, all_attention = [], []
    for inputs, slots in zip(inputs_BND.numpy(), slots_BKS.detach().numpy(), strict=True):
        inputs = norm(inputs, "norm_inputs")
        w_k, w_v = np.split(p["to_keys_and_values.weight"], 2)
        k, v = inputs @ w_k.T, inputs @ w_v.T
        for _ in range(iterations):
            q = norm(slots, "norm_slots") @ p["to_queries.weight"].T
            logits = k @ q.T / math.sqrt(q.shape[-1])
            attention = np.exp(logits - logits.max(1, keepdims=True))
            attention /= attention.sum(1, keepdims=True)
            weights = attention + EPSILON
            weights /= weights.sum(0, keepdims=True)
            x, h = weights.T @ v, slots
            reset = sigmoid(x @ w_r.T + b_r + h @ v_r.T + c_r)
            update = sigmoid(x @ w_z.T + b_z + h @ v_z.T + c_z)
            new = np.tanh(x @ w_n.T + b_n + reset * (h @ v_n.T + c_n))
            h = (1 - update) * new + update * h
            hidden = np.maximum(norm(h, "norm_mlp") @ p["mlp.0.weight"].T + p["mlp.0.bias"], 0)
            slots = h + hidden @ p["mlp.2.weight"].T + p["mlp.2.bias"]
        all_slots.append(slots)
        all_attention.append(attention.T)
    return np.stack(all_slots), np.stack(all_attention)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("iterations", [1, 3, 5])
@pytest.mark.parametrize("kind", [SlotAttention, PlainSlotAttention])
def test_it_is_algorithm_1(kind: type[SlotAttention], init: Any, implicit: bool, iterations: int) -> None:
    net, inputs, noise = module(kind=kind, init=init, implicit=implicit), draw(B, N, D), draw(B, K, S, seed=1)
    found = net(inputs, noise, iterations=iterations)
    slots, attention = twin(net, inputs, net.first(B, noise), iterations)
    np.testing.assert_allclose(found.slots_BKS.detach().numpy(), slots, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.attention_BTKN[:, -1].detach().numpy(), attention, rtol=1e-9, atol=1e-12)
    assert found.attention_BTKN.shape == (B, iterations, K, N)


@pytest.mark.parametrize("implicit", [False, True])
def test_both_forms_have_the_same_gradients(implicit: bool) -> None:
    found = []
    for kind in (SlotAttention, PlainSlotAttention):
        net, inputs = module(kind=kind, init="bilevel", implicit=implicit), draw(B, N, D).requires_grad_()
        slots = net(inputs, draw(B, K, S, seed=1)).slots_BKS
        loss = (slots * draw(B, K, S, seed=2)).sum()
        found.append(torch.autograd.grad(loss, [inputs, *net.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)


def test_the_gru_is_pytorchs() -> None:
    ours, theirs = GRUCell(5, 6).double(), nn.GRUCell(5, 6).double()
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    theirs.load_state_dict(ours.state_dict())
    x, h = draw(9, 5).requires_grad_(), draw(9, 6, seed=1).requires_grad_()
    torch.testing.assert_close(ours(x, h), theirs(x, h))
    mine = torch.autograd.grad(ours(x, h).square().sum(), [x, h, *ours.parameters()])
    wanted = torch.autograd.grad(theirs(x, h).square().sum(), [x, h, *theirs.parameters()])
    torch.testing.assert_close(mine, wanted)
    bound = 1 / math.sqrt(6)
    assert all(0.9 * bound < p.abs().max() <= bound for p in GRUCell(200, 6).parameters() if p.ndim == 2)


# --- the three starts ---


def test_a_gaussian_start_has_the_learned_moments() -> None:
    net = module(torch.float32)
    with torch.no_grad():
        net.mean.copy_(torch.linspace(-1, 1, S))
        net.log_deviation.copy_(torch.linspace(-1, 0.5, S))
    slots = net.first(4000, draw(4000, K, S, dtype=torch.float32)).flatten(0, 1)
    torch.testing.assert_close(slots.mean(0), net.mean.detach().flatten(), atol=0.05, rtol=0)
    torch.testing.assert_close(slots.std(0), net.log_deviation.exp().detach().flatten(), rtol=0.05, atol=0)


def test_learned_slots_are_the_same_for_every_image_and_differ() -> None:
    slots = module(init="learned").first(B)
    assert torch.equal(slots[0], slots[2])
    assert torch.pdist(slots[0].detach()).min() > 0.1


def test_the_noise_of_bilevel_slots_fades() -> None:
    net, noise = module(init="bilevel"), draw(B, K, S)
    torch.testing.assert_close(net.first(B, noise, 0.25) - net.start, 0.25 * noise)
    assert torch.equal(net.first(B, None, 0.0), net.first(B, noise, 0.0))
    with pytest.raises(AssertionError, match="noise"):
        net.first(B)
    with pytest.raises(AssertionError, match="noise"):
        module().first(B)


def test_more_slots_than_in_training() -> None:
    found = module()(draw(B, N, D), draw(B, 9, S, seed=1))
    assert found.slots_BKS.shape == (B, 9, S)


# --- what it does not depend on ---


@given(st.permutations(range(K)))
def test_slots_permute(order: list[int]) -> None:
    net, inputs, noise = module(), draw(B, N, D), draw(B, K, S, seed=1)
    found, permuted = net(inputs, noise), net(inputs, noise[:, order])
    torch.testing.assert_close(permuted.slots_BKS, found.slots_BKS[:, order])
    torch.testing.assert_close(permuted.attention_BTKN, found.attention_BTKN[:, :, order])


@given(st.permutations(range(N)))
def test_the_order_of_the_inputs_does_not_matter(order: list[int]) -> None:
    net, inputs, noise = module(), draw(B, N, D), draw(B, K, S, seed=1)
    found, permuted = net(inputs, noise), net(inputs[:, order], noise)
    torch.testing.assert_close(permuted.slots_BKS, found.slots_BKS)
    torch.testing.assert_close(permuted.attention_BTKN, found.attention_BTKN[..., order])


def test_images_do_not_see_each_other() -> None:
    net, inputs, noise = module(), draw(B, N, D), draw(B, K, S, seed=1)
    torch.testing.assert_close(net(inputs[1:2], noise[1:2]).slots_BKS, net(inputs, noise).slots_BKS[1:2])


def test_shares_of_an_input_sum_to_one_and_weights_of_a_slot_too() -> None:
    net, inputs, noise = module(), draw(B, N, D), draw(B, K, S, seed=1)
    found = net(inputs, noise)
    torch.testing.assert_close(found.attention_BTKN.sum(2), torch.ones(B, 3, N, dtype=torch.float64))
    # A mean of equal inputs is that input, whatever the weights.
    seen: list[Tensor] = []
    net.gru.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    one_B1D = draw(B, 1, D, seed=3)
    net.step(found.slots_BKS, one_B1D.expand(-1, N, -1))
    values_B1S = one_B1D @ net.to_keys_and_values.weight[S:].mT
    torch.testing.assert_close(seen[0].view(B, K, S), values_B1S.expand(-1, K, -1))


def test_a_slot_that_gets_nothing_stays_finite() -> None:
    net = module(torch.float32)
    inputs = torch.zeros(1, N, D)
    inputs[..., 0] = 1e4
    slots = draw(1, K, S, dtype=torch.float32)
    new, attention = net.step(slots, inputs)
    assert (attention.sum(-1) == 0).any()
    assert new.isfinite().all()


# --- gradients ---


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("init", INITS)
def test_gradients_reach_every_parameter(init: Any, implicit: bool) -> None:
    """The first slots' too: elsewhere they were drawn by a function without a gradient."""
    net = module(init=init, implicit=implicit)
    net(draw(B, N, D), draw(B, K, S, seed=1)).slots_BKS.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        # What is added to all slots alike adds the same to all logits of an input, which a softmax over slots ignores.
        inert = name == "norm_slots.bias"
        assert (parameter.grad.abs().max() > 1e-6) != inert, name


def test_gradients_are_right() -> None:
    net, noise = module(iterations=2), draw(1, K, S, seed=1)
    inputs = draw(1, 5, D).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: net(x, noise).slots_BKS, (inputs, *net.parameters()))


def test_an_implicit_gradient_is_that_of_one_step_from_where_the_others_led() -> None:
    net, inputs, noise = module(init="bilevel", implicit=True), draw(B, N, D), draw(B, K, S, seed=1)
    net(inputs, noise).slots_BKS.square().sum().backward()
    found = {name: parameter.grad for name, parameter in net.named_parameters()}
    net.zero_grad()
    with torch.no_grad():
        nearly = net(inputs, noise, iterations=2).slots_BKS
    nearly.requires_grad_()
    net.step(nearly, net.norm_inputs(inputs))[0].square().sum().backward()
    for name, parameter in net.named_parameters():
        if name != "start":
            torch.testing.assert_close(found[name], parameter.grad)
    # What the first slots get is what that step's slots get.
    assert nearly.grad is not None
    torch.testing.assert_close(found["start"], nearly.grad.sum(0, keepdim=True))


# --- half precision ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_drift(dtype: torch.dtype) -> None:
    """Twenty iterations under autocast end where those in float32 do, and shares still sum to one."""
    net = module(torch.float32)
    inputs, noise = draw(B, 400, D, dtype=torch.float32), draw(B, K, S, seed=1, dtype=torch.float32)
    whole = net(inputs, noise, iterations=20)
    with torch.autocast("cpu", dtype):
        half = net(inputs, noise, iterations=20)
    assert half.slots_BKS.dtype == half.attention_BTKN.dtype == torch.float32
    torch.testing.assert_close(half.attention_BTKN.sum(2), torch.ones(B, 20, 400), rtol=0, atol=1e-5)
    off = (half.slots_BKS - whole.slots_BKS).norm() / whole.slots_BKS.norm()
    assert off < (0.05 if dtype == torch.bfloat16 else 0.01)
