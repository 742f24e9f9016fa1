"""The model of both parts, masks out of attention, trained autoencoders, pictures of slots, libraries."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tests.studies.slotdiffusion.common import (
    SIDE,
    B,
    C,
    K,
    S,
    autoencoder,
    build,
    draw,
    load,
    network,
    one_line,
    painter,
    pictures,
    saved,
    settings,
)
from torch import Tensor, nn

from etude.core import randomness
from etude.core.checkpoint import Checkpoints, WeightsHeader, save_weights
from etude.core.config import to_dict
from etude.core.errors import UserError
from etude.scenes.scores import segments
from etude.scenes.slot_library import Library
from etude.studies.slotdiffusion.model import SlotDiffusion, attention_masks
from etude.studies.slotdiffusion.samplers import ddim
from etude.studies.slotdiffusion.study import STUDY
from etude.studies.slotdiffusion.vae_files import read_vae

KEPT = torch.zeros(B, dtype=torch.bool)


def answer(
    net: SlotDiffusion, images_BCHW: Tensor, drop_B: Tensor = KEPT, noise_seed: int = 2, **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    z_BChw, t_B = draw(B, net.unet.channels, SIDE, SIDE, seed=1), torch.tensor([0, 3, 11, 19])
    return net(images_BCHW, z_BChw, t_B, draw(B, K, S, seed=noise_seed), drop_B, **options)


# --- forward ---


@pytest.mark.parametrize("init", ["gaussian", "learned", "bilevel"])
@pytest.mark.parametrize("channels", [3, 4])
def test_shapes(init: str, channels: int) -> None:
    net = network(model__init=init, vae__channels=channels)
    noise_BChw, named = answer(net, pictures())
    assert noise_BChw.shape == (B, channels, SIDE, SIDE)
    assert named["slots"].shape == (B, K, S)
    # Strides 1, 2, 2, 1 leave a quarter of 16 pixels.
    assert net.encoder.places == (4, 4)
    assert named["attention"].shape == (B, 2, K, 16)
    assert net.scale.item() == 1


INERT = ("encoder.attention.norm_slots.bias",)
"""Which a softmax over slots takes no note of."""


@pytest.mark.parametrize("implicit", [False, True])
def test_the_loss_reaches_every_parameter(implicit: bool) -> None:
    net = network(model__init="bilevel", model__implicit=implicit)
    noise_BChw, _ = answer(net, pictures(), torch.tensor([False, True, False, False]))
    noise_BChw.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert name in INERT or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("dropped", [False, True])
def test_parts_that_are_left_out_have_a_gradient_of_zero(dropped: bool) -> None:
    """None would make several processes wait for ever."""
    net = network()
    noise_BChw, _ = answer(net, pictures(), torch.full((B,), dropped))
    noise_BChw.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    moved = {name for name, gradient in gradients.items() if gradient is not None and gradient.any()}
    assert ("unet.no_slots" in moved) == dropped
    assert any(name.startswith("encoder.") for name in moved) != dropped
    assert "unet.conv1.weight" in moved


def test_dropped_slots_do_not_depend_on_the_image() -> None:
    net = network().eval()
    drop_B = torch.tensor([True, False, True, False])
    one_BChw, named = answer(net, pictures(seed=1), drop_B)
    other_BChw, others = answer(net, pictures(seed=2), drop_B)
    same_B = (one_BChw == other_BChw).flatten(1).all(1)
    assert same_B.tolist() == drop_B.tolist()
    # The slots themselves are told as they are.
    assert not torch.isclose(named["slots"], others["slots"]).flatten(1).all(1).any()
    none_BChw = net.unet(draw(B, C, SIDE, SIDE, seed=1), torch.tensor([0, 3, 11, 19]))
    torch.testing.assert_close(one_BChw[drop_B], none_BChw[drop_B])


@pytest.mark.parametrize("order", [[1, 2, 0], [2, 1, 0]])
def test_slots_permute_and_the_noise_stays(order: list[int]) -> None:
    net = network().eval()
    images, z_BChw, t_B, noise_BKS = pictures(), draw(B, C, SIDE, SIDE), torch.arange(B), draw(B, K, S, seed=2)
    one_BChw, named = net(images, z_BChw, t_B, noise_BKS, KEPT)
    other_BChw, others = net(images, z_BChw, t_B, noise_BKS[:, order], KEPT)
    torch.testing.assert_close(other_BChw, one_BChw, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(others["slots"], named["slots"][:, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(others["attention"], named["attention"][:, :, order], rtol=1e-4, atol=1e-5)


def test_the_noise_that_slots_begin_with_may_fade() -> None:
    net, images = network(model__init="bilevel").eval(), pictures()
    one, other = (answer(net, images, noise_seed=seed, spread=0.0)[0] for seed in (1, 2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    one, other = (answer(net, images, noise_seed=seed)[0] for seed in (1, 2))
    assert not torch.allclose(one, other)


# --- masks ---


def interpolated(map_hw: np.ndarray, size: int) -> np.ndarray:
    """Pixel by pixel: middles of places lie half a place from the edge, and beyond them the edge goes on."""
    height, width = map_hw.shape
    made = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            y = min(max((row + 0.5) * height / size - 0.5, 0), height - 1)
            x = min(max((column + 0.5) * width / size - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            below, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = map_hw[top, left] * (1 - x + left) + map_hw[top, right] * (x - left)
            lower = map_hw[below, left] * (1 - x + left) + map_hw[below, right] * (x - left)
            made[row, column] = upper * (1 - y + top) + lower * (y - top)
    return made


@pytest.mark.parametrize(("places", "size"), [((4, 4), 16), ((2, 3), 8), ((4, 4), 4)])
def test_masks_are_the_last_attention_interpolated(places: tuple[int, int], size: int) -> None:
    attention_BTKN = draw(2, 3, K, places[0] * places[1]).softmax(2)
    masks_BKHW = attention_masks(attention_BTKN, places, size)
    assert masks_BKHW.shape == (2, K, size, size)
    torch.testing.assert_close(masks_BKHW.sum(1), torch.ones(2, size, size))
    for image in range(2):
        for slot in range(K):
            wanted = interpolated(attention_BTKN[image, -1, slot].view(places).double().numpy(), size)
            np.testing.assert_allclose(masks_BKHW[image, slot].numpy(), wanted, atol=1e-6)
    assert torch.equal(segments(masks_BKHW), masks_BKHW.argmax(1))


# --- trained autoencoders ---


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def run_with(path: Path, seeds: list[int], best: int | None = None) -> Path:
    """A run's folder with a checkpoint of each seed, at steps 1, 2, ..."""
    checkpoints = Checkpoints(path / "checkpoints", keep=9)
    (path / "checkpoints").mkdir(parents=True)
    header = WeightsHeader("slotdiffusion", to_dict(settings(phase="vae")), {})
    for step, seed in enumerate(seeds, 1):
        modules = {"last": autoencoder(seed=100), "vae": autoencoder(seed=seed)}
        checkpoints.save(step, modules, header, {"step": step})
    if best is not None:
        checkpoints.mark_best(best, "error", 0.1)
    return path


