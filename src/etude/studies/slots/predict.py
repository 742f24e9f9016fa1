"""Find the objects of your own pictures with trained slots, change them, or compose new scenes.

``etude predict slots photo.png --output found`` writes which slot each pixel belongs to, and a sheet of what every slot
holds. ``--edit`` takes slots out of a picture or moves them to another: ``etude predict slots a.png b.png --edit
swap:2:5 move:3 delete:7``; slots are numbered as on the sheets. ``--compose 16`` puts slots of a library together.

A picture that is not square is cut as the training pictures were, see `etude.data.clevrtex`. Shape suffixes as in
model.py.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from etude.core import randomness
from etude.core.checkpoint import load_weights, read_weights
from etude.core.config import from_dict
from etude.core.errors import UserError
from etude.core.files import write_atomic
from etude.core.loop import progress_bar
from etude.core.runtime import resolve_device
from etude.data.clevrtex import CROP, cropped
from etude.data.images import ImageError, list_images, printable, read_image, refuse_existing, result_files, save_png
from etude.metrics.segmentation import squared_error
from etude.studies.slots import figures
from etude.studies.slots import library as slot_library
from etude.studies.slots.model import SlotAutoencoder, prepare, segments, to_bytes
from etude.studies.slots.study import SlotsConfig

_BATCH = 16
_COMPOSED = 10_000
_LEAST = 0.005
"""Share of a picture below which a slot is not told of."""
_EDITS = "swap:I:J, move:I and delete:I, with the slots' numbers"


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
    slots: int
    """How many slots have some of the picture."""
    shares: dict[str, float]
    """The share of the picture that each such slot has, by its number."""
    mse: float | None
    """Squared error of the reconstruction, summed over pixels and colours of [0, 1]; None of what was made."""


@dataclass(frozen=True)
class Edit:
    """One change.

    Attributes:
        kind: see `Options`.
        slot: of the first picture.
        other: of the second, with swap.
    """

    kind: Literal["swap", "move", "delete"]
    slot: int
    other: int = -1


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
    if not options.inputs and not options.compose:
        raise UserError("no pictures: name some, or a folder of them, or --compose how many new scenes")
    if options.inputs and options.compose:
        raise UserError("--compose takes its slots from a library, not from pictures: give one or the other")
    if options.edit is not None and options.compose:
        raise UserError("--edit changes pictures, and --compose takes none: give one or the other")
    if options.library is not None and not options.compose:
        raise UserError("--library is for --compose: say how many scenes to compose, as --compose 16")
    model, config = read_model(weights)
    if options.compose:
        return _compose(model, weights, options)
    # Unlike Path.is_dir, it takes a name too long for the system.
    paths = [path for given in options.inputs for path in (list_images(given) if os.path.isdir(given) else [given])]  # noqa: PTH112
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
        told = ", ".join(f"slot {number} {100 * share:.0f} %" for number, share in row.shares.items())
        error = "" if row.mse is None else f", squared error {row.mse:.0f}"
        found = f" ({row.slots} slots: {told}{error})" if row.slots else ""
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


def parse_edit(word: str, num_slots: int, *, two: bool) -> Edit:
    """One change from its word.

    Args:
        word: such as ``swap:2:5``.
        num_slots: K.
        two: whether there is a second picture.
    """
    kind, *numbers = word.split(":")
    wanted = {"swap": 2, "move": 1, "delete": 1}.get(kind)
    # Python refuses to read a number of thousands of digits.
    short = all(part.isascii() and part.isdigit() and len(part) < 10 for part in numbers)
    if wanted is None or len(numbers) != wanted or not short:
        raise UserError(f"no edit '{printable(word)}': there are {_EDITS}")
    if kind != "delete" and not two:
        raise UserError(f"{word} needs a second picture: name it after the first")
    slots = [int(part) for part in numbers]
    if max(slots) >= num_slots:
        raise UserError(f"{word}: the slots are 0 to {num_slots - 1}")
    return Edit(kind, *slots)  # pyright: ignore[reportArgumentType]


# --- finding ---


@dataclass(frozen=True)
class _Found:
    images_BCHW: Tensor
    made_BCHW: Tensor
    named: Mapping[str, Tensor]


@torch.inference_mode()
def _found(model: SlotAutoencoder, images: Sequence[np.ndarray], seed: int) -> _Found:
    """What the model makes of some pictures; a picture's slots begin the same whatever is beside it."""
    config, device = model.config, next(model.parameters()).device
    images_BCHW = prepare(torch.from_numpy(np.stack(images)).to(device))
    draw = randomness.generator(seed, "predict/slots", 0)
    noise_1KS = torch.randn(1, config.num_slots, config.slot_size, generator=draw).to(device)
    noise_BKS = noise_1KS.expand(len(images), -1, -1)
    made_BCHW, named = model(images_BCHW, noise_BKS, spread=0.0, iterations=config.eval_iterations)
    return _Found(images_BCHW, made_BCHW.float(), named)


