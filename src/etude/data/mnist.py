"""MNIST: 70,000 grey pictures of handwritten digits, 28x28 pixels.

LeCun, Cortes, Burges 1998; the pictures are those of NIST's special databases 1 and 3. The authors' page no longer
serves the files; PyTorch's copy of them has the published digests.
"""

import gzip
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from etude.core.errors import UserError
from etude.data import SAMPLES, Dataset
from etude.data.fetch import Source, damage, fetch
from etude.data.images import read_image

Split = Literal["train", "test"]

NUM_IMAGES: dict[str, int] = {"train": 60_000, "test": 10_000}
SIZE = 28
CLASSES = tuple(map(str, range(10)))
_HOME = "https://ossci-datasets.s3.amazonaws.com/mnist"

_SOURCES = tuple(
    Source("mnist", f"{name}-ubyte.gz", f"{_HOME}/{name}-ubyte.gz", sha256, size)
    for name, sha256, size in (
        ("train-images-idx3", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9_912_422),
        ("train-labels-idx1", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28_881),
        ("t10k-images-idx3", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1_648_877),
        ("t10k-labels-idx1", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4_542),
    )
)
FILES: dict[str, tuple[Source, ...]] = {"train": _SOURCES[:2], "test": _SOURCES[2:]}
"""The pictures and the labels of each split."""
DATASET = Dataset(
    name="mnist",
    about="70,000 grey pictures of handwritten digits, 28x28 pixels",
    licence="CC BY-SA 3.0 (LeCun, Cortes, Burges)",
    home="http://yann.lecun.com/exdb/mnist/",
    sources=_SOURCES,
)


def load(split: Split) -> tuple[Tensor, Tensor]:
    """Digits in the published order.

    Returns:
        uint8 ``[N, 28, 28]``, 255 for ink, and the digits int64 ``[N]``.

    Raises:
        UserError: the files are neither cached nor within reach, or are damaged.
    """
    images, labels = FILES[split]
    count = NUM_IMAGES[split]
    return torch.from_numpy(_read(images, (count, SIZE, SIZE))), torch.from_numpy(_read(labels, (count,))).long()


def sample(split: Split) -> tuple[Tensor, Tensor]:
    """300 digits that come with etude: of each class the first 24 of the training split, and the first 6 of the test.

    Returns:
        uint8 ``[N, 28, 28]`` and int64 ``[N]``: 0 to 9 in turn.
    """
    # A sheet: a row a class.
    sheet_HW = read_image(SAMPLES / "mnist" / f"{split}.png", "L")
    rows = torch.from_numpy(sheet_HW.reshape(len(CLASSES), SIZE, -1, SIZE))
    images_KCHW = rows.permute(2, 0, 1, 3).contiguous()
    labels_N = torch.arange(len(CLASSES)).repeat(len(images_KCHW))
    return images_KCHW.flatten(0, 1), labels_N


def checksums(splits: tuple[Split, ...] = ("train", "test")) -> dict[str, str]:
    """sha256 of the files that `load` reads."""
    return {source.filename: source.sha256 for split in splits for source in FILES[split]}


def _read(source: Source, shape: tuple[int, ...]) -> np.ndarray:
    """An IDX file: two zeros, 8 for unsigned bytes, the number of axes, their lengths big-endian, the values."""
    path = fetch(source)
    head = bytes([0, 0, 8, len(shape)]) + b"".join(length.to_bytes(4, "big") for length in shape)
    with damage(path), gzip.open(path) as file:
        # One byte more than there should be tells a longer file, however much it would unpack to.
        raw = file.read(len(head) + int(np.prod(shape)) + 1)
        if not raw.startswith(head) or len(raw) != len(head) + int(np.prod(shape)):
            raise ValueError(f"does not hold {' x '.join(map(str, shape))} bytes of MNIST")
    return np.frombuffer(raw, np.uint8, offset=len(head)).reshape(shape).copy()


def to_size(images_NHW: Tensor, size: int) -> Tensor:
    """Digits as larger pictures, black added on all sides evenly: 28 to 32 adds two pixels each.

    Args:
        images_NHW: uint8.
        size: at least their own.
    """
    height, width = images_NHW.shape[-2:]
    if size < max(height, width):
        raise UserError(
            f"digits of {height} x {width} pixels do not fit {size}: give a size of {max(height, width)} or more"
        )
    top, left = (size - height) // 2, (size - width) // 2
    room = (left, size - width - left, top, size - height - top)
    return torch.nn.functional.pad(images_NHW, room)
