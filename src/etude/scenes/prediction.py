"""Predictions with slots: scenes are looked at, changed by their slots, and composed of a library's.

Shape suffixes: N pictures, K slots, S a slot's size, H height, W width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from etude.core import randomness
from etude.core.checkpoint import load_weights, read_weights
from etude.core.config import StudyConfig, from_dict
from etude.core.errors import Refused, UserError
from etude.core.loop import progress_bar
from etude.core.runtime import resolve_device
from etude.data.clevrtex import read_picture
from etude.data.images import printable
from etude.data.prediction import (
    MakingOptions,
    answerable,
    attempted,
    in_place,
    picture_files,
    refuse_existing,
    result_files,
    save_png,
)
from etude.draw.figures import coloured, grid, save_figure, sheet
from etude.metrics.segmentation import squared_error
from etude.nn.pixels import prepare, to_bytes
from etude.scenes import figures, slot_library
from etude.scenes.edits import edited, parse_edit, shares_of, suggested
from etude.scenes.scores import segments

COMPOSED = 10_000
"""The most new pictures at once."""
BATCH = 16
C = TypeVar("C", bound=StudyConfig)
Advance = Callable[[int], None]


@dataclass(frozen=True)
class SceneOptions(MakingOptions):
    """The flags of every prediction with slots."""

    output: Path = Path("scenes")
    edit: tuple[str, ...] | None = None
    """Changes to the first picture, one after the other: delete:I takes slot I out, move:I takes it to the second
    picture, swap:I:J exchanges it for the second's slot J. Without any: of one picture each object is taken out in
    turn, of two the largest objects are swapped."""
    compose: int = 0
    """The number of new scenes to compose of a slot library; 0: none."""
    library: Path | None = None
    """The library for --compose: figures/library.safetensors of the run; the one that comes with etude's own weights
    where none is named."""
    seed: int = 0
    """Seed of the noise that slots and pictures begin with, and of compositions."""

    def check(self) -> None:
        """Refuse flags that do not go together, with a `UserError`."""
        if not self.inputs and not self.compose:
            raise UserError("no pictures: name some, or a folder of them, or --compose how many new scenes")
        if self.inputs and self.compose:
            raise UserError("--compose takes its slots from a library, not from pictures: give one or the other")
        if self.edit is not None and self.compose:
            raise UserError("--edit changes pictures, and --compose takes none: give one or the other")
        if self.library is not None and not self.compose:
            raise UserError("--library is for --compose: say how many scenes to compose, as --compose 16")
        if self.compose and not 1 <= self.compose <= COMPOSED:
            raise UserError(f"--compose must be from 1 to {COMPOSED:,}, not {self.compose}")


@dataclass(frozen=True)
class Prediction:
    """The record of one picture in which slots were found, or that was made of them."""

    image: str
    output: str
    slots: int | None = None
    """The number of slots that have some of the picture; None, as what follows, where it was made of slots."""
    shares: dict[str, float] | None = None
    """The share of the picture that each such slot has, by its number."""
    mse: float | None = None
    """Squared error of the picture made again of its slots, summed over pixels and colours of [0, 1]."""


@dataclass(frozen=True)
class Found:
    """Some pictures, taken apart by a network; all on the CPU."""

    slots_NKS: Tensor
    masks_NKHW: Tensor
    """Each slot's share of a pixel."""
    parts_NKHWC: np.ndarray
    """The part of its picture that each slot holds, as bytes; the rest is white."""
    made_NCHW: Tensor | None = None
    """The pictures made again of their slots, about [-1, 1]; None where that takes long."""