def _read(path: Path, size: int, max_pixels: int) -> np.ndarray:
    image = read_image(path, "RGB", max_pixels, min_side=math.ceil(size / CROP))
    if (image == image[0, 0]).all():
        raise ImageError(path, "is of one colour", "give a picture with something to see")
    return np.array(cropped(Image.fromarray(image), size))


def _find(model: SlotAutoencoder, paths: Sequence[Path], options: Options) -> list[Prediction]:
    files = result_files(paths, options.output, ("-slots.png", "-mask.png"), force=options.force)
    # All before the first is written: a broken one late in a folder would leave half of the results.
    pictures = [_read(path, model.config.size, options.max_pixels) for path in paths]
    answers: list[Prediction] = []
    with progress_bar() as bar:
        shown = bar.add_task("finding", total=len(paths), note="")
        for start in range(0, len(paths), _BATCH):
            some = range(start, min(start + _BATCH, len(paths)))
            images = [pictures[row] for row in some]
            found = _found(model, images, options.seed)
            masks_BKHW = found.named["masks"].cpu()
            contents_BKCHW = found.named["contents"].float().cpu()
            made, real = ((x.cpu() + 1) / 2 for x in (found.made_BCHW, found.images_BCHW))
            error_B = squared_error(made, real)
            segments_BHW, made_BHWC = segments(masks_BKHW), to_bytes(found.made_BCHW).cpu()
            for place, row in enumerate(some):
                sheet, mask = files[row]
                one = slice(place, place + 1)
                picture = torch.from_numpy(images[place])[None]
                shown_parts = (picture, made_BHWC[one], contents_BKCHW[one], masks_BKHW[one])
                _save_figure(sheet, lambda to, parts=shown_parts: figures.slots(to, *parts))
                save_png(mask, segments_BHW[place].to(torch.uint8).numpy())
                shares = shares_of(segments_BHW[place], model.config.num_slots)
                answers.append(Prediction(str(paths[row]), str(sheet), len(shares), shares, error_B[place].item()))
                bar.advance(shown)
    return answers


def shares_of(segments_HW: Tensor, num_slots: int) -> dict[str, float]:
    """The share of the pixels of each slot that has some, the largest first."""
    counts = segments_HW.flatten().bincount(minlength=num_slots).double() / segments_HW.numel()
    order = counts.argsort(descending=True, stable=True).tolist()
    return {str(slot): counts[slot].item() for slot in order if counts[slot] >= _LEAST}


# --- editing ---


@torch.inference_mode()
def _edit(model: SlotAutoencoder, paths: Sequence[Path], edits: Sequence[Edit], options: Options) -> list[Prediction]:
    files = [row[0] for row in result_files(paths, options.output, ("-edited.png",), force=options.force)]
    page = options.output / "edit.png"
    refuse_existing([page], paths, force=options.force)
    images = [_read(path, model.config.size, options.max_pixels) for path in paths]
    found = _found(model, images, options.seed)
    slots = [list(part) for part in found.named["slots"]]
    segments_BHW = segments(found.named["masks"]).cpu()
    variants = (
        {"edited": list(edits)} if edits else _suggested([shares_of(part, len(slots[0])) for part in segments_BHW])
    )
    # By picture, then by variant.
    made = [
        list(row)
        for row in zip(*([_decoded(model, part) for part in edited(slots, v)] for v in variants.values()), strict=True)
    ]
    known = zip(
        images, to_bytes(found.made_BCHW).cpu().numpy(), map(figures.coloured, segments_BHW + 1), made, strict=True
    )
    rows = [("", [image, again, mask, *changed]) for image, again, mask, changed in known]
    _save_figure(page, lambda to: figures.grid(to, rows, ["picture", "reconstruction", "slots", *variants]))
    for file, changed in zip(files, made, strict=True):
        save_png(file, changed[0])
    answers = [Prediction(str(path), str(file), 0, {}, None) for path, file in zip(paths, files, strict=True)]
    return [*answers, Prediction(" + ".join(map(str, paths)), str(page), 0, {}, None)]


