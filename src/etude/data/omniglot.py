"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people.

Lake, Salakhutdinov, Tenenbaum 2015, "Human-level concept learning through probabilistic program induction".
Licence: MIT. The split is that of Vinyals et al. 2016 as the Prototypical Networks' authors published it:
1,028 / 172 / 423 characters, four rotations of each a class of its own.
"""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from etude.core.errors import UserError
from etude.data import SAMPLES, Dataset
from etude.data.cache import decoded, digest
from etude.data.fetch import Source, damage, fetch
from etude.data.strokes import strokes

Split = Literal["train", "val", "test", "trainval"]
Resize = Literal["area", "nearest"]

NUM_DRAWINGS = 20
_LARGEST_MEMBER = 1 << 16
_VERSION = 1
_AGAIN = "`etude data get omniglot --force`"
_HOME = "https://github.com/brendenlake/omniglot/raw/master/python"
_SPLITS = "https://raw.githubusercontent.com/jakesnell/prototypical-networks/master/data/omniglot/splits/vinyals"

ARCHIVES = (
    Source(
        "omniglot",
        "images_background.zip",
        f"{_HOME}/images_background.zip",
        sha256="ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640",
        size=9_464_212,
        # The same pictures, packed again.
        mirror_sha256=("0ca674f1c02257123afb1ae3337b536f9c4d0181ca780d9af318151efb4e45bc",),
    ),
    Source(
        "omniglot",
        "images_evaluation.zip",
        f"{_HOME}/images_evaluation.zip",
        sha256="1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee",
        size=6_462_886,
        mirror_sha256=("fd45a41e89479c48ddc20ba2db00bee78297e97e337db2b9eba978d143193271",),
    ),
)
SPLITS = {
    name: Source("omniglot", f"vinyals/{name}.txt", f"{_SPLITS}/{name}.txt", sha256=sha256)
    for name, sha256 in {
        "train": "984522c194c30fb678ce53304a160a42faf5403ad4f9a67010f32dd3a35738e0",
        "val": "11f99e54faee3e26f53d3231c1cceac5bf7b8730e9be31cb6dab256551dc0c1a",
        "test": "845264cc5c156180828ccf17915668b17ee21424d0170df6e7d81676aa5d1204",
    }.items()
}
DATASET = Dataset(
    name="omniglot",
    about="1,623 handwritten characters of 50 alphabets, 20 drawings each",
    licence="MIT (Brenden Lake 2015)",
    home="https://github.com/brendenlake/omniglot",
    sources=(*ARCHIVES, *SPLITS.values()),
)
NUM_CHARACTERS = 1623
# Of all names and pixels at 105x105, whatever the archive's packing.
CONTENT_SHA256 = "d1ce938e4d09b986d0a0296e307947cd68686b920667924a85eaa8004e39b1cc"


@dataclass(frozen=True)
class CharacterPool:
    """Drawings by class, whole in memory.

    Attributes:
        images_CNHW: uint8 ``[classes, drawings, height, width]``, ink 255 on 0.
        names: one a class, ``Alphabet/characterNN/rotDDD``.
        groups_C: int64 ``[classes]``, the alphabet and rotation that a class belongs to.
        group_names: one a group, ``Alphabet/rotDDD``.
    """

    images_CNHW: Tensor
    names: tuple[str, ...]
    groups_C: Tensor
    group_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)


def _pool(images_CNHW: np.ndarray, names: list[str]) -> CharacterPool:
    groups = [f"{name.split('/')[0]}/{name.split('/')[2]}" for name in names]
    group_names = sorted(set(groups))
    index = {name: number for number, name in enumerate(group_names)}
    groups_C = torch.tensor([index[group] for group in groups])
    return CharacterPool(torch.from_numpy(images_CNHW), tuple(names), groups_C, tuple(group_names))


def load(split: Split, *, size: int = 28, resize: Resize = "area") -> CharacterPool:
    """The characters of a split with their four rotations.

    Args:
        split: ``trainval`` is train and val together.
        size: height and width in pixels.
        resize: ``nearest`` is what the paper's code does (it resizes one-bit images, and PIL then drops
            pixels); ``area`` averages them and keeps thin strokes.

    Raises:
        UserError: the data are neither cached nor within reach.
    """
    lines = {piece: fetch(source).read_text().split() for piece, source in SPLITS.items()}
    pieces = ("train", "val") if split == "trainval" else (split,)
    names = [line for piece in pieces for line in lines[piece]]
    # ``Alphabet/characterNN`` of all characters, whatever the split.
    characters = sorted({line[:-7] for piece in lines.values() for line in piece})
    # Keyed by the pictures rather than by the zip files, so that a re-packed mirror gives the same cache.
    key = digest(CONTENT_SHA256, str(size), resize)
    shape = (len(characters), NUM_DRAWINGS, size, size)
    upright_CNHW = decoded("omniglot", key, _VERSION, shape, lambda to: _decode(to, characters, size, resize))
    row = {name: number for number, name in enumerate(characters)}
    # Counter-clockwise, as PIL rotates.
    turns = [int(name[-3:]) // 90 for name in names]
    rows = [row[name[:-7]] for name in names]
    images_CNHW = np.empty((len(names), NUM_DRAWINGS, size, size), np.uint8)
    for turn in range(4):
        chosen = np.flatnonzero(np.array(turns) == turn)
        images_CNHW[chosen] = np.rot90(upright_CNHW[np.array(rows)[chosen]], turn, axes=(2, 3))
    return _pool(images_CNHW, names)


def checksums() -> dict[str, str]:
    """Digests of what is read: names and pixels of all pictures, whatever the archives' packing, and the split."""
    return {"pictures": CONTENT_SHA256} | {source.filename: source.sha256 for source in SPLITS.values()}


