"""Translate your own pictures with a trained generator.

The network, its direction and how much its training pictures were shrunk are read from the weights. A picture is
shrunk likewise; what is then larger than the network's size is cut into tiles that overlap, and the results are
blended; what is smaller is padded with its mirror image. Results have their picture's size.

Shape suffixes: N tiles, H height, W width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from etude.core import randomness
from etude.core.checkpoint import load_weights, read_weights
from etude.core.config import from_dict
from etude.core.errors import Refused, UserError
from etude.core.loop import progress_bar
from etude.core.runtime import resolve_device
from etude.data.images import ImageError, printable
from etude.data.prediction import (
    MakingOptions,
    answerable,
    attempted,
    picture_files,
    read_input,
    result_files,
    save_png,
)
from etude.nn.pixels import prepare, to_bytes
from etude.studies.pix2pix.model import Generator
from etude.studies.pix2pix.study import Pix2PixConfig
from etude.studies.pix2pix.task import build_generator

Network = Callable[[np.ndarray], np.ndarray]
"""uint8 tiles ``[N, size, size, 3]`` to tiles of the same shape."""
_BATCH = 8


@dataclass(frozen=True)
class Options(MakingOptions):
    output: Path | None = None
    """The folder for the results, each under its picture's name, as PNG."""
    fit: Literal["tile", "whole"] = "tile"
    """tile: at the scale of the training pictures, in tiles where that is larger than the network's size; whole:
    squeezed into the network's size, and enlarged again."""
    scale: float | None = None
    """The factor that `tile` resizes pictures by; None: as the training pictures were, which the weights say."""
    overlap: int = 32
    """Pixels that neighbouring tiles share."""
    seed: int = 0
    """The seed of the dropout, the network's noise; every tile and picture has the same."""


@dataclass(frozen=True)
class Prediction:
    """The record of one translated picture."""

    image: str
    output: str
    width: int
    height: int
    tiles: int


def predict(weights: Path, extra: Mapping[str, Any] | None, options: Options) -> list[Prediction | Refused]:
    """Translate the inputs one after the other; the order of the answers is theirs.

    Raises:
        UserError: no picture that can be read, or a missing or broken folder or weights file, in one line.
    """
    if not options.inputs:
        raise UserError("no pictures to translate: name some, or a folder of them")
    if options.output is None:
        raise UserError("no place for the results: name a folder with --output")
    translator = load(weights, seed=options.seed)
    size = translator.config.model.size
    if not 0 <= options.overlap <= size // 2:
        raise UserError(f"an overlap of {options.overlap} is not possible: give 0 to {size // 2}")
    scale = options.scale if options.scale is not None else translator.scale
    if not 0 < scale <= 16:
        raise UserError(f"a scale of {scale:g} is not possible: give more than 0 and at most 16")
    paths = picture_files(options.inputs)
    targets = [files[0] for files in result_files(paths, options.output, (".png",), force=options.force)]
    answers: list[Prediction | Refused] = []

    def read(path: Path) -> np.ndarray:
        image = read_input(path, "RGB", options.max_pixels)
        height, width = image.shape[:2]
        if options.fit == "tile" and height * width * scale**2 > options.max_pixels:
            fault = f"is {width} x {height} pixels, and {scale:g} times that a side is more than {options.max_pixels:,}"
            raise ImageError(path, fault, "give a smaller --scale or another --max-pixels")
        return image

    with progress_bar() as bar:
        shown = bar.add_task("translating", total=len(paths), note="")
        for path, target in zip(paths, targets, strict=True):
            # One at a time: a folder may hold more than fits into memory.
            (image,) = attempted([path], read)
            bar.advance(shown)
            if isinstance(image, Refused):
                answers.append(image)
                continue
            made, count = translated(image, translator.network, size, options.overlap, options.fit, scale)
            save_png(target, made)
            answers.append(Prediction(str(path), str(target), image.shape[1], image.shape[0], count))
    return answerable(answers)


@dataclass(frozen=True)
class Translator:
    """A trained generator, ready for use."""

    network: Network
    config: Pix2PixConfig
    scale: float
    """The factor by which its training pictures were shrunk."""
    pairs: str
    """The pairs it was trained on, in words; empty where its weights do not say."""


