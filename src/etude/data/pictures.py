"""The labelled pictures that a configuration names, split into train, val and test."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from etude.core.errors import UserError
from etude.data import cifar10, folders
from etude.data.epochs import refuse_larger_batch
from etude.data.labelled import LabelledImages
from etude.data.picture_config import PictureConfig
from etude.data.shapes import CLASSES, shapes
from etude.data.tree import find

# Of the embedded twin, pictures a class.
_TWIN = {"train": 60, "val": 25, "test": 50}


@dataclass(frozen=True)
class Pictures:
    """A data set whole in memory.

    Attributes:
        splits: by ``train``, ``val`` and ``test``.
        classes: their names, in the order of the labels.
        about: what stands beside every number, such as ``"birds6_224, 64 px"``.
        checksums: digests of what was read.
        inventory: what was found in a folder, see `etude.data.inventory.Inventory.record`; else empty.
    """

    splits: Mapping[str, LabelledImages]
    classes: tuple[str, ...]
    about: str
    checksums: Mapping[str, str]
    inventory: Mapping[str, Any] = field(default_factory=dict[str, Any])


def load(config: PictureConfig, num_classes: int, *, batch: int = 0, device: torch.device | str = "cpu") -> Pictures:
    """Read the pictures.

    Args:
        config: which.
        num_classes: the number of the network's.
        batch: training pictures of a step; 0: any.
        device: that they are put on.

    Raises:
        UserError: the network has another number of classes, or there are fewer training pictures than a batch has.
    """
    found = _load(config, num_classes)
    if len(found.classes) != num_classes:
        raise UserError(
            f"{found.about}: {len(found.classes)} classes, and the network has {num_classes}: "
            f"give --model.num-classes {len(found.classes)}"
        )
    refuse_larger_batch(batch, len(found.splits["train"]), "pictures")
    splits = {
        split: replace(part, images_NHWC=part.images_NHWC.to(device), labels_N=part.labels_N.to(device))
        for split, part in found.splits.items()
    }
    return replace(found, splits=splits)


def _load(config: PictureConfig, num_classes: int) -> Pictures:
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
        path = find(config.folder)
        read = folders.read(path, size=config.size, fit=config.fit, skip_corrupt=config.skip_corrupt)
        split_file, seed = Path(config.split_file) if config.split_file else None, config.split_seed
        shares = {"val_share": config.val_share, "test_share": config.test_share}
        rows = folders.split(read, split_file, **shares, seed=seed)
        splits = {split: read.images.take(chosen) for split, chosen in rows.items()}
        keys = {folders.class_key(name) for name in read.images.classes}
        indian = keys == {folders.class_key(name) for name in folders.INDIAN_BIRDS}
        name = "indian-birds" if indian else path.absolute().stem
        inventory = read.found.record(
            {split: chosen.tolist() for split, chosen in rows.items()}, read.images.images_NHWC
        )
        return Pictures(splits, read.images.classes, f"{name}, {config.size} px", {name: read.digest}, inventory)
    jpeg = config.source == "cifar10-jpeg"
    read_split = cifar10.load_jpeg if jpeg else cifar10.load
    train, test = (averaged(read_split(split), cifar10.SIZE // config.size) for split in ("train", "test"))
    train_rows, val_rows = cifar10.train_val(train.labels_N)
    splits = {"train": train.take(train_rows), "val": train.take(val_rows), "test": test}
    name = "CIFAR-10 as lossy JPEG copies (median 30.5 dB)" if jpeg else "CIFAR-10"
    name += f", averaged down to {config.size} px" if config.size < cifar10.SIZE else ""
    return Pictures(splits, train.classes, name, cifar10.checksums(jpeg=jpeg))


def averaged(images: LabelledImages, factor: int) -> LabelledImages:
    """Pictures of a smaller side, each pixel the rounded mean of ``factor`` x ``factor``; 1: as they are."""
    if factor == 1:
        return images
    parts = [
        part.unflatten(2, (-1, factor)).unflatten(1, (-1, factor)).float().mean((2, 4)).round().to(torch.uint8)
        for part in images.images_NHWC.split(5000)
    ]
    return replace(images, images_NHWC=torch.cat(parts))