@pytest.mark.parametrize(("best", "seed"), [(2, 12), (None, 13)])
def test_a_run_gives_its_best_autoencoder_or_else_its_newest(tmp_path: Path, best: int | None, seed: int) -> None:
    run, vae = run_with(tmp_path / "vae", [11, 12, 13], best), autoencoder()
    read_vae(vae, str(run))
    assert same(vae, autoencoder(seed=seed))
    # A checkpoint of its own, and the file in it.
    for place in (run / "checkpoints" / "step-00000001", run / "checkpoints" / "step-00000001" / "weights.safetensors"):
        read_vae(vae, str(place))
        assert same(vae, autoencoder(seed=11))


def test_a_run_without_a_checkpoint(tmp_path: Path) -> None:
    run = run_with(tmp_path / "vae", [])
    with pytest.raises(UserError) as caught:
        read_vae(autoencoder(), str(run))
    one_line(caught, f"{run} has no checkpoint: train it to its end first")


def test_a_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run_with(tmp_path / "vae", [11])
    vae = autoencoder()
    read_vae(vae, "~/vae")
    assert same(vae, autoencoder(seed=11))


def test_the_autoencoder_of_a_diffusion(tmp_path: Path) -> None:
    """Whose file holds more; stored in half precision it is that to rounding."""
    vae = autoencoder()
    read_vae(vae, str(saved(tmp_path / "whole.safetensors", seed=4)))
    assert same(vae, autoencoder(seed=4))
    read_vae(vae, str(saved(tmp_path / "half.safetensors", seed=5, half=True)))
    for name, value in autoencoder(seed=5).state_dict().items():
        torch.testing.assert_close(vae.state_dict()[name], value, rtol=1e-3, atol=1e-6)
    assert all(value.dtype == torch.float32 for value in vae.state_dict().values())


