"""Training, watching and measuring, on the digits that come with etude."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from etude.cli.app import main
from etude.core import randomness
from etude.core.checkpoint import WeightsHeader, read_weights, save_weights
from etude.core.config import override, to_dict
from etude.core.errors import UserError
from etude.core.runtime import Runtime
from etude.data import mnist
from etude.draw.figures import sheet
from etude.metrics import diversity
from etude.nn.adversarial import discriminator_loss, generator_loss
from etude.studies.dcgan import figures, study
from etude.studies.dcgan.classifier import classify, shipped, train
from etude.studies.dcgan.study import OPTIONS, smoke
from etude.studies.dcgan.task import DCGANTask, scaled, to_bytes


def task(**changes: Any) -> DCGANTask:
    config = override(smoke(), {name.replace("__", "."): value for name, value in changes.items()})
    return DCGANTask(config, Runtime(config.loop, config.seed))


def run(built: DCGANTask, steps: range) -> list[dict[str, float]]:
    rows = []
    for step in steps:
        randomness.seed_globals(0, "step", step)
        rows.append({name: float(value) for name, value in built.train_step(step).items()})
    return rows


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def state(built: DCGANTask) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.clone() for name, net in built.modules.items() for key, value in net.state_dict().items()
    }


def test_a_step_is_algorithm_1() -> None:
    """Against the loop of the textbook, written down with PyTorch's own loss: weights after three steps."""
    ours, twin = task(optim__ema=0.0, model__conditional=False), task(optim__ema=0.0, model__conditional=False)
    images = ours.split("train")[0]
    for step in range(3):
        run(ours, range(step, step + 1))
        real = scaled(images[twin.batch_rows(step)])
        fake = twin.generator(twin.noise(len(real), "train/noise", step))
        criterion = torch.nn.BCEWithLogitsLoss()
        twin.optimizers["discriminator"].zero_grad()
        real_logits, fake_logits = twin.discriminator(real), twin.discriminator(fake.detach())
        both = criterion(real_logits, torch.ones(len(real))) + criterion(fake_logits, torch.zeros(len(real)))
        both.backward()
        twin.optimizers["discriminator"].step()
        twin.optimizers["generator"].zero_grad()
        criterion(twin.discriminator(fake), torch.ones(len(real))).backward()
        twin.optimizers["generator"].step()
    for name, value in state(twin).items():
        assert torch.allclose(state(ours)[name].float(), value.float(), atol=1e-5), name


@pytest.mark.parametrize("options", [{}, *OPTIONS.values(), {"optim.loss": "lsgan"}, {"model.size": 32}])
def test_every_option_trains(options: dict[str, Any]) -> None:
    built = task(**{name.replace(".", "__"): value for name, value in options.items()})
    before = state(built)
    rows = run(built, range(2))
    after = state(built)
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    moved = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert moved == set(built.modules)


def test_the_penalty_is_in_the_gradient() -> None:
    plain, punished = task(optim__r1=0.0), task(optim__r1=100.0)
    run(plain, range(1))
    run(punished, range(1))
    name = "discriminator.layers.0.weight"
    assert not torch.equal(state(plain)[name], state(punished)[name])


