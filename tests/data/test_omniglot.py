"""Omniglot: the published counts, splits, rotations and pixels, and archives that are not the published ones."""

import dataclasses
import hashlib
import io
import re
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from etude.core.errors import UserError
from etude.data import cache, load, omniglot
from etude.data.fetch import fetch
from etude.data.omniglot import CharacterPool

pytestmark = pytest.mark.real_data

SPLITS = ("train", "val", "test")
CHARACTERS = {"train": 1028, "val": 172, "test": 423, "trainval": 1200}


@pytest.fixture
def pools(real_omniglot: None) -> dict[str, CharacterPool]:
    return {split: omniglot.load(split) for split in SPLITS}


def upright(pool: CharacterPool) -> set[str]:
    return {name[:-7] for name in pool.names}


def test_splits_have_the_published_sizes(pools: dict[str, CharacterPool]) -> None:
    for split, pool in pools.items():
        assert len(pool) == 4 * CHARACTERS[split]
        assert len(upright(pool)) == CHARACTERS[split]
        assert pool.images_CNHW.shape == (4 * CHARACTERS[split], 20, 28, 28)
        assert pool.images_CNHW.dtype == torch.uint8
        assert len(set(pool.names)) == len(pool)


def test_splits_share_no_character_and_no_drawing(pools: dict[str, CharacterPool]) -> None:
    names = [upright(pool) for pool in pools.values()]
    assert len(set.union(*names)) == sum(map(len, names)) == omniglot.NUM_CHARACTERS == 1623
    drawings = [{row.numpy().tobytes() for row in pool.images_CNHW.flatten(0, 1)} for pool in pools.values()]
    for one in range(3):
        for two in range(one):
            assert not drawings[one] & drawings[two]


def test_there_are_fifty_alphabets(pools: dict[str, CharacterPool]) -> None:
    alphabets = {name.split("/")[0] for pool in pools.values() for name in pool.names}
    assert len(alphabets) == 50
    assert {"Korean", "Tengwar", "Braille", "Angelic"} <= alphabets


def test_train_and_val_together(pools: dict[str, CharacterPool]) -> None:
    both = omniglot.load("trainval")
    assert both.names == (*pools["train"].names, *pools["val"].names)
    assert torch.equal(both.images_CNHW, torch.cat([pools["train"].images_CNHW, pools["val"].images_CNHW]))
    assert not upright(both) & upright(pools["test"])


def test_rotations_are_quarter_turns_of_the_upright_drawing(pools: dict[str, CharacterPool]) -> None:
    for pool in pools.values():
        row = {name: number for number, name in enumerate(pool.names)}
        for name in sorted(upright(pool))[::40]:
            straight = pool.images_CNHW[row[f"{name}/rot000"]].numpy()
            for turn in range(4):
                turned = pool.images_CNHW[row[f"{name}/rot{90 * turn:03d}"]].numpy()
                np.testing.assert_array_equal(turned, np.rot90(straight, turn, axes=(1, 2)))


def test_a_group_is_one_alphabet_at_one_rotation(pools: dict[str, CharacterPool]) -> None:
    for pool in pools.values():
        assert len(pool.groups_C) == len(pool)
        members: dict[int, set[str]] = {}
        for name, group in zip(pool.names, pool.groups_C.tolist(), strict=True):
            alphabet, _, rotation = name.split("/")
            members.setdefault(group, set()).add(f"{alphabet}/{rotation}")
        assert {group: {pool.group_names[group]} for group in members} == members
        assert len(members) == len(pool.group_names)


def test_ink_is_bright_on_black_paper(pools: dict[str, CharacterPool]) -> None:
    images = pools["test"].images_CNHW
    assert images.max() == 255
    border = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], -1)
    assert border.float().mean() < 0.02 * 255
    assert 0.02 * 255 < images.float().mean() < 0.2 * 255
    assert (images.flatten(2).amax(-1) > 0).all(), "a drawing without ink"


def archived(character: str) -> list[Image.Image]:
    """The twenty pictures of a character, straight from the archives."""
    for source in omniglot.ARCHIVES:
        with zipfile.ZipFile(fetch(source)) as archive:
            names = sorted(name for name in archive.namelist() if f"/{character}/" in name and name.endswith(".png"))
            if names:
                return [Image.open(io.BytesIO(archive.read(name))) for name in names]
    raise AssertionError(character)


def test_area_resizing_is_the_mean_of_pixels(pools: dict[str, CharacterPool]) -> None:
    pool = pools["test"]
    # 105 pixels to 28: a pixel counts where its centre lies, so three or four of them a side make one.
    box = np.ceil((np.arange(105) + 0.5) / 3.75).astype(int) - 1
    mean = (np.arange(28)[:, None] == box) / np.bincount(box)[:, None]
    upright_ones = [number for number, name in enumerate(pool.names) if name.endswith("/rot000")]
    for number in upright_ones[::200]:
        for row, picture in enumerate(archived(pool.names[number].removesuffix("/rot000"))):
            ink = 1.0 - np.asarray(picture, np.float64)
            assert ink.shape == (105, 105)
            np.testing.assert_allclose(pool.images_CNHW[number, row], 255 * mean @ ink @ mean.T, atol=1)