def load(weights: Path, extra: Mapping[str, Any] | None = None, seed: int = 0) -> Translator:
    """The generator of a weights file, on the best device there is; the seed is its dropout's."""
    tensors, header = read_weights(weights, study="pix2pix")
    config = from_dict(Pix2PixConfig, header.config, origin=str(weights))
    generator = build_generator(config.model)
    load_weights({"generator": generator}, tensors, weights)
    network = _network(generator, resolve_device("auto"), seed)
    return Translator(network, config, float(header.extra.get("scale", 1.0)), str(header.extra.get("pairs", "")))


def tell(answers: Sequence[Prediction]) -> str:
    """One line a picture, for people."""
    lines: list[str] = []
    for row in answers:
        about = f"{row.width} x {row.height}, {row.tiles} {'tile' if row.tiles == 1 else 'tiles'}"
        lines.append(f"{printable(row.image)} -> {printable(row.output)} ({about})")
    return "\n".join(lines)


def translated(
    image: np.ndarray, network: Network, size: int, overlap: int, fit: Literal["tile", "whole"] = "tile",
    scale: float = 1.0,
) -> tuple[np.ndarray, int]:  # fmt: skip
    """A picture's translation, uint8 ``[H, W, 3]`` as it, and how many tiles of ``size`` pixels it took.

    Neighbouring tiles share ``overlap`` pixels, at most half of their size; see `Options` for the rest.
    """
    height, width = image.shape[:2]
    if fit == "whole":
        made, count = network(_resized(image, size, size)[None])[0], 1
    else:
        small = _resized(image, *(max(1, round(scale * length)) for length in (height, width)))
        made, count = tiled(small, network, size, overlap)
    return _resized(made, height, width), count


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with antialiasing, as the training pictures were."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def tiled(image: np.ndarray, network: Network, size: int, overlap: int) -> tuple[np.ndarray, int]:
    """Translate in tiles, row by row, each pixel the mean of its tiles weighted by the distance from their edge.

    Beside the picture and the result it holds one row of tiles only.
    """
    height, width = image.shape[:2]
    padded = _padded(image, size)
    tops, lefts = (starts(length, size, overlap) for length in padded.shape[:2])
    weight_S = np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)).clip(max=overlap + 1).astype(np.float32)
    weight_SS = weight_S[:, None] * weight_S
    result = np.empty_like(padded)
    # The sum of the weighted tiles, and of the weights, of the rows that are not yet final.
    band = np.zeros((size, padded.shape[1], 4), np.float32)
    for number, top in enumerate(tops):
        for start in range(0, len(lefts), _BATCH):
            some = lefts[start : start + _BATCH]
            made = network(np.stack([padded[top : top + size, left : left + size] for left in some]))
            for left, tile in zip(some, made, strict=True):
                band[:, left : left + size, :3] += tile * weight_SS[..., None]
                band[:, left : left + size, 3] += weight_SS
        final = (tops[number + 1] if number + 1 < len(tops) else padded.shape[0]) - top
        done = band[:final]
        result[top : top + final] = np.rint(done[..., :3] / done[..., 3:]).astype(np.uint8)
        band = np.concatenate([band[final:], np.zeros((final, *band.shape[1:]), np.float32)])
    return result[:height, :width], len(tops) * len(lefts)


def starts(length: int, size: int, overlap: int) -> list[int]:
    """The even places at which tiles of ``size`` begin to cover ``length``, neighbours sharing ``overlap`` or more."""
    count = 1 + -(-(length - size) // max(1, size - overlap))
    return [round(place * (length - size) / max(1, count - 1)) for place in range(count)]


def _padded(image: np.ndarray, size: int) -> np.ndarray:
    """At least ``size`` on each side, by its mirror image on the right and below."""
    below, right = (max(0, size - length) for length in image.shape[:2])
    return np.pad(image, ((0, below), (0, right), (0, 0)), mode="symmetric")


def _network(generator: Generator, device: str, seed: int) -> Network:
    generator.eval().to(device).to(memory_format=torch.channels_last)
    draw = randomness.generator(seed, "predict/noise", 0)
    # Noise of its own for each tile would show the tiles.
    masks = [mask.to(device) for mask in generator.noise(1, draw)] if generator.dropout else []

    @torch.inference_mode()
    def network(tiles_NHWC: np.ndarray) -> np.ndarray:
        given: Tensor = prepare(torch.from_numpy(tiles_NHWC).to(device))
        noise = [mask.expand(len(given), -1, -1, -1) for mask in masks]
        return to_bytes(generator(given, noise)).cpu().numpy()

    return network
