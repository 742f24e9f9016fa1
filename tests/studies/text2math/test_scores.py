"""How programs are judged."""

import math

import pytest

from etude.studies.text2math.problems import Problem
from etude.studies.text2math.scores import canonical, judge, summary, tokens_of, value_of

SPEED = Problem("a train runs 120 km in 1.5 hours .", "divide(n0,n1)|", 80.0)


@pytest.mark.parametrize(
    ("predicted", "exact", "execution", "gold_value"),
    [
        ("divide(n0,n1)|", True, True, True),
        ("divide(n0,n1)", True, True, True),
        ("divide(n0,n1)||", False, True, True),
        ("speed(n0,n1)|", False, True, True),
        # Within 2 % of the answer, and not the known program's value.
        ("subtract(n0,const_40)|add(#0,const_1)|", False, True, False),
        ("subtract(n0,const_40)|add(#0,const_2)|", False, False, False),
        ("divide(n0,n7)|", False, False, False),
        ("divide(n0,", False, False, False),
        ("", False, False, False),
    ],
)
def test_the_three_meanings(predicted: str, exact: bool, execution: bool, gold_value: bool) -> None:
    verdict = judge(predicted, SPEED)
    assert (verdict.exact, verdict.execution, verdict.gold_value) == (exact, execution, gold_value)


def test_what_is_no_number_is_wrong_but_for_the_courses_checker() -> None:
    # 0 * inf, from a number that no float holds.
    problem = Problem(f"1{'0' * 400} and 0 .", "add(n1,const_1)|", 1.0)
    assert math.isnan(float(value_of("multiply(n0,n1)|", [math.inf, 0.0]) or 0))  # pyright: ignore[reportArgumentType]
    assert not judge("multiply(n0,n1)|", problem).execution
    assert judge("multiply(n0,n1)|", problem, course=True).execution


def test_a_complex_value_is_wrong() -> None:
    problem = Problem("5 and 9 .", "subtract(n0,n1)|sqrt(#0)|", 2.0)
    verdict = judge("subtract(n0,n1)|sqrt(#0)|", problem)
    assert verdict.exact
    assert verdict.gold_value
    assert not verdict.execution


def test_tokens_are_counted_as_the_assignment_counts_them() -> None:
    assert tokens_of("divide(n1,n0)|") == ["divide", "(", "n1", ",", "n0", ")", "|"]
    assert tokens_of("sqrt(n0)") == ["sqrt", "(", "n0", ")", "|"]


def test_token_match_by_hand() -> None:
    verdict = judge("divide(n1,n1)|", SPEED)
    assert (verdict.tokens_right, verdict.tokens) == (6, 7)
    longer = judge("divide(n0,n1)|sqrt(#0)|", SPEED)
    assert (longer.tokens_right, longer.tokens) == (7, 12)
    assert judge("", SPEED).tokens_right == 0


def test_shares() -> None:
    verdicts = [judge(program, SPEED) for program in ("divide(n0,n1)|", "speed(n0,n1)|", "", "add(n0,n1)|")]
    found = summary(verdicts)
    assert found["exact"] == 25
    assert found["execution"] == 50
    assert found["gold_value"] == 50
    assert found["token_match"] == pytest.approx(100 * (7 + 6 + 0 + 6) / 28)
    assert set(summary([]).values()) == {0.0}


def test_only_one_bar_is_ignored() -> None:
    assert canonical("a(b)|") == canonical("a(b)")
    assert canonical("a(b)||") != canonical("a(b)|")
