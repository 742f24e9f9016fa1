"""Word problems with their programs and answers, and the course's JSON form of them."""

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from etude.core.errors import UserError
from etude.core.files import write_atomic
from etude.data import mathqa
from etude.studies.text2math.program import ProgramError, TooLarge, UndefinedValue, Value, execute, numbers_of, parse
from etude.studies.text2math.tokens import MAX_NUMBERS

TOLERANCE = 0.02
"""A value within this share of the answer counts as the answer."""
MAX_WORDS = 1000
"""Longer problems are refused; the longest of the data set has 356."""

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
    """Return whether a program's value counts as the answer: real, and off by at most 2 % of it.

    Args:
        value: the program's value.
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


def read_json(path: Path) -> list[Problem]:
    """Return the problems of a file in the course's form, see `read_rows`."""
    return [problem for _, problem, _ in read_rows(path)]


def read_rows(
    path: Path, needs: Sequence[str] = ("Problem", "linear_formula", "answer")
) -> list[tuple[dict[str, Any], Problem, str]]:
    """Return the objects of a file in the course's form, a list of objects with Problem, linear_formula and answer.

    Args:
        path: the file.
        needs: the fields that every object must have.

    Returns:
        Each object, its problem, and its place (file and line) for an error.

    Raises:
        UserError: the file cannot be read or is not of that form; the line is named.
    """
    found: list[tuple[dict[str, Any], Problem, str]] = []
    for line, row in rows_of(path):
        where = f"{path}, line {line}"
        found.append((row, problem_of(row, needs, where), where))
    return found


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write objects in the course's form to a file."""
    write_atomic(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSON list with the line that each begins on."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or type(error).__name__})") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: this is no text in UTF-8 ({error.reason})") from error
    decoder, line, counted = json.JSONDecoder(), 1, 0

    def fault(at: int, wanted: str) -> UserError:
        return UserError(f"{path}, line {text.count(chr(10), 0, at) + 1}: {wanted}")

    opened = _OPENED.match(text)
    assert opened is not None, "all of it may be empty"
    if not opened[1]:
        raise fault(opened.end(), "a list of problems is wanted: [ {...}, {...} ]")
    place, closed = opened.end(), opened[2]
    while not closed:
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
        after = _AFTER.match(text, place)
        assert after is not None, "all of it may be empty"
        place, closed = after.end(), after[1] == "]"
        if not after[1]:
            raise fault(place, "a comma or ] is wanted after an object")
    if place < len(text):
        raise fault(place, "the list has ended, and more follows")


_OPENED = re.compile(r"\ufeff?\s*(?:(\[)\s*(?:(\])\s*)?)?")
_AFTER = re.compile(r"\s*(?:([,\]])\s*)?")
# How JSON spells either half of a sign above U+FFFF.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def is_text(text: str) -> bool:
    """Return whether UTF-8 can hold a text: bytes of another encoding become halves of signs on the command line."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def problem_of(row: Mapping[str, Any], needs: Sequence[str], where: str) -> Problem:
    """Return the problem of an object; `UserError`, which begins with ``where``, for one not of the form."""
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
    """Return the problems of a file, see `read_rows`, whose programs a network can learn, though some lack a value.

    Raises:
        UserError: a program that the language does not know, or with a number past those that have an index; the line
            is named.
    """
    found: list[Problem] = []
    for _, problem, where in read_rows(path):
        fault = _fault_of(problem)
        if fault:
            raise UserError(f"{where}: 'linear_formula' cannot be learned: {fault}")
        found.append(problem)
    return found


def _fault_of(problem: Problem) -> str:
    """The reason why a network cannot learn a problem's program; empty where it can."""
    try:
        steps = parse(problem.program)
        with contextlib.suppress(UndefinedValue, TooLarge):
            execute(steps, numbers_of(problem.text))
    except ProgramError as error:
        return str(error)
    for argument in (argument for step in steps for argument in step.arguments):
        if not _ARGUMENT.fullmatch(argument):
            return f"write '{argument}' as n0, #0 or const_1"
        if argument[0] == "n" and int(argument[1:]) >= MAX_NUMBERS:
            return f"n{MAX_NUMBERS - 1} is the last number"
    return ""


def sample() -> dict[Split, list[Problem]]:
    """200 of MathQA's problems that come with etude: 140 to train on, 30 and 30."""
    return {split: read_json(mathqa.sample_folder() / f"{split}.json") for split in ("train", "dev", "test")}
