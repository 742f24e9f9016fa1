"""The repetitions in a data set: equal and nearly equal items across its splits and across its classes.

Items of the test split that training has seen make a number better than it is; one item in two classes makes a label
wrong. Word problems are compared with their numbers masked, pictures by their pixels and by a perceptual hash.
"""

import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.fft import dctn  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

from etude.core.errors import UserError
from etude.data import NAMES
from etude.data.images import ImageError, read_image
from etude.data.inventory import inventory, partners
from etude.data.tree import is_hidden, opened

_log = logging.getLogger("etude")
THUMBNAIL = 16
"""Pixels a side of the grey thumbnails by which pictures are nearly equal."""
NEAR_BITS = 6
"""The number of the perceptual hash's 64 bits that may differ."""
NEAR_GREY = 8.0
"""The mean difference that thumbnails may have, of 255."""
_CHUNK = 512


@dataclass(frozen=True)
class Item:
    """One item of a data set.

    Attributes:
        name: how it is found again.
        split: train, val or test; empty where there are none.
        class_name: empty where there are none.
        mark: what equal items share.
        thumbnail: uint8 ``[16, 16]`` of a picture; None of a text.
    """

    name: str
    split: str
    class_name: str
    mark: str
    thumbnail: np.ndarray | None = None


@dataclass(frozen=True)
class Finding:
    """The count of one place's items that are found in another."""

    what: str
    """Equal or nearly equal."""
    items: str
    """The place whose items are counted, as ``test``."""
    among: str
    """The place where they are found, as ``train``."""
    count: int
    of: int
    share: float
    """The share in per cent."""
    example: str
    """One such item, and the one that it equals."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def audit(name: str) -> list[Finding]:
    """The findings of a data set by name, or of a folder or zip file of pictures, or of JSON files of problems.

    Raises:
        UserError: it is neither, or cannot be read.
    """
    return findings(list(_items(name)))


def findings(items: Sequence[Item]) -> list[Finding]:
    """Equal and nearly equal items of each two splits, within each, and across classes."""
    if not items:
        return []
    by_split: dict[str, list[int]] = defaultdict(list)
    for row, item in enumerate(items):
        by_split[item.split].append(row)
    rows: list[Finding] = []
    marks = np.unique([item.mark for item in items], return_inverse=True)[1]
    classes = np.unique([item.class_name for item in items], return_inverse=True)[1]
    near = _Near(items) if items[0].thumbnail is not None else None
    places = sorted(by_split, key=lambda split: ("test", "val", "dev", "train").index(split) if split in _ORDER else -1)
    for number, one in enumerate(places):
        for other in places[number:]:
            place = one or "all"
            among = "itself" if one == other else other
            rows.append(_equal(items, by_split[one], by_split[other], marks, place, among))
            # Within one split a picture that is nearly another's does no harm.
            if near is not None and one != other:
                rows.append(_nearly(items, by_split[one], by_split[other], marks, near, place, among))
    if len(set(classes.tolist())) > 1:
        everything = list(range(len(items)))
        rows.append(_equal(items, everything, everything, marks, "all", "another class", classes))
        if near is not None:
            rows.append(_nearly(items, everything, everything, marks, near, "all", "another class", classes))
    return rows


_ORDER = ("test", "val", "dev", "train")


def _equal(
    items: Sequence[Item], here: Sequence[int], there: Sequence[int], marks: np.ndarray, place: str, among: str,
    classes: np.ndarray | None = None,
) -> Finding:  # fmt: skip
    found = partners(marks.tolist(), here, there, None if classes is None else classes.tolist())
    return _finding("equal", items, here, list(found), place, among)


class _Near:
    """Perceptual hashes and thumbnails of pictures."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.thumbnails_NP = np.stack([item.thumbnail for item in items]).reshape(len(items), -1)  # pyright: ignore[reportArgumentType, reportCallIssue]
        self.hashes_N = np.concatenate(
            [_hashes(self.thumbnails_NP[start : start + 4096]) for start in range(0, len(items), 4096)]
        )

    def partners(self, here_N: np.ndarray, there_M: np.ndarray, allowed: Any) -> Iterator[int | None]:
        """The first picture of the other place that is nearly equal to each of one."""
        for start in range(0, len(here_N), _CHUNK):
            part_C = here_N[start : start + _CHUNK]
            bits_CM = np.bitwise_count(self.hashes_N[part_C, None] ^ self.hashes_N[None, there_M])
            rows, columns = np.nonzero(bits_CM <= NEAR_BITS)
            one, other = part_C[rows], there_M[columns]
            kept = allowed(one, other)
            rows, one, other = rows[kept], one[kept], other[kept]
            apart = [
                np.abs(self.thumbnails_NP[a].astype(np.int16) - self.thumbnails_NP[b]).mean(axis=1)
                for a, b in zip(_chunks(one), _chunks(other), strict=True)
            ]
            close = np.concatenate(apart) <= NEAR_GREY if apart else np.zeros(0, bool)
            found: dict[int, int] = {}
            for row, partner in zip(rows[close].tolist(), other[close].tolist(), strict=True):
                found.setdefault(row, partner)
            yield from (found.get(row) for row in range(len(part_C)))


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + 65536] for start in range(0, len(rows), 65536))


def _hashes(thumbnails_NP: np.ndarray) -> np.ndarray:
    """The signs of the 64 lowest frequencies against their median, as 64 bits (pHash: Zauner 2010, section 3.2.1)."""
    waves_NHW: Any = dctn(thumbnails_NP.reshape(-1, THUMBNAIL, THUMBNAIL).astype(np.float32), axes=(1, 2))
    low_NF = waves_NHW[:, :8, :8].reshape(len(thumbnails_NP), 64)
    # The mean brightness is no pattern.
    low_NF[:, 0] = 0
    bits_NF = low_NF > np.median(low_NF, axis=1, keepdims=True)
    return np.packbits(bits_NF, axis=1).view(np.uint64).ravel()