class ScenePainter(ABC):
    """A study's networks at work on slots.

    Args:
        network: has the ``config`` of a `SlotEncoderConfig`, and a ``card``, see `slot_library.Card`.
        seed: of the noise that slots begin with.
    """

    study: ClassVar[str]
    titles: ClassVar[tuple[str, str, str]]
    """The titles of a picture, of what is made again of its slots, and of its slots."""
    endings: ClassVar[tuple[str, ...]]
    """The files of each picture that is looked at: a sheet, the mask and, if wanted, what is made again."""
    steps = 1
    """The part of the progress bar that a picture is."""

    def __init__(self, network: Any, seed: int) -> None:
        self.network, self.config, self.seed = network, network.config, seed

    @torch.inference_mode()
    def find(self, images: Sequence[np.ndarray]) -> Found:
        """Take pictures apart; a picture's slots begin the same whatever is beside it."""
        device, config = next(self.network.parameters()).device, self.config
        noise_1KS = torch.randn(
            1, config.num_slots, config.slot_size, generator=randomness.generator(self.seed, "predict/slots", 0)
        )
        images_NHWC = torch.from_numpy(np.stack(images))
        return self.decompose(images_NHWC.to(device), noise_1KS.expand(len(images), -1, -1).to(device))

    @abstractmethod
    def decompose(self, images_NHWC: Tensor, noise_NKS: Tensor) -> Found:
        """Take pictures apart, given what their slots begin with."""

    @abstractmethod
    def paint(self, slots_NKS: Tensor, numbers: Sequence[int], advance: Advance) -> Tensor:
        """Bytes ``[N, H, W, 3]`` on the CPU.

        Args:
            slots_NKS: of each picture.
            numbers: of the pictures; those of one number have the same noise, if any.
            advance: is told of each part of the work, `steps` a picture.
        """

    def painted(self, slots_NKS: Tensor, numbers: Sequence[int], title: str) -> Tensor:
        """`paint` with a progress bar."""
        with progress_bar() as bar:
            shown = bar.add_task(title, total=len(slots_NKS) * self.steps, note="")
            return self.paint(slots_NKS, numbers, lambda done: bar.advance(shown, done))


def read_networks(
    weights: Path, study: str, kind: type[C], build: Callable[[C, Mapping[str, Tensor]], Mapping[str, nn.Module]]
) -> tuple[C, Mapping[str, nn.Module]]:
    """The configuration and the networks of a weights file, ready for use on the best device there is.

    Args:
        weights: the file.
        study: that it must be of.
        kind: of its configuration.
        build: makes the networks, by the names that their tensors have.
    """
    tensors, header = read_weights(weights, study=study)
    if header.extra.get("kind") == "library":
        raise UserError(f"{weights} is a slot library, not a network: give it with --library")
    config = from_dict(kind, header.config, origin=str(weights))
    modules = build(config, tensors)
    load_weights(modules, tensors, weights)
    for module in modules.values():
        module.eval().to(resolve_device("auto")).to(memory_format=torch.channels_last)
    return config, modules


def predict(painter: ScenePainter, weights: Path, options: SceneOptions) -> list[Prediction | Refused]:
    """Do what the options say.

    Raises:
        UserError: in one line: no picture that can be used (one may be missing, broken or one-coloured), none of an
            edit's that cannot, an edit that cannot be, another model's library, a result that is there already.
    """
    if options.compose:
        return [*_compose(painter, weights, options)]
    paths = picture_files(options.inputs)
    return _find(painter, paths, options) if options.edit is None else [*_edit(painter, paths, options)]


def tell(answers: Sequence[Prediction]) -> str:
    """One line a picture, for people."""
    lines: list[str] = []
    for row in answers:
        told = ", ".join(f"slot {number} {100 * share:.0f} %" for number, share in (row.shares or {}).items())
        found = "" if row.mse is None else f" ({row.slots} slots: {told}, squared error {row.mse:.0f})"
        lines.append(f"{printable(row.image)} -> {printable(row.output)}{found}")
    return "\n".join(lines)


