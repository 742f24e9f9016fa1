"""Verdicts on published numbers and on claims: what runs of several seeds show, by equivalence tests.

A verdict rests on the 95 % interval over seeds (Student's t), never on one run's own measurement: fewer pictures or
seeds make an interval wider, and a wider one never gives a better verdict.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Literal

Verdict = Literal["exceeds", "matches", "below", "one seed", "proxy", "not run"]
Place = Literal["above", "within", "below"]
ClaimVerdict = Literal["upheld", "not upheld", "contradicted", "not tested"]
Interval = tuple[float, float]

VERDICTS: tuple[Verdict, ...] = ("exceeds", "matches", "below", "one seed", "proxy", "not run")
SEEDS = 3
"""The fewest seeds from which anything is concluded."""


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of a mean over seeds; None for one value, which says nothing of its spread."""
    if len(values) < 2:
        return None
    # Slow to import, and rarely wanted.
    from scipy.stats import t as student  # pyright: ignore[reportMissingTypeStubs]

    quantile = float(student.ppf(0.975, len(values) - 1))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def interval_of(values: Sequence[float]) -> Interval:
    """The 95 % interval of a mean over seeds, without bounds where there is one value alone."""
    mean, width = statistics.fmean(values), half_width(values)
    return (-math.inf, math.inf) if width is None else (mean - width, mean + width)


def place(mean: float, published: float, margin: float, better: Literal["higher", "lower"]) -> Place:
    """The place of a mean: better than the published number by more than the margin, worse by more, or between."""
    gain = mean - published if better == "higher" else published - mean
    return "above" if gain > margin else "below" if gain < -margin else "within"


def judge(
    values: Sequence[float],
    published: float,
    margin: float,
    better: Literal["higher", "lower"] = "higher",
    *,
    proxy: bool = False,
) -> Verdict:
    """The verdict on a published number.

    Args:
        values: what was measured, one value a seed.
        published: the number of the source, in the same unit.
        margin: the difference that counts as none, from ``reference.toml``.
        better: the direction of the metric.
        proxy: other data, another encoder or another size stands in for the source's.

    Returns:
        "exceeds" where the whole interval is better by more than the margin; "matches" where none of it is worse by
        more than the margin; else "below". With fewer than three seeds "one seed", of a stand-in "proxy", of nothing
        "not run".
    """
    if not values:
        return "not run"
    if proxy:
        return "proxy"
    if len(values) < SEEDS:
        return "one seed"
    low, high = interval_of(values)
    worst = low - published if better == "higher" else published - high
    return "exceeds" if worst > margin else "matches" if worst >= -margin else "below"


def decide(intervals: Sequence[Interval], low: float = -math.inf, high: float = math.inf) -> ClaimVerdict:
    """The verdict on a claim that each of some differences lies between two bounds.

    Args:
        intervals: the 95 % interval of each difference over at least three seeds; none where it was not tested.
        low: the bound from below.
        high: the bound from above.

    Returns:
        "upheld" where every interval lies between the bounds, "contradicted" where one lies wholly outside, else
        "not upheld".
    """
    if not intervals:
        return "not tested"
    if any(upper < low or lower > high for lower, upper in intervals):
        return "contradicted"
    return "upheld" if all(low <= lower and upper <= high for lower, upper in intervals) else "not upheld"
