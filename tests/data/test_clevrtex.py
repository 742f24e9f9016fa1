"""Scenes with masks: the released layout, its crop and splits, its archives, and folders that are wrong."""

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from etude.core.errors import UserError
from etude.data import clevrtex
from etude.data.clevrtex import SPLITS


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, number: int, size: tuple[int, int] = (32, 32), mask: Image.Image | None = None) -> None:
    """A grey picture that tells its number, with two objects."""
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (number, number, number))
    # A scene of one colour is refused.
    image.paste((200, 100, 50), (size[0] // 2, size[1] // 2, size[0] // 2 + 4, size[1] // 2 + 4))
    image.save(folder / f"CLEVRTEX_full_{number:06d}.png")
    if mask is None:
        values = np.zeros((size[1], size[0]), np.uint8)
        values[: size[1] // 2], values[:, : size[0] // 4] = 2, 5
        mask = Image.fromarray(values)
    mask.save(folder / f"CLEVRTEX_full_{number:06d}_flat.png")


def released(count: int = 25, **options: tuple[int, int]) -> Path:
    """A folder for every ten scenes, as the released set has one for every thousand."""
    for number in range(count):
        write(Path("clevrtex_full") / str(number // 10), number, **options)
    return Path("clevrtex_full")


def refused(*says: str, size: int = 32) -> None:
    with pytest.raises(UserError) as caught:
        clevrtex.scenes("clevrtex_full", size)
    text = str(caught.value)
    assert "\n" not in text
    for part in says:
        assert part in text, text


def test_the_first_tenth_is_the_test_split() -> None:
    released()
    read = clevrtex.scenes("clevrtex_full", 32)
    assert read.about == "scenes of clevrtex_full, 20 / 3 / 2"
    assert {split: len(read.splits[split]) for split in SPLITS} == {"train": 20, "val": 3, "test": 2}
    for split, numbers in (("test", range(2)), ("val", range(2, 5)), ("train", range(5, 25))):
        scenes = read.splits[split]
        assert scenes.images_NHWC[:, 0, 0, 0].tolist() == list(numbers)
        assert scenes.names[0] == f"CLEVRTEX_full_{numbers[0]:06d}"
        assert (scenes.images_NHWC.dtype, scenes.masks_NHW.dtype) == (torch.uint8, torch.uint8)
        assert scenes.masks_NHW.unique().tolist() == [0, 2, 5]
    assert clevrtex.scenes("clevrtex_full", 32, most=10).about.endswith("8 / 1 / 1")


def test_what_is_not_square_is_cut_as_the_authors_cut_it() -> None:
    """320 x 240 to the middle 192 x 192: 24 rows and 64 columns are left out before the first."""
    values = np.arange(240 * 320, dtype=np.int64).reshape(240, 320)
    mask = Image.fromarray((values // 320).astype(np.uint8))
    for number in range(10):
        write(Path("clevrtex_full"), number, (320, 240), mask)
    found = clevrtex.scenes("clevrtex_full", 192).splits["train"]
    assert found.masks_NHW[0, :, 0].tolist() == list(range(24, 216))
    smaller = clevrtex.scenes("clevrtex_full", 64).splits["train"]
    assert smaller.images_NHWC.shape == (8, 64, 64, 3)
    assert smaller.masks_NHW[0, :, 0].tolist() == list(range(25, 216, 3))


def test_a_mask_keeps_its_numbers_whatever_its_palette() -> None:
    released()
    coloured = Image.fromarray(np.full((32, 32), 3, np.uint8), "P")
    coloured.putpalette(list(range(255, -1, -1)) * 3)
    write(Path("clevrtex_full/0"), 9, mask=coloured)
    assert clevrtex.scenes("clevrtex_full", 32).splits["train"].masks_NHW[4].unique().tolist() == [3]


def test_a_zip_file_is_the_folder() -> None:
    released()
    with zipfile.ZipFile("packed.zip", "w") as packed:
        for path in sorted(Path("clevrtex_full").rglob("*.png"), reverse=True):
            packed.write(path)
        packed.writestr("clevrtex_full/meta.json", "[]")
    folder, archive = clevrtex.scenes("clevrtex_full", 16), clevrtex.scenes("packed.zip", 16)
    for split in SPLITS:
        assert torch.equal(folder.splits[split].images_NHWC, archive.splits[split].images_NHWC)
        assert torch.equal(folder.splits[split].masks_NHW, archive.splits[split].masks_NHW)


def test_it_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    released()
    first = clevrtex.scenes("clevrtex_full", 32)
    with monkeypatch.context() as patch:
        patch.setattr(clevrtex, "in_threads", lambda *_: pytest.fail("decoded again"))
        again = clevrtex.scenes("clevrtex_full", 32)
    assert torch.equal(first.splits["train"].images_NHWC, again.splits["train"].images_NHWC)
    write(Path("clevrtex_full/0"), 7, mask=Image.new("L", (32, 32), 9))
    assert (clevrtex.scenes("clevrtex_full", 32).splits["train"].masks_NHW[2] == 9).all()


def test_generated_splits_have_scenes_of_their_own() -> None:
    read = clevrtex.generated(24, {"train": 6, "val": 4, "test": 4})
    assert read.about == "generated scenes, 6 / 4 / 4"
    assert not torch.equal(read.splits["val"].images_NHWC, read.splits["test"].images_NHWC)


@pytest.mark.real_data
def test_rendered_scenes(real_scenes: Path) -> None:
    read = clevrtex.scenes(str(real_scenes), 64, most=40)
    assert read.about.endswith("32 / 4 / 4")
    for scenes in read.splits.values():
        counts = [len(mask.unique()) - 1 for mask in scenes.masks_NHW]
        assert min(counts) >= 3
        assert max(counts) <= 10
        assert scenes.images_NHWC.float().std() > 20


# --- faults ---


def archives(folder: Path, *, pieces: bool, scenes: range = range(12), side: int = 32) -> None:
    """Two archives in a mirror: each whole, or the pieces of one."""

    def packed(numbers: range) -> bytes:
        body = io.BytesIO()
        with tarfile.open(fileobj=body, mode="w:gz") as archive:
            for number in numbers:
                for ending in (".png", "_flat.png"):
                    name = f"CLEVRTEX_full_{number:06d}{ending}"
                    archive.add(Path("clevrtex_full") / str(number // 10) / name, f"clevrtex_full/0/{name}")
        return body.getvalue()

    released(max(scenes) + 1)
    for number in scenes if side > 32 else ():
        # Noise, which packs to no less.
        noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
        name = f"CLEVRTEX_full_{number:06d}"
        Image.fromarray(noise).save(Path("clevrtex_full") / str(number // 10) / f"{name}.png")
        Image.fromarray(noise[..., 0] // 64).save(Path("clevrtex_full") / str(number // 10) / f"{name}_flat.png")
    half = len(scenes) // 2
    whole = packed(scenes)
    # Pieces break in the middle of a file.
    parts = (
        [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
        if pieces
        else [packed(scenes[:half]), packed(scenes[half:])]
    )
    (folder / "clevrtex").mkdir(parents=True)
    for source, part in zip(clevrtex.ARCHIVES, parts, strict=True):
        (folder / source.name).write_bytes(part)


@pytest.fixture
def two_archives(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A released set of twelve scenes in two archives, to be found in a mirror."""
    monkeypatch.setattr(clevrtex, "NUM_SCENES", 12)
    monkeypatch.setattr(clevrtex, "ARCHIVES", clevrtex.ARCHIVES[:2])
    monkeypatch.setattr(clevrtex, "_BATCH", 5)
    (here / "mirror").mkdir()
    monkeypatch.setenv("ETUDE_MIRROR", str(here / "mirror"))
    return here / "mirror"


@pytest.mark.parametrize("pieces", [True, False])
def test_the_released_archives_are_the_folder(two_archives: Path, pieces: bool) -> None:
    archives(two_archives, pieces=pieces)
    read, folder = clevrtex.released(16), clevrtex.scenes("clevrtex_full", 16)
    assert read.about == "CLEVRTex"
    for split in SPLITS:
        torch.testing.assert_close(read.splits[split].images_NHWC, folder.splits[split].images_NHWC)
        torch.testing.assert_close(read.splits[split].masks_NHW, folder.splits[split].masks_NHW)
        assert read.splits[split].names == folder.splits[split].names
    assert all(len(digest) == 64 for digest in read.checksums.values())
    assert len(read.checksums) == 2
    # From then on the decoded scenes do.
    for source in clevrtex.ARCHIVES:
        (two_archives / source.name).unlink()
    assert clevrtex.released(16).checksums == read.checksums


def test_of_the_first_scenes_the_first_archive_is_enough(two_archives: Path) -> None:
    archives(two_archives, pieces=False, side=96)
    (two_archives / clevrtex.ARCHIVES[1].name).unlink()
    read = clevrtex.released(16, most=3)
    assert read.about == "a part of CLEVRTex, 1 / 1 / 1"
    # Of twelve scenes the first is the test split's and the second validation's.
    assert [read.splits[split].names[0][-2:] for split in ("test", "val", "train")] == ["00", "01", "02"]
    assert list(read.checksums) == [clevrtex.ARCHIVES[0].name]


def test_a_part_of_the_released_set_keeps_its_splits(two_archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests in the whole set trains in no part of it."""
    monkeypatch.setattr(clevrtex, "NUM_SCENES", 30)
    archives(two_archives, pieces=False, scenes=range(30))
    whole, part = clevrtex.released(16), clevrtex.released(16, most=10)
    for split in SPLITS:
        names = part.splits[split].names
        assert names == whole.splits[split].names[: len(names)]
        torch.testing.assert_close(part.splits[split].images_NHWC, whole.splits[split].images_NHWC[: len(names)])
    assert {split: len(part.splits[split]) for split in SPLITS} == {"train": 8, "val": 1, "test": 1}


def test_archives_that_are_damaged_or_lack_a_scene(two_archives: Path) -> None:
    archives(two_archives, pieces=False, scenes=range(1, 12))
    with pytest.raises(UserError, match=r"lack 1 scenes \(000000\): `etude data get clevrtex --force`"):
        clevrtex.released(16)
    path = two_archives / clevrtex.ARCHIVES[1].name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"damaged|cannot be fetched") as caught:
        clevrtex.released(16)
    assert "\n" not in str(caught.value)


def test_a_half_rendered_folder_says_how_to_go_on() -> None:
    released(12)
    for number in range(12):
        # What the renderer writes last of a scene.
        (Path("clevrtex_full") / str(number // 10) / f"CLEVRTEX_full_{number:06d}.json").write_text("{}")
    Path("clevrtex_full/meta.json").write_text(json.dumps({"count": 30}))
    refused("is half rendered (12 of 30 scenes)", "`etude data render clevrtex --count 30 --out clevrtex_full` goes on")
    assert len(clevrtex.scenes("clevrtex_full", 32, most=12).splits["train"]) == 10
    # Stopped between a picture and its mask, it is half rendered all the same.
    (Path("clevrtex_full/1/CLEVRTEX_full_000011_flat.png")).unlink()
    refused("is half rendered")
    (Path("clevrtex_full/1/CLEVRTEX_full_000011.png")).unlink()
    (Path("clevrtex_full/1/CLEVRTEX_full_000011.json")).unlink()
    for body in (json.dumps({"count": 11}), "[]", '{"count": "many"}'):
        Path("clevrtex_full/meta.json").write_text(body)
        assert len(clevrtex.scenes("clevrtex_full", 32).splits["train"]) == 9


def test_a_scene_of_one_colour_is_named() -> None:
    released(12)
    Image.new("RGB", (32, 32)).save("clevrtex_full/0/CLEVRTEX_full_000007.png")
    refused("CLEVRTEX_full_000007.png is of one colour", "render it again")


def test_masks_that_are_missing_are_named() -> None:
    released()
    for number in range(7):
        (Path("clevrtex_full/0") / f"CLEVRTEX_full_{number:06d}_flat.png").unlink()
    refused("7 scenes without a mask (CLEVRTEX_full_000000, ", " and 2 more)")
    released()
    (Path("clevrtex_full/0") / "CLEVRTEX_full_000003.png").unlink()
    refused("1 scenes without a picture (CLEVRTEX_full_000003)")


def test_sizes_that_differ() -> None:
    released()
    write(Path("clevrtex_full/1"), 12, (48, 32))
    refused("CLEVRTEX_full_000012.png is 48 x 32 pixels, and others 32 x 32", "one size")
    write(Path("clevrtex_full/1"), 12, mask=Image.new("L", (16, 32)))
    refused("CLEVRTEX_full_000012_flat.png is 16 x 32 pixels, and others 32 x 32", "its picture's mask")


def test_masks_that_are_none() -> None:
    released()
    write(Path("clevrtex_full/1"), 12, mask=Image.new("RGB", (32, 32)))
    refused("CLEVRTEX_full_000012_flat.png is no mask (its pixels are RGB)")
    write(Path("clevrtex_full/1"), 12, mask=Image.fromarray(np.full((32, 32), 300, np.uint16)))
    refused("has an object numbered 300")
    (Path("clevrtex_full/1") / "CLEVRTEX_full_000012_flat.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    refused("CLEVRTEX_full_000012_flat.png is no mask that can be read")


def test_folders_that_are_none() -> None:
    with pytest.raises(UserError, match="does not exist"):
        clevrtex.scenes("nowhere", 32)
    Path("clevrtex_full").mkdir()
    refused("holds no scenes", "CLEVRTEX_<variant>_NNNNNN.png")
    released(9)
    refused("holds 9 scenes, too few")
    released()
    write(Path("clevrtex_full/2"), 3)
    refused("has CLEVRTEX_full_000003 twice")


# --- a user's picture ---


def test_a_picture_is_cut_as_scenes_are() -> None:
    wide = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    Image.fromarray(wide).save("wide.png")
    Image.fromarray(wide[:, 40:280]).save("square.png")
    cut = clevrtex.read_picture(Path("wide.png"), 192, 10**6)
    assert (cut.shape, cut.dtype) == ((192, 192, 3), np.uint8)
    assert np.array_equal(cut, wide[24:216, 64:256])
    assert np.array_equal(clevrtex.read_picture(Path("square.png"), 240, 10**6), wide[:, 40:280]), "it stays whole"
    small = clevrtex.read_picture(Path("wide.png"), 64, 10**6)
    wanted = np.array(Image.fromarray(wide[24:216, 64:256]).resize((64, 64), Image.Resampling.BILINEAR))
    assert np.array_equal(small, wanted)
    assert clevrtex.read_picture(Path("square.png"), 250, 10**6).shape == (250, 250, 3), "a small one is enlarged"


def test_pictures_that_are_refused() -> None:
    Image.new("RGB", (30, 20), (1, 2, 3)).save("flat.png")
    Image.new("RGB", (30, 20)).save("large.png")
    Path("broken.png").write_bytes(b"\x89PNG")
    for name, most, says in (
        ("flat.png", 600, "flat.png is of one colour"),
        ("large.png", 599, "large.png is 30 x 20 pixels, more than 599"),
        ("broken.png", 600, "broken.png is not an image"),
        ("none.png", 600, "none.png does not exist"),
    ):
        with pytest.raises(UserError) as caught:
            clevrtex.read_picture(Path(name), 16, most)
        assert str(caught.value).startswith(says)
        assert "\n" not in str(caught.value)
