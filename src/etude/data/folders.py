"""Any folder of photos, one sub-folder a class, or a zip file of such a folder.

The layouts that are read, each also below one folder around everything::

    FOLDER/cat/1.jpg            FOLDER/train/cat/1.jpg
    FOLDER/dog/1.jpg            FOLDER/val/cat/2.jpg        (or another name of `etude.data.inventory.SPLITS`)
                                FOLDER/test/cat/3.jpg

Hidden files, other files beside the images, and images beside the class folders are passed over; the inventory says so.

Shapes: N images, H height, W width.
"""

import contextlib
import hashlib
import re
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch
from torch import Tensor

from etude.core.errors import UserError
from etude.core.files import read_json, write_json
from etude.data.cache import decoded, digest
from etude.data.fetch import cache_place
from etude.data.images import Fit, ImageError, fitted, in_threads, printable, read_image
from etude.data.inventory import Inventory, Picture, inventory
from etude.data.labelled import LabelledImages, stratified
from etude.data.tree import Tree, joined, opened

INDIAN_BIRDS = (
    "Asian-Green-Bee-Eater", "Brown-Headed-Barbet", "Cattle-Egret", "Common-Kingfisher", "Common-Myna",
    "Common-Rosefinch", "Common-Tailorbird", "Coppersmith-Barbet", "Forest-Wagtail", "Gray-Wagtail", "Hoopoe",
    "House-Crow", "Indian-Grey-Hornbill", "Indian-Peacock", "Indian-Pitta", "Indian-Roller", "Jungle-Babbler",
    "Northern-Lapwing", "Red-Wattled-Lapwing", "Ruddy-Shelduck", "Rufous-Treepie", "Sarus-Crane",
    "White-Breasted-Kingfisher", "White-Breasted-Waterhen", "White-Wagtail",
)  # fmt: skip
"""The classes of the 25 Indian birds set."""
ASSIGNMENT_SPECIES = (
    "Cattle-Egret", "Coppersmith-Barbet", "Indian-Peacock", "Red-Wattled-Lapwing", "Ruddy-Shelduck",
    "White-Breasted-Kingfisher", "White-Breasted-Waterhen",
)  # fmt: skip
"""The seven of them that the assignment uses."""

_VERSION = 1
_SPLIT_FORMAT = 1
_LARGEST_SIDE = 4096
_FIX = "delete it to draw a new split, or name another with --data.split-file"


@dataclass(frozen=True)
class FolderImages:
    """A folder's images, decoded.

    Attributes:
        images: all of them, by class, then by name; names are paths below the folder of the classes or splits.
        part_N: ``train``, ``val`` or ``test`` for each image, as its folder says; empty where the layout has no splits.
        skipped: names of images that could not be read.
        found: the inventory of what was read; its pictures are in the order of the images.
        digest: sha256 of names, classes and pixels, whatever holds the files.
        path: the folder or zip file.
    """

    images: LabelledImages
    part_N: tuple[str, ...]
    skipped: tuple[str, ...]
    found: Inventory
    digest: str
    path: Path


def class_key(name: str) -> str:
    """A class name for comparing: without case, spaces, hyphens and underscores, in one Unicode form."""
    return re.sub(r"[\s_-]", "", unicodedata.normalize("NFC", name)).casefold()


# --- pixels ---


def read(
    path: Path, *, size: int, fit: Fit = "crop", skip_corrupt: bool = False, max_pixels: int = 64_000_000
) -> FolderImages:
    """All images of a folder or zip file, decoded once into the cache.

    Sizes are as in `fitted`; colours, orientation and odd formats as in `read_image`.

    Args:
        path: the folder or zip file.
        size: height and width in pixels, 1 to 4,096.
        fit: ``crop`` takes the middle square, ``squash`` the whole picture.
        skip_corrupt: leave out images that cannot be read, with a `UserWarning` that names them.
        max_pixels: the most of one image before it is resized; a larger one counts as one that cannot be read.

    Raises:
        UserError: the layout is none of those above, or an image cannot be read.
    """
    if not 1 <= size <= _LARGEST_SIDE:
        raise UserError(f"an image size of {size} is not possible: give 1 to {_LARGEST_SIDE} pixels")
    with opened(path) as place:
        found = inventory(place, classes=True)
        files = found.pictures
        images_NHWC, faults = _pixels(place, files, size, fit, max_pixels)
    if faults:
        _answer_faults(path, files, faults, skip_corrupt)
    kept = [row for row in range(len(files)) if row not in faults]
    classes = sorted({file.class_name for file in files})
    labels_N = torch.tensor([classes.index(files[row].class_name) for row in kept], dtype=torch.int64)
    names = tuple(files[row].name for row in kept)
    images = LabelledImages(images_NHWC[kept] if faults else images_NHWC, labels_N, tuple(classes), names)
    content = hashlib.sha256()
    for name, label, image_HWC in zip(names, labels_N.tolist(), images.images_NHWC, strict=True):
        content.update(f"{len(name)}:{name}{classes[label]}".encode() + image_HWC.numpy().tobytes())
    parts, skipped = tuple(files[row].part for row in kept), tuple(files[row].name for row in faults)
    return FolderImages(images, parts, skipped, found.without(faults), content.hexdigest(), path)


