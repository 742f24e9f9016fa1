"""What predictions with slots share: scenes are looked at, changed by their slots, and composed of a library's.

Shape suffixes: N pictures, K slots, S a slot's size, H height, W width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from etude.core import randomness
from etude.core.checkpoint import WeightsHeader, read_weights
from etude.core.errors import UserError
from etude.data.clevrtex import read_picture
from etude.data.images import printable
from etude.data.prediction import MakingOptions, picture_files, refuse_existing, result_files, save_png
from etude.draw.figures import coloured, grid, save_figure, sheet
from etude.scenes import slot_library
from etude.scenes.config import SlotEncoderConfig
from etude.scenes.edits import edited, parse_edit, shares_of, suggested
from etude.scenes.scores import segments

COMPOSED = 10_000
"""New pictures at once, at most."""


@dataclass(frozen=True)
class SceneOptions(MakingOptions):
    """The flags of every prediction with slots."""

    output: Path = Path("scenes")
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
    """Of the noise that slots and pictures begin with, and of compositions."""

    def check(self) -> None:
        """`UserError` where flags do not go together: pictures to find or to edit, or a library to compose of."""
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
    """What was found, or made."""

    image: str
    output: str
    slots: int | None = None
    """How many slots have some of the picture; None, as what follows, of what was made of slots."""
    shares: dict[str, float] | None = None
    """The share of the picture that each such slot has, by its number."""
    mse: float | None = None
    """Squared error of the picture made again of its slots, summed over pixels and colours of [0, 1]."""


class ScenePainter(ABC):
    """What a study's networks do with slots.

    Attributes:
        study: its name.
        titles: of the columns of a sheet: a picture, what is made again of its slots, its slots.
        endings: of the files that `describe` writes of each picture.
        config: of the networks.
    """

    study: ClassVar[str]
    titles: ClassVar[tuple[str, str, str]]
    endings: ClassVar[tuple[str, ...]]

    def __init__(self, config: SlotEncoderConfig) -> None:
        self.config = config

    @abstractmethod
    def find(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Slots ``[N, K, S]`` and masks ``[N, K, H, W]`` of pictures, on the CPU."""

    @abstractmethod
    def paint(self, slots_NKS: Tensor, numbers: Sequence[int], title: str) -> Tensor:
        """Bytes ``[N, H, W, 3]`` on the CPU; pictures of one number have the same noise, if any."""

    @abstractmethod
    def card(self, slots_KS: Tensor) -> Tensor:
        """See `etude.scenes.slot_library.Card`."""

    @abstractmethod
    def describe(
        self, paths: Sequence[Path], files: Sequence[Sequence[Path]], images: Sequence[np.ndarray]
    ) -> list[Prediction]:
        """Write what is found in each picture into its files."""


def predict(painter: ScenePainter, weights: Path, options: SceneOptions) -> list[Prediction]:
    """Do what the options say.

    Raises:
        UserError: in one line: a missing, broken or one-coloured picture, an edit that cannot be, another model's
            library, a result that is there already.
    """
    if options.compose:
        return _compose(painter, weights, options)
    paths = picture_files(options.inputs)
    if options.edit is not None:
        return _edit(painter, paths, options)
    files = result_files(paths, options.output, painter.endings, force=options.force)
    # All before the first is written: a broken one late in a folder would leave half of the results.
    return painter.describe(paths, files, _read(painter, paths, options))


def tell(answers: Sequence[Prediction]) -> str:
    """One line a picture, for people."""
    lines: list[str] = []
    for row in answers:
        told = ", ".join(f"slot {number} {100 * share:.0f} %" for number, share in (row.shares or {}).items())
        found = "" if row.mse is None else f" ({row.slots} slots: {told}, squared error {row.mse:.0f})"
        lines.append(f"{printable(row.image)} -> {printable(row.output)}{found}")
    return "\n".join(lines)


def read_network(weights: Path, study: str) -> tuple[Mapping[str, Tensor], WeightsHeader]:
    """The tensors of a network's weights file; a slot library is refused."""
    tensors, header = read_weights(weights, study=study)
    if header.extra.get("kind") == "library":
        raise UserError(f"{weights} is a slot library, not a network: give it with --library")
    return tensors, header


def _read(painter: ScenePainter, paths: Sequence[Path], options: SceneOptions) -> list[np.ndarray]:
    return [read_picture(path, painter.config.size, options.max_pixels) for path in paths]


def _edit(painter: ScenePainter, paths: Sequence[Path], options: SceneOptions) -> list[Prediction]:
    if len(paths) > 2:
        raise UserError(f"--edit takes one picture or two, not {len(paths)}")
    num_slots = painter.config.num_slots
    edits = [parse_edit(word, num_slots, two=len(paths) == 2) for word in options.edit or ()]
    files = [row[0] for row in result_files(paths, options.output, ("-edited.png",), force=options.force)]
    page = options.output / "edit.png"
    refuse_existing([page], paths, force=options.force)
    images = _read(painter, paths, options)
    slots_NKS, masks_NKHW = painter.find(images)
    segments_NHW = segments(masks_NKHW)
    variants = {"edited": edits} if edits else suggested([shares_of(part, num_slots) for part in segments_NHW])
    # Checked before anything is painted.
    changed = {name: edited([list(part) for part in slots_NKS], variant) for name, variant in variants.items()}
    again_NHWC = painter.paint(slots_NKS, [0] * len(paths), "as they are").numpy()
    # By variant, then by picture; pictures may have other numbers of slots.
    made = {
        name: [painter.paint(torch.stack(list(part))[None], [0], name)[0].numpy() for part in parts]
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
    library = slot_library.load(path, painter.study, shape, painter.card)
    names = [Path(f"{number:03d}") for number in range(options.compose)]
    files = [row[0] for row in result_files(names, options.output, (".png",), force=options.force)]
    page = options.output / "compositions.png"
    refuse_existing([page], [], force=options.force)
    slots_NKS = library.draw(options.compose, randomness.generator(options.seed, "predict/compose", 0))
    images_NHWC = painter.paint(slots_NKS, range(options.compose), "compositions")
    for file, image in zip(files, images_NHWC.numpy(), strict=True):
        save_png(file, image)
    save_png(page, sheet(images_NHWC[:64], math.ceil(math.sqrt(min(64, options.compose)))))
    return [Prediction(f"{options.compose} compositions", str(page))]
