"""Pairs of pictures of one thing, A and B: aerial photo and map, facade and its labels, edges and shoe.

Isola et al. 2017, "Image-to-image translation with conditional adversarial networks", section 3.3 and appendix 6.2,
whose page serves the sets as archives of side-by-side pictures. It publishes no digests; the MD5 ones here are those
that a public loader of the same files lists, and were not checked against a download of ours. The maps come from Google
Maps, the facades from the CMP Facade Database (Tylecek and Sara 2013), the shoes from UT Zappos50K (Yu and Grauman
2014, for research only): each has its owner's terms.

What can be read:

- the archives, as published;
- 50 pairs of each (``maps_subset_256x512.zip`` and so on), from the published val or test pictures: a number made with
  them is to say "50-pair subset";
- a folder or zip file of side-by-side pictures, A on the left, flat or in train, val and test sub-folders;
- two such folders whose files have the same names, with or without sub-folders, or one with trainA, trainB and so on;
- a folder or zip file of colour photos, of which A is the grey version;
- made-up towns (`etude.data.tiles`).

Grey pictures are read as colour with three equal channels.

Shapes: N pairs, H height, W width; the axis of 2 is A and B.
"""

import contextlib
import hashlib
import logging
import math
import tarfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from etude.core.errors import UserError
from etude.core.files import read_json, sha256, write_json
from etude.core.randomness import generator
from etude.data import Dataset
from etude.data.archives import Bounded, members
from etude.data.cache import decoded, digest
from etude.data.fetch import Source, cache_folder, damage, fetch
from etude.data.images import ImageError, fitted, in_threads, printable, read_image, shortened
from etude.data.inventory import Inventory, Picture, inventory, taken
from etude.data.tiles import tiles
from etude.data.tree import NO_PICTURE, Tree, find, is_hidden, is_picture, opened

Published = Literal["maps", "facades", "edges2shoes"]
NAMES: tuple[Published, ...] = ("maps", "facades", "edges2shoes")
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

_HOME = "https://efrosgans.eecs.berkeley.edu/pix2pix/datasets"
ARCHIVES: dict[str, Source] = {
    name: Source("pairs", f"{name}.tar.gz", f"{_HOME}/{name}.tar.gz", sha256=f"md5:{md5}")
    for name, md5 in {
        "maps": "e5f65d26eb288457f5ac056deb94d154",
        "facades": "e2e25dd517e9d15828416ab329da2854",
        "edges2shoes": "71da478b54fedde126e234a2a050bc15",
    }.items()
}
DATASET = Dataset(
    name="pairs",
    about="pairs of pictures: 2,194 aerial photos with maps, 606 facades with labels, 50,025 shoes with edges",
    licence="each owner's terms: Google Maps; CMP Facades; UT Zappos50K, for research only",
    home="https://phillipi.github.io/pix2pix/",
    sources=tuple(ARCHIVES.values()),
)
SUBSETS = ("maps", "facades", "edges2shoes", "day2night")
SUBSET_SIZE = 50
SUBSET_SPLIT: dict[Split, int] = {"train": 38, "val": 6, "test": 6}
"""Pairs are split by sorted name: neighbours in name are often neighbours in place."""
HELD_OUT = 96
"""Training pairs that validate where a published set has no split for it."""
SIDES = {"maps": 600, "facades": 256, "edges2shoes": 256}
"""Pixels a side of one picture of a published set."""
_VERSION = 1
_AGAIN = "delete it and fetch it again"
_log = logging.getLogger("etude")

Side = tuple[Tree, Sequence[Picture]]
"""A folder or zip file, and those of its pictures that are read."""


@dataclass(frozen=True)
class Pairs:
    """Some pairs of one size.

    Attributes:
        pairs_N2HWC: uint8 ``[N, 2, H, W, 3]``.
        names: one a pair.
    """

    pairs_N2HWC: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.pairs_N2HWC.dtype == torch.uint8
        count, sides, _, _, channels = self.pairs_N2HWC.shape
        assert (count, sides, channels) == (len(self.names), 2, 3)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class PairSet:
    """The three splits of a set.

    Attributes:
        splits: ``train`` at the size that training crops from, the others at the size that is measured.
        about: what it is and how it was split, for the line beside every number.
        checksums: digests of the files, or of the pixels of a folder.
        side: pixels a side of one picture before it was resized; of the first training pair, where they differ, and
            the root of the area where it is not square.
        inventory: what was found in a folder, see `etude.data.inventory.Inventory.record`; else empty.
    """

    splits: Mapping[Split, Pairs]
    about: str
    checksums: Mapping[str, str]
    side: float
    inventory: Mapping[str, Any] = field(default_factory=dict[str, Any])


