"""Problems as tensors: read once, kept on the device, cut into batches of problems of like length.

Shape suffixes as in model.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from etude.studies.text2math.model import Batch
from etude.studies.text2math.problems import Problem
from etude.studies.text2math.tokens import PAD, Tokens

_POOL = 32
"""Batches among which problems are sorted by length."""


@runtime_checkable
class Reader(Protocol):
    """What makes integers of a problem's text: a vocabulary of words, or a BERT's tokenizer."""

    def read(self, text: str) -> tuple[list[int], list[int]]:
        """The integers, and for each the index of the number that it stands for or begins, or -1."""
        ...

    def spell(self, text: str) -> list[str]:
        """What each of the integers stands for, for people."""
        ...


@dataclass(frozen=True)
class Encoded:
    """Problems as padded tensors.

    Attributes:
        words_NT: integers of words.
        indices_NT: of each word that is a number its index, else -1.
        lengths_N: words of each.
        targets_NS: tokens of the programs, the end included; all padding where a program has an unknown token.
        features_PD: an encoder's states of every word, problem after problem, where they have been computed before.
    """

    words_NT: Tensor
    indices_NT: Tensor
    lengths_N: Tensor
    targets_NS: Tensor
    features_PD: Tensor | None = None

    def __len__(self) -> int:
        return len(self.words_NT)

    @cached_property
    def starts(self) -> Tensor:
        """Of each problem, the row of its first word in ``features_PD``."""
        return self.lengths_N.cumsum(0) - self.lengths_N

    @cached_property
    def host_lengths(self) -> tuple[Tensor, Tensor]:
        """Words and tokens of each, on the CPU: to ask a device for them in every step would be to wait for it."""
        return self.lengths_N.cpu(), (self.targets_NS != PAD).sum(1).cpu()

    def longest(self, rows_N: Tensor) -> tuple[int, int]:
        """Of some problems, whose rows are on the CPU, the most words and the most tokens, at least one."""
        words_N, tokens_N = self.host_lengths
        return int(words_N[rows_N].max()), max(1, int(tokens_N[rows_N].max()))

    def batch(self, rows_N: Tensor, longest: int | None = None) -> Batch:
        """Some problems, padded to the longest of them, whose length need not be asked for where it is known."""
        lengths_N = self.lengths_N[rows_N]
        longest = int(lengths_N.max()) if longest is None else longest
        features_NTD = None
        if self.features_PD is not None:
            place_T = torch.arange(longest, device=rows_N.device).expand(len(rows_N), -1)
            # What lies past a problem's end repeats its last word; nothing reads it.
            place_NT = self.starts[rows_N][:, None] + place_T.minimum(lengths_N[:, None] - 1)
            features_NTD = self.features_PD[place_NT].float()
        return Batch(self.words_NT[rows_N, :longest], self.indices_NT[rows_N, :longest], lengths_N, features_NTD)

    def targets(self, rows_N: Tensor, longest: int | None = None) -> Tensor:
        """Their programs, padded to the longest of them, whose length need not be asked for where it is known."""
        targets_NS = self.targets_NS[rows_N]
        return targets_NS[:, : max(1, int((targets_NS != PAD).sum(1).max())) if longest is None else longest]


def encode(problems: Sequence[Problem], reader: Reader, tokens: Tokens, device: torch.device) -> Encoded:
    """Problems and their programs as tensors on a device."""
    split = [reader.read(problem.text) for problem in problems]
    targets = [tokens.encode(problem.program) or [] if problem.program else [] for problem in problems]
    return Encoded(
        _padded([part for part, _ in split], PAD).to(device),
        _padded([indices for _, indices in split], -1).to(device),
        torch.tensor([max(1, len(part)) for part, _ in split], device=device),
        _padded(targets, PAD).to(device),
    )


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    # At least one column, which no problem and no program fills.
    parts = [torch.tensor(row or [fill], dtype=torch.int64) for row in rows]
    return pad_sequence(parts, batch_first=True, padding_value=fill)


def epoch_order(lengths_N: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """The batches of an epoch: problems of like length together, batches and problems in random order.

    Args:
        lengths_N: words of each problem, on the CPU.
        size: problems of a batch; those left over make a smaller last one of their length.
        generator: draws the order.

    Returns:
        Rows of each batch; every problem is in one.
    """
    shuffled_N = torch.randperm(len(lengths_N), generator=generator)
    batches: list[Tensor] = []
    for pool in shuffled_N.split(size * _POOL):
        batches += pool[lengths_N[pool].argsort(stable=True)].split(size)
    order = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[place] for place in order]


def by_length(lengths_N: Tensor, size: int) -> list[Tensor]:
    """All problems in batches of like length, longest first: what does not fit in memory fails at once."""
    return list(lengths_N.argsort(descending=True, stable=True).split(size))
