"""`etude predict` on a user's own pictures: one answer a picture in their order, and every fault as one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.studies.predicting import six
from tests.studies.resnet import common
from tests.studies.resnet.common import BROKEN, ODD, names_of, picture, pixels

from etude.core.checkpoint import WeightsHeader, save_weights
from etude.core.config import to_dict
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder
from etude.data.images import fitted, read_image
from etude.runs.weights import load_trained
from etude.studies.resnet.cam import GAP, beside_photo, overlay, package_cam
from etude.studies.resnet.predict import Options, predict
from etude.studies.resnet.task import ResNetTask

CLASSES = ["disc", "square", "triangle", "cross"]


@pytest.fixture(scope="module")
def task(finished: Path) -> ResNetTask:
    """The finished run's network, with the chosen weights."""
    *_, found = load_trained(finished)
    assert isinstance(found, ResNetTask)
    return found


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, task: ResNetTask) -> Path:
    return six(tmp_path_factory.mktemp("originals"), task.pictures.splits["test"].images_NHWC[::37])


@pytest.fixture
def pictures(originals: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return shutil.copytree(originals, tmp_path / "pictures")


# --- answers ---


def test_the_answers_are_those_of_the_run(finished: Path, pictures: Path, task: ResNetTask, rows: Callable) -> None:
    found = rows("resnet", finished, pictures)
    assert names_of(found) == [f"{name}.png" for name in "abcdef"], "a folder by name"
    test = task.pictures.splits["test"]
    probability = task.logits(test.take(range(0, 200, 37))).softmax(1)
    for row, expected in zip(found, probability.flip(0), strict=True):
        assert list(row["probabilities"]) == CLASSES
        assert list(row["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
        assert row["index"] == int(expected.argmax())
        assert row["label"] == CLASSES[row["index"]]
        assert row["probability"] == max(row["probabilities"].values())
    # A network that answers one and the same would be in any order.
    assert len({row["probability"] for row in found}) == 6


def test_every_way_to_name_the_weights(
    finished: Path, pictures: Path, rows: Callable, etude: Any, tmp_path: Path
) -> None:
    chosen = RunFolder.open(finished).checkpoints()
    best = chosen.path(chosen.best_step or 0) / "weights.safetensors"
    exported, exact = tmp_path / "half.safetensors", tmp_path / "exact.safetensors"
    for words in (("--out", exported), ("--out", exact, "--fp32")):
        assert etude("export", finished, *words).status == 0
    expected = rows(finished, pictures)
    assert rows("resnet", finished, pictures) == rows(exact, pictures) == expected
    assert rows("resnet", exact, pictures) == expected
    half = rows(exported, pictures)
    assert [row["label"] for row in half] == [row["label"] for row in expected]
    assert [row["probability"] for row in half] == pytest.approx([row["probability"] for row in expected], abs=0.02)
    # A checkpoint's file alone has no names of classes.
    bare = rows(best, pictures)
    assert [row["label"] for row in bare] == [f"class {row['index']}" for row in expected]
    assert [row["index"] for row in bare] == [row["index"] for row in expected]


def test_the_norm_and_n_are_those_of_the_checkpoint(pictures: Path, rows: Callable, tmp_path: Path) -> None:
    task = common.make(model__norm="gn", model__n=2, model__groups=2, model__shortcut="projection")
    path = tmp_path / "gn.safetensors"
    header = WeightsHeader("resnet", to_dict(task.config), {"classes": ["one", "two", "three", "four"]})
    save_weights(path, task.modules, header)
    images = torch.from_numpy(np.stack([pixels(file) for file in sorted(pictures.iterdir())]))
    logits, _ = task.model.eval()(task.model.prepare(images))
    found = rows(path, pictures)
    assert [row["probability"] for row in found] == pytest.approx(logits.softmax(1).amax(1).tolist(), abs=1e-5)
    assert {row["label"] for row in found} <= {"one", "two", "three", "four"}


def test_inputs_keep_their_order(finished: Path, pictures: Path, rows: Callable) -> None:
    expected = {Path(row["image"]).name: row for row in rows(finished, pictures)}
    found = rows(finished, pictures / "e.png", pictures, pictures / "b.png")
    assert names_of(found) == ["e.png", *(f"{name}.png" for name in "abcdef"), "b.png"]
    for row in found:
        assert row["probability"] == pytest.approx(expected[Path(row["image"]).name]["probability"], abs=1e-5)


def test_more_pictures_than_a_batch(
    finished: Path, pictures: Path, rows: Callable, monkeypatch: Any, tmp_path: Path
) -> None:
    expected = rows(finished, pictures, "--cam", tmp_path / "one")
    monkeypatch.setattr("etude.data.classify._BATCH", 4)
    found = rows(finished, pictures, "--cam", tmp_path / "two")
    assert names_of(found) == names_of(expected)
    assert [row["probability"] for row in found] == pytest.approx([row["probability"] for row in expected], abs=1e-5)
    overlays = [sorted((tmp_path / folder).iterdir()) for folder in ("one", "two")]
    assert len(overlays[0]) == 6
    for one, two in zip(*overlays, strict=True):
        assert one.name == two.name
        assert abs(pixels(one).astype(int) - pixels(two).astype(int)).max() <= 2


def test_one_line_a_picture_in_a_file(finished: Path, pictures: Path, rows: Callable, tmp_path: Path) -> None:
    out = tmp_path / "new" / "answers.txt"
    found = rows(finished, pictures / "c.png", pictures, "--output", out)
    assert out.read_text() == "".join(f"{row['label']}\n" for row in found)
    rows(finished, pictures, "--output", out, "--indices")
    assert out.read_text() == "".join(f"{row['index']}\n" for row in found[1:])


def test_a_table_for_eyes(finished: Path, pictures: Path, etude: Any) -> None:
    answer = etude("predict", finished, pictures)
    assert (answer.status, answer.err) == (0, "")
    header, *lines = answer.out.splitlines()
    assert header.split() == ["image", "label", "index", "probability"]
    assert len(lines) == 6


def test_help(etude: Any) -> None:
    answer = etude("predict", "resnet", "--help")
    assert answer.status == 0
    assert all(flag in answer.out for flag in ("--output", "--indices", "--cam", "--max-pixels"))


# --- overlays ---


def test_overlays_of_the_class_that_was_answered(
    finished: Path, pictures: Path, task: ResNetTask, rows: Callable, tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "cams"
    found = rows(finished, pictures, "--cam", folder)
    assert sorted(path.name for path in folder.iterdir()) == [f"{name}-cam.png" for name in "abcdef"]
    for row in found:
        image = pixels(row["image"])
        x_NCHW = task.model.prepare(torch.from_numpy(image)[None])
        cam = package_cam(task.model, x_NCHW, torch.tensor([row["index"]]))[0]
        shown = pixels(folder / f"{Path(row['image']).stem}-cam.png")
        assert shown.shape == (16, 2 * 16 + GAP, 3)
        assert np.array_equal(shown[:, :16], image)
        assert abs(shown[:, 16 + GAP :].astype(int) - overlay(image, cam).astype(int)).max() <= 2
    again = rows(finished, pictures, "--cam", folder)
    assert again == found, "a second time writes over its own"


def test_a_map_lies_on_the_square_that_the_network_saw() -> None:
    photo, cam = np.full((30, 50, 3), 100, np.uint8), np.zeros((8, 8), np.float32)
    cropped, whole = (beside_photo(photo, cam, fit)[:, 50 + GAP :] for fit in ("crop", "squash"))
    seen = (cropped != 100).any(2)
    assert seen[:, 10:40].all()
    assert not seen[:, :10].any()
    assert not seen[:, 40:].any()
    assert (whole != 100).any(2).all()


def test_overlays_of_one_name_are_refused(finished: Path, pictures: Path, refused: Callable, tmp_path: Path) -> None:
    (pictures / "other").mkdir()
    shutil.copy(pictures / "a.png", pictures / "other" / "a.jpg")
    out = tmp_path / "out.txt"
    words = ("predict", finished, pictures / "a.png", pictures / "other" / "a.jpg", "--output", out)
    refused(*words, "--cam", tmp_path / "cams", says=("a.png", "a.jpg", "would both write a-cam.png"))
    assert not out.exists()
    assert not (tmp_path / "cams").exists()


# --- pictures of every kind ---


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_have_an_answer(
    finished: Path, name: str, rows: Callable, task: ResNetTask, tmp_path: Path
) -> None:
    path = tmp_path / name
    ODD[name](path)
    (row,) = rows(finished, path)
    image = fitted(read_image(path, "RGB"), 16, "crop")
    logits, _ = task.model.eval()(task.model.prepare(torch.from_numpy(image)[None]))
    # A large JPEG may be read at a fraction of its size.
    assert row["probability"] == pytest.approx(logits.softmax(1).max().item(), abs=0.05)


def test_a_rotated_photo_stands_upright(finished: Path, rows: Callable, tmp_path: Path) -> None:
    ODD["rotated.jpg"](tmp_path / "rotated.jpg")
    lying = pixels(tmp_path / "rotated.jpg")
    Image.fromarray(lying).save(tmp_path / "lying.png")
    # The camera's mark says: a quarter turn clockwise.
    Image.fromarray(np.rot90(lying, -1)).save(tmp_path / "upright.png")
    found = rows(finished, *(tmp_path / name for name in ("rotated.jpg", "upright.png", "lying.png")))
    rotated, upright, turned = (row["probabilities"] for row in found)
    assert rotated == pytest.approx(upright, abs=1e-4)
    assert rotated != pytest.approx(turned, abs=1e-4)


def test_a_folder_of_all_of_them(finished: Path, rows: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name, make in ODD.items():
        make(folder / name)
    (folder / "notes.txt").write_text("passed over")
    found = rows(finished, folder, "--cam", tmp_path / "cams")
    assert names_of(found) == sorted(ODD)
    assert all(np.isfinite(list(row["probabilities"].values())).all() for row in found)
    for name in ODD:
        height, width = read_image(folder / name, "RGB").shape[:2]
        assert pixels(tmp_path / "cams" / f"{Path(name).stem}-cam.png").shape == (height, 2 * width + GAP, 3)


# --- faults ---


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("cam", [False, True])
def test_broken_pictures_alone_are_one_line_and_nothing_is_written(
    finished: Path, name: str, cam: bool, refused: Callable, tmp_path: Path
) -> None:
    make, fault = BROKEN[name]
    make(tmp_path / name)
    out, folder = tmp_path / "out.txt", tmp_path / "cams"
    out.write_text("older")
    words = ["predict", finished, tmp_path / name, "--output", out, *(("--cam", folder) if cam else ())]
    refused(*words, says=(name, fault))
    assert out.read_text() == "older"
    assert not folder.exists()


def test_broken_pictures_take_no_others_with_them(
    finished: Path, pictures: Path, rows: Callable, etude: Any, tmp_path: Path
) -> None:
    whole = rows(finished, pictures)
    (pictures / "c.png").write_bytes(b"broken")
    out, cams = tmp_path / "out.txt", tmp_path / "cams"
    answer = etude("predict", finished, pictures, "none.png", "--output", out, "--cam", cams, "--json")
    assert answer.status == 1
    assert [line.split()[1].rpartition("/")[2] for line in answer.err.splitlines()] == ["c.png", "none.png"]
    found = json.loads(answer.out)
    assert [set(row) == {"input", "error"} for row in found] == [False, False, True, False, False, False, True]
    kept = [row for row in found if "image" in row]
    others = [row for row in whole if not row["image"].endswith("c.png")]
    assert [row["probability"] for row in kept] == pytest.approx([row["probability"] for row in others], abs=1e-5)
    assert out.read_text() == "".join(f"{row.get('label', '')}\n" for row in found)
    assert sorted(path.name for path in cams.iterdir()) == [f"{name}-cam.png" for name in "abdef"]


def test_missing_inputs_are_one_line(finished: Path, refused: Callable, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    picture(1).save("x.png")
    for words, fault in (
        ((), "no pictures to classify"),
        (("none.png",), "none.png does not exist"),
        (("n" * 300,), "too long"),
        (("empty",), "empty holds no image"),
        (("file.txt",), "not an image of a known format"),
        (("x.png", "--cam", "file.txt"), "cannot write file.txt"),
        (("x.png", "--output", "empty"), "cannot write empty"),
        (("x.png", "--output", "."), "cannot write . "),
        (("x.png", "--output", "file.txt/out.txt"), "cannot write file.txt/out.txt"),
        (("x.png", "--max-pixels", "100"), "24 x 24 pixels, more than 100"),
        (("x.png", "--cams", "c"), "no flag --cams; did you mean '--cam'?"),
    ):
        refused("predict", finished, *words, says=(fault,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file.txt", "x.png"]


def test_overlays_that_cannot_be_written_leave_no_answers(finished: Path, refused: Callable, tmp_path: Path) -> None:
    picture(1).save(tmp_path / "x.png")
    (tmp_path / "taken").write_text("a file")
    refused(
        "predict", finished, tmp_path / "x.png", "--output", tmp_path / "out.txt", "--cam", tmp_path / "taken",
        says=("cannot write",),
    )  # fmt: skip
    assert not (tmp_path / "out.txt").exists()


def test_weights_of_another_study_are_refused(
    finished: Path, pictures: Path, refused: Callable, etude: Any, tmp_path: Path
) -> None:
    header = WeightsHeader("protonet", {}, {})
    other = tmp_path / "other.safetensors"
    save_weights(other, {"model": torch.nn.Linear(2, 2)}, header)
    refused("predict", "resnet", other, pictures, says=("of the study 'protonet', not of 'resnet'",))
    refused("predict", "protonet", finished, pictures, says=("of the study 'resnet', not of 'protonet'",))


def test_weights_that_do_not_fit_are_one_line(
    finished: Path, pictures: Path, task: ResNetTask, refused: Callable, tmp_path: Path
) -> None:
    config = to_dict(task.config)
    for name, (settings_, extra, fault) in {
        "norm": (config | {"model": config["model"] | {"norm": "none"}}, {}, "does not fit the network 'model'"),
        "r": (config | {"model": config["model"] | {"num_classes": 5}}, {}, "does not fit the network 'model'"),
        "n": (config | {"model": config["model"] | {"n": 0}}, {}, "model.n must be at least 1"),
        "names": (config, {"classes": ["a", "b"]}, "names 2 classes, and its network has 4"),
    }.items():
        path = tmp_path / f"{name}.safetensors"
        save_weights(path, task.modules, WeightsHeader("resnet", settings_, extra))
        refused("predict", path, pictures, says=(str(path), fault))


def test_a_run_without_a_checkpoint_is_one_line(
    finished: Path, pictures: Path, refused: Callable, tmp_path: Path
) -> None:
    run = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    refused("predict", "resnet", run, pictures, says=("has no checkpoint yet", "etude resume"))


# --- the module ---


def test_the_module_alone(finished: Path, pictures: Path) -> None:
    run = RunFolder.open(finished)
    weights = run.checkpoints().path(run.checkpoints().best_step or 0) / "weights.safetensors"
    found = predict(weights, {"classes": CLASSES}, Options(inputs=(pictures / "b.png", pictures)))
    assert [Path(row.image).name for row in found] == ["b.png", *(f"{name}.png" for name in "abcdef")]
    assert found[0].label in CLASSES
    with pytest.raises(UserError, match="no pictures to classify"):
        predict(weights, None, Options())


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["png", "jpg", "gif", "bmp", "tif", "webp"]), st.booleans())
def test_any_bytes_are_answered_or_refused_in_one_line(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, body: bytes, kind: str, cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / f"x.{kind}"
    picture(len(body), 9, 9).save(path)
    good = path.read_bytes()
    place = len(body) % len(good)
    path.write_bytes(good[:place] + body + (b"" if cut else good[place + len(body) :]))
    run = RunFolder.open(finished)
    weights = run.checkpoints().path(run.checkpoints().best_step or 0) / "weights.safetensors"
    fault, probability = "", 0.0
    try:
        probability = predict(weights, None, Options(inputs=(path,)))[0].probability
    except UserError as error:
        fault = str(error)
    assert (path.name in fault and "\n" not in fault) if fault else 0.25 <= probability <= 1
