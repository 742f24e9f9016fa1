"""The pictures of a configuration: every source, its splits, its classes, and what stands beside the numbers."""

import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.studies.resnet.common import class_folders, picture, zipped

from etude.core.config import from_dict
from etude.core.errors import UserError
from etude.data import cifar10
from etude.data.folders import INDIAN_BIRDS
from etude.data.images import fitted
from etude.data.labelled import LabelledImages
from etude.data.picture_config import PictureConfig
from etude.data.pictures import Pictures, averaged, load
from etude.data.shapes import CLASSES, shapes

BIRDS = {"crow": 10, "egret": 10, "myna": 15}


def config(folder: Path | str, **changes: Any) -> PictureConfig:
    return from_dict(PictureConfig, {"source": "folder", "folder": str(folder), "size": 8} | changes)


def members(found: Pictures) -> Mapping[str, set[str]]:
    return {split: set(images.names) for split, images in found.splits.items()}


def assert_disjoint(found: Pictures) -> None:
    for one, other in combinations(members(found).values(), 2):
        assert one.isdisjoint(other)


def one_line(caught: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


# --- generated ---


def test_the_embedded_twin() -> None:
    found = load(PictureConfig(source="generated", size=12), 3)
    assert found.classes == CLASSES[:3]
    assert found.about == "generated shapes, 12 px"
    for (split, images), (seed, each) in zip(found.splits.items(), enumerate((60, 25, 50)), strict=True):
        assert images.images_NHWC.shape == (3 * each, 12, 12, 3), split
        assert images.labels_N.bincount().tolist() == [each] * 3
        assert torch.equal(images.images_NHWC, shapes(3, each, size=12, seed=seed).images_NHWC)
    assert list(found.splits) == ["train", "val", "test"]
    rows = [{image.tobytes() for image in images.images_NHWC.numpy()} for images in found.splits.values()]
    assert all(one.isdisjoint(other) for one, other in combinations(rows, 2)), "no picture is in two splits"


def test_the_twin_has_no_more_than_25_classes() -> None:
    assert len(load(PictureConfig(source="generated", size=6), 25).classes) == 25
    with pytest.raises(UserError) as caught:
        load(PictureConfig(source="generated", size=6), 26)
    one_line(caught, "up to 25 classes", "--model.num-classes")


# --- folders ---


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "birds", BIRDS)


def test_a_folder_of_classes(birds: Path) -> None:
    found = load(config(birds), 3)
    assert found.classes == ("crow", "egret", "myna")
    assert found.about == "birds, 8 px"
    assert_disjoint(found)
    counts = {split: images.labels_N.bincount().tolist() for split, images in found.splits.items()}
    # A fifth of each class tests, a fifth validates.
    assert counts == {"train": [6, 6, 9], "val": [2, 2, 3], "test": [2, 2, 3]}
    for images in found.splits.values():
        for image, label, name in zip(images.images_NHWC, images.labels_N.tolist(), images.names, strict=True):
            assert name.split("/")[0] == found.classes[label]
            pixels = np.asarray(Image.open(birds / name).convert("RGB"))
            np.testing.assert_array_equal(image.numpy(), fitted(pixels, 8, "crop"))
    assert list(found.checksums) == ["birds"]
    assert len(found.checksums["birds"]) == 64


def test_a_zip_file_is_the_same_folder(birds: Path, tmp_path: Path) -> None:
    folder, archive = load(config(birds), 3), load(config(zipped(birds, tmp_path / "birds.zip")), 3)
    assert archive.about == "birds, 8 px"
    assert archive.checksums == folder.checksums
    assert members(archive) == members(folder)
    for split, images in folder.splits.items():
        assert torch.equal(archive.splits[split].images_NHWC, images.images_NHWC)
        assert torch.equal(archive.splits[split].labels_N, images.labels_N)


def test_a_folder_is_looked_for_in_the_mirror(birds: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path / "birds" / "crow")
    monkeypatch.setenv("ETUDE_MIRROR", str(tmp_path))
    assert load(config("birds"), 3).about == "birds, 8 px"


