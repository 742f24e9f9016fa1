"""Images with one class each, and how they are split.

Shapes: N images, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from etude.core.randomness import generator


@dataclass(frozen=True)
class LabelledImages:
    """Colour images of one size with their classes.

    Attributes:
        images_NHWC: uint8 ``[N, H, W, 3]``.
        labels_N: int64 ``[N]``, places in ``classes``.
        classes: the classes' names.
        names: one an image: its path in its folder with ``/``, or its index as text.
    """

    images_NHWC: Tensor
    labels_N: Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        assert self.images_NHWC.dtype == torch.uint8
        assert self.images_NHWC.ndim == 4
        assert self.images_NHWC.shape[-1] == 3
        assert self.labels_N.dtype == torch.int64
        assert len(self.images_NHWC) == len(self.labels_N) == len(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows_N: Tensor | Sequence[int]) -> "LabelledImages":
        """A copy of some images, in the order of their rows; the classes stay."""
        rows = rows_N.tolist() if isinstance(rows_N, Tensor) else list(rows_N)
        index = torch.tensor(rows, dtype=torch.int64)
        names = tuple(self.names[row] for row in rows)
        return LabelledImages(self.images_NHWC[index], self.labels_N[index], self.classes, names)


def stratified(labels_N: Tensor, shares: Sequence[float], seed: int) -> list[Tensor]:
    """Split every class by itself, at random.

    A class's counts are its shares rounded by largest remainder; a class with at least as many images as there are
    shares gives at least one to each share above zero.

    Args:
        labels_N: int64 ``[N]``.
        shares: each part's; not negative, together one.
        seed: the same seed gives the same parts, and a class's parts do not depend on the other classes.

    Returns:
        Rows of each part, int64, ascending. Every row is in one part.
    """
    assert all(share >= 0 for share in shares)
    assert abs(sum(shares) - 1) < 1e-6
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in labels_N.unique().tolist():
        rows = torch.nonzero(labels_N == label).flatten()
        rows = rows[torch.randperm(len(rows), generator=generator(seed, "split", label))]
        for part, chosen in zip(parts, rows.split(_counts(len(rows), shares)), strict=True):
            part.append(chosen)
    return [torch.cat([*part, torch.empty(0, dtype=torch.int64)]).sort().values for part in parts]


def _counts(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers near ``total * share`` whose sum is ``total``."""
    # Floating point puts 0.7 * 10 below 7: what is a whole number but for that is one.
    quotas = [round(total * share, 6) for share in shares]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda part: round(counts[part] - quotas[part], 6))
    for part in by_remainder[: total - sum(counts)]:
        counts[part] += 1
    for part, share in enumerate(shares):
        if share > 0 and counts[part] == 0 and total >= len(shares):
            counts[counts.index(max(counts))] -= 1
            counts[part] = 1
    return counts
