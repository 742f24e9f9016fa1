"""Objects found in pictures, pictures drawn again, changed and composed; one line for every fault."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.studies.predicting import answers, call, files, photo, refused
from tests.studies.resnet.common import BROKEN, ODD, pixels
from tests.studies.slotdiffusion.predict_common import (
    SIDE,
    K,
    S,
    assert_close,
    found_in,
    networks,
    painted,
    painter,
    saved,
    settings,
    slots_file,
)
from tests.studies.slots import common as slots_study

from etude.cli.app import main
from etude.core.checkpoint import WeightsHeader, save_weights
from etude.core.config import to_dict
from etude.nn.pixels import to_bytes
from etude.scenes import prediction
from etude.studies.slotdiffusion import figures
from etude.studies.slotdiffusion import predict as module
from etude.studies.slotdiffusion.predict import Options, Prediction, predict, tell
from etude.studies.slotdiffusion.samplers import draw, image_generators
from etude.studies.slotdiffusion.vae import VAE


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "slots.safetensors"
    slots_file(path)
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def colours(path: str) -> int:
    values = pixels(path)
    return len(np.unique(values.reshape(-1, values.shape[-1]), axis=0))


def forgetful(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Memory for so many pictures at a time; how many were asked for each time."""
    asked: list[int] = []
    decode: Callable[..., Any] = VAE.decode

    def narrow(self: VAE, z_BDhw: torch.Tensor, **options: bool) -> torch.Tensor:
        asked.append(len(z_BDhw))
        if len(z_BDhw) > most:
            raise RuntimeError("CUDA out of memory")
        return decode(self, z_BDhw, **options)

    monkeypatch.setattr(VAE, "decode", narrow)
    return asked


# --- finding ---


