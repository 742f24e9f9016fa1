"""Find the objects of your own pictures, and let a diffusion draw them again, changed, or anew.

``etude predict slotdiffusion photo.png --output found`` writes where each slot looks and the picture drawn again from
noise and its slots. With two pictures ``--edit`` exchanges slots between them, as in ``etude predict slotdiffusion
a.png b.png --edit swap:2:5 move:3 delete:7``; slots are numbered as on the sheets. ``--compose 16`` puts slots of a
library together. ``--sampler`` and ``--steps`` say how they are drawn.

A picture that is not square is cut as the training pictures were, see `etude.data.clevrtex`. Shape suffixes as in
model.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.progress import Progress
from torch import Tensor

from etude.core import randomness
from etude.core.checkpoint import load_weights, read_weights
from etude.core.config import from_dict
from etude.core.errors import UserError
from etude.core.loop import progress_bar
from etude.core.runtime import resolve_device
from etude.data.clevrtex import read_picture
from etude.data.images import printable, refuse_existing, result_files, save_png
from etude.data.tree import picture_files
from etude.draw.figures import coloured, grid, save_figure, sheet
from etude.metrics.segmentation import squared_error
from etude.nn.pixels import prepare, to_bytes
from etude.scenes import slot_library
from etude.scenes.edits import edited, parse_edit, refuse_mixed, shares_of, suggested
from etude.scenes.scores import segments
from etude.scenes.source import SAMPLE
from etude.studies.slotdiffusion import figures
from etude.studies.slotdiffusion.model import (
    Painter,
    SlotDiffusion,
    attention_masks,
    card,
    schedule_of,
)
from etude.studies.slotdiffusion.samplers import check_steps, halving
from etude.studies.slotdiffusion.study import SlotDiffusionConfig
from etude.studies.slotdiffusion.vae import VAE
from etude.studies.slotdiffusion.vae_files import build_vae

_BATCH = 16
STREAM = "predict/paint"
"""Of the noise that pictures begin with."""


@dataclass(frozen=True)
class Options:
    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Pictures, or folders of pictures."""
    output: Path = Path("slotdiffusion")
    """The folder for the results: of each picture NAME-slots.png, a sheet, NAME-mask.png, a slot's number a pixel, and
    NAME-again.png, drawn from noise and the slots; of an edit NAME-edited.png (the first, where several are tried) and
    edit.png, a sheet of all; of compositions 000.png and so on and compositions.png."""
    sampler: str | None = None
    """ancestral, ddim, dpm-solver++, or path/to/file.py:Name; the run's own where none is named."""
    steps: int | None = None
    """How often the network is asked for a picture; the run's own where none is named."""
    guidance: float | None = None
    """Weight of the slots against no slots; 1: none."""
    denoising: bool = False
    """Also write NAME-denoising.png: how the first picture comes out of the noise."""
    edit: tuple[str, ...] | None = None
    """Changes to the first picture, one after the other: delete:I takes slot I out, move:I takes it to the second
    picture, swap:I:J exchanges it for the second's slot J. Without any: of one picture each object is taken out in
    turn, of two the largest objects are swapped."""
    compose: int = 0
    """How many new scenes to compose of a slot library; 0: none."""
    library: Path | None = None
    """The library for --compose: figures/library.safetensors of the run."""
    seed: int = 0
    """Of the noise that slots and pictures begin with, and of compositions."""
    max_pixels: int = 64_000_000
    """Larger pictures are refused."""
    force: bool = False
    """Write over results that are there."""


@dataclass(frozen=True)
class Prediction:
    """What was found, or made."""

    image: str
    output: str
    slots: int | None = None
    """How many slots look at some of the picture; None, as what follows, of what was made of slots."""
    shares: dict[str, float] | None = None
    """The share of the picture that each such slot has, by its number."""
    mse: float | None = None
    """Squared error of the picture drawn again, summed over pixels and colours of [0, 1]."""


def predict(weights: Path, extra: Mapping[str, Any] | None, options: Options) -> list[Prediction]:
    """Do what the options say.

    Args:
        weights: a safetensors file that `etude export` or a checkpoint wrote.
        extra: unused.
        options: the inputs and where results go.

    Raises:
        UserError: in one line: a missing, broken or one-coloured picture, an edit that cannot be, another model's
            library, a number of steps that cannot be, a result that is there already.
    """
    refuse_mixed(options.inputs, options.edit, options.compose, options.library)
    if options.denoising and (options.compose or options.edit is not None):
        raise UserError("--denoising shows how a picture is drawn again: leave out --edit and --compose")
    painter = read_networks(weights).painter(options)
    if options.compose:
        return _compose(painter, weights, options)
    paths = picture_files(options.inputs)
    if options.edit is not None:
        if len(paths) > 2:
            raise UserError(f"--edit takes one picture or two, not {len(paths)}")
        edits = [parse_edit(word, painter.model.config.num_slots, two=len(paths) == 2) for word in options.edit]
        return _edit(painter, paths, edits, options)
    return _find(painter, paths, options)


