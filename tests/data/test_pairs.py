"""Pairs of pictures: published archives, subsets, users' folders, grey photos, made-up towns, and bad input."""

import dataclasses
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.studies.resnet.common import BROKEN, picture, zipped

from etude.core.errors import UserError
from etude.data import pairs
from etude.data.fetch import fetch, status
from etude.data.images import fitted
from etude.data.pairs import SPLITS
from etude.data.tiles import tiles

SHARES: dict[str, Any] = {"val_share": 0.2, "test_share": 0.2, "seed": 0}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ETUDE_MIRROR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flat(colour_a: int, colour_b: int, height: int = 12, width: int = 24) -> Image.Image:
    """A side-by-side picture of two plain greys."""
    image = np.full((height, width, 3), colour_a, np.uint8)
    image[:, width // 2 :] = colour_b
    return Image.fromarray(image)


def numbered(folder: Path, count: int, first: int = 0) -> Path:
    """Pairs of greys n and 255 - n."""
    folder.mkdir(parents=True)
    for number in range(first, first + count):
        flat(number, 255 - number).save(folder / f"{number:03d}.png")
    return folder


def values(split: pairs.Pairs) -> list[tuple[int, int]]:
    """The greys of each pair, which must be flat."""
    both = split.pairs_N2HWC.flatten(2)
    assert (both == both[..., :1]).all()
    return [tuple(row) for row in both[..., 0].tolist()]


def one_line(caught: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


# --- a user's folder ---


def test_a_flat_folder_is_split_once_and_for_all() -> None:
    numbered(Path("mine"), 20)
    read = pairs.folder("mine", "", 10, 8, **SHARES)
    counts = {split: len(read.splits[split]) for split in SPLITS}
    assert counts == {"train": 12, "val": 4, "test": 4}
    assert read.splits["train"].pairs_N2HWC.shape == (12, 2, 10, 10, 3)
    assert read.splits["test"].pairs_N2HWC.shape == (4, 2, 8, 8, 3)
    seen = [value for split in SPLITS for value in values(read.splits[split])]
    assert sorted(seen) == [(number, 255 - number) for number in range(20)], "the left half first"
    for split in SPLITS:
        assert [f"{a:03d}.png" for a, _ in values(read.splits[split])] == list(read.splits[split].names)
    assert pairs.folder("mine", "", 10, 8, **SHARES).splits["val"].names == read.splits["val"].names
    other = pairs.folder("mine", "", 10, 8, **(SHARES | {"seed": 1}))
    assert other.splits["val"].names != read.splits["val"].names
    assert "mine, 12 / 4 / 4 pairs" in read.about


def test_sub_folders_are_taken_as_they_are() -> None:
    for first, (name, count) in enumerate((("train", 6), ("valid", 2), ("test", 3))):
        numbered(Path("mine") / name, count, 20 * first)
    read = pairs.folder("mine", "", 8, 8, **SHARES)
    assert [len(read.splits[split]) for split in SPLITS] == [6, 2, 3]
    assert values(read.splits["val"]) == [(20, 235), (21, 234)]
    zipped(Path("mine"), Path("mine.zip"))
    again = pairs.folder("mine.zip", "", 8, 8, **SHARES)
    for split in SPLITS:
        assert torch.equal(again.splits[split].pairs_N2HWC, read.splits[split].pairs_N2HWC)
    assert set(again.checksums.values()) != set()


def test_without_a_test_folder_training_pairs_are_drawn() -> None:
    numbered(Path("mine/train"), 10)
    numbered(Path("mine/val"), 2, 20)
    read = pairs.folder("mine", "", 8, 8, **SHARES)
    assert [len(read.splits[split]) for split in SPLITS] == [8, 2, 2]
    assert values(read.splits["val"]) == [(20, 235), (21, 234)]


def test_two_folders_are_matched_by_name() -> None:
    for folder, shift in (("a", 0), ("b", 100)):
        Path(folder).mkdir()
        for number in range(6):
            ending = "jpg" if folder == "b" and number == 2 else "png"
            Image.fromarray(np.full((9, 7, 3), number + shift, np.uint8)).save(
                f"{folder}/{number}.{ending}", quality=100
            )
    read = pairs.folder("a", "b", 8, 8, **SHARES)
    seen = [value for split in SPLITS for value in values(read.splits[split])]
    assert sorted(seen) == [(number, number + 100) for number in range(6)]


def test_grey_pictures_become_three_equal_channels() -> None:
    Path("mine").mkdir()
    for number in range(4):
        flat(number, 200).convert("L").save(f"mine/{number}.png")
    read = pairs.folder("mine", "", 8, 8, **SHARES)
    assert {b for split in SPLITS for _, b in values(read.splits[split])} == {200}


def test_a_changed_picture_is_read_again() -> None:
    numbered(Path("mine"), 4)
    before = pairs.folder("mine", "", 8, 8, **SHARES)
    flat(90, 91, 30, 60).save("mine/002.png")
    after = pairs.folder("mine", "", 8, 8, **SHARES)
    assert (90, 91) in [value for split in SPLITS for value in values(after.splits[split])]
    assert before.checksums != after.checksums


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: numbered(Path("mine"), 1), ("has one picture to train on and to draw val and test from", "add pairs")),
        (lambda: numbered(Path("mine"), 2), ("has 2 pictures to train on",)),
        (lambda: Path("mine").mkdir(), ("holds no image",)),
        (lambda: None, ("mine does not exist here", "--data.folder")),
        (lambda: numbered(Path("mine/val"), 2) and numbered(Path("mine/test"), 2), ("but no 'train'",)),
        (
            lambda: [numbered(Path("mine") / name, 2) for name in ("train", "val", "valid")],
            ("has both 'val' and 'valid'", "keep one"),
        ),
    ],
)
def test_folders_that_are_no_pairs(make: Any, says: tuple[str, ...]) -> None:
    make()
    with pytest.raises(UserError) as caught:
        pairs.folder("mine", "", 8, 8, **SHARES)
    one_line(caught, *says)


