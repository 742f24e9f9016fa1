"""Words of problems and tokens of programs as integers, and the grammar of programs.

A problem's words are letters, numbers and single signs, in lower case; every number also has its index: the i-th is
what programs call ``n_i``. A program is written without the punctuation that its operators imply: operator, arguments,
operator, arguments, ..., end.

Shape suffixes: N problems, K hypotheses of each, T words, V tokens.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from etude.core.errors import UserError
from etude.studies.text2math.program import NUMBER_PATTERN, OPERATORS, parse, without_commas

PAD, START, END = 0, 1, 2
UNKNOWN, NUMBER = 1, 2
"""Words: one that the vocabulary lacks, and a number that it lacks."""
MAX_NUMBERS = 24
"""Numbers of a problem that have an index of their own; a program of the data set uses at most the 18th."""
MAX_TOKENS = 160
"""Tokens of a program, the end included; the longest of the data set has 148."""

_WORD = re.compile(rf"({NUMBER_PATTERN})|[^\W\d_]+|[^\w\s]|_")


def words_of(text: str) -> tuple[list[str], list[int]]:
    """The words of a problem, and for each the index of the number that it is, or -1.

    The numbers are those of `etude.studies.text2math.program.numbers_of`.
    """
    words: list[str] = []
    indices: list[int] = []
    count = 0
    for found in _WORD.finditer(without_commas(text)):
        words.append(unicodedata.normalize("NFKC", found[0]).lower())
        indices.append(count if found[1] is not None else -1)
        count += found[1] is not None
    return words, indices


@dataclass(frozen=True)
class Words:
    """The words that a network knows; the first three stand for padding, an unknown word and an unknown number."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str], least: int, least_number: int | None = None) -> "Words":
        """Every word, and every number, that occurs at least so often, the most frequent first."""
        bounds = (least, least if least_number is None else least_number)
        counts = Counter((word, index >= 0) for text in texts for word, index in zip(*words_of(text), strict=True))
        kept = [(-count, word) for (word, is_number), count in counts.items() if count >= bounds[is_number]]
        return cls(("<pad>", "<unknown>", "<number>", *(word for _, word in sorted(kept))))

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def read(self, text: str) -> tuple[list[int], list[int]]:
        """The integers of a problem's words, and of each word the index of the number that it is, or -1."""
        words, indices = words_of(text)
        ids = self._ids
        known = [ids.get(word, UNKNOWN if index < 0 else NUMBER) for word, index in zip(words, indices, strict=True)]
        return known, indices

    def spell(self, text: str) -> list[str]:
        """Return what each of the integers stands for, for people."""
        return words_of(text)[0]


@dataclass(frozen=True)
class Tokens:
    """The tokens of programs: padding, start, end, then operators, constants, numbers and results."""

    tokens: tuple[str, ...]

    @classmethod
    def of(cls, programs: Iterable[str]) -> "Tokens":
        """The tokens of some programs. Numbers and results go up to the largest that occurs."""
        operators: set[str] = set()
        arguments: set[str] = set()
        for program in programs:
            for step in parse(program):
                operators.add(step.operator)
                arguments.update(step.arguments)
        numbers, results = (
            1 + max((int(name[1:]) for name in arguments if name.startswith(mark) and name[1:].isdigit()), default=-1)
            for mark in ("n", "#")
        )
        constants = sorted(name for name in arguments if name.startswith("const_"))
        named = [*(f"n{index}" for index in range(numbers)), *(f"#{index}" for index in range(results))]
        return cls(("<pad>", "<start>", "<end>", *sorted(operators), *constants, *named))

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    def encode(self, program: str) -> list[int] | None:
        """A program's tokens, the end last; None where a token is unknown."""
        words = [word for step in parse(program) for word in (step.operator, *step.arguments)]
        ids = [self._ids.get(word) for word in words]
        return None if None in ids else [*(number for number in ids if number is not None), END]

    def decode(self, ids: Iterable[int]) -> str:
        """The program that tokens spell, up to the end; what is no program comes out as a text that cannot be run."""
        steps: list[tuple[str, list[str]]] = []
        for number in ids:
            token = self.tokens[number]
            if number == END:
                break
            if token in OPERATORS or not steps:
                steps.append((token, []) if token in OPERATORS else ("", [token]))
            else:
                steps[-1][1].append(token)
        return "".join(f"{operator}({','.join(arguments)})|" for operator, arguments in steps)

    def indices(self, mark: str) -> list[int]:
        """Return each token's i of ``n_i`` or j of ``#j``, whichever the mark is; -1 for other tokens."""
        return [int(token[1:]) if re.fullmatch(rf"{mark}\d+", token) else -1 for token in self.tokens]

    @cached_property
    def arity(self) -> Tensor:
        """The number of arguments that an operator takes; 0 for other tokens."""
        return torch.tensor([OPERATORS[token].arity if token in OPERATORS else 0 for token in self.tokens])

    @cached_property
    def number(self) -> Tensor:
        """The i of ``n_i``; -1 for other tokens."""
        return torch.tensor(self.indices("n"))

    @cached_property
    def result(self) -> Tensor:
        """The j of ``#j``; -1 for other tokens."""
        return torch.tensor(self.indices("#"))

    @cached_property
    def constant(self) -> Tensor:
        """True for tokens that are constants."""
        return torch.tensor([token.startswith("const_") for token in self.tokens])


