"""Inputs in, files out: what predictions share."""

import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import tyro
from PIL import Image

from etude.core.errors import Refused, UserError
from etude.core.files import write_atomic
from etude.data.images import DARK, Mode, printable, read_image
from etude.data.inventory import list_images

_log = logging.getLogger("etude")
T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class PictureOptions:
    """The flags of every prediction of pictures."""

    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Pictures, or folders of pictures."""
    max_pixels: int = 64_000_000
    """Larger pictures are refused."""


@dataclass(frozen=True)
class MakingOptions(PictureOptions):
    """The flags of every prediction that makes pictures of pictures."""

    force: bool = False
    """Write over results that are there."""


def attempted(inputs: Sequence[T], work: Callable[[T], A], name: Callable[[T], str] = str) -> list[A | Refused]:
    """The results of ``work`` for each input, or its refusals, which call the input by ``name``."""
    made: list[A | Refused] = []
    for given in inputs:
        try:
            made.append(work(given))
        except UserError as error:
            made.append(Refused(name(given), str(error)))
    return made


def in_place(made: Sequence[A | Refused], answers: Iterable[B]) -> list[B | Refused]:
    """The answers to those inputs that were not refused, with the refusals between them in the inputs' order."""
    rest = iter(answers)
    return [row if isinstance(row, Refused) else next(rest) for row in made]


def answerable(made: list[A | Refused]) -> list[A | Refused]:
    """The results as they are; `UserError` where every input was refused."""
    refused = [row.error for row in made if isinstance(row, Refused)]
    if refused and len(refused) == len(made):
        others = f" (and {len(refused) - 1} more that cannot be answered)" if len(refused) > 1 else ""
        raise UserError(f"{refused[0]}{others}")
    return made


def picture_files(given: Sequence[Path]) -> list[Path]:
    """The pictures that a user named: files as they are, folders as the images in them.

    Raises:
        UserError: a folder without an image.
    """
    return [path for name in given for path in (list_images(name) if os.path.isdir(name) else [name])]


def read_input(
    source: Path | tuple[str, bytes], mode: Mode, max_pixels: int, min_side: int | None = None
) -> np.ndarray:
    """A picture as `read_image` reads it, with a warning where it is nearly black."""
    image = read_image(source, mode, max_pixels, min_side)
    if 0 < image.max() <= DARK:
        name = printable(source[0] if isinstance(source, tuple) else source)
        _log.warning("%s is nearly black (%d of 255 at most): scale 12 bits in a file of 16", name, image.max())
    return image


def result_files(paths: Sequence[Path], folder: Path, endings: Sequence[str], *, force: bool) -> list[list[Path]]:
    """The paths of what is made of each picture: its name without its ending, and each of ``endings``, in a folder.

    Args:
        paths: the pictures.
        folder: the place of the results.
        endings: such as ``".png"`` or ``"-mask.png"``.
        force: whether results may be written over files that are there.

    Raises:
        UserError: two pictures of one name, a result over a picture itself, or, unforced, over a file.
    """
    seen: dict[str, Path] = {}
    for path in paths:
        # One file to some systems, whatever its Unicode form.
        other = seen.setdefault(unicodedata.normalize("NFC", path.stem), path)
        if other == path and other is not path:
            raise UserError(f"{path} is named twice: name it once")
        if other is not path:
            clash = f"{path.stem}{endings[0]}"
            raise UserError(f"{other} and {path} would both write {clash}: give other names, or one at a time")
    files = [[folder / f"{path.stem}{ending}" for ending in endings] for path in paths]
    refuse_existing([target for targets in files for target in targets], paths, force=force)
    return files


def refuse_existing(targets: Sequence[Path], inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse results that lie where an input does, or, unforced, where any file does; a `UserError`."""
    taken = {(found.st_dev, found.st_ino): path for path in inputs if (found := _stat(path)) is not None}
    for target in targets:
        found = _stat(target)
        if found is None:
            continue
        if (found.st_dev, found.st_ino) in taken:
            raise UserError(f"{target} would be written over the picture itself: choose another --output")
        if not force:
            raise UserError(f"{target} exists: choose another --output, or --force to write over it")


def save_png(target: Path, image: np.ndarray) -> None:
    """Write a picture, uint8 ``[H, W]`` or ``[H, W, 3]``, whole or not at all."""
    picture = Image.fromarray(image)
    write_atomic(target, lambda to: picture.save(to, "PNG"))


def _stat(path: Path) -> os.stat_result | None:
    # A name may be too long for the system.
    try:
        return path.stat()
    except (OSError, ValueError):
        return None
