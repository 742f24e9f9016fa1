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
    """Return the words of a problem, and for each the index (in `program.numbers_of`) of the number it is, or -1."""
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
        """Return every word, and every number, that occurs at least so often, the most frequent first."""
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
        """Return the integers of a problem's words, and of each word the index of the number that it is, or -1."""
        words, indices = words_of(text)
        unknown = (UNKNOWN if index < 0 else NUMBER for index in indices)
        return [self._ids.get(word, other) for word, other in zip(words, unknown, strict=True)], indices

    def spell(self, text: str) -> list[str]:
        """Return the words that the integers stand for."""
        return words_of(text)[0]


@dataclass(frozen=True)
class Tokens:
    """The tokens of programs: padding, start, end, then operators, constants, numbers and results."""

    tokens: tuple[str, ...]

    @classmethod
    def of(cls, programs: Iterable[str]) -> "Tokens":
        """Return the tokens of some programs. Numbers and results go up to the largest that occurs."""
        steps = [step for program in programs for step in parse(program)]
        arguments = {argument for step in steps for argument in step.arguments}
        constants = sorted(name for name in arguments if name.startswith("const_"))
        counted: list[str] = []
        for mark in ("n", "#"):
            indices = [int(name[1:]) for name in arguments if name.startswith(mark) and name[1:].isdigit()]
            counted += [f"{mark}{index}" for index in range(1 + max(indices, default=-1))]
        return cls(("<pad>", "<start>", "<end>", *sorted({step.operator for step in steps}), *constants, *counted))

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    def encode(self, program: str) -> list[int] | None:
        """Return a program's tokens, the end last; None where a token is unknown."""
        words = [word for step in parse(program) for word in (step.operator, *step.arguments)]
        return [*(self._ids[word] for word in words), END] if set(words) <= self._ids.keys() else None

    def decode(self, ids: Iterable[int]) -> str:
        """Return the program that tokens spell, up to the end; what is none comes out as a text that cannot be run."""
        steps: list[tuple[str, list[str]]] = []
        for number in ids:
            token = self.tokens[number]
            if number == END:
                break
            if token in OPERATORS or not steps:
                steps.append((token if token in OPERATORS else "", []))
            if token not in OPERATORS:
                steps[-1][1].append(token)
        return "".join(f"{operator}({','.join(arguments)})|" for operator, arguments in steps)

    def indices(self, mark: str) -> list[int]:
        """Return each token's i of ``n_i`` or j of ``#j``, whichever the mark is; -1 for other tokens."""
        return [int(token[1:]) if re.fullmatch(rf"{mark}\d+", token) else -1 for token in self.tokens]


def vocabularies(words: Words, tokens: Tokens) -> Tensor:
    """Return both vocabularies as bytes, which lie beside the weights: uint8, one dimension."""
    text = "\n".join(words.words) + "\n\n" + "\n".join(tokens.tokens)
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def read_vocabularies(tensors: Mapping[str, Tensor], where: str) -> tuple[Words, Tokens]:
    """Return the vocabularies that `vocabularies` wrote among a network's weights.

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


class Grammar:
    """The grammar's state in programs that are being written, for N problems with some hypotheses each.

    Args:
        tokens: the vocabulary.
        numbers_N: how many numbers each problem has.
    """

    def __init__(self, tokens: Tokens, numbers_N: Tensor) -> None:
        device, arities = numbers_N.device, [OPERATORS[t].arity if t in OPERATORS else 0 for t in tokens.tokens]
        self._arity_V = torch.tensor(arities, device=device)
        self._number_V = torch.tensor(tokens.indices("n"), device=device)
        self._result_V = torch.tensor(tokens.indices("#"), device=device)
        self._constant_V = torch.tensor([token.startswith("const_") for token in tokens.tokens], device=device)
        self._numbers_N = numbers_N
        # How many arguments the last operator still wants, and how many operators have been written.
        self._left_NK = torch.zeros(len(numbers_N), 1, dtype=torch.int64, device=device)
        self._steps_NK = torch.zeros_like(self._left_NK)

    def allowed(self) -> Tensor:
        """Return which tokens may come next, ``[N, K, V]``: an operator or the end, or an argument that exists."""
        wants_NK1 = (self._left_NK > 0)[..., None]
        # An operator that is written already has no result yet.
        done_NK1 = (self._steps_NK - wants_NK1[..., 0].long())[..., None]
        number_NV = (self._number_V >= 0) & (self._number_V < self._numbers_N[:, None])
        result_NKV = (self._result_V >= 0) & (self._result_V < done_NK1)
        arguments_NKV = number_NV[:, None] | result_NKV | self._constant_V
        between_NKV = (self._arity_V > 0).expand_as(result_NKV).clone()
        between_NKV[..., END] = self._steps_NK > 0
        return torch.where(wants_NK1, arguments_NKV, between_NKV)

    def advance(self, rows_N: Tensor, hypotheses_NK: Tensor, tokens_NK: Tensor) -> None:
        """Go on by a token.

        Args:
            rows_N: the problems that go on.
            hypotheses_NK: of each new hypothesis, the old one that it continues.
            tokens_NK: with which token.
        """
        left_NK = self._left_NK[rows_N].gather(1, hypotheses_NK)
        arity_NK = self._arity_V[tokens_NK]
        self._left_NK = torch.where(arity_NK > 0, arity_NK, (left_NK - 1).clamp_min(0))
        self._steps_NK = self._steps_NK[rows_N].gather(1, hypotheses_NK) + (arity_NK > 0).long()
        self._numbers_N = self._numbers_N[rows_N]
