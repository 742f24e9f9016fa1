"""Tasks, and pictures of every kind."""

import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from etude.core.config import override
from etude.core.runtime import Runtime
from etude.studies.resnet.study import ResNetConfig, smoke
from etude.studies.resnet.task import ResNetTask

TINY = [
    *("--loop.max-steps", "4", "--loop.eval-every", "2", "--loop.log-every", "1", "--loop.save-every", "2"),
    *("--data.size", "16", "--curve-images", "20"),
]


def settings(**changes: Any) -> ResNetConfig:
    """The smoke preset at 16 pixels without its schedule; ``model__norm="gn"`` sets ``model.norm``."""
    plain = {"data__size": 16, "optim__schedule": "constant", "model__norm": "bn"} | changes
    return override(smoke(), {name.replace("__", "."): value for name, value in plain.items()})


def make(**changes: Any) -> ResNetTask:
    config = settings(**changes)
    return ResNetTask(config, Runtime(config.loop, config.seed))


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)


def picture(seed: int, height: int = 24, width: int = 24, value: int | None = None) -> Image.Image:
    """Noise around one colour of its own."""
    draw = np.random.default_rng(seed)
    middle = draw.integers(60, 196, 3) if value is None else value
    return Image.fromarray((middle + draw.integers(-40, 40, (height, width, 3))).clip(0, 255).astype(np.uint8))


def pixels(path: Path | str) -> np.ndarray:
    """What a file holds, colours as they are."""
    with Image.open(path) as image:
        return np.array(image)


def class_folders(root: Path, counts: Mapping[str, int], split: str = "") -> Path:
    """A folder with one sub-folder a class, of so many pictures each."""
    for number, (name, count) in enumerate(counts.items()):
        folder = root / split / name
        folder.mkdir(parents=True)
        for index in range(count):
            picture(1000 * number + index).save(folder / f"{index:02d}.png")
    return root


def zipped(folder: Path, to: Path) -> Path:
    with zipfile.ZipFile(to, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    return to


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that claims to be a huge picture."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


def _rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(3, 20, 40).save(path, exif=exif)


def _animated(path: Path) -> None:
    frames = [picture(seed).convert("P") for seed in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def _see_through(path: Path) -> None:
    image = picture(5).convert("P")
    image.save(path, transparency=0)


ODD: Mapping[str, Callable[[Path], None]] = {
    "grey.png": lambda path: picture(1).convert("L").save(path),
    "cmyk.jpg": lambda path: picture(2).convert("CMYK").save(path),
    "rotated.jpg": _rotated,
    "animated.gif": _animated,
    "palette.png": _see_through,
    "alpha.png": lambda path: picture(6).convert("RGBA").save(path),
    "one.png": lambda path: picture(7, 1, 1).save(path),
    "wide.png": lambda path: picture(8, 3, 90).save(path),
    "bilevel.png": lambda path: picture(9).convert("1").save(path),
}
"""Pictures that are not square 8-bit colour."""


def _cut(path: Path) -> None:
    picture(1).save(path)
    path.write_bytes(path.read_bytes()[:300])


BROKEN: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "bomb.png": (lambda path: path.write_bytes(bomb(60_000, 60_000)), "has too many pixels"),
    "large.png": (lambda path: path.write_bytes(bomb(9000, 9000)), "is 9000 x 9000 pixels, more than 64,000,000"),
    "cut.png": (
        lambda path: (picture(1).save(path), path.write_bytes(path.read_bytes()[:300])),
        "damaged or cut short",
    ),
    "empty.png": (lambda path: path.write_bytes(b""), "is empty"),
    "text.png": (lambda path: path.write_text("not a picture"), "not an image of a known format"),
    "svg.jpg": (lambda path: path.write_text("<svg/>"), "not an image of a known format"),
}
"""Files that are no pictures, and what is said of them."""


def names_of(rows: Sequence[Any]) -> list[str]:
    return [Path(row["image"]).name for row in rows]