def _pixels(
    place: Tree, files: Sequence[Picture], size: int, fit: Fit, max_pixels: int
) -> tuple[Tensor, dict[int, str]]:
    """Images ``[N, size, size, 3]``, and what is wrong with the rows that could not be read."""
    stamps = [f"{file.name} {place.stamp(file.at)}" for file in files]
    key = digest(place.mark, str(size), fit, str(max_pixels), *stamps)
    shape, end = (len(files), size, size, 3), len(files) * size * size * 3

    def build(to: np.ndarray) -> None:
        to_NHWC, read_N = to[:end].reshape(shape), to[end:]

        def one(row: int) -> None:
            with contextlib.suppress(ImageError):
                to_NHWC[row] = _decode(place, files[row], size, fit, max_pixels)
                read_N[row] = 1

        in_threads(one, len(files), "decoding images")

    # Behind the pixels one byte an image says whether it could be read: in one file they cannot disagree.
    flat = decoded("folders", key, _VERSION, (end + len(files),), build)
    images_NHWC, faults = flat[:end].reshape(shape), {}
    for row in np.flatnonzero(flat[end:] == 0).tolist():
        # Once more: for the reason, and because permissions may have changed, which no stamp shows.
        try:
            images_NHWC[row] = _decode(place, files[row], size, fit, max_pixels)
        except ImageError as error:
            faults[row] = error.fault
    return torch.from_numpy(images_NHWC), faults


def _decode(place: Tree, file: Picture, size: int, fit: Fit, max_pixels: int) -> np.ndarray:
    """uint8 ``[size, size, 3]``."""
    return fitted(read_image(place.image(file.at), "RGB", max_pixels, min_side=size), size, fit)


def _answer_faults(path: Path, files: Sequence[Picture], faults: dict[int, str], skip_corrupt: bool) -> None:
    """Raise or warn."""
    described = [f"{printable(files[row].name)} {fault}" for row, fault in faults.items()]
    number = f"{printable(path)}: {len(faults)} of {len(files)} images cannot be read"
    if not skip_corrupt:
        raise UserError(f"{number} ({_some(described)}): remove them, or leave them out with --data.skip-corrupt")
    left = {(file.part, file.class_name) for row, file in enumerate(files) if row not in faults}
    for file in files:
        if (file.part, file.class_name) not in left:
            where = printable(joined(file.part, file.class_name))
            fix = f"put other images into it, or remove the class ({_some(described)})"
            raise UserError(f"{printable(path)}: none of the images of '{where}' can be read: {fix}")
    warnings.warn(f"{number} and are left out: {_some(described, 50)}", UserWarning, stacklevel=3)


def _some(parts: list[str], shown: int = 5) -> str:
    more = f"; and {len(parts) - shown} more" if len(parts) > shown else ""
    return "; ".join(parts[:shown]) + more


# --- splits ---


def split(
    folder_images: FolderImages, path_of_split_file: Path | None, *, val_share: float, test_share: float, seed: int
) -> dict[str, Tensor]:
    """Rows of ``train``, ``val`` and ``test``.

    Splits that have a folder are taken as they are. The others are drawn class by class from the rest, once: a file
    keeps which image is where, and is read when it is there, whatever the shares and the seed are then.

    Args:
        folder_images: what `read` returned.
        path_of_split_file: JSON; by default one in the cache for this folder, these shares and this seed.
        val_share: the share of the images of no other split's folder, unused where there is a ``val`` folder.
        test_share: the same of ``test``.
        seed: decides the draw.

    Returns:
        int64 rows of each split, ascending; every split has an image of every class.

    Raises:
        UserError: too few images, or a split file that is broken or another folder's.
    """
    parts = folder_images.part_N
    rows = {
        name: torch.tensor([row for row, part in enumerate(parts) if part == name], dtype=torch.int64)
        for name in ("train", "val", "test")
    }
    drawn = {name: share for name, share in (("val", val_share), ("test", test_share)) if not len(rows[name])}
    if drawn:
        pool = torch.tensor([row for row, part in enumerate(parts) if part in ("", "train")], dtype=torch.int64)
        rows |= _drawn(folder_images, path_of_split_file, pool, drawn, seed)
    _check_classes(folder_images.images, rows)
    return rows


