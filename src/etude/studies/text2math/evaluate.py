"""Score programs for problems in the course's JSON form: those that a file holds, or those that a network writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from etude.core.errors import UserError
from etude.studies.text2math import scores
from etude.studies.text2math.predict import Options as Search
from etude.studies.text2math.predict import Solver
from etude.studies.text2math.problems import is_right, read_rows, write_rows
from etude.studies.text2math.program import GEOMETRY, OPERATORS, real


@dataclass(frozen=True)
class Options:
    problems: Annotated[Path, tyro.conf.Positional]
    """A list of objects with Problem, linear_formula and answer; without a network with `predicted` too."""
    output: Path | None = None
    """Write the objects here, with `predicted` and `predicted_answer`."""
    beam: int = 10
    """The hypotheses of a problem, where a network writes."""
    grammar: bool = False
    """Write only programs that are well formed and use numbers that the problem has."""
    executes: bool = False
    """Take the best program that has a value."""
    strict: bool = False
    """Compute with the right formulas of geometry; the known answers were made with the data set's."""
    course: bool = False
    """Count a value that is no number as right, as the course's checker does."""
    bert: str = ""
    """The BERT of a network that was made with one, where it lies elsewhere now: a folder, or a name of the hub."""


@dataclass(frozen=True)
class Score:
    """One metric over all problems of a file."""

    metric: str
    value: float
    """Per cent."""
    half_width: float | None
    """Half the 95 % interval."""
    problems: int


def evaluate(weights: Path | None, options: Options) -> list[Score]:
    """Return the scores of a file's programs.

    Args:
        weights: the weights of the network that writes them; None takes the file's own field ``predicted``.
        options: the file, and the search.

    Raises:
        UserError: the file is not of the form, or has no problem; its line is named. Nothing is written then.
    """
    if weights is None:
        _refuse_search(options)
    read = read_rows(options.problems)
    rows, problems = [row for row, _, _ in read], [problem for _, problem, _ in read]
    if not rows:
        raise UserError(f"{options.problems} has no problem: at least one is wanted")
    if weights is None:
        for row, _, where in read:
            _refuse_prediction(row, where)
    else:
        search = Search(
            beam=options.beam, grammar=options.grammar, executes=options.executes, words=False, bert=options.bert,
            strict=options.strict,
        )  # fmt: skip
        for row, program in zip(rows, Solver(weights, search).programs(problems), strict=True):
            row |= {"predicted": program, "predicted_answer": None}
    operators = GEOMETRY if options.strict else OPERATORS
    verdicts = [
        scores.judge(row["predicted"], problem, course=options.course, operators=operators)
        for row, problem in zip(rows, problems, strict=True)
    ]
    shares = scores.summary(verdicts)
    stated = [row.get("predicted_answer") for row in rows]
    if any(value is not None for value in stated):
        right = [
            value is not None and is_right(float(value), problem.answer)
            for value, problem in zip(stated, problems, strict=True)
        ]
        shares["predicted_answer"] = 100 * sum(right) / len(rows)
    if options.output is not None:
        for row, verdict in zip(rows, verdicts, strict=True):
            row["predicted_answer"] = real(verdict.value)
        write_rows(options.output, rows)
    return [Score(name, share, scores.interval(name, share, len(rows)), len(rows)) for name, share in shares.items()]


def _refuse_search(options: Options) -> None:
    """Refuse flags of a search where nothing is searched."""
    for name in ("beam", "grammar", "executes", "bert"):
        if getattr(options, name) != getattr(Options, name):
            raise UserError(f"--{name} says how a network writes, and none is named: `etude eval RUN FILE` uses one")


def _refuse_prediction(row: Mapping[str, Any], where: str) -> None:
    """Refuse an object without a program, or with an answer that is no number."""
    if not isinstance(row.get("predicted"), str):
        fault = "must be a text" if "predicted" in row else "is missing: name the network that is to write it, too"
        raise UserError(f"{where}: 'predicted' {fault}")
    value = row.get("predicted_answer")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{where}: 'predicted_answer' must be a number or null")
    try:
        float(0 if value is None else value)
    except OverflowError:
        raise UserError(f"{where}: 'predicted_answer' is too large for a number") from None
