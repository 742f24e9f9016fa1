"""Both phases' training steps by hand, latents and their scale, evaluation, exact resumes, results, pictures."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.core import toy
from tests.metrics import stand_in
from tests.studies.slotdiffusion.common import (
    PLAIN,
    SIDE,
    B,
    C,
    K,
    S,
    alive,
    autoencoder,
    load,
    make,
    make_vae,
    network,
    one_line,
    saved,
    settings,
)
from torch import Tensor, nn

from etude import registry
from etude.cli import main
from etude.core import randomness
from etude.core.checkpoint import read_weights
from etude.core.errors import UserError
from etude.core.runtime import Runtime
from etude.data import clevrtex
from etude.metrics import fid, segmentation
from etude.nn.pixels import to_bytes
from etude.scenes.scores import half_width
from etude.studies.slotdiffusion.model import Painter, attention_masks
from etude.studies.slotdiffusion.task import SlotDiffusionTask, make_task
from etude.studies.slotdiffusion.vae import VAE


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a cache of its own: latents are kept there."""
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draws(stream: str, step: int, index: int = 0) -> torch.Generator:
    return randomness.generator(0, stream, step, index)


def scenes_of(count: int = 16) -> Tensor:
    """The training scenes of the small settings, ``[N, 3, 16, 16]`` in [-1, 1]."""
    scenes = clevrtex.generated(16, {"train": count, "val": 2, "test": 2}).splits["train"].images_NHWC
    return scenes.permute(0, 3, 1, 2) / 127.5 - 1


