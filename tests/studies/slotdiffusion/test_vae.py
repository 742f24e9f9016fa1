"""The autoencoder against diffusers' own, its two losses by hand, files in every layout, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from diffusers.models.attention_processor import Attention as TheirAttention
from diffusers.models.resnet import ResnetBlock2D
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from etude.core.checkpoint import WeightsHeader, save_weights
from etude.core.errors import UserError
from etude.studies.slotdiffusion import vae as module
from etude.studies.slotdiffusion import vae_files
from etude.studies.slotdiffusion.vae import VAE, Attention, Codebook, ResidualBlock, kl_loss, vq_loss
from etude.studies.slotdiffusion.vae_files import load_vae

KINDS = ("kl", "vq")
TINY: dict[str, Any] = {"width": 8, "multipliers": (1, 2, 2), "num_codes": 16}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pictures(number: int = 2, height: int = 16, width: int = 24) -> Tensor:
    return draw(number, 3, height, width).tanh()


@torch.no_grad()
def stir(net: Any) -> Any:
    """Norms that do nothing would hide that they are left out, and small codes which is nearest."""
    for name, parameter in net.named_parameters():
        if parameter.ndim == 1 and "norm" in name:
            parameter.uniform_(0.5, 1.5)
        if "embedding" in name:
            parameter.normal_()
    return net.eval()


def tiny(kind: Any = "kl", **options: Any) -> VAE:
    torch.manual_seed(0)
    return stir(VAE(kind, **(TINY | options)))


def peer(kind: str, channels: tuple[int, ...] = (8, 16, 16), groups: int = 4, **options: Any) -> Any:
    torch.manual_seed(1)
    levels = len(channels)
    given_options: dict[str, Any] = {"num_vq_embeddings": TINY["num_codes"]} if kind == "vq" else {}
    return stir({"kl": AutoencoderKL, "vq": VQModel}[kind](
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=channels, latent_channels=3, norm_num_groups=groups,
        **({"layers_per_block": 2} | given_options | options),
    ))  # fmt: skip


def grouped(monkeypatch: pytest.MonkeyPatch, groups: int) -> None:
    """Norms of so many groups, for networks too narrow for 32."""
    monkeypatch.setattr(module, "GROUPS", groups)
    monkeypatch.setitem(vae_files._SETTINGS, "norm_num_groups", groups)


def fault(act: Callable[[], Any], *said: str) -> str:
    """The one line that an act is refused with."""
    with pytest.raises(UserError) as caught:
        act()
    line = str(caught.value)
    assert "\n" not in line
    for part in said:
        assert part in line
    return line


def same(mine: nn.Module, other: nn.Module) -> bool:
    ours, theirs = mine.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


# --- the network ---


def test_the_courses_snippet() -> None:
    checkpoint = VAE().state_dict()
    vae = VAE()
    vae.load_state_dict(checkpoint)
    with torch.no_grad():
        z = vae.encode(pictures(1, 32, 32))
        assert z.shape == (1, 3, 8, 8)
        assert vae.decode(z).shape == (1, 3, 32, 32)
    assert vae.encoder.mid.attn_1.q.weight.shape == (256, 256, 1, 1)


@pytest.mark.parametrize(
    ("kind", "width", "parameters"), [("kl", 64, 13_852_543), ("vq", 64, 13_870_174), ("vq", 128, 55_322_782)]
)
def test_it_has_the_parameters_of_the_published_layout(kind: Any, width: int, parameters: int) -> None:
    with torch.device("meta"):
        ours = VAE(kind, width=width)
        options = {"num_vq_embeddings": 8192} if kind == "vq" else {}
        theirs = peer(kind, (width, 2 * width, 4 * width), 32, **options)
    counts = [sum(parameter.numel() for parameter in net.parameters()) for net in (ours, theirs)]
    assert counts == [parameters, parameters]


def test_names_and_shapes_are_those_of_latent_diffusion() -> None:
    with torch.device("meta"):
        state = VAE("vq", width=128).state_dict()
    wanted = {
        "encoder.conv_in.weight": (128, 3, 3, 3),
        "encoder.down.0.block.0.norm1.weight": (128,),
        "encoder.down.0.downsample.conv.weight": (128, 128, 3, 3),
        "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
        "encoder.down.2.block.1.conv2.bias": (512,),
        "encoder.mid.block_1.conv1.weight": (512, 512, 3, 3),
        "encoder.mid.attn_1.norm.weight": (512,),
        "encoder.mid.attn_1.k.weight": (512, 512, 1, 1),
        "encoder.mid.attn_1.proj_out.bias": (512,),
        "encoder.norm_out.weight": (512,),
        "encoder.conv_out.weight": (3, 512, 3, 3),
        "quant_conv.weight": (3, 3, 1, 1),
        "quantize.embedding.weight": (8192, 3),
        "post_quant_conv.weight": (3, 3, 1, 1),
        "decoder.conv_in.weight": (512, 3, 3, 3),
        "decoder.mid.block_2.norm2.bias": (512,),
        "decoder.up.2.block.0.conv1.weight": (512, 512, 3, 3),
        "decoder.up.2.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.up.1.block.0.nin_shortcut.weight": (256, 512, 1, 1),
        "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
        "decoder.up.0.block.2.conv2.weight": (128, 128, 3, 3),
        "decoder.norm_out.bias": (128,),
        "decoder.conv_out.weight": (3, 128, 3, 3),
    }
    assert {key: tuple(state[key].shape) for key in wanted} == wanted
    absent = ("encoder.down.2.downsample", "decoder.up.0.upsample", "encoder.down.0.block.0.nin_shortcut")
    assert not [key for key in state if key.startswith(absent)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("multipliers", "stride"), [((1,), 1), ((1, 2), 2), ((2, 1, 3), 4), ((1, 1, 1, 2), 8)])
@torch.no_grad()
def test_shapes(kind: Any, multipliers: tuple[int, ...], stride: int) -> None:
    vae = tiny(kind, multipliers=multipliers, latent_channels=5, num_blocks=1)
    z = vae.encode(pictures())
    assert z.shape == (2, 5, 16 // stride, 24 // stride)
    assert vae.decode(z).shape == (2, 3, 16, 24)
    assert vae.encode(pictures(0)).shape[0] == vae(pictures(0))[0].shape[0] == 0


@pytest.mark.parametrize(("in_channels", "channels", "groups"), [(8, 8, 4), (8, 12, 2), (32, 32, 32)])
def test_a_residual_block_is_diffusers(
    in_channels: int, channels: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouped(monkeypatch, groups)
    torch.manual_seed(0)
    ours = stir(ResidualBlock(in_channels, channels))
    theirs = ResnetBlock2D(
        in_channels=in_channels, out_channels=channels, temb_channels=None, groups=groups, eps=1e-6
    )  # fmt: skip
    theirs.load_state_dict({k.replace("nin_shortcut", "conv_shortcut"): v for k, v in ours.state_dict().items()})
    x = draw(2, in_channels, 6, 5).requires_grad_()
    found, wanted = ours(x), theirs(x, None)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    pull = torch.randn_like(wanted)
    gradients = [torch.autograd.grad((y * pull).sum(), x)[0] for y in (found, wanted)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_attention_is_diffusers(layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    grouped(monkeypatch, 4)
    torch.manual_seed(0)
    ours = stir(Attention(16))
    theirs = TheirAttention(
        16, heads=1, dim_head=16, eps=1e-6, norm_num_groups=4, residual_connection=True, bias=True,
        _from_deprecated_attn_block=True,
    )  # fmt: skip
    names = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    with torch.no_grad():
        for layer in (ours.q, ours.k):
            # Sharp enough that who attends to whom matters.
            layer.weight *= 6
    state = {}
    for key, value in ours.state_dict().items():
        layer, _, part = key.partition(".")
        state[f"{names[layer]}.{part}"] = value.flatten(1) if value.ndim == 4 else value
    theirs.load_state_dict(state)
    x = draw(2, 16, 6, 5).to(memory_format=layout)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    assert (ours(x) - x - (ours(x) - x).mean((2, 3), keepdim=True)).abs().max() > 0.1


def test_groups_fall_back_where_they_do_not_divide() -> None:
    assert [norm.groups for norm in (module._norm(c) for c in (32, 64, 48, 8, 3))] == [32, 32, 24, 4, 1]


# --- the two forms ---


def test_kl_decodes_the_mean_or_a_draw() -> None:
    vae, images = tiny("kl"), pictures()
    _, named = vae(images)
    mean, log_variance = named["mean"], named["log_variance"]
    torch.testing.assert_close(vae.encode(images), mean)
    plain, named = vae(images)
    torch.testing.assert_close(plain, vae.decode(mean))
    assert torch.equal(named["z"], named["mean"])
    noise = draw(*mean.shape, seed=3)
    drawn, named = vae(images, noise)
    torch.testing.assert_close(named["z"], mean + torch.exp(0.5 * log_variance) * noise)
    torch.testing.assert_close(drawn, vae.decode(named["z"]))
    assert list(named) == ["mean", "log_variance", "z"]


def test_variances_are_held_within_bounds() -> None:
    vae = tiny("kl")
    with torch.no_grad():
        vae.quant_conv.bias[3:] = torch.tensor([-100.0, 0.0, 100.0])
    log_variance = vae(pictures())[1]["log_variance"]
    assert (log_variance[:, 0] == -30).all()
    assert (log_variance[:, 2] == 20).all()
    assert (log_variance[:, 1].abs() < 20).all()


def test_kl_loss_is_that_of_the_distributions() -> None:
    mean, log_variance = draw(3, 2, 4, 5).requires_grad_(), draw(3, 2, 4, 5, seed=1).requires_grad_()
    wanted = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    torch.testing.assert_close(kl_loss(mean, log_variance), wanted)
    mine, theirs = (torch.autograd.grad(y, [mean, log_variance]) for y in (kl_loss(mean, log_variance), wanted))
    torch.testing.assert_close(mine, theirs)
    assert kl_loss(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)) == 0


def book(number: int = 40, size: int = 3, scale: float = 1.0) -> Codebook:
    made = Codebook(number, size)
    with torch.no_grad():
        made.embedding.weight.copy_(draw(number, size, seed=5) * scale)
    return made


@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize("held", [1, 100, 1 << 22])
def test_the_nearest_code_is_that_of_brute_force(scale: float, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DISTANCES", held)
    sizes, addmm = [], torch.addmm

    def watched(*arguments: Any, **options: Any) -> Tensor:
        made = addmm(*arguments, **options)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(torch, "addmm", watched)
    codes, z = book(scale=scale), draw(2, 3, 5, 7)
    found = codes(z)
    away = z.movedim(1, -1)[..., None, :].double() - codes.embedding.weight.double()
    assert torch.equal(found.codes_Bhw, away.square().sum(-1).argmin(-1))
    torch.testing.assert_close(found.z_BDhw, codes.embedding.weight[found.codes_Bhw].movedim(-1, 1), atol=0, rtol=0)
    assert sum(sizes) == 70 * 40
    assert max(sizes) <= max(held, 40)


def test_autocast_does_not_confuse_codes() -> None:
    codes, z = book(400, scale=0.01), draw(2, 3, 5, 7)
    wanted = codes(z).codes_Bhw
    weight = codes.embedding.weight
    low = (weight.square().sum(1) - 2 * (z.movedim(1, -1).bfloat16() @ weight.T.bfloat16())).argmin(-1)
    assert not torch.equal(low, wanted), "half precision would confuse them"
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codes(z).codes_Bhw, wanted)


def test_the_gradient_passes_straight_through() -> None:
    codes, z = book(), draw(2, 3, 5, 7).requires_grad_()
    pull = draw(2, 3, 5, 7, seed=2)
    by_z, by_codes = torch.autograd.grad(
        (codes(z).z_BDhw * pull).sum(), [z, codes.embedding.weight], allow_unused=True
    )  # fmt: skip
    assert torch.equal(by_z, pull)
    assert by_codes is None


def test_each_term_moves_its_side_alone() -> None:
    codes, z = book(), draw(2, 3, 5, 7).requires_grad_()
    found, weight = codes(z), codes.embedding.weight
    gap = (z - weight[found.codes_Bhw].movedim(-1, 1)).detach()
    for term in (found.codebook, found.commitment):
        torch.testing.assert_close(term, gap.square().mean())
    by_z, by_codes = torch.autograd.grad(found.commitment, [z, weight], allow_unused=True, retain_graph=True)
    assert by_codes is None
    torch.testing.assert_close(by_z, 2 * gap / gap.numel())
    by_z, by_codes = torch.autograd.grad(found.codebook, [z, weight], allow_unused=True, retain_graph=True)
    assert by_z is None
    wanted = torch.zeros_like(weight)
    wanted.index_add_(0, found.codes_Bhw.flatten(), -2 * gap.movedim(1, -1).flatten(0, 2) / gap.numel())
    torch.testing.assert_close(by_codes, wanted)
    loss = vq_loss(found.codebook, found.commitment)
    torch.testing.assert_close(torch.autograd.grad(loss, z)[0], 0.25 * 2 * gap / gap.numel())


def test_vq_rounds_before_it_decodes() -> None:
    vae, images = tiny("vq"), pictures()
    z = vae.encode(images)
    rounded = vae.quantize(z).z_BDhw
    assert not torch.allclose(z, rounded)
    torch.testing.assert_close(vae.decode(z), vae.decode(rounded, quantize=False))
    assert not torch.allclose(vae.decode(z), vae.decode(z, quantize=False))
    image, named = vae(images)
    torch.testing.assert_close(image, vae.decode(z))
    assert list(named) == ["z", "codes", "codebook", "commitment"]
    torch.testing.assert_close(named["z"], z)
    assert named["codes"].shape == (2, 4, 6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_reaches_every_parameter(kind: Any) -> None:
    vae, images = tiny(kind), pictures()
    image, named = vae(images, draw(2, 3, 4, 6) if kind == "kl" else None)
    if kind == "kl":
        extra = kl_loss(named["mean"], named["log_variance"])
    else:
        extra = vq_loss(named["codebook"], named["commitment"])
    ((image - images).abs().mean() + extra).backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        # A shift of all keys changes no softmax.
        assert parameter.grad.abs().max() > 0 or name.endswith("attn_1.k.bias"), name


# --- files ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"layers_per_block": 1, "channels": (8, 24), "groups": 8}])
@torch.no_grad()
def test_a_folder_of_diffusers_computes_the_same(
    kind: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouped(monkeypatch, options.get("groups", 4))
    theirs, images = peer(kind, **options), pictures()
    theirs.save_pretrained(tmp_path)
    before = torch.random.get_rng_state()
    ours = load_vae(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert ours.kind == kind
    z = ours.encode(images)
    found = theirs.encode(images)
    if kind == "kl":
        _, named = ours(images)
        mean, log_variance = named["mean"], named["log_variance"]
        torch.testing.assert_close(mean, found.latent_dist.mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(log_variance, found.latent_dist.logvar, atol=1e-5, rtol=1e-5)
    else:
        torch.testing.assert_close(z, found.latents, atol=1e-5, rtol=1e-5)
        plain = theirs.decode(z, force_not_quantize=True).sample
        torch.testing.assert_close(ours.decode(z, quantize=False), plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.decode(z), theirs.decode(z).sample, atol=1e-4, rtol=1e-4)
    assert (ours.decode(z) - ours.decode(draw(*z.shape))).abs().max() > 0.01


def test_the_older_names_of_diffusers_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grouped(monkeypatch, 4)
    peer("kl").save_pretrained(tmp_path)
    new = load_vae(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(path)
    for now, then in older.items():
        state = {key.replace(f".{now}.", f".{then}."): value for key, value in state.items()}
    save_file(state, path)
    assert same(load_vae(tmp_path), new)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "model."])
@pytest.mark.parametrize("nested", [False, True])
def test_a_file_of_latent_diffusion_round_trips(kind: str, prefix: str, nested: bool, tmp_path: Path) -> None:
    vae = tiny(kind, latent_channels=4, num_blocks=1)
    state: dict[str, Any] = {prefix + key: value for key, value in vae.state_dict().items()}
    state |= {f"{prefix}loss.discriminator.main.0.weight": draw(3), f"{prefix}loss.count": torch.tensor(3)}
    state |= {"model_ema.decay": draw(1), "loss.logvar": draw(1)}
    if prefix == "first_stage_model.":
        state |= {"model.diffusion_model.out.weight": draw(3), "betas": draw(3)}
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": state, "global_step": 7} if nested else state, path)
    before = torch.random.get_rng_state()
    found = load_vae(str(path))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(found, vae)
    assert (found.kind, found.latent_channels, found.stride) == (kind, 4, 4)
    torch.testing.assert_close(found.decode(draw(1, 4, 4, 4)), vae.decode(draw(1, 4, 4, 4)))
    assert all(parameter.requires_grad for parameter in found.parameters())


@pytest.mark.parametrize("half", [False, True])
def test_our_own_weights_are_read(half: bool, tmp_path: Path) -> None:
    vae, path = tiny("vq"), tmp_path / "weights.safetensors"
    save_weights(path, {"vae": vae, "unet": nn.Linear(2, 2)}, WeightsHeader("slotdiffusion", {}, {}), half=half)
    found = load_vae(path)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    assert same(found, vae.half().float() if half else vae)


# --- what is refused ---


def saved(path: Path, change: Callable[[dict[str, Any]], Any], kind: str = "kl") -> Path:
    """A file of a changed state dict."""
    state: dict[str, Any] = dict(tiny(kind).state_dict())
    changed = change(state)
    torch.save(state if changed is None else changed, path)
    return path


def without(*keys: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {key: value for key, value in state.items() if key not in keys}


MISSING = [f"decoder.up.1.block.0.{name}" for name in ("norm1.weight", "norm1.bias", "conv1.weight", "conv1.bias")]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("encoder.conv_in.weight"), ["it lacks encoder.conv_in.weight"]),
        (without("decoder.conv_in.weight"), ["it lacks decoder.conv_in.weight"]),
        (lambda s: {"a": draw(1)}, ["it lacks encoder.conv_in.weight"]),
        (lambda s: {}, ["it lacks encoder.conv_in.weight"]),
        (without(*MISSING), [f"4 missing ({', '.join(MISSING[:3])}, ...)"]),
        (without("quant_conv.bias"), ["1 missing (quant_conv.bias)"]),
        (lambda s: s.update(a=draw(1), b=draw(1)), ["2 unknown (a, b)"]),
        (lambda s: s.update({"quantize.embed.weight": draw(9, 3)}), ["1 unknown (quantize.embed.weight)"]),
        (lambda s: s.update({"quantize.embedding.weight": draw(9, 3)}),
         ["of another shape (", "quant_conv.weight [6, 6, 1, 1] for [3, 3, 1, 1]"]),
        (lambda s: s.update({"decoder.conv_out.weight": draw(1, 8, 3, 3)}),
         ["1 of another shape (decoder.conv_out.weight [1, 8, 3, 3] for [3, 8, 3, 3])"]),
        (lambda s: s.update({"encoder.conv_in.weight": draw(0, 3, 3, 3)}), ["encoder.conv_in.weight is [0, 3, 3, 3]"]),
        (lambda s: s.update({"encoder.conv_in.weight": draw(3)}), ["encoder.conv_in.weight is [3]"]),
        (lambda s: s.update({"encoder.down.1.block.0.conv1.weight": draw(9, 8, 3, 3)}), ["[8, 9, 16] channels"]),
        (lambda s: s.update({"quant_conv.bias": 3}), ["no floating-point tensor at quant_conv.bias"]),
        (lambda s: s.update({"quant_conv.bias": torch.zeros(6, dtype=torch.int64)}), ["quant_conv.bias"]),
        (lambda s: s.update({"encoder.down.1.attn.0.q.weight": draw(16, 16, 1, 1)}),
         ["attention within a level (encoder.down.1.attn.0.q.weight)"]),
        (lambda s: [1, 2], ["a list, not a state dict"]),
        (lambda s: {"state_dict": nn.Linear(1, 1)}, ["more than tensors", "save its state dict alone"]),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(change: Any, said: list[str], tmp_path: Path) -> None:
    path = saved(tmp_path / "vae.pth", change)
    fault(lambda: load_vae(path), str(path), *said)


def test_no_file_and_broken_ones(tmp_path: Path) -> None:
    fault(lambda: load_vae(tmp_path / "none.pth"), "no autoencoder at", "none.pth", ".safetensors")
    whole = saved(tmp_path / "vae.pth", lambda state: None)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[:5000])
    fault(lambda: load_vae(cut), str(cut), "truncated")
    foreign = shutil.copy(whole, tmp_path / "vae.safetensors")
    fault(lambda: load_vae(foreign), "not a safetensors file")


@settings(max_examples=40)
@given(st.binary(max_size=60), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x08\0\0\0\0\0\0\0{"]))
def test_any_bytes_get_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes, start: bytes) -> None:
    for name in ("fuzz.pth", "fuzz.safetensors"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(start + data)
        fault(lambda path=path: load_vae(path), name)


def folder(path: Path, kind: str = "kl", change: dict[str, Any] | None = None, **options: Any) -> Path:
    """A folder of diffusers with a changed config."""
    peer(kind, **options).save_pretrained(path)
    config = path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | (change or {})))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_class_name": "UNet2DModel"}, ["of the class UNet2DModel", "AutoencoderKL and VQModel"]),
        ({"_class_name": None}, ["of the class None"]),
        ({"_class_name": ["AutoencoderKL"]}, ["of the class ['AutoencoderKL']"]),
        ({"_class_name": "VQModel"}, ["it lacks quantize.embedding.weight"]),
        ({"norm_num_groups": 16}, ["norm_num_groups 16: only 4"]),
        ({"act_fn": "relu"}, ["act_fn 'relu': only 'silu'"]),
        ({"norm_type": "spatial"}, ["norm_type 'spatial'"]),
    ],
)
def test_a_config_of_something_else(
    change: dict[str, Any], said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouped(monkeypatch, 4)
    fault(lambda: load_vae(folder(tmp_path, change=change)), *said)


def test_a_folder_without_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grouped(monkeypatch, 4)
    fault(lambda: load_vae(tmp_path), "has no config.json", "often vae")
    for text in ("{", "[1]"):
        (tmp_path / "config.json").write_text(text)
        fault(lambda: load_vae(tmp_path), "config.json")
    (folder(tmp_path) / "diffusion_pytorch_model.safetensors").unlink()
    fault(lambda: load_vae(tmp_path), "diffusion_pytorch_model.safetensors is missing")


@pytest.mark.parametrize("name", ["use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"])
def test_parts_of_diffusers_that_are_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grouped(monkeypatch, 4)
    fault(lambda: load_vae(folder(tmp_path, **{name: False})), f"has {name} False: only True is supported")


def test_attention_within_diffusers_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grouped(monkeypatch, 4)
    theirs = AutoencoderKL(
        down_block_types=("AttnDownEncoderBlock2D",), up_block_types=("AttnUpDecoderBlock2D",),
        block_out_channels=(8,), norm_num_groups=4,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path)
    fault(lambda: load_vae(tmp_path), "attention within a level (", "coder.", "_blocks.0.attentions.0")