def test_an_odd_width() -> None:
    numbered(Path("mine"), 5)
    flat(1, 2, 12, 25).save("mine/odd.png")
    with pytest.raises(UserError) as caught:
        pairs.folder("mine", "", 8, 8, **SHARES)
    one_line(caught, "odd.png is 25 pixels wide, which two halves cannot share", "A on the left")


def test_names_without_a_partner_are_listed_and_cut() -> None:
    numbered(Path("a"), 12)
    numbered(Path("b"), 3, 11)
    with pytest.raises(UserError) as caught:
        pairs.folder("a", "b", 8, 8, **SHARES)
    one_line(
        caught, "11 in a alone (000.png, 001.png, 002.png, 003.png, 004.png and 6 more)",
        "2 in b alone (012.png, 013.png)", "give both the same names",
    )  # fmt: skip


def test_two_pictures_of_one_name() -> None:
    numbered(Path("a"), 4)
    numbered(Path("b"), 4)
    flat(1, 1).save("b/002.jpg")
    with pytest.raises(UserError) as caught:
        pairs.folder("a", "b", 8, 8, **SHARES)
    one_line(caught, "b has both 002.jpg and 002.png", "keep one picture a name")


def test_two_sizes() -> None:
    numbered(Path("a"), 4)
    numbered(Path("b"), 4)
    flat(1, 1, 30, 20).save("b/002.png")
    with pytest.raises(UserError) as caught:
        pairs.folder("a", "b", 8, 8, **SHARES)
    one_line(caught, "002.png is 24 x 12 pixels in A and 20 x 30 in B", "same size")


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_broken_and_gigantic_pictures(name: str) -> None:
    numbered(Path("mine"), 4)
    write, says = BROKEN[name]
    write(Path("mine") / name)
    with pytest.raises(UserError) as caught:
        pairs.folder("mine", "", 8, 8, **SHARES)
    one_line(caught, name, says)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 3))