def rows_of(step: int, count: int = 16) -> Tensor:
    order = torch.randperm(count, generator=draws("train/order", step // (count // B)))
    place = step % (count // B)
    return order[B * place : B * place + B]


def mirrored(images: Tensor, step: int, part: int = 0) -> Tensor:
    coins = torch.rand(len(images), generator=draws("train/flip", step, part)) < 0.5
    return torch.stack([image.flip(2) if coin else image for image, coin in zip(images, coins, strict=True)])


def cut(module: nn.Module, most: float) -> float:
    """The norm of all gradients, which are then cut to ``most``."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients))
    assert norm > most, "the cut does something"
    for gradient in gradients:
        gradient *= most / (norm + 1e-6)
    return norm


INERT = ("attn_1.k.bias", "norm_slots.bias")
"""What a softmax takes no note of: the gradient is rounding, which Adam blows up."""


def assert_same_weights(ours: nn.Module, theirs: nn.Module, atol: float = 1e-4) -> None:
    assert_same(ours.state_dict(), theirs.state_dict(), atol)


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], atol: float = 1e-4) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if not name.endswith(INERT):
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=atol)


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# --- the autoencoder: one step, by hand ---


def distance(vae: VAE, images: Tensor, step: int, weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, its error, and what bounds the latents."""
    found = vae.quant_conv(vae.encoder(images))
    if vae.kind == "kl":
        mean, log_variance = found.chunk(2, 1)
        normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
        noise = torch.randn(mean.shape, generator=draws("train/latent", step))
        standard = torch.distributions.Normal(0.0, 1.0)
        bound = torch.distributions.kl_divergence(normal, standard).sum((1, 2, 3)).mean()
        made = vae.decoder(vae.post_quant_conv(mean + normal.stddev * noise))
        error = torch.stack([(m - i).abs().mean() for m, i in zip(made, images, strict=True)]).mean()
        return error + weight * bound / (3 * 16 * 16), error, bound
    codes = vae.quantize.embedding.weight
    vectors = found.movedim(1, -1)
    nearest = codes[(vectors[..., None, :] - codes).square().sum(-1).argmin(-1)]
    bound = (nearest - vectors.detach()).square().mean() + 0.25 * (vectors - nearest.detach()).square().mean()
    straight = vectors + (nearest - vectors).detach()
    made = vae.decoder(vae.post_quant_conv(straight.movedim(-1, 1)))
    error = (made - images).abs().mean()
    return error + bound, error, bound


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_step_of_the_autoencoder_is_the_algorithm(kind: str) -> None:
    task = make_vae(
        vae__kind=kind, vae__kl_weight=0.5, data__flip=True, optim__clip=0.05, optim__warmup=4, optim__ema=0.3,
        optim__schedule="constant",
    )  # fmt: skip
    twin = autoencoder(vae__kind=kind).train().requires_grad_(True)
    mean = copied(twin)
    assert same(task.vae, mean), "both begin alike"
    adam = torch.optim.Adam(twin.parameters())
    for step in range(3):
        row = task.train_step(step)
        loss, error, bound = distance(twin, mirrored(scenes_of()[rows_of(step)], step), step, 0.5)
        adam.zero_grad()
        loss.backward()
        norm = cut(twin, 0.05)
        adam.param_groups[0]["lr"] = 1e-3 * (step + 1) / 4
        adam.step()
        memory = min(0.3, (1 + step) / (10 + step))
        for name, value in twin.state_dict().items():
            mean[name] = memory * mean[name] + (1 - memory) * value
        name = "divergence" if kind == "kl" else "codebook"
        assert row.keys() == {"loss", "error", name, "gradient", "rate"}
        assert row["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
        assert row["error"].item() == pytest.approx(error.item(), rel=1e-5)
        assert row[name].item() == pytest.approx(bound.item(), rel=1e-4)
        assert row["gradient"].item() == pytest.approx(norm, rel=1e-4)
        assert row["rate"].item() == pytest.approx(1e-3 * (step + 1) / 4)
    assert_same_weights(task.vae, twin)
    assert_same(dict(task.exported["vae"].state_dict()), mean)
    assert not same(task.vae, task.exported["vae"].state_dict()), "the mean is another one"


def test_two_parts_of_a_codebooks_batch_are_one() -> None:
    """Which draws no noise a part."""
    whole, parts = make_vae(vae__kind="vq"), make_vae(vae__kind="vq", batch__parts=2)
    for step in range(2):
        rows, other = whole.train_step(step), parts.train_step(step)
        for name, value in rows.items():
            assert other[name].item() == pytest.approx(value.item(), rel=1e-3), name
    assert_same_weights(whole.vae, parts.vae, atol=1e-4)


def test_without_a_mean_the_weights_themselves_are_kept() -> None:
    task = make_vae(optim__ema=0.0)
    assert task.modules == {"vae": task.vae}
    assert task.exported["vae"] is task.vae
    assert set(make_vae().modules) == {"last", "vae"}
    diffusion = make(optim__ema=0.0)
    assert diffusion.modules == {"model": diffusion.model, "vae": diffusion.vae}
    assert diffusion.exported["model"] is diffusion.model
    with_mean = make()
    assert set(with_mean.modules) == {"last", "model", "vae"}
    assert with_mean.exported["model"] is with_mean.mean is not with_mean.model


def test_the_autoencoder_learns() -> None:
    task = make_vae(batch__size=16, optim__lr=1e-2, optim__schedule="constant", optim__warmup=0)
    found = [task.train_step(step)["error"].item() for step in range(25)]
    assert found[-1] < 0.75 * found[0]


# --- the autoencoder: what is measured ---


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_latents_are_drawn_in_training_alone(kind: str) -> None:
    task = make_vae(vae__kind=kind)
    images_NHWC = task.scenes.splits["val"].images_NHWC
    ((rows, images, made, z),) = task.reconstruct(images_NHWC)
    ((_, _, again, z_again),) = task.reconstruct(images_NHWC)
    assert torch.equal(made, again)
    assert torch.equal(z, z_again)
    assert rows == slice(0, 2)
    with torch.no_grad():
        torch.testing.assert_close(z, task.mean.encode(images))
        torch.testing.assert_close(made, task.mean.decode(z))
    assert task.evaluate() == task.evaluate()


def test_what_is_measured_of_the_autoencoder_by_hand() -> None:
    task = make_vae(data__most=40, batch__evaluation=3)
    with torch.no_grad():
        # A reconstruction beyond the picture's range counts as its bound.
        task.mean.decoder.conv_out.weight.mul_(20)
        images = task.scenes.splits["val"].images_NHWC.permute(0, 3, 1, 2) / 127.5 - 1
        z = task.mean.eval().encode(images)
        made = task.mean.decode(z)
    assert made.abs().max() > 1.5
    found = task.measure(task.scenes.splits["val"])
    off = ((made.clamp(-1, 1) - images) / 2).double()
    for image in range(4):
        square = off[image].square()
        assert found["mse"][image].item() == pytest.approx(square.sum().item(), rel=1e-4)
        assert found["psnr"][image].item() == pytest.approx(10 * math.log10(1 / square.mean().item()), rel=1e-4)
        assert found["error"][image].item() == pytest.approx(
            (made[image] - images[image]).abs().mean().item(), rel=1e-4
        )
        assert found["power"][image].item() == pytest.approx(z[image].square().mean().item(), rel=1e-4)
    rows = {(row.split, row.metric): row for row in task.results({})}
    assert rows.keys() == {(split, name) for split in ("val", "test") for name in ("psnr", "mse")}
    psnr = rows["val", "psnr"]
    assert psnr.value == pytest.approx(found["psnr"].mean().item(), rel=1e-5)
    assert psnr.half_width == pytest.approx(1.96 * found["psnr"].std().item() / 2, rel=1e-4)
    assert (psnr.unit, psnr.cell, psnr.experiment) == ("dB", "vae-kl-4", "run")
    assert psnr.variant == "generated scenes, 32 / 4 / 4, 16 px"
    for part in ("mean over 4 scenes, ", "kl, width 4, 3 x 8 x 8 numbers", "chosen by validation error"):
        assert part in psnr.protocol
    assert task.monitor == ("error", "min")
    assert task.evaluate()["psnr"] == pytest.approx(psnr.value, rel=1e-5)


def test_the_diffusion_reads_the_mean_of_the_best_step(tmp_path: Path) -> None:
    config = settings(
        phase="vae", optim__ema=0.9, loop__max_steps=4, loop__eval_every=2, loop__save_every=2, loop__log_every=2
    )
    first, loop = toy.begin(tmp_path / "vae", "slotdiffusion", make_task, config)
    loop.train()
    best = loop.checkpoints.best_step
    assert best is not None
    tensors, _ = read_weights(loop.checkpoints.path(best) / "weights.safetensors")
    task = make(vae__weights=str(tmp_path / "vae"))
    assert not same(task.vae, copied(first.modules["vae"]))
    task.train_step(0)
    for name, value in task.vae.state_dict().items():
        assert torch.equal(value, tensors[f"vae.{name}"]), name
    assert not all(torch.equal(tensors[f"vae.{name}"], tensors[f"last.{name}"]) for name in task.vae.state_dict())


# --- the diffusion: latents ---


def test_latents_are_those_of_scenes_and_their_mirror_images(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make(data__flip=True, batch__evaluation=5)
    task._start()  # pyright: ignore[reportPrivateUsage]
    assert task.latents.shape == (16, 2, C, SIDE, SIDE)
    assert task.latents.dtype == torch.float16
    images, vae = scenes_of(), autoencoder()
    for view in range(2):
        wanted = vae.encode(images.flip(3) if view else images)
        torch.testing.assert_close(task.latents[:, view].float(), wanted, rtol=1e-3, atol=1e-3)
    # The mirror image's latent is not the mirrored latent.
    assert not torch.allclose(task.latents[:, 1].float(), task.latents[:, 0].float().flip(-1), atol=1e-2)
    # Made once, and by no other task of the same autoencoder and scenes again.
    monkeypatch.setattr(VAE, "encode", lambda *_: pytest.fail("encoded again"))
    again = make(data__flip=True)
    again._start()  # pyright: ignore[reportPrivateUsage]
    assert torch.equal(again.latents, task.latents)


@pytest.mark.parametrize(
    "changes", [{"vae__weights": "other.safetensors"}, {"data__most": 30}, {"data__flip": True}], ids=str
)
def test_latents_of_another_setting_are_made_anew(changes: dict[str, Any]) -> None:
    saved(Path("other.safetensors"), seed=8)
    plain, other = make(), make(**changes)
    for task in (plain, other):
        task._start()  # pyright: ignore[reportPrivateUsage]
    assert len(list(Path("cache/slotdiffusion/decoded").glob("*.npy"))) == 2
    vae = autoencoder(seed=8 if "vae__weights" in changes else 0)
    wanted = vae.encode(scenes_of(len(other.latents)))
    torch.testing.assert_close(other.latents[:, 0].float(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("flip", [False, True])
def test_scaled_latents_have_unit_deviation(flip: bool) -> None:
    task = make(data__flip=flip)
    assert task.model.scale.item() == 1
    task.train_step(0)
    scale = task.model.scale
    assert (task.latents.double() * scale.double()).std().item() == pytest.approx(1, rel=1e-5)
    assert scale.item() != pytest.approx(1, rel=0.01), "it does something"
    assert torch.equal(task.mean.scale, scale)
    assert "scale" in task.model.state_dict(), "and is kept with the weights"


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_scale_stays(parts: int) -> None:
    """Buffers are averaged over the parts of a batch."""
    task = make(batch__parts=parts)
    found = []
    for step in range(3):
        task.train_step(step)
        found.append((task.model.scale.item(), task.mean.scale.item()))
    assert len(set(found)) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e6])
def test_latents_that_are_not_finite_are_refused(value: float) -> None:
    task = make(batch__evaluation=5)
    with torch.no_grad():
        assert task.vae.quant_conv.bias is not None
        task.vae.quant_conv.bias[0] = value
    with pytest.raises(UserError) as caught:
        task.train_step(0)
    one_line(caught, "the latents of scenes 0 to 4 are not finite or beyond half precision", "--vae.weights")
    assert list(Path("cache").rglob("*.npy")) == [], "nothing of it is kept"


def test_an_autoencoder_that_tells_nothing_is_refused() -> None:
    task = make()
    with torch.no_grad():
        for parameter in task.vae.quant_conv.parameters():
            parameter.zero_()
    with pytest.raises(UserError) as caught:
        task.train_step(0)
    one_line(caught, "the autoencoder gives all scenes one latent: train it first", "--vae.weights")


# --- the diffusion: one step, by hand ---


def chain(steps: int = 20, first: float = 0.01, last: float = 0.3) -> Tensor:
    """The share of the data's variance at each place, beta even: that of smoke."""
    kept, shares = 1.0, []
    for place in range(steps):
        kept *= 1 - (first + (last - first) * place / (steps - 1))
        shares.append(kept)
    return torch.tensor(shares)


@pytest.mark.parametrize(("init", "target"), [("gaussian", "noise"), ("bilevel", "noise"), ("gaussian", "velocity")])
def test_a_step_of_the_diffusion_is_the_algorithm(init: str, target: str) -> None:
    """Latents, places, noise, dropped slots, the loss, the cut, two rates, Adam, the mean."""
    task = make(
        model__init=init, model__target=target, data__flip=True,
        optim__lr=1e-3, optim__encoder_lr=4e-3, optim__clip=0.1, optim__warmup=4,
        optim__schedule="cosine", optim__ema=0.3, optim__drop=0.4, optim__noise_steps=5, loop__max_steps=10,
    )  # fmt: skip
    alive(task.model)
    twin = network(model__init=init).train()
    twin.load_state_dict(task.model.state_dict())
    first, frozen = copied(task.mean), copied(task.vae)
    mean = copied(task.mean)
    vae = autoencoder()
    every = torch.stack([vae.encode(scenes_of()), vae.encode(scenes_of().flip(3))], 1).half().float()
    scale = 1 / every.std()
    adam = torch.optim.Adam([{"params": twin.unet.parameters()}, {"params": twin.encoder.parameters()}])
    dropped = 0
    for step in range(3):
        row = task.train_step(step)
        rows = rows_of(step)
        coins = torch.rand(B, generator=draws("train/flip", step)) < 0.5
        z0 = torch.stack([every[row_, int(coin)] for row_, coin in zip(rows, coins, strict=True)]) * scale
        draw = draws("train/diffusion", step)
        t = torch.randint(20, (B,), generator=draw)
        drop = torch.rand(B, generator=draw) < 0.4
        noise = torch.randn(z0.shape, generator=draw)
        share = chain()[t][:, None, None, None]
        z = share.sqrt() * z0 + (1 - share).sqrt() * noise
        start = torch.randn(B, K, S, generator=draws("train/slots", step))
        spread = (1 + math.cos(math.pi * step / 5)) / 2
        slots = twin.encoder(mirrored(scenes_of()[rows], step), start, spread=spread).slots_BKS
        slots = torch.stack([
            twin.unet.no_slots[0].expand(K, -1) if gone else mine for mine, gone in zip(slots, drop, strict=True)
        ])  # fmt: skip
        dropped += int(drop.sum())
        wanted = noise if target == "noise" else share.sqrt() * noise - (1 - share).sqrt() * z0
        loss = (twin.unet(z, t, slots) - wanted).square().mean()
        adam.zero_grad()
        loss.backward()
        norm = cut(twin, 0.1)
        factor = (step + 1) / 4 * (1 + math.cos(math.pi * step / 10)) / 2
        for group, rate in zip(adam.param_groups, (1e-3, 4e-3), strict=True):
            group["lr"] = rate * factor
        adam.step()
        memory = min(0.3, (1 + step) / (10 + step))
        for name, value in twin.state_dict().items():
            mean[name] = memory * mean[name] + (1 - memory) * value
        assert row.keys() == {"loss", "gradient", "rate"}
        assert row["loss"].item() == pytest.approx(loss.item(), rel=1e-4)
        assert row["gradient"].item() == pytest.approx(norm, rel=1e-3)
        assert row["rate"].item() == pytest.approx(1e-3 * factor)
        assert [group["lr"] for group in task.optimizer.param_groups] == pytest.approx([1e-3 * factor, 4e-3 * factor])
    assert 0 < dropped < 3 * B
    twin.scale.fill_(scale)
    assert_same_weights(task.model, twin)
    mean["scale"] = scale
    assert_same(dict(task.mean.state_dict()), mean)
    moved = [name for name, value in first.items() if not torch.equal(value, task.mean.state_dict()[name])]
    assert set(first) - set(moved) <= {"encoder.attention.norm_slots.bias"}
    assert same(task.vae, frozen), "the autoencoder never changes"
    assert not any(parameter.requires_grad for parameter in task.vae.parameters())
    of_adam = {id(p) for group in task.optimizer.param_groups for p in group["params"]}
    assert of_adam == {id(p) for p in task.model.parameters()}


class Asked(nn.Module):
    """In place of the model: notes what it is asked, and answers noise of one value."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(0.5))
        self.drops: list[Tensor] = []
        self.spreads: list[float] = []

    def forward(
        self, images: Tensor, z: Tensor, t: Tensor, start: Tensor, drop: Tensor, *, spread: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.drops.append(drop)
        self.spreads.append(spread)
        return self.value.expand_as(z), {}


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_share_of_pictures_without_slots(share: float) -> None:
    task, asked = make(optim__drop=share, optim__noise_steps=10), Asked()
    task.shared_model = asked  # pyright: ignore[reportAttributeAccessIssue]
    for step in range(40):
        task.train_step(step)
    found = torch.cat(asked.drops)
    assert found.dtype == torch.bool
    # Three deviations of 160 coins.
    assert abs(found.float().mean().item() - share) <= 3 * math.sqrt(share * (1 - share) / 160)
    assert asked.spreads == pytest.approx([(1 + math.cos(math.pi * min(1, step / 10))) / 2 for step in range(40)])


def test_the_cut_can_be_left_out() -> None:
    def norms(clip: float) -> tuple[float, float]:
        """The gradient's norm that a step tells, and that of what Adam got."""
        task, seen = make(optim__clip=clip), list[float]()
        alive(task.model)
        plain = task.shared_optimizer.step

        def step() -> None:
            grads = [p.grad for p in task.model.parameters() if p.grad is not None]
            seen.append(math.sqrt(sum(grad.square().sum().item() for grad in grads)))
            plain()

        task.shared_optimizer.step = step  # type: ignore[method-assign]
        return task.train_step(0)["gradient"].item(), seen[0]

    told, got = norms(0.0)
    assert got == pytest.approx(told, rel=1e-4)
    cut_told, cut_got = norms(told / 4)
    assert cut_told == pytest.approx(told)
    assert cut_got == pytest.approx(told / 4, rel=1e-3)


def test_it_learns() -> None:
    """The same pictures at every step; places and noise differ, so the mean of some steps is compared."""
    task = make(batch__size=16, optim__lr=1e-2, optim__schedule="constant", optim__warmup=0)
    found = [task.train_step(step)["loss"].item() for step in range(40)]
    assert found[0] == pytest.approx(1, abs=0.1), "zero predicted, noise of unit variance"
    assert np.mean(found[-8:]) < 0.85


def test_every_option_trains() -> None:
    for changes in (
        {"model__init": "bilevel", "model__implicit": True, "batch__parts": 2},
        {"model__encoder": "resnet18", "model__encoder_width": 2, "loop__precision": "bf16"},
        {"vae__kind": "vq", "vae__channels": 4, "chain__spacing": "root", "model__dropout": 0.5},
        {"model__multipliers": (1,), "model__depth": 2},
    ):
        task = make(**changes)
        assert all(value.isfinite() for value in task.train_step(0).values()), changes
        assert all(math.isfinite(value) for value in task.evaluate().values()), changes


# --- the diffusion: evaluation ---


def begun(**changes: Any) -> SlotDiffusionTask:
    """After the first step, with all weights away from zero."""
    task = make(**changes)
    alive(task.mean)
    task.train_step(0)
    return task


@pytest.mark.parametrize("size", [1, 3])
def test_an_evaluation_is_the_same_each_time(size: int) -> None:
    changes: dict[str, Any] = {"data__most": 50, "metric__watched": 0}
    task = begun(**changes)
    found = task.evaluate()
    assert task.evaluate() == found
    other = begun(**changes, batch__evaluation=size).evaluate()
    assert other == pytest.approx(found, rel=1e-4)
    assert "mse" not in found, "nothing is drawn"
    assert task.monitor == ("loss", "min")


def test_the_validation_loss_by_hand() -> None:
    task = begun(data__most=40)
    scenes = task.scenes.splits["val"]
    slots = task.score(scenes, "val/slots").slots_NKS
    found = task.validation_loss(slots)
    images = scenes.images_NHWC.permute(0, 3, 1, 2) / 127.5 - 1
    start = torch.randn(4, K, S, generator=draws("val/slots", 0))
    draw = draws("val/diffusion", 0)
    noise = torch.randn(4, C, SIDE, SIDE, generator=draw)
    # The middles of four equal stretches of twenty places.
    t = torch.tensor([2, 7, 12, 17])[torch.randperm(4, generator=draw)]
    with torch.no_grad():
        share = chain()[t][:, None, None, None]
        z = share.sqrt() * task.vae.encode(images) * task.mean.scale + (1 - share).sqrt() * noise
        # In training the noise of these slots is all there; Gaussian ones are nothing else in use.
        slots_ = task.mean.eval().encoder(images, start, iterations=2).slots_BKS
        wanted = (task.mean.unet(z, t, slots_) - noise).square().mean().item()
    assert found == pytest.approx(wanted, rel=1e-4)
    assert found == task.validation_loss(slots)
    changed = begun(data__most=40, model__target="velocity")
    changed.mean.load_state_dict(task.mean.state_dict())
    with torch.no_grad():
        clean = task.vae.encode(images) * task.mean.scale
        velocity = share.sqrt() * noise - (1 - share).sqrt() * clean
        # The same weights, whose answer is now held against something else.
        wanted = (task.mean.unet(z, t, slots_) - velocity).square().mean().item()
    assert changed.validation_loss(slots) == pytest.approx(wanted, rel=1e-4)


def test_scores_are_those_of_the_metric() -> None:
    task = begun(data__most=40, batch__evaluation=3)
    scenes = task.scenes.splits["val"]
    scores, same_, slots = task.score(scenes, "val/slots")
    images = scenes.images_NHWC.permute(0, 3, 1, 2) / 127.5 - 1
    start = torch.randn(4, K, S, generator=draws("val/slots", 0))
    with torch.no_grad():
        found = task.mean.eval().encoder(images, start, iterations=2)
    masks = attention_masks(found.attention_BTKN, (4, 4), 16)
    table = segmentation.shared_pixels(masks.argmax(1), scenes.masks_NHW)
    means = scores.means()
    assert means["ari"] == pytest.approx(segmentation.ari(table).mean().item())
    assert means["fg_ari"] == pytest.approx(segmentation.foreground_ari(table).nanmean().item())
    assert means["miou"] == pytest.approx(segmentation.miou(table).mean().item())
    assert means["mbo"] == pytest.approx(segmentation.mbo(table).nanmean().item())
    cosines = [
        torch.cosine_similarity(slots[one], slots[other], 0).item()
        for slots in found.slots_BKS for one in range(K) for other in range(K) if one != other
    ]  # fmt: skip
    assert same_ == pytest.approx(np.mean(cosines), rel=1e-4)
    torch.testing.assert_close(slots, found.slots_BKS)
    assert scores.pixels_BK.sum(1).tolist() == [256] * 4


def test_some_scenes_are_watched_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    plain = SlotDiffusionTask.validation_loss

    def loss(self: SlotDiffusionTask, slots: torch.Tensor) -> float:
        counts.append(len(slots))
        return plain(self, slots)

    monkeypatch.setattr(SlotDiffusionTask, "validation_loss", loss)
    for watched in (1, 0, 1000):
        make(data__most=40, metric__watched=watched).evaluate()
    assert counts == [1, 4, 4]


def test_what_is_told_before_the_training() -> None:
    for changes, says in (
        ({"batch__size": 17}, "a batch of 17 is larger than the 16 training scenes"),
        ({"metric__inception": "nowhere.pt"}, "no file nowhere.pt with the Inception weights"),
        ({"vae__weights": ""}, "no autoencoder: train one"),
        ({"sample__sampler": "ddmi"}, "no sampler 'ddmi'"),
    ):
        with pytest.raises(UserError) as caught:
            make(**changes).train_step(0)
        one_line(caught, says)


# --- pictures of slots ---


def test_pictures_do_not_depend_on_the_batch() -> None:
    slots = torch.randn(5, K, S, generator=torch.Generator().manual_seed(0))
    made = [begun(batch__evaluation=size).paint(slots, "here", "pictures") for size in (1, 2, 32)]
    assert (made[0].shape, made[0].dtype) == ((5, 16, 16, 3), torch.uint8)
    for other in made[1:]:
        assert (other.int() - made[0].int()).abs().max() <= 1


def test_too_little_memory_halves_the_batch_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    task, slots = begun(), torch.randn(5, K, S, generator=torch.Generator().manual_seed(0))
    wanted = task.paint(slots, "here", "pictures")
    plain, asked = Painter.paint, list[int]()

    def paint(self: Painter, slots_BKS: Tensor, *rest: Any) -> Tensor:
        asked.append(len(slots_BKS))
        if len(slots_BKS) > 1:
            raise torch.OutOfMemoryError("no room")
        return plain(self, slots_BKS, *rest)

    monkeypatch.setattr(Painter, "paint", paint)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        made = task.paint(slots, "here", "pictures")
    assert (made.int() - wanted.int()).abs().max() <= 1
    assert asked == [5, 2, 1, 1, 1, 1, 1]
    assert [record.getMessage() for record in caplog.records] == [
        f"not enough memory to sample {count} images at a time: going on with {half}"
        for count, half in ((5, 2), (2, 1))
    ]


def test_numbers_that_are_not_finite_are_named() -> None:
    task = begun()
    with torch.no_grad():
        task.mean.unet.conv1.weight.fill_(math.nan)
    with pytest.raises(UserError) as caught:
        task.compose(2, "here")
    one_line(caught, "the dpm-solver++ sampler met numbers that are not finite at step 1 of 3")


# --- the library and compositions ---


def test_the_library_is_of_the_training_scenes() -> None:
    task = begun()
    library = task.library
    assert library.slots_NS.shape == (16 * K, S)
    assert library.num_clusters == K
    assert task.library is library, "made once"
    start = torch.randn(16, K, S, generator=draws("library/slots", 0))
    with torch.no_grad():
        slots = task.mean.eval().encoder(scenes_of(), start, iterations=2).slots_BKS
    torch.testing.assert_close(library.slots_NS, slots.flatten(0, 1), rtol=1e-4, atol=1e-5)
    assert begun(metric__library=5).library.slots_NS.shape == (5 * K, S)


@pytest.mark.parametrize("sampler", ["dpm-solver++", "ancestral"])
def test_compositions_are_slots_of_the_library_drawn_together(sampler: str) -> None:
    task = begun(batch__evaluation=3)
    found = task.compose(5, "here", sampler=sampler, steps=4)
    slots = task.library.draw(5, task.runtime.generator("here", 0))
    assert slots.shape == (5, K, S)
    brush = task.painter(sampler=sampler, steps=4)
    assert (brush.config.sampler, brush.config.steps) == (sampler, 4)
    wanted = to_bytes(brush.paint(slots, slice(0, 5), "here/paint"))
    assert (found.int() - wanted.int()).abs().max() <= 1
    assert torch.equal(task.compose(5, "here", sampler=sampler, steps=4), found)
    assert not torch.equal(task.compose(5, "there", sampler=sampler, steps=4), found)
    assert not torch.equal(task.compose(5, "here"), found)


def test_reconstructions_are_drawn_of_a_scenes_own_slots() -> None:
    task = begun()
    scenes = task.scenes.splits["test"]
    images = scenes.images_NHWC.permute(0, 3, 1, 2) / 127.5 - 1
    start = torch.randn(2, K, S, generator=draws("test/slots", 0))
    with torch.no_grad():
        slots = task.mean.eval().encoder(images, start, iterations=2).slots_BKS
    wanted = to_bytes(task.painter().paint(slots, slice(0, 2), "test/paint"))
    assert (task.reconstruct(scenes, "test").int() - wanted.int()).abs().max() <= 1


# --- exact resumes ---


@pytest.mark.parametrize("phase", ["vae", "diffusion"])
@pytest.mark.parametrize("cut_at", [3, 7])
def test_a_run_resumes_exactly(tmp_path: Path, phase: str, cut_at: int) -> None:
    """With dropout, dropped slots and mirror images; the chosen weights score as they did."""
    config = settings(
        phase=phase, model__dropout=0.2, model__init="bilevel", optim__drop=0.2, data__flip=True, batch__parts=2,
        loop__max_steps=9, loop__save_every=2, loop__eval_every=4, loop__log_every=2,
    )  # fmt: skip
    assert toy.resumes_exactly(tmp_path, "slotdiffusion", make_task, config, cut_at) == cut_at - 1


def test_a_run_resumes_without_the_file_that_it_began_with(tmp_path: Path) -> None:
    """The autoencoder stands in the checkpoint, and latents that are gone are made anew."""
    path = saved(tmp_path / "vae.safetensors", seed=3)
    config = settings(
        vae__weights=str(path), loop__max_steps=4, loop__save_every=2, loop__eval_every=4, loop__log_every=2
    )
    begun_: list[Any] = []

    def kind(config: Any, runtime: Runtime) -> Any:
        if len(begun_) == 2:
            path.unlink()
            for array in Path("cache").rglob("*.npy"):
                array.unlink()
        begun_.append(make_task(config, runtime))
        return begun_[-1]

    assert toy.resumes_exactly(tmp_path, "slotdiffusion", kind, config, 3) == 2
    assert len(begun_) == 3
    assert not path.exists()
    assert same(begun_[2].vae, copied(autoencoder(seed=3)))


# --- results ---


def first_of(scenes: clevrtex.Scenes, count: int) -> clevrtex.Scenes:
    return clevrtex.Scenes(scenes.images_NHWC[:count], scenes.masks_NHW[:count], scenes.names[:count])


def test_results_are_of_whole_splits() -> None:
    task = begun(data__most=40, metric__watched=1, metric__reconstructed=3, loop__max_steps=24)
    rows = {(row.split, row.metric): row for row in task.results({})}
    names = {
        "ari",
        "fg_ari",
        "miou",
        "miou_fg",
        "miou_gt",
        "mbo",
        "empty",
        "background_slots",
        "background_share",
        "mse",
    }
    assert rows.keys() == {(split, name) for split in ("val", "test") for name in names}, "no FID with none"
    for split in ("val", "test"):
        scenes = task.scenes.splits[split]
        scores = task.score(scenes, f"{split}/slots").scores
        for name in names - {"mse"}:
            row = rows[split, name]
            assert row.value == pytest.approx(scores.means()[name])
            assert row.half_width == pytest.approx(half_width(scores.of_image[name]))
            assert row.protocol.startswith("mean over 4 scenes, attention as masks, ")
        made = task.reconstruct(first_of(scenes, 3), split).double() / 255
        off = (made - scenes.images_NHWC[:3].double() / 255).square().sum((1, 2, 3))
        assert rows[split, "mse"].value == pytest.approx(off.mean().item(), rel=1e-4)
        for part in ("mean over 3 scenes, ", "dpm-solver++, 3 steps", "U-Net of width 4, K = 3, gaussian slots of 8"):
            assert part in rows[split, "mse"].protocol
    ari = rows["test", "ari"]
    assert (ari.experiment, ari.cell) == ("run", "conv-1221-k3-gaussian")
    assert ari.variant == "generated scenes, 32 / 4 / 4, 16 px"
    assert "up to 3 epochs of 32, batch 4, chosen by validation loss" in ari.protocol


@pytest.mark.parametrize(
    ("changes", "cell"),
    [
        ({}, "conv-1221-k3-gaussian"),
        ({"model__strides": (1, 1, 1, 1), "model__init": "bilevel", "model__num_slots": 2}, "conv-k2-bilevel"),
        ({"model__encoder": "resnet18", "model__encoder_width": 2}, "resnet18-k3-gaussian"),
    ],
)
def test_the_cell_of_a_table(changes: dict[str, Any], cell: str) -> None:
    assert make(**changes).config.model.cell == cell


@pytest.mark.parametrize("ancestral", [4, 0])
def test_distances_of_compositions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ancestral: int) -> None:
    """With a small network; the distances themselves have tests of their own."""
    monkeypatch.setattr(fid, "_is_published", lambda card: True)
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def score(real: np.ndarray, made: np.ndarray, generator: torch.Generator) -> fid.Score:
        seen.append((real, made))
        return fid.Score(fid=7.0 + len(seen), half_width=0.5, kid=0.002, num_real=len(real), num_fake=len(made))

    monkeypatch.setattr(fid, "score", score)
    small = stand_in.save(tmp_path / "small.pt", stand_in.StandIn())
    task = begun(metric__inception=str(small), data__most=40, metric__composed=3, sample__ancestral=ancestral)
    names = ("fid", "kid", "seconds")
    rows = {row.metric: row for row in task.results({}) if row.metric.startswith(names)}
    endings = ("", "_ancestral") if ancestral else ("",)
    assert rows.keys() == {f"{name}{ending}" for name in names for ending in endings}
    network_ = fid.Inception(small, torch.device("cpu"))
    real = network_.features(task.scenes.splits["val"].images_NHWC[:3])
    for number, ending in enumerate(endings):
        told = "by ancestral in 4 steps" if ending else "by dpm-solver++ in 3 steps"
        row = rows[f"fid{ending}"]
        assert (row.split, row.value, row.half_width) == ("val", 8.0 + number, 0.5)
        assert f"3 compositions of one slot a cluster (K-means over {32 * K} training slots) {told}" in row.protocol
        assert (rows[f"kid{ending}"].value, rows[f"kid{ending}"].half_width) == (2.0, None)
        assert rows[f"kid{ending}"].protocol.startswith("times 1,000; clean-fid, 3 compositions")
        assert rows[f"seconds{ending}"].value > 0
        assert rows[f"seconds{ending}"].unit == "s"
        assert "on cpu" in rows[f"seconds{ending}"].protocol
        changes: dict[str, Any] = {"sampler": "ancestral", "steps": 4} if ending else {}
        np.testing.assert_array_equal(seen[number][0], real)
        np.testing.assert_array_equal(seen[number][1], network_.features(task.compose(3, "val/compose", **changes)))
    assert len(seen) == len(endings)


def test_results_are_of_the_weights_as_they_are() -> None:
    """A library of the weights before is not taken."""
    task = begun()
    before = task.library.card
    task.mean.load_state_dict(network(seed=1).state_dict())
    task.results({})
    assert not torch.equal(task.library.card, before)


# --- pictures, and a whole run ---


def drawn(folder: Path, names: set[str]) -> None:
    assert {path.stem for path in folder.glob("*.png")} == names
    for name in names:
        with Image.open(folder / f"{name}.png") as image:
            values = np.asarray(image.convert("RGB"))
        assert min(values.shape[:2]) > 60, name
        assert len(np.unique(values.reshape(-1, 3), axis=0)) > 20, name


DRAWN = {"curves", "reconstructions", "slots", "attention", "denoising", "denoising-ancestral", "compositions"}


def test_pictures_are_drawn(tmp_path: Path) -> None:
    task = begun()
    names = (
        "loss",
        "ari",
        "fg_ari",
        "miou",
        "miou_fg",
        "miou_gt",
        "mbo",
        "empty",
        "background_slots",
        "dead",
        "spread",
        "sameness",
    )
    metrics = [
        {"step": step, "train/loss": 1.0 / step} | {f"val/{name}": 0.1 * step for name in names} for step in (1, 2, 3)
    ]
    registry.load("slotdiffusion").module("figures").draw(task, tmp_path, metrics)
    drawn(tmp_path, DRAWN)
    library = load(tmp_path / "library.safetensors", task.mean)
    assert torch.equal(library.slots_NS, task.library.slots_NS)


@pytest.mark.parametrize(
    ("changes", "less"),
    [
        ({"sample__ancestral": 0, "sample__steps": 1}, {"denoising-ancestral"}),
        ({"model__num_slots": 2, "vae__kind": "vq", "vae__channels": 4, "model__init": "learned"}, set()),
    ],
)
def test_pictures_of_other_settings_are_drawn(tmp_path: Path, changes: dict[str, Any], less: set[str]) -> None:
    registry.load("slotdiffusion").module("figures").draw(begun(**changes), tmp_path, [])
    drawn(tmp_path, DRAWN - less)


def test_pictures_of_the_autoencoder_are_drawn(tmp_path: Path) -> None:
    metrics = [
        {"step": step, "train/error": 1.0 / step, "val/error": 0.5, "val/psnr": 9.0, "train/divergence": 3.0 * step}
        for step in (1, 2, 3)
    ]
    registry.load("slotdiffusion").module("figures").draw(make_vae(), tmp_path, metrics)
    drawn(tmp_path, {"curves", "reconstructions"})


def flags(**changes: Any) -> list[str]:
    """The small settings as words."""
    words: list[str] = []
    for name, value in (PLAIN | changes).items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('__', '.').replace('_', '-')}", *map(str, values)]
    return words


def test_both_phases_by_the_command_line(tmp_path: Path) -> None:
    """The autoencoder, slots on it, what a run leaves, and its evaluation anew."""
    counts = {"loop__max_steps": 4, "loop__eval_every": 2, "loop__save_every": 2, "loop__log_every": 2}
    words = [*flags(**counts), "--runs", str(tmp_path)]
    assert main(["run", "slotdiffusion", "vae-smoke", "--name", "vae", *words]) == 0
    vae, run = (tmp_path / "slotdiffusion" / name for name in ("vae", "slots"))
    assert main(["run", "slotdiffusion", "smoke", "--name", "slots", *words, "--vae.weights", str(vae)]) == 0
    drawn(vae / "figures", {"curves", "reconstructions"})
    drawn(run / "figures", DRAWN)
    first, second = (json.loads((path / "summary.json").read_text()) for path in (vae, run))
    assert (first["validation"]["metric"], second["validation"]["metric"]) == ("error", "loss")
    assert {row["metric"] for row in first["results"]} == {"psnr", "mse"}
    assert {row["metric"] for row in second["results"]} > {"ari", "miou", "mse"}
    assert second["parameters"]["vae"] == first["parameters"]["vae"]
    assert second["extra"] == {"scenes": "generated scenes, 16 / 2 / 2"}
    rows = list(toy.metrics(run))
    assert {"train/loss", "train/gradient", "train/rate", "val/loss", "val/ari", "val/spread"} <= set(rows[-1])
    assert {"train/loss", "train/error", "train/divergence", "val/error", "val/psnr"} <= set(toy.metrics(vae)[-1])
    # What the run stands on is in its own weights.
    step = json.loads((run / "checkpoints" / "best.json").read_text())["step"]
    ours, _ = read_weights(run / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")
    best = json.loads((vae / "checkpoints" / "best.json").read_text())["step"]
    theirs, _ = read_weights(vae / "checkpoints" / f"step-{best:08d}" / "weights.safetensors")
    names = [name for name in ours if name.startswith("vae.")]
    assert names
    assert all(torch.equal(ours[name], theirs[name]) for name in names)
    assert {name.split(".")[0] for name in ours} == {"last", "model", "vae"}
