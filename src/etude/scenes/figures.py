"""Pictures of every study of scenes: learning curves, sheets of slots, compositions.

Shape suffixes: N pictures, K slots, H W pixels, C colours.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from etude.core.config import to_dict
from etude.draw.figures import coloured, curves, grid, two_sheets
from etude.draw.metrics import rows_of
from etude.scenes.scores import segments
from etude.scenes.task import SlotTask

SHOWN = 6
"""The scenes of a sheet."""
COMPOSED = 32
"""The compositions of a sheet."""


def both_splits(metrics: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """A metric in training and on the validation split, over the steps."""
    splits = {"training": "train", "validation": "val"}
    return {title: rows_of(metrics, f"{split}/{name}") for title, split in splits.items()}


def learning_curves(path: Path, metrics: Sequence[Mapping[str, Any]], title: str, name: str) -> None:
    """Draw the squared error that is trained on, given its title and name, the masks' quality, the watch on slots."""
    quality = {"ARI": "ari", "FG-ARI": "fg_ari", "mIoU": "miou_fg", "mBO": "mbo"}
    watch = {"hold nothing": "empty", "share the background": "background_slots", "dead in all scenes": "dead"}
    starts = {"spread of the starts": "spread", "sameness": "sameness"}
    curves(
        path,
        [
            (title, "squared error", both_splits(metrics, name)),
            *(
                (title, unit, {label: rows_of(metrics, f"val/{key}") for label, key in names.items()})
                for title, unit, names in (
                    ("Masks, validation", "share", quality),
                    ("Slots of a scene that", "number of slots", watch),
                    ("Collapse", "0: the same starts; 1: the same slots", starts),
                )
            ),
        ],
    )


def reconstructions(
    path: Path, images_NHWC: Tensor, again: Mapping[str, Tensor], true_NHW: Tensor, masks_NKHW: Tensor
) -> None:
    """Draw a column a scene: the picture, what it is made again as, the true masks, the slots' masks."""
    rows = [
        ("picture", list(images_NHWC.numpy())),
        *((title, list(made_NHWC.numpy())) for title, made_NHWC in again.items()),
        ("true masks", [coloured(mask) for mask in true_NHW]),
        ("slots' masks", [coloured(mask + 1) for mask in segments(masks_NKHW)]),
    ]
    grid(path, rows)


def slots(path: Path, images_NHWC: Tensor, again: str, made_NHWC: Tensor, parts_NKHWC: np.ndarray) -> None:
    """Draw a row a scene: the picture, the one made again of its slots, and the part of each slot."""
    rows = [
        ("", [image, made, *parts])
        for image, made, parts in zip(images_NHWC.numpy(), made_NHWC.numpy(), parts_NKHWC, strict=True)
    ]
    grid(path, rows, ["picture", again, *(f"slot {number}" for number in range(parts_NKHWC.shape[1]))])


def compositions(folder: Path, task: SlotTask, study: str, verb: str, count: int = COMPOSED) -> None:
    """Draw validation scenes and ``count`` compositions of a task's slot library, and write the library beside them.

    ``verb`` says how slots become a picture.
    """
    real_NHWC = task.scenes.splits["val"].images_NHWC[:COMPOSED].cpu()
    composed_NHWC = task.compose(count, "figure/compose")
    below = f"one slot of each cluster of the library, {verb} together"
    two_sheets(folder / "compositions.png", ("validation scenes", real_NHWC), (below, composed_NHWC))
    task.library.save(folder / "library.safetensors", study, to_dict(task.config))
