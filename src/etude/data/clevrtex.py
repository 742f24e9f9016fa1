"""CLEVRTex: scenes of three to ten textured objects with their masks (Karazija, Laina and Rupprecht 2021).

Read are the released folders and what is rendered like them: ``.../CLEVRTEX_<variant>_NNNNNN.png`` with a mask
``..._NNNNNN_flat.png`` beside it, 0 the background and objects from 1, numbers may be left out. As in the authors' own
reader a picture that is not square is cut to its middle square of four fifths of the shorter side (192 of 240 pixels)
and resized, its mask to the nearest pixel; and of the scenes in order of their numbers the first tenth is the test
split, the second validation (`etude.data.render.driver.splits`).

The released set is 50,000 scenes in five archives of 4.7 GB. Its page states no digests, so the archives are held to
what they were when they were first read. They are read as one stream, in order, which serves whether each is a whole
archive or they are pieces of one.

Shapes: N scenes, H height, W width.
"""

import contextlib
import gzip
import math
import re
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from etude.core.errors import UserError
from etude.core.files import read_json, write_json
from etude.data import Dataset
from etude.data.archives import Bounded, members
from etude.data.cache import decoded, digest
from etude.data.fetch import Source, cache_faults, cache_place, fetch, noted_digest
from etude.data.images import FORMATS, ImageError, in_threads, printable, read_image, shortened
from etude.data.inventory import Inventory, Picture, taken
from etude.data.prediction import read_input
from etude.data.render.driver import Split
from etude.data.render.driver import splits as cut_splits
from etude.data.sprites import sprites
from etude.data.tree import Tree, find, opened

SPLITS: tuple[Split, ...] = ("train", "val", "test")
CROP = 0.8
"""The share of a picture's shorter side that is kept."""
NUM_SCENES = 50_000
_HOME = "https://thor.robots.ox.ac.uk/datasets/clevrtex"
ARCHIVES = tuple(
    Source("clevrtex", f"clevrtex_full_part{part}.tar.gz", f"{_HOME}/clevrtex_full_part{part}.tar.gz", sha256="")
    for part in range(1, 6)
)
DATASET = Dataset(
    name="clevrtex",
    about="50,000 rendered scenes of three to ten textured objects, 320x240 pixels, with masks (24 GB)",
    licence="see its page (Karazija, Laina, Rupprecht 2021)",
    home="https://www.robots.ox.ac.uk/~vgg/data/clevrtex/",
    sources=ARCHIVES,
)
_VERSION = 1
_MOST_PIXELS = 64_000_000
_BATCH = 512
"""Files of an archive that are decoded at once."""
_NAME = re.compile(r"(.+_)(\d{6})(_flat)?\.png")
_LAYOUT = "CLEVRTEX_<variant>_NNNNNN.png with CLEVRTEX_<variant>_NNNNNN_flat.png beside it"


@dataclass(frozen=True)
class Scenes:
    """Scenes of one size.

    Attributes:
        images_NHWC: uint8 ``[N, H, W, 3]``.
        masks_NHW: uint8 ``[N, H, W]``: 0 the background, objects from 1.
        names: one a scene.
    """

    images_NHWC: Tensor
    masks_NHW: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class SceneSet:
    """The three splits of a set.

    Attributes:
        splits: the scenes of each split.
        about: what it is, for the line beside every number.
        checksums: digests of what was read.
        inventory: what was found in a folder, see `etude.data.inventory.Inventory.record`; else empty.
    """

    splits: Mapping[Split, Scenes]
    about: str
    checksums: Mapping[str, str]
    inventory: Mapping[str, Any] = field(default_factory=dict[str, Any])