def _find(painter: ScenePainter, paths: Sequence[Path], options: SceneOptions) -> list[Prediction | Refused]:
    every = result_files(paths, options.output, painter.endings, force=options.force)

    def read_one(place: int) -> tuple[Path, list[Path], np.ndarray]:
        return paths[place], every[place], read_picture(paths[place], painter.config.size, options.max_pixels)

    read = answerable(attempted(range(len(paths)), read_one, lambda place: str(paths[place])))
    known = [row for row in read if not isinstance(row, Refused)]
    paths, files, images = [row[0] for row in known], [row[1] for row in known], [row[2] for row in known]
    answers: list[Prediction] = []
    with progress_bar() as bar:
        shown = bar.add_task("finding", total=len(paths) * painter.steps, note="")

        def advance(done: int) -> None:
            bar.advance(shown, done)

        for start in range(0, len(paths), BATCH):
            some = images[start : start + BATCH]
            found, real_NHWC = painter.find(some), torch.from_numpy(np.stack(some))
            if found.made_NCHW is None:
                # One noise for all: a picture's result does not depend on what is beside it.
                made_NHWC = painter.paint(found.slots_NKS, [0] * len(some), advance)
                made, real = (x.permute(0, 3, 1, 2) / 255.0 for x in (made_NHWC, real_NHWC))
            else:
                made_NHWC = to_bytes(found.made_NCHW)
                made, real = ((x + 1) / 2 for x in (found.made_NCHW, prepare(real_NHWC)))
                advance(len(some))
            error_N, segments_NHW = squared_error(made, real), segments(found.masks_NKHW)
            for row, (page, mask, *again) in enumerate(files[start : start + BATCH]):
                one = slice(row, row + 1)
                parts = (real_NHWC[one], painter.titles[1], made_NHWC[one], found.parts_NKHWC[one])
                save_figure(page, lambda to, parts=parts: figures.slots(to, *parts))
                save_png(mask, segments_NHW[row].to(torch.uint8).numpy())
                for file in again:
                    save_png(file, made_NHWC[row].numpy())
                shares = shares_of(segments_NHW[row], painter.config.num_slots)
                path, error = paths[start + row], error_N[row].item()
                answers.append(Prediction(str(path), str(page), len(shares), shares, error))
    return in_place(read, answers)


def _edit(painter: ScenePainter, paths: Sequence[Path], options: SceneOptions) -> list[Prediction]:
    if len(paths) > 2:
        raise UserError(f"--edit takes one picture or two, not {len(paths)}")
    num_slots = painter.config.num_slots
    edits = [parse_edit(word, num_slots, two=len(paths) == 2) for word in options.edit or ()]
    files = [row[0] for row in result_files(paths, options.output, ("-edited.png",), force=options.force)]
    page = options.output / "edit.png"
    refuse_existing([page], paths, force=options.force)
    images = [read_picture(path, painter.config.size, options.max_pixels) for path in paths]
    found = painter.find(images)
    segments_NHW = segments(found.masks_NKHW)
    variants = {"edited": edits} if edits else suggested([shares_of(part, num_slots) for part in segments_NHW])
    # Checked before anything is painted.
    changed = {name: edited([list(part) for part in found.slots_NKS], variant) for name, variant in variants.items()}
    again_NHWC = painter.painted(found.slots_NKS, [0] * len(paths), "as they are").numpy()
    # By variant, then by picture; pictures may have other numbers of slots.
    made = {
        name: [painter.painted(torch.stack(list(part))[None], [0], name)[0].numpy() for part in parts]
        for name, parts in changed.items()
    }
    rows: list[tuple[str, list[Any]]] = [
        ("", [image, again_NHWC[row], coloured(segments_NHW[row] + 1), *(parts[row] for parts in made.values())])
        for row, image in enumerate(images)
    ]
    save_figure(page, lambda to: grid(to, rows, [*painter.titles, *variants]))
    for file, picture in zip(files, next(iter(made.values())), strict=True):
        save_png(file, picture)
    answers = [Prediction(str(path), str(file)) for path, file in zip(paths, files, strict=True)]
    return [*answers, Prediction(" + ".join(map(str, paths)), str(page))]


def _compose(painter: ScenePainter, weights: Path, options: SceneOptions) -> list[Prediction]:
    path = options.library or slot_library.beside(weights)
    if path is None:
        raise UserError("no slot library: name one with --library (a run has figures/library.safetensors)")
    shape = {name: getattr(painter.config, name) for name in ("num_slots", "slot_size", "size")}
    library = slot_library.load(path, painter.study, shape, painter.network.card)
    names = [Path(f"{number:03d}") for number in range(options.compose)]
    files = [row[0] for row in result_files(names, options.output, (".png",), force=options.force)]
    page = options.output / "compositions.png"
    refuse_existing([page], [], force=options.force)
    slots_NKS = library.draw(options.compose, randomness.generator(options.seed, "predict/compose", 0))
    images_NHWC = painter.painted(slots_NKS, range(options.compose), "compositions")
    for file, image in zip(files, images_NHWC.numpy(), strict=True):
        save_png(file, image)
    save_png(page, sheet(images_NHWC[:64], math.ceil(math.sqrt(min(64, options.compose)))))
    return [Prediction(f"{options.compose} compositions", str(page))]