def tell(answers: Sequence[Prediction]) -> str:
    """One line a picture, for people."""
    lines: list[str] = []
    for row in answers:
        told = ", ".join(f"slot {number} {100 * share:.0f} %" for number, share in (row.shares or {}).items())
        found = "" if row.mse is None else f" ({row.slots} slots: {told}, squared error {row.mse:.0f})"
        lines.append(f"{printable(row.image)} -> {printable(row.output)}{found}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Networks:
    """What a weights file holds, ready for use."""

    model: SlotDiffusion
    vae: VAE
    config: SlotDiffusionConfig

    def painter(self, options: Options) -> Painter:
        """What draws as the options say, and where they say nothing as the run did."""
        sample = self.config.sample
        if options.steps is not None:
            check_steps(options.steps, self.config.chain.steps)
            sample = replace(sample, steps=options.steps)
        if options.sampler is not None:
            sample = replace(sample, sampler=options.sampler)
        if options.guidance is not None:
            # So written that NaN is refused.
            if not 0 <= options.guidance < math.inf:
                raise UserError(f"--guidance must be 0 or more, not {options.guidance:g}")
            if options.guidance != 1 and not self.config.optim.drop:
                raise UserError(
                    f"--guidance {options.guidance:g}: this model never went without slots in training (optim.drop 0), "
                    "so there is nothing to guide away from: give 1"
                )
            sample = replace(sample, guidance=options.guidance)
        return Painter(self.model, self.vae, schedule_of(self.config.chain), sample, options.seed)


def read_networks(weights: Path) -> Networks:
    """The networks of a weights file, on the best device there is."""
    tensors, header = read_weights(weights, study="slotdiffusion")
    if header.extra.get("kind") == "library":
        raise UserError(f"{weights} is a slot library, not a network: give it with --library")
    config = from_dict(SlotDiffusionConfig, header.config, origin=str(weights))
    if config.phase == "vae":
        raise UserError(
            f"{weights} is an autoencoder alone: train slots on it, as in etude run slotdiffusion laptop --vae.weights "
            f"{weights}"
        )
    model, vae = SlotDiffusion(config.model, config.vae.channels), build_vae(config.vae)
    load_weights({"model": model, "vae": vae}, tensors, weights)
    device = resolve_device("auto")
    for part in (model, vae):
        part.eval().to(device).to(memory_format=torch.channels_last)
    return Networks(model, vae, config)


# --- finding ---


@torch.inference_mode()
def find(model: SlotDiffusion, images: Sequence[np.ndarray], seed: int) -> tuple[Tensor, Tensor]:
    """Slots ``[B, K, S]`` and masks ``[B, K, H, W]``; a picture's begin the same whatever is beside it."""
    config, device = model.config, model.scale.device
    draw = randomness.generator(seed, "predict/slots", 0)
    noise_1KS = torch.randn(1, config.num_slots, config.slot_size, generator=draw).to(device)
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(images), _BATCH):
        images_BCHW = prepare(torch.from_numpy(np.stack(images[start : start + _BATCH])).to(device))
        noise_BKS = noise_1KS.expand(len(images_BCHW), -1, -1)
        slots = model.encoder(images_BCHW, noise_BKS, spread=0.0, iterations=config.eval_iterations)
        masks_BKHW = attention_masks(slots.attention_BTKN, model.encoder.places, config.size)
        found.append((slots.slots_BKS.float().cpu(), masks_BKHW.cpu()))
    slots_parts, masks_parts = zip(*found, strict=True)
    return torch.cat(slots_parts), torch.cat(masks_parts)


def _paint(painter: Painter, slots_NKS: Tensor, bar: Progress, title: str, numbers: Sequence[int]) -> Tensor:
    """Bytes ``[N, H, W, 3]`` on the CPU, the steps shown on a bar; see `Painter.latents`."""
    count = len(slots_NKS)
    shown = bar.add_task(title, total=count * painter.config.steps, note="")

    def part(rows: slice) -> Tensor:
        def tell_bar(*_: Any) -> None:
            bar.advance(shown, rows.stop - rows.start)

        return to_bytes(painter.paint(slots_NKS[rows], numbers[rows], STREAM, tell_bar)).cpu()

    return halving(part, count, _BATCH)


