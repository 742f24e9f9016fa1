"""Problems as tensors: read once, kept on the device, cut into batches of problems of like length.

Shape suffixes: N problems, T words of the longest, S tokens of the longest program, P words of all problems of a split,
D numbers of a state, R programs of neighbours, L tokens of the longest of them, F what is known of each.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from etude.core import randomness
from etude.studies.text2math.problems import Problem
from etude.studies.text2math.retrieval import Index, Voted
from etude.studies.text2math.tokens import END, PAD, Tokens, words_of

_POOL = 32
"""Batches among which problems are sorted by length."""


@runtime_checkable
class Reader(Protocol):
    """A reader makes integers of a problem's text: a vocabulary of words, or a BERT's tokenizer."""

    def read(self, text: str) -> tuple[list[int], list[int]]:
        """Return the integers, and for each the index of the number that it stands for or begins, or -1."""
        ...

    def spell(self, text: str) -> list[str]:
        """Return what each of the integers stands for, for people."""
        ...


NEIGHBOUR_FEATURES = 4
"""F: a program's share of the vote, the cosine of its nearest problem, whether that has as many numbers, its count."""


@dataclass(frozen=True)
class Neighbours:
    """The programs that the nearest training problems vote for, those with the most votes first.

    Attributes:
        tokens_NRL: int64, their tokens with the end; PAD where there is none. The first has one at least.
        about_NRF: float32, what is known of each; see `NEIGHBOUR_FEATURES`.
        shared_NTR: float32, 1 where a word stands in the nearest problem that has the program, too.
    """

    tokens_NRL: Tensor
    about_NRF: Tensor
    shared_NTR: Tensor

    def take(self, rows_N: Tensor, words: int) -> "Neighbours":
        """Return those of some problems, on the device, the longest of which has so many words."""
        tokens_NRL = self.tokens_NRL[rows_N]
        longest = int((tokens_NRL != PAD).any(0).any(0).sum())
        return Neighbours(tokens_NRL[..., :longest], self.about_NRF[rows_N], self.shared_NTR[rows_N, :words].float())


@dataclass(frozen=True)
class Batch:
    """Problems, and their programs where these are known, as padded tensors.

    Attributes:
        words_NT: int64, the words; 0 pads.
        indices_NT: int64, the i of a word that is the number ``n_i``; -1 for other words and for padding.
        lengths_N: int64, how many words each problem has.
        targets_NS: int64, the tokens of the programs, the end included; all padding where a program has an unknown
            token, and empty where there are only problems.
        features_PD: a frozen encoder's states of the words of a whole split, problem after problem, where they have
            been computed before.
        starts_N: int64, the row of each problem's first word in ``features_PD``.
        neighbours: the programs that the decoder reads; None where it reads none.
    """

    words_NT: Tensor
    indices_NT: Tensor
    lengths_N: Tensor
    targets_NS: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    features_PD: Tensor | None = None
    starts_N: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    neighbours: Neighbours | None = None

    def __len__(self) -> int:
        return len(self.words_NT)

    @property
    def counts(self) -> Tensor:
        """The count of each problem's numbers: int64 ``[N]``."""
        return self.indices_NT.amax(1) + 1

    def features(self) -> Tensor | None:
        """The frozen encoder's states of these problems, ``[N, T, D]``, where they have been computed before."""
        if self.features_PD is None:
            return None
        place_T = torch.arange(self.words_NT.shape[1], device=self.words_NT.device)
        # What lies past a problem's end repeats its last word; nothing reads it.
        place_NT = self.starts_N[:, None] + place_T.minimum(self.lengths_N[:, None] - 1)
        return self.features_PD[place_NT].float()

    @property
    def mask(self) -> Tensor:
        """True where there is a word: bool ``[N, T]``."""
        return torch.arange(self.words_NT.shape[1], device=self.words_NT.device) < self.lengths_N[:, None]

    @cached_property
    def host_lengths(self) -> tuple[Tensor, Tensor]:
        """The numbers of words and tokens of each, on the CPU: to ask a device in every step is to wait for it."""
        return self.lengths_N.cpu(), (self.targets_NS != PAD).sum(1).cpu()

    def longest(self, rows_N: Tensor) -> tuple[int, int]:
        """Return the most words, and the most tokens, at least one, of the problems in some rows, on the CPU."""
        words_N, tokens_N = self.host_lengths
        return int(words_N[rows_N].max()), max(1, int(tokens_N[rows_N].max()))

    def take(self, rows_N: Tensor) -> "Batch":
        """Return the problems in some rows, on the CPU, padded to the longest problem and program of them."""
        words, tokens = self.longest(rows_N)
        rows_N = randomness.upload(rows_N, self.words_NT.device)
        return Batch(
            self.words_NT[rows_N, :words], self.indices_NT[rows_N, :words], self.lengths_N[rows_N],
            self.targets_NS[rows_N, :tokens], self.features_PD, self.starts_N[rows_N],
            None if self.neighbours is None else self.neighbours.take(rows_N, words),
        )  # fmt: skip

    def by_length(self, size: int) -> Iterator[tuple[Tensor, "Batch"]]:
        """Yield all problems in batches of like length with their rows, on the CPU.

        The longest come first: what does not fit in memory fails at once.
        """
        for rows_N in self.host_lengths[0].argsort(descending=True, stable=True).split(size):
            yield rows_N, self.take(rows_N)