def scenes(name: str, size: int, most: int = 0) -> SceneSet:
    """The scenes of a folder or zip file, decoded once into the cache and mapped from there.

    Args:
        name: the folder or zip file; looked for below ETUDE_MIRROR too.
        size: height and width of the result.
        most: take the first scenes only; 0: all of them.

    Raises:
        UserError: in one line, what is wrong with the folder or with a picture or mask in it.
    """
    path = find(name)
    if not most:
        _refuse_half_rendered(path)
    with opened(path) as tree:
        found, masks = _listed(tree)
        pairs = [(one.name, one.at, mask) for one, mask in zip(found.pictures, masks, strict=True)][: most or None]
        if len(pairs) < 10:
            raise ImageError(path, f"holds {len(pairs)} scenes, too few for three splits", "give 10 at least")
        stamps = [f"{image} {tree.stamp(image)} {tree.stamp(mask)}" for _, image, mask in pairs]
        key = digest(tree.mark, str(size), *stamps)
        first = read_image(tree.image(pairs[0][1]), "RGB").shape[:2]

        def build(to: np.ndarray) -> None:
            def one(number: int) -> None:
                _, image_at, mask_at = pairs[number]
                to[number, ..., :3] = _image(tree.image(image_at), Path(image_at), first, size)
                to[number, ..., 3] = _mask(tree.image(mask_at), Path(mask_at), first, size)

            in_threads(one, len(pairs), "decoding scenes")

        both = torch.from_numpy(decoded("clevrtex", key, _VERSION, (len(pairs), size, size, 4), build))
    splits, named = _cut(both, [name for name, _, _ in pairs]), printable(path.absolute().name)
    rows = {split: range(*ends) for split, ends in cut_splits(len(pairs)).items()}
    inventory = found.record(rows, splits["train"].images_NHWC)
    return SceneSet(splits, _about(f"scenes of {named}", splits), {f"{named} (files)": key}, inventory)


def released(size: int, most: int = 0) -> SceneSet:
    """The released scenes, decoded once into the cache: 2.5 GB of disk for 128 pixels.

    Args:
        size: height and width of the result.
        most: take the first scenes of each of the set's own splits only, so many in all; 0: all of them.

    Raises:
        UserError: the archives are neither cached nor within reach, or are damaged.
    """
    count = min(most or NUM_SCENES, NUM_SCENES)
    whole, part = cut_splits(NUM_SCENES), cut_splits(count)
    # In the order of the splits; a scene stays in the split that it has in the whole set.
    numbers = [whole[split][0] + place for split in part for place in range(part[split][1] - part[split][0])]
    key = digest("released", str(size), str(count))

    def build(to: np.ndarray) -> None:
        _unpack(to, numbers, key, size)

    both = torch.from_numpy(decoded("clevrtex", key, _VERSION, (count, size, size, 4), build))
    splits = _cut(both, [f"CLEVRTEX_full_{number:06d}" for number in numbers])
    about = "CLEVRTex" if count == NUM_SCENES else _about("a part of CLEVRTex", splits)
    return SceneSet(splits, about, read_json(_digests(key)))


def _cut(both: Tensor, names: Sequence[str]) -> dict[Split, Scenes]:
    """The splits of scenes in order, ``[N, size, size, 4]``, the mask last."""
    return {
        split: Scenes(both[start:end, ..., :3], both[start:end, ..., 3], tuple(names[start:end]))
        for split, (start, end) in cut_splits(len(names)).items()
    }


def generated(size: int, counts: Mapping[Split, int]) -> SceneSet:
    """Made-up flat scenes, see `etude.data.sprites`; each split has scenes of its own."""
    splits: dict[Split, Scenes] = {}
    for seed, split in enumerate(SPLITS):
        names = tuple(f"{split}/{number:05d}" for number in range(counts[split]))
        splits[split] = Scenes(*sprites(counts[split], size, seed), names)
    return SceneSet(splits, _about("generated scenes", splits), {})


def _about(what: str, splits: Mapping[Split, Scenes]) -> str:
    return f"{what}, " + " / ".join(f"{len(splits[split]):,}" for split in SPLITS)


# --- which files ---


