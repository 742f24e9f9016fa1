"""Word problems with their programs and answers, and the course's JSON form of them."""

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from etude.core.errors import UserError
from etude.core.files import write_atomic
from etude.data import mathqa
from etude.studies.text2math.program import NoValue, ProgramError, Value, execute, numbers_of, parse
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
    return [(row, problem_of(row, needs, where), where) for row, where in objects_of(path)]


def objects_of(path: Path) -> list[tuple[Any, str]]:
    """Return the items of a file's list, and each one's place; `UserError` where it holds no list."""
    wanted = "a list of problems is wanted: [ {...}, {...} ]"
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or type(error).__name__})") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: this is no text in UTF-8 ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: this is no JSON ({error.msg}); {wanted}") from None
    except (RecursionError, ValueError):
        raise UserError(f"{path} has an object nested too deeply, or a number of too many digits; {wanted}") from None
    if not isinstance(rows, list):
        raise UserError(f"{path}, line 1: {wanted}")
    found: list[tuple[Any, str]] = []
    # Read once more for the line that each object begins on.
    decoder, end, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    for row in rows:
        begin = _BETWEEN.match(text, end).end()  # pyright: ignore[reportOptionalMemberAccess]
        _, end = decoder.raw_decode(text, begin)
        line, counted = line + text.count("\n", counted, begin), begin
        found.append((row, f"{path}, line {line}"))
    return found


def problem_of(row: Any, needs: Sequence[str], where: str) -> Problem:
    """Return the problem of an object that has the fields ``needs``; `UserError`, which begins with ``where``."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: an object {{...}} is wanted, not {_said(row)}")
    if not is_text(json.dumps(row, ensure_ascii=False)):
        raise UserError(f"{where}: it is no text in UTF-8 (half a sign, as a lone \\ud800)")
    missing = [name for name in needs if name not in row]
    if missing:
        raise UserError(f"{where}: the object has no field '{missing[0]}'")
    known = {"Problem": "", "linear_formula": "", "answer": math.nan} | row
    return Problem(
        text_of(known, "Problem", where), text_of(known, "linear_formula", where), number_of(known, "answer", where)
    )


_BETWEEN = re.compile(r"[\s,]*")


def text_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """Return a field that must be a text; `UserError`, which begins with ``where``, for another."""
    if not isinstance(row[name], str):
        raise UserError(f"{where}: '{name}' must be a text, not {_said(row[name])}")
    return row[name]


def number_of(row: Mapping[str, Any], name: str, where: str) -> float:
    """Return a field that must be a number; `UserError`, which begins with ``where``, for another."""
    if isinstance(row[name], bool) or not isinstance(row[name], int | float):
        raise UserError(f"{where}: '{name}' must be a number, not {_said(row[name])}")
    try:
        return float(row[name])
    except OverflowError:
        raise UserError(f"{where}: '{name}' is too large for a number") from None


def _said(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def is_text(text: str) -> bool:
    """Return whether UTF-8 can hold a text: bytes of another encoding become halves of signs on the command line."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """Write objects in the course's form to a file."""
    write_atomic(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


# An argument that a network can learn to write.
_ARGUMENT = re.compile(r"[n#](0|[1-9]\d*)|const_.+")


def read_learnable(path: Path) -> list[Problem]:
    """Return the problems of a file, see `read_rows`, whose programs a network can learn, though some lack a value.

    Raises:
        UserError: a program that the language does not know, or with a number past those that have an index; the line
            is named.
    """
    rows = read_rows(path)
    for _, problem, where in rows:
        try:
            with contextlib.suppress(NoValue):
                execute(problem.program, numbers_of(problem.text))
            for argument in (argument for step in parse(problem.program) for argument in step.arguments):
                if not _ARGUMENT.fullmatch(argument):
                    raise ProgramError(f"write '{argument}' as n0, #0 or const_1")
                if argument[0] == "n" and int(argument[1:]) >= MAX_NUMBERS:
                    raise ProgramError(f"n{MAX_NUMBERS - 1} is the last number")
        except ProgramError as error:
            raise UserError(f"{where}: 'linear_formula' cannot be learned: {error}") from None
    return [problem for _, problem, _ in rows]


def sample() -> dict[Split, list[Problem]]:
    """Return 200 of MathQA's problems that come with etude: 140 to train on, 30 and 30."""
    return {split: read_json(mathqa.sample_folder() / f"{split}.json") for split in ("train", "dev", "test")}
