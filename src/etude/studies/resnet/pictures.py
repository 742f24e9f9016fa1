"""The pictures that a configuration names, split into train, val and test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from etude.core.errors import UserError, nearest
from etude.data import cifar10, folders
from etude.data.labelled import LabelledImages
from etude.data.shapes import CLASSES, shapes
from etude.studies.resnet.study import DataConfig

# Of the embedded twin, pictures a class.
_TWIN = {"train": 60, "val": 25, "test": 50}
_SHEET_CLASSES = 7


@dataclass(frozen=True)
class Pictures:
    """A data set whole in memory.

    Attributes:
        splits: by ``train``, ``val`` and ``test``.
        classes: their names, in the order of the labels.
        about: what stands beside every number, such as ``"birds6_224, 64 px"``.
        checksums: digests of what was read.
    """

    splits: Mapping[str, LabelledImages]
    classes: tuple[str, ...]
    about: str
    checksums: Mapping[str, str]


def load(config: DataConfig, num_classes: int) -> Pictures:
    """Read the pictures; `UserError` where the network has another number of classes than they have."""
    found = _load(config, num_classes)
    if len(found.classes) != num_classes:
        raise UserError(
            f"{found.about}: {len(found.classes)} classes, and the network has {num_classes}: "
            f"give --model.num-classes {len(found.classes)}"
        )
    return found


def _load(config: DataConfig, num_classes: int) -> Pictures:
    if config.source == "generated":
        if num_classes > len(CLASSES):
            raise UserError(f"the generated twin has up to {len(CLASSES)} classes: give a smaller --model.num-classes")
        splits = {
            split: shapes(num_classes, each, size=config.size, seed=seed)
            for seed, (split, each) in enumerate(_TWIN.items())
        }
        about = {"generated": "shapes, seeds 0 to 2"}
        return Pictures(splits, splits["train"].classes, f"generated shapes, {config.size} px", about)
    if config.source == "folder":
        path = folders.find(config.folder)
        read = folders.read(path, size=config.size, fit=config.fit, skip_corrupt=config.skip_corrupt)
        rows = folders.split(
            read,
            Path(config.split_file) if config.split_file else None,
            val_share=config.val_share,
            test_share=config.test_share,
            seed=config.split_seed,
        )
        splits = {split: read.images.take(chosen) for split, chosen in rows.items()}
        keys = {folders.class_key(name) for name in read.images.classes}
        indian = keys == {folders.class_key(name) for name in folders.INDIAN_BIRDS}
        name = "indian-birds" if indian else path.absolute().stem
        return Pictures(splits, read.images.classes, f"{name}, {config.size} px", {name: read.digest})
    jpeg = config.source == "cifar10-jpeg"
    read_split = cifar10.load_jpeg if jpeg else cifar10.load
    train, test = read_split("train"), read_split("test")
    train_rows, val_rows = cifar10.train_val(train.labels_N)
    splits = {"train": train.take(train_rows), "val": train.take(val_rows), "test": test}
    name = "CIFAR-10 as lossy JPEG copies (median 30.5 dB)" if jpeg else "CIFAR-10"
    return Pictures(splits, train.classes, name, cifar10.checksums(jpeg=jpeg))


def sheet_classes(classes: Sequence[str], asked: Sequence[str]) -> list[int]:
    """The classes of a Grad-CAM sheet: those asked for, else the assignment's seven species, else the first seven.

    Raises:
        UserError: a class is asked for that there is none of.
    """
    index = {folders.class_key(name): number for number, name in enumerate(classes)}
    for name in asked:
        if folders.class_key(name) not in index:
            raise UserError(f"--cam-classes: the pictures have no class '{name}'{nearest(name, classes)}")
    chosen = [index[key] for key in map(folders.class_key, asked or folders.ASSIGNMENT_SPECIES) if key in index]
    if asked or len(chosen) == len(folders.ASSIGNMENT_SPECIES):
        return chosen
    return list(range(min(_SHEET_CLASSES, len(classes))))
