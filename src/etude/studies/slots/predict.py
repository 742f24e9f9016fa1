"""Find the objects of your own pictures with trained slots, change them, or compose new scenes.

``etude predict slots photo.png --output found`` writes which slot each pixel belongs to, and a sheet of what every slot
holds. ``--edit`` takes slots out of a picture or moves them to another: ``etude predict slots a.png b.png --edit
swap:2:5 move:3 delete:7``; slots are numbered as on the sheets. ``--compose 16`` puts slots of a library together.

A picture that is not square is cut as the training pictures were, see `etude.data.clevrtex`. Shape suffixes as in
model.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
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
from etude.scenes.edits import Edit, edited, parse_edit, refuse_mixed, shares_of, suggested
from etude.scenes.scores import segments
from etude.scenes.source import SAMPLE
from etude.studies.slots import figures
from etude.studies.slots.model import SlotAutoencoder, card
from etude.studies.slots.study import SlotsConfig

_BATCH = 16


@dataclass(frozen=True)
class Options:
    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Pictures, or folders of pictures."""
    output: Path = Path("slots")
    """The folder for the results: of each picture NAME-slots.png, a sheet, and NAME-mask.png, a slot's number a pixel;
    of an edit NAME-edited.png (the first, where several are tried) and edit.png, a sheet of all; of compositions
    000.png and so on and compositions.png."""
    edit: tuple[str, ...] | None = None
    """Changes to the first picture, one after the other: delete:I takes slot I out, move:I takes it to the second
    picture, swap:I:J exchanges it for the second's slot J. Without any: of one picture each object is taken out in
    turn, of two the largest objects are swapped."""
    compose: int = 0
    """How many new scenes to compose of a slot library; 0: none."""
    library: Path | None = None
    """The library for --compose: figures/library.safetensors of the run; the one that comes with etude's own weights
    where none is named."""
    seed: int = 0
    """Of the slots' start where it is drawn, and of compositions."""
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
    """How many slots have some of the picture; None, as what follows, of what was made of slots."""
    shares: dict[str, float] | None = None
    """The share of the picture that each such slot has, by its number."""
    mse: float | None = None
    """Squared error of the reconstruction, summed over pixels and colours of [0, 1]."""


def predict(weights: Path, extra: Mapping[str, Any] | None, options: Options) -> list[Prediction]:
    """Do what the options say.

    Args:
        weights: a safetensors file that `etude export` or a checkpoint wrote.
        extra: unused.
        options: the inputs and where results go.

    Raises:
        UserError: in one line: a missing, broken or one-coloured picture, an edit that cannot be, another model's
            library, a result that is there already.
    """
    refuse_mixed(options.inputs, options.edit, options.compose, options.library)
    model, config = read_model(weights)
    if options.compose:
        return _compose(model, weights, options)
    paths = picture_files(options.inputs)
    if options.edit is not None:
        if len(paths) > 2:
            raise UserError(f"--edit takes one picture or two, not {len(paths)}")
        edits = [parse_edit(word, config.model.num_slots, two=len(paths) == 2) for word in options.edit]
        return _edit(model, paths, edits, options)
    return _find(model, paths, options)


def tell(answers: Sequence[Prediction]) -> str:
    """One line a picture, for people."""
    lines: list[str] = []
    for row in answers:
        told = ", ".join(f"slot {number} {100 * share:.0f} %" for number, share in (row.shares or {}).items())
        found = "" if row.mse is None else f" ({row.slots} slots: {told}, squared error {row.mse:.0f})"
        lines.append(f"{printable(row.image)} -> {printable(row.output)}{found}")
    return "\n".join(lines)


def read_model(weights: Path) -> tuple[SlotAutoencoder, SlotsConfig]:
    """The network of a weights file, ready for use on the best device there is."""
    tensors, header = read_weights(weights, study="slots")
    if header.extra.get("kind") == "library":
        raise UserError(f"{weights} is a slot library, not a network: give it with --library")
    config = from_dict(SlotsConfig, header.config, origin=str(weights))
    model = SlotAutoencoder(config.model)
    load_weights({"model": model}, tensors, weights)
    return model.eval().to(resolve_device("auto")).to(memory_format=torch.channels_last), config


# --- finding ---


@dataclass(frozen=True)
class Found:
    """What a network makes of some pictures; ``named`` as `SlotAutoencoder` has it."""

    images_BCHW: Tensor
    made_BCHW: Tensor
    named: Mapping[str, Tensor]


@torch.inference_mode()
def find(model: SlotAutoencoder, images: Sequence[np.ndarray], seed: int) -> Found:
    """What the model makes of some pictures; a picture's slots begin the same whatever is beside it."""
    config, device = model.config, next(model.parameters()).device
    images_BCHW = prepare(torch.from_numpy(np.stack(images)).to(device))
    draw = randomness.generator(seed, "predict/slots", 0)
    noise_1KS = torch.randn(1, config.num_slots, config.slot_size, generator=draw).to(device)
    noise_BKS = noise_1KS.expand(len(images), -1, -1)
    made_BCHW, named = model(images_BCHW, noise_BKS, spread=0.0, iterations=config.eval_iterations)
    return Found(images_BCHW, made_BCHW.float(), named)