def generated(split: Split, *, num_classes: int = 32, size: int = 28) -> CharacterPool:
    """The embedded twin: drawn strokes in place of characters, four rotations, two alphabets a split.

    Args:
        num_classes: characters before rotation.
    """
    seed = {"train": 0, "val": 1, "test": 2, "trainval": 3}[split]
    upright_CNHW = strokes(num_classes, NUM_DRAWINGS, size, seed)
    turned = [np.rot90(upright_CNHW, turn, axes=(2, 3)) for turn in range(4)]
    half = (num_classes + 1) // 2
    names = [
        f"Generated_{split}_{c // half}/character{c % half + 1:02d}/rot{90 * turn:03d}"
        for turn in range(4)
        for c in range(num_classes)
    ]
    return _pool(np.concatenate(turned), names)


def _decode(to_CNHW: np.ndarray, characters: Sequence[str], size: int, resize: Resize) -> None:
    row = {name: number for number, name in enumerate(characters)}
    content = hashlib.sha256()
    filled = np.zeros(len(characters), int)
    for source in ARCHIVES:
        place = fetch(source)
        with damage(place, _AGAIN), zipfile.ZipFile(place) as archive:
            for member in sorted(archive.infolist(), key=lambda member: member.filename):
                path = PurePosixPath(member.filename)
                if path.suffix != ".png":
                    continue
                if member.file_size > _LARGEST_MEMBER:
                    raise ValueError(f"{member.filename} has {member.file_size:,} bytes")
                picture = Image.open(io.BytesIO(archive.read(member)), formats=("PNG",))
                content.update(member.filename.encode() + np.asarray(picture, np.uint8).tobytes())
                number = row["/".join(path.parts[-3:-1])]
                to_CNHW[number, filled[number]] = 255 - _resized(picture, size, resize)
                filled[number] += 1
    if content.hexdigest() != CONTENT_SHA256:
        raise UserError(f"the Omniglot archives do not hold the published pictures: {_AGAIN}")
    assert (filled == NUM_DRAWINGS).all()


def _resized(picture: Image.Image, size: int, resize: Resize) -> np.ndarray:
    """A one-bit picture as uint8 ``[size, size]``, paper 255."""
    if resize == "nearest":
        return np.asarray(picture.resize((size, size), Image.Resampling.NEAREST).convert("L"))
    return np.asarray(picture.convert("L").resize((size, size), Image.Resampling.BOX))


def sample_folder() -> Path:
    """A few real drawings of test characters that come with the package, one folder a class."""
    return SAMPLES / "omniglot"
