"""`etude eval NETWORK FOLDER`: a network is scored on data of a user's own that say what is right."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.cli.faults import fault

from etude.cli import main
from etude.data.cifar10 import sample_folder
from etude.data.tiles import tiles


def _score(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["eval", *map(str, words), "--json"]) == status
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """The samples of CIFAR-10, one a class, each in its folder."""
    for path in sample_folder().glob("*.png"):
        to = tmp_path / "photos" / path.stem.upper() / path.name
        to.parent.mkdir(parents=True)
        shutil.copy(path, to)
    return tmp_path / "photos"


def test_a_folder_of_classes(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["predict", "resnet", *map(str, sorted(photos.rglob("*.png"))), "--json"]) == 0
    taken = json.loads(capsys.readouterr().out)
    right = [row["label"].casefold() == Path(row["image"]).stem.casefold() for row in taken]
    rows = {row["metric"]: row for row in _score(capsys, "resnet", photos)}
    assert rows["accuracy"]["value"] == pytest.approx(100 * np.mean(right))
    assert rows["accuracy"]["pictures"] == rows["accuracy"]["classes"] == len(right)
    assert 0 < rows["accuracy"]["half_width"] < 100
    first = next(photos.rglob("*.png"))
    first.write_bytes(first.read_bytes()[:80])
    refused = _score(capsys, "resnet", photos, status=1)
    assert refused[0]["pictures"] == len(right) - 1
    assert first.name in refused[-1]["input"]


def test_classes_that_the_network_does_not_know(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "CAT").rename(photos / "cathedral")
    said = fault(capsys, "eval", "resnet", str(photos))
    assert "cathedral" in said
    assert "rename" in said


def test_episodes_of_own_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Strokes of three directions, which any embedding tells apart."""
    draw = np.random.default_rng(0)
    for name, lines in (("across", (0, 1)), ("down", (1, 0)), ("dot", (0, 0))):
        (tmp_path / "signs" / name).mkdir(parents=True)
        for number in range(6):
            image = np.full((60, 60), 255, np.uint8)
            y, x = draw.integers(20, 30, 2)
            image[y : y + 6 + 25 * lines[0], x : x + 6 + 25 * lines[1]] = 0
            Image.fromarray(image).save(tmp_path / "signs" / name / f"{number}.png")
    words = ["protonet", tmp_path / "signs", "--ways", "3", "--shots", "1", "3", "--episodes", "50"]
    rows = _score(capsys, *words)
    assert [(row["way"], row["shot"], row["queries"], row["classes"]) for row in rows] == [(3, 1, 5, 3), (3, 3, 3, 3)]
    assert all(row["value"] > 90 for row in rows)
    assert rows == _score(capsys, *words)
    assert "--ways 4" in fault(capsys, "eval", "protonet", str(tmp_path / "signs"), "--ways", "4", "--shots", "1")
    assert "6 shots" in fault(capsys, "eval", "protonet", str(tmp_path / "signs"), "--ways", "3", "--shots", "6")


def test_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs").mkdir()
    for number, (photo, town) in enumerate(zip(*tiles(10, 64, 0), strict=True)):
        both = np.concatenate([photo.numpy(), town.numpy()], 1)
        Image.fromarray(both).save(tmp_path / "pairs" / f"{number:03d}.png")
    rows = {row["metric"]: row for row in _score(capsys, "pix2pix", tmp_path / "pairs")}
    assert rows["l1"]["pictures"] == 10
    assert 0 < rows["l1"]["half_width"] < rows["l1"]["value"] < 255


def test_a_study_that_scores_no_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "scores no data" in fault(capsys, "eval", "dcgan", str(tmp_path))
