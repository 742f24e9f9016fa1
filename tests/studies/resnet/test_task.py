"""The training step, the evaluation, exact resumes, results, and settings that make no sense."""

import copy
import dataclasses
import math
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score
from tests.core import toy
from tests.experiments import Finished
from tests.studies.resnet.common import make, settings
from torch import Tensor
from torch.nn import functional

from etude.core.config import from_dict, override, to_dict
from etude.core.errors import UserError
from etude.core.loop import Loop
from etude.core.runtime import Runtime
from etude.nn.augment import crop_and_flip
from etude.report.reference import read_reference
from etude.studies.resnet.study import NORMS, STUDY, TUNED_RATES, OptimConfig, ResNetConfig, smoke
from etude.studies.resnet.task import GATE_BINS, ResNetTask


def state_of(task: ResNetTask) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.model.state_dict().items()}


def one_line(caught: pytest.ExceptionInfo[ValueError], *parts: str) -> None:
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


# --- the learning rate ---


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [1, 1, 1, 1, 1, 1, 1, 1]),
        ("step", [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("linear", [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]),
    ],
)
def test_schedules(schedule: Any, rates: list[float]) -> None:
    optim = OptimConfig(lr=0.4, schedule=schedule)
    assert [optim.rate(step, 8) for step in range(8)] == pytest.approx([0.4 * rate for rate in rates])
    warm = OptimConfig(lr=0.4, schedule=schedule, warmup=4)
    rising = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    expected = [0.4 * rate * rise for rate, rise in zip(rates, rising, strict=True)]
    assert [warm.rate(step, 8) for step in range(8)] == pytest.approx(expected)


def test_the_papers_drops_come_at_32_000_and_48_000_of_64_000() -> None:
    config = STUDY.preset("paper").build()
    assert isinstance(config, ResNetConfig)
    rates = [config.optim.rate(step, config.loop.max_steps) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_the_optimiser_follows_the_schedule_and_gates_have_their_multiple() -> None:
    task = make(model__norm="bin", optim__schedule="linear", optim__gate_lr=7.0, loop__max_steps=4)
    for step in range(3):
        task.train_step(step)
        rate = task.config.optim.rate(step, 4)
        assert [group["lr"] for group in task.optimizer.param_groups] == pytest.approx([rate, 7 * rate])


# --- which pictures a step takes ---


def test_every_epoch_is_an_order_of_its_own_and_leaves_a_rest_out() -> None:
    task = make(batch__size=32)
    count = len(task.pictures.splits["train"])
    assert count == 240
    epochs = [torch.cat([task.batch_rows(7 * epoch + step) for step in range(7)]) for epoch in range(3)]
    for epoch, rows in enumerate(epochs):
        assert len(rows) == len(set(rows.tolist())) == 224
        assert set(rows.tolist()) <= set(range(count))
        order = torch.randperm(count, generator=task.runtime.generator("train/order", epoch))
        assert torch.equal(rows, order[:224]), "keyed by the epoch"
    assert not torch.equal(epochs[0], epochs[1])
    # Another rest each time: over epochs all pictures are seen.
    assert len(set(torch.cat(epochs).tolist())) > 236


def test_rows_do_not_depend_on_the_steps_before() -> None:
    task, again, other = make(), make(), make(seed=1)
    late = task.batch_rows(20)
    for step in range(20):
        again.batch_rows(step)
    assert torch.equal(again.batch_rows(20), late)
    assert torch.equal(task.batch_rows(20), late)
    assert not torch.equal(other.batch_rows(20), late)


def test_a_batch_of_the_whole_set_is_an_epoch() -> None:
    task = make(batch__size=240)
    assert sorted(task.batch_rows(0).tolist()) == sorted(task.batch_rows(1).tolist()) == list(range(240))


# --- the optimiser ---


@pytest.mark.parametrize("algorithm", ["sgd", "adam"])
@pytest.mark.parametrize("norm", ["bn", "bin", "none"])
def test_every_parameter_is_in_one_group_and_gates_do_not_decay(algorithm: str, norm: str) -> None:
    task = make(model__norm=norm, optim__algorithm=algorithm, optim__weight_decay=0.25, optim__momentum=0.75)
    groups = task.optimizer.param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, task.model.parameters())), "each of them exactly once"
    gates = {id(p) for name, p in task.model.named_parameters() if name.endswith(".gate")}
    assert len(groups) == (2 if norm == "bin" else 1)
    assert (groups[0]["weight_decay"], groups[0]["factor"]) == (0.25, 1.0)
    if norm == "bin":
        assert {id(p) for p in groups[1]["params"]} == gates
        assert len(gates) == 7
        assert (groups[1]["weight_decay"], groups[1]["factor"]) == (0.0, 10.0)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[algorithm]
    assert type(task.optimizer) is kind
    assert algorithm != "sgd" or all(group["momentum"] == 0.75 for group in groups)


