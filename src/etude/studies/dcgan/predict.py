"""Draw digits with a trained generator.

``etude predict dcgan --digit 4 --count 64`` draws only fours. They go to one sheet (a .png), to a folder with one
picture a file, or to an array (.npy) of any number of them: they are made and written some at a time.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from etude.core import randomness
from etude.core.checkpoint import load_weights, read_weights
from etude.core.config import from_dict
from etude.core.errors import UserError
from etude.core.files import one_line_faults, write_atomic
from etude.core.loop import progress_bar
from etude.data.prediction import save_png
from etude.draw.figures import sheet
from etude.studies.dcgan.classifier import classify
from etude.studies.dcgan.figures import LINE
from etude.studies.dcgan.model import Generator
from etude.studies.dcgan.study import DCGANConfig
from etude.studies.dcgan.task import NUM_CLASSES, build_generator, to_bytes

_BATCH = 500
_SHEET = 10_000
_FILES = 1_000_000
_JUDGED = 2000


@dataclass(frozen=True)
class Options:
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """None: a generator draws from noise."""
    digit: int | None = None
    """Draw this digit only, 0 to 9; all of them in turn where none is named. Needs a conditional network."""
    count: int = 64
    """Pictures to draw."""
    output: Path = Path("digits.png")
    """A .png file for one sheet of them, a .npy file for an array [count, H, W], or a folder for a file each."""
    columns: int = 0
    """Pictures in a row of the sheet; 0: about as many as there are rows."""
    seed: int = 0
    """The seed of the noise: the same one draws the same pictures."""
    force: bool = False
    """Write over files that are there."""


@dataclass(frozen=True)
class Prediction:
    """A summary of what was drawn."""

    output: str
    count: int
    digits: str
    judged: int
    """The number of them that the classifier that comes with etude looked at."""
    right: float | None
    """The per cent of the judged that it takes for the digit asked for; None where none was."""


def predict(weights: Path, extra: Mapping[str, Any] | None, options: Options) -> list[Prediction]:
    """Draw, write and judge.

    Args:
        weights: a safetensors file that `etude export` or a checkpoint wrote.
        extra: not used.
        options: what, how many and where to.

    Raises:
        UserError: a digit that there is not, a count that cannot be, no room, or weights of another network.
    """
    count, output, digit = options.count, options.output, options.digit
    if options.inputs:
        raise UserError(f"a generator takes no input ('{options.inputs[0]}'): give --count, --digit and --output")
    if count < 1:
        raise UserError(f"--count must be at least 1, not {count}")
    if options.columns < 0:
        raise UserError(f"--columns must be 0 or more, not {options.columns}")
    if digit is not None and not 0 <= digit < NUM_CLASSES:
        raise UserError(f"--digit must be between 0 and {NUM_CLASSES - 1}, not {digit}")
    generator, config = load(weights)
    if digit is not None and not config.model.conditional:
        raise UserError(f"the network of {weights} draws whatever comes: --digit needs a conditional one")
    kind = output.suffix.lower()
    # Before anything is drawn.
    if kind not in ("", ".png", ".npy"):
        raise UserError(f"--output must be a .png, a .npy or a folder, not {output}")
    if kind == ".png" and count > _SHEET:
        raise UserError(f"a sheet has at most {_SHEET:,} pictures, not {count:,}: give --output digits.npy")
    if not kind and count > _FILES:
        raise UserError(f"a folder takes at most {_FILES:,} files, not {count:,}: give --output digits.npy")
    if kind and os.path.exists(output) and not options.force:
        raise UserError(f"{output} exists: choose another --output, or --force to write over it")
    judged: list[Tensor] = []

    def drawn() -> Iterator[Tensor]:
        """Bytes ``[N, H, W]``, some at a time; the first pictures do not depend on the count."""
        with progress_bar() as bar:
            shown = bar.add_task("drawing", total=count, note="")
            for part, start in enumerate(range(0, count, _BATCH)):
                noise_NZ = noises(config, options.seed, part)[: count - start]
                digits_N, images_NHW = draw_digits(generator, config, noise_NZ, digit)
                left = _JUDGED - sum(map(len, judged))
                if digits_N is not None and left > 0:
                    judged.append(classify(images_NHW[:left]) == digits_N[:left])
                yield images_NHW
                bar.advance(shown, len(noise_NZ))

    if kind == ".png":
        columns = options.columns or int(np.ceil(np.sqrt(count)))
        save_png(output, sheet(torch.cat(list(drawn())), min(columns, count), LINE))
    elif kind == ".npy":
        _write_array(output, (count, config.model.size, config.model.size), drawn())
    else:
        _write_files(output, count, drawn(), force=options.force)
    looked = torch.cat(judged) if judged else torch.zeros(0)
    right = 100 * looked.double().mean().item() if len(looked) else None
    digits = "any" if not config.model.conditional else "0 to 9" if digit is None else str(digit)
    return [Prediction(str(output), count, digits, len(looked), right)]


def load(weights: Path, extra: Mapping[str, Any] | None = None) -> tuple[Generator, DCGANConfig]:
    """The generator of a weights file, or its mean where it has one, ready to draw."""
    tensors, header = read_weights(weights, study="dcgan")
    if not header.config:
        raise UserError(f"{weights} holds no generator: name a run, or weights that `etude export` wrote")
    config = from_dict(DCGANConfig, header.config, origin=str(weights))
    generator = build_generator(config.model)
    mean = any(name.startswith("mean_generator.") for name in tensors)
    load_weights({"mean_generator" if mean else "generator": generator}, tensors, weights)
    return generator.eval().to(memory_format=torch.channels_last), config


def noises(config: DCGANConfig, seed: int, part: int = 0) -> Tensor:
    """The noises ``[500, Z]`` of a seed's pictures; ``part`` 1 has those of the next 500."""
    draw = randomness.generator(seed, "predict/noise", part)
    return torch.randn(_BATCH, config.model.noise, generator=draw)