def archive(name: Published, train_size: int, size: int) -> PairSet:
    """A published set. What it calls val is the test split where it has no other; see `HELD_OUT`.

    Raises:
        UserError: the archive is neither cached nor within reach, or is damaged.
    """
    source = ARCHIVES[name]
    splits: dict[Split, Pairs] = {}
    for split, names in _published_splits(_listed(source)).items():
        side = train_size if split == "train" else size
        row = {member: number for number, member in enumerate(names)}

        def build(to: np.ndarray, row: Mapping[str, int] = row, side: int = side) -> None:
            for member, body in _unpacked(source, row):
                to[row[member]] = halves(read_image((member, body), "RGB"), member, side)

        splits[split] = _cached(names, side, digest(source.sha256, split, str(side)), build)
    return _set(name, splits, {source.filename: source.sha256}, float(SIDES[name]))


def subset(name: str, train_size: int, size: int) -> PairSet:
    """Fifty pairs of a published set, from a file in the working folder or below the one that ETUDE_MIRROR names.

    Raises:
        UserError: there is no such file, or it is not what it should be.
    """
    file = f"{name}_subset_256x512.zip"
    path = find(file, "put it here, or set ETUDE_MIRROR to the folder that holds it", "pairs")
    with opened(path) as tree:
        files = inventory(tree, classes=False).pictures
        if len(files) != SUBSET_SIZE:
            raise ImageError(path, f"holds {len(files)} pairs, not {SUBSET_SIZE}", "copy it again")
        rows: dict[Split, list[int]] = {}
        for split, count in SUBSET_SPLIT.items():
            start = sum(map(len, rows.values()))
            rows[split] = list(range(start, start + count))
        splits, (height, width) = _read([(tree, files)], rows, train_size, size, halves)
    return _set(f"50-pair subset of {name}", splits, {file: sha256(path)}, math.sqrt(height * width / 2))


def folder(
    name: str, name_b: str, train_size: int, size: int, *, val_share: float, test_share: float, seed: int
) -> PairSet:
    """A user's own pairs: one folder or zip file of side-by-side pictures, or two of pictures with the same names.

    The two may also lie in one as trainA and trainB, testA and testB, or A and B.

    Splits that have a sub-folder are taken as they are; the others are drawn from the training pictures.

    Args:
        name: the folder or zip file; looked for below ETUDE_MIRROR too.
        name_b: a second one with the B pictures; empty for side-by-side pictures.
        train_size: height and width of the training pairs.
        size: height and width of the others.
        val_share: the share of the pictures of no other split that validates, where there is no val folder.
        test_share: the same for test.
        seed: decides the draw.

    Raises:
        UserError: in one line, what is wrong with the folder or with a picture in it.
    """
    path = find(name)
    with contextlib.ExitStack() as held:
        trees = [held.enter_context(opened(path))]
        if name_b:
            trees.append(held.enter_context(opened(find(name_b, "give another with --data.folder-b"))))
        found = [inventory(tree, classes=False) for tree in trees]
        halved = {file.side for file in found[0].pictures} != {""}
        if halved and name_b:
            fix = "give it alone, without --data.folder-b"
            raise ImageError(path, "holds both halves of its pairs in folders of their own", fix)
        if halved:
            found = [found[0].of_side("a"), found[0].of_side("b")]
            trees *= 2
        two = len(found) == 2
        if two:
            found = _matched(trees, found)
        sides: list[Side] = [(tree, some.pictures) for tree, some in zip(trees, found, strict=True)]
        parts = [file.part for file in sides[0][1]]
        rows = _drawn_splits(parts, {"val": val_share, "test": test_share}, seed, path)
        splits, (height, width) = _read(sides, rows, train_size, size, _beside if two else halves)
        if not two and width != 2 * height:
            _log.warning(
                "the halves of %s are %d x %d pixels and are squeezed into squares; are these two pictures side by "
                "side? Two folders go with --data.folder-b, single photos with --data.source grey",
                printable(splits["train"].names[0]), width // 2, height,
            )  # fmt: skip
    side = math.sqrt(height * width / (1 if two else 2))
    whole = found[0]
    if two:
        marks = tuple(f"{a} {b}" for a, b in zip(found[0].marks, found[1].marks, strict=True))
        whole = replace(whole, marks=marks, left_out={**found[1].left_out, **whole.left_out})
    return _pixels_known(printable(path.absolute().name), splits, side, whole, rows)


def grey(name: str, train_size: int, size: int, *, val_share: float, test_share: float, seed: int) -> PairSet:
    """Colour photos of a folder or zip file, at any depth, each after its own grey version (ITU-R BT.601 luma).

    Their middle squares are taken. Arguments and errors are those of `folder`.
    """
    path = find(name)
    with opened(path) as tree:
        found = taken(tree, [Picture(at, at) for at in tree.anywhere()])
        files = found.pictures
        if not files:
            raise ImageError(path, NO_PICTURE, "put colour photos into it")
        rows = _drawn_splits([""] * len(files), {"val": val_share, "test": test_share}, seed, path)
        splits, first = _read([(tree, files)], rows, train_size, size, greyed)
    return _pixels_known(f"grey photos of {printable(path.absolute().name)}", splits, float(min(first)), found, rows)