def _drawn(
    folder_images: FolderImages, path: Path | None, pool: Tensor, shares: dict[str, float], seed: int
) -> dict[str, Tensor]:
    images = folder_images.images
    resolved = folder_images.path.resolve()
    if path is None:
        key = digest(ascii(str(resolved)), *(f"{name} {share!r}" for name, share in shares.items()), str(seed))
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", resolved.stem)[:100]
        path = cache_place() / "splits" / f"{stem}-{key[:16]}.json"
    names = ("train", *shares)
    try:
        is_there = path.exists()
    except OSError as error:
        raise ImageError(path, f"cannot be read ({error.strerror})", "name another with --data.split-file") from error
    if is_there:
        return _from_file(path, folder_images, pool, names)
    fewest = torch.bincount(images.labels_N[pool], minlength=len(images.classes))
    label = int(fewest.argmin())
    if fewest[label] < len(names):
        have, class_name = _number_of(int(fewest[label])), printable(images.classes[label])
        words = {2: "two", 3: "three"}[len(names)]
        raise UserError(
            f"class '{class_name}' has {have}: {words} are needed, one each for {', '.join(names)}; add some"
        )
    parts = stratified(images.labels_N[pool], (1 - sum(shares.values()), *shares.values()), seed)
    rows = {name: pool[part] for name, part in zip(names, parts, strict=True)}
    listed = {name: [images.names[row] for row in rows[name].tolist()] for name in names}
    write_json(path, {"format": _SPLIT_FORMAT, "shares": shares, "seed": seed, "splits": listed})
    return rows


def _from_file(path: Path, folder_images: FolderImages, pool: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    try:
        body: Any = read_json(path)
        number = body["format"]
        listed = pydantic.TypeAdapter(dict[str, list[str]]).validate_python(body["splits"], strict=True)
    except (UserError, LookupError, TypeError, ValueError) as error:
        raise ImageError(path, "is no split file", _FIX) from error
    if number != _SPLIT_FORMAT:
        raise ImageError(path, f"has another format than {_SPLIT_FORMAT}", _FIX)
    if set(listed) != set(names):
        has = printable(", ".join(sorted(listed))) or "none"
        raise ImageError(path, f"has the splits {has}, where {', '.join(names)} are drawn", _FIX)
    row = {folder_images.images.names[row]: row for row in pool.tolist()}
    # As it may have been written elsewhere.
    listed = {name: [unicodedata.normalize("NFC", member) for member in members] for name, members in listed.items()}
    known: dict[str, str] = {}
    for split_name in names:
        for member in listed[split_name]:
            if member in known:
                twice = split_name if known[member] == split_name else f"{known[member]} and {split_name}"
                raise ImageError(path, f"lists {printable(member)} twice, in {twice}", _FIX)
            known[member] = split_name
    where = printable(folder_images.path)
    gone = [name for name in known if name not in row and name not in folder_images.skipped]
    if gone:
        raise ImageError(path, f"lists {_number_of(len(gone))} that {where} lacks, such as {printable(gone[0])}", _FIX)
    new = [name for name in row if name not in known]
    if new:
        raise ImageError(path, f"lacks {_number_of(len(new))} of {where}, such as {printable(new[0])}", _FIX)
    return {
        name: torch.tensor(sorted(row[member] for member in listed[name] if member in row), dtype=torch.int64)
        for name in names
    }


def _check_classes(images: LabelledImages, rows: dict[str, Tensor]) -> None:
    for name, chosen in rows.items():
        counts = torch.bincount(images.labels_N[chosen], minlength=len(images.classes))
        if int(counts.min()) == 0:
            class_name = printable(images.classes[int(counts.argmin())])
            raise UserError(f"split '{name}' has no image of class '{class_name}': give it one, or remove the class")


def _number_of(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