def vocabularies(words: Words, tokens: Tokens) -> Tensor:
    """Both vocabularies as bytes, which lie beside the weights: uint8, one dimension."""
    text = "\n".join(words.words) + "\n\n" + "\n".join(tokens.tokens)
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def read_vocabularies(tensors: Mapping[str, Tensor], where: str) -> tuple[Words, Tokens]:
    """The vocabularies that `vocabularies` wrote among a network's weights.

    Raises:
        UserError: they are not among them, or garbled; the line begins with ``where``.
    """
    try:
        words, gap, tokens = bytes(tensors["model.vocabularies"].tolist()).decode().partition("\n\n")
        if not gap:
            raise ValueError("one vocabulary")
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{where} has no vocabularies ({type(error).__name__}): export it again") from error
    return Words(tuple(words.split("\n"))), Tokens(tuple(tokens.split("\n")))


@dataclass
class Grammar:
    """The grammar's state in programs that are being written, for N problems with K hypotheses each.

    Attributes:
        tokens: the vocabulary.
        numbers_N: how many numbers each problem has.
        left_NK: how many arguments the last operator still wants.
        steps_NK: how many operators have been written.
    """

    tokens: Tokens
    numbers_N: Tensor
    left_NK: Tensor
    steps_NK: Tensor

    @classmethod
    def start(cls, tokens: Tokens, numbers_N: Tensor) -> "Grammar":
        """Return the state of empty programs, one hypothesis each."""
        zeros = torch.zeros(len(numbers_N), 1, dtype=torch.int64, device=numbers_N.device)
        return cls(tokens, numbers_N, zeros, zeros)

    def allowed(self) -> Tensor:
        """The tokens that may come next: an operator or the end, or an argument that exists."""
        device = self.numbers_N.device
        arity_V, number_V = self.tokens.arity.to(device), self.tokens.number.to(device)
        result_V, constant_V = self.tokens.result.to(device), self.tokens.constant.to(device)
        wants_NK1 = (self.left_NK > 0)[..., None]
        # An operator that is written already has no result yet.
        done_NK1 = (self.steps_NK - wants_NK1[..., 0].long())[..., None]
        number_NV = (number_V >= 0) & (number_V < self.numbers_N[:, None])
        result_NKV = (result_V >= 0) & (result_V < done_NK1)
        arguments_NKV = number_NV[:, None] | result_NKV | constant_V
        between_NKV = (arity_V > 0).expand_as(result_NKV).clone()
        between_NKV[..., END] = self.steps_NK > 0
        return torch.where(wants_NK1, arguments_NKV, between_NKV)

    def after(self, rows_N: Tensor, hypotheses_NK: Tensor, tokens_NK: Tensor) -> "Grammar":
        """The state after a token more.

        Args:
            rows_N: the problems that go on.
            hypotheses_NK: of each new hypothesis, the old one that it continues.
            tokens_NK: with which token.
        """
        left_NK = self.left_NK[rows_N].gather(1, hypotheses_NK)
        steps_NK = self.steps_NK[rows_N].gather(1, hypotheses_NK)
        arity_NK = self.tokens.arity.to(tokens_NK.device)[tokens_NK]
        is_operator = arity_NK > 0
        left_NK = torch.where(is_operator, arity_NK, (left_NK - 1).clamp_min(0))
        return Grammar(self.tokens, self.numbers_N[rows_N], left_NK, steps_NK + is_operator.long())