def generated(train_size: int, size: int, counts: Mapping[Split, int]) -> PairSet:
    """Made-up towns; each split has towns of its own."""
    splits: dict[Split, Pairs] = {}
    for seed, split in enumerate(SPLITS):
        both = tiles(counts[split], train_size if split == "train" else size, seed)
        names = tuple(f"{split}/{number:05d}" for number in range(counts[split]))
        splits[split] = Pairs(torch.stack(both, 1), names)
    return _set("generated towns", splits, {}, float(size))


# --- from pictures to pairs ---


def halves(image: np.ndarray, name: str, size: int) -> np.ndarray:
    """The two halves of a side-by-side picture ``[H, W, 3]``, each squashed: uint8 ``[2, size, size, 3]``.

    Raises:
        ImageError: the width is odd; it calls the picture ``name``.
    """
    width = image.shape[1]
    if width % 2:
        fault = f"is {width} pixels wide, which two halves cannot share"
        raise ImageError(Path(name), fault, "make it a pair of equal halves side by side, A on the left")
    return np.stack([fitted(half, size, "squash") for half in np.split(image, 2, axis=1)])


def greyed(image: np.ndarray, name: str, size: int) -> np.ndarray:
    """A photo's middle square after its grey version: uint8 ``[2, size, size, 3]``."""
    colour = fitted(image, size, "crop")
    luma = np.array(Image.fromarray(colour).convert("L"))
    return np.stack([np.repeat(luma[:, :, None], 3, 2), colour])


def _beside(image: np.ndarray, name: str, size: int) -> np.ndarray:
    return fitted(image, size, "squash")


def _read(
    sides: Sequence[Side],
    rows: Mapping[Split, Sequence[int]],
    train_size: int,
    size: int,
    make: Callable[[np.ndarray, str, int], np.ndarray],
) -> tuple[dict[Split, Pairs], tuple[int, int]]:
    """The pairs of each split, decoded once into the cache, and height and width of the first training picture.

    Args:
        sides: where pairs lie, or the A and the B pictures, in one order.
        rows: the pictures of each split.
        train_size: height and width of the training pairs.
        size: height and width of the others.
        make: turns a picture, its name and a size into the pair ``[2, size, size, 3]``, or into one of both where
            there are two sides.
    """
    splits: dict[Split, Pairs] = {}
    for split in SPLITS:
        mine, side = rows[split], train_size if split == "train" else size
        stamps = [f"{files[row].name} {tree.stamp(files[row].at)}" for tree, files in sides for row in mine]
        (first, files), *others = sides
        key = digest(first.mark, make.__name__, str(side), *stamps, *(tree.mark for tree, _ in others))

        def build(to: np.ndarray, mine: Sequence[int] = mine, side: int = side) -> None:
            def one(number: int) -> None:
                row = mine[number]
                images = [read_image(tree.image(files[row].at), "RGB") for tree, files in sides]
                if images[0].shape != images[-1].shape:
                    (height, width), (height_b, width_b) = (image.shape[:2] for image in images)
                    fault = f"is {width} x {height} pixels in A and {width_b} x {height_b} in B"
                    raise ImageError(Path(files[row].name), fault, "make both the same size")
                made = [make(image, files[row].name, side) for image, (_, files) in zip(images, sides, strict=True)]
                to[number] = made[0] if len(made) == 1 else np.stack(made)

            in_threads(one, len(mine), "decoding pairs")

        splits[split] = _cached([files[row].name for row in mine], side, key, build)
    tree, files = sides[0]
    height, width = read_image(tree.image(files[rows["train"][0]].at), "RGB").shape[:2]
    return splits, (height, width)


def _cached(names: Sequence[str], side: int, key: str, build: Callable[[np.ndarray], None]) -> Pairs:
    array = decoded("pairs", key, _VERSION, (len(names), 2, side, side, 3), build)
    return Pairs(torch.from_numpy(array), tuple(names))


def _set(what: str, splits: Mapping[Split, Pairs], checksums: Mapping[str, str], side: float) -> PairSet:
    counts = " / ".join(f"{len(splits[split]):,}" for split in SPLITS)
    return PairSet(splits, f"{what}, {counts} pairs", checksums, side)