def _find(painter: Painter, paths: Sequence[Path], options: Options) -> list[Prediction]:
    endings = ("-slots.png", "-mask.png", "-again.png")
    files = result_files(paths, options.output, endings, force=options.force)
    strip = options.output / f"{paths[0].stem}-denoising.png"
    if options.denoising:
        refuse_existing([strip], paths, force=options.force)
    config = painter.model.config
    # All before the first is written: a broken one late in a folder would leave half of the results.
    images = [read_picture(path, config.size, options.max_pixels) for path in paths]
    slots_NKS, masks_NKHW = find(painter.model, images, options.seed)
    with progress_bar() as bar:
        # One noise for all: a picture's result does not depend on what is beside it.
        made_NHWC = _paint(painter, slots_NKS, bar, "drawing", [0] * len(paths))
    answers: list[Prediction] = []
    for row, (page, mask, again) in enumerate(files):
        image_NHWC, one = torch.from_numpy(images[row])[None], slice(row, row + 1)
        save_figure(page, partial(_draw_slots, image_NHWC, made_NHWC[one], masks_NKHW[one]))
        segments_HW = segments(masks_NKHW[one])[0]
        save_png(mask, segments_HW.to(torch.uint8).numpy())
        save_png(again, made_NHWC[row].numpy())
        shares = shares_of(segments_HW, config.num_slots)
        made, real = (x.permute(0, 3, 1, 2) / 255.0 for x in (made_NHWC[one], image_NHWC))
        answers.append(Prediction(str(paths[row]), str(page), len(shares), shares, squared_error(made, real).item()))
    if options.denoising:
        title = f"{painter.config.sampler}, {painter.config.steps} steps: read from top left to bottom right"
        save_figure(strip, lambda to: figures.denoising(to, title, painter, slots_NKS[:1], STREAM))
        answers.append(Prediction(str(paths[0]), str(strip)))
    return answers


def _draw_slots(image_NHWC: Tensor, made_NHWC: Tensor, masks_NKHW: Tensor, to: Path) -> None:
    figures.slots(to, image_NHWC, made_NHWC, masks_NKHW)


# --- editing ---


def _edit(painter: Painter, paths: Sequence[Path], edits: Sequence[Any], options: Options) -> list[Prediction]:
    files = [row[0] for row in result_files(paths, options.output, ("-edited.png",), force=options.force)]
    page = options.output / "edit.png"
    refuse_existing([page], paths, force=options.force)
    config = painter.model.config
    images = [read_picture(path, config.size, options.max_pixels) for path in paths]
    slots_NKS, masks_NKHW = find(painter.model, images, options.seed)
    slots, segments_NHW = [list(part) for part in slots_NKS], segments(masks_NKHW)
    variants = (
        {"edited": list(edits)} if edits else suggested([shares_of(part, config.num_slots) for part in segments_NHW])
    )
    # By variant, then by picture; checked before anything is drawn.
    changed = {name: edited(slots, variant) for name, variant in variants.items()}
    with progress_bar() as bar:
        again = _paint(painter, slots_NKS, bar, "as they are", [0] * len(paths)).numpy()
        # Pictures may have other numbers of slots.
        made = {
            name: [_paint(painter, torch.stack(list(part))[None], bar, name, [0])[0].numpy() for part in parts]
            for name, parts in changed.items()
        }
    rows = [
        ("", [image, again[row], coloured(segments_NHW[row] + 1), *(parts[row] for parts in made.values())])
        for row, image in enumerate(images)
    ]
    save_figure(page, lambda to: grid(to, rows, ["picture", "noise + slots", "slots", *variants]))
    first = next(iter(made.values()))
    for file, picture in zip(files, first, strict=True):
        save_png(file, picture)
    answers = [Prediction(str(path), str(file)) for path, file in zip(paths, files, strict=True)]
    return [*answers, Prediction(" + ".join(map(str, paths)), str(page))]


# --- composing ---


def _compose(painter: Painter, weights: Path, options: Options) -> list[Prediction]:
    path = options.library or slot_library.beside(weights)
    if path is None:
        raise UserError("no slot library: name one with --library (a run has figures/library.safetensors)")
    config = painter.model.config
    shape = {name: getattr(config, name) for name in ("num_slots", "slot_size", "size")}
    library = slot_library.load(path, "slotdiffusion", shape, partial(card, painter.model))
    names = [Path(f"{number:03d}") for number in range(options.compose)]
    files = [row[0] for row in result_files(names, options.output, (".png",), force=options.force)]
    page = options.output / "compositions.png"
    refuse_existing([page], [], force=options.force)
    slots_NKS = library.draw(options.compose, randomness.generator(options.seed, "predict/compose", 0))
    with progress_bar() as bar:
        images_NHWC = _paint(painter, slots_NKS, bar, "compositions", range(options.compose))
    for file, image in zip(files, images_NHWC.numpy(), strict=True):
        save_png(file, image)
    columns = int(np.ceil(np.sqrt(min(64, options.compose))))
    save_png(page, sheet(images_NHWC[:64], columns))
    return [Prediction(f"{options.compose} compositions", str(page))]


def example(out: Path) -> list[str]:
    """The words of an `etude predict` on what comes with the package; what it writes goes into ``out``."""
    return ["slotdiffusion", str(SAMPLE), "--output", str(out / "slotdiffusion")]