def test_the_folder_that_one_stands_in_has_a_name(birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(birds)
    assert load(config("."), 3).about == "birds, 8 px"


def test_shares_and_the_seed_of_the_split(birds: Path) -> None:
    half = load(config(birds, val_share=0.3, test_share=0.5), 3)
    assert [len(images) for images in half.splits.values()] == [7, 11, 17]
    other = load(config(birds, split_seed=1), 3)
    assert members(other) != members(load(config(birds), 3))
    assert members(other) == members(load(config(birds, split_seed=1), 3))


def test_what_has_its_own_folders_is_taken_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        class_folders(root, {"crow": count, "egret": count}, split)
    found = load(config(root), 2)
    assert members(found) == {
        split: {f"{split}/{name}/{i:02d}.png" for name in ("crow", "egret") for i in range(count)}
        for split, count in (("train", 5), ("val", 2), ("test", 3))
    }


def test_without_a_test_folder_a_share_of_train_tests(tmp_path: Path) -> None:
    """As the Indian birds come: validation is as given, and never the test."""
    root = tmp_path / "set"
    for split, count in (("train", 10), ("valid", 4)):
        class_folders(root, {"crow": count, "egret": count}, split)
    found = load(config(root), 2)
    assert_disjoint(found)
    assert all(name.startswith("valid/") for name in found.splits["val"].names)
    assert all(name.startswith("train/") for split in ("train", "test") for name in found.splits[split].names)
    assert [len(found.splits[split]) for split in ("train", "val", "test")] == [16, 8, 4]


def test_a_split_file_is_written_once_and_read_again(birds: Path, tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    first = load(config(birds, split_file=str(path)), 3)
    before = path.read_bytes()
    # Whatever the shares and the seed are now.
    again = load(config(birds, split_file=str(path), split_seed=5, val_share=0.4), 3)
    assert members(again) == members(first)
    assert path.read_bytes() == before
    table = json.loads(before)
    moved = table["splits"]["val"].pop()
    table["splits"]["train"].append(moved)
    path.write_text(json.dumps(table))
    by_hand = load(config(birds, split_file=str(path)), 3)
    assert moved in by_hand.splits["train"].names
    assert_disjoint(by_hand)


def test_squashed_pictures_show_all_of_them(tmp_path: Path) -> None:
    root = tmp_path / "wide"
    for name in ("left", "right"):
        (root / name).mkdir(parents=True)
        for index in range(3):
            pixels = np.zeros((8, 24, 3), np.uint8)
            pixels[:, :8] = 255
            pixels[0, 0] = index
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    cropped, squashed = (load(config(root, fit=fit), 2).splits["train"].images_NHWC for fit in ("crop", "squash"))
    assert cropped.max() == 0
    assert squashed[:, 4, 0].min() == 255


def test_the_25_indian_birds_are_recognised(tmp_path: Path) -> None:
    """However their names are written."""
    names = [name.replace("-", ("_", " ", "", "-")[i % 4]) for i, name in enumerate(INDIAN_BIRDS)]
    names[0] = names[0].upper()
    root = class_folders(tmp_path / "Birds_25", dict.fromkeys(names, 3))
    found = load(config(root), 25)
    assert found.about == "indian-birds, 8 px"
    assert list(found.checksums) == ["indian-birds"]
    # One more or less is another set.
    more = class_folders(tmp_path / "Birds_26", dict.fromkeys([*INDIAN_BIRDS, "Dodo"], 3))
    assert load(config(more), 26).about == "Birds_26, 8 px"
    fewer = class_folders(tmp_path / "Birds_24", dict.fromkeys(INDIAN_BIRDS[1:], 3))
    assert load(config(fewer), 24).about == "Birds_24, 8 px"


def test_another_number_of_classes_is_one_line(birds: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(config(birds), 10)
    one_line(caught, "birds, 8 px: 3 classes, and the network has 10", "--model.num-classes 3")


def test_broken_pictures_stop_or_are_left_out_on_request(birds: Path) -> None:
    (birds / "crow" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError) as caught:
        load(config(birds), 3)
    one_line(caught, "1 of 36 images cannot be read", "crow/broken.png", "--data.skip-corrupt")
    with pytest.warns(UserWarning, match=r"crow/broken\.png"):
        found = load(config(birds, skip_corrupt=True), 3)
    assert sum(map(len, found.splits.values())) == 35


# --- CIFAR-10 ---


@pytest.fixture
def small_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a per cent of it, under the same functions."""

    def read(split: str, seed: int) -> LabelledImages:
        count = {"train": 200, "test": 30}[split]
        draw = np.random.default_rng((seed, count))
        images = torch.from_numpy(draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
        return LabelledImages(images, torch.arange(count) % 10, cifar10.CLASSES, tuple(map(str, range(count))))

    train_val = cifar10.train_val
    monkeypatch.setattr(cifar10, "load", lambda split: read(split, 0))
    monkeypatch.setattr(cifar10, "load_jpeg", lambda split: read(split, 1))
    monkeypatch.setattr(cifar10, "checksums", lambda jpeg: {"file": "jpeg" if jpeg else "binary"})
    monkeypatch.setattr(cifar10, "train_val", lambda labels_N: train_val(labels_N, 20))


@pytest.mark.usefixtures("small_cifar")
@pytest.mark.parametrize(
    ("source", "seed", "about", "digest"),
    [
        ("cifar10", 0, "CIFAR-10", "binary"),
        ("cifar10-jpeg", 1, "CIFAR-10 as lossy JPEG copies (median 30.5 dB)", "jpeg"),
    ],
)
def test_cifar_validates_on_a_part_of_train(source: Any, seed: int, about: str, digest: str) -> None:
    found = load(PictureConfig(source=source), 10)
    assert (found.about, found.classes, found.checksums) == (about, cifar10.CLASSES, {"file": digest})
    assert {split: len(images) for split, images in found.splits.items()} == {"train": 180, "val": 20, "test": 30}
    assert found.splits["val"].labels_N.bincount().tolist() == [2] * 10
    assert set(found.splits["train"].names).isdisjoint(found.splits["val"].names)
    whole = np.random.default_rng((seed, 200)).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    for split in ("train", "val"):
        rows = [int(name) for name in found.splits[split].names]
        np.testing.assert_array_equal(found.splits[split].images_NHWC.numpy(), whole[rows])
    test = np.random.default_rng((seed, 30)).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(found.splits["test"].images_NHWC.numpy(), test)
    with pytest.raises(UserError) as caught:
        load(PictureConfig(source=source), 12)
    one_line(caught, "10 classes, and the network has 12", "--model.num-classes 10")


def test_cifar_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ETUDE_MIRROR", str(tmp_path))
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    for source, name in (("cifar10", "cifar-10-binary.tar.gz"), ("cifar10-jpeg", "cifar10_jpeg.npz")):
        with pytest.raises(UserError) as caught:
            load(from_dict(PictureConfig, {"source": source}), 10)
        one_line(caught, name)


@pytest.mark.real_data
def test_the_real_birds(real_birds: Path) -> None:
    found = load(PictureConfig(source="folder", folder=real_birds.name, size=16), 6)
    assert {split: len(images) for split, images in found.splits.items()} == {"train": 486, "val": 164, "test": 161}
    assert found.about == "birds6_224, 16 px"
    assert_disjoint(found)


# --- the classes of a Grad-CAM sheet ---


def test_pictures_are_of_one_colour_each() -> None:
    """The helper's pictures differ, else a split that mixes them up would pass."""
    assert len({picture(seed).tobytes() for seed in range(50)}) == 50


# --- smaller pictures ---


def of(images_NHWC: torch.Tensor) -> LabelledImages:
    num = len(images_NHWC)
    return LabelledImages(images_NHWC, torch.zeros(num, dtype=torch.int64), ("a",), tuple(map(str, range(num))))


def test_means_of_blocks_by_hand() -> None:
    """Of each colour by itself, rounded to the nearest."""
    one = torch.tensor([[0, 1, 10, 20], [2, 3, 30, 40], [255, 255, 0, 0], [255, 254, 0, 1]], dtype=torch.uint8)
    images = of(torch.stack([one, one.T, torch.zeros_like(one)], -1)[None])
    found = averaged(images, 2).images_NHWC
    assert (found.shape, found.dtype) == ((1, 2, 2, 3), torch.uint8)
    # 6 / 4 is as near to 1 as to 2, and goes to the even one.
    assert found[0, :, :, 0].tolist() == [[2, 25], [255, 0]]
    assert found[0, :, :, 1].tolist() == [[2, 255], [25, 0]]
    assert not found[..., 2].any()


@pytest.mark.parametrize("factor", [2, 4])
def test_means_of_many_pictures(factor: int) -> None:
    """More than are taken at a time."""
    draw = np.random.default_rng(0)
    images_NHWC = draw.integers(0, 256, (5003, 8, 8, 3), dtype=np.uint8)
    found = averaged(of(torch.from_numpy(images_NHWC)), factor)
    assert len(found) == 5003
    for row in (0, 4999, 5000, 5002):
        for y in range(8 // factor):
            for x in range(8 // factor):
                block = images_NHWC[row, y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
                mean = block.reshape(-1, 3).astype(np.float64).mean(0)
                assert found.images_NHWC[row, y, x].tolist() == np.round(mean).astype(int).tolist()


def test_a_factor_of_one_is_the_pictures() -> None:
    images = of(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
    assert averaged(images, 1) is images


def test_a_batch_larger_than_the_training_pictures() -> None:
    plain = PictureConfig(source="generated", size=8)
    assert len(load(plain, 4, batch=240).splits["train"]) == 240
    with pytest.raises(UserError) as caught:
        load(plain, 4, batch=241)
    one_line(caught, "a batch of 241 is larger than the 240 training pictures", "--batch.size")


def test_pictures_on_a_device() -> None:
    found = load(PictureConfig(source="generated", size=8), 4, device="meta")
    for part in found.splits.values():
        assert part.images_NHWC.device.type == part.labels_N.device.type == "meta"