def test_objects_of_a_picture(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = photo("a.png")
    (row,) = answers(capsys, weights, path, "--output", "out")
    assert (row["image"], row["output"]) == ("a.png", "out/a-slots.png")
    assert set(files("out")) == {"a-slots.png", "a-mask.png", "a-again.png"}
    slots, segments = found_in([path])
    mask = pixels("out/a-mask.png")
    assert (mask.shape, mask.dtype) == ((SIDE, SIDE), np.uint8)
    assert np.array_equal(mask, segments[0].numpy())
    assert set(np.unique(mask)) == {*range(K)}, "these slots share the picture"
    counts = np.bincount(mask.ravel(), minlength=K) / mask.size
    assert row["shares"] == {str(slot): pytest.approx(counts[slot]) for slot in range(K)}
    assert sum(row["shares"].values()) == pytest.approx(1)
    assert list(row["shares"].values()) == sorted(row["shares"].values(), reverse=True)
    assert row["slots"] == K
    again = pixels("out/a-again.png")
    assert_close("out/a-again.png", painted(slots[0]))
    off = np.square((again.astype(float) - pixels(path)) / 255).sum()
    assert row["mse"] == pytest.approx(off, rel=1e-4)
    sheet = pixels("out/a-slots.png")
    assert sheet.shape[1] > 2 * sheet.shape[0], "a row: the picture, what is drawn of it, three slots"
    assert colours("out/a-slots.png") > 50


def test_slots_matter_to_what_is_drawn() -> None:
    """Else the other tests would say nothing."""
    slots, _ = found_in([photo("a.png"), photo("b.png", 1)])
    one = painted(slots[0]).astype(int)
    for other in (slots[1], slots[0][:2], slots[0][1:]):
        assert np.abs(painted(other) - one).max() > 5


def test_it_is_told_to_people(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(weights, photo("a.png"), "--output", "out") == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "a.png -> out/a-slots.png (3 slots: slot 1 73 %, slot 0 21 %, slot 2 6 %, squared error " in said
    assert call(weights, "a.png", "--output", "edited", "--edit", "delete:0") == 0
    assert capsys.readouterr().out == "a.png -> edited/a-edited.png\na.png -> edited/edit.png\n"
    assert tell([]) == ""
    assert tell([Prediction("a\nb.png", "out")]) == "'a\\nb.png' -> out"


def test_the_study_may_be_named(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = photo("a.png")
    assert main(["predict", "slotdiffusion", str(weights), str(path), "--output", "named"]) == 0
    assert call(weights, path, "--output", "unnamed") == 0
    assert files("named") == files("unnamed")
    capsys.readouterr()


def test_a_folder_and_a_picture(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """More than one batch, in order; a picture's answer does not depend on what is beside it."""
    monkeypatch.setattr(prediction, "BATCH", 3)
    Path("in").mkdir()
    for number in range(4):
        photo(f"in/{number:02d}.png", number)
    Path("in/notes.txt").touch()
    rows = answers(capsys, weights, photo("first.png", 50), "in", "--output", "out")
    assert [row["image"] for row in rows] == ["first.png", *(f"in/{number:02d}.png" for number in range(4))]
    assert len(files("out")) == 15
    (alone,) = answers(capsys, weights, "in/03.png", "--output", "alone")
    assert np.array_equal(pixels("alone/03-mask.png"), pixels("out/03-mask.png"))
    assert_close("alone/03-again.png", pixels("out/03-again.png"))
    assert alone["mse"] == pytest.approx(rows[-1]["mse"], rel=1e-2)
    assert alone["shares"] == rows[-1]["shares"]


def test_pictures_are_cut_as_in_training(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The middle square of four fifths of the shorter side; pictures of every kind."""
    wide = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    Path("in").mkdir()
    Image.fromarray(wide).save("in/a-wide.png")
    Image.fromarray(wide[2:18, 12:28]).save("in/b-cut.png")
    for name, write in ODD.items():
        if name != "one.png":
            write(Path("in") / name)
    one, two, *rest = answers(capsys, weights, "in", "--output", "out")
    assert len(rest) == len(ODD) - 1
    rows = {Path(row["image"]).name: row for row in (one, two, *rest)}
    assert np.array_equal(pixels("out/a-wide-mask.png"), pixels("out/b-cut-mask.png"))
    assert rows["a-wide.png"]["mse"] == pytest.approx(rows["b-cut.png"]["mse"], rel=1e-4)


def test_the_seed_is_of_slots_and_noise(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = photo("a.png")
    rows = [
        answers(capsys, weights, path, "--output", name, "--seed", seed)[0]
        for name, seed in (("one", 3), ("two", 3), ("other", 4))
    ]
    assert files("one") == files("two")
    assert rows[0]["mse"] == rows[1]["mse"] != rows[2]["mse"]
    slots, segments = found_in([path], seed=4)
    assert np.array_equal(pixels("other/a-mask.png"), segments[0].numpy())
    assert_close("other/a-again.png", painted(slots[0], seed=4))


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_broken_pictures(weights: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    write, says = BROKEN[name]
    write(Path(name))
    refused(capsys, weights, name, "--output", "out", says=(name, says))


def test_pictures_that_cannot_be(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--output", "out")
    Image.new("RGB", (20, 20), (3, 4, 5)).save("flat.png")
    refused(capsys, weights, "flat.png", *out, says=("flat.png is of one colour",))
    Image.new("RGB", (1, 1)).save("dot.png")
    refused(capsys, weights, "dot.png", *out, says=("dot.png is of one colour",))
    refused(capsys, weights, "none.png", *out, says=("none.png does not exist",))
    photo("a.png")
    refused(capsys, weights, "x" * 300, *out, says=("cannot be read",))
    refused(capsys, weights, "a.png", *out, "--max-pixels", 100, says=("a.png is 16 x 16 pixels, more than 100",))
    refused(capsys, weights, *out, says=("no pictures", "--compose"))
    Path("empty").mkdir()
    refused(capsys, weights, "empty", *out, says=("empty holds no image",))
    photo("a.jpg", 1)
    refused(capsys, weights, "a.png", "a.jpg", *out, says=("would both write a-slots.png",))
    refused(capsys, weights, "a.png", "a.png", *out, says=("a.png is named twice",))
    Path("file").touch()
    refused(capsys, weights, "a.png", "--output", "file", says=("file",))


@pytest.mark.parametrize("which", ["a-slots.png", "a-mask.png", "a-again.png", "a-denoising.png"])
def test_results_are_not_written_over(weights: Path, capsys: pytest.CaptureFixture[str], which: str) -> None:
    path = photo("a.png")
    Path("out").mkdir()
    (Path("out") / which).write_text("mine")
    words = (path, "--output", "out", "--denoising")
    refused(capsys, weights, *words, says=(f"out/{which} exists", "--force"))
    # A fault of the first leaves all as it was.
    Path("b.png").write_text("no picture")
    refused(capsys, weights, "b.png", *words, "--force", says=("b.png",))
    assert call(weights, *words, "--force") == 0
    assert pixels(f"out/{which}").size


def test_a_result_never_lies_over_a_picture(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo("a.png")
    photo("a-denoising.png", 1)
    words = ("a.png", "a-denoising.png", "--output", ".", "--denoising", "--force")
    refused(capsys, weights, *words, says=("a-denoising.png would be written over the picture itself",))


# --- how it is drawn ---


def test_denoising(weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the first picture, and it ends at what is drawn of it."""
    paths = [photo("a.png"), photo("b.png", 1)]
    rows = answers(capsys, weights, *paths, "--output", "out", "--denoising", "--steps", 4)
    assert [row["output"] for row in rows] == ["out/a-slots.png", "out/b-slots.png", "out/a-denoising.png"]
    assert rows[2]["image"] == "a.png"
    assert {rows[2][name] for name in ("slots", "shares", "mse")} == {None}
    assert colours("out/a-denoising.png") > 50
    seen: list[Any] = []
    monkeypatch.setattr(figures, "denoising", lambda to, *given: (seen.append(given), photo(str(to)))[1])
    assert call(weights, *paths, "--output", "again", "--denoising", "--steps", 4) == 0
    ((title, drawing, slots, stream),) = seen
    assert "dpm-solver++, 4 steps" in title
    noisy, clean = figures.moments(drawing, slots, stream)
    assert len(noisy) == len(clean) == 4
    assert_close("again/a-again.png", noisy[-1].numpy())


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (("--sampler", "ddim"), {"sample__sampler": "ddim"}),
        (("--sampler", "ancestral", "--steps", "10"), {"sample__sampler": "ancestral", "sample__steps": 10}),
        (("--steps", "1"), {"sample__steps": 1}),
        (("--guidance", "8"), {"sample__guidance": 8.0}),
        (("--guidance", "0"), {"sample__guidance": 0.0}),
    ],
)
def test_the_sampler_is_chosen(weights: Path, words: tuple[str, ...], changes: dict[str, Any]) -> None:
    path = photo("a.png")
    assert call(weights, path, "--output", "out", *words) == 0
    slots, _ = found_in([path])
    assert_close("out/a-again.png", painted(slots[0], **changes))
    assert np.abs(pixels("out/a-again.png").astype(int) - painted(slots[0])).max() > 1


def test_the_runs_own_sampler_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"sample__sampler": "ddim", "sample__steps": 2, "sample__guidance": 4.0}
    path = photo("a.png")
    assert call(saved(Path("own.safetensors"), **changes), path, "--output", "out") == 0
    assert_close("out/a-again.png", painted(found_in([path])[0][0], **changes))


MINE = """
def idle(predict, schedule, z_BX, generators, *, steps, on_step=None):
    for step in range(steps):
        on_step and on_step(step + 1, steps, z_BX, z_BX)
    return z_BX

def silent(predict, schedule, z_BX, generators, *, steps, on_step=None):
    return z_BX

def wrong(predict, schedule, z_BX, generators, *, steps, on_step=None):
    return z_BX[:1]
"""


def test_a_sampler_of_ones_own(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that leaves the noise as it is."""
    Path("mine.py").write_text(MINE)
    assert call(weights, photo("a.png"), "--output", "out", "--sampler", "mine.py:idle", "--denoising") == 0
    model, vae = networks()
    noise = draw(image_generators(0, "predict/paint", slice(0, 1)), (3, SIDE // 2, SIDE // 2))
    with torch.no_grad():
        assert_close("out/a-again.png", to_bytes(vae.decode(noise / model.scale))[0].numpy())
    out = ("a.png", "--output", "none", "--sampler")
    refused(capsys, weights, *out, "mine.py:wrong", says=("the sampler mine.py:wrong must map latents",))
    refused(capsys, weights, *out, "mine.py:silent", says=("the sampler mine.py:silent", "on_step"))
    refused(capsys, weights, *out, "mine.py:idel", says=("has no 'idel'; did you mean 'idle'",))
    refused(capsys, weights, *out, "none.py:idle", says=("no file none.py",))


def test_samplers_that_cannot_be(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (photo("a.png"), "--output", "out")
    for steps in (0, -1, 11):
        says = (f"cannot sample in {steps} steps: give 1 to 10",)
        refused(capsys, weights, *words, "--steps", steps, says=says)
    refused(capsys, weights, *words, "--sampler", "ddmi", says=("no sampler 'ddmi'; did you mean 'ddim'",))
    refused(capsys, weights, *words, "--guidance", -1, says=("--guidance must be 0 or more, not -1",))
    refused(capsys, weights, *words, "--guidance", "nan", says=("--guidance must be 0 or more, not nan",))
    refused(capsys, weights, *words, "--guidance", "1e38", says=("not finite", "less guidance"))


def test_guidance_wants_a_model_that_went_without_slots(capsys: pytest.CaptureFixture[str]) -> None:
    plain = saved(Path("plain.safetensors"), optim__drop=0.0)
    words = (photo("a.png"), "--output", "out", "--guidance")
    for weight in (0, 2):
        says = (f"--guidance {weight}: this model never went without slots", "give 1")
        refused(capsys, plain, *words, weight, says=says)
    refused(capsys, plain, *words, -2, says=("--guidance must be 0 or more, not -2",))
    assert call(plain, *words, 1) == 0


def test_memory_that_does_not_suffice(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fewer pictures at a time make the same ones."""
    paths = [photo(f"{number}.png", number) for number in range(5)]
    assert call(weights, *paths, "--output", "whole") == 0
    asked = forgetful(monkeypatch, 1)
    assert call(weights, *paths, "--output", "halved") == 0
    assert asked == [5, 2, 1, 1, 1, 1, 1]
    for path in paths:
        assert_close(f"halved/{path.stem}-again.png", pixels(f"whole/{path.stem}-again.png"))
    forgetful(monkeypatch, 0)
    words = ("0.png", "--output", "halved", "--force")
    refused(capsys, weights, *words, says=("not enough memory to sample a single image",))


# --- weights ---


def test_weights_of_other_kinds(weights: Path, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (photo("a.png"), "--output", "out")
    refused(capsys, library, *words, says=("is a slot library, not a network", "--library"))
    model, vae = networks()
    for config, modules, says in (
        (settings(phase="vae", vae__weights=""), {"vae": vae}, ("is an autoencoder alone", "--vae.weights")),
        (settings(model__slot_size=6), {"model": model, "vae": vae}, ("does not fit the network 'model'",)),
        (settings(vae__width=8), {"model": model, "vae": vae}, ("does not fit the network 'vae'",)),
        (settings(), {"model": model}, ("does not fit the network 'vae'",)),
    ):
        path = Path("other.safetensors")
        save_weights(path, modules, WeightsHeader("slotdiffusion", to_dict(config), {}))
        refused(capsys, path, *words, says=("other.safetensors", *says))
    slots_study.saved(path)
    refused(capsys, Path("slotdiffusion"), path, *words, says=("other.safetensors is of the study 'slots'",))
    path.write_bytes(weights.read_bytes()[:-40])
    refused(capsys, path, *words, says=("other.safetensors is truncated",))


def test_weights_of_another_study_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the study is not asked first."""
    path = slots_study.saved(Path("slots.safetensors"))
    with pytest.raises(ValueError, match="is a checkpoint of the study 'slots', not of 'slotdiffusion'"):
        predict(path, None, Options(inputs=(photo("a.png"),)))


@pytest.mark.parametrize("changes", [{}, {"vae__kind": "vq", "vae__codes": 16}, {"model__init": "bilevel"}])
def test_weights_in_half_precision(changes: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """As they ship; latents of codes too, and slots whose start is learned."""
    path = photo("a.png")
    model, vae = networks(**changes)
    header = WeightsHeader("slotdiffusion", to_dict(settings(**changes)), {})
    errors = []
    for half in (False, True):
        at = Path(f"{half}.safetensors")
        save_weights(at, {"model": model, "vae": vae}, header, half=half)
        errors.append(answers(capsys, at, path, "--output", str(half))[0]["mse"])
    assert errors[0] == pytest.approx(errors[1], rel=0.05)
    assert_close("False/a-again.png", painted(found_in([path], **changes)[0][0], **changes))


# --- editing ---


def test_edits_of_two_pictures(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [photo("a.png"), photo("b.png", 1)]
    rows = answers(capsys, weights, *paths, "--output", "out", "--edit", "swap:0:2", "move:1")
    assert [row["output"] for row in rows] == ["out/a-edited.png", "out/b-edited.png", "out/edit.png"]
    assert [row["image"] for row in rows] == ["a.png", "b.png", "a.png + b.png"]
    assert set(files("out")) == {"a-edited.png", "b-edited.png", "edit.png"}
    (left, right), _ = found_in(paths)
    assert_close("out/a-edited.png", painted(torch.stack([left[2], right[2]])))
    assert_close("out/b-edited.png", painted(torch.stack([right[0], right[1], left[0], left[1]])))
    assert colours("out/edit.png") > 50


def test_an_edit_of_one_picture(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = photo("a.png")
    rows = answers(capsys, weights, path, "--output", "out", "--edit", "delete:1", "--sampler", "ddim")
    assert [row["output"] for row in rows] == ["out/a-edited.png", "out/edit.png"]
    (slots,), _ = found_in([path])
    assert_close("out/a-edited.png", painted(slots[[0, 2]], sample__sampler="ddim"))


def test_edits_that_nobody_named(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one picture each object is taken out in turn, and of two the largest objects are swapped."""
    paths = [photo("a.png"), photo("b.png", 1)]
    (a, b), segments = found_in(paths)
    order_a, order_b = (part.flatten().bincount(minlength=K).argsort(descending=True).tolist() for part in segments)
    seen: list[Any] = []
    grid = prediction.grid
    monkeypatch.setattr(
        prediction, "grid", lambda to, rows, titles: (seen.append((rows, titles)), grid(to, rows, titles))
    )
    assert call(weights, paths[0], "--output", "one", "--edit") == 0
    ((rows, titles),) = seen
    assert titles == ["picture", "noise + slots", "slots", *(f"without {slot}" for slot in order_a[1:])]
    shown = rows[0][1]
    assert np.array_equal(shown[0], pixels("a.png"))
    for picture, kept in zip(shown[3:], ([1, 2], [0, 1]), strict=True):
        assert {*range(K)} - {*kept} <= {*order_a[1:]}
        assert np.abs(picture.astype(int) - painted(a[kept])).max() <= 1
    assert np.array_equal(pixels("one/a-edited.png"), shown[3]), "the first of them"
    assert call(weights, *paths, "--output", "two", "--edit") == 0
    assert seen[1][1][3:] == ["swapped"]
    mine, theirs = order_a[1], order_b[1]
    left = [*(a[slot] for slot in range(K) if slot != mine), b[theirs]]
    right = [*(b[slot] for slot in range(K) if slot != theirs), a[mine]]
    assert_close("two/a-edited.png", painted(torch.stack(left)))
    assert_close("two/b-edited.png", painted(torch.stack(right)))
    capsys.readouterr()


def test_nothing_to_edit_where_one_slot_has_all(capsys: pytest.CaptureFixture[str]) -> None:
    model, vae = networks()
    torch.nn.init.zeros_(model.encoder.attention.to_queries.weight)
    path = Path("one.safetensors")
    save_weights(path, {"model": model, "vae": vae}, WeightsHeader("slotdiffusion", to_dict(settings()), {}))
    a, b = photo("a.png"), photo("b.png", 1)
    for paths in ((a,), (a, b)):
        refused(capsys, path, *paths, "--output", "out", "--edit", says=("one slot has all",))
    assert call(path, a, "--output", "out", "--edit", "delete:2") == 0


def test_edits_that_cannot_be(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = (photo(f"{name}.png", seed) for seed, name in enumerate("abc"))
    out = ("--output", "out")
    refused(capsys, weights, a, *out, "--edit", "turn:1", says=("no edit 'turn:1'",))
    refused(capsys, weights, a, *out, "--edit", "delete:3", says=("delete:3: the slots are 0 to 2",))
    refused(capsys, weights, a, *out, "--edit", "move:1", says=("move:1 needs a second picture",))
    refused(capsys, weights, a, b, *out, "--edit", "swap:1:1", "move:1", says=("slot 1 was taken by an edit before",))
    refused(capsys, weights, a, *out, "--edit", "delete:0", "delete:1", "delete:2", says=("without a slot",))
    refused(capsys, weights, a, b, c, *out, "--edit", says=("--edit takes one picture or two, not 3",))
    refused(capsys, weights, *out, "--edit", "delete:1", says=("no pictures",))
    refused(capsys, weights, a, *out, "--edit", "delete:1", "--denoising", says=("--denoising",))
    Path("out").mkdir()
    for there in ("a-edited.png", "edit.png"):
        (Path("out") / there).write_text("mine")
        refused(capsys, weights, a, *out, "--edit", "delete:1", says=(f"out/{there} exists", "--force"))
        assert call(weights, a, *out, "--edit", "delete:1", "--force") == 0
        for path in Path("out").iterdir():
            path.unlink()


# --- composing ---


def test_compositions(
    weights: Path, library: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--compose", 5, "--library", library, "--output")
    (row,) = answers(capsys, weights, *words, "out")
    assert (row["image"], row["output"]) == ("5 compositions", "out/compositions.png")
    names = [f"{number:03d}.png" for number in range(5)]
    assert set(files("out")) == {*names, "compositions.png"}
    images = [pixels(f"out/{name}") for name in names]
    assert all((image.shape, image.dtype) == ((SIDE, SIDE, 3), np.uint8) for image in images)
    assert len({image.tobytes() for image in images}) == 5
    # Three beside each other, and two below.
    sheet = pixels("out/compositions.png")
    assert sheet.shape == (33, 50, 3)
    assert np.array_equal(sheet[17:, 17:33], images[4])
    assert call(weights, *words, "again") == 0
    assert files("again") == files("out")
    assert call(weights, *words, "other", "--seed", 1) == 0
    assert files("other")["000.png"] != files("out")["000.png"]
    # A picture's noise is its own, however many are drawn at a time.
    monkeypatch.setattr(module, "BATCH", 2)
    assert call(weights, *words, "parts") == 0
    for name, image in zip(names, images, strict=True):
        assert_close(f"parts/{name}", image)


def test_a_composition_is_a_slot_of_each_cluster(weights: Path) -> None:
    """With one slot a cluster they differ by their noise alone."""
    made = slots_file(Path("three.safetensors"), count=K)
    assert call(weights, "--compose", 2, "--library", "three.safetensors", "--output", "out") == 0
    for number in range(2):
        assert_close(f"out/{number:03d}.png", painted(made.probe, number=number))


@pytest.mark.parametrize(
    ("where", "library_at"),
    [
        ("run/checkpoints/step-00000004/weights.safetensors", "run/figures/library.safetensors"),
        ("run/weights.safetensors", "run/figures/library.safetensors"),
        ("weights/tiny.safetensors", "library/tiny.safetensors"),
    ],
)
def test_the_runs_own_library_is_found(
    where: str, library_at: str, library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(Path(where))
    words = ("--compose", 2, "--output")
    refused(capsys, path, *words, "out", says=("no slot library: name one with --library",))
    slots_file(Path(library_at))
    assert call(path, *words, "out") == 0
    assert call(path, *words, "named", "--library", library) == 0
    assert files("out") == files("named")


def test_libraries_that_cannot_be(weights: Path, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--compose", 3, "--output", "out", "--library")
    refused(capsys, weights, *words, "none.safetensors", says=("no weights file at none",))
    refused(capsys, weights, *words, weights, says=("holds a network, not a slot library",))
    vq = settings(phase="vae", vae__weights="", vae__kind="vq", vae__codes=16)
    autoencoder = {"vae": networks(vae__kind="vq", vae__codes=16)[1]}
    save_weights(Path("vq.safetensors"), autoencoder, WeightsHeader("slotdiffusion", to_dict(vq), {}))
    refused(capsys, weights, *words, "vq.safetensors", says=("vq.safetensors holds a network, not a slot library",))
    other_study = slots_study.build(slots_study.network(), torch.randn(20, S), 0)
    other_study.save(Path("slots.safetensors"), "slots", to_dict(slots_study.settings()))
    says = ("slots.safetensors is a checkpoint of the study 'slots', not of 'slotdiffusion'",)
    refused(capsys, weights, *words, "slots.safetensors", says=says)
    refused(capsys, library, *words, library, says=("is a slot library, not a network",))
    for name, seed, changes, what in (
        ("same", 2, {}, "its slots decode otherwise"),
        ("more", 0, {"model__num_slots": 4}, "num_slots 3, not 4"),
        ("long", 0, {"model__slot_size": 6}, "slot_size 8, not 6"),
        ("large", 0, {"model__size": 32}, "size 16, not 32"),
    ):
        other = saved(Path(f"{name}.safetensors"), seed, **changes)
        refused(capsys, other, *words, library, says=("is the slot library of another model", what))


def test_compositions_that_cannot_be(weights: Path, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_library = ("--library", library, "--output", "out")
    for count in (-1, 10_001):
        says = (f"--compose must be from 1 to 10,000, not {count}",)
        refused(capsys, weights, "--compose", count, *with_library, says=says)
    three = ("--compose", 3, *with_library)
    refused(capsys, weights, photo("a.png"), *three, says=("--compose takes its slots from a library",))
    refused(capsys, weights, "a.png", *with_library, says=("--library is for --compose",))
    refused(capsys, weights, *three, "--edit", "delete:1", says=("--edit changes pictures",))
    refused(capsys, weights, *three, "--denoising", says=("--denoising",))
    refused(capsys, weights, *three, "--steps", 0, says=("cannot sample in 0 steps",))
    Path("out").mkdir()
    for there in ("001.png", "compositions.png"):
        (Path("out") / there).write_text("mine")
        refused(capsys, weights, *three, says=(f"out/{there} exists", "--force"))
        assert call(weights, *three, "--force") == 0
        for path in Path("out").iterdir():
            path.unlink()


def test_options_as_arguments(weights: Path) -> None:
    photo("a.png")
    (row,) = predict(weights, None, Options(inputs=(Path("a.png"),), output=Path("out")))
    assert "a.png -> out/a-slots.png" in tell([row])
    assert painter().config.steps == 3
