"""What a folder or zip file is taken for: its pictures, splits and classes, and what is left out and why."""

import json
import os
import shutil
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from etude.core.errors import UserError
from etude.data import clevrtex, folders, pairs, pictures
from etude.data.images import EXTENSIONS, read_image
from etude.data.inventory import Inventory, Picture, inventory, partners, split_of
from etude.data.picture_config import PictureConfig
from etude.data.prediction import picture_files, read_input
from etude.data.tree import opened

SHARES: dict[str, Any] = {"val_share": 0.2, "test_share": 0.2, "seed": 0}

AROUND = {
    "notes.txt": "no picture",
    "loose.png": "beside what is read",
    "train/owl/notes.txt": "no picture",
    "train/owl/.hidden.png": "hidden",
    "__MACOSX/owl/x.png": "hidden",
}
PLACES = [f"{part}/{name}/{number}.PNG" for part in ("train", "valid") for name in ("owl", "wren") for number in (1, 2)]


@pytest.fixture(params=["folder", "zip"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Pictures in splits and classes with other files around."""
    for name in (*PLACES, *AROUND):
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    if request.param == "folder":
        return tmp_path / "tree"
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
        for file in sorted((tmp_path / "tree").rglob("*")):
            archive.write(file, file.relative_to(tmp_path / "tree").as_posix())
    return tmp_path / "tree.zip"


def listed(path: Path, *, classes: bool) -> Inventory:
    with opened(path) as tree:
        return inventory(tree, classes=classes)


def test_what_is_read_and_what_is_left_out(path: Path) -> None:
    found = listed(path, classes=True)
    assert found.splits == {"train": "train", "valid": "val"}
    assert found.pictures[0] == Picture("train/owl/1.PNG", "train/owl/1.PNG", "train", "owl")
    assert [picture.name for picture in found.pictures] == sorted(PLACES, key=lambda name: (name.split("/")[1], name))
    # A hidden folder is not entered.
    assert found.left_out == {name.removesuffix("/owl/x.png"): why for name, why in AROUND.items()}


def test_pairs_lie_in_the_folders_of_splits(tmp_path: Path) -> None:
    for name in ("train/b.png", "train/a.png", "test/c.png", "loose.png", "notes/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = listed(tmp_path, classes=False)
    assert [(picture.name, picture.part) for picture in found.pictures] == [
        ("test/c.png", "test"), ("train/a.png", "train"), ("train/b.png", "train")
    ]  # fmt: skip
    assert found.left_out == {"loose.png": "beside what is read", "notes/d.txt": "no picture"}


def test_a_link_to_a_folder_around_it_has_an_end(tmp_path: Path) -> None:
    for name in ("owl", "wren"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
        (tmp_path / name / "up").symlink_to(tmp_path)
        (tmp_path / name / "top").symlink_to("/")
    assert len(listed(tmp_path, classes=True).pictures) == 2


def test_links_between_folders_have_an_end(tmp_path: Path) -> None:
    fill(tmp_path, "owl", "wren")
    for number in range(3):
        (tmp_path / "owl" / f"to{number}").symlink_to(tmp_path / "wren")
        (tmp_path / "wren" / f"to{number}").symlink_to(tmp_path / "owl")
    refused(tmp_path, "owl/to0 holds images below a class folder")


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    fill(tmp_path, "owl", "wren")
    for name in ("owl/a.png", "owl/b.png"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=r"2 of 8 images cannot be read \(owl/a\.png is not a file"):
        folders.read(tmp_path, size=8)


def test_names_in_utf_8_that_do_not_say_so(tmp_path: Path) -> None:
    """As macOS packs them: without the flag of UTF-8, and decomposed."""
    fill(tmp_path / "x", unicodedata.normalize("NFD", "café"), "thé")
    body = bytearray(packed(tmp_path / "x").read_bytes())
    for header, flags in ((b"PK\3\4", 7), (b"PK\1\2", 9)):
        at = body.find(header)
        while at >= 0:
            body[at + flags] &= ~8
            at = body.find(header, at + 4)
    (tmp_path / "x.zip").write_bytes(body)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert not any("é" in unicodedata.normalize("NFC", name) for name in archive.namelist())
    with opened(tmp_path / "x.zip") as tree:
        assert tree.contents()[0] == ["café", "thé"]


def test_a_broken_link_is_told_of_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    [path] = picture_files([tmp_path])
    with pytest.raises(UserError, match=r"a\.png is a broken link"):
        read_image(path, "RGB")


# --- what strangers bring: each case of a public bug report ---


def pic(path: Path, colour: int = 0) -> None:
    """A picture of one colour, in the format of its ending; a file of its own for each path and colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([*path.as_posix().encode(), colour])
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)


def fill(root: Path, *names: str, count: int = 3) -> Path:
    """Pictures in each of some folders."""
    for name in names:
        for number in range(count):
            pic(root / name / f"{number}.png")
    return root


def packed(folder: Path) -> Path:
    path = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder).as_posix())
    return path