def _listed(tree: Tree) -> tuple[Inventory, list[str]]:
    """The scenes' pictures in order of their numbers, each with its mask."""
    images: dict[str, str] = {}
    masks: dict[str, str] = {}
    for at in tree.anywhere():
        found = _NAME.fullmatch(PurePosixPath(at).name)
        if found:
            stem, number, flat = found.groups()
            table, name = (masks if flat else images), f"{stem}{number}"
            if name in table:
                raise ImageError(tree.path, f"has {name} twice ({table[name]}, {at})", "keep one of them")
            table[name] = at
    if not images:
        raise ImageError(tree.path, "holds no scenes", f"give {_LAYOUT}")
    for fault, names in (
        ("without a mask", sorted(images.keys() - masks.keys())),
        ("without a picture", sorted(masks.keys() - images.keys())),
    ):
        if names:
            fault = f"has {len(names)} scenes {fault} ({shortened(names)})"
            raise ImageError(tree.path, fault, "add what is missing, or take them out")
    order = sorted(images, key=lambda name: (name[-6:], name))
    inventory = taken(tree, [Picture(name, images[name]) for name in order], also=masks.values())
    return inventory, [masks[name] for name in order]


def _refuse_half_rendered(path: Path) -> None:
    """Refuse a folder that `etude data render` has not finished: its splits would be others when it has."""
    meta = path / "meta.json"
    about: Any = read_json(meta) if meta.is_file() else None
    count = about.get("count") if isinstance(about, dict) else None
    if not isinstance(count, int):
        return
    # The mask is written before this, and the picture before the mask.
    found = sum(1 for file in path.rglob("*_??????.json") if not file.name.startswith("."))
    if found < count:
        fix = f"`etude data render clevrtex --count {count} --out {printable(path)}` goes on, or --data.most {found}"
        raise ImageError(path, f"is half rendered ({found:,} of {count:,} scenes)", fix)


# --- the released archives ---


def _digests(key: str) -> Path:
    """The file beside decoded scenes that says which archives they were read from."""
    return cache_place() / "clevrtex" / "decoded" / f"clevrtex-v{_VERSION}-{key[:16]}.json"


def _unpack(to: np.ndarray, numbers: Sequence[int], key: str, size: int) -> None:
    """Decode the archives' scenes of some numbers into ``[N, size, size, 4]``."""
    rows = {number: row for row, number in enumerate(numbers)}
    missing = {(number, flat) for number in numbers for flat in (False, True)}
    used: list[Source] = []
    waiting: list[tuple[int, bool, str, bytes]] = []

    def decode() -> None:
        def one(row: int) -> None:
            number, flat, name, body = waiting[row]
            part, make = (3, _mask) if flat else (slice(3), _image)
            to[rows[number], ..., part] = make((name, body), Path(name), None, size)

        in_threads(one, len(waiting), f"decoding scenes, {len(missing) // 2:,} left")
        waiting.clear()

    with _opened(used) as archive:
        for name, body in members(archive):
            found = _NAME.fullmatch(PurePosixPath(name).name)
            place = (int(found[2]), bool(found[3])) if found else None
            if place is None or place not in missing:
                continue
            missing.remove(place)
            waiting.append((*place, name, body()))
            if len(waiting) == _BATCH or not missing:
                decode()
            if not missing:
                break
    decode()
    if missing:
        lost = sorted({f"{number:06d}" for number, _ in missing})
        fix = "`etude data get clevrtex --force` fetches them again"
        raise UserError(f"the archives of CLEVRTex lack {len(lost):,} scenes ({shortened(lost)}): {fix}")
    with cache_faults(_digests(key)):
        write_json(_digests(key), {source.name: noted_digest(source) for source in used})


@contextlib.contextmanager
def _opened(used: list[Source]) -> Iterator[tarfile.TarFile]:
    """The archives as one; each is fetched when its turn comes."""
    try:
        with (
            contextlib.closing(_Joined(used)) as stream,
            gzip.GzipFile(fileobj=stream) as unpacked,  # pyright: ignore[reportArgumentType]
            tarfile.open(fileobj=unpacked, mode="r|", ignore_zeros=True, tarinfo=Bounded) as archive,
        ):
            yield archive
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        names, reason = ", ".join(source.filename for source in used), " ".join(str(error).split())
        fix = "`etude data get clevrtex --force` fetches them again"
        raise UserError(f"the archives of CLEVRTex are damaged at {names} ({reason}): {fix}") from error


