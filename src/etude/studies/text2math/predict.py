"""Solve word problems: programs, their steps with values, runners-up."""

import copy
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from etude.core.checkpoint import load_weights, read_weights
from etude.core.config import from_dict
from etude.core.errors import Refused, UserError
from etude.data.prediction import answerable, attempted, in_place
from etude.studies.text2math.batches import Batch, encode, read_neighbours
from etude.studies.text2math.beam import BeamTree, Hypothesis
from etude.studies.text2math.model import Text2Math, attention_over
from etude.studies.text2math.problems import MAX_WORDS, Problem, is_text, objects_of, problem_of, write_rows
from etude.studies.text2math.program import GEOMETRY, OPERATORS, ProgramError, Value, numbers_of, real, trace, written
from etude.studies.text2math.reading import in_figures, left_as_words, signs_of, typed, without_ordinals
from etude.studies.text2math.rerank import Candidates, Chooser, Features, Judged
from etude.studies.text2math.retrieval import VOTERS
from etude.studies.text2math.splits import index_of
from etude.studies.text2math.study import MAX_BEAM, Text2MathConfig
from etude.studies.text2math.task import build_model, choose, reader_of, write_programs
from etude.studies.text2math.tokens import MAX_NUMBERS, read_vocabularies, words_of

_BATCH = 128
_MAX_CHARACTERS = 100_000


@dataclass(frozen=True)
class Options:
    problems: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Problems in quotation marks, or files: .json in the course's form, or a text with one problem a line."""
    output: Path | None = None
    """A file for the answers: the objects of a .json file, or new ones, with `predicted` and `predicted_answer`."""
    beam: int | None = None
    """Hypotheses of a problem; none given: as many as the network was tested with."""
    grammar: bool = True
    """Write only programs that are well formed and use numbers that the problem has."""
    executes: bool = True
    """Answer with the best program that has a value."""
    rerank: bool = True
    """Also judge the programs of the nearest known problems, where the network has a classifier for it."""
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
    """The way its numbers were read."""
    value: float | None
    probability: float | None = None
    """How likely the answer is right, calibrated on dev; None without a classifier of candidates."""
    unsure: bool = False
    """The probability is below the one from which on 97 % of dev are right."""
    nearest: str = ""
    """The nearest known problem; empty where none was looked for."""


def predict(weights: Path, extra: Mapping[str, Any] | None, options: Options) -> list[Prediction | Refused]:
    """Return the answers to the problems, in their order; ``extra`` may hold the classifier of candidates.

    Raises:
        UserError: no problem, or none that can be read, in one line that names one; no file is written then.
    """
    if options.runners_up < 0:
        raise UserError(f"--runners-up must be 0 or more, not {options.runners_up}")
    found = [row for given in options.problems for row in objects_in(given)]
    if not found:
        raise UserError('no problem to solve: give one in quotation marks, such as "what is 20 % of 50 ?", or a file')
    solver = Solver(weights, options, extra)
    if len(found) > 1:
        found = [(row, f"problem {n}{f' ({where})' if where else ''}") for n, (row, where) in enumerate(found, 1)]
    answers = solver.solve(found)
    if options.output is not None:
        for (row, _), answer in zip(found, answers, strict=True):
            if isinstance(answer, Prediction):
                row |= {"predicted": answer.program, "predicted_answer": answer.value}
        write_rows(options.output, [row for row, _ in found])
    return answers