@pytest.mark.parametrize("kind", ["kl", "vq"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_file_of_latent_diffusion(tmp_path: Path, kind: str, ending: str) -> None:
    path, other = tmp_path / f"vae.{ending}", autoencoder(seed=7, vae__kind=kind)
    if ending == "pth":
        torch.save({"state_dict": other.state_dict()}, path)
    else:
        safetensors.torch.save_file(other.state_dict(), path)
    vae = autoencoder(vae__kind=kind)
    read_vae(vae, str(path))
    assert same(vae, other)


def test_untrained_changes_nothing() -> None:
    vae = autoencoder()
    read_vae(vae, "untrained")
    assert same(vae, autoencoder())


def test_no_name_tells_how_to_train_one() -> None:
    with pytest.raises(UserError) as caught:
        read_vae(autoencoder(), "")
    one_line(caught, "no autoencoder: train one (etude run slotdiffusion vae-laptop)", "--vae.weights")
    assert "vae-laptop" in STUDY.presets


@pytest.mark.parametrize("name", ["nowhere.pth", "nowhere.safetensors", "nowhere"])
def test_nothing_of_that_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        read_vae(autoencoder(), str(tmp_path / name))
    one_line(caught, f"no autoencoder at {tmp_path / name}")


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"vae__kind": "vq"}, "--vae.kind vq"),
    "width": ({"vae__width": 8}, "--vae.width 8"),
    "multipliers": ({"vae__multipliers": (1, 2, 4)}, "--vae.multipliers 1 2 4"),
    "channels": ({"vae__channels": 4}, "--vae.channels 4"),
    "blocks": ({"vae__blocks": 2}, "--vae.blocks 2"),
}


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("what", sorted(OTHERS))
def test_an_autoencoder_of_other_sizes(tmp_path: Path, what: str, ours: bool) -> None:
    """The line names the flags that would do."""
    changes, flags = OTHERS[what]
    path = tmp_path / ("vae.safetensors" if ours else "vae.pth")
    if ours:
        saved(path, **changes)
    else:
        torch.save(autoencoder(**changes).state_dict(), path)
    vae = autoencoder()
    with pytest.raises(UserError) as caught:
        read_vae(vae, str(path))
    one_line(caught, f"{path} is an autoencoder of other sizes: give --vae.", flags)
    assert same(vae, autoencoder()), "it is as it was"


def test_a_codebook_of_other_sizes(tmp_path: Path) -> None:
    path = saved(tmp_path / "vae.safetensors", vae__kind="vq", vae__codes=32)
    with pytest.raises(UserError) as caught:
        read_vae(autoencoder(vae__kind="vq"), str(path))
    one_line(caught, "--vae.codes 32")


def test_the_flags_that_the_line_names_fit(tmp_path: Path) -> None:
    """Taken from it as they stand."""
    changes: dict[str, Any] = {"vae__width": 6, "vae__multipliers": (1, 1, 2), "vae__blocks": 2, "vae__channels": 4}
    torch.save(autoencoder(**changes).state_dict(), tmp_path / "vae.pth")
    with pytest.raises(UserError) as caught:
        read_vae(autoencoder(), str(tmp_path / "vae.pth"))
    found: dict[str, Any] = {}
    for flag in str(caught.value).split("--vae.")[1:]:
        name, *values = flag.split()
        numbers = tuple(int(value) for value in values if value.isdigit())
        found[f"vae__{name}"] = values[0] if name == "kind" else numbers if name == "multipliers" else numbers[0]
    vae = autoencoder(**found)
    read_vae(vae, str(tmp_path / "vae.pth"))
    assert same(vae, autoencoder(**changes))


def test_files_that_hold_no_autoencoder(tmp_path: Path) -> None:
    header = WeightsHeader("slots", {}, {})
    save_weights(tmp_path / "slots.safetensors", {"model": nn.Linear(2, 2)}, header)
    with pytest.raises(UserError) as caught:
        read_vae(autoencoder(), str(tmp_path / "slots.safetensors"))
    one_line(caught, "is a checkpoint of the study 'slots', not of 'slotdiffusion'")
    build(network(), draw(9, S)).save(tmp_path / "library.safetensors", "slotdiffusion", to_dict(settings()))
    with pytest.raises(UserError) as caught:
        read_vae(autoencoder(), str(tmp_path / "library.safetensors"))
    one_line(caught, f"{tmp_path / 'library.safetensors'} holds no autoencoder")
    whole = saved(tmp_path / "cut.safetensors")
    whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(UserError) as caught:
        read_vae(autoencoder(), str(whole))
    one_line(caught, str(whole), "truncated")


