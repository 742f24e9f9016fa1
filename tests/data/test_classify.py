"""What every prediction of classes reads and writes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.studies.resnet.common import picture

from etude.core.errors import Refused, UserError
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


class Brightness(torch.nn.Module):
    """Answers with a picture's first pixel."""

    def prepare(self, images_NHWC: torch.Tensor) -> torch.Tensor:
        assert images_NHWC.dtype == torch.uint8
        assert images_NHWC.shape[1:] == (8, 8, 3)
        assert 1 <= len(images_NHWC) <= 3
        return images_NHWC[:, 0, 0, 0].float()

    def forward(self, x_N: torch.Tensor) -> tuple[torch.Tensor, dict]:
        return torch.stack([x_N.log(), (255 - x_N).log()], 1), {}


def test_broken_pictures_take_no_others_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classify, "_BATCH", 3)
    network = classify.Network(Brightness(), SimpleNamespace(data=PictureConfig(size=8)), ["light", "dark"])
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    for number, path in enumerate(paths):
        Image.fromarray(np.full((12, 10, 3), 10 * number, np.uint8)).save(path)
    # A whole batch of broken ones, one among others, one missing.
    for number in (1, 3, 4, 5):
        paths[number].write_bytes(b"broken")
    paths.append(tmp_path / "gone.png")
    seen: list[Path] = []
    found = classify.classified(network, paths, 10_000, lambda batch, *_: seen.extend(batch))
    assert [isinstance(row, Refused) for row in found] == [n in (1, 3, 4, 5, 7) for n in range(8)]
    assert seen == [paths[n] for n in (0, 2, 6)]
    for number, row in enumerate(found):
        if isinstance(row, Refused):
            assert row.input == str(paths[number])
            assert paths[number].name in row.error
        else:
            assert row.probabilities["light"] == pytest.approx(10 * number / 255)
    out = tmp_path / "out.txt"
    classify.write(out, found, indices=False)
    assert out.read_text().split("\n") == ["dark", "", "dark", "", "", "", "dark", "", ""]
    with pytest.raises(UserError, match=r"12 pixels, more than 100.* \(and 2 more"):
        classify.classified(network, [paths[0], paths[2], paths[3]], 100)


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