def test_the_penalty_has_the_factor_of_its_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mescheder et al. 2018, equation 9: gamma / 2."""
    built, seen = task(optim__r1=0.6, model__conditional=False), list[float]()
    backward = built.runtime.accelerator.backward
    monkeypatch.setattr(built.runtime.accelerator, "backward", lambda loss: (seen.append(loss.item()), backward(loss)))
    twin = task(optim__r1=0.6, model__conditional=False)
    real = scaled(twin.split("train")[0][twin.batch_rows(0)]).requires_grad_()
    logits = twin.discriminator(real)
    (gradient,) = torch.autograd.grad(logits.sum(), real)
    penalty = 0.3 * gradient.square().sum((1, 2, 3)).mean().item()
    (row,) = run(built, range(1))
    assert seen[0] - row["discriminator"] == pytest.approx(penalty, rel=1e-3)


def test_the_parts_of_a_batch_sum_to_its_gradient() -> None:
    """Without batch norm, whose statistics are those of a part."""
    whole, parted = (task(batch__parts=parts, model__norm="none") for parts in (1, 2))
    for built in (whole, parted):
        built.generator.eval()
        built.generator.train = lambda mode=True, net=built.generator: net  # type: ignore[method-assign]
    # Noise is keyed by part: the twin draws the same for both.
    drawn = {0: torch.randn(16, 16), 1: torch.randn(16, 16)}

    def noise(count: int, stream: str, step: int, index: int = 0) -> Tensor:
        if count == 32:
            return torch.stack([drawn[0], drawn[1]], 1).flatten(0, 1)
        return drawn[index]

    for built in (whole, parted):
        built.noise = noise  # type: ignore[method-assign]
        run(built, range(1))
    for name, value in state(whole).items():
        # Running statistics of a frozen generator stay as they are in both.
        assert torch.allclose(state(parted)[name].float(), value.float(), atol=1e-5), name


def test_the_mean_follows_the_generator() -> None:
    built = task(optim__ema=0.25)
    mean, seen = state(built)["generator.layers.0.weight"], []
    for step in range(3):
        run(built, range(step, step + 1))
        now = state(built)["generator.layers.0.weight"]
        seen.append(now)
        # 1/10, 2/11 and 1/4 in place of 3/12 by the decay of 0.25.
        decay = (0.1, 2 / 11, 0.25)[step]
        mean = decay * mean + (1 - decay) * now
    after = state(built)
    assert not torch.allclose(seen[0], seen[2], atol=1e-5)
    assert torch.allclose(after["mean_generator.layers.0.weight"], mean, atol=1e-7)
    running = "layers.1.running_mean"
    assert torch.equal(after[f"mean_generator.{running}"], after[f"generator.{running}"])


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_a_step_that_is_not_finite_is_left_out(network: str) -> None:
    built = task()
    run(built, range(1))
    before = state(built)
    weight = next(built.modules[network].parameters())
    hook = weight.register_hook(lambda gradient: gradient * torch.inf)
    (row,) = run(built, range(1, 2))
    hook.remove()
    assert row["skipped"] == 1
    assert all(np.isfinite(list(row.values())))
    after = state(built)
    kept = [name for name in after if name.startswith(f"{network}.")]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert all(value.isfinite().all() for value in after.values())
    (row,) = run(built, range(2, 3))
    assert row["skipped"] == 0
    assert not torch.equal(state(built)[kept[0]], before[kept[0]])


def test_a_run_that_only_skips_ends() -> None:
    built = task()
    with torch.no_grad():
        next(built.generator.parameters()).fill_(torch.nan)
    rows = run(built, range(50))
    assert all(np.isfinite(row["loss"]) for row in rows[:49])
    assert not np.isfinite(rows[49]["loss"])


def test_a_run_of_finite_losses_and_infinite_gradients_ends() -> None:
    built = task()
    next(built.generator.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    rows = run(built, range(50))
    assert all(np.isfinite(row["loss"]) for row in rows[:49])
    assert not np.isfinite(rows[49]["loss"])


def test_no_inception_weights_are_told_before_the_training() -> None:
    with pytest.raises(UserError, match=r"no file nowhere\.pt with the Inception weights"):
        task(metric__inception="nowhere.pt").train_step(0)


def test_an_epoch_takes_every_digit_once() -> None:
    built = task()
    per_epoch = 240 // 32
    rows = torch.cat([built.batch_rows(step) for step in range(per_epoch)])
    assert len(rows.unique()) == len(rows) == per_epoch * 32
    again = torch.cat([built.batch_rows(step) for step in range(per_epoch, 2 * per_epoch)])
    assert not torch.equal(rows, again)
    assert torch.equal(task().batch_rows(9), built.batch_rows(9))


def test_2n_steps_are_n_and_n(tmp_path: Path) -> None:
    """Through a checkpoint on disk: metrics, weights and snapshots, bit for bit."""
    words = ["dcgan", "smoke", "--loop.max-steps", "16", "--loop.save-every", "8", "--loop.eval-every", "8"]
    words += ["--metric.samples", "20", "--metric.watched", "20", "--runs", str(tmp_path)]
    assert main(["run", *words, "--name", "whole"]) == 0
    assert main(["run", *words, "--name", "half"]) == 0
    half, whole = (tmp_path / "dcgan" / name for name in ("half", "whole"))
    for path in half.glob("checkpoints/step-00000016/*"):
        path.unlink()
    (half / "checkpoints" / "step-00000016").rmdir()
    (half / "summary.json").unlink()
    assert main(["resume", str(half)]) == 0
    lines = [[{k: v for k, v in json.loads(line).items() if k != "seconds"}
              for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (half, whole)]  # fmt: skip
    assert lines[0] == lines[1]
    ours, theirs = (read_weights(path / "checkpoints/step-00000016/weights.safetensors")[0] for path in (half, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    results = [json.loads((path / "summary.json").read_text())["results"] for path in (half, whole)]
    assert results[0] == results[1]
    for name in ("curves", "samples", "digits"):
        assert pixels(half / "figures" / f"{name}.png").shape[1] > 300


def test_a_snapshot_shows_every_digit() -> None:
    digits = task().fixed_digits()
    assert digits is not None
    assert digits.bincount().tolist() == [8] * 10
    assert len(task().fixed_noise()) == len(digits)


def test_snapshots_are_of_the_first_the_middle_and_the_last_epoch() -> None:
    built = task()
    assert built.snapshot_steps() == (7, 28, 60)
    run(built, range(7))
    assert list(built.snapshots) == [7]
    drawn = built.draw(built.fixed_noise(), built.fixed_digits())[:, 0]
    assert torch.equal(built.snapshots[7], drawn)
    assert task(loop__max_steps=3).snapshot_steps() == (1, 3)
    course = task(data__source="sample", loop__max_steps=15 * 7)
    assert course.snapshot_steps() == (7, 49, 105)


def test_a_collapse_is_told(caplog: pytest.LogCaptureFixture) -> None:
    built = task()
    before = built.evaluate()
    with torch.no_grad():
        for parameter in built.mean_generator.parameters():
            parameter.zero_()
    found = built.evaluate()
    assert found["collapsed"] == 1
    assert found["diversity"] == pytest.approx(0, abs=1e-6) != before["diversity"]
    assert "the generator has collapsed" in caplog.text
    assert "--optim.r1" in caplog.text
    assert any("COLLAPSED" in row.protocol for row in built.results({}))


def test_results_say_what_they_are() -> None:
    built = task()
    rows = built.results({})
    metrics = [row.metric for row in rows]
    assert metrics == ["diversity", "duplicates", "label_accuracy", *(f"label_accuracy_{d}" for d in range(10))]
    assert all("64 drawn digits of 28 px; told the test split's digits" in row.protocol for row in rows)
    assert all(row.variant == "300 digits of MNIST, 28 px" for row in rows)
    share = {row.metric: row.value for row in rows}
    digits = torch.arange(64) % 10
    per_digit = [share[f"label_accuracy_{digit}"] for digit in digits.tolist()]
    assert share["label_accuracy"] == pytest.approx(np.mean(per_digit))


@pytest.mark.parametrize(
    ("changes", "cell"),
    [
        ({"model__conditional": False, "optim__ema": 0.0}, "dcgan"),
        ({"model__conditional": False}, "dcgan-ema"),
        ({}, "conditional"),
        ({"table": "options", "optim__r1": 0.2, "model__norm": "spectral"}, "spectral+ema+r1"),
        ({"table": "options", "optim__ema": 0.0}, "plain"),
        ({"table": "sizes"}, "28px-z16"),
    ],
)
def test_the_place_in_a_table(changes: dict[str, Any], cell: str) -> None:
    assert task(**changes).cell() == cell


def test_real_digits_are_what_they_are_and_all_are_varied() -> None:
    """The measures of a perfect generator: real test digits in its place."""
    built = task()
    images, labels = built.split("test")
    assert (classify(images) == labels).float().mean() >= 0.98
    found = built.variety(images, labels, "test")
    assert found.ratio == pytest.approx(1)
    assert not found.collapsed


def test_the_classifier_says_how_good_it_is() -> None:
    path = Path(study.__file__).parent / "judge" / "classifier.safetensors"
    _, header = read_weights(path, study="dcgan")
    assert header.extra["test_accuracy"] >= 99.3
    assert not shipped().training


@pytest.mark.real_data
def test_the_classifier_is_as_good_as_it_says(real_mnist: Path) -> None:
    images, labels = mnist.load("test")
    _, header = read_weights(Path(study.__file__).parent / "judge" / "classifier.safetensors", study="dcgan")
    assert 100 * (classify(images) == labels).double().mean() == pytest.approx(header.extra["test_accuracy"], abs=0.011)


def test_the_classifier_sees_both_sizes_alike() -> None:
    images, _ = mnist.sample("test")
    assert torch.equal(classify(images), classify(mnist.to_size(images, 32)))


def test_a_classifier_learns() -> None:
    images, labels = mnist.sample("train")
    network = train(images, labels, epochs=12, batch=24)
    assert (classify(mnist.sample("test")[0], network) == mnist.sample("test")[1]).float().mean() > 0.6


def test_bytes_and_pictures() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    assert torch.equal(to_bytes(scaled(images))[:, 0], images)
    assert to_bytes(torch.tensor([[[[-3.0, 3.0]]]])).tolist() == [[[[0, 255]]]]


def test_a_sheet() -> None:
    page = sheet(torch.full((5, 2, 3), 9, dtype=torch.uint8), 3, figures.LINE)
    assert page.shape == (2 * 3 - 1, 3 * 4 - 1)
    assert (page[:2, :3] == 9).all()
    assert (page[2] == 96).all()
    assert (page[3:, 8:] == 96).all(), "no sixth picture"


@pytest.mark.parametrize(
    ("setting", "value", "fault"),
    [
        ("model.size", 30, "model.size must be 28 or 32"),
        ("model.noise", 0, "model.noise must be at least 1"),
        ("optim.lr", 0.0, "optim.lr must be above 0"),
        ("optim.ema", 1.0, "optim.ema must be 0 or more and below 1"),
        ("optim.r1", -1.0, "optim.r1 must be 0 or more"),
        ("batch.parts", 3, "batch.size must be a multiple of batch.parts"),
        ("batch.size", 1, "at least 2"),
        ("metric.samples", 9, "metric.samples must be at least 10"),
    ],
)
def test_settings_that_cannot_be(setting: str, value: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        override(smoke(), {setting: value})


def test_a_batch_larger_than_the_data() -> None:
    with pytest.raises(UserError, match="a batch of 512 is larger than the 240 training pictures"):
        task(batch__size=512).train_step(0)


# Predictions


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = task()
    run(built, range(10))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(path, built.exported, WeightsHeader("dcgan", to_dict(built.config), {}), half=True)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = task(model__conditional=False, optim__ema=0.0)
    path = tmp_path_factory.mktemp("weights") / "plain.safetensors"
    save_weights(path, built.modules, WeightsHeader("dcgan", to_dict(built.config), {}))
    return path


def predict(weights: Path, *words: str | Path) -> int:
    return main(["predict", str(weights), *map(str, words)])


def test_the_shipped_weights_draw_what_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shipped_weights = study.STUDY.shipped_weights
    assert shipped_weights is not None
    assert shipped_weights.stat().st_size < 3_000_000
    for digit in range(10):
        out = tmp_path / f"{digit}.npy"
        assert main(["predict", "dcgan", "--digit", str(digit), "--count", "200", "--output", str(out), "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["judged"], row["digits"]) == (200, str(digit))
        assert row["right"] >= 97
        # Not one picture over and over.
        assert diversity.measure(*(torch.from_numpy(np.load(out)).float()[i::2, None] for i in (0, 1))).duplicates < 0.1


def test_a_sheet_of_one_digit(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fours.png"
    assert predict(weights, "--digit", "4", "--count", "12", "--output", out, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["digits"] == "4"
    assert row["judged"] == row["count"] == 12
    assert pixels(out).shape == (3 * 29 - 1, 4 * 29 - 1)


@pytest.mark.parametrize("digit", range(10))
def test_every_digit_reaches_the_network(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digit: int
) -> None:
    """The nine too: none is left out at either end."""
    from etude.studies.dcgan import model

    seen: list[int] = []
    forward = model.Generator.forward

    def spied(self: model.Generator, z_NZ: Tensor, labels_N: Tensor | None = None) -> Tensor:
        assert labels_N is not None
        seen.extend(labels_N.tolist())
        return forward(self, z_NZ, labels_N)

    monkeypatch.setattr(model.Generator, "forward", spied)
    assert predict(weights, "--digit", digit, "--count", 5, "--output", tmp_path / "out.npy") == 0
    assert seen == [digit] * 5


def test_files_and_arrays_hold_the_same_pictures(weights: Path, tmp_path: Path) -> None:
    assert predict(weights, "--count", "503", "--output", tmp_path / "all.npy") == 0
    assert predict(weights, "--count", "12", "--output", tmp_path / "few") == 0
    array = np.load(tmp_path / "all.npy")
    assert array.shape == (503, 28, 28)
    assert array.dtype == np.uint8
    files = sorted((tmp_path / "few").iterdir())
    assert [file.name for file in files] == [f"{number:02d}.png" for number in range(12)]
    for file, image in zip(files, array, strict=False):
        assert np.abs(pixels(file).astype(int) - image).max() <= 1
    assert predict(weights, "--count", "12", "--seed", "1", "--output", tmp_path / "other.npy") == 0
    assert (np.load(tmp_path / "other.npy") != array[:12]).any()


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--digit", "10"], "--digit must be between 0 and 9, not 10"),
        (["--digit", "-1"], "--digit must be between 0 and 9, not -1"),
        (["--count", "0"], "--count must be at least 1, not 0"),
        (["--count", "-5"], "--count must be at least 1"),
        (["--count", "10000000"], "a sheet has at most 10,000 pictures, not 10,000,000: give --output digits.npy"),
        (["--count", "10000000", "--output", "here"], "a folder takes at most 1,000,000 files"),
        (["--count", "10000000000000", "--output", "x.npy"], "GiB are free: give a smaller --count"),
        (["--output", "x.gif"], "--output must be a .png, a .npy or a folder"),
        (["--columns", "-1"], "--columns must be 0 or more"),
        ([__file__], "a generator takes no input"),
        (["--output", "there.png"], "there.png exists"),
        (["--output", "full"], "full is not empty"),
        (["--output", "there.png/below.png"], "cannot write"),
    ],
)
def test_words_that_cannot_be(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], fault: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("there.png").write_text("mine")
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert predict(weights, *words) == 2
    said = capsys.readouterr().err
    assert fault in said
    assert said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert Path("there.png").read_text() == "mine"


def test_memory_does_not_grow_with_the_count(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are written as they come: never more than one is alive."""
    import gc
    import weakref

    from etude.studies.dcgan import predict as module

    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def counted(images: Tensor) -> Tensor:
        nonlocal most
        made = to_bytes(images)
        alive.append(weakref.ref(made))
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
        return made

    monkeypatch.setattr(module, "to_bytes", counted)
    monkeypatch.setattr(module, "_BATCH", 50)
    assert predict(weights, "--count", "1000", "--output", tmp_path / "out.npy") == 0
    assert len(alive) == 20
    assert most <= 2


