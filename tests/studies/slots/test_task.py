"""The training step by hand, schedules, what is watched, exact resumes, results, pictures."""

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
from tests.studies.slots.common import COARSE, load, make, network, one_line, settings
from torch import Tensor, nn

from etude import registry
from etude.core import randomness
from etude.core.errors import UserError
from etude.data import clevrtex
from etude.draw.figures import coloured, sheet
from etude.metrics import fid, segmentation
from etude.nn.pixels import to_bytes
from etude.scenes.scores import Scores, half_width
from etude.scenes.source import SceneConfig, load_scenes
from etude.scenes.task import Evaluation, objects
from etude.studies.slots.model import BroadcastDecoder, SlotAutoencoder
from etude.studies.slots.study import OptimConfig
from etude.studies.slots.task import SlotsTask, crowd


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


INERT = ("encoder.attention.norm_slots.bias", "decoder.last.bias")
"""What a softmax over slots takes no note of, in the last bias the mask's: its gradient is rounding, which Adam blows
up."""


def assert_same_weights(ours: SlotAutoencoder, theirs: SlotAutoencoder, atol: float = 2e-5) -> None:
    for name, value in theirs.state_dict().items():
        mine = ours.state_dict()[name]
        if name in INERT:
            mine, value = mine[:3] * name.startswith("decoder"), value[:3] * name.startswith("decoder")
        torch.testing.assert_close(mine, value, rtol=1e-4, atol=atol, msg=name)


# --- one step, by hand ---