def _nearly(
    items: Sequence[Item], here: Sequence[int], there: Sequence[int], marks: np.ndarray, near: _Near, place: str,
    among: str, classes: np.ndarray | None = None,
) -> Finding:  # fmt: skip
    def allowed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        apart = marks[one] != marks[other]
        return apart if classes is None else apart & (classes[one] != classes[other])

    partners = near.partners(np.array(here), np.array(there), allowed)
    return _finding("nearly equal", items, here, list(zip(here, partners, strict=True)), place, among)


def _finding(
    what: str,
    items: Sequence[Item],
    here: Sequence[int],
    found: Sequence[tuple[int, int | None]],
    place: str,
    among: str,
) -> Finding:
    hits = [(row, other) for row, other in found if other is not None]
    example = f"{items[hits[0][0]].name} = {items[hits[0][1]].name}" if hits else ""
    return Finding(what, place, among, len(hits), len(here), round(100 * len(hits) / len(here), 2), example)


# --- what the items of a data set are ---


def picture(name: str, split: str, class_name: str, image: np.ndarray) -> Item:
    """A picture as an item.

    Args:
        name: how it is found again.
        split: its split.
        class_name: its class.
        image: uint8 ``[H, W]`` or ``[H, W, 3]``.
    """
    from PIL import Image

    mark = hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
    grey = Image.fromarray(image).convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return Item(name, split, class_name, mark, np.asarray(grey))


def problem(name: str, split: str, text: str) -> Item:
    """A word problem as an item: equal where the words are, whatever the numbers."""
    from etude.data.mathqa import masked

    return Item(name, split, "", " ".join(masked(text.lower()).split()))


def _items(name: str) -> Iterable[Item]:
    if name in NAMES and not Path(name).exists():
        readers = {"cifar10": _cifar10, "mathqa": _mathqa, "mnist": _mnist, "omniglot": _omniglot, "pairs": _pairs}
        if name not in readers:
            raise UserError(f"'{name}' has no one form to audit: give its folder or zip file")
        return readers[name]()
    listed = sorted(Path(name).glob("*.json")) if Path(name).is_dir() else []
    files = {path.stem: path for path in listed if not is_hidden(path.name)}
    return _problems(files) if files else _folder(Path(name))


def _folder(path: Path) -> Iterator[Item]:
    with opened(path) as tree:
        top = tree.contents()
        classes = bool(top[0]) and not top[1]
        try:
            listed = inventory(tree, classes=classes).pictures
        except UserError:
            if not classes:
                raise
            listed = inventory(tree, classes=False).pictures
        for one in listed:
            try:
                yield picture(one.name, one.part, one.class_name, read_image(tree.image(one.at), "RGB"))
            except ImageError as error:
                _log.warning("left out: %s", error)


def _problems(files: dict[str, Path]) -> Iterator[Item]:
    for split, path in files.items():
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            texts = [row["Problem"] for row in rows]
        except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
            raise UserError(f"{path} is no list of problems ({error}): each row has a field Problem") from error
        for number, text in enumerate(texts):
            yield problem(f"{split}[{number}] {str(text)[:60]}", split, str(text))


def _mathqa() -> Iterator[Item]:
    from etude.data import mathqa

    copies = mathqa.filtered_copies()
    if copies is not None:
        yield from _problems(copies)
        return
    for split in mathqa.SPLITS:
        for number, row in enumerate(mathqa.official_rows(split)):
            yield problem(f"{split}[{number}] {row['Problem'][:60]}", split, row["Problem"])


def _cifar10() -> Iterator[Item]:
    from etude.data import cifar10

    for split in ("train", "test"):
        try:
            images = cifar10.load_jpeg(split)
        except UserError:
            images = cifar10.load(split)
        for image, label, name in zip(images.images_NHWC.numpy(), images.labels_N.tolist(), images.names, strict=True):
            yield picture(f"{split}[{name}]", split, images.classes[label], image)


def _mnist() -> Iterator[Item]:
    from etude.data import mnist

    for split in ("train", "test"):
        images, labels = mnist.load(split)
        for number, (image, label) in enumerate(zip(images.numpy(), labels.tolist(), strict=True)):
            yield picture(f"{split}[{number}]", split, str(label), image)


def _omniglot() -> Iterator[Item]:
    from etude.data import omniglot

    for split in ("train", "val", "test"):
        pool = omniglot.load(split)
        for name, drawings in zip(pool.names, pool.images_CNHW.numpy(), strict=True):
            if name.endswith("rot000"):
                yield from (picture(f"{name}/{n}", split, name, image) for n, image in enumerate(drawings, 1))


def _pairs() -> Iterator[Item]:
    from etude.data import pairs

    found = Counter[str]()
    for name in pairs.NAMES:
        try:
            splits = pairs.archive(name, 256, 256).splits
        except UserError:
            try:
                splits = pairs.subset(name, 256, 256).splits
            except UserError:
                continue
        for split, one in splits.items():
            found[name] += len(one)
            for image, label in zip(one.pairs_N2HWC.numpy(), one.names, strict=True):
                yield picture(f"{name}/{label}", split, name, image.transpose(1, 0, 2, 3).reshape(256, 512, 3))
    if not found:
        raise UserError("no set of pairs is at hand: `etude data get pairs`, or set ETUDE_MIRROR")