def _find(model: SlotAutoencoder, paths: Sequence[Path], options: Options) -> list[Prediction]:
    files = result_files(paths, options.output, ("-slots.png", "-mask.png"), force=options.force)
    # All before the first is written: a broken one late in a folder would leave half of the results.
    pictures = [read_picture(path, model.config.size, options.max_pixels) for path in paths]
    answers: list[Prediction] = []
    with progress_bar() as bar:
        shown = bar.add_task("finding", total=len(paths), note="")
        for start in range(0, len(paths), _BATCH):
            some = range(start, min(start + _BATCH, len(paths)))
            images = [pictures[row] for row in some]
            found = find(model, images, options.seed)
            masks_BKHW = found.named["masks"].cpu()
            contents_BKCHW = found.named["contents"].float().cpu()
            made, real = ((x.cpu() + 1) / 2 for x in (found.made_BCHW, found.images_BCHW))
            error_B = squared_error(made, real)
            segments_BHW, made_BHWC = segments(masks_BKHW), to_bytes(found.made_BCHW).cpu()
            for place, row in enumerate(some):
                page, mask = files[row]
                one = slice(place, place + 1)
                picture = torch.from_numpy(images[place])[None]
                shown_parts = (picture, made_BHWC[one], contents_BKCHW[one], masks_BKHW[one])
                save_figure(page, lambda to, parts=shown_parts: figures.slots(to, *parts))
                save_png(mask, segments_BHW[place].to(torch.uint8).numpy())
                shares = shares_of(segments_BHW[place], model.config.num_slots)
                answers.append(Prediction(str(paths[row]), str(page), len(shares), shares, error_B[place].item()))
                bar.advance(shown)
    return answers


# --- editing ---


@torch.inference_mode()
def _edit(model: SlotAutoencoder, paths: Sequence[Path], edits: Sequence[Edit], options: Options) -> list[Prediction]:
    files = [row[0] for row in result_files(paths, options.output, ("-edited.png",), force=options.force)]
    page = options.output / "edit.png"
    refuse_existing([page], paths, force=options.force)
    images = [read_picture(path, model.config.size, options.max_pixels) for path in paths]
    found = find(model, images, options.seed)
    slots = [list(part) for part in found.named["slots"]]
    segments_BHW = segments(found.named["masks"]).cpu()
    variants = (
        {"edited": list(edits)} if edits else suggested([shares_of(part, len(slots[0])) for part in segments_BHW])
    )
    # By picture, then by variant.
    made = [
        list(row)
        for row in zip(*([decoded(model, part) for part in edited(slots, v)] for v in variants.values()), strict=True)
    ]
    known = zip(images, to_bytes(found.made_BCHW).cpu().numpy(), map(coloured, segments_BHW + 1), made, strict=True)
    rows = [("", [image, again, mask, *changed]) for image, again, mask, changed in known]
    save_figure(page, lambda to: grid(to, rows, ["picture", "reconstruction", "slots", *variants]))
    for file, changed in zip(files, made, strict=True):
        save_png(file, changed[0])
    answers = [Prediction(str(path), str(file)) for path, file in zip(paths, files, strict=True)]
    return [*answers, Prediction(" + ".join(map(str, paths)), str(page))]


@torch.inference_mode()
def decoded(model: SlotAutoencoder, slots: Sequence[Tensor]) -> np.ndarray:
    """The picture ``[H, W, 3]`` of some slots ``[S]``, as bytes."""
    return to_bytes(model.decode(torch.stack(list(slots))[None])[0])[0].cpu().numpy()


# --- composing ---


def _compose(model: SlotAutoencoder, weights: Path, options: Options) -> list[Prediction]:
    path = options.library or slot_library.beside(weights)
    if path is None:
        raise UserError("no slot library: name one with --library (a run has figures/library.safetensors)")
    shape = {name: getattr(model.config, name) for name in ("num_slots", "slot_size", "size")}
    library = slot_library.load(path, "slots", shape, partial(card, model))
    names = [Path(f"{number:03d}") for number in range(options.compose)]
    files = [row[0] for row in result_files(names, options.output, (".png",), force=options.force)]
    page = options.output / "compositions.png"
    refuse_existing([page], [], force=options.force)
    slots_BKS = library.draw(options.compose, randomness.generator(options.seed, "predict/compose", 0))
    images_NHWC = torch.cat(list(_composed(model, slots_BKS)))
    for file, image in zip(files, images_NHWC.numpy(), strict=True):
        save_png(file, image)
    columns = int(np.ceil(np.sqrt(min(64, options.compose))))
    save_png(page, sheet(images_NHWC[:64], columns))
    return [Prediction(f"{options.compose} compositions", str(page))]


@torch.inference_mode()
def _composed(model: SlotAutoencoder, slots_BKS: Tensor) -> Iterator[Tensor]:
    device = next(model.parameters()).device
    for part in slots_BKS.split(_BATCH):
        yield to_bytes(model.decode(part.to(device))[0]).cpu()


def example(out: Path) -> list[str]:
    """The words of an `etude predict` on what comes with the package; what it writes goes into ``out``."""
    return ["slots", str(SAMPLE), "--output", str(out / "slots")]