def both(folder: Path) -> tuple[Path, Path]:
    return folder, packed(folder)


def refused(path: Path, *says: str, classes: bool = True) -> None:
    with pytest.raises(UserError) as caught:
        listed(path, classes=classes)
    for part in says:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("Training", "train"), ("training_set", "train"), ("TRAIN-2017", "train"),
        ("train images", "train"), ("dev", "val"), ("valid", "val"), ("validate", "val"), ("Validation_Data", "val"),
        ("val2", "val"), ("Testing", "test"), ("test1", "test"), ("Test_set", "test"), ("eval", "test"),
        ("evaluation", "test"), ("holdout", ""), ("trains", ""), ("trainval", ""), ("contest", ""), ("images", ""),
        ("set", ""), ("1", ""), ("", ""), ("bus", ""),
    ],
)  # fmt: skip
def test_the_names_of_splits(name: str, split: str) -> None:
    assert split_of(name) == split


@pytest.mark.parametrize(
    "names",
    [("train", "dev"), ("train", "eval"), ("Training", "Testing"), ("training_set", "test_set"), ("Train", "Test"),
     ("TRAIN", "validate", "test1")],
)  # fmt: skip
def test_folders_of_splits_are_taken_for_what_they_are(tmp_path: Path, names: tuple[str, ...]) -> None:
    fill(tmp_path / "x", *(f"{name}/{kind}" for name in names for kind in ("glioma", "healthy")))
    for path in both(tmp_path / "x"):
        found = listed(path, classes=True)
        assert found.splits == {name: split_of(name) for name in names}
        assert len(found.pictures) == 6 * len(names)
        assert {picture.class_name for picture in found.pictures} == {"glioma", "healthy"}
        assert not found.left_out
    # Pairs too.
    fill(tmp_path / "pairs", *names)
    for path in both(tmp_path / "pairs"):
        assert {picture.part for picture in listed(path, classes=False).pictures} == {*map(split_of, names)}


@pytest.mark.parametrize("other", ["holdout", "trains", "extra"])
def test_any_other_folder_beside_a_split_is_refused_by_name(tmp_path: Path, other: str) -> None:
    fill(tmp_path / "x", "train/cat", "train/dog", f"{other}/cat", f"{other}/dog")
    for path in both(tmp_path / "x"):
        refused(path, "train", f"beside {other}", "which are splits cannot be told")
    fill(tmp_path / "pairs", "train", "test", other)
    for path in both(tmp_path / "pairs"):
        refused(path, "train", f"beside {other}", classes=False)


def test_a_class_called_like_a_split(tmp_path: Path) -> None:
    fill(tmp_path / "x", "train", "bus", "car")
    assert {picture.class_name for picture in listed(tmp_path / "x", classes=True).pictures} == {"train", "bus", "car"}
    fill(tmp_path / "y", "bus", "car", "train/steam", "train/electric")
    for path in both(tmp_path / "y"):
        refused(path, "train beside bus, car")
    fill(tmp_path / "z", "train", "test")
    refused(tmp_path / "z", "images in test, train without a folder a class", "one sub-folder a class")


def test_a_split_without_class_folders(tmp_path: Path) -> None:
    fill(tmp_path, "train/cat", "train/dog", "test")
    refused(tmp_path, "test has no class folders as 'train' does")


@pytest.mark.parametrize("ending", ["jfif", "jpe", "JPG", "Jpeg", "apng", "jp2", "avif"])
def test_every_ending_of_what_is_read(tmp_path: Path, ending: str) -> None:
    if ending in ("jp2", "avif") and ending not in EXTENSIONS:
        pytest.skip("Pillow came without the codec")
    fill(tmp_path / "x", "cat", "dog")
    pic(tmp_path / "x" / "cat" / f"web.{ending}")
    for path in both(tmp_path / "x"):
        assert len(listed(path, classes=True).pictures) == 7
    assert len(picture_files([tmp_path / "x" / "cat"])) == 4
    for name in "ab":
        for number in range(4):
            pic(tmp_path / name / f"{number}.{ending if number > 1 else 'png'}")
    assert sum(map(len, pairs.folder(str(tmp_path / "a"), str(tmp_path / "b"), 8, 8, **SHARES).splits.values())) == 4
    assert read_image(tmp_path / "x" / "cat" / f"web.{ending}", "RGB").shape == (8, 8, 3)


