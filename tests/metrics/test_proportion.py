"""Intervals of shares."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from etude.metrics.proportion import half_width, wilson


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_scipys(drawn: tuple[int, int]) -> None:
    successes, count = drawn
    theirs = binomtest(successes, count).proportion_ci(0.95, "wilson")
    assert wilson(successes / count, count) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_none_of_a_few_is_not_surely_none() -> None:
    low, high = wilson(0.0, 352)
    assert low == 0
    assert high == pytest.approx(1.959964**2 / (352 + 1.959964**2))
    assert half_width(0.0, 352) == pytest.approx(100 * high)
    assert half_width(100.0, 352) == pytest.approx(100 * high)


def test_in_the_middle_it_is_nearly_the_normal_one() -> None:
    assert half_width(50.0, 1925) == pytest.approx(196 * math.sqrt(0.25 / 1925), rel=2e-3)


def test_it_shrinks_with_the_count() -> None:
    assert half_width(70.0, 4000) < half_width(70.0, 1000) < half_width(70.0, 10)
