"""Scores of a split's reconstructions and masks, image by image, and what goes wrong with slots.

Shape suffixes: B images, K slots, H W pixels, T true segments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from etude.core.runtime import Runtime
from etude.metrics import segmentation

EMPTY = 0.001
"""The share of an image's pixels below which a slot holds nothing."""
SPLIT = 0.05
"""The share of the background's pixels above which a slot has part in it."""
FEW = 1e-2
"""The spread of the starts, as a share of their size, below which they have collapsed."""

ABOUT = {
    "ari": "all pixels, the background a segment",
    "fg_ari": "pixels of objects",
    "miou": "Hungarian pairs, all that either side shows, background included",
    "miou_fg": "the same without the background; a surplus slot counts zero",
    "miou_gt": "over the true segments, background included",
    "mbo": "objects",
    "mse": "summed over pixels and colours of [0, 1]",
    "empty": "slots with under .1 % of the pixels",
    "background_slots": "slots with over 5 % of the background",
    "background_share": "of the slot that has most",
}
"""A description of each number of `Scores`, for a result's protocol."""


@dataclass(frozen=True)
class Scores:
    """The numbers of each image."""

    of_image: Mapping[str, Tensor]
    """The numbers that `ABOUT` describes, float64 ``[B]``; nan where an image has no object, or no background."""
    pixels_BK: Tensor
    """The count of pixels that each slot has most of, int64."""

    def means(self) -> dict[str, float]:
        """The mean over the images for which there is a number, nan where there is none."""
        return {name: values.nanmean().item() for name, values in self.of_image.items()}


def half_width(values_N: Tensor) -> float | None:
    """Half of the 95 % interval of a mean over images, those without a number left out; None of fewer than two."""
    values_N = values_N[~values_N.isnan()]
    return 1.96 * values_N.std().item() / len(values_N) ** 0.5 if len(values_N) > 1 else None


def segments(masks_BKHW: Tensor) -> Tensor:
    """The slot that has most of each pixel: int64 ``[B, H, W]``."""
    return masks_BKHW.argmax(1)


def score(
    segments_BHW: Tensor, true_BHW: Tensor, made_BCHW: Tensor | None, images_BCHW: Tensor | None, num_slots: int
) -> Scores:
    """Compare a batch.

    Args:
        segments_BHW: see `segments`.
        true_BHW: true masks, 0 the background.
        made_BCHW: reconstructions in [0, 1]; None: there are none, and ``mse`` is nan.
        images_BCHW: the pictures that were reconstructed, likewise.
        num_slots: K.
    """
    # Counted on the device; what follows is small, and wants float64, which not every accelerator has.
    table_BKT = segmentation.shared_pixels(segments_BHW, true_BHW).cpu()
    short = num_slots - table_BKT.shape[1]
    if short > 0:
        table_BKT = torch.cat([table_BKT, table_BKT.new_zeros(len(table_BKT), short, table_BKT.shape[2])], 1)
    pixels_BK = table_BKT.sum(2)
    background_BK = table_BKT[:, :, segmentation.BACKGROUND].double()
    background_B = background_BK.sum(1)
    share_BK = background_BK / background_B.where(background_B > 0, torch.nan)[:, None]
    error_B = torch.full_like(background_B, torch.nan)
    if made_BCHW is not None and images_BCHW is not None:
        error_B = segmentation.squared_error(made_BCHW, images_BCHW)
    numbers = {
        "ari": segmentation.ari(table_BKT),
        "fg_ari": segmentation.foreground_ari(table_BKT),
        "miou": segmentation.miou(table_BKT),
        "miou_fg": segmentation.miou_fg(table_BKT),
        "miou_gt": segmentation.miou_gt(table_BKT),
        "mbo": segmentation.mbo(table_BKT),
        "mse": error_B,
        "empty": (pixels_BK < EMPTY * pixels_BK.sum(1, keepdim=True)).sum(1).double(),
        "background_slots": (share_BK > SPLIT).sum(1).double().where(background_B > 0, torch.nan),
        "background_share": share_BK.amax(1),
    }
    return Scores(numbers, pixels_BK)


def dead(pixels_BK: Tensor) -> int:
    """The number of slots that hold nothing in every image; of slots that are drawn anew for each none would."""
    return int((pixels_BK < EMPTY * pixels_BK.sum(1, keepdim=True)).all(0).sum())


def largest(pixels_BK: Tensor) -> float:
    """The share of an image that its largest slot has, in the mean over images: near 1, it has all of it."""
    return (pixels_BK.amax(1) / pixels_BK.sum(1)).double().mean().item()


def sameness(slots_BKS: Tensor) -> Tensor:
    """The mean cosine of two slots of each image, ``[B]``: near 1 where all are the same."""
    unit_BKS = torch.nn.functional.normalize(slots_BKS.float(), dim=-1)
    count = slots_BKS.shape[1]
    cosine_BKK = unit_BKS @ unit_BKS.mT
    return (cosine_BKK.sum((1, 2)) - count) / (count * (count - 1))


def gathered(runtime: Runtime, parts: Sequence[Scores], count: int, num_slots: int) -> Scores:
    """The scores of all images, ``count`` of them, of which each process has a share, in parts."""

    def together(rows: list[Tensor], empty: Tensor) -> Tensor:
        local = torch.cat([empty, *rows])
        if runtime.device.type == "mps" and local.dtype == torch.float64:
            local = local.float()
        return runtime.gather(local.to(runtime.device), count).cpu()

    empty = torch.zeros(0, dtype=torch.float64)
    of_image = {name: together([part.of_image[name] for part in parts], empty) for name in ABOUT}
    empty_BK = torch.zeros(0, num_slots, dtype=torch.int64)
    return Scores(of_image, together([part.pixels_BK for part in parts], empty_BK))


def faults(rows: Mapping[str, float], num_slots: int) -> dict[str, str]:
    """The faults of the slots, in words by name.

    Args:
        rows: of an evaluation: ``dead``, ``background_slots``, ``largest``, ``sameness``, and ``spread`` of the starts.
        num_slots: K.
    """
    found: dict[str, str] = {}
    if rows["dead"] > num_slots / 2:
        found["dead"] = f"{rows['dead']:.0f} of {num_slots} slots hold nothing in any scene"
    if rows["background_slots"] >= 3:
        found["split"] = f"{rows['background_slots']:.1f} slots share a scene's background, which sinks ARI"
    if rows["largest"] > 0.95:
        found["largest"] = f"one slot has {100 * rows['largest']:.0f} % of a scene, so the others nothing"
    if rows["sameness"] > 0.99:
        found["same"] = "the slots of a scene are all but the same"
    if rows["spread"] < FEW:
        found["spread"] = "the starts of the slots have become one"
    return found
