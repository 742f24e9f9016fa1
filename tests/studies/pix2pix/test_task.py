"""The training step, what is watched, exact resumes, results, pictures, and settings that make no sense."""

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.core import toy
from tests.studies.pix2pix.common import make, settings
from torch import Tensor
from torch.nn import functional

from etude import registry
from etude.core.config import from_dict, to_dict
from etude.core.errors import UserError
from etude.core.loop import Loop
from etude.metrics import fid
from etude.metrics import pairs as measures
from etude.nn.pixels import prepare
from etude.report.reference import read_reference
from etude.studies.pix2pix import task as task_module
from etude.studies.pix2pix.model import crop_and_mirror
from etude.studies.pix2pix.study import LOSSES, STUDY, OptimConfig, Pix2PixConfig
from etude.studies.pix2pix.task import WINS_STEPS, Pix2PixTask


def one_line(caught: pytest.ExceptionInfo[ValueError], *parts: str) -> None:
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


def weights(task: Pix2PixTask) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.clone()
        for name, module in task.modules.items()
        for key, value in module.state_dict().items()
    }


# --- one step, by hand ---


def drawn(task: Pix2PixTask, step: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    config = task.config
    rows = task.batch_rows(step)
    cut = crop_and_mirror(
        task.pairs.splits["train"].pairs_N2HWC[rows], config.model.size,
        task.runtime.generator("train/augment", step), mirror=True,
    )  # fmt: skip
    noise = task.generator.noise(len(rows), task.runtime.generator("train/noise", step))
    return prepare(cut[:, 0]), prepare(cut[:, 1]), noise


@pytest.mark.parametrize("loss", ["vanilla", "lsgan"])
def test_losses_are_the_papers(loss: str) -> None:
    """Equation 4 with lambda 100; the discriminator's half; the generator sees its new weights."""
    task, twin = (make(optim__loss=loss, loop__max_steps=10) for _ in range(2))
    rows = task.train_step(0)
    given, truth, noise = drawn(twin, 0)
    fake = twin.generator.train()(given, noise)
    on_real, on_fake = (twin.discriminator.train()(given, shown) for shown in (truth, fake.detach()))
    if loss == "vanilla":
        halves = -functional.logsigmoid(on_real).mean(), -functional.logsigmoid(-on_fake).mean()
    else:
        halves = (on_real - 1).square().mean(), on_fake.square().mean()
    assert rows["discriminator"].item() == pytest.approx((halves[0] + halves[1]).item() / 2, rel=1e-5)
    assert rows["l1"].item() == pytest.approx((fake - truth).abs().mean().item(), rel=1e-5)
    assert rows["logit_real"].item() == pytest.approx(on_real.mean().item(), rel=1e-4)
    ((halves[0] + halves[1]) / 2).backward()
    twin.optimizers["discriminator"].step()
    again = twin.discriminator(given, fake)
    adversarial = -functional.logsigmoid(again).mean() if loss == "vanilla" else (again - 1).square().mean()
    assert rows["generator"].item() == pytest.approx(adversarial.item(), rel=1e-4)
    twin.optimizers["generator"].zero_grad()
    (adversarial + 100 * (fake - truth).abs().mean()).backward()
    twin.optimizers["generator"].step()
    for name, value in weights(task).items():
        torch.testing.assert_close(value, weights(twin)[name], rtol=1e-4, atol=5e-5, msg=name)
    total = rows["discriminator"] + rows["generator"] + 100 * rows["l1"]
    assert rows["loss"].item() == pytest.approx(total.item(), rel=1e-6)


def test_l1_alone_trains_no_discriminator_and_gan_alone_no_distance() -> None:
    task = make(optim__gan=0.0)
    before = weights(task)
    rows = task.train_step(0)
    after = weights(task)
    assert set(rows) == {"loss", "l1", "skipped"}
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("discriminator"))
    assert not all(torch.equal(after[name], before[name]) for name in before if name.startswith("generator"))
    gan = make(optim__l1=0.0)
    rows = gan.train_step(0)
    assert rows["loss"].item() == pytest.approx((rows["discriminator"] + rows["generator"]).item())


def test_the_direction_swaps_input_and_truth() -> None:
    there, back = make(), make(data__direction="BtoA")
    rows = torch.tensor([1, 3])
    assert torch.equal(there.take("train", rows), back.take("train", rows).flip(1))
    assert torch.equal(there.truth("val"), there.pairs.splits["val"].pairs_N2HWC[:, 1])
    assert torch.equal(back.truth("val"), there.pairs.splits["val"].pairs_N2HWC[:, 0])
    assert there.makes_maps
    assert not back.makes_maps