def _pixels_known(
    what: str, splits: Mapping[Split, Pairs], side: float, found: Inventory, rows: Mapping[Split, Sequence[int]]
) -> PairSet:
    """A set that is known by the digest of its names and pixels, with its inventory."""
    whole = hashlib.sha256()
    for split in SPLITS:
        for name, pair in zip(splits[split].names, splits[split].pairs_N2HWC, strict=True):
            whole.update(f"{split} {len(name)}:{name}".encode() + pair.numpy().tobytes())
    made = _set(what, splits, {f"{what} (pixels)": whole.hexdigest()}, side)
    return replace(made, inventory=found.record(rows, splits["train"].pairs_N2HWC))


# --- which pictures, of which split ---


def _matched(trees: Sequence[Tree], found: Sequence[Inventory]) -> list[Inventory]:
    """The pictures of both folders in one order, by name without the ending."""
    tables: list[dict[tuple[str, str], int]] = [{}, {}]
    for table, tree, one in zip(tables, trees, found, strict=True):
        for row, file in enumerate(one.pictures):
            twin = table.setdefault((file.part, PurePosixPath(file.name).stem), row)
            if twin != row:
                fault = f"has both {printable(one.pictures[twin].name)} and {printable(file.name)}"
                raise ImageError(tree.path, fault, "keep one picture a name")
    alone: list[str] = []
    for tree, one, mine, other in zip(trees, found, tables, tables[::-1], strict=True):
        names = sorted(one.pictures[mine[key]].name for key in mine.keys() - other.keys())
        if names:
            alone.append(f"{len(names)} in {printable(tree.path)} alone ({shortened(names)})")
    if alone:
        fix = "give both the same names, or take those out"
        raise UserError(f"the two folders have pictures of other names: {'; '.join(alone)}: {fix}")
    return [one.only([table[key] for key in sorted(table)]) for table, one in zip(tables, found, strict=True)]


def _drawn_splits(parts: Sequence[str], shares: Mapping[str, float], seed: int, path: Path) -> dict[Split, list[int]]:
    """Rows of each split: those of its folder, or else a share of the training ones, at random."""
    rows: dict[Split, list[int]] = {split: [row for row, part in enumerate(parts) if part == split] for split in SPLITS}
    pool = [row for row, part in enumerate(parts) if part in ("", "train")]
    drawn: list[Split] = [split for split in SPLITS if split != "train" and not rows[split]]
    if drawn and len(pool) <= len(drawn):
        have = "one picture" if len(pool) == 1 else f"{len(pool)} pictures"
        fault = f"has {have} to train on and to draw {' and '.join(drawn)} from"
        raise ImageError(path, fault, "add pairs: more make it learn")
    order = torch.randperm(len(pool), generator=generator(seed, "split", 0)).tolist()
    start = 0
    for split in drawn:
        count = max(1, min(round(shares[split] * len(pool)), len(pool) - start - len(drawn)))
        rows[split] = sorted(pool[place] for place in order[start : start + count])
        start += count
    rows["train"] = sorted(pool[place] for place in order[start:])
    return rows


# --- the published archives ---


def _listed(source: Source) -> list[str]:
    """The names of an archive's pictures, sorted; listed once."""
    listing = cache_folder() / "pairs" / f"{source.filename}-{digest(source.sha256)[:16]}.json"
    with contextlib.suppress(UserError):
        found: Any = read_json(listing)
        if isinstance(found, list) and found and all(isinstance(name, str) for name in found):
            return found
    names = sorted(name for name, _ in _unpacked(source, None))
    if not names:
        raise UserError(f"{source.name} holds no pictures: {_AGAIN}")
    write_json(listing, names)
    return names


def _unpacked(source: Source, wanted: Container[str] | None) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of an archive's pictures, in its order; the bytes are empty where None are wanted."""
    path = fetch(source)
    with damage(path, _AGAIN), tarfile.open(path, "r|gz", tarinfo=Bounded) as packed:
        for at, body in members(packed):
            *_, split, file = ("", *PurePosixPath(at).parts)
            name = f"{split}/{file}"
            is_one = split in SPLITS and at.isprintable() and is_picture(file) and not is_hidden(file)
            if is_one and (wanted is None or name in wanted):
                yield name, b"" if wanted is None else body()


def _published_splits(members: Sequence[str]) -> dict[Split, list[str]]:
    names: dict[Split, list[str]] = {
        split: [name for name in members if name.startswith(f"{split}/")] for split in SPLITS
    }
    if not names["test"]:
        names["test"], names["val"] = names["val"], []
    if not names["val"]:
        train = names["train"]
        order = torch.randperm(len(train), generator=generator(0, "split", 0)).tolist()
        held = min(HELD_OUT, len(order) // 2)
        names["val"] = [train[place] for place in sorted(order[:held])]
        names["train"] = [train[place] for place in sorted(order[held:])]
    empty = [split for split in SPLITS if not names[split]]
    if empty:
        raise UserError(f"the archive has no pictures for {' and '.join(empty)}: {_AGAIN}")
    return names
