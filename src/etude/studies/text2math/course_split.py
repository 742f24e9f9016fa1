"""The course's split of MathQA: those problems whose program gives the number in their correct option."""

import ast
import contextlib
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etude.data import mathqa
from etude.studies.text2math.problems import Problem, Split, is_right, read_json
from etude.studies.text2math.program import ProgramError, execute, numbers_of

# Signs of an option, beside letters and spaces, that are no part of its number.
_DROPPED = "$£€₹¢¥%°='\"[]"


def admitted(rows: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Return the problems of the official rows whose program gives the number in their correct option."""
    found: list[Problem] = []
    for row in rows:
        answer = answer_of(row["options"], row["correct"])
        with contextlib.suppress(ProgramError):
            if answer is not None and is_right(execute(row["linear_formula"], numbers_of(row["Problem"])), answer):
                found.append(Problem(row["Problem"], row["linear_formula"], answer))
    return found


def answer_of(options: str, correct: str) -> float | None:
    """Return the number in the correct one of a row's options, or None where the filter reads none.

    The options are such as ``"a ) 38 , b ) 1 : 2 , c ) rs . 30"``, or the text of a list of such.
    """
    if "\N{MINUS SIGN}" in options:
        return None
    # Some options carry their letter twice.
    letter = rf"\s*{re.escape(correct)}\s*\)"
    found = [
        match[1] for part in options.split(",") if (match := re.match(rf"[\s\['\"]*{letter}(?:{letter})?(.*)", part))
    ]
    if not found:
        return None
    kept = [sign for sign in found[0] if not (sign.isspace() or sign.isalpha() or sign in _DROPPED)]
    plain = "".join(kept).replace(":", "/").strip(".")
    return None if plain.startswith("-") and not plain[1:].isdigit() else arithmetic(plain)


_OPERATIONS: Mapping[type[ast.AST], Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.UAdd: operator.pos, ast.USub: operator.neg,
}  # fmt: skip


def arithmetic(text: str) -> float | None:
    """Return the value of a text of numbers, ``+ - * /`` and parentheses; None for any other text."""
    tokens = re.findall(r"\d+\.?\d*|\.\d+|[-+*/()]", text)
    if len(tokens) > 100 or "".join(tokens) != text:
        return None
    # As floats without leading zeros, and apart, so that no two signs make one.
    plain = " ".join(token if token in "-+*/()" else repr(float(token)) for token in tokens)

    def value(node: ast.AST) -> float:
        match node:
            case ast.Constant(float(number)):
                return number
            case ast.UnaryOp(sign, operand):
                return _OPERATIONS[type(sign)](value(operand))
            case ast.BinOp(left, sign, right):
                return _OPERATIONS[type(sign)](value(left), value(right))
            case _:
                raise ValueError("a call, a tuple or a number that no float holds")

    try:
        return value(ast.parse(plain, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


# Rows of the official files that the rule admits and the course's files do not have.
_LEFT_OUT: Mapping[str, frozenset[int]] = {
    "train": frozenset(),
    "dev": frozenset({723}),
    "test": frozenset({9, 302, 450, 915, 1084, 1119, 1343, 1359, 1518, 1732, 1950, 2150, 2291, 2667, 2812, 2824})
    | frozenset(range(2971, 2985)),
}


def course_split(split: Split) -> list[Problem]:
    """Return the course's filtered split: 19,791, 2,961 and 1,925 problems.

    They are those of its own files where these are at hand, else of the official archive: dev and test then are the
    same problems, in the same order, with the same answers; of train the rule may admit some more.
    """
    copies = mathqa.filtered_copies()
    if copies is not None:
        return read_json(copies[split])
    rows = mathqa.official_rows(split)
    return admitted([row for place, row in enumerate(rows) if place not in _LEFT_OUT[split]])
