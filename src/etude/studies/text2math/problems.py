"""Word problems with their programs and answers: the course's JSON form, and its split of MathQA."""

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from etude.core.errors import UserError
from etude.data import mathqa
from etude.studies.text2math.program import ProgramError, TooLarge, UndefinedValue, Value, execute, numbers_of, parse
from etude.studies.text2math.tokens import MAX_NUMBERS

TOLERANCE = 0.02
"""A value within this share of the answer counts as the answer."""
MAX_WORDS = 1000
"""Longer problems are refused; the longest of the data set has 356."""

# Of an option, beside letters and spaces.
_DROPPED = "$£€₹¢¥%°='\"[]"

Split = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Problem:
    """A word problem.

    Attributes:
        text: as written.
        program: a linear program; empty where none is known.
        answer: a number, or NaN where none is known.
    """

    text: str
    program: str = ""
    answer: float = math.nan


def is_right(value: Value, answer: float, *, course: bool = False) -> bool:
    """Whether a program's value counts as the answer: real, and off by at most 2 % of it.

    Args:
        value: what the program gave.
        answer: the expected number; an answer of zero is met by nothing, as in the course's checker.
        course: count what is not a number as right, as the course's checker does.
    """
    if isinstance(value, complex):
        return False
    try:
        off = abs((value - answer) / answer)
    except (ZeroDivisionError, OverflowError):
        return False
    return not off > TOLERANCE if course else off <= TOLERANCE


# The course's JSON


def read_json(path: Path, *, needs: Sequence[str] = ("Problem", "linear_formula", "answer")) -> list[Problem]:
    """The problems of a file in the course's form: a list of objects with Problem, linear_formula and answer.

    Args:
        path: the file.
        needs: the fields that every object must have.

    Raises:
        UserError: the file cannot be read or is not of that form; the line is named.
    """
    return [problem_of(row, needs, f"{path}, line {line}") for line, row in rows_of(path)]


def rows_of(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The objects of a JSON list with the line that each begins on."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or type(error).__name__})") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: this is no text in UTF-8 ({error.reason})") from error
    decoder, line, counted = json.JSONDecoder(), 1, 0
    space, more = re.compile(r"\s*"), False

    def skip(at: int) -> int:
        found = space.match(text, at)
        assert found is not None
        return found.end()

    def fault(at: int, wanted: str) -> UserError:
        return UserError(f"{path}, line {text.count(chr(10), 0, at) + 1}: {wanted}")

    place = skip(text.startswith("\ufeff"))
    if text[place : place + 1] != "[":
        raise fault(place, "a list of problems is wanted: [ {...}, {...} ]")
    place = skip(place + 1)
    while more or text[place : place + 1] != "]":
        line += text.count("\n", counted, place)
        counted = place
        try:
            row, place = decoder.raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError) as error:
            at = error.pos if isinstance(error, json.JSONDecodeError) else place
            raise fault(at, "this is no JSON here" if at < len(text) else "the file ends within the list") from None
        except ValueError:
            raise fault(place, "this object has a number of too many digits") from None
        if not isinstance(row, dict):
            raise fault(counted, f"an object {{...}} is wanted, not {_kind(row)}")
        if _SURROGATE.search(text, counted, place) and not is_text(json.dumps(row, ensure_ascii=False)):
            raise fault(counted, "this object has half a sign (a lone \\ud800 or the like), which no text holds")
        yield line, row
        place = skip(place)
        more = text[place : place + 1] == ","
        if more:
            place = skip(place + 1)
        elif text[place : place + 1] != "]":
            raise fault(place, "a comma or ] is wanted after an object")
    place = skip(place + 1)
    if place < len(text):
        raise fault(place, "the list has ended, and more follows")


# How JSON spells either half of a sign above U+FFFF.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it: it has no half of a sign, as bytes of another encoding become on the command line."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def problem_of(row: Mapping[str, Any], needs: Sequence[str], where: str) -> Problem:
    """The problem of an object; `UserError`, which names ``where`` it stands, for one not of the form."""
    for name in needs:
        if name not in row:
            raise UserError(f"{where}: the object has no field '{name}'")
    text, program, answer = row.get("Problem", ""), row.get("linear_formula", ""), row.get("answer", math.nan)
    for name, value in (("Problem", text), ("linear_formula", program)):
        if not isinstance(value, str):
            raise UserError(f"{where}: '{name}' must be a text, not {_kind(value)}")
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        raise UserError(f"{where}: 'answer' must be a number, not {_kind(answer)}")
    try:
        return Problem(text, program, float(answer))
    except OverflowError:
        raise UserError(f"{where}: 'answer' is too large for a number") from None


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")


# An argument that a network can learn to write.
_ARGUMENT = re.compile(r"[n#](0|[1-9]\d*)|const_.+")


