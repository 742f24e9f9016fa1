"""The part that all predictions of classes share: flags, networks, batches, results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from etude.core.checkpoint import load_weights, read_weights
from etude.core.config import from_dict
from etude.core.errors import Refused, UserError
from etude.core.files import write_atomic
from etude.data.images import fitted
from etude.data.inventory import Picture, classes_of
from etude.data.picture_config import PictureConfig
from etude.data.prediction import PictureOptions, answerable, attempted, in_place, picture_files, read_input
from etude.data.tree import opened

_BATCH = 64


M = TypeVar("M", bound=nn.Module)
C = TypeVar("C")


@dataclass(frozen=True)
class Options(PictureOptions):
    """The flags of every prediction of classes."""

    output: Path | None = None
    """A file for the predictions, one class a line in the order of the inputs (of a folder, by name); the line of a
    picture that cannot be read is empty."""
    indices: bool = False
    """Write the number of the class into the output file, from 0 in the order of the names, instead of its name."""


@dataclass(frozen=True)
class Network(Generic[M, C]):
    """A trained network, ready to classify."""

    model: M
    config: C
    classes: list[str]


@dataclass(frozen=True)
class Prediction:
    """The class that one picture was taken for."""

    image: str
    label: str
    index: int
    probability: float
    probabilities: dict[str, float] = field(default_factory=dict[str, float])


def inputs(paths: Sequence[Path]) -> list[Path]:
    """The pictures of some files and folders; `UserError` where there are none."""
    if not paths:
        raise UserError("no pictures to classify: name some, or a folder of them")
    return picture_files(paths)


def classified(
    network: Network[Any, Any],
    paths: Sequence[Path],
    max_pixels: int,
    also: Callable[[list[Path], Tensor, list[Prediction]], None] | None = None,
) -> list[Prediction | Refused]:
    """The predictions for some pictures, in their order; one that is missing, broken or too large is refused.

    Args:
        network: the one that takes them.
        paths: the pictures.
        max_pixels: larger pictures are refused.
        also: is called with each batch: its paths, bytes ``[N, H, W, 3]`` and predictions.

    Raises:
        UserError: all of the pictures are.
    """
    answers: list[Prediction | Refused] = []
    for start in range(0, len(paths), _BATCH):
        read = pixels(paths[start : start + _BATCH], network.config.data, max_pixels)
        known = [row for row in read if not isinstance(row, Refused)]
        found: list[Prediction] = []
        if known:
            batch, images_NHWC = [path for path, _ in known], torch.from_numpy(np.stack([image for _, image in known]))
            with torch.no_grad():
                logits_NR, _ = network.model(network.model.prepare(images_NHWC))
            found = predictions(batch, logits_NR, network.classes)
            if also is not None:
                also(batch, images_NHWC, found)
        answers += in_place(read, found)
    return answerable(answers)


def pixels(paths: Sequence[Path], config: PictureConfig, max_pixels: int) -> list[tuple[Path, np.ndarray] | Refused]:
    """Some pictures at the size of training, uint8 ``[H, W, 3]``, each with its path."""

    def one(path: Path) -> tuple[Path, np.ndarray]:
        return path, fitted(read_input(path, "RGB", max_pixels, config.size), config.size, config.fit)

    return attempted(paths, one)


def read_network(
    study: str, kind: type[C], build: Callable[[C], M], weights: Path, extra: Mapping[str, Any] | None
) -> Network[M, C]:
    """The network of a weights file that `etude export` or a checkpoint wrote, with its classes' names.

    Args:
        study: the one that the weights must be of.
        kind: its configuration, with ``model.num_classes``.
        build: makes the network that a configuration describes.
        weights: the file.
        extra: what the run's summary adds where the file is a checkpoint.

    Raises:
        UserError: weights that cannot be read, or are another study's.
    """
    tensors, header = read_weights(weights, study=study)
    config: Any = from_dict(kind, header.config, origin=str(weights))
    model = build(config)
    load_weights({"model": model}, tensors, weights)
    model.eval().to(memory_format=torch.channels_last)
    return Network(model, config, class_names(header.extra or extra or {}, config.model.num_classes, weights))


@dataclass(frozen=True)
class FolderOptions:
    """The flags of scoring a network on pictures whose classes are known."""

    folder: Annotated[Path, tyro.conf.Positional]
    """A folder or zip file with one sub-folder a class."""
    max_pixels: int = 64_000_000
    """Larger pictures are refused."""


def labelled(
    folder: Path, read: Callable[[Path | tuple[str, bytes]], np.ndarray],
    check: Callable[[Sequence[str]], None] = lambda names: None,
) -> list[tuple[str, np.ndarray] | Refused]:  # fmt: skip
    """The pictures of a folder or zip file of classes: each one's class and what ``read`` makes of it, or its refusal.

    ``check`` may refuse the classes before anything is read.

    Raises:
        UserError: a folder of splits, or no picture that can be read.
    """
    with opened(folder) as tree:
        found = classes_of(tree)
        check(sorted({picture.class_name for picture in found.pictures}))

        def one(picture: Picture) -> tuple[str, np.ndarray]:
            return picture.class_name, read(tree.image(picture.at))

        return answerable(attempted(found.pictures, one, lambda picture: picture.name))


def class_names(about: Mapping[str, Any], count: int, weights: Path) -> list[str]:
    """The classes' names that weights carry, else numbers; `UserError` where they are not as many as the network's."""
    classes = list(about.get("classes", [f"class {number}" for number in range(count)]))
    if len(classes) != count:
        raise UserError(f"{weights} names {len(classes)} classes, and its network has {count}")
    return classes


def predictions(batch: Sequence[Path], logits_NR: Tensor, classes: Sequence[str]) -> list[Prediction]:
    """The predictions for a batch, from its logits."""
    probability_NR = logits_NR.float().softmax(-1)
    answers: list[Prediction] = []
    for path, row, taken in zip(batch, probability_NR.tolist(), probability_NR.argmax(-1).tolist(), strict=True):
        table = dict(zip(classes, row, strict=True))
        answers.append(Prediction(str(path), str(classes[taken]), taken, row[taken], table))
    return answers


def write(path: Path | None, answers: Sequence[Prediction | Refused], *, indices: bool) -> None:
    """One class a line, by its name or number, and an empty line for what was refused; no path: nothing."""
    if path is not None:
        rows = ["" if isinstance(row, Refused) else row.index if indices else row.label for row in answers]
        write_atomic(path, "".join(f"{row}\n" for row in rows))