def test_what_is_left_out_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, "cat", "dog")
    for name in (
        ".DS_Store",
        "Thumbs.db",
        "cat/._0.png",
        "desktop.ini",
        "cat/.ipynb_checkpoints/0.png",
        "__MACOSX/x.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("cat/a.heic", "cat/b.HEIC", "labels.csv", "loose.png"):
        (tmp_path / name).touch()
    (tmp_path / "bird").symlink_to(tmp_path / "gone")
    (tmp_path / os.fsdecode(b"\xff.svg")).touch()
    found = listed(tmp_path, classes=True)
    record = found.record({"train": range(6)}, torch.full((6, 2, 2, 3), 99))
    assert {why: about["count"] for why, about in record["left_out"].items()} == {
        "hidden": 6, "of a format that is not read": 3, "no picture": 1, "beside what is read": 1, "a broken link": 1,
    }  # fmt: skip
    said = "\n".join(record["lines"])
    assert record["kept"] == {"train": 6}
    assert "pictures: 6 train" in said
    assert "3 of a format that is not read (cat/a.heic, cat/b.HEIC, '\\udcff.svg')" in said
    json.dumps(record, ensure_ascii=False).encode()
    assert "1 a broken link (bird)" in said
    assert "nearly black" not in said
    # A prediction says what may be missed.
    (tmp_path / "cat" / "kittens").mkdir()
    assert len(picture_files([tmp_path / "cat"])) == 3
    assert "left out 3" in caplog.text
    assert "a.heic" in caplog.text
    assert "kittens" in caplog.text


def test_names_have_one_unicode_form(tmp_path: Path) -> None:
    for split, form in (("train", "NFC"), ("val", "NFD"), ("test", "NFC")):
        fill(tmp_path / "x", *(f"{split}/{unicodedata.normalize(form, name)}" for name in ("café", "thé")))
    for path in both(tmp_path / "x"):
        found = listed(path, classes=True)
        assert {picture.class_name for picture in found.pictures} == {"café", "thé"}
        with opened(path) as tree:
            assert all(read_image(tree.image(picture.at), "RGB").shape for picture in found.pictures)
        assert folders.read(path, size=8).images.classes == ("café", "thé")
    for form, side in (("NFC", "a"), ("NFD", "b")):
        for number in range(4):
            pic(tmp_path / side / unicodedata.normalize(form, f"Straße-é{number}.png"))
    assert sum(map(len, pairs.folder(str(tmp_path / "a"), str(tmp_path / "b"), 8, 8, **SHARES).splits.values())) == 4


def test_two_unicode_forms_of_one_name_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "x", *(unicodedata.normalize(form, "café") for form in ("NFC", "NFD")))
    for path in both(tmp_path / "x"):
        refused(path, r"'caf\xe9'", r"'cafe\u0301'", "two Unicode forms")
    # The sign of kelvin has a letter for its form.
    fill(tmp_path / "y", "K", "\u212a")
    refused(tmp_path / "y", "'K'", r"'\u212a'")


def test_equal_pictures_across_splits_and_classes(tmp_path: Path) -> None:
    fill(tmp_path / "x", *(f"{split}/{name}" for split in ("train", "val") for name in ("cat", "dog")))
    shutil.copytree(tmp_path / "x" / "train", tmp_path / "x" / "test")
    shutil.copy(tmp_path / "x" / "train" / "cat" / "0.png", tmp_path / "x" / "train" / "dog" / "copy.png")
    for path in both(tmp_path / "x"):
        config = PictureConfig(source="folder", folder=str(path), size=8)
        record = pictures.load(config, 2).inventory
        assert record["equal"] == {
            "test in train": {"count": 6, "such_as": "test/cat/0.png = train/cat/0.png"},
            "in two classes": {"count": 3, "such_as": "train/cat/0.png = train/dog/copy.png"},
        }
        assert any("6 test in train (test/cat/0.png = train/cat/0.png)" in line for line in record["lines"])
        assert record["kept"] == {"train": 7, "val": 6, "test": 6}
        json.dumps(record)


def test_many_equal_pictures_are_counted_soon() -> None:
    count = 40_000
    found = [other for _, other in partners(["x"] * count, range(count), range(count), [0] * count)]
    assert found == [None] * count
    found = [other for _, other in partners(["x"] * count, range(count), range(count))]
    assert found == [1] + [0] * (count - 1)


