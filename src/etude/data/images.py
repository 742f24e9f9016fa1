"""Users' image files, read as 8-bit arrays."""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features
from rich.console import Console
from rich.progress import track

from etude.core.errors import UserError

# Pillow knows more; some of those start other programs. JPEG opens MPO too, which is no name to open by.
_ENDINGS = {
    "PNG": "png apng", "JPEG": "jpg jpeg jpe jfif mpo", "BMP": "bmp", "GIF": "gif", "TIFF": "tif tiff",
    "WEBP": "webp", "PPM": "ppm pgm pbm pnm",
}  # fmt: skip
_ENDINGS |= {"JPEG2000": "jp2 j2k jpf jpx jpc j2c"} if features.check("jpg_2000") else {}
_ENDINGS |= {"AVIF": "avif avifs"} if features.check("avif") else {}
FORMATS = tuple(_ENDINGS)
EXTENSIONS = tuple(" ".join(_ENDINGS.values()).split())
KINDS = ", ".join(FORMATS)
"""The formats that are read, for an error."""
DARK = 16
"""The value that no pixel of a nearly black picture exceeds: 12 bits in a file of 16 have at most this."""
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
_LONGEST_SIDE = 65_535
_LONG_AND_THIN = "crop it to a shape nearer to a square"

Mode = Literal["L", "RGB"]
Fit = Literal["crop", "squash"]


class ImageError(UserError):
    """A `UserError` about one file or folder; ``fault`` is what it says without the name and the fix."""

    def __init__(self, path: Path, fault: str, fix: str) -> None:
        super().__init__(f"{printable(path)} {fault}: {fix}")
        self.fault = fault


def printable(name: Path | str) -> str:
    """A path or name on one line, whatever characters it has."""
    return str(name) if str(name).isprintable() else ascii(str(name))


def shortened(names: Sequence[str], shown: int = 5) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(printable(name) for name in names[:shown]) + more


def read_image(
    source: Path | str | tuple[str, bytes], mode: Mode, max_pixels: int = 64_000_000, min_side: int | None = None
) -> np.ndarray:
    """An image's pixels.

    16-bit grey is scaled by its range (65,535 becomes 255); transparency lies over white; the camera's orientation
    is applied; of several frames or pages the first is read.

    Args:
        source: a file of one of the `FORMATS`, whatever its ending, or a name and such a file's bytes.
        mode: ``L`` for grey, ``RGB`` for colour.
        max_pixels: a larger image is refused before it is decoded.
        min_side: for a caller that shrinks the image to this many pixels. A large JPEG may then come at a half, a
            quarter or an eighth of its size, much sooner, with both sides at least this long.

    Returns:
        uint8 ``[H, W]`` for ``L``, ``[H, W, 3]`` for ``RGB``.

    Raises:
        ImageError: one line that names the file, the fault and the fix.
    """
    name, body = source if isinstance(source, tuple) else (source, None)
    path = Path(name)
    if body is None:
        _check_file(path)
    # Pillow warns of bombs, odd metadata and odd palettes; the first is an error here, the others are not the user's.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if not (path.stat().st_size if body is None else len(body)):
                raise ImageError(path, "is empty (0 bytes)", "copy or save it again")
            stream = path.open("rb") if body is None else io.BytesIO(body)
            with stream as file, Image.open(file, formats=FORMATS) as opened:
                width, height = opened.size
                if width * height > max_pixels:
                    size = f"is {width} x {height} pixels, more than {max_pixels:,}"
                    raise ImageError(path, size, "make it smaller")
                if min_side is not None:
                    opened.draft(None, (min_side, min_side))
                opened.load()
                image = opened
                # Damaged metadata do not make the pixels unreadable.
                with contextlib.suppress(Exception):
                    image = ImageOps.exif_transpose(opened)
                return _eight_bits(image, mode, path, getattr(opened, "tag_v2", {}))
        except UserError:
            raise
        except PermissionError as error:
            raise ImageError(path, "may not be read", "change its permissions") from error
        except UnidentifiedImageError as error:
            fix = "check that it is an image, and convert it to PNG"
            raise ImageError(path, f"is not an image of a known format ({KINDS})", fix) from error
        except Image.DecompressionBombError as error:
            raise ImageError(path, "has too many pixels", "make it smaller") from error
        # Pillow's decoders answer broken bytes with nearly every kind of exception.
        except Exception as error:
            raise ImageError(path, "is damaged or cut short", "copy or save it again") from error