def test_nearest_resizing_keeps_single_pixels() -> None:
    ink = np.random.default_rng(0).random((105, 105)) < 0.1
    picture = Image.fromarray(~ink)
    assert picture.mode == "1"
    nearest = omniglot._resized(picture, 28, "nearest")
    centres = ((np.arange(28) + 0.5) * 3.75).astype(int)
    np.testing.assert_array_equal(nearest, 255 * ~ink[np.ix_(centres, centres)])
    area = omniglot._resized(picture, 28, "area")
    assert area.shape == nearest.shape
    # Averaging loses no ink; dropping pixels may.
    assert 255 - area.mean() == pytest.approx(255 * ink.mean(), abs=0.5)


@pytest.mark.slow
def test_nearest_pools_are_one_bit_and_other_files(real_omniglot: None) -> None:
    nearest, area = omniglot.load("val", resize="nearest"), omniglot.load("val")
    assert nearest.names == area.names
    assert set(nearest.images_CNHW.unique().tolist()) == {0, 255}
    assert not torch.equal(nearest.images_CNHW, area.images_CNHW)


@pytest.mark.slow
def test_other_sizes(real_omniglot: None) -> None:
    assert omniglot.load("val", size=20).images_CNHW.shape == (688, 20, 20, 20)


def test_checksums_are_of_what_is_read(real_omniglot: None) -> None:
    listed = omniglot.checksums()
    assert set(listed) == {"pictures", "vinyals/train.txt", "vinyals/val.txt", "vinyals/test.txt"}
    for split, source in omniglot.SPLITS.items():
        assert hashlib.sha256(fetch(source).read_bytes()).hexdigest() == listed[f"vinyals/{split}.txt"]
    content = hashlib.sha256()
    for source in omniglot.ARCHIVES:
        with zipfile.ZipFile(fetch(source)) as archive:
            for name in sorted(name for name in archive.namelist() if name.endswith(".png")):
                with Image.open(io.BytesIO(archive.read(name))) as picture:
                    content.update(name.encode() + np.asarray(picture, np.uint8).tobytes())
    assert content.hexdigest() == listed["pictures"]


def test_the_set_names_its_files() -> None:
    assert load("omniglot").sources == (*omniglot.ARCHIVES, *omniglot.SPLITS.values())
    assert all(
        re.fullmatch(r"[0-9a-f]{64}", digest) for source in load("omniglot").sources for digest in source.accepted
    )


# --- archives that are not the published ones ---


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The homes of the files are not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x"
    monkeypatch.setattr(omniglot, "ARCHIVES", tuple(dataclasses.replace(s, url=url) for s in omniglot.ARCHIVES))
    gone = {name: dataclasses.replace(source, url=url) for name, source in omniglot.SPLITS.items()}
    monkeypatch.setattr(omniglot, "SPLITS", gone)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("etude.data.fetch._PAUSE_S", 0.01)


@pytest.fixture
def tampered(real_omniglot: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror whose first archive holds three characters, one pixel of them altered."""
    folder = tmp_path / "mirror" / "omniglot"
    (folder / "vinyals").mkdir(parents=True)
    for source in omniglot.SPLITS.values():
        (folder / source.filename).write_bytes(fetch(source).read_bytes())
    pictures: dict[str, bytes] = {}
    with zipfile.ZipFile(fetch(omniglot.ARCHIVES[0])) as archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".png"))[:60]:
            pictures[name] = archive.read(name)
    first = next(iter(pictures))
    altered = Image.open(io.BytesIO(pictures[first])).copy()
    altered.putpixel((0, 0), 0)
    to = io.BytesIO()
    altered.save(to, "png")
    pictures[first] = to.getvalue()
    for source in omniglot.ARCHIVES:
        with zipfile.ZipFile(folder / source.filename, "w") as archive:
            for name, body in pictures.items() if source is omniglot.ARCHIVES[0] else ():
                archive.writestr(name, body)
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ETUDE_MIRROR", str(tmp_path / "mirror"))
    return folder


def test_an_altered_archive_is_refused_by_its_digest(
    tampered: Path, offline: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError) as caught:
        omniglot.load("val")
    assert "\n" not in str(caught.value)
    assert "omniglot/images_background.zip cannot be fetched" in str(caught.value)
    assert f"{tampered / 'images_background.zip'} is not the published file" in caplog.text
    assert not list(tmp_path.rglob("*.npy"))


def test_an_archive_with_other_pixels_is_refused_by_its_content(
    tampered: Path, offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the digests of the files had been taken from the wrong place.
    believed = []
    for source in omniglot.ARCHIVES:
        body = (tampered / source.filename).read_bytes()
        believed.append(dataclasses.replace(source, mirror_sha256=(hashlib.sha256(body).hexdigest(),)))
    monkeypatch.setattr(omniglot, "ARCHIVES", tuple(believed))
    with pytest.raises(UserError, match="do not hold the published pictures") as caught:
        omniglot.load("val")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.npy")), "refused pictures stay in no cache"


def test_a_missing_set_is_one_line(offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ETUDE_MIRROR", raising=False)
    with pytest.raises(UserError) as caught:
        omniglot.load("test")
    assert "\n" not in str(caught.value)
    assert "omniglot/vinyals/train.txt cannot be fetched" in str(caught.value)


def test_the_key_names_the_content() -> None:
    # The cache of decoded pictures must not outlive a change of what is decoded.
    assert len({cache.digest(omniglot.CONTENT_SHA256, str(size), how) for size in (28, 64) for how in "ab"}) == 4
