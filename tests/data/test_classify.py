"""What every prediction of classes reads and writes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.studies.resnet.common import picture

from etude.core.errors import UserError
from etude.data import classify
from etude.data.picture_config import PictureConfig

WEIGHTS = Path("w.safetensors")


def test_classes_are_named_or_numbered() -> None:
    assert classify.class_names({"classes": ["a", "b"]}, 2, WEIGHTS) == ["a", "b"]
    assert classify.class_names({}, 3, WEIGHTS) == ["class 0", "class 1", "class 2"]
    with pytest.raises(UserError, match=r"^w.safetensors names 3 classes, and its network has 2$"):
        classify.class_names({"classes": ["a", "b", "c"]}, 2, WEIGHTS)


def test_predictions_by_hand() -> None:
    """The logits of .75 and .25, and of .1 and .9."""
    logits_NR = torch.tensor([[0.75, 0.25], [0.1, 0.9]]).log() + 5
    one, two = classify.predictions([Path("x.png"), Path("y.png")], logits_NR, ["a", "b"])
    assert (one.image, one.label, one.index) == ("x.png", "a", 0)
    assert (two.image, two.label, two.index) == ("y.png", "b", 1)
    assert one.probability == pytest.approx(0.75)
    assert two.probabilities == pytest.approx({"a": 0.1, "b": 0.9})


def test_half_precision_is_no_less_sure() -> None:
    (row,) = classify.predictions([Path("x.png")], torch.tensor([[0.0, 9.0]], dtype=torch.bfloat16), ["a", "b"])
    assert row.probability == pytest.approx(1 / (1 + np.exp(-9)), rel=1e-6)


def test_batches_have_all_pictures_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify, "_BATCH", 3)
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for number, path in enumerate(paths):
        Image.fromarray(np.full((12, 10, 3), 10 * number, np.uint8)).save(path)
    found = list(classify.batches(paths, PictureConfig(size=8), 10_000))
    assert [len(batch) for batch, _ in found] == [3, 3, 1]
    assert [path for batch, _ in found for path in batch] == paths
    images_NHWC = torch.cat([images for _, images in found])
    assert (images_NHWC.shape, images_NHWC.dtype) == ((7, 8, 8, 3), torch.uint8)
    assert images_NHWC[:, 0, 0, 0].tolist() == [10 * number for number in range(7)]


def test_a_batch_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="24 x 24 pixels, more than 100"):
        list(classify.batches([tmp_path / "x.png"], PictureConfig(size=8), 100))


def test_no_inputs_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pictures to classify"):
        classify.inputs([])
    with pytest.raises(UserError, match="holds no image"):
        classify.inputs([tmp_path])


def test_a_folder_is_its_pictures_by_name(tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        picture(1).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    assert classify.inputs([tmp_path, tmp_path / "b.png"]) == [tmp_path / name for name in ("a.png", "b.png", "b.png")]


@pytest.mark.parametrize(("indices", "text"), [(False, "b\na\n"), (True, "1\n0\n")])
def test_one_class_a_line(indices: bool, text: str, tmp_path: Path) -> None:
    answers = classify.predictions([Path("x"), Path("y")], torch.tensor([[0.0, 1.0], [1.0, 0.0]]), ["a", "b"])
    classify.write(tmp_path / "new" / "out.txt", answers, indices=indices)
    assert (tmp_path / "new" / "out.txt").read_text() == text
    classify.write(None, answers, indices=indices)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