def test_equal_scenes_and_pairs(tmp_path: Path) -> None:
    for number in range(10):
        at = tmp_path / "scenes" / f"CLEVRTEX_x_{number:06d}.png"
        pic(at)
        Image.fromarray(np.ones((8, 8), np.uint8)).save(at.with_name(f"CLEVRTEX_x_{number:06d}_flat.png"))
    shutil.copy(tmp_path / "scenes" / "CLEVRTEX_x_000000.png", tmp_path / "scenes" / "CLEVRTEX_x_000009.png")
    (tmp_path / "scenes" / "meta.json").write_text("{}")
    pic(tmp_path / "scenes" / "preview.png")
    for path in both(tmp_path / "scenes"):
        record = clevrtex.scenes(str(path), 8).inventory
        assert record["equal"]["test in train"]["count"] == 1
        assert record["left_out"] == {
            "beside what is read": {"count": 1, "such_as": ["preview.png"]},
            "no picture": {"count": 1, "such_as": ["meta.json"]},
        }
        assert record["kept"] == {"test": 1, "val": 1, "train": 8}
    fill(tmp_path / "pairs", "train", "dev", "test", count=4)
    shutil.copy(tmp_path / "pairs" / "train" / "0.png", tmp_path / "pairs" / "test" / "0.png")
    record = pairs.folder(str(tmp_path / "pairs"), "", 10, 8, **SHARES).inventory
    assert record["equal"] == {"test in train": {"count": 1, "such_as": "test/0.png = train/0.png"}}
    assert record["splits"]["dev"] == "val"


def test_halves_in_folders_of_their_own(tmp_path: Path) -> None:
    fill(tmp_path / "x", "trainA", "trainB", "testA", "testB", count=4)
    fill(tmp_path / "y", "A", "B", count=5)
    for path in both(tmp_path / "x"):
        found = pairs.folder(str(path), "", 8, 8, **SHARES)
        assert {split: len(part) for split, part in found.splits.items()} == {"train": 3, "val": 1, "test": 4}
        names = found.splits["test"].names
        assert names == tuple(f"testA/{number}.png" for number in range(4))
        for side, letter in enumerate("AB"):
            image = np.array(Image.open(tmp_path / "x" / f"test{letter}" / "2.png"))
            assert np.array_equal(found.splits["test"].pairs_N2HWC[2, side].numpy(), image)
        assert found.inventory["kept"] == {"train": 3, "val": 1, "test": 4}
        assert found.inventory["left_out"] == {}
    assert sum(map(len, pairs.folder(str(tmp_path / "y"), "", 8, 8, **SHARES).splits.values())) == 5
    one, two = (str(tmp_path / "y" / side) for side in "AB")
    assert sum(map(len, pairs.folder(one, two, 8, 8, **SHARES).splits.values())) == 5
    for number in range(4):
        (tmp_path / "x" / "testB" / f"{number}.png").unlink()
    with pytest.raises(UserError, match=r"4 in .* alone \(testA/0\.png"):
        pairs.folder(str(tmp_path / "x"), "", 8, 8, **SHARES)


def test_a_nearly_black_set_is_said(tmp_path: Path) -> None:
    for number in range(6):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.random.default_rng(number).integers(0, 4096, (8, 16), np.uint16)).save(path)
    record = pairs.folder(str(tmp_path), "", 8, 8, **SHARES).inventory
    assert record["nearly_black"] > 0
    assert any(line.startswith("nearly black") for line in record["lines"])


def test_a_nearly_black_input_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, values in {"dark": [[0, 4095]], "black": [[0, 0]], "light": [[0, 9000]]}.items():
        Image.fromarray(np.array(values, np.uint16)).save(tmp_path / f"{name}.png")
        read_input(tmp_path / f"{name}.png", "RGB", 100)
    assert "dark.png is nearly black (16 of 255 at most)" in caplog.text
    assert len(caplog.records) == 1


def test_another_file_of_equal_size_and_time_is_read_anew(tmp_path: Path) -> None:
    for name in ("cat/0.bmp", "cat/1.bmp", "cat/2.bmp", "dog/0.bmp", "dog/1.bmp", "dog/2.bmp"):
        pic(tmp_path / name)
    before, path = folders.read(tmp_path, size=8), tmp_path / "cat" / "0.bmp"
    about = path.stat()
    pic(tmp_path / "other.bmp", 1)
    os.utime(tmp_path / "other.bmp", ns=(about.st_atime_ns, about.st_mtime_ns))
    shutil.move(tmp_path / "other.bmp", path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    after = folders.read(tmp_path, size=8)
    assert not torch.equal(before.images.images_NHWC[0], after.images.images_NHWC[0])