# --- pictures of slots ---


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm-solver++"])
def test_a_picture_is_the_same_whatever_the_batch(sampler: str) -> None:
    brush, slots_BKS = painter(network(), sample__sampler=sampler, sample__steps=4), draw(6, K, S)
    together = brush.paint(slots_BKS, slice(2, 8), "here")
    assert together.shape == (6, 3, 16, 16)
    parts = [brush.paint(slots_BKS[at : at + 2], slice(at + 2, at + 4), "here") for at in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), together, rtol=1e-4, atol=1e-5)
    # The number, the stream and the slots each make another one.
    assert not torch.allclose(brush.paint(slots_BKS[:2], slice(0, 2), "here"), together[:2], atol=1e-3)
    assert not torch.allclose(brush.paint(slots_BKS[:2], slice(2, 4), "there"), together[:2], atol=1e-3)
    assert not torch.allclose(brush.paint(slots_BKS[2:4], slice(2, 4), "here"), together[:2], atol=1e-3)


def by_hand(brush: Any, slots_BKS: Tensor, weight: float) -> Tensor:
    """Slots given to the U-Net at every step, guidance in two calls, ddim: latents."""
    unet = brush.model.unet
    none_BKS = unet.no_slots.expand_as(slots_BKS)

    @torch.no_grad()
    def predict(z_BX: Tensor, t_B: Tensor) -> Tensor:
        given, none = unet(z_BX, t_B, slots_BKS), unet(z_BX, t_B, none_BKS)
        return none + weight * (given - none)

    noise = torch.stack([_noise(brush.seed, "here", image) for image in range(len(slots_BKS))])
    return ddim(predict, brush.schedule, noise, [], steps=brush.config.steps)


def _noise(seed: int, stream: str, image: int) -> Tensor:
    return torch.randn(C, SIDE, SIDE, generator=randomness.generator(seed, stream, 0, image))


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_the_kept_context_and_guidance_by_hand(weight: float) -> None:
    """With a weight of 1 there is none."""
    changes: dict[str, Any] = {"sample__sampler": "ddim", "sample__guidance": weight, "optim__drop": 0.1}
    brush, slots_BKS = painter(network(), **changes), draw(3, K, S)
    found = brush.latents(slots_BKS, slice(0, 3), "here")
    torch.testing.assert_close(found, by_hand(brush, slots_BKS, weight), rtol=1e-4, atol=1e-4)
    plain = painter(network(), sample__sampler="ddim").latents(slots_BKS, slice(0, 3), "here")
    assert torch.allclose(found, plain, atol=1e-5) == (weight == 1)
    if weight == 0:
        other = brush.latents(draw(3, K, S, seed=9), slice(0, 3), "here")
        assert torch.equal(found, other), "no slots at all"


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm-solver++"])
def test_a_velocity_paints_what_its_noise_paints(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"sample__sampler": sampler, "sample__steps": 4}
    slots_BKS = draw(3, K, S)
    by_noise = painter(network(), **changes)
    wanted = by_noise.latents(slots_BKS, slice(0, 3), "here")
    by_velocity = painter(network(model__target="velocity"), **changes)
    plain = by_velocity.model.unet.forward
    schedule = by_velocity.schedule

    def velocity(z: Tensor, t: Tensor, *args: Any, **named: Any) -> Tensor:
        """Of the noise that the other network answers with, by the definition."""
        noise = plain(z, t, *args, **named)
        level = schedule.level(int(t[0]))
        clean = (z - level.noise * noise) / level.signal
        return level.signal * noise - level.noise * clean

    monkeypatch.setattr(by_velocity.model.unet, "forward", velocity)
    found = by_velocity.latents(slots_BKS, slice(0, 3), "here")
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_latents_are_decoded_without_their_scale() -> None:
    net = network()
    net.scale.fill_(4)
    brush, z_BChw = painter(net), draw(2, C, SIDE, SIDE)
    torch.testing.assert_close(brush.decode(z_BChw), brush.vae.decode(z_BChw / 4))
    assert not brush.decode(z_BChw).requires_grad