def read_learnable(path: Path) -> list[Problem]:
    """As `read_json`; every program must be one that a network can learn, though it may lack a value.

    Raises:
        UserError: a program that the language does not know, or with a number past those that have an index; the line
            is named.
    """
    found: list[Problem] = []
    for line, row in rows_of(path):
        where = f"{path}, line {line}"
        problem = problem_of(row, ("Problem", "linear_formula", "answer"), where)
        try:
            steps = parse(problem.program)
            with contextlib.suppress(UndefinedValue, TooLarge):
                execute(steps, numbers_of(problem.text))
        except ProgramError as error:
            raise UserError(f"{where}: 'linear_formula' cannot be learned: {error}") from error
        for argument in (argument for step in steps for argument in step.arguments):
            if not _ARGUMENT.fullmatch(argument):
                raise UserError(f"{where}: 'linear_formula' cannot be learned: write '{argument}' as n0, #0 or const_1")
            if argument[0] == "n" and int(argument[1:]) >= MAX_NUMBERS:
                raise UserError(f"{where}: 'linear_formula' cannot be learned: n{MAX_NUMBERS - 1} is the last number")
        found.append(problem)
    return found


def sample() -> dict[Split, list[Problem]]:
    """200 of MathQA's problems that come with etude: 140 to train on, 30 and 30."""
    return {split: read_json(mathqa.sample_folder() / f"{split}.json") for split in ("train", "dev", "test")}


# The filter


def admitted(rows: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Those rows of the official MathQA whose program gives the number in their correct option: the course's split."""
    found: list[Problem] = []
    for row in rows:
        answer = answer_of(row["options"], row["correct"])
        if answer is None:
            continue
        try:
            value = execute(row["linear_formula"], numbers_of(row["Problem"]))
        except ProgramError:
            continue
        if is_right(value, answer):
            found.append(Problem(row["Problem"], row["linear_formula"], answer))
    return found


def answer_of(options: str, correct: str) -> float | None:
    """The number in the correct one of a row's options, or None where the filter reads none.

    Args:
        options: such as ``"a ) 38 , b ) 1 : 2 , c ) rs . 30"``; also the text of a list of such.
        correct: the letter.
    """
    if "\N{MINUS SIGN}" in options:
        return None
    letter = re.escape(correct)
    for part in options.split(","):
        found = re.match(rf"[\s\['\"]*{letter}\s*\)(.*)", part)
        if found is not None:
            # Some options carry their letter twice.
            text = re.sub(rf"^\s*{letter}\s*\)", "", found[1])
            kept = [sign for sign in text if not (sign.isspace() or sign.isalpha() or sign in _DROPPED)]
            plain = "".join(kept).replace(":", "/").strip(".")
            value = arithmetic(plain)
            if plain.startswith("-") and not plain[1:].isdigit():
                return None
            return value
    return None


def arithmetic(text: str) -> float | None:
    """The value of a text of numbers, ``+ - * /`` and parentheses; None where it is no such text."""
    tokens = re.findall(r"\d+\.?\d*|\.\d+|[-+*/()]", text)
    if len(tokens) > 100 or "".join(tokens) != text:
        return None
    tokens.reverse()

    def total() -> float:
        value = product()
        while tokens and tokens[-1] in "+-":
            value = value + product() if tokens.pop() == "+" else value - product()
        return value

    def product() -> float:
        value = signed()
        while tokens and tokens[-1] in "*/":
            value = value * signed() if tokens.pop() == "*" else value / signed()
        return value

    def signed() -> float:
        token = tokens.pop()
        if token in "+-":
            return -signed() if token == "-" else signed()
        if token == "(":
            value = total()
            if tokens.pop() != ")":
                raise ValueError
            return value
        return float(token)

    try:
        value = total()
    except (IndexError, ValueError, ZeroDivisionError, OverflowError, RecursionError):
        return None
    return None if tokens else value


# Rows of the official files that the rule admits and the course's files do not have.
_LEFT_OUT: Mapping[str, frozenset[int]] = {
    "train": frozenset(),
    "dev": frozenset({723}),
    "test": frozenset({9, 302, 450, 915, 1084, 1119, 1343, 1359, 1518, 1732, 1950, 2150, 2291, 2667, 2812, 2824})
    | frozenset(range(2971, 2985)),
}


def course_split(split: Split) -> list[Problem]:
    """The course's filtered split: 19,791, 2,961 and 1,925 problems.

    From its own files where they are at hand, else from the official archive: dev and test then are the same problems,
    in the same order, with the same answers; of train the rule may admit some more.
    """
    copies = mathqa.filtered_copies()
    if copies is not None:
        return read_json(copies[split])
    rows = mathqa.official_rows(split)
    return admitted([row for place, row in enumerate(rows) if place not in _LEFT_OUT[split]])