def walk(start_Z: Tensor, end_Z: Tensor, steps: int) -> Tensor:
    r"""Noises ``[steps, Z]`` from one to another along the arc between them (Shoemake 1985):
    $\frac{\sin((1 - t) \omega)}{\sin \omega} a + \frac{\sin(t \omega)}{\sin \omega} b$.

    A straight line would pass noises much shorter than any that the generator was trained on.
    """
    cosine = torch.nn.functional.cosine_similarity(start_Z, end_Z, dim=0).clamp(-1, 1)
    angle, t_N1 = cosine.acos(), torch.linspace(0, 1, steps)[:, None]
    # Noises that point one way, or opposite ways, have no one arc between them.
    if angle.sin() < 1e-4:
        return start_Z + t_N1 * (end_Z - start_Z)
    return (((1 - t_N1) * angle).sin() * start_Z + (t_N1 * angle).sin() * end_Z) / angle.sin()


@torch.no_grad()
def draw_digits(
    generator: Generator, config: DCGANConfig, noise_NZ: Tensor, digit: int | None = None
) -> tuple[Tensor | None, Tensor]:
    """The digits asked for, one or all in turn (None: the network knows none), and bytes ``[N, H, W]``."""
    digits_N = None
    if config.model.conditional:
        turn_N = torch.arange(len(noise_NZ)) % NUM_CLASSES
        digits_N = turn_N if digit is None else torch.full_like(turn_N, digit)
    return digits_N, to_bytes(generator(noise_NZ, digits_N))[:, 0]


def _write_array(path: Path, shape: tuple[int, int, int], parts: Iterator[Tensor]) -> None:
    """An .npy file, written as the pictures come."""
    wanted = int(np.prod(shape, dtype=np.int64))

    def write(temporary: Path) -> None:
        free = shutil.disk_usage(temporary.parent).free
        if wanted > free:
            raise UserError(
                f"{shape[0]:,} pictures take {wanted / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free: "
                "give a smaller --count"
            )
        with temporary.open("wb") as file:
            descr = npy.dtype_to_descr(np.dtype(np.uint8))
            npy.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
            for images_NHW in parts:
                file.write(images_NHW.contiguous().numpy().tobytes())

    write_atomic(path, write)


def _write_files(folder: Path, count: int, parts: Iterator[Tensor], *, force: bool) -> None:
    """One .png a picture, numbered from 0 with as many figures as the last one has."""
    with one_line_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not force and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty: choose another --output, or --force to write into it")
        figures, number = len(str(count - 1)), 0
        for images_NHW in parts:
            for image_HW in images_NHW.numpy():
                Image.fromarray(image_HW).save(folder / f"{number:0{figures}d}.png")
                number += 1


def example(out: Path) -> list[str]:
    """The words of an `etude predict` on what comes with the package; what it writes goes into ``out``."""
    return ["dcgan", "--digit", "4", "--count", "64", "--output", str(out / "fours.png")]