def test_a_large_split_may_stay_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    task, other = make(), make()
    monkeypatch.setattr(task_module, "_ON_DEVICE", 0)
    assert torch.equal(task.take("train", torch.tensor([2, 0])), other.take("train", torch.tensor([2, 0])))
    assert other.take("val", slice(0, 1)).shape[0] == 1


def test_the_rate_falls_over_the_second_half() -> None:
    optim = OptimConfig(lr=0.4, decay_from=0.5)
    rates = [optim.rate(step, 8) for step in range(8)]
    assert rates == pytest.approx([0.4, 0.4, 0.4, 0.4, 0.4, 0.3, 0.2, 0.1])
    assert {OptimConfig(lr=0.4).rate(step, 8) for step in range(8)} == {0.4}
    task = make(optim__decay_from=0.0, optim__lr=0.4, loop__max_steps=4)
    task.train_step(1)
    assert {group["lr"] for adam in task.optimizers.values() for group in adam.param_groups} == {0.4 * 3 / 4}


def test_two_parts_have_the_mean_gradient() -> None:
    """Draws are keyed by part; the discriminator's loss is the mean of the parts' own."""
    task = make(batch__parts=2)
    rows = task.train_step(0)
    losses = []
    twin = make(batch__parts=2)
    for part in range(2):
        cut = crop_and_mirror(
            twin.pairs.splits["train"].pairs_N2HWC[twin.batch_rows(0)[part::2]], 64,
            twin.runtime.generator("train/augment", 0, part), mirror=True,
        )  # fmt: skip
        given, truth = prepare(cut[:, 0]), prepare(cut[:, 1])
        fake = twin.generator.train()(given, twin.generator.noise(2, twin.runtime.generator("train/noise", 0, part)))
        losses.append((fake - truth).abs().mean().item())
    assert rows["l1"].item() == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_it_learns() -> None:
    task = make(optim__lr=2e-3)
    first = [task.train_step(step)["l1"].item() for step in range(30)]
    assert np.mean(first[-5:]) < 0.7 * np.mean(first[:5])


# --- stability ---


@pytest.mark.parametrize("broken", ["generator", "discriminator"])
def test_a_gradient_that_is_not_finite_is_left_out_and_counted(broken: str) -> None:
    task = make()
    task.train_step(0)
    before = weights(task)
    parameter = next(iter(task.modules[broken].parameters()))
    hook = parameter.register_hook(lambda gradient: gradient * math.nan)
    rows = task.train_step(1)
    hook.remove()
    after = weights(task)
    for name, value in after.items():
        moved = not torch.equal(value, before[name])
        is_buffer = "running" in name or "num_batches" in name
        assert moved == (not name.startswith(broken) and not is_buffer), name
    assert rows["skipped"].item() == 1
    assert rows["loss"].isfinite()
    assert task.adversaries.skipped == 1
    assert task.finish()["skipped"] == 1
    assert "1 update(s) were left out" in task.finish()["notes"][0]
    assert task.train_step(2)["skipped"].item() == 0


def test_a_discriminator_that_wins_outright_is_said(caplog: pytest.LogCaptureFixture) -> None:
    task = make()
    with caplog.at_level(logging.WARNING):
        task.evaluate()
        assert "outright" not in caplog.text
        for _ in range(1000):
            task._watch(torch.tensor(0.001))
        assert task.evaluate()["watch/steps_won"] >= WINS_STEPS
    assert "the discriminator has won outright" in caplog.text
    assert "--model.discriminator-width" in task.finish()["notes"][0]
    task._watch(torch.tensor(10.0))
    assert task.evaluate()["watch/steps_won"] == 0
    assert task.finish()["notes"] == []


def test_a_collapse_is_told(caplog: pytest.LogCaptureFixture) -> None:
    task = make()
    with torch.no_grad():
        for parameter in task.generator.parameters():
            parameter.zero_()
    assert task.evaluate()["diversity"] == 0
    assert "the generator has collapsed" in caplog.text
    assert "nearly repeat another" in caplog.text


# --- evaluation ---


def test_translations_do_not_depend_on_the_batches() -> None:
    many, few = make(batch__evaluation=5, data__pairs=12), make(batch__evaluation=2, data__pairs=12)
    for split in ("val", "test"):
        off = (many.translate(split).int() - few.translate(split).int()).abs()
        assert off.max() <= 1
    assert torch.equal(many.translate("val"), many.translate("val"))
    assert many.evaluate() == many.evaluate()


