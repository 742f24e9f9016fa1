"""What a split's reconstructions and masks are worth, image by image, and what goes wrong with slots.

Shape suffixes: B images, K slots, H W pixels, T true segments.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from etude.core.runtime import Runtime
from etude.metrics import segmentation

QUALITY = ("ari", "fg_ari", "miou", "mbo", "mse")
"""How good; see `etude.metrics.segmentation`."""
EMPTY = 0.001
"""A slot with less of an image's pixels holds nothing."""
SPLIT = 0.05
"""A slot with more of the background's pixels has part in it."""
FEW = 1e-2
"""Starts that differ by less of their size have collapsed."""

ABOUT = {
    "ari": "all pixels, the background a segment",
    "fg_ari": "pixels of objects",
    "miou": "Hungarian pairs, background included",
    "mbo": "objects",
    "mse": "summed over pixels and colours of [0, 1]",
    "empty": "slots with under .1 % of the pixels",
    "background_slots": "slots with over 5 % of the background",
    "background_share": "of the slot that has most",
}
"""What each number of `Scores` is of, for a result's protocol."""

_log = logging.getLogger("etude")


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
        return half_width(self.of_image[name])


def half_width(values_N: Tensor) -> float | None:
    """Half of the 95 % interval of a mean over images, those without a number left out; None of fewer than two."""
    values_N = values_N[~values_N.isnan()]
    return 1.96 * values_N.std().item() / len(values_N) ** 0.5 if len(values_N) > 1 else None


def segments(masks_BKHW: Tensor) -> Tensor:
    """Which slot has most of each pixel: int64 ``[B, H, W]``."""
    return masks_BKHW.argmax(1)


def score(
    segments_BHW: Tensor, true_BHW: Tensor, made_BCHW: Tensor | None, images_BCHW: Tensor | None, num_slots: int
) -> Scores:
    """Compare a batch.

    Args:
        segments_BHW: which slot has most of a pixel.
        true_BHW: true masks, 0 the background.
        made_BCHW: reconstructions in [0, 1]; None: there are none, and ``mse`` is nan.
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
    error_B = torch.full_like(background_B, torch.nan)
    if made_BCHW is not None and images_BCHW is not None:
        error_B = segmentation.squared_error(made_BCHW, images_BCHW)
    numbers = {
        "ari": segmentation.ari(table_BKT),
        "fg_ari": segmentation.foreground_ari(table_BKT),
        "miou": segmentation.miou(table_BKT),
        "mbo": segmentation.mbo(table_BKT),
        "mse": error_B,
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


def sameness(slots_BKS: Tensor) -> Tensor:
    """The mean cosine of two slots of each image, ``[B]``: near 1 where all are the same."""
    unit_BKS = torch.nn.functional.normalize(slots_BKS.float(), dim=-1)
    count = slots_BKS.shape[1]
    cosine_BKK = unit_BKS @ unit_BKS.mT
    return (cosine_BKK.sum((1, 2)) - count) / (count * (count - 1))


def gathered(runtime: Runtime, parts: Sequence[Scores], count: int, num_slots: int) -> Scores:
    """Scores of all images, of which each process has its share.

    Args:
        runtime: of the processes.
        parts: of this one's images, in order.
        count: of all images.
        num_slots: K.
    """

    def together(rows: list[Tensor], empty: Tensor) -> Tensor:
        local = torch.cat(rows) if rows else empty
        if runtime.device.type == "mps" and local.dtype == torch.float64:
            local = local.float()
        return runtime.gather(local.to(runtime.device), count).cpu()

    of_image = {
        name: together([part.of_image[name] for part in parts], torch.zeros(0, dtype=torch.float64)) for name in ABOUT
    }
    pixels_BK = together([part.pixels_BK for part in parts], torch.zeros(0, num_slots, dtype=torch.int64))
    return Scores(of_image, pixels_BK)


class Watch:
    """Says what has gone wrong with the slots, each fault once until it is over.

    Args:
        num_slots: K.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._told: set[str] = set()

    def tell(self, rows: Mapping[str, float], *, aloud: bool = True) -> None:
        """Warn of what is new.

        Args:
            rows: of an evaluation: ``dead``, ``background_slots``, ``largest``, ``sameness``, and ``spread`` of the
                starts.
            aloud: whether this process speaks.
        """
        num_slots = self._num_slots
        faults = {
            "dead": (
                rows["dead"] > num_slots / 2,
                f"{rows['dead']:.0f} of {num_slots} slots hold nothing in any scene",
            ),
            "split": (
                rows["background_slots"] >= 3,
                f"{rows['background_slots']:.1f} slots share a scene's background, which sinks ARI",
            ),
            "largest": (
                rows["largest"] > 0.95,
                f"one slot has {100 * rows['largest']:.0f} % of a scene, so the others nothing",
            ),
            "same": (rows["sameness"] > 0.99, "the slots of a scene are all but the same"),
            "spread": (rows["spread"] < FEW, "the starts of the slots have become one"),
        }
        for name, (wrong, text) in faults.items():
            if wrong and name not in self._told and aloud:
                _log.warning("%s", text)
            self._told = self._told | {name} if wrong else self._told - {name}