def encode(problems: Sequence[Problem], reader: Reader, tokens: Tokens, device: torch.device) -> Batch:
    """Return problems and their programs as tensors on a device."""
    read = [reader.read(problem.text) for problem in problems]
    targets = [tokens.encode(problem.program) or [] if problem.program else [] for problem in problems]
    lengths_N = torch.tensor([max(1, len(words)) for words, _ in read], device=device)
    return Batch(
        _padded([words for words, _ in read], PAD).to(device), _padded([indices for _, indices in read], -1).to(device),
        lengths_N, _padded(targets, PAD).to(device), starts_N=lengths_N.cumsum(0) - lengths_N,
    )  # fmt: skip


MAX_READ = 32
"""Tokens of a neighbour's program that are read."""


def read_neighbours(
    problems: Sequence[Problem], voted: Sequence[Sequence[Voted]], index: Index, tokens: Tokens, reads: int,
    device: torch.device,
) -> Neighbours:  # fmt: skip
    """Return what a decoder reads of the programs that neighbours vote for, ``reads`` of each problem's at most."""
    programs = {program: (tokens.encode(program) or [])[:MAX_READ] for program in set(index.programs)}
    words_of_text: dict[int, set[str]] = {}
    most = max((len(words_of(problem.text)[0]) for problem in problems), default=1)
    tokens_NRL = torch.zeros(len(problems), reads, MAX_READ, dtype=torch.int64)
    about_NRF = torch.zeros(len(problems), reads, NEIGHBOUR_FEATURES)
    shared_NTR = torch.zeros(len(problems), max(1, most), reads, dtype=torch.bool)
    for row, (problem, some) in enumerate(zip(problems, voted, strict=True)):
        words = words_of(problem.text)[0]
        for rank, one in enumerate(some[:reads]):
            ids, near = programs[one.program], one.nearest
            tokens_NRL[row, rank, : len(ids)] = torch.tensor(ids)
            about_NRF[row, rank] = torch.tensor([one.share, near.cosine, float(near.same), math.log(one.count)])
            if near.row not in words_of_text:
                words_of_text[near.row] = set(words_of(index.problems[near.row].text)[0])
            theirs = words_of_text[near.row]
            shared_NTR[row, : len(words), rank] = torch.tensor([word in theirs for word in words], dtype=torch.bool)
    # Something to look at, where no program is known.
    tokens_NRL[:, 0, 0] = tokens_NRL[:, 0, 0].where(tokens_NRL[:, 0, 0] != PAD, torch.tensor(END))
    return Neighbours(tokens_NRL.to(device), about_NRF.to(device), shared_NTR.to(device))


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    # At least one column, which no problem and no program fills.
    parts = [torch.tensor(row or [fill], dtype=torch.int64) for row in rows]
    return pad_sequence(parts, batch_first=True, padding_value=fill)


def epoch_order(lengths_N: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """Return the rows of an epoch's batches: problems of like length together, batches and problems in random order.

    Args:
        lengths_N: words of each problem, on the CPU.
        size: problems of a batch; those left over make a smaller last one of their length.
        generator: draws the order.
    """
    shuffled_N = torch.randperm(len(lengths_N), generator=generator)
    batches: list[Tensor] = []
    for pool in shuffled_N.split(size * _POOL):
        batches += pool[lengths_N[pool].argsort(stable=True)].split(size)
    order = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[place] for place in order]
