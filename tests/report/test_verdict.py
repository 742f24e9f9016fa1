"""Verdicts: by hand, and that less evidence never gives a better one."""

import math
import statistics
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from etude.report.verdict import VERDICTS, decide, judge, place

NUMBERS = st.floats(-100, 100)
# How good a verdict is: what concludes nothing is no better than "below".
RANK = {"exceeds": 2, "matches": 1, "below": 0, "one seed": 0, "proxy": 0, "not run": 0}


def three(mean: float, spread: float) -> list[float]:
    return [mean - spread, mean, mean + spread]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([], "not run"),
        ([99.0], "one seed"),
        ([99.0, 99.0], "one seed"),
        (three(96.0, 0.05), "matches"),
        (three(95.9, 0.05), "matches"),
        (three(95.8, 0.3), "below"),
        (three(96.0, 0.5), "below"),
        (three(96.25, 0.05), "matches"),
        (three(97.0, 0.1), "exceeds"),
        (three(97.0, 0.2), "exceeds"),
        (three(97.0, 0.4), "matches"),
        (three(95.0, 0.1), "below"),
    ],
)
def test_the_verdict_on_96_within_a_margin_of_three_tenths(values: list[float], verdict: str):
    assert judge(values, 96.0, 0.3) == verdict
    mirrored = [192.0 - value for value in values]
    assert judge(mirrored, 96.0, 0.3, "lower") == verdict
    assert judge(values, 96.0, 0.3, proxy=True) == ("proxy" if values else "not run")


@given(values=st.lists(NUMBERS, max_size=5), published=NUMBERS, margin=st.floats(0, 10), proxy=st.booleans())
def test_a_verdict_is_of_the_closed_set_and_needs_three_seeds(
    values: list[float], published: float, margin: float, proxy: bool
):
    verdict = judge(values, published, margin, proxy=proxy)
    assert verdict in VERDICTS
    if len(values) < 3 or proxy:
        assert RANK[verdict] == 0


@given(
    values=st.lists(NUMBERS, min_size=3, max_size=6), published=NUMBERS, margin=st.floats(0, 10),
    wider=st.floats(1.01, 10), better=st.sampled_from(["higher", "lower"]),
)  # fmt: skip
def test_a_wider_spread_never_gives_a_better_verdict(
    values: list[float], published: float, margin: float, wider: float, better: Any
):
    mean = statistics.fmean(values)
    assume(max(values) - min(values) > 1e-6)
    spread = [mean + wider * (value - mean) for value in values]
    assert RANK[judge(spread, published, margin, better)] <= RANK[judge(values, published, margin, better)]


@given(values=st.lists(NUMBERS, min_size=3, max_size=6), published=NUMBERS, margin=st.floats(0, 10))
def test_fewer_seeds_of_the_same_spread_never_give_a_better_verdict(
    values: list[float], published: float, margin: float
):
    """Each value twice has the same mean, and half as much evidence where the copies go."""
    assume(max(values) - min(values) > 1e-6)
    more = RANK[judge([*values, *values], published, margin)]
    assert RANK[judge(values, published, margin)] <= more
    assert RANK[judge(values[:2], published, margin)] <= more


def test_where_a_mean_lies():
    places = [place(value, 96.0, 0.3, "higher") for value in (95.6, 95.8, 96.2, 96.4)]
    assert places == ["below", "within", "within", "above"]
    assert place(95.6, 96.0, 0.3, "lower") == "above"


def test_claims_by_hand():
    assert decide([], 0.0) == "not tested"
    assert decide([(0.1, 2.0)], 0.0) == "upheld"
    assert decide([(-0.1, 2.0)], 0.0) == "not upheld"
    assert decide([(-2.0, -0.1)], 0.0) == "contradicted"
    assert decide([(0.1, 2.0), (-0.1, 1.0)], 0.0) == "not upheld"
    assert decide([(0.1, 2.0), (-2.0, -1.0)], 0.0) == "contradicted"
    assert decide([(-1.0, 1.0)], -2.0, 2.0) == "upheld"
    assert decide([(1.0, 3.0)], -2.0, 2.0) == "not upheld"
    assert decide([(2.5, 3.0)], -2.0, 2.0) == "contradicted"
    assert decide([(-math.inf, math.inf)], 0.0) == "not upheld"