@pytest.mark.parametrize("count", [1, K, 5])
def test_any_number_of_slots_makes_a_picture(count: int) -> None:
    brush = painter(network())
    assert brush.paint(draw(2, count, S), slice(0, 2), "here").isfinite().all()


def test_each_step_is_told() -> None:
    seen: list[tuple[int, int, tuple[int, ...], tuple[int, ...]]] = []
    painter(network()).paint(
        draw(2, K, S), slice(0, 2), "here",
        lambda step, steps, z, z0: seen.append((step, steps, tuple(z.shape), tuple(z0.shape))),
    )  # fmt: skip
    shape = (2, C, SIDE, SIDE)
    assert seen == [(step, 3, shape, shape) for step in (1, 2, 3)]


OWN = """
import torch

def euler(predict, schedule, z, generators, *, steps, clip=None, on_step=None):
    for step in range(steps):
        stride = schedule.num_steps // steps
        t_B = torch.full((len(z),), schedule.num_steps - 1 - step * stride)
        noise = predict(z, t_B)
        z0 = schedule.predict_z0(z, t_B, noise)
        z = z0 if step == steps - 1 else schedule.q_sample(z0, t_B - stride, noise)
        if on_step:
            on_step(step + 1, steps, z, z0)
    return z

def flat(predict, schedule, z, generators, *, steps, clip=None, on_step=None):
    return z.flatten(1)
"""


def test_a_users_own_sampler_draws(tmp_path: Path) -> None:
    """Written another way, it draws what ddim does."""
    (tmp_path / "mine.py").write_text(OWN)
    slots_BKS = draw(2, K, S)
    changes: dict[str, Any] = {"sample__steps": 5, "sample__guidance": 1.5, "optim__drop": 0.1}
    made = [
        painter(network(), sample__sampler=name, **changes).paint(slots_BKS, slice(0, 2), "here")
        for name in (f"{tmp_path / 'mine.py'}:euler", "ddim")
    ]
    torch.testing.assert_close(made[0], made[1], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError) as caught:
        painter(network(), sample__sampler=f"{tmp_path / 'mine.py'}:flat")
    one_line(caught, "must map latents")


# --- a library knows its model ---


@pytest.mark.parametrize("channels", [3, 4, 1])
def test_the_card_is_small_and_fixed(channels: int) -> None:
    net, slots_KS = network(vae__channels=channels).eval(), draw(K, S)
    found = net.card(slots_KS)
    assert (found.shape, found.dtype) == ((3, 8, 8), torch.float32)
    assert found.isfinite().all()
    assert torch.equal(net.card(slots_KS), found)
    torch.testing.assert_close(net.card(slots_KS.flip(0)), found, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net.card(draw(K, S, seed=1)), found, atol=1e-3)
    assert not torch.allclose(network(seed=1, vae__channels=channels).eval().card(slots_KS), found, atol=1e-3)


@pytest.fixture
def library() -> Library:
    return build(network().eval(), draw(12, S))


def test_a_library_there_and_back(tmp_path: Path, library: Library) -> None:
    path = tmp_path / "library.safetensors"
    library.save(path, "slotdiffusion", to_dict(settings()))
    again = load(path, network().eval())
    assert torch.equal(again.slots_NS, library.slots_NS)
    assert torch.equal(again.cluster_N, library.cluster_N)
    assert again.draw(5, torch.Generator().manual_seed(0)).shape == (5, K, S)


@pytest.mark.parametrize(
    ("study", "changes", "says"),
    [
        ("slotdiffusion", {"seed": 1}, "is the slot library of another model (its slots decode otherwise)"),
        ("slotdiffusion", {"model__num_slots": 4}, "another model (num_slots 3, not 4)"),
        ("slotdiffusion", {"model__slot_size": 6}, "another model (slot_size 8, not 6)"),
        ("slotdiffusion", {"model__size": 32}, "another model (size 16, not 32)"),
        ("slots", {}, "is a checkpoint of the study 'slots', not of 'slotdiffusion'"),
    ],
)
def test_a_library_of_another_model(
    tmp_path: Path, library: Library, study: str, changes: dict[str, Any], says: str
) -> None:
    path = tmp_path / "library.safetensors"
    library.save(path, study, to_dict(settings()))
    with pytest.raises(UserError) as caught:
        load(path, network(**changes).eval())
    one_line(caught, str(path), says)


def test_weights_are_no_library(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(saved(tmp_path / "net.safetensors"), network())
    one_line(caught, "holds a network, not a slot library")
