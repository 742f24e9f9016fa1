"""CIFAR-10: 60,000 colour photos of 32x32 pixels, 6,000 of each of ten classes.

Krizhevsky 2009, "Learning multiple layers of features from tiny images". The authors give no licence; they ask to
be cited. The binary version is read, which needs no unpickling.
"""

import itertools
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from etude.core.files import sha256
from etude.data import SAMPLES, Dataset
from etude.data.archives import Bounded
from etude.data.cache import decoded, digest
from etude.data.fetch import Source, damage, fetch
from etude.data.images import ImageError, in_threads, read_image
from etude.data.labelled import LabelledImages, stratified
from etude.data.tree import find

Split = Literal["train", "test"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUM_IMAGES: dict[str, int] = {"train": 50_000, "test": 10_000}
SIZE = 32
JPEG_FILE = "cifar10_jpeg.npz"
_PIXELS = SIZE * SIZE * 3
_VERSION = 1

ARCHIVE = Source(
    "cifar10",
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    size=170_052_171,
)
DATASET = Dataset(
    name="cifar10",
    about="60,000 colour photos of 32x32 pixels in ten classes",
    licence="none given; the authors ask to be cited (Krizhevsky 2009)",
    home="https://www.cs.toronto.edu/~kriz/cifar.html",
    sources=(ARCHIVE,),
)
_MEMBERS = {
    "train": [f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)],
    "test": ["cifar-10-batches-bin/test_batch.bin"],
}


def load(split: Split) -> LabelledImages:
    """The training or the test part, in the published order.

    Raises:
        UserError: the archive is neither cached nor within reach.
    """
    key = digest(ARCHIVE.sha256, split)
    return _labelled(split, key, lambda to_NHWC, labels_N: _unpack(split, to_NHWC, labels_N))


def load_jpeg(split: Split) -> LabelledImages:
    """The photos from lossy JPEG copies, ordered by class: a number made with them is to say so.

    They are ``cifar10_jpeg.npz`` in the working folder or in the folder that ETUDE_MIRROR names.

    Raises:
        UserError: there is no such file, or it is broken.
    """
    path = _jpeg_path()
    jpegs, labels_N = _read_jpegs(path, split)
    key = digest("jpeg", sha256(path), split)
    return _labelled(split, key, lambda to_NHWC, to_N: _decode_jpegs(path, jpegs, labels_N, to_NHWC, to_N))


def checksums(jpeg: bool) -> dict[str, str]:
    """sha256 of the file that `load_jpeg` or `load` reads."""
    return {JPEG_FILE: sha256(_jpeg_path())} if jpeg else {ARCHIVE.filename: ARCHIVE.sha256}


def train_val(labels_N: Tensor, val_size: int = 5000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of the training part to train on and to validate on: 45,000 and 5,000, as He et al. 2016, section 4.2.

    Args:
        labels_N: int64 ``[N]`` of the training part.
        val_size: images to validate on, as many of each class; rounded for each class where that does not divide.
        seed: decides the draw.
    """
    share = val_size / len(labels_N)
    train_rows, val_rows = stratified(labels_N, (1 - share, share), seed)
    return train_rows, val_rows


def _labelled(split: Split, key: str, fill: Callable[[np.ndarray, np.ndarray], None]) -> LabelledImages:
    count = NUM_IMAGES[split]
    end = count * _PIXELS

    def build(to: np.ndarray) -> None:
        fill(to[:end].reshape(count, SIZE, SIZE, 3), to[end:])

    # Labels behind the pixels: one file for both.
    flat = torch.from_numpy(decoded("cifar10", key, _VERSION, (end + count,), build))
    images_NHWC, labels_N = flat[:end].view(count, SIZE, SIZE, 3), flat[end:].long()
    return LabelledImages(images_NHWC, labels_N, CLASSES, tuple(map(str, range(count))))


def _unpack(split: Split, to_NHWC: np.ndarray, to_N: np.ndarray) -> None:
    start, path = 0, fetch(ARCHIVE)
    each = NUM_IMAGES[split] // len(_MEMBERS[split])
    fix = "`etude data get cifar10 --force` fetches it again"
    with damage(path, fix), tarfile.open(path, "r:gz", tarinfo=Bounded) as archive:
        for name in _MEMBERS[split]:
            file = archive.extractfile(name)
            if file is None:
                raise ValueError(f"{name} is no file")
            # A record is the label, then 1,024 red, 1,024 green and 1,024 blue values, row by row.
            records = np.frombuffer(file.read(each * (1 + _PIXELS) + 1), np.uint8).reshape(each, 1 + _PIXELS)
            rows = slice(start, start + each)
            to_N[rows] = records[:, 0]
            to_NHWC[rows] = records[:, 1:].reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)
            start += each


# --- the JPEG copies ---


def _jpeg_path() -> Path:
    return find(JPEG_FILE, "put it here, set ETUDE_MIRROR to its folder, or use the original files")


def _read_jpegs(path: Path, split: Split) -> tuple[list[bytes], np.ndarray]:
    """The files' bytes and uint8 labels ``[N]``."""
    fix = "copy it again"
    # A broken archive is answered with many kinds of exception.
    try:
        # NumPy leaves a file open that it opened itself and could not read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            bytes_B, offsets, labels_N = (arrays[f"{split}_{part}"] for part in ("jpeg", "offsets", "labels"))
            # Of a member that is no array NumPy gives the bytes.
            if not all(isinstance(part, np.ndarray) for part in (bytes_B, offsets, labels_N)):
                raise TypeError("arrays")
            classes = tuple(map(str, arrays["classes"].tolist()))
    except Exception as error:
        raise ImageError(path, "is not the file of JPEG copies, or is damaged", fix) from error
    count = NUM_IMAGES[split]
    if classes != CLASSES:
        raise ImageError(path, "has other classes than CIFAR-10", fix)
    if labels_N.shape != (count,) or labels_N.dtype.kind not in "iu" or not np.isin(labels_N, range(10)).all():
        raise ImageError(path, f"has no {count:,} labels of 0 to 9 for '{split}'", fix)
    good = bytes_B.dtype == np.uint8 and bytes_B.ndim == 1 and offsets.dtype.kind in "iu"
    good = good and offsets.shape == (count + 1,) and (offsets[0], offsets[-1]) == (0, len(bytes_B))
    if not (good and (offsets[1:] > offsets[:-1]).all()):
        raise ImageError(path, f"has offsets for '{split}' that do not fit its bytes", fix)
    body, ends = bytes_B.tobytes(), offsets.tolist()
    return [body[start:end] for start, end in itertools.pairwise(ends)], labels_N


def _decode_jpegs(path: Path, jpegs: list[bytes], labels_N: np.ndarray, to_NHWC: np.ndarray, to_N: np.ndarray) -> None:
    def one(row: int) -> None:
        image_HWC = read_image((f"{path}/{row}.jpg", jpegs[row]), "RGB")
        if image_HWC.shape != (SIZE, SIZE, 3):
            height, width = image_HWC.shape[:2]
            raise ImageError(path, f"holds an image of {width} x {height} pixels at {row}", "copy it again")
        to_NHWC[row] = image_HWC

    to_N[:] = labels_N
    in_threads(one, len(jpegs), "decoding CIFAR-10")


def sample_folder() -> Path:
    """Ten test pictures that come with the package, the first of each class, from the lossy copies."""
    return SAMPLES / "cifar10"
