"""`etude predict` with a trained network of cells: one answer a picture in their order, every fault as one line."""

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
from tests.studies.darts import common
from tests.studies.predicting import six
from tests.studies.resnet.common import BROKEN, ODD, names_of, picture

from etude.core.checkpoint import WeightsHeader, save_weights
from etude.core.config import to_dict
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder
from etude.core.summary import chosen_weights
from etude.data import classify
from etude.runs.weights import load_trained
from etude.studies.darts.predict import Options, predict
from etude.studies.darts.retrain_task import RetrainTask

CLASSES = ["disc", "square", "triangle", "cross"]


@pytest.fixture(scope="module")
def task(retrained: Path) -> RetrainTask:
    """The finished run's network, with the chosen weights."""
    *_, found = load_trained(retrained)
    assert isinstance(found, RetrainTask)
    return found


@pytest.fixture
def pictures(tmp_path: Path, task: RetrainTask) -> Path:
    return six(tmp_path / "pictures", task.pictures.splits["test"].images_NHWC[::37])


def test_the_answers_are_those_of_the_run(retrained: Path, pictures: Path, task: RetrainTask, rows: Callable) -> None:
    found = rows("darts", retrained, pictures)
    assert names_of(found) == [f"{name}.png" for name in "abcdef"], "a folder by name"
    probability = task.logits(task.pictures.splits["test"].take(range(0, 200, 37))).softmax(1)
    for row, expected in zip(found, probability.flip(0), strict=True):
        assert list(row["probabilities"]) == CLASSES
        assert list(row["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
        assert row["index"] == int(expected.argmax())
        assert row["label"] == CLASSES[row["index"]]
        assert row["probability"] == max(row["probabilities"].values())
    # A network that answers one and the same would be in any order.
    assert len({row["probability"] for row in found}) == 6


def test_every_way_to_name_the_weights(
    retrained: Path, pictures: Path, rows: Callable, etude: Any, tmp_path: Path
) -> None:
    exported, exact = tmp_path / "half.safetensors", tmp_path / "exact.safetensors"
    for words in (("--out", exported), ("--out", exact, "--fp32")):
        assert etude("export", retrained, *words).status == 0
    expected = rows(retrained, pictures)
    assert rows(exact, pictures) == rows("darts", exact, pictures) == expected
    half = [row["probability"] for row in rows(exported, pictures)]
    assert half == pytest.approx([row["probability"] for row in expected], abs=0.02)
    # A checkpoint's file alone has no names of classes.
    bare = rows(chosen_weights(RunFolder.open(retrained)), pictures)
    assert [row["label"] for row in bare] == [f"class {row['index']}" for row in expected]


@pytest.mark.parametrize("genotype", ["darts-v1", "random-2"])
def test_the_cell_is_that_of_the_weights(genotype: str, pictures: Path, rows: Callable, tmp_path: Path) -> None:
    """Published, or drawn by the run's seed; nothing but the file says so."""
    task = common.make_retrain(genotype=genotype, seed=3, model__channels=2)
    path = tmp_path / "other.safetensors"
    header = WeightsHeader("darts", to_dict(task.config), {"classes": ["one", "two", "three", "four"]})
    save_weights(path, task.modules, header)
    images = torch.from_numpy(np.stack([np.array(Image.open(file)) for file in sorted(pictures.iterdir())]))
    logits_NR, _ = task.model.eval()(task.model.prepare(images))
    found = rows(path, pictures)
    assert [row["probability"] for row in found] == pytest.approx(logits_NR.softmax(1).amax(1).tolist(), abs=1e-5)
    assert {row["label"] for row in found} <= {"one", "two", "three", "four"}


def test_a_network_with_an_auxiliary_head(pictures: Path, rows: Callable, tmp_path: Path) -> None:
    """It travels with the weights, and says nothing."""
    changes: dict[str, Any] = {"retrain__auxiliary": 0.4, "data__size": 32, "batch__size": 4}
    task = common.make_retrain(**changes)
    path = tmp_path / "head.safetensors"
    save_weights(path, task.modules, WeightsHeader("darts", to_dict(task.config), {}))
    picture(1, 40, 32).save(tmp_path / "x.png")
    (row,) = rows(path, tmp_path / "x.png")
    ((_, image),) = classify.pixels([tmp_path / "x.png"], task.config.data, 10_000)
    images_NHWC = torch.from_numpy(image)[None]
    logits_NR, named = task.model.eval()(task.model.prepare(images_NHWC))
    assert set(named) == {"features"}
    assert row["probability"] == pytest.approx(logits_NR.softmax(1).max().item(), abs=1e-5)


def test_inputs_keep_their_order_over_batches(
    retrained: Path, pictures: Path, rows: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = {Path(row["image"]).name: row for row in rows(retrained, pictures)}
    monkeypatch.setattr(classify, "_BATCH", 3)
    out = tmp_path / "new" / "answers.txt"
    found = rows(retrained, pictures / "e.png", pictures, pictures / "b.png", "--output", out)
    assert names_of(found) == ["e.png", *(f"{name}.png" for name in "abcdef"), "b.png"]
    for row in found:
        assert row["probability"] == pytest.approx(expected[Path(row["image"]).name]["probability"], abs=1e-5)
    assert out.read_text() == "".join(f"{row['label']}\n" for row in found)
    rows(retrained, pictures, "--output", out, "--indices")
    assert out.read_text() == "".join(f"{row['index']}\n" for row in found[1:-1])


def test_odd_pictures_have_an_answer(retrained: Path, rows: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name, make in ODD.items():
        make(folder / name)
    found = rows(retrained, folder)
    assert names_of(found) == sorted(ODD)
    assert all(np.isfinite(list(row["probabilities"].values())).all() for row in found)


# --- faults ---


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pictures_alone_are_one_line_and_nothing_is_written(
    retrained: Path, name: str, refused: Callable, tmp_path: Path
) -> None:
    make, fault = BROKEN[name]
    make(tmp_path / name)
    (tmp_path / "out.txt").write_text("older")
    refused("predict", retrained, tmp_path / name, "--output", tmp_path / "out.txt", says=(name, fault))
    assert (tmp_path / "out.txt").read_text() == "older"


def test_missing_inputs_are_one_line(retrained: Path, refused: Callable, here: Path) -> None:
    (here / "empty").mkdir()
    picture(1).save("x.png")
    for words, fault in (
        ((), "no pictures to classify"),
        (("none.png",), "none.png does not exist"),
        (("empty",), "empty holds no image"),
        (("x.png", "--output", "empty"), "cannot write empty"),
        (("x.png", "--max-pixels", "100"), "24 x 24 pixels, more than 100"),
        (("x.png", "--cam", "c"), "no flag --cam"),
    ):
        refused("predict", retrained, *words, says=(fault,))
    assert sorted(path.name for path in here.iterdir()) == ["empty", "x.png"]


def test_weights_that_do_not_fit_are_one_line(
    pictures: Path, task: RetrainTask, refused: Callable, tmp_path: Path
) -> None:
    config = to_dict(task.config)
    for name, (settings_, extra, fault) in {
        "cell": (config | {"genotype": "darts-v1"}, {}, "does not fit the network 'model'"),
        "none": (config | {"genotype": "darts-v9"}, {}, "no genotype darts-v9"),
        "size": (config | {"model": config["model"] | {"channels": 6}}, {}, "does not fit the network 'model'"),
        "layers": (config | {"model": config["model"] | {"layers": 1}}, {}, "model.layers must be at least 2"),
        "names": (config, {"classes": ["a", "b"]}, "names 2 classes, and its network has 4"),
    }.items():
        path = tmp_path / f"{name}.safetensors"
        save_weights(path, task.modules, WeightsHeader("darts", settings_, extra))
        refused("predict", path, pictures, says=(str(path), fault))


def test_weights_of_another_study_are_refused(retrained: Path, pictures: Path, refused: Callable) -> None:
    refused("predict", "resnet", retrained, pictures, says=("of the study 'darts', not of 'resnet'",))


def test_a_run_without_a_checkpoint_is_one_line(
    retrained: Path, pictures: Path, refused: Callable, tmp_path: Path
) -> None:
    run = shutil.copytree(retrained, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    refused("predict", run, pictures, says=("has no checkpoint yet", "etude resume"))


@settings(max_examples=15, deadline=None)
@given(st.binary(max_size=400), st.sampled_from(["png", "jpg", "gif", "bmp"]), st.booleans())
def test_any_bytes_are_answered_or_refused_in_one_line(
    retrained: Path, tmp_path_factory: pytest.TempPathFactory, body: bytes, kind: str, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / f"x.{kind}"
    picture(len(body), 9, 9).save(path)
    good = path.read_bytes()
    place = len(body) % len(good)
    path.write_bytes(good[:place] + body + (b"" if cut else good[place + len(body) :]))
    fault, probability = "", 0.0
    try:
        weights = chosen_weights(RunFolder.open(retrained))
        probability = predict(weights, None, Options(inputs=(path,)))[0].probability
    except UserError as error:
        fault = str(error)
    assert (path.name in fault and "\n" not in fault) if fault else 0.25 <= probability <= 1
