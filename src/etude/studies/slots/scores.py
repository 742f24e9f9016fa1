"""What a split's reconstructions and masks are worth, image by image, and what goes wrong with slots.

Shape suffixes: B images, K slots, H W pixels, T true segments.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from etude.metrics import segmentation

QUALITY = ("ari", "fg_ari", "miou", "mbo", "mse")
"""How good; see `etude.metrics.segmentation`."""
EMPTY = 0.001
"""A slot with less of an image's pixels holds nothing."""
SPLIT = 0.05
"""A slot with more of the background's pixels has part in it."""


@dataclass(frozen=True)
class Scores:
    """Numbers of each image.

    Attributes:
        of_image: by name, float64 ``[B]``: those of `QUALITY`; ``empty``, how many slots hold nothing;
            ``background_slots``, how many share the background; ``background_share``, what the one that has most of it
            has. nan where an image has no object, or no background.
        pixels_BK: how many pixels each slot has most of, int64.
    """

    of_image: Mapping[str, Tensor]
    pixels_BK: Tensor

    def means(self) -> dict[str, float]:
        """The mean over the images for which there is a number, nan where there is none."""
        return {name: values.nanmean().item() for name, values in self.of_image.items()}

    def half_width(self, name: str) -> float | None:
        """Half of the 95 % interval of a mean over images; None of fewer than two."""
        values = self.of_image[name]
        values = values[~values.isnan()]
        return 1.96 * values.std().item() / len(values) ** 0.5 if len(values) > 1 else None


def score(segments_BHW: Tensor, true_BHW: Tensor, made_BCHW: Tensor, images_BCHW: Tensor, num_slots: int) -> Scores:
    """Compare a batch.

    Args:
        segments_BHW: which slot has most of a pixel.
        true_BHW: true masks, 0 the background.
        made_BCHW: reconstructions in [0, 1].
        images_BCHW: what they are of, likewise.
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
    has = background_B > 0
    numbers = {
        "ari": segmentation.ari(table_BKT),
        "fg_ari": segmentation.foreground_ari(table_BKT),
        "miou": segmentation.miou(table_BKT),
        "mbo": segmentation.mbo(table_BKT),
        "mse": segmentation.squared_error(made_BCHW, images_BCHW),
        "empty": (pixels_BK < EMPTY * pixels_BK.sum(1, keepdim=True)).sum(1).double(),
        "background_slots": (share_BK > SPLIT).sum(1).double().where(has, torch.nan),
        "background_share": share_BK.amax(1),
    }
    return Scores(numbers, pixels_BK)


def dead(pixels_BK: Tensor) -> int:
    """How many slots hold nothing in every image; of slots that are drawn anew for each none would."""
    return int((pixels_BK < EMPTY * pixels_BK.sum(1, keepdim=True)).all(0).sum())


def largest(pixels_BK: Tensor) -> float:
    """The share of an image that its largest slot has, in the mean over images: near 1, it has all of it."""
    return (pixels_BK.amax(1) / pixels_BK.sum(1)).double().mean().item()


def sameness(slots_BKS: Tensor) -> float:
    """The mean cosine of two slots of an image: near 1 where all are the same."""
    unit_BKS = torch.nn.functional.normalize(slots_BKS.float(), dim=-1)
    count = slots_BKS.shape[1]
    cosine_BKK = unit_BKS @ unit_BKS.mT
    return ((cosine_BKK.sum((1, 2)) - count) / (count * (count - 1))).mean().item()
