"""The pictures of a slots run: what is reconstructed, what each slot holds, where it looks, what can be composed.

Shape suffixes as in model.py.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from etude.draw.figures import attention, grid
from etude.nn.pixels import to_bytes
from etude.scenes import figures
from etude.scenes.figures import SHOWN
from etude.studies.slots.task import SlotsTask


def draw(task: SlotsTask, folder: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw all pictures of a run into ``folder``."""
    figures.learning_curves(folder / "curves.png", metrics, "Reconstruction", "reconstruction")
    scenes = task.scenes.splits["test"]
    count = min(SHOWN, len(scenes))
    images_NHWC, masks_NHW = scenes.images_NHWC[:count], scenes.masks_NHW[:count].cpu()
    [batch] = task.decompose(images_NHWC, task.noise(count, "figure/slots", 0), size=count)
    assert batch.made_BCHW is not None
    named = {name: value.float().cpu() for name, value in batch.named.items()}
    made_NHWC = to_bytes(batch.made_BCHW).cpu()
    images_NHWC = images_NHWC.cpu()
    again = {"reconstruction": made_NHWC}
    figures.reconstructions(folder / "reconstructions.png", images_NHWC, again, masks_NHW, named["masks"])
    parts_NKHWC = parts_of(named["contents"], named["masks"])
    figures.slots(folder / "slots.png", images_NHWC, "reconstruction", made_NHWC, parts_NKHWC)
    parts(folder / "parts.png", images_NHWC[0], named["contents"][0], named["masks"][0])
    attention(folder / "attention.png", images_NHWC[0], named["attention"][0], task.model.encoder.places)
    figures.compositions(folder, task, "slots", "decoded")


def parts_of(contents_NKCHW: Tensor, masks_NKHW: Tensor) -> np.ndarray:
    """The part that each slot adds to its picture, on white: bytes ``[N, K, H, W, 3]``."""
    parts_NKCHW = on_white(contents_NKCHW, masks_NKHW)
    return to_bytes(parts_NKCHW.flatten(0, 1)).unflatten(0, parts_NKCHW.shape[:2]).numpy()


def parts(path: Path, image_HWC: Tensor, contents_KCHW: Tensor, masks_KHW: Tensor) -> None:
    """Draw one scene: each slot's mask, what it would paint everywhere, and where it does."""
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