def test_gates_stay_between_0_and_1() -> None:
    task = make(model__norm="bin", optim__gate_lr=3000.0)
    for step in range(3):
        task.train_step(step)
        gates = torch.cat([norm.gate.detach() for norm in task.gates.values()])
        assert gates.min() >= 0
        assert gates.max() <= 1
    assert ((gates == 0) | (gates == 1)).float().mean() > 0.5, "they would have left"


# --- the training step ---


def test_a_step_is_sgd_on_the_augmented_batch() -> None:
    """Written out: cut and flipped pictures, prepared with the training mean, cross-entropy, momentum and decay."""
    task, twin = make(optim__weight_decay=0.1), make(optim__weight_decay=0.1)
    train = task.pictures.splits["train"]
    model = twin.model
    model.set_statistics(train.images_NHWC)
    # PyTorch's plain loop over parameters beside the fused one.
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, foreach=False)
    for step in range(2):
        metrics = task.train_step(step)
        rows, draw = twin.batch_rows(step), twin.runtime.generator("train/augment", step, 0)
        fill = model.mean.round().to(torch.uint8)
        images = crop_and_flip(train.images_NHWC[rows], fill, draw, pad=2, flip=True)
        logits, _ = model.train()(model.prepare(images))
        loss = functional.cross_entropy(logits, train.labels_N[rows])
        assert metrics["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
        right = (logits.argmax(1) == train.labels_N[rows]).float().mean().item()
        assert metrics["accuracy"].item() == pytest.approx(100 * right)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    for name, value in state_of(task).items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_a_step_is_determined_by_seed_and_step() -> None:
    one, two, other = make(), make(), make(seed=1)
    for step in (0, 1):
        losses = [task.train_step(step)["loss"].item() for task in (one, two, other)]
        assert losses[0] == losses[1] != losses[2]
    assert toy.same(one.model.state_dict(), two.model.state_dict())


def test_the_statistics_are_of_the_training_pictures_alone() -> None:
    task = make()
    task.train_step(0)
    values = task.pictures.splits["train"].images_NHWC.numpy().reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(task.model.mean.numpy(), values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(task.model.std.numpy(), values.std(0), rtol=1e-6)


@pytest.mark.parametrize("norm", ["bn", "bin"])
def test_two_parts_are_two_halves(norm: str) -> None:
    """Gradients are the mean of the halves' own; running statistics move by the mean of what each would have done."""
    task, twin = (make(model__norm=norm, batch__parts=2, optim__momentum=0.0) for _ in range(2))
    metrics = task.train_step(0)
    train, model = twin.pictures.splits["train"], twin.model
    model.set_statistics(train.images_NHWC)
    before, rows, losses = state_of(twin), twin.batch_rows(0), []
    buffers: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_buffers()}
    for part in range(2):
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
        draw, mine = twin.runtime.generator("train/augment", 0, part), rows[part::2]
        images = crop_and_flip(train.images_NHWC[mine], model.mean.round().byte(), draw, pad=2, flip=True)
        losses.append(functional.cross_entropy(model.train()(model.prepare(images))[0], train.labels_N[mine]))
        (losses[-1] / 2).backward()
        for name, buffer in model.named_buffers():
            buffers[name].append(buffer.clone())
    assert metrics["loss"].item() == pytest.approx((losses[0] + losses[1]).item() / 2, rel=1e-5)
    for name, p in task.model.named_parameters():
        twin_p = dict(model.named_parameters())[name]
        is_gate = name.endswith(".gate")
        decay = 0.0 if is_gate else 1e-4
        assert twin_p.grad is not None
        moved = twin_p.detach() - (1.0 if is_gate else 0.1) * (twin_p.grad + decay * twin_p.detach())
        torch.testing.assert_close(p.detach(), moved.clamp(0, 1) if is_gate else moved, rtol=1e-4, atol=1e-6)
    for name, buffer in task.model.named_buffers():
        expected = torch.stack([value.float() for value in buffers[name]]).mean(0)
        torch.testing.assert_close(buffer.float(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(*buffers["norm.running_mean"])


def test_our_batch_norm_trains_as_pytorchs() -> None:
    """The same first step to rounding; ten steps on, rounding has grown to a hundredth at most."""
    ours, theirs = make(model__norm="bn"), make(model__norm="bn-torch")
    assert toy.same(ours.model.state_dict(), theirs.model.state_dict()), "one seed, one beginning"
    losses = torch.tensor([[task.train_step(step)["loss"] for task in (ours, theirs)] for step in range(10)])
    tolerance = torch.logspace(-5.5, -2, 10)
    assert ((losses[:, 0] / losses[:, 1] - 1).abs() < tolerance).all(), losses
    assert losses[-3:].mean() < losses[:3].mean()
    # By running statistics.
    assert ours.evaluate()["loss"] == pytest.approx(theirs.evaluate()["loss"], rel=0.02)


def test_mixed_precision_trains_and_scores_in_single() -> None:
    task = make(loop__precision="bf16")
    losses = [task.train_step(step)["loss"].item() for step in range(3)]
    exact = make()
    assert losses == pytest.approx([exact.train_step(step)["loss"].item() for step in range(3)], rel=0.05)
    val = task.pictures.splits["val"]
    assert task.logits(val).dtype == torch.float32
    assert math.isfinite(task.score(val)["loss"])


# --- a training of seconds ---


class Training(NamedTuple):
    task: ResNetTask
    losses: list[float]
    before: dict[str, float]


@pytest.fixture(scope="module")
def training() -> Training:
    """The smoke preset as it is."""
    config = smoke()
    task = ResNetTask(config, Runtime(config.loop, config.seed))
    before = task.evaluate()
    losses = [task.train_step(step)["loss"].item() for step in range(config.loop.max_steps)]
    return Training(task, losses, before)


def test_training_beats_chance(training: Training) -> None:
    after = training.task.evaluate()
    assert np.mean(training.losses[-10:]) < 0.6 * np.mean(training.losses[:10])
    assert training.before["accuracy"] < 40
    for name in ("accuracy", "fit/accuracy", "macro_f1"):
        assert after[name] > 60, "chance is 25"
    assert after["loss"] < 0.7 * math.log(4)


def test_evaluation_is_always_the_same_and_changes_nothing(training: Training) -> None:
    task = training.task
    task.model.train()
    before, moments = state_of(task), copy.deepcopy(task.optimizer.state_dict())
    assert task.evaluate() == task.evaluate()
    assert toy.same(task.model.state_dict(), before), "running statistics too"
    assert toy.same(task.optimizer.state_dict(), moments)
    assert all(p.grad is None for p in task.model.parameters())
    assert task.monitor == ("accuracy", "max")


def test_gate_histograms_of_every_layer(training: Training) -> None:
    rows = training.task.evaluate()
    names = ["norm", *(f"stages.{s}.0.norm{k}" for s in range(3) for k in (1, 2))]
    for name in names:
        shares = [rows[f"gates/{name}/{number}"] for number in range(GATE_BINS)]
        assert sum(shares) == pytest.approx(1)
        gate = training.task.gates[name].gate.detach().numpy()
        counts, _ = np.histogram(gate, GATE_BINS, (0, 1))
        assert shares == pytest.approx(list(counts / len(gate)))
    assert sum(name.startswith("gates/") for name in rows) == GATE_BINS * len(names)
    # They start at 1, in the last bin, and move.
    assert all(training.before[f"gates/{name}/{GATE_BINS - 1}"] == 1 for name in names)
    assert any(rows[f"gates/{name}/{GATE_BINS - 1}"] < 1 for name in names)


def test_other_norms_have_no_gate_histograms() -> None:
    rows = make(curve_images=7).evaluate()
    names = ("loss", "accuracy", "micro_f1", "macro_f1")
    assert set(rows) == {*names, *(f"fit/{name}" for name in names)}


def test_the_curve_is_of_the_same_few_training_pictures() -> None:
    task = make(curve_images=10)
    shown: list[list[str]] = []
    score = task.score
    task.score = lambda images: (shown.append(list(images.names)), score(images))[1]  # type: ignore[method-assign]
    task.evaluate()
    task.evaluate()
    assert shown[0] == shown[2]
    assert len(set(shown[0])) == 10
    assert set(shown[0]) <= set(task.pictures.splits["train"].names)
    assert shown[1] == shown[3] == list(task.pictures.splits["val"].names)


def test_a_split_of_any_size_is_scored_picture_by_picture(training: Training) -> None:
    task, val = training.task, training.task.pictures.splits["val"]
    whole = task.logits(val)
    assert whole.shape == (100, 4)
    assert whole.dtype == torch.float32
    x_NCHW = task.model.eval()(task.model.prepare(val.images_NHWC))[0].detach()
    torch.testing.assert_close(whole, x_NCHW, rtol=1e-4, atol=1e-4)
    assert task.logits(val.take([])).shape == (0, 4)


def test_batches_that_are_filled_up_for_the_compiler_give_the_same_logits(training: Training) -> None:
    task, val = training.task, training.task.pictures.splits["val"]
    config, runtime = task.config, task.runtime
    whole, sizes = task.logits(val), []
    hook = task.model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    try:
        task.config, runtime.compile = override(config, {"batch.evaluation": 30}), True
        padded = task.logits(val)
        assert sizes == [30, 30, 30, 30]
        runtime.compile = False
        task.logits(val)
        assert sizes[4:] == [30, 30, 30, 10]
    finally:
        hook.remove()
        task.config, runtime.compile = config, False
    torch.testing.assert_close(padded, whole, rtol=1e-4, atol=1e-4)


# --- metrics ---


def scored(truth: list[int], taken: list[int]) -> dict[str, float]:
    """The scores of answers given by hand."""
    task = make()
    images = task.pictures.splits["train"].take(range(len(truth)))
    answers = 5.0 * functional.one_hot(torch.tensor(taken), 4).float()
    task.logits = lambda _: answers  # type: ignore[method-assign]
    return task.score(dataclasses.replace(images, labels_N=torch.tensor(truth)))


def test_scores_by_hand() -> None:
    """Of class 0 two of three are found and one is wrongly added; class 3 is neither there nor answered."""
    rows = scored([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 2])
    assert rows["accuracy"] == pytest.approx(100 * 4 / 6)
    f1 = [2 / 3, 1 / 2, 1, 0]
    assert rows["macro_f1"] == pytest.approx(100 * sum(f1) / 4)
    sure, not_sure = math.log(1 + 3 * math.exp(-5)), 5 + math.log(1 + 3 * math.exp(-5))
    assert rows["loss"] == pytest.approx((4 * sure + 2 * not_sure) / 6)


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_scikit_learn(seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth, taken = (draw.integers(0, 4, 50).tolist() for _ in range(2))
    rows = scored(truth, taken)
    assert rows["accuracy"] == rows["micro_f1"] == pytest.approx(100 * accuracy_score(truth, taken))
    assert rows["macro_f1"] == pytest.approx(100 * f1_score(truth, taken, average="macro"))


# --- results ---


CELLS = {
    "norms": "gn",
    "norms-tuned": "gn",
    "batch-size": "gn_16",
    "depth": "l8",
    "best": "best",
    "run": "l8-gn",
    "mine": "l8-gn",
}


@pytest.mark.parametrize("table", CELLS)
def test_the_cell_of_each_table(table: str) -> None:
    task = make(table=table, model__norm="gn", model__width=16, batch__size=16)
    assert task.cell() == CELLS[table]


def test_results_say_what_they_are() -> None:
    task = make(table="norms", optim__algorithm="adam", optim__lr=0.003, loop__max_steps=15)
    rows = task.results({})
    metrics = ("loss", "accuracy", "micro_f1", "macro_f1", "error")
    assert [(row.split, row.metric) for row in rows] == [(s, m) for s in ("train", "val", "test") for m in metrics]
    by = {(row.split, row.metric): row for row in rows}
    for row in rows:
        assert (row.experiment, row.cell, row.variant) == ("norms", "bn", "generated shapes, 16 px")
        assert row.unit == ("" if row.metric == "loss" else "%")
        # 15 steps of 32 are two epochs of 240.
        parts = (
            "generated shapes, 16 px; ",
            "n = 1, bn",
            "ADAM lr 0.003 constant",
            "batch 32",
            "up to 2 epochs of 240",
        )
        assert all(part in row.protocol for part in parts), row.protocol
    for split, count in (("train", 240), ("val", 100), ("test", 200)):
        accuracy, error = by[split, "accuracy"], by[split, "error"]
        assert accuracy.value == pytest.approx(task.score(task.pictures.splits[split])["accuracy"])
        assert error.value == pytest.approx(100 - accuracy.value)
        share = accuracy.value / 100
        ends = binomtest(round(share * count), count).proportion_ci(0.95, "wilson")
        half_width = 100 * max(share - ends.low, ends.high - share)
        assert accuracy.half_width == error.half_width == by[split, "micro_f1"].half_width == pytest.approx(half_width)
        assert by[split, "macro_f1"].half_width is by[split, "loss"].half_width is None


def test_what_the_weights_carry() -> None:
    task = make()
    assert task.finish() == {
        "classes": ["disc", "square", "triangle", "cross"], "pictures": "generated shapes, 16 px",
    }  # fmt: skip
    assert task.data_checksums() == {"generated": "shapes, seeds 0 to 2"}


# --- exact resumes ---


def begin(path: Path, config: ResNetConfig) -> tuple[ResNetTask, Loop]:
    return toy.begin(path, "resnet", ResNetTask, config)


@pytest.mark.parametrize("algorithm", ["sgd", "adam"])
@pytest.mark.parametrize("norm", ["bn", "bin"])
def test_a_resume_is_exact(tmp_path: Path, norm: str, algorithm: str) -> None:
    """12 steps are 6 and 6, bit for bit, across the end of an epoch; the first six know the same schedule."""
    changes = {"loop__max_steps": 12, "loop__eval_every": 4, "loop__save_every": 6, "loop__log_every": 5}
    config = settings(
        model__norm=norm, optim__algorithm=algorithm, optim__lr=0.01, optim__schedule="cosine", curve_images=10,
        batch__parts=2, **changes,
    )  # fmt: skip
    assert toy.resumes_exactly(tmp_path, "resnet", ResNetTask, config, cut_at=7) == 6


def test_a_resume_with_other_weights_is_refused(tmp_path: Path) -> None:
    """A layer norm has the keys and shapes of an instance norm: the header tells."""
    config = settings(model__norm="ln", loop__max_steps=2, loop__save_every=1, loop__eval_every=1, curve_images=5)
    _, loop = begin(tmp_path / "run", config)
    loop.train()
    _, other = begin(tmp_path / "run", override(config, {"model.norm": "in"}))
    with pytest.raises(UserError) as caught:
        other.resume()
    one_line(caught, "was trained with model.norm ln, and config.yaml says in", "put that back")


def test_a_resume_may_train_longer(tmp_path: Path) -> None:
    """Settings that are not the network's are the user's to change."""
    config = settings(loop__max_steps=2, loop__save_every=1, loop__eval_every=1, curve_images=5)
    begin(tmp_path / "run", config)[1].train()
    _, longer = begin(tmp_path / "run", override(config, {"loop.max_steps": 3, "optim.lr": 0.01}))
    assert longer.resume() == 2
    longer.train()
    assert longer.state.step == 3


# --- what cannot be trained ---


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"batch__size": 241}, ("a batch of 241 is larger than the 240 training pictures", "--batch.size")),
        ({"model__num_classes": 26}, ("up to 25 classes", "--model.num-classes")),
        ({"cam_classes": ["disc", "sqare"]}, ("no class 'sqare'", "did you mean 'square'?", "--cam-classes")),
    ],
)
def test_faults_of_the_data_come_before_the_first_step(changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        _ = make(**changes).data_checksums()
    one_line(caught, *parts)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("model.n", 0, "at least 1"),
        ("model.num_classes", 1, "at least 2"),
        ("model.groups", 0, "at least 1"),
        ("model.width", 0, "at least 1"),
        ("model.shortcut", "none", "'pad' or 'projection'"),
        ("data.size", 4, "at least 5"),
        ("data.val_share", 0.0, "between 0 and 1"),
        ("data.test_share", 1.0, "between 0 and 1"),
        ("data.val_share", math.nan, "between 0 and 1"),
        ("data.val_share", 0.8, "below 1"),
        ("data.source", "folder", "data.folder must be a path (--data.folder)"),
        ("data.source", "mnist", "'cifar10'"),
        ("augment.pad", -1, "0 or more"),
        ("optim.lr", 0.0, "above 0"),
        ("optim.lr", math.nan, "above 0"),
        ("optim.momentum", 1.0, "below 1"),
        ("optim.weight_decay", -1e-4, "0 or more"),
        ("optim.gate_lr", 0.0, "above 0"),
        ("optim.warmup", -1, "0 or more"),
        ("optim.algorithm", "lbfgs", "'sgd' or 'adam'"),
        ("batch.size", 0, "at least 1"),
        ("batch.parts", 0, "at least 1"),
        ("batch.parts", 5, "batch.size must be a multiple of batch.parts (5), not 32"),
        ("batch.evaluation", 0, "at least 1"),
        ("curve_images", 0, "at least 1"),
    ],
)
def test_senseless_settings_are_refused_by_name(name: str, value: Any, wanted: str) -> None:
    with pytest.raises(UserError) as caught:
        override(settings(), {name: value})
    one_line(caught, wanted if "must be" in wanted else name, wanted)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("size", "parts"), [(1, 1), (8, 8)])