def test_a_plain_network_knows_no_digits(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(plain, "--digit", "4") == 2
    assert "draws whatever comes: --digit needs a conditional one" in capsys.readouterr().err
    assert predict(plain, "--count", "3", "--output", tmp_path / "x.png", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["digits"] == "any"
    assert row["right"] is None


def test_weights_of_another_size_are_refused(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, header = read_weights(weights)
    config = dataclasses.replace(smoke(), model=dataclasses.replace(smoke().model, size=32, width=16))
    other = DCGANTask(config, Runtime(config.loop, 0))
    wrong = tmp_path / "wrong.safetensors"
    save_weights(wrong, other.exported, WeightsHeader("dcgan", header.config, {}))
    assert predict(wrong, "--output", tmp_path / "x.png") == 2
    said = capsys.readouterr().err
    assert "does not fit the network" in said
    assert said.count("\n") == 1
    judge = Path(study.__file__).parent / "judge" / "classifier.safetensors"
    assert predict(judge, "--output", tmp_path / "x.png") == 2
    assert "holds no generator" in capsys.readouterr().err


def test_losses_are_the_ones_named() -> None:
    """The logged losses are those of the first step's pictures, the generator's by the discriminator's new weights."""
    built, twin = task(model__conditional=False), task(model__conditional=False)
    (row,) = run(built, range(1))
    real = scaled(twin.split("train")[0][twin.batch_rows(0)])
    fake = twin.generator(twin.noise(32, "train/noise", 0))
    on_real, on_fake = twin.discriminator(real), twin.discriminator(fake)
    assert row["discriminator"] == pytest.approx(discriminator_loss("vanilla", on_real, on_fake).item(), rel=1e-4)
    assert row["logit_real"] == pytest.approx(on_real.mean().item(), rel=1e-3, abs=1e-4)
    discriminator_loss("vanilla", on_real, on_fake).backward()
    twin.optimizers["discriminator"].step()
    again = twin.generator(twin.noise(32, "train/noise", 0))
    assert row["generator"] == pytest.approx(generator_loss("vanilla", twin.discriminator(again)).item(), rel=1e-3)
    assert row["loss"] == pytest.approx(row["discriminator"] + row["generator"])
