"""Retrieval: the programs of the training problems whose texts are nearest.

Problems of the data set repeat each other with other numbers: with its numbers masked, three of four problems of the
test split are a training problem letter for letter, and nearly all have that one's program.

Texts are compared by the cosine of the TF-IDF of their words, pairs and triples of words, numbers masked. Training
problems with as many numbers come before all others, and each votes for its program with a power of the cosine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from etude.data.mathqa import masked
from etude.studies.text2math import scores
from etude.studies.text2math.problems import Problem
from etude.studies.text2math.program import numbers_of

VOTERS = 10
SHARPNESS = 16
"""The power of the cosine that a vote weighs: of 1, 2, 4, 8, 16 and 32 it answers most of dev."""
_CHUNK = 250


@dataclass(frozen=True)
class Neighbour:
    """A training problem near a problem.

    Attributes:
        row: its place among the training problems.
        cosine: that of the two texts' TF-IDF.
        same: it has as many numbers.
    """

    row: int
    cosine: float
    same: bool


@dataclass(frozen=True)
class Voted:
    """A program that neighbours have.

    Attributes:
        program: the program, without a last ``|``.
        share: its share of the vote of the `VOTERS` nearest; 0 where only farther ones have it.
        nearest: the nearest neighbour that has it.
        rank: that one's place among the neighbours.
        count: how many of the neighbours have it.
    """

    program: str
    share: float
    nearest: Neighbour
    rank: int
    count: int


class Index:
    """Problems with programs, found by their texts."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

        self.problems = problems
        self.programs = [scores.canonical(problem.program) for problem in problems]
        # Every second text is another one but for its numbers: each is read and compared once.
        texts: dict[str, int] = {}
        self._text_P = np.array([texts.setdefault(masked(problem.text), len(texts)) for problem in problems])
        self._counter = CountVectorizer(lowercase=False, token_pattern=r"\S+", ngram_range=(1, 3))
        counts_QW = self._counter.fit_transform(texts)
        self._weights = TfidfTransformer(sublinear_tf=True).fit(counts_QW[self._text_P])
        weights_QW: Any = self._weights.transform(counts_QW)
        self._texts_WQ = weights_QW.T.tocsr()
        self._counts_P = np.array([len(numbers_of(problem.text)) for problem in problems])

    def nearest(self, problems: Sequence[Problem], count: int, *, leave_out: bool = False) -> list[list[Neighbour]]:
        """Return the nearest of the index to each problem, the nearest first.

        Args:
            problems: the problems.
            count: how many neighbours of each.
            leave_out: the problems are those of the index, and none is its own neighbour.
        """
        found: list[list[Neighbour]] = []
        for start in range(0, len(problems), _CHUNK):
            part = problems[start : start + _CHUNK]
            counts_NW = self._counter.transform([masked(problem.text) for problem in part])
            cosine_NP = (self._weights.transform(counts_NW) @ self._texts_WQ).toarray()[:, self._text_P]
            if leave_out:
                own_N = np.arange(len(part))
                cosine_NP[own_N, start + own_N] = -2.0
            for cosine_P, problem in zip(cosine_NP, part, strict=True):
                same_P = self._counts_P == len(numbers_of(problem.text))
                near_P = cosine_P + same_P
                most = min(count, len(near_P))
                # The order of those that are equally near is that of training.
                bound = np.partition(near_P, -most)[-most]
                rows = np.flatnonzero(near_P >= bound)
                rows = rows[np.argsort(-near_P[rows], kind="stable")][:most].tolist()
                found.append([Neighbour(row, float(cosine_P[row]), bool(same_P[row])) for row in rows])
        return found

    def vote(self, neighbours: Sequence[Neighbour]) -> list[Voted]:
        """Return the programs that neighbours have, those with the most votes first."""
        weights = [max(0.0, one.cosine) ** SHARPNESS if place < VOTERS else 0.0 for place, one in enumerate(neighbours)]
        places: dict[str, list[int]] = {}
        for place, one in enumerate(neighbours):
            places.setdefault(self.programs[one.row], []).append(place)
        total = sum(weights) or 1.0
        voted = [
            Voted(program, sum(weights[place] for place in at) / total, neighbours[at[0]], at[0], len(at))
            for program, at in places.items()
        ]
        return sorted(voted, key=lambda one: -one.share)