def _suggested(shares: Sequence[Mapping[str, float]]) -> dict[str, list[Edit]]:
    """Edits where none is named, by title: the largest slot of a picture is the ground, the others are objects."""
    objects = [[int(slot) for slot in of_picture][1:] for of_picture in shares]
    if not all(objects):
        raise UserError("one slot has all of a picture, so there is no object to edit: name the edits, or train longer")
    if len(objects) == 1:
        return {f"without {slot}": [Edit("delete", slot)] for slot in objects[0]}
    return {"swapped": [Edit("swap", objects[0][0], objects[1][0])]}


def edited(slots: Sequence[Sequence[Tensor]], edits: Sequence[Edit]) -> list[list[Tensor]]:
    """The slots of one picture or two after some changes, each made once.

    Args:
        slots: by picture, ``[S]`` each.
        edits: a number means the slot that had it at first.

    Raises:
        UserError: a slot that an earlier change has taken, or a picture that would have none left.
    """
    sets: list[dict[int, Tensor]] = [dict(enumerate(part)) for part in slots]
    added: list[list[Tensor]] = [[] for _ in slots]
    for edit in edits:
        told = ":".join([edit.kind, str(edit.slot), *([str(edit.other)] if edit.kind == "swap" else [])])
        for picture, slot in ((0, edit.slot), *([(1, edit.other)] if edit.kind == "swap" else [])):
            if slot not in sets[picture]:
                raise UserError(f"{told}: slot {slot} was taken by an edit before it")
        taken = sets[0].pop(edit.slot)
        if edit.kind == "move":
            added[1].append(taken)
        elif edit.kind == "swap":
            added[0].append(sets[1].pop(edit.other))
            added[1].append(taken)
    after = [[*left.values(), *new] for left, new in zip(sets, added, strict=True)]
    if not all(after):
        raise UserError("these edits leave a picture without a slot: keep at least one")
    return after


def _decoded(model: SlotAutoencoder, slots: Sequence[Tensor]) -> np.ndarray:
    return to_bytes(model.decode(torch.stack(list(slots))[None])[0])[0].cpu().numpy()


# --- composing ---


def _compose(model: SlotAutoencoder, weights: Path, options: Options) -> list[Prediction]:
    if not 1 <= options.compose <= _COMPOSED:
        raise UserError(f"--compose must be from 1 to {_COMPOSED:,}, not {options.compose}")
    shipped = Path(__file__).parent / "library" / weights.name
    path = options.library or (shipped if weights.parent == Path(__file__).parent / "weights" else None)
    if path is None:
        beside = weights.parents[min(2, len(weights.parents) - 1)] / "figures" / "library.safetensors"
        path = beside if beside.is_file() else None
    if path is None:
        raise UserError("no slot library: name one with --library (a run has figures/library.safetensors)")
    library = slot_library.load(path, model)
    names = [Path(f"{number:03d}") for number in range(options.compose)]
    files = [row[0] for row in result_files(names, options.output, (".png",), force=options.force)]
    page = options.output / "compositions.png"
    refuse_existing([page], [], force=options.force)
    slots_BKS = library.draw(options.compose, randomness.generator(options.seed, "predict/compose", 0))
    images_NHWC = torch.cat(list(_composed(model, slots_BKS)))
    for file, image in zip(files, images_NHWC.numpy(), strict=True):
        save_png(file, image)
    columns = int(np.ceil(np.sqrt(min(64, options.compose))))
    save_png(page, figures.sheet(images_NHWC[:64], columns))
    return [Prediction(f"{options.compose} compositions", str(page), 0, {}, None)]


@torch.inference_mode()
def _composed(model: SlotAutoencoder, slots_BKS: Tensor) -> Iterator[Tensor]:
    device = next(model.parameters()).device
    for part in slots_BKS.split(_BATCH):
        yield to_bytes(model.decode(part.to(device))[0]).cpu()


# --- files ---


def _save_figure(target: Path, draw: Any) -> None:
    def write(to: Path) -> None:
        # Matplotlib tells the format by the name.
        named = to.with_name(f"{to.name}.png")
        try:
            draw(named)
            named.replace(to)
        finally:
            named.unlink(missing_ok=True)

    write_atomic(target, write)
