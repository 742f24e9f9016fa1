"""CIFAR-10: the binary layout by hand, the JPEG copies, the 45,000/5,000 split, and files that are broken."""

import dataclasses
import hashlib
import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from etude.core.errors import UserError
from etude.data import cifar10, load
from etude.data.cifar10 import CLASSES, train_val

FUZZ = settings(max_examples=60, deadline=None, derandomize=True)
COUNTS = {"train": 50, "test": 20}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror folder, and parts of fifty and twenty images."""
    monkeypatch.setattr(cifar10, "NUM_IMAGES", COUNTS)
    monkeypatch.setenv("ETUDE_MIRROR", str(tmp_path))
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures(split: str) -> tuple[np.ndarray, np.ndarray]:
    count = COUNTS[split]
    images = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return images, (np.arange(count) % 10).astype(np.uint8)


# --- the binary version ---


def archive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive in a mirror, as the authors describe it: label, red, green, blue."""
    (folder / "cifar10").mkdir()
    path = folder / "cifar10" / "cifar-10-binary.tar.gz"
    records = {}
    for split, names in (("train", [f"data_batch_{number}" for number in range(1, 6)]), ("test", ["test_batch"])):
        images, labels = pictures(split)
        body = b"".join(
            bytes([label]) + b"".join(image[..., channel].tobytes() for channel in range(3))
            for image, label in zip(images, labels, strict=True)
        )
        for number, name in enumerate(names):
            length = len(body) // len(names)
            records[f"cifar-10-batches-bin/{name}.bin"] = body[number * length : (number + 1) * length]
    with tarfile.open(path, "w:gz") as packed:
        for name, body in records.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            packed.addfile(info, io.BytesIO(body))
    source = dataclasses.replace(
        cifar10.ARCHIVE, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size=path.stat().st_size
    )
    monkeypatch.setattr(cifar10, "ARCHIVE", source)