def in_threads(work: Callable[[int], None], count: int, title: str) -> None:
    """Call ``work`` with 0 .. count - 1 in some threads: Pillow decodes without holding the interpreter.

    A bar with the time left is shown where stderr is a terminal. The first fault of ``work`` ends all of it.

    Args:
        work: reads one image.
        count: how many calls.
        title: stands before the bar.
    """
    shown = sys.stderr.isatty()
    # Threads that enter and leave `catch_warnings` in turn would leave the filters of one of them in place.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            done = pool.map(work, range(count))
            for _ in track(done, title, count, console=Console(stderr=True), transient=True, disable=not shown):
                pass


def to_square(image: np.ndarray, size: int, background: int) -> np.ndarray:
    """An image in the middle of a square of the background's value, resized by averaging areas.

    Args:
        image: uint8 ``[H, W]`` or ``[H, W, 3]``.
        size: height and width of the result in pixels.
        background: 0 to 255.

    Returns:
        uint8 ``[size, size]`` or ``[size, size, 3]``.

    Raises:
        UserError: a side is longer than 65,535 pixels.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    if side > _LONGEST_SIDE:
        raise UserError(f"an image of {width} x {height} pixels is too long and thin: {_LONG_AND_THIN}")
    tall = height > width
    flat = image.swapaxes(0, 1) if tall else image
    # The long side shrinks before the padding, so that a thin image never needs the memory of its whole square.
    flat = _resized(flat, size, flat.shape[0])
    above = (side - flat.shape[0]) // 2
    padded = np.full((side, *flat.shape[1:]), background, np.uint8)
    padded[above : above + flat.shape[0]] = flat
    square = _resized(padded, size, size)
    return square.swapaxes(0, 1).copy() if tall else square


def fitted(image: np.ndarray, size: int, fit: Fit) -> np.ndarray:
    """An image as a square: averages where it shrinks (a triangle as wide as the shrinking), bilinear where it grows.

    Args:
        image: uint8 ``[H, W, 3]``.
        size: height and width of the result in pixels.
        fit: ``crop`` takes the middle square, ``squash`` the whole picture.

    Returns:
        uint8 ``[size, size, 3]``.
    """
    height, width = image.shape[:2]
    box = (0, 0, width, height)
    if fit == "crop":
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
    # Pillow's bilinear filter widens with the shrinking.
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box))


def _resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    # Averages where pixels get fewer; blocks would be the box filter's answer where they get more.
    grows = width > image.shape[1] or height > image.shape[0]
    method = Image.Resampling.BILINEAR if grows else Image.Resampling.BOX
    return np.array(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), method))


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise ImageError(path, "is a folder", "give an image file in it")
        if not path.exists():
            if path.is_symlink():
                raise ImageError(path, "is a broken link", "restore what it points to, or remove it")
            raise ImageError(path, "does not exist", "check the path")
        if not path.is_file():
            raise ImageError(path, "is not a file", "give an image file")
    except OSError as error:
        raise ImageError(path, f"cannot be read ({error.strerror})", "check the path and its permissions") from error


def _eight_bits(image: Image.Image, mode: Mode, path: Path, tags: Mapping[int, Any]) -> np.ndarray:
    """uint8 ``[H, W]`` or ``[H, W, 3]``, given a TIFF's tags."""
    # A pixel may be one number of more than 8 bits.
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values_HW = np.asarray(image)
        if image.mode == "F" or values_HW.min() < 0 or values_HW.max() > 65_535:
            raise ImageError(path, "has 32-bit pixels without a known range", "save it with 8 or 16 bits a channel")
        # Pillow widens and turns a TIFF's pixels at other depths, and not at these.
        if tags.get(_BITS) == (12,):
            values_HW = values_HW * 16 + values_HW // 256
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            values_HW = 65_535 - values_HW
        grey_HW = ((values_HW.astype(np.uint32) + 128) // 257).astype(np.uint8)
        # Of a PNG one value may be transparent.
        grey_HW[values_HW == image.info.get("transparency", -1)] = 255
        return grey_HW if mode == "L" else np.repeat(grey_HW[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        # Of 16 bits a channel Pillow has kept 8, but not of the transparent colour.
        if isinstance(clear := image.info.get("transparency"), tuple) and max(clear) > 255:
            image.info["transparency"] = tuple(value >> 8 for value in clear)
        # Premultiplied modes convert to their plain twin only.
        plain = {"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)
        over = image.convert(plain).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    elif image.mode not in ("1", "L"):
        # Colour spaces and palettes reach grey through RGB.
        image = image.convert("RGB")
    return np.array(image.convert(mode))