def test_what_is_measured() -> None:
    task = make()
    rows = task.evaluate()
    made, truth = task.translate("val"), task.truth("val")
    assert made.shape == truth.shape == (2, 64, 64, 3)
    assert rows["l1"] == pytest.approx(measures.l1(made, truth).mean().item())
    assert rows["accuracy_10"] == pytest.approx(measures.pixel_accuracy(made, truth, 10).mean().item())
    assert set(make(optim__gan=0.0, data__direction="BtoA").evaluate()) == {"l1", "psnr", "ssim", "diversity"}


def test_results_state_the_pairs_and_the_counts() -> None:
    task = make(table="translation", optim__loss="lsgan")
    rows = task.results({})
    metrics = ("l1", "rmse", "psnr", "ssim", "accuracy_5", "accuracy_10", "diversity")
    assert {(row.metric, row.split) for row in rows} == {(name, split) for name in metrics for split in ("val", "test")}
    for row in rows:
        assert (row.experiment, row.cell, row.variant) == ("translation", "aerial2map", "generated")
        assert "generated towns, 8 / 2 / 2 pairs, AtoB, 64 px" in row.protocol
        assert "(lsgan)" in row.protocol
        # Barely trained, all outputs are nearly one.
        collapse = "; COLLAPSED: " in row.protocol
        assert collapse == (row.metric == "diversity")
        assert row.protocol.partition("; COLLAPSED")[0].endswith("2 pictures")
        assert (row.half_width is None) == collapse


def test_distances_are_asked_of_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """FID and KID of the outputs against the true test pictures."""
    file = tmp_path / "inception.pt"
    file.touch()
    seen: list[np.ndarray] = []

    class Inception:
        def __init__(self, path: Path | None, device: torch.device) -> None:
            assert path == file

        def features(self, images: Tensor, title: str = "") -> np.ndarray:
            seen.append(images.numpy())
            return images.numpy().reshape(len(images), -1)[:, :4].astype(np.float32)

        cached_features = features

    def score(real: np.ndarray, fake: np.ndarray, draw: torch.Generator) -> fid.Score:
        assert np.array_equal(real, task.truth("test").numpy().reshape(4, -1)[:, :4])
        return fid.Score(fid=7.0, half_width=0.5, kid=0.002, num_real=4, num_fake=4)

    monkeypatch.setattr(fid, "Inception", Inception)
    monkeypatch.setattr(fid, "score", score)
    task = make(metric__inception=str(file), data__pairs=16)
    found = {row.metric: row for row in task.results({}) if row.metric in ("fid", "kid")}
    assert (found["fid"].value, found["fid"].half_width, found["kid"].value) == (7.0, 0.5, 2.0)
    assert all(row.split == "test" and "4 pictures" in row.protocol for row in found.values())
    assert np.array_equal(seen[0], task.truth("test").numpy())
    assert np.array_equal(seen[1], task.translate("test").numpy())
    few = make(metric__inception=str(file))
    assert not {row.metric for row in few.results({})} & {"fid", "kid"}, "of two pictures"
    with pytest.raises(UserError) as caught:
        make(metric__inception="nowhere.pt").data_checksums()
    one_line(caught, "no file nowhere.pt with the Inception weights", "--metric.inception")


@pytest.mark.parametrize(
    ("changes", "cell"),
    [
        ({"table": "losses"}, "l1-gan"),
        ({"table": "losses", "optim__gan": 0.0}, "l1"),
        ({"table": "losses", "optim__l1": 0.0}, "gan"),
        ({"table": "translation", "data__direction": "BtoA"}, "map2aerial"),
        ({"data__source": "maps-subset"}, "aerial2map"),
        ({"data__source": "facades", "data__direction": "BtoA"}, "labels2photo"),
    ],
)
def test_cells(changes: dict[str, Any], cell: str) -> None:
    assert make(**changes).cell() == cell


def test_the_published_numbers_are_of_cells_that_exist() -> None:
    numbers = read_reference(STUDY.folder / "reference.toml").number
    assert {(number.experiment, number.cell, number.metric) for number in numbers} == {
        ("translation", "map2aerial", "fid"),
        *(("translation", "aerial2map", metric) for metric in ("rmse", "accuracy_5", "accuracy_10")),
    }
    # Fifty pairs never stand beside the whole set.
    assert {number.variant for number in numbers} == {"maps"}


def test_the_experiment_is_three_losses() -> None:
    jobs = STUDY.experiment("losses").jobs("laptop")
    assert [job.name for job in jobs] == list(LOSSES) == ["l1", "gan", "l1-gan"]


