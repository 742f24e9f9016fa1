"""The pictures of a slots run: what is reconstructed, what each slot holds, where it looks, what can be composed.

Shape suffixes as in model.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from etude.core.config import to_dict
from etude.draw.figures import attention, coloured, curves, grid, two_sheets
from etude.draw.metrics import rows_of
from etude.nn.pixels import to_bytes
from etude.scenes.scores import segments
from etude.studies.slots.task import SlotsTask

SHOWN = 6
"""Scenes of a sheet."""
COMPOSED = 32
"""Compositions of a sheet."""


def draw(task: SlotsTask, folder: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw all pictures of a run into ``folder``."""
    learning_curves(folder / "curves.png", metrics)
    scenes = task.scenes.splits["test"]
    count = min(SHOWN, len(scenes))
    images_NHWC, masks_NHW = scenes.images_NHWC[:count], scenes.masks_NHW[:count]
    [batch] = task.decompose(images_NHWC, task.noise(count, "figure/slots", 0), size=count)
    assert batch.made_BCHW is not None
    named = {name: value.float().cpu() for name, value in batch.named.items()}
    made_NHWC = to_bytes(batch.made_BCHW).cpu()
    images_NHWC = images_NHWC.cpu()
    reconstructions(folder / "reconstructions.png", images_NHWC, made_NHWC, masks_NHW.cpu(), named["masks"])
    slots(folder / "slots.png", images_NHWC, made_NHWC, named["contents"], named["masks"])
    parts(folder / "parts.png", images_NHWC[0], named["contents"][0], named["masks"][0])
    attention(folder / "attention.png", images_NHWC[0], named["attention"][0], task.model.encoder.places)
    composed = task.compose(COMPOSED, "figure/compose").cpu()
    real_NHWC = task.scenes.splits["val"].images_NHWC[:COMPOSED].cpu()
    below = "one slot of each cluster of the library, decoded together"
    two_sheets(folder / "compositions.png", ("validation scenes", real_NHWC), (below, composed))
    task.library.save(folder / "library.safetensors", "slots", to_dict(task.config))


def learning_curves(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Reconstruction losses, quality of the masks, and the watch on slots."""
    watch = {
        "hold nothing": rows_of(metrics, "val/empty"),
        "share the background": rows_of(metrics, "val/background_slots"),
        "dead in all scenes": rows_of(metrics, "val/dead"),
    }
    starts = {"spread of the starts": rows_of(metrics, "val/spread"), "sameness": rows_of(metrics, "val/sameness")}
    quality = {"ARI": "ari", "FG-ARI": "fg_ari", "mIoU": "miou", "mBO": "mbo"}
    curves(
        path,
        [
            (
                "Reconstruction",
                "squared error",
                {
                    name: rows_of(metrics, f"{split}/reconstruction")
                    for split, name in (("train", "training"), ("val", "validation"))
                },
            ),
            ("Masks, validation", "share", {name: rows_of(metrics, f"val/{key}") for name, key in quality.items()}),
            ("Slots of a scene that", "slots", watch),
            ("Collapse", "0: the same starts; 1: the same slots", starts),
        ],
    )


def reconstructions(path: Path, images_NHWC: Tensor, made_NHWC: Tensor, true_NHW: Tensor, masks_NKHW: Tensor) -> None:
    """A column a scene: the picture, its reconstruction, the true masks, the slots' masks."""
    found_NHW = segments(masks_NKHW)
    rows = [
        ("picture", list(images_NHWC.numpy())),
        ("reconstruction", list(made_NHWC.numpy())),
        ("true masks", [coloured(mask) for mask in true_NHW]),
        ("slots", [coloured(mask + 1) for mask in found_NHW]),
    ]
    grid(path, rows)


def slots(path: Path, images_NHWC: Tensor, made_NHWC: Tensor, contents_NKCHW: Tensor, masks_NKHW: Tensor) -> None:
    """A row a scene: the picture, its reconstruction, and what each slot adds to it, on white."""
    shown = on_white(contents_NKCHW, masks_NKHW)
    rows = []
    for image, made, parts in zip(images_NHWC.numpy(), made_NHWC.numpy(), shown, strict=True):
        rows.append(("", [image, made, *to_bytes(parts).numpy()]))
    titles = ["picture", "reconstruction", *(f"slot {number}" for number in range(shown.shape[1]))]
    grid(path, rows, titles)


def parts(path: Path, image_HWC: Tensor, contents_KCHW: Tensor, masks_KHW: Tensor) -> None:
    """One scene: each slot's mask, what it would paint everywhere, and where it does."""
    blank = [np.full_like(image_HWC.numpy(), 255)]
    rows = [
        ("mask", [image_HWC.numpy(), *(np.uint8(255 * mask) for mask in masks_KHW.numpy())]),
        ("content", [*blank, *to_bytes(contents_KCHW).numpy()]),
        ("both", [*blank, *to_bytes(on_white(contents_KCHW, masks_KHW)).numpy()]),
    ]
    grid(path, rows, ["picture", *(f"slot {number}" for number in range(len(masks_KHW)))])


def on_white(contents: Tensor, masks: Tensor) -> Tensor:
    """Slots' pictures ``[..., 3, H, W]`` in [-1, 1] where they are seen, by masks ``[..., H, W]``; white elsewhere."""
    share = masks[..., None, :, :]
    return share * contents + (1 - share)
