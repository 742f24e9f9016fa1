"""Folders and zip files of photos: layouts, pixels, broken files and splits, each fault as one line."""

import io
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from etude.core.errors import UserError
from etude.data import folders, tree
from etude.data.fetch import cache_place
from etude.data.folders import ASSIGNMENT_SPECIES, INDIAN_BIRDS, FolderImages, class_key, read, split
from etude.data.images import fitted
from etude.data.tree import find

FUZZ = settings(max_examples=150, deadline=None, derandomize=True)
SPLITS = ("train", "val", "test")


def picture(number: int, width: int = 12, height: int = 12, kind: str = "png") -> bytes:
    """A picture of one colour, which says its number."""
    to = io.BytesIO()
    Image.new("RGB", (width, height), (number % 256, number // 256, 77)).save(to, kind)
    return to.getvalue()


def put(folder: Path, files: dict[str, bytes]) -> Path:
    for name, body in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    return folder


def pack(path: Path, files: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return path


def birds(num_each: int = 4, classes: tuple[str, ...] = ("crow", "owl", "wren"), top: str = "") -> dict[str, bytes]:
    return {
        f"{top}{name}/{number:03d}.png": picture(100 * label + number)
        for label, name in enumerate(classes)
        for number in range(num_each)
    }


def refused(ask: Callable[[], object], *parts: str) -> str:
    """The one line of a `UserError`."""
    with pytest.raises(UserError) as caught:
        ask()
    text = str(caught.value)
    assert text.isprintable()
    assert ": " in text
    for part in parts:
        assert part in text, text
    return text


# --- layouts ---


@pytest.mark.parametrize("top", ["", "birds/", "a/b/c/"])
@pytest.mark.parametrize("packed", [False, True])
def test_one_folder_a_class_with_anything_around(tmp_path: Path, top: str, packed: bool) -> None:
    files = birds(top=top) | {
        f"{top}notes.txt": b"x",
        f"{top}owl/notes.txt": b"x",
        f"{top}owl/.hidden.png": b"x",
        f"{top}owl/Thumbs.db": b"x",
        f"{top}.git/x.png": b"x",
        f"{top}__MACOSX/owl/x.png": b"x",
    }
    path = pack(tmp_path / "birds.zip", files) if packed else put(tmp_path / "birds", files)
    found = read(path, size=8)
    assert found.images.classes == ("crow", "owl", "wren")
    assert found.images.names == tuple(sorted(birds()))
    assert found.images.labels_N.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.images.images_NHWC.shape == (12, 8, 8, 3)
    assert found.images.images_NHWC[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 100, 101, 102, 103, 200, 201, 202, 203]
    assert (found.images.images_NHWC.flatten(1, 2) == found.images.images_NHWC[:, :1, 0]).all()
    assert found.part_N == ("",) * 12
    assert found.skipped == ()
    assert found.path == path


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
@pytest.mark.parametrize("packed", [False, True])
def test_folders_of_splits(tmp_path: Path, val: str, packed: bool) -> None:
    files = birds(3, top="all/train/") | birds(1, top=f"all/{val}/") | birds(2, top="all/test/") | {"all/notes/x": b""}
    path = pack(tmp_path / "birds.zip", files) if packed else put(tmp_path / "birds", files)
    found = read(path, size=8)
    assert len(found.images) == 18
    for name, part, label in zip(found.images.names, found.part_N, found.images.labels_N.tolist(), strict=True):
        folder, class_name, _ = name.split("/")
        assert {val: "val"}.get(folder, folder) == part
        assert found.images.classes[label] == class_name
    rows = split(found, tmp_path / "unused.json", val_share=0.0, test_share=7.0, seed=0)
    assert {name: len(rows[name]) for name in SPLITS} == {"train": 9, "val": 3, "test": 6}
    assert all({found.part_N[row] for row in rows[name].tolist()} == {name} for name in SPLITS)
    assert not (tmp_path / "unused.json").exists(), "nothing was drawn"


def test_only_a_train_folder(tmp_path: Path) -> None:
    found = read(put(tmp_path / "birds", birds(4, top="train/")), size=4)
    assert set(found.part_N) == {"train"}
    rows = split(found, tmp_path / "split.json", val_share=0.25, test_share=0.25, seed=0)
    assert [len(rows[name]) for name in SPLITS] == [6, 3, 3]


def test_classes_may_be_called_as_splits_are(tmp_path: Path) -> None:
    found = read(put(tmp_path / "x", birds(2, ("train", "plane", "test"))), size=4)
    assert found.images.classes == ("plane", "test", "train")
    assert set(found.part_N) == {""}


def test_images_beside_the_class_folders_are_passed_over(tmp_path: Path) -> None:
    found = read(put(tmp_path / "x", birds(1) | {"preview.png": picture(0)}), size=4)
    assert len(found.images) == 3


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    put(tmp_path / "far", birds(1))
    (tmp_path / "near").mkdir()
    for name in ("crow", "owl"):
        (tmp_path / "near" / name).symlink_to(tmp_path / "far" / name)
    assert read(tmp_path / "near", size=4).images.classes == ("crow", "owl")


LAYOUT_FAULTS = {
    "bare": ({}, ["has no sub-folders: make one sub-folder a class"]),
    "flat": ({"1.png": picture(1)}, ["holds images but no sub-folders: make one sub-folder a class", "FOLDER/cat"]),
    "one": ({"cat/1.png": picture(1)}, ["has only one class, 'cat'"]),
    "words": (birds() | {"new\nt/notes.txt": b"x"}, ["holds no image (PNG, JPEG", "put images into it, or remove it"]),
    "deep": (birds() | {"owl/more/1.png": picture(1)}, ["owl/more holds images below a class folder: move them up"]),
    "no train": (birds(top="test/") | birds(top="val/"), ["has 'test' but no 'train' with class folders in it"]),
    "two vals": (
        birds(top="train/") | birds(top="val/") | birds(top="valid/"),
        ["has both 'val' and 'valid': keep one of them"],
    ),
    "bare val": (birds(top="train/") | {"val/1.png": picture(1)}, ["val has no class folders as 'train' does"]),
    "new in val": (
        birds(top="train/") | birds(top="val/") | {"val/owll/1.png": picture(1)},
        ["train has no class 'owll', which another split has; did you mean 'owl'?", "give every split the same"],
    ),
    "not in test": (
        birds(top="train/") | birds(top="test/", classes=("crow", "owl")),
        ["test has no class 'wren', which another split has: give"],
    ),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", LAYOUT_FAULTS)
def test_faults_of_the_layout(tmp_path: Path, case: str, packed: bool) -> None:
    files, parts = LAYOUT_FAULTS[case]
    (tmp_path / "x").mkdir()
    path = pack(tmp_path / "x.zip", files) if packed else put(tmp_path / "x", files)
    if packed and case == "words":
        # Files that are no images leave no folder behind in a zip file's list; a folder's own entry does.
        path = pack(tmp_path / "x.zip", birds() | {"new\nt/": b""})
    refused(lambda: read(path, size=4), *parts, str(path))


def test_what_is_no_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("x")
    (tmp_path / "broken.zip").write_bytes(pack(tmp_path / "x.zip", birds()).read_bytes()[:-30])
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, fault in {
        "none": "does not exist: give a folder or a zip file",
        "words.txt": "is neither a folder nor a zip file",
        "broken.zip": "is no whole zip file: copy or pack it again",
        "loop": "",
        "x" * 300: "",
        "nul\0": "does not exist",
    }.items():
        refused(lambda name=name: read(tmp_path / name, size=4), fault)


@pytest.mark.parametrize("size", [0, -1, 4097])
def test_impossible_sizes(tmp_path: Path, size: int) -> None:
    refused(lambda: read(tmp_path, size=size), f"an image size of {size} is not possible: give 1 to 4096 pixels")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    path = put(tmp_path / "x", birds(1))
    (path / "owl" / os.fsdecode(b"\xff.png")).write_bytes(picture(1))
    refused(lambda: read(path, size=4), "has a name that is no Unicode text: rename it")


def test_names_of_every_script_and_control_characters(tmp_path: Path) -> None:
    files = birds(3, ("grue cendrée", "सारस", "two\nlines"))
    for path in (put(tmp_path / "x", files), pack(tmp_path / "x.zip", files)):
        found = read(path, size=4)
        assert found.images.classes == ("grue cendrée", "two\nlines", "सारस")
        place = tmp_path / f"{path.name}.json"
        rows = split(found, place, val_share=0.3, test_share=0.3, seed=0)
        again = split(found, place, val_share=0.3, test_share=0.3, seed=0)
        assert all(torch.equal(rows[name], again[name]) for name in SPLITS)


# --- zip files ---


def test_names_that_leave_the_zip_file_are_never_written(tmp_path: Path) -> None:
    files = birds() | {"../owl/evil.png": picture(1), "/abs/owl/evil.png": picture(1), "owl/../../evil.png": b"x"}
    inner = tmp_path / "inner"
    inner.mkdir()
    path = pack(inner / "x.zip", files)
    # The absolute name is a folder like another: 'abs' then holds images below a class folder.
    refused(lambda: read(path, size=4), "holds images below a class folder")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["inner"]
    assert sorted(entry.name for entry in inner.iterdir()) == ["x.zip"]
    del files["/abs/owl/evil.png"]
    assert len(read(pack(inner / "x.zip", files), size=4).images) == 12


def test_backslashes_are_slashes(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", {name.replace("/", "\\"): body for name, body in birds(top="birds/").items()})
    assert read(path, size=4).images.names == tuple(sorted(birds()))


def test_a_name_that_comes_twice_is_its_last(tmp_path: Path) -> None:
    files = birds(1)
    path = pack(tmp_path / "x.zip", files)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("owl/000.png", picture(55))
    found = read(path, size=4)
    assert len(found.images) == 3
    assert found.images.images_NHWC[1, 0, 0, 0] == 55


def test_members_that_cannot_be_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(tmp_path / "x.zip", birds(), zipfile.ZIP_STORED)
    body = bytearray(path.read_bytes())
    at = body.index(picture(101))
    body[at + 50] ^= 0xFF
    # The next member says that it is encrypted, in both of its headers.
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = 0
        while True:
            start = body.index(header, start + 1)
            name_at = start + (30 if header == b"PK\3\4" else 46)
            if body[name_at : name_at + 11] == b"owl/002.png":
                break
        body[start + flags] |= 1
    path.write_bytes(body)
    text = refused(lambda: read(path, size=11), "2 of 12 images cannot be read", "--data.skip-corrupt")
    assert "(owl/001.png cannot be unpacked; owl/002.png needs a password)" in text
    monkeypatch.setattr(tree, "_LARGEST_MEMBER", 20)
    refused(
        lambda: read(path, size=3), "12 of 12 images cannot be read (crow/000.png has ", " bytes; ", "; and 7 more)"
    )


@FUZZ
@given(st.data())
def test_garbled_zip_files_are_refused_or_read(scratch: Path, data: st.DataObject) -> None:
    body = bytearray(_ZIPPED)
    for _ in range(data.draw(st.integers(1, 3))):
        # Half of the changes hit the list of contents at the end.
        at = data.draw(st.integers(0, len(body) - 1) | st.integers(len(body) - 300, len(body) - 1))
        body[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del body[data.draw(st.integers(0, len(body))) :]
    path = scratch / "garbled.zip"
    path.write_bytes(body)
    read_or_refusal(path)


def read_or_refusal(path: Path) -> FolderImages | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read(path, size=4, skip_corrupt=True)
    except UserError as error:
        refusal = str(error)
    else:
        assert len(found.images.classes) >= 2
        assert not set(found.skipped) & set(found.images.names)
        return found
    assert refusal.isprintable()
    return None


def _zipped() -> bytes:
    to = io.BytesIO()
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in birds(2, ("crow", "owl")).items():
            archive.writestr(name, body)
    return to.getvalue()


_ZIPPED = _zipped()


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the examples of a property."""
    return tmp_path_factory.mktemp("folders")


# --- pixels ---


def gradient(width: int, height: int) -> np.ndarray:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([255 * x / max(1, width - 1), 255 * y / max(1, height - 1), 0 * x + 60], -1).astype(np.uint8)


def test_a_picture_of_the_right_size_is_left_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for fit in ("crop", "squash"):
        np.testing.assert_array_equal(fitted(image, 16, fit), image)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("longer", [24, 25])
def test_crop_takes_the_middle(wide: bool, longer: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, longer, 3), dtype=np.uint8)
    square = fitted(image if wide else image.swapaxes(0, 1).copy(), 16, "crop")
    np.testing.assert_array_equal(square if wide else square.swapaxes(0, 1), image[:, 4:20])


def test_squash_takes_all() -> None:
    square = fitted(gradient(40, 20), 10, "squash").astype(int)
    # From the first column's colour to the last one's, in even steps.
    np.testing.assert_allclose(square[..., 0], np.broadcast_to((np.arange(10) + 0.5) * 25.5, (10, 10)), atol=6)
    np.testing.assert_allclose(square[..., 1].T, np.broadcast_to((np.arange(10) + 0.5) * 25.5, (10, 10)), atol=6)
    assert np.abs(square[..., 2] - 60).max() <= 1


def test_shrinking_averages_and_growing_slopes() -> None:
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    image = np.repeat(checks[..., None], 3, -1).astype(np.uint8)
    assert np.abs(fitted(image, 8, "crop").astype(int) - 127.5).max() < 4, "single pixels survive"
    grown = fitted(np.array([[[0] * 3, [255] * 3]] * 2, np.uint8), 16, "crop")
    assert len(np.unique(grown)) > 6, "blocks, not a slope"


@FUZZ
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 33), st.sampled_from(("crop", "squash")))
def test_any_shape_becomes_a_square(width: int, height: int, size: int, fit: str) -> None:
    image = np.random.default_rng(width * height).integers(9, 200, (height, width, 3), dtype=np.uint8)
    square = fitted(image, size, fit)
    assert (square.shape, square.dtype) == ((size, size, 3), np.uint8)
    assert image.min() <= square.min()
    assert square.max() <= image.max()


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_large_jpegs_decoded_small_look_as_if_decoded_whole(tmp_path: Path, fit: str) -> None:
    image = gradient(400, 300)
    to = io.BytesIO()
    Image.fromarray(image).save(to, "jpeg", quality=95)
    path = put(tmp_path / "x", {"a/1.jpg": to.getvalue(), "b/1.png": picture(1)})
    for size in (30, 37, 299):
        np.testing.assert_allclose(
            read(path, size=size, fit=fit).images.images_NHWC[0].int(), fitted(image, size, fit).astype(int), atol=8
        )


def test_odd_modes_and_orientation(tmp_path: Path) -> None:
    files = birds(1)
    exif = Image.Exif()
    exif[274] = 3
    halves = np.zeros((16, 16, 3), np.uint8)
    halves[:8] = 255
    for name, image, options in (
        ("turned.jpg", Image.fromarray(halves), {"exif": exif, "quality": 95}),
        ("ink.jpg", Image.new("CMYK", (9, 5), (0, 0, 0, 0)), {}),
        ("wide.png", Image.fromarray(np.full((5, 9), 65_535, np.uint16)), {}),
        ("clear.png", Image.new("RGBA", (3, 3), (9, 9, 9, 0)), {}),
    ):
        to = io.BytesIO()
        image.save(to, name[-3:].replace("jpg", "jpeg"), **options)
        files[f"owl/{name}"] = to.getvalue()
    found = read(put(tmp_path / "x", files), size=16)
    row = dict(zip(found.images.names, found.images.images_NHWC, strict=True))
    assert row["owl/turned.jpg"][:6].max() < 20
    assert row["owl/turned.jpg"][10:].min() > 235
    for name in ("ink.jpg", "wide.png", "clear.png"):
        assert row[f"owl/{name}"].min() > 250


# --- the cache and the digest ---


def cached() -> set[str]:
    return {path.name for path in (cache_place() / "folders" / "decoded").glob("*.npy")}


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "x", birds())
    first = read(path, size=8)
    monkeypatch.setattr(folders, "_decode", None)
    second = read(path, size=8)
    assert torch.equal(first.images.images_NHWC, second.images.images_NHWC)
    assert first.digest == second.digest
    second.images.images_NHWC[0] = 9
    assert read(path, size=8).digest == first.digest, "the cache is not written to"


def test_the_cache_tells_everything_apart(tmp_path: Path) -> None:
    path = put(tmp_path / "x", birds(2))
    before = cached()
    read(path, size=8)
    read(path, size=9)
    read(path, size=8, fit="squash")
    (path / "owl" / "000.png").write_bytes(picture(200))
    changed = read(path, size=8)
    assert changed.images.images_NHWC[2, 0, 0, 0] == 200
    shutil.copytree(path, tmp_path / "y")
    (tmp_path / "y" / "owl" / "000.png").write_bytes(picture(201))
    stat = (path / "owl" / "000.png").stat()
    os.utime(tmp_path / "y" / "owl" / "000.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert read(tmp_path / "y", size=8).images.images_NHWC[2, 0, 0, 0] == 201
    assert len(cached() - before) == 5


def test_a_zip_file_that_moves_is_decoded_once(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", birds())
    read(path, size=7)
    before = cached()
    read(path.rename(tmp_path / "y.zip"), size=7)
    assert cached() == before


def test_the_digest_is_of_names_classes_and_pixels(tmp_path: Path) -> None:
    files = birds()
    digests = {
        read(put(tmp_path / "x", files), size=8).digest,
        read(pack(tmp_path / "x.zip", files), size=8).digest,
        read(pack(tmp_path / "y.zip", birds(top="top/"), zipfile.ZIP_STORED), size=8).digest,
    }
    assert len(digests) == 1
    digests.add(read(tmp_path / "x", size=9).digest)
    (tmp_path / "x" / "owl" / "000.png").rename(tmp_path / "x" / "owl" / "0000.png")
    digests.add(read(tmp_path / "x", size=8).digest)
    (tmp_path / "x" / "owl" / "0000.png").write_bytes(picture(7))
    digests.add(read(tmp_path / "x", size=8).digest)
    assert len(digests) == 4


# --- broken images ---


def broken() -> dict[str, bytes]:
    """Twelve images, three of them broken."""
    return birds() | {
        "crow/001.png": b"",
        "owl/002.png": picture(102)[:50],
        "wren/003.png": b"hello",
    }


@pytest.mark.parametrize("packed", [False, True])
def test_broken_images_are_one_line(tmp_path: Path, packed: bool) -> None:
    path = pack(tmp_path / "x.zip", broken()) if packed else put(tmp_path / "x", broken())
    for _ in range(2):
        text = refused(lambda: read(path, size=8), f"{path}: 3 of 12 images cannot be read (crow/001.png is empty")
        assert "; owl/002.png is damaged or cut short; wren/003.png is not an image of a known format" in text
        assert text.endswith("): remove them, or leave them out with --data.skip-corrupt")


@pytest.mark.parametrize("packed", [False, True])
def test_broken_images_are_left_out(tmp_path: Path, packed: bool) -> None:
    path = pack(tmp_path / "x.zip", broken()) if packed else put(tmp_path / "x", broken())
    whole = put(tmp_path / "whole", birds())
    for name in ("crow/001.png", "owl/002.png", "wren/003.png"):
        (whole / name).unlink()
    expected = read(whole, size=8)
    # From the decoder, then from the cache.
    for _ in range(2):
        with pytest.warns(UserWarning, match="3 of 12 images cannot be read and are left out: crow/001.png is empty"):
            found = read(path, size=8, skip_corrupt=True)
        assert found.skipped == ("crow/001.png", "owl/002.png", "wren/003.png")
        assert found.images.names == expected.images.names
        assert torch.equal(found.images.images_NHWC, expected.images.images_NHWC)
        assert torch.equal(found.images.labels_N, expected.images.labels_N)
        assert found.part_N == expected.part_N
        assert found.digest == expected.digest


def test_an_image_that_can_be_read_later_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "x", birds())
    real = folders.read_image

    def unreadable(source: Path, *rest: object, **more: object) -> np.ndarray:
        if source.name == "002.png":
            raise folders.ImageError(source, "may not be read", "change its permissions")
        return real(source, *rest, **more)

    monkeypatch.setattr(folders, "read_image", unreadable)
    refused(lambda: read(path, size=8), "3 of 12 images cannot be read (crow/002.png may not be read; ")
    monkeypatch.undo()
    found = read(path, size=8)
    assert found.images.images_NHWC[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 100, 101, 102, 103, 200, 201, 202, 203]
    assert found.digest == read(pack(tmp_path / "x.zip", birds()), size=8).digest


def test_only_the_first_five_are_named(tmp_path: Path) -> None:
    path = put(tmp_path / "x", birds(5) | dict.fromkeys(birds(4), b"x"))
    text = refused(
        lambda: read(path, size=8), "12 of 15 images cannot be read (crow/000.png is", "; and 7 more): remove"
    )
    assert text.count("is not an image") == 5


@pytest.mark.parametrize("top", ["", "val/"])
def test_a_class_must_keep_an_image(tmp_path: Path, top: str) -> None:
    files = birds(2, top=top) | {f"{top}owl/{number:03d}.png": b"x" for number in range(2)}
    if top:
        files |= birds(2, top="train/")
    path = put(tmp_path / "x", files)
    refused(lambda: read(path, size=8, skip_corrupt=True), f"none of the images of '{top}owl' can be read: put other")


def test_a_dead_link_and_a_pipe_are_broken_images(tmp_path: Path) -> None:
    path = put(tmp_path / "x", birds(1))
    (path / "owl" / "dead.png").symlink_to(tmp_path / "none")
    os.mkfifo(path / "owl" / "pipe.png")
    refused(lambda: read(path, size=8), "owl/dead.png is a broken link; owl/pipe.png is not a file")


def test_a_huge_picture_is_not_decoded(tmp_path: Path) -> None:
    path = put(tmp_path / "x", birds(1) | {"owl/big.png": picture(1, 100, 100)})
    assert len(read(path, size=8).images) == 4
    refused(
        lambda: read(path, size=8, max_pixels=9_999), "owl/big.png is 100 x 100 pixels, more than 9,999", "skip-corrupt"
    )


PICTURES = {kind: picture(5, 9, 7, kind) for kind in ("png", "jpeg", "gif", "webp", "tiff", "bmp", "ppm")}


@settings(FUZZ, max_examples=60)
@given(st.data(), st.sampled_from(sorted(PICTURES)))
def test_garbled_images_are_left_out_or_read(scratch: Path, data: st.DataObject, kind: str) -> None:
    body = bytearray(PICTURES[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, min(len(body) - 1, 200)))] = data.draw(st.integers(0, 255))
    path = put(scratch / "garbled", birds(1, ("crow", "owl")) | {"owl/any.png": bytes(body)})
    found = read_or_refusal(path)
    assert found is not None
    assert set(found.images.names) | set(found.skipped) == {"crow/000.png", "owl/000.png", "owl/any.png"}
    assert found.images.images_NHWC[:2, 0, 0, 0].tolist() in ([0, 100], [0, *found.images.images_NHWC[1, 0, 0, :1]])


# --- where a folder is ---


def test_a_folder_is_found_as_given_or_in_the_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "birds").mkdir(parents=True)
    (tmp_path / "mirror" / "birds").mkdir(parents=True)
    (tmp_path / "mirror" / "far.zip").touch()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("birds") == Path("birds")
    assert find("~/mirror") == tmp_path / "mirror"
    refused(
        lambda: find("far.zip"),
        "far.zip does not exist here, and ETUDE_MIRROR is not set to a folder to look in: give another with --data.fol",
    )
    monkeypatch.setenv("ETUDE_MIRROR", "~/mirror")
    assert find("birds") == Path("birds"), "the one as given comes first"
    assert find("far.zip") == tmp_path / "mirror" / "far.zip"
    refused(lambda: find("none"), "none does not exist here, nor does ~/mirror/none (ETUDE_MIRROR): give")
    monkeypatch.setenv("ETUDE_MIRROR", "https://example.org/x")
    refused(lambda: find("far.zip"), "ETUDE_MIRROR is not set to a folder")


@pytest.mark.parametrize("name", ["", "~nobody-of-this-name/x", "x" * 5000, "nul\0", "two\nlines"])
def test_names_that_are_no_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ETUDE_MIRROR", str(tmp_path))
    refused(lambda: find(name, "look elsewhere"), "does not exist here", ": look elsewhere")


# --- the species ---


def test_the_species() -> None:
    assert len(set(INDIAN_BIRDS)) == 25
    assert list(INDIAN_BIRDS) == sorted(INDIAN_BIRDS)
    assert len(set(ASSIGNMENT_SPECIES)) == 7
    assert set(ASSIGNMENT_SPECIES) <= set(INDIAN_BIRDS)
    assert len({class_key(name) for name in INDIAN_BIRDS}) == 25
    assert class_key("Cattle-Egret") == class_key("cattle egret") == class_key(" CATTLE_EGRET") == "cattleegret"
    assert class_key("STRASSE") == class_key("straße")


# --- splits ---


@pytest.fixture(scope="session")
def thirty(tmp_path_factory: pytest.TempPathFactory) -> FolderImages:
    """Three classes of ten."""
    return read(put(tmp_path_factory.mktemp("thirty") / "birds", birds(10)), size=4)


def drawn(images: FolderImages, path: Path | None, seed: int = 0, **shares: float) -> dict[str, torch.Tensor]:
    return split(images, path, **({"val_share": 0.1, "test_share": 0.2} | shares), seed=seed)


def names_of(images: FolderImages, rows: dict[str, torch.Tensor]) -> dict[str, list[str]]:
    return {name: [images.images.names[row] for row in rows[name].tolist()] for name in rows}


def test_a_split_is_drawn_once_and_kept(thirty: FolderImages, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "split.json"
    rows = drawn(thirty, path)
    assert list(rows) == list(SPLITS)
    assert [len(rows[name]) for name in SPLITS] == [21, 3, 6]
    assert sorted(torch.cat(list(rows.values())).tolist()) == list(range(30))
    for chosen in rows.values():
        assert chosen.dtype == torch.int64
        assert len(set(thirty.images.labels_N[chosen].bincount().tolist())) == 1, "every class by itself"
    assert json.loads(path.read_text()) == {
        "format": 1,
        "shares": {"val": 0.1, "test": 0.2},
        "seed": 0,
        "splits": names_of(thirty, rows),
    }
    # The file counts, not what it was drawn with.
    kept = drawn(thirty, path, seed=5, val_share=0.4)
    assert all(torch.equal(rows[name], kept[name]) for name in SPLITS)
    other = drawn(thirty, tmp_path / "other.json", seed=5)
    assert names_of(thirty, other) != names_of(thirty, rows)


def test_a_split_by_default_lies_in_the_cache(thirty: FolderImages) -> None:
    place = cache_place() / "splits"
    before = set(place.glob("*"))
    first = drawn(thirty, None, seed=3)
    (path,) = set(place.glob("*")) - before
    assert path.name.startswith("birds-")
    assert len(path.stem.removeprefix("birds-")) == 16
    body = path.read_bytes()
    assert names_of(thirty, drawn(thirty, None, seed=3)) == names_of(thirty, first)
    assert path.read_bytes() == body
    drawn(thirty, None, seed=4)
    drawn(thirty, None, seed=3, val_share=0.2)
    assert len(set(place.glob("*")) - before) == 3


def test_a_split_serves_the_folder_packed_and_moved(thirty: FolderImages, tmp_path: Path) -> None:
    rows = drawn(thirty, tmp_path / "split.json")
    packed = read(pack(tmp_path / "x.zip", birds(10, top="top/")), size=4)
    assert names_of(packed, drawn(packed, tmp_path / "split.json")) == names_of(thirty, rows)


def test_what_has_no_folder_is_drawn_from_train(tmp_path: Path) -> None:
    found = read(put(tmp_path / "x", birds(10, top="train/") | birds(3, top="val/")), size=4)
    rows = drawn(found, tmp_path / "split.json")
    assert [len(rows[name]) for name in SPLITS] == [24, 9, 6]
    assert {found.part_N[row] for row in rows["test"].tolist()} == {"train"}
    assert set(json.loads((tmp_path / "split.json").read_text())["splits"]) == {"train", "test"}
    # New images in a folder that is taken as it is concern no file.
    put(tmp_path / "x", birds(4, top="val/"))
    assert len(drawn(read(tmp_path / "x", size=4), tmp_path / "split.json")["val"]) == 12


def test_too_few_images(tmp_path: Path) -> None:
    found = read(put(tmp_path / "x", birds(4) | birds(2, ("owl", "auk"))), size=4)
    text = refused(
        lambda: drawn(found, None), "class 'auk' has 2 images: three are needed, one each for train, val, test"
    )
    assert "owl" not in text
    one = read(put(tmp_path / "y", birds(1, top="train/") | birds(1, top="test/")), size=4)
    refused(lambda: drawn(one, None), "class 'crow' has 1 image: two are needed, one each for train, val; add some")


def test_every_class_gives_one_to_each_split(tmp_path: Path) -> None:
    found = read(put(tmp_path / "x", birds(3)), size=4)
    rows = drawn(found, tmp_path / "split.json", val_share=0.01, test_share=0.01)
    assert all(found.images.labels_N[rows[name]].tolist() == [0, 1, 2] for name in SPLITS)


def test_images_that_came_or_went(thirty: FolderImages, tmp_path: Path) -> None:
    path = put(tmp_path / "x", birds(10))
    place = tmp_path / "split.json"
    drawn(read(path, size=4), place)
    (path / "owl" / "003.png").unlink()
    (path / "owl" / "004.png").unlink()
    text = refused(
        lambda: drawn(read(path, size=4), place), f"{place} lists 2 images that {path} lacks, such as owl/00"
    )
    assert text.endswith(": delete it to draw a new split, or name another with --data.split-file")
    put(path, birds(11))
    refused(lambda: drawn(read(path, size=4), place), f"{place} lacks 3 images of {path}, such as crow/010.png: delete")


def test_broken_images_that_the_file_knows_are_no_fault(tmp_path: Path) -> None:
    path = put(tmp_path / "x", birds(10))
    place = tmp_path / "split.json"
    rows = drawn(read(path, size=4), place)
    before = names_of(read(path, size=4), rows)
    gone = before["train"][0]
    (path / gone).write_bytes(b"x")
    with pytest.warns(UserWarning, match=gone):
        found = read(path, size=4, skip_corrupt=True)
    after = names_of(found, drawn(found, place))
    assert after == before | {"train": before["train"][1:]}


def test_a_split_must_have_every_class(tmp_path: Path) -> None:
    path = put(tmp_path / "x", birds(10))
    place = tmp_path / "split.json"
    found = read(path, size=4)
    rows = names_of(found, drawn(found, place))
    (owl,) = (name for name in rows["val"] if name.startswith("owl"))
    listed = rows | {"val": [name for name in rows["val"] if name != owl], "train": [*rows["train"], owl]}
    place.write_text(json.dumps({"format": 1, "splits": listed}))
    refused(lambda: drawn(found, place), "split 'val' has no image of class 'owl': give it one, or remove the class")


def altered(value: dict, **changes: object) -> dict:
    return value | {"splits": value["splits"] | changes}


SPLIT_FAULTS = [
    (lambda value: [], "is no split file"),
    (lambda value: value | {"splits": []}, "is no split file"),
    (lambda value: value | {"format": 2}, "has another format than 1"),
    (lambda value: value | {"splits": {}}, "has the splits none, where train, val, test are drawn"),
    (lambda value: altered(value, extra=[]), "has the splits extra, test, train, val, where train"),
    (lambda value: altered(value, val=7), "is no split file"),
    (lambda value: altered(value, val=[7]), "is no split file"),
    (lambda value: altered(value, val=value["splits"]["test"]), " twice, in val and test"),
    (lambda value: altered(value, val=value["splits"]["val"] * 2), " twice, in val"),
    (lambda value: altered(value, val=[]), "lacks 3 images of "),
    (lambda value: altered(value, val=[*value["splits"]["val"], "two\nlines"]), r"lacks, such as 'two\nlines'"),
    (lambda value: altered(value, val=[*value["splits"]["val"], "\ud800"]), r"lacks, such as '\ud800'"),
]


@pytest.mark.parametrize("case", range(len(SPLIT_FAULTS)))
def test_faults_of_split_files(thirty: FolderImages, tmp_path: Path, case: int) -> None:
    path = tmp_path / "split.json"
    drawn(thirty, path)
    change, fault = SPLIT_FAULTS[case]
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    text = refused(lambda: drawn(thirty, path), fault, str(path))
    assert text.endswith(": delete it to draw a new split, or name another with --data.split-file")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"9" * 10_000])
def test_what_is_no_json(thirty: FolderImages, tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "split.json"
    path.write_bytes(body)
    refused(lambda: drawn(thirty, path), f"{path} is no split file")


def test_split_files_where_none_can_be(thirty: FolderImages, tmp_path: Path) -> None:
    refused(lambda: drawn(thirty, tmp_path), f"{tmp_path} is no split file")
    refused(lambda: drawn(thirty, tmp_path / ("x" * 300)), "cannot be read (File name too long): name another")
    (tmp_path / "file").touch()
    refused(lambda: drawn(thirty, tmp_path / "file" / "split.json"), "cannot write ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@FUZZ
@given(st.data())
def test_altered_split_files_are_refused_or_split(scratch: Path, thirty: FolderImages, data: st.DataObject) -> None:
    path = scratch / "split.json"
    path.unlink(missing_ok=True)
    drawn(thirty, path)
    value = json.loads(path.read_text())
    match data.draw(st.integers(0, 3)):
        case 0:
            value[data.draw(st.sampled_from(sorted(value)))] = data.draw(JSON)
        case 1:
            value["splits"][data.draw(st.sampled_from(SPLITS) | st.text(max_size=3))] = data.draw(JSON)
        case 2:
            # Images move between splits.
            names = st.lists(st.sampled_from(thirty.images.names), max_size=3)
            for name in SPLITS:
                taken = data.draw(names)
                value["splits"][name] = [member for member in value["splits"][name] if member not in taken]
                value["splits"][data.draw(st.sampled_from(SPLITS))] += taken
        case 3:
            members = value["splits"][data.draw(st.sampled_from(SPLITS))]
            members[data.draw(st.integers(0, len(members) - 1))] = data.draw(JSON)
    body = json.dumps(value).encode()
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(body) - 1))
        body = body[:at] + bytes([data.draw(st.integers(0, 255))]) + body[at + 1 :]
    path.write_bytes(body)
    try:
        rows = drawn(thirty, path)
    except UserError as error:
        refusal = str(error)
    else:
        assert sorted(torch.cat(list(rows.values())).tolist()) == list(range(30))
        assert all(len(thirty.images.labels_N[rows[name]].unique()) == 3 for name in SPLITS)
        return
    assert refusal.isprintable()


# --- real photos ---


@pytest.mark.real_data
def test_real_birds(real_birds: Path, tmp_path: Path) -> None:
    found = read(find("birds6_224.zip"), size=64)
    assert found.path == real_birds
    assert found.images.images_NHWC.shape == (811, 64, 64, 3)
    assert found.images.labels_N.bincount().tolist() == [143, 129, 131, 137, 139, 132]
    assert found.images.classes[0] == "AMERICAN-GOLDFINCH"
    assert found.images.names[143] == "BARN-OWL/001.jpg"
    assert found.images.images_NHWC.float().std() > 40
    with zipfile.ZipFile(real_birds) as archive, Image.open(archive.open("birds6/BARN-OWL/001.jpg")) as photo:
        whole = fitted(np.array(photo.convert("RGB")), 64, "crop")
    # Decoded at half of its size, then resized.
    assert np.abs(found.images.images_NHWC[143].numpy().astype(int) - whole).mean() < 3
    rows = split(found, tmp_path / "split.json", val_share=0.1, test_share=0.2, seed=0)
    assert sum(map(len, rows.values())) == 811
    assert found.images.labels_N[rows["val"]].bincount().tolist() == [14, 13, 13, 14, 14, 13]