@pytest.mark.parametrize("name", sorted(STUDY.presets))
def test_presets_are_whole_epochs(name: str) -> None:
    config = STUDY.preset(name).build()
    assert isinstance(config, Pix2PixConfig)
    counts = {"paper": 1000, "facades": 400, "laptop": 38, "colour": 2101, "smoke": 40}
    epoch = counts[name] // config.batch.size
    assert config.loop.steps(epoch) % epoch == 0
    assert config.loop.steps(epoch) % config.loop.eval_every == 0


# --- exact resumes ---


def begin(path: Path, config: Pix2PixConfig) -> tuple[Pix2PixTask, Loop]:
    return toy.begin(path, "pix2pix", Pix2PixTask, config)


@pytest.mark.parametrize(("choose", "parts"), [("last", 1), ("l1", 2)])
def test_a_resume_is_exact(tmp_path: Path, choose: str, parts: int) -> None:
    """8 steps are 4 and 4, bit for bit, across the end of an epoch."""
    config = settings(
        loop__max_steps=8, loop__eval_every=3, loop__save_every=4, loop__log_every=3, metric__choose=choose,
        batch__parts=parts, optim__decay_from=0.5, batch__size=2 * parts,
    )  # fmt: skip
    assert toy.resumes_exactly(tmp_path, "pix2pix", Pix2PixTask, config, cut_at=5) in (3, 4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model__size": 128}, "was trained with model.size 64, and config.yaml says 128"),
        ({"model__test_norm": "running"}, "was trained with model.test_norm batch"),
    ],
)
def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    changes: dict[str, Any] = {"loop__max_steps": 1, "loop__save_every": 1, "loop__eval_every": 1}
    begin(tmp_path / "run", settings(**changes))[1].train()
    _, other = begin(tmp_path / "run", settings(**changes, **change))
    with pytest.raises(UserError) as caught:
        other.resume()
    if change.get("model__size"):
        one_line(caught, "does not fit the network")
    else:
        one_line(caught, says)


# --- pictures ---


def test_pictures(tmp_path: Path) -> None:
    task = make(data__pairs=44, loop__max_steps=2)
    rows = [{"step": step, **{f"train/{k}": v.item() for k, v in task.train_step(step).items()}} for step in range(2)]
    rows[-1] |= {f"val/{name}": value for name, value in task.evaluate().items()}
    registry.load("pix2pix").module("figures").draw(task, tmp_path, rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "curves.png", "errors.png", "translations-1.png", "translations-2.png"
    ]  # fmt: skip
    experiment = STUDY.experiment("losses")
    assert experiment.compared
    STUDY.module("figures").compared(tmp_path / "losses.png", "losses", {"l1": rows, "gan": rows})
    assert (tmp_path / "losses.png").stat().st_size > 1000


# --- settings that make no sense ---


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("model.size", 100, "64"),
        ("model.width", 0, "at least 1"),
        ("model.dropout", 1.0, "0 or more and below 1"),
        ("model.patch", 286, "at most 142 for 64 pixels"),
        ("model.test_norm", "none", "'batch' or 'running'"),
        ("data.source", "folder", "must be a path (--data.folder)"),
        ("data.folder", "x", "data.source must be folder or grey where --data.folder is given, not generated"),
        ("data.folder_b", "x", "data.source must be folder where --data.folder-b is given, not generated"),
        ("data.direction", "both", "'AtoB' or 'BtoA'"),
        ("data.val_share", 0.95, "below 1"),
        ("data.pairs", 3, "at least 4"),
        ("augment.jitter", -1, "0 to 256"),
        ("optim.lr", math.nan, "above 0"),
        ("optim.decay_from", 1.5, "0 to 1"),
        ("optim.l1", -1.0, "0 or more"),
        ("batch.size", 0, "at least 1"),
        ("batch.parts", 3, "multiple of batch.parts"),
    ],
)
def test_settings_that_make_no_sense(name: str, value: Any, wanted: str) -> None:
    values = to_dict(settings())
    group, field = name.split(".")
    values[group][field] = value
    with pytest.raises(UserError) as caught:
        from_dict(Pix2PixConfig, values)
    one_line(caught, wanted)


def test_neither_loss() -> None:
    with pytest.raises(UserError, match=r"optim.gan \+ optim.l1 must be above 0"):
        settings(optim__gan=0.0, optim__l1=0.0)


def test_a_batch_larger_than_the_set() -> None:
    with pytest.raises(UserError) as caught:
        make(batch__size=12).data_checksums()
    one_line(caught, "a batch of 12 is larger than the 8 training pairs", "--batch.size")