def test_one_picture_at_a_time_wants_a_norm_without_a_batch(norm: str, size: int, parts: int) -> None:
    changes = {"model__norm": norm, "model__width": 16, "batch__size": size, "batch__parts": parts}
    if norm in ("bn", "bn-torch", "bin"):
        with pytest.raises(UserError) as caught:
            settings(**changes)
        one_line(caught, f"{norm} over a batch of 1 has nothing to average over", "--batch.size", "--model.norm gn")
    else:
        assert make(**changes).train_step(0)["loss"].isfinite()


@pytest.mark.parametrize("norm", NORMS)
def test_the_smallest_pictures_and_batches_train(norm: str) -> None:
    task = make(model__norm=norm, model__width=16, data__size=5, batch__size=2)
    assert task.train_step(0)["loss"].isfinite()
    assert math.isfinite(task.evaluate()["loss"])


def test_a_configuration_survives_its_own_record() -> None:
    config = settings(cam_classes=["disc", "cross"], optim__schedule="cosine")
    assert from_dict(ResNetConfig, to_dict(config)) == config


# --- experiments ---


def jobs() -> Iterator[tuple[str, str, Any]]:
    for experiment in STUDY.experiments:
        for preset in STUDY.presets:
            for job in STUDY.experiment(experiment).jobs(preset):
                yield experiment, preset, job


