"""The scores of programs: exact match, execution accuracy, token match accuracy.

"Execution accuracy" has several meanings in the literature. Here it is the assignment's: the value is within 2 % of the
problem's answer. `gold_value` beside it compares with the value of the known program, as other papers do.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from etude.metrics.proportion import half_width
from etude.studies.text2math.problems import Problem, is_right
from etude.studies.text2math.program import OPERATORS, Operator, ProgramError, Value, execute, numbers_of


@dataclass(frozen=True)
class Verdict:
    """The comparison of one predicted program with its problem.

    Attributes:
        value: the program's value; None where it has none.
        exact: the program is the known one, a last ``|`` aside.
        execution: the value is the answer within 2 %.
        gold_value: the value is that of the known program, but for rounding.
        tokens_right: how many tokens stand where the known program has the same.
        tokens: how many tokens the longer of the two programs has.
    """

    value: Value | None
    exact: bool
    execution: bool
    gold_value: bool
    tokens_right: int
    tokens: int


def canonical(program: str) -> str:
    """Return a program without one last ``|``."""
    return program.removesuffix("|")


def tokens_of(program: str) -> list[str]:
    """Return the tokens as the assignment counts them: names, parentheses, commas and bars; a last bar counts."""
    found: list[str] = []
    for text in canonical(program).split("|"):
        operator, _, rest = text.partition("(")
        found += [operator, "("]
        for place, argument in enumerate(rest.partition(")")[0].split(",")):
            found += [",", argument] if place else [argument]
        found += [")", "|"]
    return found


def judge(
    predicted: str, problem: Problem, *, course: bool = False, operators: Mapping[str, Operator] = OPERATORS
) -> Verdict:
    """Compare a predicted program with a problem; an empty one is wrong on all counts. ``course``: see `is_right`."""
    numbers = numbers_of(problem.text)
    value = value_of(predicted, numbers, operators)
    gold = value_of(problem.program, numbers, operators)
    mine, known = tokens_of(predicted) if predicted else [], tokens_of(problem.program)
    return Verdict(
        value,
        exact=bool(predicted) and canonical(predicted) == canonical(problem.program),
        execution=value is not None and is_right(value, problem.answer, course=course),
        gold_value=value is not None and gold is not None and _same(value, gold),
        tokens_right=sum(a == b for a, b in zip(mine, known, strict=False)),
        tokens=max(len(mine), len(known)),
    )


def value_of(program: str, numbers: Sequence[float], operators: Mapping[str, Operator] = OPERATORS) -> Value | None:
    """Return a program's value, or None where it has none."""
    try:
        return execute(program, numbers, operators)
    except ProgramError:
        return None


def _same(a: Value, b: Value) -> bool:
    if isinstance(a, complex) or isinstance(b, complex):
        return a == b
    try:
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
    except OverflowError:
        return a == b


def summary(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Return each metric's share over all problems, in per cent."""
    count, tokens = max(1, len(verdicts)), max(1, sum(verdict.tokens for verdict in verdicts))
    return {
        "exact": 100 * sum(verdict.exact for verdict in verdicts) / count,
        "execution": 100 * sum(verdict.execution for verdict in verdicts) / count,
        "gold_value": 100 * sum(verdict.gold_value for verdict in verdicts) / count,
        "token_match": 100 * sum(verdict.tokens_right for verdict in verdicts) / tokens,
    }


def interval(metric: str, share: float, count: int) -> float | None:
    """Return half the 95 % interval of a share of some problems, in per cent; None for what is no share of them all."""
    alone = metric in ("token_match", "brier", "right_at_80", "right_sure")
    return None if alone or not count else half_width(share, count)