@pytest.mark.parametrize("split", ["train", "test"])
def test_records_are_read_as_described(small: Path, monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    archive(small, monkeypatch)
    images, labels = pictures(split)
    read = cifar10.load(split)
    np.testing.assert_array_equal(read.images_NHWC, images)
    assert read.labels_N.tolist() == labels.tolist()
    assert read.classes == CLASSES
    assert read.names[:3] == ("0", "1", "2")
    # From the cache; the archive's digest is known, the archive need not be there.
    (small / "cifar10" / "cifar-10-binary.tar.gz").unlink()
    np.testing.assert_array_equal(cifar10.load(split).images_NHWC, images)


def test_the_set_names_its_file() -> None:
    (source,) = load("cifar10").sources
    assert source.size == 170_052_171
    assert re.fullmatch(r"[0-9a-f]{64}", source.sha256)
    assert cifar10.checksums(jpeg=False) == {"cifar-10-binary.tar.gz": source.sha256}
    assert "Krizhevsky 2009" in load("cifar10").licence


# --- training and validation ---


def test_the_validation_split_of_the_paper() -> None:
    labels_N = torch.arange(10).repeat(5000)
    train, val = train_val(labels_N)
    assert (len(train), len(val)) == (45_000, 5_000)
    assert labels_N[train].bincount().tolist() == [4500] * 10
    assert labels_N[val].bincount().tolist() == [500] * 10
    assert len(torch.cat([train, val]).unique()) == 50_000
    assert torch.equal(val, train_val(labels_N)[1])
    assert not torch.equal(val, train_val(labels_N, seed=1)[1])


# --- the JPEG copies ---


def jpeg(image: np.ndarray) -> bytes:
    to = io.BytesIO()
    Image.fromarray(image).save(to, "jpeg", quality=95, subsampling=0)
    return to.getvalue()


def smooth(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures that JPEG hardly changes, by class."""
    count = COUNTS[split]
    slope = np.arange(32)[:, None] * 3 + np.arange(32)
    images = (np.arange(count)[:, None, None, None] + slope[..., None] + np.array([0, 20, 40])).astype(np.uint8)
    return images, np.sort(np.arange(count) % 10).astype(np.uint8)


def arrays() -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {"classes": np.array(CLASSES)}
    for split in COUNTS:
        images, labels = smooth(split)
        bodies = [jpeg(image) for image in images]
        made[f"{split}_jpeg"] = np.frombuffer(b"".join(bodies), np.uint8)
        made[f"{split}_offsets"] = np.cumsum([0, *map(len, bodies)])
        made[f"{split}_labels"] = labels
    return made


@pytest.mark.parametrize("split", ["train", "test"])
def test_jpeg_copies_are_decoded_once(small: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(small / "cifar10_jpeg.npz", **arrays())
    images, labels = smooth(split)
    read = cifar10.load_jpeg(split)
    np.testing.assert_allclose(read.images_NHWC.int(), images.astype(int), atol=6)
    assert read.labels_N.tolist() == labels.tolist()
    assert read.classes == CLASSES
    monkeypatch.setattr(cifar10, "read_image", None)
    assert torch.equal(cifar10.load_jpeg(split).images_NHWC, read.images_NHWC)
    sha256 = hashlib.sha256((small / "cifar10_jpeg.npz").read_bytes()).hexdigest()
    assert cifar10.checksums(jpeg=True) == {"cifar10_jpeg.npz": sha256}


def broken_jpeg(made: dict[str, np.ndarray]) -> np.ndarray:
    body = made["test_jpeg"].copy()
    body[made["test_offsets"][3] :][:20] = 0
    return body


FAULTS = {
    "test_labels": [
        (lambda made: made["test_labels"][:-1], "has no 20 labels of 0 to 9 for 'test'"),
        (lambda made: made["test_labels"] + 1, "has no 20 labels"),
        (lambda made: made["test_labels"].astype(float), "has no 20 labels"),
        (lambda made: np.array([object()] * 20, object), "is not the file of JPEG copies, or is damaged"),
    ],
    "test_offsets": [
        (lambda made: made["test_offsets"][1:], "has offsets for 'test' that do not fit its bytes"),
        (lambda made: made["test_offsets"] + 1, "has offsets"),
        (lambda made: made["test_offsets"][::-1], "has offsets"),
        (lambda made: made["test_offsets"].astype(float), "has offsets"),
    ],
    "test_jpeg": [
        (lambda made: made["test_jpeg"][:-1], "has offsets"),
        (lambda made: made["test_jpeg"].astype(np.int16), "has offsets"),
        (broken_jpeg, "/3.jpg is not an image"),
    ],
    "classes": [(lambda made: made["classes"][::-1], "has other classes than CIFAR-10")],
}


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, cases in FAULTS.items() for case in range(len(cases))]
)
def test_faults_of_the_jpeg_file(small: Path, name: str, case: int) -> None:
    made = arrays()
    change, fault = FAULTS[name][case]
    path = small / "cifar10_jpeg.npz"
    np.savez(path, **(made | {name: change(made)}))
    refused(fault)


def refused(*parts: str) -> None:
    with pytest.raises(UserError) as caught:
        cifar10.load_jpeg("test")
    text = str(caught.value)
    assert text.isprintable()
    for part in ("cifar10_jpeg.npz", *parts):
        assert part in text, text


def test_an_image_of_another_size(small: Path) -> None:
    made = arrays()
    body, end = jpeg(np.zeros((16, 32, 3), np.uint8)), made["test_offsets"][-2]
    made["test_jpeg"] = np.concatenate([made["test_jpeg"][:end], np.frombuffer(body, np.uint8)])
    made["test_offsets"][-1] = len(made["test_jpeg"])
    np.savez(small / "cifar10_jpeg.npz", **made)
    refused("holds an image of 32 x 16 pixels at 19: copy it again")


def test_no_jpeg_file_and_what_is_none(small: Path) -> None:
    refused("does not exist here", "put it here, set ETUDE_MIRROR to its folder, or use the original files")
    path = small / "cifar10_jpeg.npz"
    for body in (b"", b"hello", b"PK\3\4", b"\x93NUMPY"):
        path.write_bytes(body)
        refused("is not the file of JPEG copies, or is damaged: copy it again")
    path.unlink()
    path.mkdir()
    refused("is not the file of JPEG copies, or is damaged: copy it again")


@FUZZ
@given(data=st.data())
def test_garbled_jpeg_files_are_refused_or_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("garbled")
        patch.setattr(cifar10, "NUM_IMAGES", COUNTS)
        patch.setenv("ETUDE_MIRROR", str(folder))
        patch.setenv("ETUDE_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        to = io.BytesIO()
        np.savez(to, **arrays())
        body = bytearray(to.getvalue())
        for _ in range(data.draw(st.integers(1, 3))):
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        (folder / "cifar10_jpeg.npz").write_bytes(body)
        try:
            read = cifar10.load_jpeg("test")
        except UserError as error:
            refusal = str(error)
        else:
            assert read.images_NHWC.shape == (20, 32, 32, 3)
            return
        assert refusal.isprintable()


@pytest.mark.real_data
def test_the_first_real_photos(real_cifar: Path) -> None:
    jpegs, labels = cifar10._read_jpegs(real_cifar, "test")
    assert len(jpegs) == 10_000
    assert np.bincount(labels).tolist() == [1000] * 10
    images, read_labels = np.zeros((300, 32, 32, 3), np.uint8), np.zeros(300, np.uint8)
    cifar10._decode_jpegs(real_cifar, jpegs[:300], labels[:300], images, read_labels)
    assert read_labels.tolist() == [0] * 300
    assert images.std() > 40
    # Sky behind aeroplanes: blue is the brightest channel.
    assert images.mean((0, 1, 2)).argmax() == 2


@pytest.mark.slow
@pytest.mark.real_data
def test_all_real_photos(real_cifar: Path) -> None:
    for split, each in (("train", 5000), ("test", 1000)):
        read = cifar10.load_jpeg(split)
        assert read.labels_N.bincount().tolist() == [each] * 10
        assert read.images_NHWC.shape == (10 * each, 32, 32, 3)
    # The published means of the training part's channels.
    mean = cifar10.load_jpeg("train").images_NHWC.double().mean((0, 1, 2)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=0.005)