def test_any_bytes_are_a_pair_or_one_line(tmp_path: Path, body: bytes, kept: int) -> None:
    folder = tmp_path / hashlib.sha256(body + bytes([kept])).hexdigest()[:16]
    if not folder.exists():
        numbered(folder, 3)
    whole = io.BytesIO()
    flat(1, 2).save(whole, "png")
    # Damaged PNG files, not random bytes alone.
    (folder / "x.png").write_bytes(whole.getvalue()[: 20 * kept] + body)
    with pytest.raises(UserError) as caught:
        pairs.folder(str(folder), "", 8, 8, **SHARES)
    one_line(caught, "x.png")


# --- grey photos ---


def test_grey_photos_at_any_depth() -> None:
    for number in range(6):
        folder = Path("photos") / "birds" / f"species{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        picture(number, 20, 30).save(folder / f"{number}.png")
    read = pairs.grey("photos", 12, 8, **SHARES)
    assert sum(len(read.splits[split]) for split in SPLITS) == 6
    for split in SPLITS:
        grey, colour = read.splits[split].pairs_N2HWC.float().unbind(1)
        assert (grey == grey[..., :1]).all()
        weights = torch.tensor([0.299, 0.587, 0.114])
        assert (grey[..., 0] - colour @ weights).abs().max() <= 1
        assert (colour[..., 0] - colour[..., 1]).abs().max() > 10, "it has colours"
    Path("empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        pairs.grey("empty", 12, 8, **SHARES)


# --- the published archives and their subsets ---


def packed(name: str, counts: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive as the home has them, in a mirror."""
    Path("pairs").mkdir(exist_ok=True)
    path = Path("pairs") / f"{name}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for first, (split, count) in enumerate(counts.items()):
            # Not in the order of their names.
            for number in reversed(range(count)):
                body = io.BytesIO()
                flat(number, 100 + first).save(body, "png")
                info = tarfile.TarInfo(f"{name}/{split}/{number}.png")
                info.size = body.tell()
                body.seek(0)
                archive.addfile(info, body)
        info = tarfile.TarInfo("../../evil.png")
        archive.addfile(info, io.BytesIO(b""))
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(pairs.ARCHIVES, name, dataclasses.replace(pairs.ARCHIVES[name], sha256=f"md5:{md5}"))


def test_an_archive_with_all_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    packed("facades", {"train": 12, "val": 3, "test": 4}, monkeypatch)
    read = pairs.archive("facades", 10, 8)
    assert [len(read.splits[split]) for split in SPLITS] == [12, 3, 4]
    assert read.splits["train"].names[:3] == ("train/0.png", "train/1.png", "train/10.png")
    assert values(read.splits["train"])[:3] == [(0, 100), (1, 100), (10, 100)]
    assert values(read.splits["test"]) == [(number, 102) for number in range(4)]
    # From the cache alone.
    again = pairs.archive("facades", 10, 8)
    assert torch.equal(again.splits["val"].pairs_N2HWC, read.splits["val"].pairs_N2HWC)


def test_val_is_the_test_split_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    packed("maps", {"train": 10, "val": 3}, monkeypatch)
    read = pairs.archive("maps", 8, 8)
    assert [len(read.splits[split]) for split in SPLITS] == [5, 5, 3]
    assert all(name.startswith("val/") for name in read.splits["test"].names)
    assert not set(read.splits["train"].names) & set(read.splits["val"].names)


def test_an_md5_digest_is_held_to(monkeypatch: pytest.MonkeyPatch) -> None:
    packed("maps", {"train": 4, "val": 2}, monkeypatch)
    source = pairs.ARCHIVES["maps"]
    assert fetch(source) == Path("pairs/maps.tar.gz").absolute()
    assert status(source) == "verified"
    body = Path("pairs/maps.tar.gz").read_bytes()
    Path("pairs/maps.tar.gz").write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    assert status(source, recheck=True) == "altered"
    lost = dataclasses.replace(source, url="http://127.0.0.1:9/maps.tar.gz")
    with pytest.raises(UserError) as caught:
        fetch(lost)
    one_line(caught, "pairs/maps.tar.gz cannot be fetched", f"md5 {source.sha256[4:]}")


def test_a_damaged_archive_of_the_right_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    packed("maps", {"train": 4, "val": 2}, monkeypatch)
    path = Path("pairs/maps.tar.gz")
    path.write_bytes(path.read_bytes()[:200])
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(pairs.ARCHIVES, "maps", dataclasses.replace(pairs.ARCHIVES["maps"], sha256=f"md5:{md5}"))
    with pytest.raises(UserError) as caught:
        pairs.archive("maps", 8, 8)
    one_line(caught, "maps.tar.gz is damaged", "fetch it again")


def fifty(count: int = 50) -> None:
    with zipfile.ZipFile("maps_subset_256x512.zip", "w") as archive:
        for number in range(count):
            body = io.BytesIO()
            flat(number, 200).save(body, "png")
            archive.writestr(f"maps/val/{1000 + number}.png", body.getvalue())


def test_a_subset_is_split_by_name() -> None:
    fifty()
    read = pairs.subset("maps", 8, 8)
    assert [len(read.splits[split]) for split in SPLITS] == [38, 6, 6]
    assert [a for split in SPLITS for a, _ in values(read.splits[split])] == list(range(50))
    assert read.about == "50-pair subset of maps, 38 / 6 / 6 pairs"


def test_a_subset_of_another_count_or_none() -> None:
    with pytest.raises(UserError, match=r"maps_subset_256x512.zip.*ETUDE_MIRROR"):
        pairs.subset("maps", 8, 8)
    fifty(49)
    with pytest.raises(UserError, match="holds 49 pairs, not 50: copy it again"):
        pairs.subset("maps", 8, 8)


@pytest.mark.real_data
@pytest.mark.parametrize("name", pairs.SUBSETS)
def test_the_real_subsets(name: str, real_pairs: Path) -> None:
    read = pairs.subset(name, 40, 32)
    assert [len(read.splits[split]) for split in SPLITS] == [38, 6, 6]
    a, b = read.splits["train"].pairs_N2HWC.float().unbind(1)
    assert (a - b).abs().mean() > 10, "two pictures, not one"


# --- made-up towns ---


def test_towns() -> None:
    photos, maps = tiles(40, 32, 3)
    assert photos.shape == maps.shape == (40, 32, 32, 3)
    assert photos.dtype == maps.dtype == torch.uint8
    fewer = tiles(33, 32, 3)
    assert torch.equal(fewer[0], photos[:33]), "a larger count adds to the first ones"
    assert torch.equal(fewer[1], maps[:33])
    assert not torch.equal(tiles(40, 32, 4)[1], maps)
    assert len({image.numpy().tobytes() for image in maps}) == 40
    # Water is dark in the photo and light blue in the map.
    water = (maps.int() - torch.tensor([170, 211, 237])).abs().amax(-1) < 3
    assert 0.02 < water.float().mean() < 0.4
    assert photos[water].float().mean() < photos[~water].float().mean() - 20
    assert photos.float().std() > 20


def test_generated_splits_have_towns_of_their_own() -> None:
    read = pairs.generated(20, 16, {"train": 5, "val": 2, "test": 3})
    assert [len(read.splits[split]) for split in SPLITS] == [5, 2, 3]
    assert read.splits["train"].pairs_N2HWC.shape == (5, 2, 20, 20, 3)
    assert not torch.equal(read.splits["val"].pairs_N2HWC[:2], read.splits["test"].pairs_N2HWC[:2])


def test_the_set_names_its_files() -> None:
    assert [source.filename for source in pairs.DATASET.sources] == [
        "maps.tar.gz", "facades.tar.gz", "edges2shoes.tar.gz"
    ]  # fmt: skip
    assert all(source.sha256.startswith("md5:") for source in pairs.DATASET.sources)
    assert fitted(np.zeros((5, 9, 3), np.uint8), 4, "squash").shape == (4, 4, 3)