@pytest.mark.parametrize("init", ["gaussian", "bilevel"])
def test_a_step_is_the_algorithm(init: str) -> None:
    """Three steps: the rate's rise, the noise that fades, the loss, the gradient's cut, PyTorch's Adam."""
    task = make(
        model__init=init, optim__warmup=4, optim__noise_steps=5, optim__clip=0.1, optim__sparsity=0.3, optim__lr=1e-3,
        optim__schedule="halving", optim__halve_every=10,
    )  # fmt: skip
    twin = network(model__init=init).train()
    start = {name: value.clone() for name, value in twin.state_dict().items()}
    assert all(torch.equal(value, task.model.state_dict()[name]) for name, value in start.items())
    adam = torch.optim.Adam(twin.parameters())
    scenes = clevrtex.generated(16, {"train": 16, "val": 2, "test": 2}).splits["train"].images_NHWC
    order = torch.randperm(16, generator=randomness.generator(0, "train/order", 0))
    for step in range(3):
        row = task.train_step(step)
        images = scenes[order[4 * step : 4 * step + 4]].permute(0, 3, 1, 2) / 127.5 - 1
        noise = torch.randn(4, 3, 8, generator=randomness.generator(0, "train/slots", step))
        attention = twin.encoder.attention
        if init == "bilevel":
            faded = (1 + math.cos(math.pi * step / 5)) / 2
            first = attention.start + faded * noise
        else:
            first = attention.mean + attention.log_deviation.exp() * noise
        slots = iterated(twin, images, first)
        maps = twin.decoder(slots.flatten(0, 1)).view(4, 3, 4, 16, 16)
        masks = maps[:, :, 3].softmax(1)
        made = (masks[:, :, None] * maps[:, :, :3]).sum(1)
        error = ((made - images) ** 2).sum() / (4 * 16 * 16)
        share = masks.mean((2, 3))
        loss = error + 0.3 * share.sqrt().sum() / 4
        adam.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in twin.parameters() if p.grad is not None))
        assert norm > 0.1, "the cut does something"
        for parameter in twin.parameters():
            assert parameter.grad is not None
            parameter.grad *= 0.1 / (norm + 1e-6)
        rate = 1e-3 * 0.5 ** (step / 10) * (step + 1) / 4
        adam.param_groups[0]["lr"] = rate
        adam.step()
        assert row["reconstruction"].item() == pytest.approx(error.item(), rel=1e-5)
        assert row["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
        assert row["gradient"].item() == pytest.approx(norm, rel=1e-4)
        assert row["rate"].item() == pytest.approx(rate)
    assert_same_weights(task.model, twin)
    moved = [name for name, value in start.items() if not torch.equal(value, task.model.state_dict()[name])]
    assert len(moved) >= len(start) - 2, "all but the inert and the buffer"


def iterated(net: SlotAutoencoder, images: Tensor, first: Tensor) -> Tensor:
    """Slots after two iterations from their first values; in the smoke preset only the last has a gradient."""
    attention = net.encoder.attention
    inputs = attention.norm_inputs(net.encoder.features(images))
    with torch.no_grad():
        nearly, _ = attention.step(first, inputs)
    return attention.step(nearly + first - first.detach(), inputs)[0]


class Shown(nn.Module):
    """In place of the network: notes the pictures, and makes all of them one grey."""

    def __init__(self) -> None:
        super().__init__()
        self.grey = nn.Parameter(torch.tensor(0.25))
        self.seen: list[tuple[Tensor, float]] = []

    def forward(self, images: Tensor, *_: Any, **__: Any) -> tuple[Tensor, dict[str, Tensor]]:
        self.seen.append((images, self.grey.item()))
        return self.grey.expand_as(images), {}


def test_the_error_is_of_colours_summed_and_pixels_in_the_mean() -> None:
    task, shown = make(), Shown()
    task.shared_model = shown  # pyright: ignore[reportAttributeAccessIssue]
    row = task.train_step(0)
    ((images, made),) = shown.seen
    wanted = np.mean([(made - pixel) ** 2 for image in images.numpy() for pixel in image.reshape(3, -1).T], 0).sum()
    assert row["reconstruction"].item() == row["loss"].item() == pytest.approx(wanted, rel=1e-5)


def test_two_parts_are_one() -> None:
    """Without noise, which is drawn a part."""
    options: dict[str, Any] = {"model__init": "learned", "optim__sparsity": 0.2}
    whole, parts = make(**options), make(batch__parts=2, **options)
    for step in range(2):
        rows, other = whole.train_step(step), parts.train_step(step)
        assert rows.keys() == other.keys()
        for name, value in rows.items():
            assert other[name].item() == pytest.approx(value.item(), rel=1e-4)
    assert_same_weights(whole.model, parts.model)


def test_noise_is_drawn_a_part() -> None:
    task = make(batch__parts=2)
    assert not torch.equal(task.noise(2, "train/slots", 0, 0), task.noise(2, "train/slots", 0, 1))
    assert not torch.equal(task.noise(2, "train/slots", 0, 0), task.noise(2, "train/slots", 1, 0))
    assert torch.equal(task.noise(2, "train/slots", 0, 0), make().noise(2, "train/slots", 0, 0))
    assert task.noise(5, "val/slots", 0).shape == (5, 3, 8)


def test_it_learns() -> None:
    """On the same pictures at every step."""
    task = make(batch__size=16, optim__lr=1e-2, optim__schedule="constant", optim__warmup=0, optim__noise_steps=0)
    found = [task.train_step(step)["reconstruction"].item() for step in range(25)]
    assert found[-1] < 0.2 * found[0]
    # A first step may overshoot.
    assert max(np.diff(found[10:])) < 0.05


def test_every_option_trains() -> None:
    for changes in (
        {"model__init": "gaussian", "model__implicit": False},
        {"model__init": "learned", "model__broadcast": 16, "model__decoder_layers": 2},
        {"model__encoder": "resnet18", "model__encoder_width": 2, "loop__precision": "bf16"},
        {"data__flip": True, "optim__clip": 0.0, "optim__schedule": "constant", "batch__parts": 4},
    ):
        task = make(**changes)
        before = {name: value.clone() for name, value in task.model.named_parameters()}
        rows = task.train_step(0)
        assert all(value.isfinite() for value in rows.values()), changes
        still = [name for name, value in task.model.named_parameters() if torch.equal(value, before[name])]
        assert set(still) <= {INERT[0]}, changes


# --- the penalty ---


def test_a_crowd_by_hand() -> None:
    one = torch.zeros(2, 4, 6, 6)
    one[0, 1], one[1, 3] = 1, 1
    assert crowd(one).item() == pytest.approx(1, abs=0.004)
    assert crowd(torch.full((2, 4, 6, 6), 0.25)).item() == pytest.approx(2)
    # A quarter and three quarters, of pixels or of each pixel.
    cut = torch.zeros(1, 2, 4, 4)
    cut[:, 0, 0], cut[:, 1, 1:] = 1, 1
    assert crowd(cut).item() == pytest.approx(0.5 + math.sqrt(0.75))
    mixed = torch.tensor([0.25, 0.75]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    assert crowd(mixed).item() == pytest.approx(0.5 + math.sqrt(0.75))
    assert crowd(torch.cat([cut.expand(1, -1, -1, -1), mixed, mixed])).item() == pytest.approx(0.5 + math.sqrt(0.75))


def test_the_gradient_of_a_crowd_is_finite_where_a_slot_has_nothing() -> None:
    masks = torch.zeros(1, 3, 4, 4)
    masks[:, 0] = 1
    masks.requires_grad_()
    crowd(masks).backward()
    assert masks.grad is not None
    assert masks.grad.isfinite().all()


def test_sparsity_thins_a_crowd() -> None:
    crowds = []
    options: dict[str, Any] = {"model__init": "learned", "optim__warmup": 0, "optim__clip": 0.0, "optim__lr": 1e-2}
    for weight in (0.0, 30.0):
        task = make(optim__sparsity=weight, **options)
        for step in range(25):
            task.train_step(step)
        images = task.scenes.splits["train"].images_NHWC
        (batch,) = task.decompose(images, task.noise(16, "test", 0), size=16)
        crowds.append(crowd(batch.named["masks"]).item())
    assert crowds[0] > 1.7, "of at most the root of three"
    assert crowds[1] < 1.3


# --- coarse ---


def is_coarse(task: Any) -> bool:
    decoder = task.model.decoder
    assert isinstance(decoder, BroadcastDecoder)
    assert int(decoder.stage) == decoder.coarse
    return decoder.coarse


def test_the_decoder_is_coarse_for_so_many_steps() -> None:
    task = make(**COARSE)
    found = [is_coarse(task)]
    still: list[bool] = []
    for step in range(5):
        decoder: Any = task.model.decoder
        before = decoder.ups[-1].weight.clone()
        task.train_step(step)
        found.append(is_coarse(task))
        still.append(torch.equal(decoder.ups[-1].weight, before))
    assert found == [True, True, True, True, False, False]
    assert still == [True, True, True, False, False]
    assert not is_coarse(make(model__broadcast=4))


@pytest.mark.parametrize("cut_at", [3, 7])
def test_a_run_resumes_exactly(tmp_path: Path, cut_at: int) -> None:
    """Cut before and after the decoder has grown; the chosen weights score as they did."""
    config = settings(
        model__broadcast=4, optim__coarse_steps=5, optim__sparsity=0.1, data__flip=True, batch__parts=2,
        loop__max_steps=9, loop__save_every=2, loop__eval_every=4, loop__log_every=2,
    )  # fmt: skip
    assert toy.resumes_exactly(tmp_path, "slots", SlotsTask, config, cut_at) == cut_at - 1


# --- schedules and order ---


def test_rates() -> None:
    halving = OptimConfig(lr=0.4, warmup=10, halve_every=100)
    assert [halving.factor(step, 1) for step in (0, 4)] == pytest.approx([0.1, 0.5 * 0.5**0.04])
    assert [halving.factor(step, 1) for step in (100, 200, 150)] == pytest.approx([0.5, 0.25, 0.5**1.5])
    cosine = OptimConfig(lr=0.4, warmup=0, schedule="cosine")
    assert [cosine.factor(step, 100) for step in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    constant = OptimConfig(lr=0.4, warmup=5, schedule="constant")
    assert [constant.factor(step, 100) for step in (0, 1, 4, 5, 99)] == pytest.approx([0.2, 0.4, 1, 1, 1])
    # At the published settings the rise ends near the full rate.
    assert OptimConfig().factor(9_999, 500_000) == pytest.approx(0.5**0.09999)


@pytest.mark.parametrize("size", [4, 5])
def test_an_epoch_sees_every_scene_once(size: int) -> None:
    task = make(batch__size=size)
    epochs = []
    for epoch in range(3):
        rows = torch.cat([task.batch_rows(epoch * (16 // size) + place) for place in range(16 // size)])
        assert len(rows) == len(rows.unique()) == 16 // size * size
        assert rows.max() < 16
        epochs.append(rows.tolist())
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    # Whatever was asked for before.
    assert make(batch__size=size).batch_rows(2 * (16 // size)).tolist() == epochs[2][:size]
    assert make(batch__size=size, seed=1).batch_rows(0).tolist() != epochs[0][:size]


def images_of(task: SlotsTask, steps: int) -> list[tuple[Tensor, Tensor]]:
    """What the network was shown, beside the scenes."""
    shown, seen = Shown(), list[tuple[Tensor, Tensor]]()
    task.shared_model = shown  # pyright: ignore[reportAttributeAccessIssue]
    scenes, parts = task.scenes.splits["train"].images_NHWC.permute(0, 3, 1, 2) / 127.5 - 1, task.config.batch.parts
    for step in range(steps):
        shown.seen.clear()
        task.train_step(step)
        rows = task.batch_rows(step)
        wanted = scenes[torch.cat([rows[part::parts] for part in range(parts)])]
        seen += list(zip(torch.cat([images for images, _ in shown.seen]), wanted, strict=True))
    return seen


def test_about_half_of_the_pictures_are_mirrored() -> None:
    seen = images_of(make(data__flip=True, batch__parts=2), 30)
    mirrored = 0
    for image, scene in seen:
        as_it_is = torch.allclose(image, scene)
        assert as_it_is != torch.allclose(image, scene.flip(2))
        mirrored += not as_it_is
    # Three deviations of 120 coins.
    assert abs(mirrored - 60) < 17
    assert all(torch.allclose(image, scene) for image, scene in images_of(make(), 4))


def test_both_forms_of_slot_attention_train_to_the_same_losses() -> None:
    tasks = [make(model__form=form) for form in ("fast", "plain")]
    assert type(tasks[0].model.encoder.attention) is not type(tasks[1].model.encoder.attention)
    for step in range(8):
        fast, plain = (task.train_step(step)["loss"].item() for task in tasks)
        assert plain == pytest.approx(fast, rel=1e-4)


# --- evaluation ---


@pytest.mark.parametrize("init", ["gaussian", "bilevel"])
def test_an_evaluation_does_not_depend_on_its_batches(init: str) -> None:
    found = [
        make(data__most=50, batch__evaluation=size, model__init=init, metric__watched=0).evaluate()
        for size in (1, 3, 32)
    ]
    assert found[0].keys() == found[1].keys()
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4)


def test_noise_has_faded_in_evaluation() -> None:
    """Of bilevel slots; of Gaussian ones it is the start itself, and the same each time."""
    task = make()
    wanted = task.evaluate()
    task.noise = lambda count, *_: torch.full((count, 3, 8), torch.nan)  # type: ignore[method-assign]
    assert task.evaluate() == wanted
    gaussian = make(model__init="gaussian")
    assert gaussian.evaluate() == gaussian.evaluate()


def test_an_evaluation_by_hand() -> None:
    task = make(data__most=40)
    scenes = task.scenes.splits["val"]
    found = task.evaluate()
    with torch.no_grad():
        images = scenes.images_NHWC.permute(0, 3, 1, 2) / 127.5 - 1
        made, named = task.model.eval()(images, spread=0.0, iterations=2)
    off = ((made + 1) / 2 - (images + 1) / 2).double().square().sum((1, 2, 3))
    assert found["mse"] == pytest.approx(off.mean().item(), rel=1e-5)
    assert found["reconstruction"] == pytest.approx((made - images).square().sum(1).mean().item(), rel=1e-5)
    table = segmentation.shared_pixels(named["masks"].argmax(1), scenes.masks_NHW)
    assert found["ari"] == pytest.approx(segmentation.ari(table).mean().item())
    assert found["miou"] == pytest.approx(segmentation.miou(table).mean().item())
    assert {"fg_ari", "mbo", "empty", "background_slots", "background_share", "dead", "sameness", "spread"} < set(found)
    assert task.monitor == ("mse", "min")


def test_other_iterations_in_use() -> None:
    two, five = make(), make(model__eval_iterations=5)
    assert two.evaluate()["sameness"] != five.evaluate()["sameness"]
    (batch,) = five.decompose(five.scenes.splits["val"].images_NHWC, five.noise(2, "x", 0))
    assert batch.named["attention"].shape[1] == 5


def test_some_scenes_are_watched_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    plain = SlotsTask.score

    def score(self: SlotsTask, scenes: Any, stream: str) -> Evaluation:
        counts.append(len(scenes))
        return plain(self, scenes, stream)

    monkeypatch.setattr(SlotsTask, "score", score)
    for watched in (1, 0, 1000):
        make(data__most=40, metric__watched=watched).evaluate()
    assert counts == [1, 4, 4]


def test_scores_without_a_number_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenes without an object."""
    task = make()
    for part in task.scenes.splits.values():
        part.masks_NHW.zero_()
    found = task.evaluate()
    assert "fg_ari" not in found
    assert "mbo" not in found
    assert all(math.isfinite(value) for value in found.values())
    assert not {row.metric for row in task.results({})} & {"fg_ari", "mbo"}


# --- the watch ---


def watched(
    task: SlotsTask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *,
    alive: int = 3, background: float = 1.0, same: float = 0.0, spread: float = 0.5, anyone: bool = False,
) -> list[str]:  # fmt: skip
    """What an evaluation says where this is found."""
    pixels = torch.zeros(2, 3, dtype=torch.int64)
    pixels[:, :alive] = 100
    if anyone:
        # One slot has all of an image, another of the next.
        pixels = 100 * torch.eye(3, dtype=torch.int64)[:2]
    numbers = dict.fromkeys(
        ("ari", "fg_ari", "miou", "miou_fg", "miou_gt", "mbo", "mse", "empty", "background_share"), torch.zeros(2)
    )
    scores = Scores(numbers | {"background_slots": torch.full((2,), background)}, pixels)
    monkeypatch.setattr(task, "score", lambda *_: Evaluation(scores, same, torch.zeros(0, 3, 8)))
    monkeypatch.setattr(task.model.encoder.attention, "spread", lambda: spread)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        task.evaluate()
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("fault", "near", "says"),
    [
        (
            {"alive": 1},
            {"alive": 2},
            ["2 of 3 slots hold nothing in any scene", "one slot has 100 % of a scene, so the others nothing"],
        ),
        ({"anyone": True}, {}, ["one slot has 100 % of a scene, so the others nothing"]),
        ({"background": 3.0}, {"background": 2.9}, ["3.0 slots share a scene's background, which sinks ARI"]),
        ({"same": 0.995}, {"same": 0.98}, ["the slots of a scene are all but the same"]),
        ({"spread": 0.005}, {"spread": 0.02}, ["the starts of the slots have become one"]),
    ],
)
def test_a_fault_is_told_once_and_again_after_it_was_gone(
    fault: dict[str, Any], near: dict[str, Any], says: list[str], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    task = make(model__num_slots=3, data__most=20)
    assert task.scenes
    assert watched(task, monkeypatch, caplog) == []
    assert watched(task, monkeypatch, caplog, **near) == []
    assert watched(task, monkeypatch, caplog, **fault) == says
    assert watched(task, monkeypatch, caplog, **fault) == []
    assert watched(task, monkeypatch, caplog) == []
    assert watched(task, monkeypatch, caplog, **fault) == says


def test_faults_are_told_apart(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    task = make()
    assert task.scenes
    assert len(watched(task, monkeypatch, caplog, same=1.0)) == 1
    assert len(watched(task, monkeypatch, caplog, same=1.0, spread=0.0, background=5.0)) == 2
    assert watched(task, monkeypatch, caplog, spread=0.0, background=5.0) == []


def test_spread() -> None:
    gaussian = make(model__init="gaussian")
    attention = gaussian.model.encoder.attention
    with torch.no_grad():
        attention.mean.fill_(3)
        attention.log_deviation.fill_(math.log(4))
    assert attention.spread() == pytest.approx(4 / 5)
    for init in ("learned", "bilevel"):
        task = make(model__init=init, model__num_slots=2)
        start = task.model.encoder.attention.start
        with torch.no_grad():
            start.copy_(torch.tensor([1.0, -1.0])[None, :, None].expand_as(start))
            assert task.model.encoder.attention.spread() == pytest.approx(1)
            start.add_(3)
            assert task.model.encoder.attention.spread() == pytest.approx(math.sqrt(1 / 10))
            start.fill_(2)
            assert task.model.encoder.attention.spread() == 0
            start.zero_()
            assert task.model.encoder.attention.spread() == 0


# --- scenes ---


def test_generated_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_scenes(SceneConfig(source="generated", most=25), 16)
    assert found.about == "generated scenes, 21 / 2 / 2"
    assert {split: len(part) for split, part in found.splits.items()} == {"train": 21, "val": 2, "test": 2}
    seen: list[Any] = []
    monkeypatch.setattr(clevrtex, "generated", lambda *given: seen.append(given) or found)
    load_scenes(SceneConfig(source="generated"), 32)
    assert seen == [(32, {"train": 8000, "val": 1000, "test": 1000})]


def test_released_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    found = clevrtex.generated(16, {"train": 10, "val": 2, "test": 2})
    monkeypatch.setattr(clevrtex, "released", lambda *given: seen.append(given) or found)
    read = load_scenes(SceneConfig(most=70), 16)
    assert all(read.splits[split].images_NHWC is part.images_NHWC for split, part in found.splits.items())
    assert read.about == found.about
    assert seen == [(16, 70)]


def folder_of_scenes(path: Path, count: int = 20) -> Path:
    scenes = clevrtex.generated(24, {"train": count, "val": 1, "test": 1}).splits["train"]
    path.mkdir()
    for number in range(count):
        name = f"CLEVRTEX_mine_{number:06d}"
        Image.fromarray(scenes.images_NHWC[number].numpy()).save(path / f"{name}.png")
        Image.fromarray(scenes.masks_NHW[number].numpy()).save(path / f"{name}_flat.png")
    return path


def test_a_folder_of_scenes(tmp_path: Path) -> None:
    path = folder_of_scenes(tmp_path / "mine")
    task = make(data__source="folder", data__folder=str(path), data__most=0)
    assert task.scenes.about == "scenes of mine, 16 / 2 / 2"
    assert task.train_step(0)["loss"].isfinite()
    assert set(task.data_checksums()) == {"mine (files)"}
    assert task.finish() == {"scenes": "scenes of mine, 16 / 2 / 2"}
    assert task.results({})[0].variant == "scenes of mine, 16 / 2 / 2, 16 px"
    with pytest.raises(UserError) as caught:
        make(data__source="folder", data__folder="nowhere", data__most=0).train_step(0)
    one_line(caught, "nowhere", "does not exist")


def test_a_batch_larger_than_the_set() -> None:
    with pytest.raises(UserError) as caught:
        make(batch__size=17).train_step(0)
    one_line(caught, "a batch of 17 is larger than the 16 training scenes", "--batch.size")
    make(batch__size=16).train_step(0)


def test_no_inception_weights_are_told_before_the_training() -> None:
    with pytest.raises(UserError) as caught:
        make(metric__inception="nowhere.pt").train_step(0)
    one_line(caught, "no file nowhere.pt with the Inception weights", "--metric.inception")


def test_more_objects_than_slots_are_told(caplog: pytest.LogCaptureFixture) -> None:
    task = make()
    most = max(objects(part.masks_NHW) for part in load_scenes(task.config.data, 16).splits.values())
    assert most > 3
    with caplog.at_level(logging.WARNING):
        assert task.scenes is task.scenes
        (record,) = caplog.records
        assert f"up to {most} objects and the ground in a scene, and 3 slots" in record.getMessage()
        assert f"--model.num-slots {most + 1} has room" in record.getMessage()
        assert "\n" not in record.getMessage()
        caplog.clear()
        assert make(model__num_slots=most + 1).scenes
    assert not caplog.records


def test_objects_are_counted_by_hand() -> None:
    masks = torch.zeros(300, 4, 4, dtype=torch.uint8)
    assert objects(masks) == 0
    masks[299, 0] = torch.tensor([0, 7, 7, 255])
    masks[3, :, 0] = 1
    assert objects(masks) == 2, "numbers may be left out"
    masks[270] = torch.arange(1, 17).view(4, 4)
    assert objects(masks) == 16, "without a background"
    assert objects(masks[:0]) == 0


# --- the library and compositions ---


def test_the_library_is_of_the_training_scenes() -> None:
    task = make()
    library = task.library
    assert library.slots_NS.shape == (48, 8)
    assert library.num_clusters == 3
    assert task.library is library, "made once"
    images = task.scenes.splits["train"].images_NHWC
    (batch,) = task.decompose(images, task.noise(16, "library/slots", 0), size=16)
    assert batch.made_BCHW is not None
    assert not any(value.requires_grad for value in (batch.made_BCHW, *batch.named.values()))
    torch.testing.assert_close(library.slots_NS, batch.named["slots"].flatten(0, 1), rtol=1e-4, atol=1e-5)
    assert make(metric__library=5).library.slots_NS.shape == (15, 8)
    again = make(batch__evaluation=3).library
    torch.testing.assert_close(again.slots_NS, library.slots_NS, rtol=1e-4, atol=1e-5)


def test_compositions_are_slots_of_the_library_decoded_together() -> None:
    task = make(batch__evaluation=3)
    found = task.compose(7, "here")
    assert (found.shape, found.dtype) == ((7, 16, 16, 3), torch.uint8)
    slots = task.library.draw(7, task.runtime.generator("here", 0))
    with torch.no_grad():
        wanted = to_bytes(task.model.decode(slots)[0])
    assert (found.int() - wanted.int()).abs().max() <= 1
    assert torch.equal(task.compose(7, "here"), found)
    assert not torch.equal(task.compose(7, "there"), found)


# --- results ---


def test_results_are_of_whole_splits() -> None:
    task = make(data__most=40, metric__watched=1, loop__max_steps=24)
    rows = {(row.split, row.metric): row for row in task.results({})}
    metrics = {
        "ari",
        "fg_ari",
        "miou",
        "miou_fg",
        "miou_gt",
        "mbo",
        "mse",
        "empty",
        "background_slots",
        "background_share",
    }
    assert rows.keys() == {(split, metric) for split in ("val", "test") for metric in metrics}, "no FID with none"
    for split in ("val", "test"):
        scores = task.score(task.scenes.splits[split], f"{split}/slots").scores
        for metric in metrics:
            row = rows[split, metric]
            assert row.value == scores.means()[metric]
            assert row.half_width == half_width(scores.of_image[metric])
            assert row.protocol.startswith("mean over 4 scenes, ")
            assert row.variant == "generated scenes, 32 / 4 / 4, 16 px"
    told = rows["test", "ari"].protocol
    for part in (
        "all pixels, the background a segment; generated scenes, 32 / 4 / 4, 16 px; conv, K = 3, bilevel slots",
        "2 iterations in use; up to 3 epochs of 32, batch 4, chosen by validation MSE",
    ):
        assert part in told


@pytest.mark.parametrize("table", ["run", "clevrtex"])
def test_the_cell_of_a_table(table: str) -> None:
    rows = make(table=table).results({})
    assert {(row.experiment, row.cell) for row in rows} == {(table, "conv-1211-k3-bilevel")}
    other = make(table=table, model__init="learned", model__num_slots=2, model__strides=(1, 1, 1, 1)).results({})
    assert {row.cell for row in other} == {"conv-k2-learned"}


def test_distances_of_compositions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a small network; the distances themselves have tests of their own."""
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fid, "_is_published", lambda card: True)
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def score(real: np.ndarray, made: np.ndarray, generator: torch.Generator) -> fid.Score:
        seen.append((real, made))
        return fid.Score(fid=7.0, half_width=0.5, kid=0.002, num_real=len(real), num_fake=len(made))

    monkeypatch.setattr(fid, "score", score)
    small = stand_in.save(tmp_path / "small.pt", stand_in.StandIn())
    task = make(metric__inception=str(small), data__most=40)
    rows = {(row.split, row.metric): row for row in task.results({}) if row.metric in ("fid", "kid")}
    assert rows.keys() == {("val", "fid"), ("val", "kid")}
    distance, kernel = rows["val", "fid"], rows["val", "kid"]
    assert (distance.value, distance.half_width, kernel.value, kernel.half_width) == (7.0, 0.5, 2.0, None)
    assert "4 compositions of one slot a cluster (K-means over 96 training slots)" in distance.protocol
    assert kernel.protocol.startswith("times 1,000; clean-fid, ")
    network = fid.Inception(small, torch.device("cpu"))
    ((real, made),) = seen
    np.testing.assert_array_equal(real, network.features(task.scenes.splits["val"].images_NHWC))
    np.testing.assert_array_equal(made, network.features(task.compose(4, "val/compose")))


def test_results_are_of_the_weights_as_they_are() -> None:
    """A library of the weights before is not taken."""
    task = make()
    before = task.library.card
    task.model.load_state_dict(network(seed=1).state_dict())
    task.results({})
    assert not torch.equal(task.library.card, before)


# --- pictures ---


def test_pictures_are_drawn(tmp_path: Path) -> None:
    task = make()
    names = (
        "reconstruction",
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
        {"step": step, "train/reconstruction": 1.0 / step} | {f"val/{name}": 0.1 * step for name in names}
        for step in (1, 2, 3)
    ]
    registry.load("slots").module("figures").draw(task, tmp_path, metrics)
    pictures = {"curves", "reconstructions", "slots", "parts", "attention", "compositions"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png" for name in pictures} | {"library.safetensors"}
    for name in pictures:
        with Image.open(tmp_path / f"{name}.png") as image:
            values = np.asarray(image.convert("RGB"))
        assert min(values.shape[:2]) > 100, name
        assert len(np.unique(values.reshape(-1, 3), axis=0)) > 20, name
    library = load(tmp_path / "library.safetensors", task.model)
    assert torch.equal(library.slots_NS, task.library.slots_NS)


def test_a_colour_a_segment() -> None:
    colours = coloured(torch.arange(21).view(3, 7))
    assert colours.shape == (3, 7, 3)
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 21
    assert colours[0, 0].tolist() == [70, 70, 70], "the background is grey"
    assert np.array_equal(coloured(np.array([[21, 1]]))[0, 0], coloured(np.array([[1]]))[0, 0])


def test_a_sheet_by_hand() -> None:
    images = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 2, 2, 3)
    page = sheet(images, 2)
    assert page.shape == (5, 5, 3)
    white = 255
    assert page[..., 0].tolist() == [
        [0, 0, white, 1, 1],
        [0, 0, white, 1, 1],
        [white] * 5,
        [2, 2, white, white, white],
        [2, 2, white, white, white],
    ]
