"""Score programs for problems in the course's JSON form: those that a file holds, or those that a network writes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from etude.core.errors import UserError
from etude.studies.text2math import scores
from etude.studies.text2math.predict import Options as Search
from etude.studies.text2math.predict import Solver
from etude.studies.text2math.problems import is_right, number_of, read_rows, text_of, write_rows
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
    rerank: bool = False
    """Also judge the programs of the nearest known problems, where the network has a classifier for it."""
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


WITHOUT_WEIGHTS = True
"""The study's name means the predictions of the file, and not the network that comes with it."""


def evaluate(weights: Path | None, options: Options, extra: object = None) -> list[Score]:
    """Return the scores of the programs that a network writes, or without its weights of a file's ``predicted``.

    Raises:
        UserError: the file is not of the form, or has no problem; its line is named. Nothing is written then.
    """
    if weights is None:
        for name in ("beam", "grammar", "executes", "rerank", "bert"):
            if getattr(options, name) != getattr(Options, name):
                raise UserError(
                    f"--{name} says how a network writes, and none is named: `etude eval RUN FILE` uses one"
                )
    read = read_rows(options.problems)
    rows, problems = [row for row, _, _ in read], [problem for _, problem, _ in read]
    if not rows:
        raise UserError(f"{options.problems} has no problem: at least one is wanted")
    stated: list[float | None] = [None] * len(rows)
    if weights is None:
        for place, (row, _, where) in enumerate(read):
            if "predicted" not in row:
                raise UserError(f"{where}: 'predicted' is missing: name the network that is to write it, too")
            text_of(row, "predicted", where)
            if row.get("predicted_answer") is not None:
                stated[place] = number_of(row, "predicted_answer", where)
    else:
        search = Search(
            beam=options.beam, grammar=options.grammar, executes=options.executes, words=False, bert=options.bert,
            strict=options.strict, rerank=options.rerank,
        )  # fmt: skip
        for row, program in zip(rows, Solver(weights, search).programs(problems), strict=True):
            row["predicted"] = program
    operators = GEOMETRY if options.strict else OPERATORS
    verdicts = [
        scores.judge(row["predicted"], problem, course=options.course, operators=operators)
        for row, problem in zip(rows, problems, strict=True)
    ]
    shares = scores.summary(verdicts)
    if any(value is not None for value in stated):
        right = [value is not None and is_right(value, p.answer) for value, p in zip(stated, problems, strict=True)]
        shares["predicted_answer"] = 100 * sum(right) / len(rows)
    if options.output is not None:
        for row, verdict in zip(rows, verdicts, strict=True):
            row["predicted_answer"] = real(verdict.value)
        write_rows(options.output, rows)
    return [Score(name, share, scores.interval(name, share, len(rows)), len(rows)) for name, share in shares.items()]
