"""The order of the blocks against the seed's listing, blocks against plain twins, slots, half precision, errors."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from etude.core.errors import UserError
from etude.core.randomness import seed_globals
from etude.studies.slotdiffusion.unet import (
    CrossAttention,
    LatentResidualBlock,
    LatentTransformerBlock,
    ResidualBlock,
    SelfAttention,
    TransformerBlock,
    UNet,
    time_code,
)

B, K, S = 2, 3, 6


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def wake(net: nn.Module) -> Any:
    """Nothing at zero or one any more, which would hide what is left out."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return net


def network(dtype: torch.dtype = torch.float64, **options: Any) -> UNet:
    torch.manual_seed(0)
    given_options: dict[str, Any] = {"width": 8, "multipliers": (1, 2), "slot_size": S, "heads": 2} | options
    return wake(UNet(**given_options).eval().to(dtype))


def inputs(size: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    return draw(B, 3, size, size, dtype=dtype), torch.tensor([3, 700]), draw(B, K, S, seed=1, dtype=dtype)


# --- the whole ---

LISTING = """
R1 conv1, R2 R1, D1 R2
R3 D1, T1 R3, R4 T1, T2 R4, D2 T2
R5 D2, T3 R5, R6 T3, T4 R6, D3 T4
R7 D3, T5 R7, R8 T5, T6 R8
R9 T6, T7 R9, R10 T7
R11 T6+R10, T8 R11, R12 T5+T8, T9 R12, R13 D3+T9, T10 R13, U1 T10
R14 T4+U1, T11 R14, R15 T3+T11, T12 R15, R16 D2+T12, T13 R16, U2 T13
R17 T2+U2, T14 R17, R18 T1+T14, T15 R18, R19 D1+T15, T16 R19, U3 T16
R20 R2+U3, R21 R1+R20, R22 conv1+R21
norm R22
"""
"""Every block of the seed's listing in order, with what it is given."""


def calls(net: UNet, *given: Tensor) -> list[str]:
    """The blocks in the order in which they are called, as in `LISTING`; inputs are told by their values."""
    made: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    found: list[str] = []

    def source(x: Tensor) -> str:
        for name, value in made.items():
            if value.shape == x.shape and torch.equal(value, x):
                return name
            rest = x.shape[1] - value.shape[1]
            if rest > 0 and value.shape[2:] == x.shape[2:] and torch.equal(value, x[:, :-rest]):
                return f"{name}+{source(x[:, -rest:])}"
        raise AssertionError("a map that no block made")

    def note(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        if module is net.conv1 or module is net.norm:
            name = "conv1" if module is net.conv1 else "norm"
        else:
            kind = {"normal": "R", "down": "D", "up": "U"}[module.mode] if isinstance(module, ResidualBlock) else "T"
            counts[kind] = counts.get(kind, 0) + 1
            name = f"{kind}{counts[kind]}"
        if name != "conv1":
            found.append(f"{name} {source(given[0])}")
        made[name] = out

    for module in net.modules():
        if isinstance(module, ResidualBlock | TransformerBlock) or module in (net.conv1, net.norm):
            module.register_forward_hook(note)
    net(*given)
    return found


def test_the_order_is_that_of_the_seeds_listing() -> None:
    wanted = LISTING.strip().replace("\n", ", ").split(", ")
    assert calls(network(multipliers=(1, 2, 3, 4)), *inputs(8)) == wanted


def test_two_levels_of_one_block() -> None:
    wanted = "R1 conv1, D1 R1, R2 D1, T1 R2, R3 T1, T2 R3, R4 T2, R5 T1+R4, T3 R5, R6 D1+T3, T4 R6, U1 T4"
    wanted += ", R7 R1+U1, R8 conv1+R7, norm R8"
    assert calls(network(depth=1), *inputs()) == wanted.split(", ")


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"multipliers": (1,)}, (2, 3, 5, 3)),
        ({"multipliers": (1, 2), "channels": 4}, (2, 4, 6, 2)),
        ({"multipliers": (1, 2, 3), "depth": 1}, (1, 3, 4, 8)),
        ({"multipliers": (2, 1, 3, 2, 1), "width": 4, "heads": 1}, (2, 3, 16, 16)),
    ],
)
def test_shapes(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    net = network(**options)
    assert net(draw(*shape), torch.zeros(shape[0]), draw(shape[0], 5, S)).shape == shape


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(("width", "parameters"), [(64, 29_670_211), (128, 116_118_979), (192, 259_346_499)])
def test_parameters(width: int, parameters: int) -> None:
    with torch.device("meta"):
        assert count(UNet(width=width)) == parameters


def test_parameters_of_the_small_one() -> None:
    with torch.device("meta"):
        assert count(UNet(width=32, multipliers=(1, 2, 3), slot_size=64, heads=4)) == 3_509_987


def test_it_begins_by_predicting_zero() -> None:
    z, t, slots = inputs(dtype=torch.float32)
    net = UNet(width=8, multipliers=(1, 2), slot_size=S, heads=2)
    assert torch.equal(net(z, t, slots), torch.zeros_like(z))


def test_gradients_reach_the_slots_and_every_parameter() -> None:
    net, (z, t, slots) = network(), inputs()
    slots.requires_grad_()
    net(z, t, net.dropped(slots, torch.tensor([False, True]))).square().sum().backward()
    assert slots.grad is not None
    assert (slots.grad[0].abs().amax(-1) > 1e-9).all()
    assert not slots.grad[1].any()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-9, name


def test_images_do_not_see_each_other() -> None:
    net, (z, t, slots) = network(), inputs()
    torch.testing.assert_close(net(z[1:], t[1:], slots[1:]), net(z, t, slots)[1:])


def test_one_time_for_all() -> None:
    net, (z, _, slots) = network(), inputs()
    torch.testing.assert_close(net(z, torch.tensor([5]), slots), net(z, torch.tensor([5, 5]), slots))


def test_layouts_agree_and_channels_last_stays() -> None:
    net, (z, t, slots) = network(), inputs()
    plain = net(z, t, slots)
    net.to(memory_format=torch.channels_last)
    last = net(z, t, slots)
    torch.testing.assert_close(last, plain)
    assert last.is_contiguous(memory_format=torch.channels_last)


# --- slots ---


@settings(max_examples=10)
@given(st.permutations(range(K)))
def test_the_order_of_the_slots_does_not_matter(order: list[int]) -> None:
    net, (z, t, slots) = network(), inputs()
    torch.testing.assert_close(net(z, t, slots[:, order]), net(z, t, slots))


def test_what_slots_say_matters() -> None:
    net, (z, t, slots) = network(), inputs()
    assert (net(z, t, slots) - net(z, t, slots.flip(0))).abs().max() > 1e-3


@pytest.mark.parametrize("count", [1, 2, 9])
def test_any_number_of_slots(count: int) -> None:
    """Said twice, all slots weigh what they did."""
    net, (z, t, _) = network(), inputs()
    slots = draw(B, count, S)
    torch.testing.assert_close(net(z, t, torch.cat((slots, slots), 1)), net(z, t, slots))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_context_serves_all_steps_bit_for_bit(dtype: torch.dtype) -> None:
    net, (z, _, slots) = network(dtype, multipliers=(1, 2, 3)), inputs(8, dtype)
    context = net.context(slots)
    assert len(context) == 11
    for time in (999, 500, 0):
        t = torch.tensor([time])
        assert torch.equal(net(z, t, context=context), net(z, t, slots))


def test_no_slots_stand_for_all_slots_of_an_image() -> None:
    net, (z, t, slots) = network(), inputs()
    dropped = net.dropped(slots, torch.tensor([True, False]))
    assert torch.equal(dropped[0], net.no_slots[0].expand(K, -1))
    assert torch.equal(dropped[1], slots[1])
    found, without = net(z, t, dropped), net(z, t)
    torch.testing.assert_close(found[0], without[0])
    torch.testing.assert_close(found[1], net(z, t, slots)[1])


# --- the parts ---


@pytest.mark.parametrize("size", [4, 10, 128])
def test_the_code_of_the_time(size: int) -> None:
    times = [0.0, 1.0, 2.5, 999.0]
    rates = [10000 ** (-place / (size // 2 - 1)) for place in range(size // 2)]
    wanted = [[np.sin(t * rate) for rate in rates] + [np.cos(t * rate) for rate in rates] for t in times]
    found = time_code(torch.tensor(times, dtype=torch.float64), size)
    np.testing.assert_allclose(found.numpy(), np.array(wanted), rtol=0, atol=1e-10)
    whole = time_code(torch.tensor([999]), size)
    assert whole.dtype == torch.float32
    np.testing.assert_allclose(whole.numpy(), np.array(wanted[-1:]), rtol=0, atol=2e-4)


def test_the_embedding_of_the_time() -> None:
    net = network()
    h = time_code(torch.tensor([7.0], dtype=torch.float64), 8)
    p = dict(net.time.named_parameters())
    for name in ("linear1", "linear2"):
        h = h @ p[f"{name}.weight"].T + p[f"{name}.bias"]
        h = h / (1 + torch.exp(-h))
    found = net.time(torch.tensor([7]))
    assert found.shape == (1, 32)
    torch.testing.assert_close(found, h, rtol=0, atol=1e-5)


def norm_and_silu(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """A group at a time."""
    parts = []
    for group in x.chunk(norm.num_groups, 1):
        centred = group - group.mean((1, 2, 3), keepdim=True)
        parts.append(centred / (centred.square().mean((1, 2, 3), keepdim=True) + norm.eps).sqrt())
    y = torch.cat(parts, 1) * norm.weight[:, None, None] + norm.bias[:, None, None]
    return y * torch.sigmoid(y)


def convolved(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Nine shifted maps, each mapped by a matrix."""
    height, width = x.shape[2:]
    framed = functional.pad(x, (1, 1, 1, 1))
    shifts = [(row, column) for row in range(3) for column in range(3)]
    y = sum(
        torch.einsum("oi,bihw->bohw", conv.weight[:, :, row, column], framed[:, :, row:, column:][..., :height, :width])
        for row, column in shifts
    )
    assert isinstance(y, Tensor)
    return y if conv.bias is None else y + conv.bias[:, None, None]


def doubled(x: Tensor) -> Tensor:
    """Every new place lies a quarter between an old one and the next; at the rim it is the old one."""
    for dim in (2, 3):
        first, last = x.narrow(dim, 0, 1), x.narrow(dim, -1, 1)
        before = torch.cat((first, x.narrow(dim, 0, x.shape[dim] - 1)), dim)
        after = torch.cat((x.narrow(dim, 1, x.shape[dim] - 1), last), dim)
        x = torch.stack((0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after), dim + 1).flatten(dim, dim + 1)
    return x


def halved(x: Tensor) -> Tensor:
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


FIRST: dict[str, Callable[[Tensor], Tensor]] = {"down": halved, "up": doubled}


@pytest.mark.parametrize(("mode", "channels"), [("normal", 12), ("normal", 8), ("down", 8), ("up", 8)])
def test_a_residual_block_by_hand(mode: Any, channels: int) -> None:
    block = wake(ResidualBlock(8, channels, 5, mode=mode).double())
    x, time = draw(B, 8, 4, 6), draw(B, 5, seed=1)
    h = norm_and_silu(x, block.norm1)
    h = convolved(h, block.conv1) if mode == "normal" else FIRST[mode](h)
    h = h + (time @ block.time.weight.T + block.time.bias)[:, :, None, None]
    y = h + convolved(norm_and_silu(h, block.norm2), block.conv2)
    torch.testing.assert_close(block(x, time), y)
    assert (block.conv1 is None) == (mode != "normal")


@pytest.mark.parametrize("mode", ["normal", "down", "up"])
def test_a_residual_block_begins_as_its_first_stage(mode: Any) -> None:
    block = ResidualBlock(8, 8, 5, mode=mode)
    assert not block.conv2.weight.any()
    seen: list[Tensor] = []
    block.norm2.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    assert torch.equal(block(draw(B, 8, 4, 4).float(), draw(B, 5).float()), seen[0])


def torch_self_attention(ours: SelfAttention, channels: int) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(channels, ours.heads, batch_first=True, dtype=torch.float64)
    weights = {"in_proj_weight": ours.queries_keys_values.weight, "in_proj_bias": torch.zeros(3 * channels)}
    theirs.load_state_dict(weights | {f"out_proj.{name}": value for name, value in ours.out.state_dict().items()})
    return theirs


def torch_cross_attention(ours: CrossAttention, channels: int) -> nn.MultiheadAttention:
    theirs = nn.MultiheadAttention(channels, ours.heads, batch_first=True, kdim=S, vdim=S, dtype=torch.float64)
    keys, values = ours.to_keys_and_values.weight.chunk(2)
    weights = {"q_proj_weight": ours.queries.weight, "k_proj_weight": keys, "v_proj_weight": values}
    weights |= {"in_proj_bias": torch.zeros(3 * channels)}
    theirs.load_state_dict(weights | {f"out_proj.{name}": value for name, value in ours.out.state_dict().items()})
    return theirs


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_pytorchs(heads: int) -> None:
    x, slots = draw(B, 10, 8).requires_grad_(), draw(B, K, S, seed=1).requires_grad_()
    to_self, to_slots = SelfAttention(8, heads).double(), CrossAttention(8, S, heads).double()
    mine = [to_self(x), to_slots(x, to_slots.keys_and_values(slots))]
    theirs = [torch_self_attention(to_self, 8)(x, x, x)[0], torch_cross_attention(to_slots, 8)(x, slots, slots)[0]]
    torch.testing.assert_close(mine, theirs)
    grads = [torch.autograd.grad(sum(y.square().sum() for y in each), [x, slots]) for each in (mine, theirs)]
    torch.testing.assert_close(*grads)


def test_a_transformer_block_in_parts() -> None:
    """The norm is of what is added."""
    block = wake(TransformerBlock(8, S, 2).double())
    x, slots = draw(B, 8, 3, 5), draw(B, K, S, seed=1)
    tokens = x.flatten(2).mT
    mlp = block.feed_forward
    tokens = tokens + block.norm1(torch_self_attention(block.attention1, 8)(tokens, tokens, tokens)[0])
    tokens = tokens + block.norm2(torch_cross_attention(block.attention2, 8)(tokens, slots, slots)[0])
    h = tokens @ mlp[0].weight.T + mlp[0].bias
    h = h * (1 + torch.erf(h / 2**0.5)) / 2
    assert h.shape[-1] == 32
    tokens = tokens + block.norm3(h @ mlp[2].weight.T + mlp[2].bias)
    found = block(x, block.attention2.keys_and_values(slots))
    torch.testing.assert_close(found, tokens.mT.unflatten(2, (3, 5)))


def test_a_map_that_is_channels_last_is_not_copied() -> None:
    block = TransformerBlock(8, S, 2)
    x = draw(B, 8, 3, 5, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    seen: list[Tensor] = []
    block.attention1.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    found = block(x, block.attention2.keys_and_values(draw(B, K, S, dtype=torch.float32)))
    assert seen[0].data_ptr() == x.data_ptr()
    assert found.is_contiguous(memory_format=torch.channels_last)


# --- training ---


def test_dropout_is_drawn_in_training_alone_and_by_the_steps_key() -> None:
    net, given = network(dropout=0.5), inputs()
    quiet = net(*given)
    assert torch.equal(net(*given), quiet)
    net.train()
    drawn = []
    for step in (0, 0, 1):
        seed_globals(3, "step", step)
        drawn.append(net(*given))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], quiet)
    still = network(dropout=0.0).train()
    still.load_state_dict(net.state_dict())
    assert torch.equal(still(*given), quiet)


def test_half_precision_stays_close() -> None:
    net, given = network(torch.float32, multipliers=(1, 2, 3)), inputs(8, torch.float32)
    whole = net(*given)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(*given)
    assert (half.float() - whole).norm() / whole.norm() < 0.05


COMPILED = """
import torch
from etude.studies.slotdiffusion.unet import UNet

torch.set_num_threads(1)
torch.manual_seed(0)
net = UNet(width=8, multipliers=(1, 2), slot_size=6, heads=2, depth=1).double().eval()
with torch.no_grad():
    for parameter in net.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
z, t, slots = torch.randn(2, 3, 4, 4).double(), torch.tensor([3, 700]), torch.randn(2, 3, 6).double()
compiled = torch.compile(net, fullgraph=True, backend="eager")
wanted = net(z, t, slots)
torch.testing.assert_close(compiled(z, t, slots), wanted)
torch.testing.assert_close(compiled(z, t, context=net.context(slots)), wanted)
"""


def test_it_compiles_in_one_graph() -> None:
    """In a process without the tests' checks of shapes and types, which the compiler cannot look into."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


# --- bad input ---


def refused(run: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        run()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"heads": 3}, "3 heads cannot share 16 channels"),
        ({"heads": 0}, "0 heads cannot share 16 channels"),
        ({"width": 7}, "7 wide"),
        ({"width": 2}, "2 wide"),
    ],
)
def test_settings_that_make_no_network(options: dict[str, Any], says: str) -> None:
    assert says in refused(lambda: network(**options))


# --- latent diffusion's form ---


def test_the_published_unet_has_as_many_parameters_as_the_authors() -> None:
    with torch.device("meta"):
        net = UNet(blocks="latent", head_size=32)
    assert sum(parameter.numel() for parameter in net.parameters()) - net.no_slots.numel() == 134_243_331


def test_latent_transformer_block_is_torchs_attention_between_projections() -> None:
    block, x, slots = wake(LatentTransformerBlock(8, S, 2).double()), draw(B, 8, 3, 5), draw(B, K, S, seed=1)
    norms = (block.norm1, block.norm2, block.norm3)

    def twin(attention: Any, y: Tensor, others: Tensor, weights: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        queries, keys, values = (part @ weight.mT for part, weight in zip((y, others, others), weights, strict=True))
        zeros = torch.zeros(24, dtype=y.dtype)
        eyes = torch.eye(8, dtype=y.dtype).repeat(3, 1)
        rows = [part.transpose(0, 1) for part in (queries, keys, values)]
        found, _ = functional.multi_head_attention_forward(
            *rows, 8, 2, eyes, zeros, None, None, False, 0.0, attention.out.weight, attention.out.bias
        )
        return found.transpose(0, 1)

    y = functional.group_norm(x, block.norm.num_groups, block.norm.weight, block.norm.bias, 1e-6)
    y = functional.conv2d(y, block.conv_in.weight, block.conv_in.bias).flatten(2).mT
    own, told = block.attention1, block.attention2
    h = functional.layer_norm(y, (8,), norms[0].weight, norms[0].bias)
    y = y + twin(own, h, h, own.queries_keys_values.weight.chunk(3))
    h = functional.layer_norm(y, (8,), norms[1].weight, norms[1].bias)
    y = y + twin(told, h, slots, (told.queries.weight, *told.to_keys_and_values.weight.chunk(2)))
    h = functional.layer_norm(y, (8,), norms[2].weight, norms[2].bias)
    gated, last = block.feed_forward
    wide = h @ gated.linear.weight.mT + gated.linear.bias
    y = y + (wide[..., :32] * functional.gelu(wide[..., 32:])) @ last.weight.mT + last.bias
    wanted = x + functional.conv2d(y.mT.unflatten(2, (3, 5)), block.conv_out.weight, block.conv_out.bias)
    torch.testing.assert_close(block(x, told.keys_and_values(slots)), wanted, rtol=1e-12, atol=1e-12)


def test_latent_transformer_block_and_network_begin_as_nothing() -> None:
    block, x = LatentTransformerBlock(8, S, 2), draw(B, 8, 3, 5, dtype=torch.float32)
    found = block(x, block.attention2.keys_and_values(draw(B, K, S, dtype=torch.float32)))
    assert torch.equal(found, x)


@pytest.mark.parametrize("channels", [4, 8])
def test_latent_residual_block_has_its_shortcut_round_all_of_it(channels: int) -> None:
    block, x, time = wake(LatentResidualBlock(4, channels, 6).double().eval()), draw(B, 4, 5, 5), draw(B, 6, seed=1)
    h = functional.group_norm(x, block.norm1.num_groups, block.norm1.weight, block.norm1.bias)
    h = functional.conv2d(functional.silu(h), block.conv1.weight, block.conv1.bias, padding=1)
    h = h + (time @ block.time.weight.mT + block.time.bias)[..., None, None]
    h = functional.group_norm(h, block.norm2.num_groups, block.norm2.weight, block.norm2.bias)
    h = functional.conv2d(functional.silu(h), block.conv2.weight, block.conv2.bias, padding=1)
    short = x if channels == 4 else functional.conv2d(x, block.shortcut.weight, block.shortcut.bias)
    torch.testing.assert_close(block(x, time), short + h)


def test_latent_network_sees_slots_time_and_keeps_the_shape() -> None:
    net, (z, t, slots) = network(blocks="latent", head_size=4), inputs()
    found = net(z, t, slots)
    assert found.shape == z.shape
    assert not torch.allclose(found, net(z, t, slots + 1))
    assert not torch.allclose(found, net(z, t + 100, slots))


def test_a_head_size_that_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match="divides"):
        UNet(width=8, multipliers=(1, 2), head_size=5)