class _Joined:
    """The archives' bytes one after the other."""

    def __init__(self, used: list[Source]) -> None:
        self._left, self._used = list(ARCHIVES), used
        self._file: Any = BytesIO()

    def read(self, size: int) -> bytes:
        while not (piece := self._file.read(size)) and self._left:
            self._file.close()
            self._used.append(self._left.pop(0))
            self._file = fetch(self._used[-1]).open("rb")
        return piece

    def close(self) -> None:
        self._file.close()


# --- pictures and masks ---


def _image(source: Path | tuple[str, bytes], path: Path, wanted: tuple[int, ...] | None, size: int) -> np.ndarray:
    """A picture of the wanted height and width, cut and resized."""
    image = read_image(source, "RGB")
    if wanted is None:
        # A black one, as Blender makes without light, would be no fault of the reader's in the released set.
        return np.array(cropped(Image.fromarray(image), size))
    if image.shape[:2] != wanted:
        raise ImageError(path, _unlike(image.shape, wanted), "give scenes of one size")
    return fitted_picture(image, path, size, "render it again, or take it and its mask out")


def _mask(source: Path | tuple[str, bytes], path: Path, wanted: tuple[int, ...] | None, size: int) -> np.ndarray:
    mask = _read_mask(source, path, wanted)
    return np.array(cropped(Image.fromarray(mask), size, Image.Resampling.NEAREST))


def cropped(image: Image.Image, size: int, how: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    """A square of ``size`` pixels: of a picture that is not square the middle, see above."""
    width, height = image.size
    if width != height:
        side = max(1, int(CROP * min(width, height)))
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image if image.size == (size, size) else image.resize((size, size), how)


def _read_mask(source: Path | tuple[str, bytes], path: Path, size: tuple[int, ...] | None) -> np.ndarray:
    """The numbers of a mask as they are, whatever colours a palette gives them: uint8 ``[H, W]`` of that size."""
    body: Path | BytesIO = BytesIO(source[1]) if isinstance(source, tuple) else source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(body, formats=FORMATS) as opened:
                mode, shape = opened.mode, opened.size[::-1]
                size = size or shape
                if shape[0] * shape[1] > _MOST_PIXELS:
                    raise ValueError("gigantic")
                # Nothing of another size is decoded: it may be gigantic.
                numbers = np.array(opened) if shape == size else np.zeros((0, 0))
        except Exception as error:
            raise ImageError(path, "is no mask that can be read", "copy it again") from error
    if size is not None and shape != size:
        raise ImageError(path, _unlike(shape, size), "give its picture's mask")
    if numbers.ndim != 2 or mode not in ("1", "L", "P", "I", "I;16"):
        raise ImageError(path, f"is no mask (its pixels are {mode})", "give one number a pixel")
    if numbers.max(initial=0) > 255:
        raise ImageError(path, f"has an object numbered {numbers.max()}", "number them from 1 to 255")
    return numbers.astype(np.uint8)


def _unlike(size: tuple[int, ...], other: tuple[int, ...]) -> str:
    return f"is {size[1]} x {size[0]} pixels, and others {other[1]} x {other[0]}"


def read_picture(path: Path, size: int, max_pixels: int) -> np.ndarray:
    """A picture of a user's, cut to the middle as scenes are: bytes ``[size, size, 3]``.

    Raises:
        UserError: broken, too large, or of one colour; a small one is enlarged.
    """
    return fitted_picture(read_input(path, "RGB", max_pixels, least_side(size)), path, size)


def least_side(size: int) -> int:
    """The length that the shorter side must have for a picture cut to ``size`` not to be enlarged."""
    return math.ceil(size / CROP)


def fitted_picture(
    image: np.ndarray, path: Path, size: int, fix: str = "give a picture with something to see"
) -> np.ndarray:
    """The pixels ``[H, W, 3]`` of a picture that errors call ``path``, as `read_picture` gives them."""
    if (image == image[0, 0]).all():
        raise ImageError(path, "is of one colour", fix)
    return np.array(cropped(Image.fromarray(image), size))
