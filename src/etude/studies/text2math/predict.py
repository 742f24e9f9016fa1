"""Solve word problems: programs, their steps with values, runners-up."""

import copy
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from etude.core.checkpoint import load_weights, read_weights
from etude.core.config import from_dict
from etude.core.errors import UserError
from etude.core.files import write_atomic
from etude.studies.text2math.batches import encode
from etude.studies.text2math.beam import Hypothesis
from etude.studies.text2math.model import Text2Math, attention_over
from etude.studies.text2math.problems import MAX_WORDS, Problem, is_text, problem_of, rows_of
from etude.studies.text2math.program import GEOMETRY, OPERATORS, ProgramError, Value, numbers_of, real, trace, written
from etude.studies.text2math.reading import in_figures, left_as_words
from etude.studies.text2math.study import MAX_BEAM, BeamConfig, Text2MathConfig
from etude.studies.text2math.task import build_model, choose, reader_of, write_programs
from etude.studies.text2math.tokens import MAX_NUMBERS, Tokens, Words, read_spelled, words_of
from etude.studies.text2math.tree import BeamTree

_BATCH = 128
_MAX_CHARACTERS = 100_000


@dataclass(frozen=True)
class Options:
    problems: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Problems in quotation marks, or files: .json in the course's form, or a text with one problem a line."""
    output: Path | None = None
    """A file for the answers: the objects of a .json file, or new ones, with `predicted` and `predicted_answer`."""
    beam: int = 10
    """Hypotheses of a problem."""
    grammar: bool = True
    """Write only programs that are well formed and use numbers that the problem has."""
    executes: bool = True
    """Answer with the best program that has a value."""
    bert: str = ""
    """The BERT of a network that was made with one, where it lies elsewhere now: a folder, or a name of the hub."""
    strict: bool = False
    """Compute with the formulas of geometry where the data set's are wrong (a cube's volume is 6 a^2 there)."""
    words: bool = True
    """Also read numbers that are written as words, and answer by the likelier of the two readings."""
    runners_up: int = 3
    """Further programs to show."""


@dataclass(frozen=True)
class Prediction:
    """The answer to one problem."""

    problem: str
    program: str
    answer: str
    score: float | None
    """Mean log-probability of the program's tokens; None where there is no program."""
    steps: tuple[str, ...]
    """Every step with its value; the fault last where it has none."""
    runners_up: tuple[str, ...]
    """Other programs with value and score, the best first."""
    note: str
    """How numbers were read."""
    value: float | None


