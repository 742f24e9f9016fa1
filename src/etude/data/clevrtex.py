"""CLEVRTex: scenes of three to ten textured objects with their masks (Karazija, Laina and Rupprecht 2021).

Read are the released folders and what is rendered like them: ``.../CLEVRTEX_<variant>_NNNNNN.png`` with a mask
``..._NNNNNN_flat.png`` beside it, 0 the background and objects from 1, numbers may be left out. As in the authors' own
reader a picture that is not square is cut to its middle square of four fifths of the shorter side (192 of 240 pixels)
and resized, its mask to the nearest pixel; and of the scenes in order of their numbers the first tenth is the test
split, the second validation (`etude.data.render.driver.splits`).

The released set is 50,000 scenes in five archives of 4.7 GB. Its page states no digests.

Shapes: N scenes, H height, W width.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from etude.data import folders
from etude.data.cache import decoded, digest
from etude.data.images import ImageError, in_threads, printable, read_image, shortened
from etude.data.labelled import mapped
from etude.data.render.driver import Split
from etude.data.render.driver import splits as cut_splits
from etude.data.sprites import sprites

SPLITS: tuple[Split, ...] = ("train", "val", "test")
CROP = 0.8
"""Of a picture's shorter side."""
_VERSION = 1
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
        splits: the scenes of each.
        about: what it is, for the line beside every number.
        checksums: of what was read.
    """

    splits: Mapping[Split, Scenes]
    about: str
    checksums: Mapping[str, str]


def scenes(name: str, size: int, most: int = 0) -> SceneSet:
    """The scenes of a folder or zip file, decoded once into the cache and mapped from there.

    Args:
        name: of the folder or zip file; looked for below ETUDE_MIRROR too.
        size: height and width of the result.
        most: take the first scenes only; 0: all of them.

    Raises:
        UserError: in one line, what is wrong with the folder or with a picture or mask in it.
    """
    path = folders.find(name)
    with folders.opened(path) as place:
        pairs = _listed(place, path)[: most or None]
        if len(pairs) < 10:
            raise ImageError(path, f"holds {len(pairs)} scenes, too few for three splits", "give 10 at least")
        stamps = [f"{image} {place.stamp(image)} {place.stamp(mask)}" for _, image, mask in pairs]
        key = digest(place.mark, str(size), *stamps)
        first = read_image(place.image(pairs[0][1]), "RGB").shape[:2]

        def build(to: np.ndarray) -> None:
            def one(number: int) -> None:
                _, image_at, mask_at = pairs[number]
                image = read_image(place.image(image_at), "RGB")
                if image.shape[:2] != first:
                    raise ImageError(Path(image_at), _unlike(image.shape, first), "give scenes of one size")
                mask = _read_mask(place.image(mask_at), Path(mask_at), first)
                to[number, ..., :3] = np.array(_cropped(Image.fromarray(image), size, Image.Resampling.BILINEAR))
                to[number, ..., 3] = np.array(_cropped(Image.fromarray(mask), size, Image.Resampling.NEAREST))

            in_threads(one, len(pairs), "decoding scenes")

        both = mapped(decoded("clevrtex", key, _VERSION, (len(pairs), size, size, 4), build))
    splits: dict[Split, Scenes] = {}
    for split, (start, end) in cut_splits(len(pairs)).items():
        names = tuple(name for name, _, _ in pairs[start:end])
        splits[split] = Scenes(both[start:end, ..., :3], both[start:end, ..., 3], names)
    return SceneSet(
        splits, _about(f"scenes of {printable(path.name)}", splits), {f"{printable(path.name)} (files)": key}
    )


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


def _listed(place: Any, path: Path) -> list[tuple[str, str, str]]:
    """Name, picture and mask of each scene, in order of their numbers."""
    images: dict[str, str] = {}
    masks: dict[str, str] = {}
    for at in folders.anywhere(place):
        found = _NAME.fullmatch(PurePosixPath(at).name)
        if found:
            stem, number, flat = found.groups()
            table, name = (masks if flat else images), f"{stem}{number}"
            if name in table:
                raise ImageError(path, f"has {name} twice ({table[name]}, {at})", "keep one of them")
            table[name] = at
    if not images:
        raise ImageError(path, "holds no scenes", f"give {_LAYOUT}")
    for fault, names in (
        ("without a mask", sorted(images.keys() - masks.keys())),
        ("without a picture", sorted(masks.keys() - images.keys())),
    ):
        if names:
            fault = f"has {len(names)} scenes {fault} ({shortened(names)})"
            raise ImageError(path, fault, "add what is missing, or take them out")
    order = sorted(images, key=lambda name: (name[-6:], name))
    return [(name, images[name], masks[name]) for name in order]


# --- pictures and masks ---


def _cropped(image: Image.Image, size: int, how: Image.Resampling) -> Image.Image:
    width, height = image.size
    if width != height:
        side = int(CROP * min(width, height))
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image if image.size == (size, size) else image.resize((size, size), how)


def _read_mask(source: Path | tuple[str, bytes], path: Path, size: tuple[int, ...]) -> np.ndarray:
    """The numbers of a mask as they are, whatever colours a palette gives them: uint8 ``[H, W]`` of that size."""
    body: Path | BytesIO = BytesIO(source[1]) if isinstance(source, tuple) else source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(body) as opened:
                mode, shape = opened.mode, opened.size[::-1]
                # Nothing of another size is decoded: it may be gigantic.
                numbers = np.array(opened) if shape == size else np.zeros((0, 0))
        except Exception as error:
            raise ImageError(path, "is no mask that can be read", "copy it again") from error
    if shape != size:
        raise ImageError(path, _unlike(shape, size), "give its picture's mask")
    if numbers.ndim != 2 or mode not in ("1", "L", "P", "I", "I;16"):
        raise ImageError(path, f"is no mask (its pixels are {mode})", "give one number a pixel")
    if numbers.max(initial=0) > 255:
        raise ImageError(path, f"has an object numbered {numbers.max()}", "number them from 1 to 255")
    return numbers.astype(np.uint8)


def _unlike(size: tuple[int, ...], other: tuple[int, ...]) -> str:
    return f"is {size[1]} x {size[0]} pixels, and others {other[1]} x {other[0]}"
