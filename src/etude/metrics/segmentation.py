"""The agreement of predicted segments with true ones, batched, on the device of the segments.

Two segmentations of an image are numbers a pixel; which number a segment has means nothing. All of it follows from the
table of how many pixels each predicted and each true segment share.

- ARI, the adjusted Rand index (Hubert and Arabie 1985): the share of pairs of pixels on which both agree, corrected for
  chance. 1: the same; 0: as by chance; it can be negative.
- FG-ARI: the same over the pixels of true objects alone, as is common for slots (Greff et al. 2019). It says nothing of
  how the background is cut up, and often moves against ARI.
- mIoU: true and predicted segments are paired so that the sum of intersections over unions is largest (Kuhn 1955;
  `scipy`), and the mean is over the pairs. CLEVRTex' evaluator (Karazija et al. 2021) has three: over all pairs of
  which either side is seen; the same without the background's, which is what the authors' table prints; and over the
  true segments alone, which asks nothing of surplus predictions.
- mBO: each true object with whatever prediction overlaps it best, background left out.

Shape suffixes: B images, N pixels, P predicted segments, T true segments, H height, W width.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

BACKGROUND = 0
"""The true segment that is no object."""


def shared_pixels(predicted_BN: Tensor, true_BN: Tensor) -> Tensor:
    """Count the pixels that each pair of segments shares.

    Args:
        predicted_BN: integers from 0; also ``[B, H, W]``.
        true_BN: integers from 0, of the same shape; gaps are allowed.

    Returns:
        int64 ``[B, P, T]``.
    """
    assert predicted_BN.shape == true_BN.shape, "segmentations of the same pixels"
    predicted_BN, true_BN = predicted_BN.flatten(1).long(), true_BN.flatten(1).long()
    if not predicted_BN.numel():
        return predicted_BN.new_zeros(len(predicted_BN), 1, 1)
    assert min(int(predicted_BN.min()), int(true_BN.min())) >= 0, "segments are numbered from 0"
    num_predicted, num_true = int(predicted_BN.max()) + 1, int(true_BN.max()) + 1
    table = predicted_BN.new_zeros(len(predicted_BN), num_predicted * num_true)
    table.scatter_add_(1, predicted_BN * num_true + true_BN, torch.ones_like(true_BN))
    return table.view(-1, num_predicted, num_true)


def ari(table_BPT: Tensor) -> Tensor:
    """Adjusted Rand index of each image of `shared_pixels`, float64 ``[B]``; 1 where there is nothing to tell apart."""
    table_BPT = table_BPT.long()
    total = table_BPT.sum((1, 2))
    # Pairs of pixels, ordered, of which both say together, or only one of them.
    both = table_BPT.square().sum((1, 2))
    predicted, true = table_BPT.sum(2).square().sum(1), table_BPT.sum(1).square().sum(1)
    together = both - total
    only_predicted, only_true = predicted - both, true - both
    neither = total * total - both - only_predicted - only_true
    over = 2 * (together.double() * neither - only_predicted.double() * only_true)
    under = (together + only_true).double() * (only_true + neither) + (together + only_predicted).double() * (
        only_predicted + neither
    )
    same = (only_predicted == 0) & (only_true == 0)
    return torch.where(same, 1.0, over / under.where(~same, 1.0))


def foreground_ari(table_BPT: Tensor, background: int = BACKGROUND) -> Tensor:
    """`ari` over the pixels of true objects, all segments but ``background``; nan where an image has none."""
    objects = table_BPT[:, :, [segment for segment in range(table_BPT.shape[2]) if segment != background]]
    return ari(objects).where(objects.sum((1, 2)) > 0, torch.nan)


def overlaps(table_BPT: Tensor) -> Tensor:
    """Intersection over union of each pair of segments, float64 ``[B, P, T]``; 0 where neither has pixels."""
    union = table_BPT.sum(2, keepdim=True) + table_BPT.sum(1, keepdim=True) - table_BPT
    return table_BPT.double() / union.clamp(min=1)


def pairs(table_BPT: Tensor) -> tuple[Tensor, Tensor]:
    """The best pairing of true segments with predicted ones, the shorter side filled up with empty segments.

    Returns:
        The overlap of each true segment's pair, float64 ``[B, K]``, and whether either side of it has pixels, bool
        ``[B, K]``; K is the larger of P and T.
    """
    from scipy.optimize import linear_sum_assignment

    missing = table_BPT.shape[2] - table_BPT.shape[1]
    table_BKK = functional.pad(table_BPT, (0, max(-missing, 0), 0, max(missing, 0)))
    overlaps_BTP = overlaps(table_BKK).mT.cpu()
    chosen = [linear_sum_assignment(overlap, maximize=True)[1] for overlap in overlaps_BTP.numpy()]
    predicted_BK = torch.from_numpy(np.array(chosen, np.int64).reshape(-1, table_BKK.shape[2]))
    best_BK = overlaps_BTP.gather(2, predicted_BK[..., None]).squeeze(2)
    seen_BK = (table_BKK.sum(1) > 0) | (table_BKK.sum(2) > 0).gather(1, predicted_BK.to(table_BPT.device))
    return best_BK.to(table_BPT.device), seen_BK


def miou(table_BPT: Tensor) -> Tensor:
    """The mean overlap of the pairs of which either side is seen, background included, float64 ``[B]``."""
    best_BK, seen_BK = pairs(table_BPT)
    return best_BK.sum(1) / seen_BK.sum(1)


def miou_fg(table_BPT: Tensor) -> Tensor:
    """`miou` without the background's pair, so that a surplus segment counts zero; nan where there is no other pair."""
    best_BK, seen_BK = (pair_BK[:, BACKGROUND + 1 :] for pair_BK in pairs(table_BPT))
    return best_BK.sum(1) / seen_BK.sum(1)


def miou_gt(table_BPT: Tensor) -> Tensor:
    """The sum of the pairs' overlaps by the number of true segments, whatever is predicted besides."""
    return pairs(table_BPT)[0].sum(1) / (table_BPT.sum(1) > 0).sum(1)


def mbo(table_BPT: Tensor, background: int = BACKGROUND) -> Tensor:
    """Mean best overlap of each image's true objects, float64 ``[B]``; nan where there are none."""
    present = table_BPT.sum(1) > 0
    if background < present.shape[1]:
        present[:, background] = False
    best = overlaps(table_BPT).amax(1)
    return (best * present).sum(1) / present.sum(1)


def squared_error(made_BCHW: Tensor, true_BCHW: Tensor) -> Tensor:
    """Squared error of each image, summed over pixels and channels in [0, 1], float64 ``[B]``, on the CPU."""
    # Some accelerators have no float64.
    exact = torch.float32 if made_BCHW.device.type == "mps" else torch.float64
    return (made_BCHW.to(exact) - true_BCHW.to(exact)).square().flatten(1).sum(1).cpu().double()