def predict(weights: Path, extra: Mapping[str, Any] | None, options: Options) -> list[Prediction]:
    """Solve the problems, in their order.

    Args:
        weights: a safetensors file that `etude export` or a checkpoint wrote.
        extra: not used; the vocabularies lie in the file.
        options: the problems, and how to search.

    Raises:
        UserError: no problem, or one that cannot be read, in one line that names it; no file is written then.
    """
    if options.runners_up < 0:
        raise UserError(f"--runners-up must be 0 or more, not {options.runners_up}")
    rows = [row for given in options.problems for row in objects_in(given)]
    if not rows:
        raise UserError('no problem to solve: give one in quotation marks, such as "what is 20 % of 50 ?", or a file')
    solver = Solver(weights, options)
    answers = solver.solve([row["Problem"] for row in rows])
    if options.output is not None:
        for row, answer in zip(rows, answers, strict=True):
            row["predicted"] = answer.program
            row["predicted_answer"] = answer.value
        write_atomic(options.output, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    return answers


def tell(answers: Sequence[Prediction]) -> str:
    """The answers as text for people."""
    parts: list[str] = []
    for answer in answers:
        lines = [answer.problem] if len(answers) > 1 else []
        lines += [f"program    {answer.program}"]
        lines += [f"  #{place}       {step}" for place, step in enumerate(answer.steps)]
        score = "none" if answer.score is None else f"{answer.score:.3f} (mean log-probability of a token)"
        lines += [f"answer     {answer.answer}", f"score      {score}"]
        lines += [f"next best  {other}" for other in answer.runners_up]
        lines += [f"note       {answer.note}"] if answer.note else []
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def objects_in(given: str) -> list[dict[str, Any]]:
    """The problems that one word of the command line means, a text's or a file's, as objects in the course's form."""
    path = Path(given)
    # A name with spaces may also be a problem, and a problem too long to be a name.
    if path.suffix not in (".json", ".txt") or (" " in given and not os.path.isfile(path)):
        return [{"Problem": given}]
    if path.suffix == ".json":
        rows: list[dict[str, Any]] = []
        for line, row in rows_of(path):
            problem_of(row, ("Problem",), f"{path}, line {line}")
            rows.append(dict(row))
        return rows
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a text ({' '.join(str(error).split())})") from error
    return [{"Problem": line} for line in lines if line.strip()]


@dataclass(frozen=True)
class Workings:
    """How a problem was solved.

    Attributes:
        answer: what `predict` answers.
        read: the problem as its numbers were read.
        words: of it.
        tokens: of the program, the end last; empty where there is none.
        attention: the share of each word for each token, float32 ``[tokens, words]``; None of a network without it.
        tree: the beam search.
    """

    answer: Prediction
    read: str
    words: tuple[str, ...]
    tokens: tuple[str, ...]
    attention: Tensor | None
    tree: BeamTree


class Solver:
    """A trained network, ready to solve problems."""

    def __init__(self, weights: Path, options: Options) -> None:
        tensors, header = read_weights(weights, study="text2math")
        self.options = options
        self.config = from_dict(Text2MathConfig, header.config, origin=str(weights))
        self.beam = _search(self.config, options)
        self.words, self.tokens = _vocabularies(tensors, weights)
        if options.bert:
            if self.config.model.encoder != "bert":
                raise UserError(f"--bert: the network of {weights} was made without a BERT")
            self.config = replace(self.config, model=replace(self.config.model, bert=options.bert))
        self.reader = reader_of(self.config.model, self.words)
        self.model: Text2Math = build_model(self.config.model, self.words, self.tokens)
        load_weights({"model": self.model}, tensors, weights)
        self.model.eval()
        self.operators = GEOMETRY if options.strict else OPERATORS

    def solve(self, texts: Sequence[str]) -> list[Prediction]:
        """The answers, in order."""
        readings: list[tuple[int, str, str]] = []
        for row, text in enumerate(texts):
            readings += [(row, read, note) for read, note in self._readings(text, row, len(texts))]
        problems = [Problem(read) for _, read, _ in readings]
        encoded = encode(problems, self.reader, self.tokens, torch.device("cpu"))
        found = write_programs(self.model, encoded, self.tokens, self.beam, batch=_BATCH)
        best: dict[int, Prediction] = {}
        for (row, read, note), hypotheses in zip(readings, found, strict=True):
            answer = self._answer(texts[row], read, hypotheses, note)
            if row not in best or _rank(answer) > _rank(best[row]):
                best[row] = answer
        return [best[row] for row in range(len(texts))]

    def explain(self, text: str) -> Workings:
        """As `solve` for one problem, with what the search and the network did on the way."""
        best: tuple[Prediction, Problem, BeamTree] | None = None
        for read, note in self._readings(text, 0, 1):
            problem, tree = Problem(read), BeamTree()
            encoded = encode([problem], self.reader, self.tokens, torch.device("cpu"))
            [found] = write_programs(self.model, encoded, self.tokens, self.beam, batch=1, on_step=tree.add)
            answer = self._answer(text, read, found, note)
            if best is None or _rank(answer) > _rank(best[0]):
                best = answer, problem, tree
        assert best is not None, "one reading at least"
        answer, problem, tree = best
        # What is no program has no tokens to look from.
        ids = (self.tokens.encode(answer.program) or []) if answer.score is not None else []
        words, weights = tuple(self.reader.spell(problem.text)), None
        if ids and self.config.model.attention:
            encoded = encode([problem], self.reader, self.tokens, torch.device("cpu"))
            weights = attention_over(self.model, encoded.batch(torch.tensor([0])), ids)[:, : len(words)]
        return Workings(answer, problem.text, words, tuple(self.tokens.tokens[number] for number in ids), weights, tree)

    def searching(self, options: Options) -> "Solver":
        """The same network with another search; its BERT stays."""
        other = copy.copy(self)
        other.options, other.beam = options, _search(self.config, options)
        other.operators = GEOMETRY if options.strict else OPERATORS
        return other

    def programs(self, problems: Sequence[Problem]) -> list[str]:
        """A program for each problem as it stands, without looking at how its numbers are written.

        Raises:
            UserError: a problem of more words than are read.
        """
        for row, problem in enumerate(problems, 1):
            count = len(words_of(problem.text)[0])
            if count > MAX_WORDS:
                raise UserError(f"problem {row} has {count:,} words: at most {MAX_WORDS} are read")
        encoded = encode(problems, self.reader, self.tokens, torch.device("cpu"))
        found = write_programs(self.model, encoded, self.tokens, self.beam, batch=_BATCH)
        return [
            choose(hypotheses, problem, self.tokens, self.beam.executes, self.operators)
            for hypotheses, problem in zip(found, problems, strict=True)
        ]

    def _readings(self, text: str, row: int, count: int) -> list[tuple[str, str]]:
        """The ways to read a problem's numbers, each with a note; `UserError` where there is none."""
        name = f"problem {row + 1}: " if count > 1 else ""
        if len(text) > _MAX_CHARACTERS:
            raise UserError(f"{name}{len(text):,} characters are too long: {MAX_WORDS} words are read at most")
        if not is_text(text):
            raise UserError(f"{name}it is no text in UTF-8")
        words, _ = words_of(text)
        if not words:
            raise UserError(f"{name}it is empty: write a word problem")
        if len(words) > MAX_WORDS:
            raise UserError(f"{name}it has {len(words):,} words: at most {MAX_WORDS} are read")
        figures, replaced = in_figures(text)
        missing = left_as_words(figures)
        if not self.options.words:
            missing += [word for word, _ in replaced]
            figures, replaced = text, []
        left = f"left as words: {', '.join(missing)}" if missing else ""
        told = ", ".join(f"'{word}' as {value}" for word, value in replaced)
        readings: list[tuple[str, str]] = []
        if numbers_of(text):
            missed = f"read as words and not as numbers: {', '.join(word for word, _ in replaced)}" if replaced else ""
            readings.append((text, "; ".join(filter(None, (missed, left)))))
        if replaced:
            readings.append((figures, "; ".join(filter(None, (f"read {told}", left)))))
        if not readings:
            raise UserError(
                f"{name}it has no number, in figures or words{f' ({left})' if left else ''}: "
                "a program needs one to compute with"
            )
        kept = [reading for reading in readings if len(numbers_of(reading[0])) <= MAX_NUMBERS]
        if not kept:
            most = min(len(numbers_of(read)) for read, _ in readings)
            raise UserError(f"{name}it has {most} numbers: at most {MAX_NUMBERS} are read")
        return kept

    def _answer(self, text: str, read: str, hypotheses: Sequence[Hypothesis], note: str) -> Prediction:
        numbers = numbers_of(read)
        program = choose(hypotheses, Problem(read), self.tokens, self.beam.executes, self.operators)
        scores = {self.tokens.decode(h.tokens): h.score for h in reversed(hypotheses)}
        others = list(dict.fromkeys(self.tokens.decode(h.tokens) for h in hypotheses))
        steps, value = self._steps(program, numbers)
        runners_up = [
            f"{other}  = {self.value_of(other, read)}  ({scores[other]:.3f})" for other in others if other != program
        ]
        return Prediction(
            text, program, "none" if value is None else written(value), scores.get(program), tuple(steps),
            tuple(runners_up[: self.options.runners_up]), note, real(value),
        )  # fmt: skip

    def _steps(self, program: str, numbers: Sequence[float]) -> tuple[list[str], Value | None]:
        try:
            steps = trace(program, numbers, self.operators)
        except ProgramError as error:
            return [str(error)], None
        return [str(step) for step in steps], steps[-1].value

    def value_of(self, program: str, read: str) -> str:
        """A program's value for a problem whose numbers are in figures, for people."""
        value = self._steps(program, numbers_of(read))[1]
        return "no value" if value is None else written(value)


def _search(config: Text2MathConfig, options: Options) -> BeamConfig:
    if not 1 <= options.beam <= MAX_BEAM:
        raise UserError(f"--beam must be between 1 and {MAX_BEAM}, not {options.beam}")
    return BeamConfig(
        width=options.beam, alpha=config.beam.alpha, rule=config.beam.rule, grammar=options.grammar,
        executes=options.executes,
    )  # fmt: skip


def _rank(answer: Prediction) -> float:
    return -math.inf if answer.score is None else answer.score


def _vocabularies(tensors: Mapping[str, Tensor], weights: Path) -> tuple[Words, Tokens]:
    try:
        return read_spelled(tensors["model.vocabularies"])
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{weights} has no vocabularies ({type(error).__name__}): export it again") from error


def example(out: Path) -> list[str]:
    """The words of an `etude predict` on what comes with the package; what it writes goes into ``out``."""
    return ["text2math", "a train running at 120 km / hr crosses a pole in 18 seconds . what is its length ?"]