def cell_of(config: ResNetConfig) -> str:
    network = SimpleNamespace(num_layers=6 * config.model.n + 2)
    return partial(ResNetTask.cell, SimpleNamespace(config=config, model=network))()  # type: ignore[arg-type]


def configured(preset: str, job: Any) -> ResNetConfig:
    before = [Finished(Path(f"r{lr}"), {"optim": {"lr": lr}}, score) for lr, score in ((0.1, 0.2), (0.5, 0.9))]
    config = override(STUDY.preset(preset).build(), dict(job.settings(before)))
    assert isinstance(config, ResNetConfig)
    return config


def test_every_job_is_settings_of_every_preset() -> None:
    seen = set()
    for experiment, preset, job in jobs():
        config = configured(preset, job)
        assert config.table == ("run" if job.seed is not None else experiment)
        trained_on = {"birds": 486, "course": 30_000, "smoke": 240}.get(preset, 45_000)
        assert config.loop.eval_every <= config.loop.steps(trained_on // config.batch.size)
        seen.add((experiment, preset))
    assert len(seen) == len(STUDY.experiments) * len(STUDY.presets)


def test_every_published_cell_is_one_that_an_experiment_fills() -> None:
    filled = {(experiment, cell_of(configured(preset, job))) for experiment, preset, job in jobs() if job.seed is None}
    published = {(n.experiment, n.cell) for n in read_reference(STUDY.folder / "reference.toml").number}
    beyond = {cell for experiment, cell in published - filled if experiment not in ("run", "depth")}
    assert beyond == set()
    # Of 110 layers there is no job: it is asked for by --model.n 18.
    assert {cell for experiment, cell in published - filled if experiment == "depth"} == {"l110"}
    assert {cell for experiment, cell in filled if experiment == "norms"} == set(NORMS)


def test_batch_sizes_see_as_many_pictures() -> None:
    for preset, job in ((p, j) for e, p, j in jobs() if e == "batch-size"):
        config = configured(preset, job)
        assert (config.loop.epochs, config.loop.max_steps, config.loop.patience) == (50, 0, 10)
        trained_on = {"birds": 486, "course": 30_000, "smoke": 240}.get(preset, 45_000)
        epoch = trained_on // config.batch.size
        assert config.loop.eval_every == epoch, "it is evaluated, and may stop, after every epoch"
        assert config.loop.steps(epoch) == 50 * epoch


def test_tuned_rates_are_chosen_by_runs_with_a_seed_of_their_own() -> None:
    found = {job.name: job for e, p, job in jobs() if (e, p) == ("norms-tuned", "mini")}
    assert len(found) == len(NORMS) * (len(TUNED_RATES) + 1)
    for norm in NORMS:
        followed = [found[name] for name in found[norm].after]
        assert [job.overrides["optim.lr"] for job in followed] == list(TUNED_RATES)
        assert (
            {job.overrides["model.norm"] for job in followed} == {norm} == {configured("mini", found[norm]).model.norm}
        )
        assert {job.seed for job in followed} == {100}
        assert found[norm].seed is None
        assert configured("mini", found[norm]).optim.lr == 0.5, "the rate that validated best"


def test_presets_are_the_papers_and_the_courses() -> None:
    paper, course = STUDY.preset("paper").build(), STUDY.preset("course").build()
    assert isinstance(paper, ResNetConfig)
    assert isinstance(course, ResNetConfig)
    assert (paper.model.n, paper.batch.size, paper.loop.max_steps, paper.augment.pad) == (3, 128, 64_000, 4)
    assert (paper.optim.lr, paper.optim.momentum, paper.optim.weight_decay) == (0.1, 0.9, 1e-4)
    assert (course.model.n, course.model.num_classes, course.data.size, course.batch.size) == (2, 25, 256, 32)
    assert (course.optim.lr, course.augment.pad, course.augment.flip) == (1e-4, 0, False)
    # Of the pictures that are read, whatever their number.
    assert (course.loop.epochs, course.loop.max_steps) == (50, 0)


def test_warnings_of_group_norm_are_said() -> None:
    with pytest.warns(UserWarning, match=r"8 channels takes 4 group\(s\) in place of 8"):
        make(model__norm="gn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(model__norm="gn", model__groups=4)


@pytest.mark.parametrize("norm", ["bn", "bin", "gn"])
def test_the_plain_norms_train_to_the_losses_of_the_fast_ones(norm: str) -> None:
    fast, plain = (make(model__norm=norm, model__norm_form=form, model__groups=4) for form in ("fast", "plain"))
    assert type(fast.model.norm) is not type(plain.model.norm)
    for step in range(4):
        losses = [float(task.train_step(step)["loss"]) for task in (fast, plain)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3), step