def tell(answers: Sequence[Prediction]) -> str:
    """Return the answers as text for people."""
    parts: list[str] = []
    for answer in answers:
        lines = [answer.problem] if len(answers) > 1 else []
        lines += [f"program    {answer.program}"]
        lines += [f"  #{place}       {step}" for place, step in enumerate(answer.steps)]
        score = "none" if answer.score is None else f"{answer.score:.3f} (mean log-probability of a token)"
        lines += [f"answer     {answer.answer}", f"score      {score}"]
        if answer.probability is not None:
            lines += [f"sure       {100 * answer.probability:.0f} %{' (unsure)' if answer.unsure else ''}"]
        lines += [f"next best  {other}" for other in answer.runners_up]
        lines += [f"nearest    {answer.nearest}"] if answer.nearest else []
        lines += [f"note       {answer.note}"] if answer.note else []
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def objects_in(given: str) -> list[tuple[Any, str]]:
    """Return the problems that a word of the command line means, in the course's form, each with its place in a file.

    The objects of a .json file may still lack what `problem_of` needs.
    """
    path, is_there = Path(given), os.path.exists(given)
    ending = path.suffix.lower()
    # A name with spaces may also be a problem, and a problem too long to be a name.
    if not is_there and (ending not in (".json", ".txt") or " " in given):
        return [({"Problem": given}, "")]
    if ending not in (".json", ".txt"):
        raise UserError(f"{path} is no .json or .txt file: name one, or write the problem in more words")
    if ending == ".json":
        return objects_of(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a text ({' '.join(str(error).split())})") from error
    return [({"Problem": line}, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


@dataclass(frozen=True)
class Workings:
    """The way to an answer.

    Attributes:
        answer: the answer, as `predict` gives it.
        read: the problem as its numbers were read.
        words: the words of that reading.
        tokens: the tokens of the program, the end last; empty where there is no program.
        attention: each word's weight at each token, float32 ``[tokens, words]``; None without attention.
        tree: the beam search.
    """

    answer: Prediction
    read: str
    words: tuple[str, ...]
    tokens: tuple[str, ...]
    attention: Tensor | None
    tree: BeamTree


class Solver:
    """A trained network of a safetensors file, ready to solve problems; those of its options are not read.

    Raises:
        UserError: the file holds no network of this study, or the search cannot be.
    """

    def __init__(self, weights: Path, options: Options, extra: Mapping[str, Any] | None = None) -> None:
        tensors, header = read_weights(weights, study="text2math")
        self.config = from_dict(Text2MathConfig, header.config, origin=str(weights))
        if self.config.system == "retrieval":
            raise UserError(f"{weights} holds the weights of a vote and no network: `etude eval RUN` scores it")
        chooser = (extra or header.extra).get("chooser")
        self.chooser = None if chooser is None else Chooser.of(chooser)
        self._search_by(options)
        words, self.tokens = read_vocabularies(tensors, str(weights))
        if options.bert:
            if self.config.model.encoder != "bert":
                raise UserError(f"--bert: the network of {weights} was made without a BERT")
            self.config = replace(self.config, model=replace(self.config.model, bert=options.bert))
        self.reader = reader_of(self.config.model, words)
        self.model: Text2Math = build_model(self.config.model, words, self.tokens)
        load_weights({"model": self.model}, tensors, weights)
        self.model.eval()

    @cached_property
    def candidates(self) -> Candidates:
        """The known problems, whose programs are judged beside those of the beam."""
        return Candidates(self.model, self.tokens, index_of(self.config.data), self.config.rerank.neighbours)

    def _search_by(self, options: Options) -> None:
        width = self.config.beam.width if options.beam is None else options.beam
        if not 1 <= width <= MAX_BEAM:
            raise UserError(f"--beam must be between 1 and {MAX_BEAM}, not {width}")
        self.options = options
        self.beam = replace(
            self.config.beam, width=width, grammar=options.grammar, executes=options.executes
        )  # fmt: skip
        self.operators = GEOMETRY if options.strict else OPERATORS

    def searching(self, options: Options) -> "Solver":
        """Return the same network with another search; its BERT and its known problems stay."""
        if self.chooser is not None:
            _ = self.candidates
        other = copy.copy(self)
        other._search_by(options)
        return other

    def solve(self, problems: Sequence[tuple[Any, str]]) -> list[Prediction | Refused]:
        """Return the answers, in order: to each problem that of its likeliest reading.

        Args:
            problems: objects in the course's form, each with its place for an error, as `objects_in` finds them.

        Raises:
            UserError: no problem that can be read, in one line that names one.
        """

        def readings_of(each: tuple[Any, str]) -> list[tuple[str, str, str]]:
            row, where = each
            problem = problem_of(row, ("Problem",), where or "the problem")
            # An object of the course's form has the data set's text, whose numbers its program counts.
            return self._readings(problem.text, f"{where}: " if where else "", as_typed=set(row) <= {"Problem"})

        found = answerable(attempted(problems, readings_of, lambda each: each[1] or str(each[0]["Problem"])))
        readings = [some for some in found if not isinstance(some, Refused)]
        answers = iter(self._answers([reading for some in readings for reading in some]))
        return in_place(found, [max((next(answers) for _ in some), key=_likelihood) for some in readings])

    def explain(self, text: str) -> Workings:
        """Return the answer to one problem, as `solve` gives it, and the way to it."""
        found: list[tuple[Prediction, str, BeamTree]] = []
        for reading in self._readings(text, ""):
            tree = BeamTree()
            [answer] = self._answers([reading], tree)
            found.append((answer, reading[1], tree))
        answer, read, tree = max(found, key=lambda each: _likelihood(each[0]))
        # What is no program has no tokens to look from.
        ids = (self.tokens.encode(answer.program) or []) if answer.score is not None else []
        words, weights = tuple(self.reader.spell(read)), None
        if ids and self.config.model.attention:
            weights = attention_over(self.model, self._encoded([read]), ids)[:, : len(words)]
        return Workings(answer, read, words, tuple(self.tokens.tokens[number] for number in ids), weights, tree)

    def programs(self, problems: Sequence[Problem]) -> list[str]:
        """Return a program for each problem as it stands, its numbers in figures.

        Raises:
            UserError: a problem of more words than are read.
        """
        for row, problem in enumerate(problems, 1):
            _refuse_long(f"problem {row} has", problem.text)
        return [answer.program for answer in self._answers([(p.text, p.text, "") for p in problems])]

    def _encoded(self, texts: Sequence[str]) -> Batch:
        problems, device = [Problem(text) for text in texts], torch.device("cpu")
        encoded, reads = encode(problems, self.reader, self.tokens, device), self.config.model.reads
        if not reads:
            return encoded
        index = self.candidates.index
        voted = [index.vote(some) for some in index.nearest(problems, VOTERS)]
        return replace(encoded, neighbours=read_neighbours(problems, voted, index, self.tokens, reads, device))

    def _readings(self, text: str, name: str, *, as_typed: bool = True) -> list[tuple[str, str, str]]:
        """Return a problem with each way to read its numbers, and a note; `UserError` where there is none."""
        if len(text) > _MAX_CHARACTERS:
            raise UserError(f"{name}{len(text):,} characters are too long: {MAX_WORDS} words are read at most")
        if not is_text(text):
            raise UserError(f"{name}it is no text in UTF-8")
        if not words_of(text)[0]:
            raise UserError(f"{name}it is empty: write a word problem")
        _refuse_long(f"{name}it has", text)
        plain, forms = typed(text) if as_typed else (text, list[str]())
        figures, spelled = in_figures(plain)
        missing = left_as_words(figures)
        if not self.options.words:
            missing += [word for word, _ in spelled]
            spelled = []
        left = [f"left as words: {', '.join(missing)}"] if missing else []
        if as_typed and (signs := signs_of(plain)):
            left.append(f"read without its sign: {', '.join(signs)}")
        told = [f"read {', '.join(forms)}"] if forms else []
        readings: list[tuple[str, list[str]]] = []
        if numbers_of(plain):
            words = ", ".join(word for word, _ in spelled)
            readings.append((plain, told + ([f"read as words and not as numbers: {words}"] if spelled else [])))
        if spelled:
            read = ", ".join([*forms, *(f"'{word}' as {value}" for word, value in spelled)])
            readings.append((figures, [f"read {read}"]))
        if not readings:
            # Constants may do: 129 problems of MathQA have a program and no number.
            readings.append((plain, ["it has no number, in figures or words"]))
        for read, notes in list(readings) if as_typed else ():
            if (other := without_ordinals(read)) is not None and numbers_of(other):
                readings.append((other, [*notes, "ordinals are no numbers"]))
        fewest = min(len(numbers_of(read)) for read, _ in readings)
        if fewest > MAX_NUMBERS:
            raise UserError(f"{name}it has {fewest} numbers: at most {MAX_NUMBERS} are read")
        return [
            (text, read, "; ".join([*notes, *left])) for read, notes in readings if len(numbers_of(read)) <= MAX_NUMBERS
        ]

    def _answers(self, readings: Sequence[tuple[str, str, str]], tree: BeamTree | None = None) -> list[Prediction]:
        """Return the answer to each reading: a problem, the same with its numbers as they are read, and a note."""
        encoded, problems = self._encoded([read for _, read, _ in readings]), [Problem(read) for _, read, _ in readings]
        found = write_programs(self.model, encoded, self.tokens, self.beam, size=_BATCH, tree=tree)
        if self.chooser is None or not self.options.rerank:
            answers = [self._written(*each) for each in zip(readings, found, strict=True)]
        else:
            judged = self.candidates.judged(problems, encoded, found, self.operators)
            answers = [self._chosen(*each) for each in zip(readings, judged, strict=True)]
        return answers

    def _written(self, reading: tuple[str, str, str], hypotheses: Sequence[Hypothesis]) -> Prediction:
        """Return the answer that the beam gives."""
        program = choose(hypotheses, Problem(reading[1]), self.tokens, self.beam.executes, self.operators)
        scores = {self.tokens.decode(h.tokens): h.score for h in reversed(hypotheses)}
        others = [text for text in dict.fromkeys(self.tokens.decode(h.tokens) for h in hypotheses) if text != program]
        runners_up = [(other, f"{scores[other]:.3f}") for other in others[: self.options.runners_up]]
        return self._prediction(reading, program, scores.get(program), runners_up)

    def _chosen(self, reading: tuple[str, str, str], judged: Judged) -> Prediction:
        """Return the answer that the classifier chooses among the programs of the beam and of neighbours."""
        assert self.chooser is not None
        choice = self.chooser.choose(judged)
        programs = [judged.candidates[number].program + "|" for number in choice.order]
        log_p = [judged.x_CF[number, Features.NAMES.index("log p of a token")] for number in choice.order]
        runners_up = [(programs[n], f"{log_p[n]:.3f}") for n in range(1, len(programs))][: self.options.runners_up]
        answer = self._prediction(reading, *((programs[0], float(log_p[0])) if programs else ("", None)), runners_up)
        near = self.candidates.index.problems[judged.neighbours[0].row]
        nearest = f"{near.text}  {near.program}  (cosine {judged.neighbours[0].cosine:.2f})"
        unsure = choice.probability < self.chooser.threshold
        return replace(answer, probability=choice.probability if programs else None, unsure=unsure, nearest=nearest)

    def _prediction(
        self, reading: tuple[str, str, str], program: str, score: float | None, others: Sequence[tuple[str, str]]
    ) -> Prediction:
        text, read, note = reading
        steps, value = self._steps(program, read)
        runners_up = tuple(f"{other}  = {self.value_of(other, read)}  ({about})" for other, about in others)
        answer = "none" if value is None else written(value)
        if program and (idle := _idle(program, read)):
            note = "; ".join([*([note] if note else []), f"numbers that the program does not use: {', '.join(idle)}"])
        return Prediction(text, program, answer, score, steps, runners_up, note, real(value))

    def _steps(self, program: str, read: str) -> tuple[tuple[str, ...], Value | None]:
        try:
            steps = trace(program, numbers_of(read), self.operators)
        except ProgramError as error:
            return (str(error),), None
        return tuple(map(str, steps)), steps[-1].value

    def value_of(self, program: str, read: str) -> str:
        """Return a program's value for a problem whose numbers are in figures, as text for people."""
        value = self._steps(program, read)[1]
        return "no value" if value is None else written(value)


def _idle(program: str, read: str) -> list[str]:
    """The numbers of a problem that a program does not use."""
    used = set(map(int, re.findall(r"\bn(\d+)\b", program)))
    return [written(number) for place, number in enumerate(numbers_of(read)) if place not in used]


def _refuse_long(problem: str, text: str) -> None:
    count = len(words_of(text)[0])
    if count > MAX_WORDS:
        raise UserError(f"{problem} {count:,} words: at most {MAX_WORDS} are read")


def _likelihood(answer: Prediction) -> float:
    """Return that by which the answers to two readings are compared."""
    if answer.probability is not None:
        return answer.probability
    return -math.inf if answer.score is None else answer.score


def example(out: Path) -> list[str]:
    """Return the words of an `etude predict` on what comes with the package; what it writes goes into ``out``."""
    return ["text2math", "a train running at 120 km / hr crosses a pole in 18 seconds . what is its length ?"]
