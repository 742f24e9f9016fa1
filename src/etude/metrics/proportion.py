"""Confidence intervals of a share of independent trials."""

import math

_Z = 1.959963984540054
"""The normal distribution's 97.5 % point."""


def wilson(share: float, count: int) -> tuple[float, float]:
    """Both ends of Wilson's 95 % score interval (1927) of a probability, from the share of ``count`` trials.

    It is never empty at 0 or 1, unlike the plain normal one.
    """
    assert 0 <= share <= 1
    assert count >= 1
    weight = _Z * _Z / count
    middle = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    # Rounding must not leave 0 or 1 outside.
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def half_width(per_cent: float, count: int) -> float:
    """The distance from a percentage to the farther end of its `wilson` interval, in percentage points."""
    low, high = wilson(min(1.0, max(0.0, per_cent / 100)), count)
    return max(per_cent - 100 * low, 100 * high - per_cent)
