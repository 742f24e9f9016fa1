"""The choice among the programs of a beam and those of neighbours, by what is known of each.

Shape suffixes: C candidates of a problem, F features; and as in model.py.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from etude.data.mathqa import masked
from etude.studies.text2math import scores
from etude.studies.text2math.batches import Batch
from etude.studies.text2math.beam import Hypothesis
from etude.studies.text2math.model import Text2Math
from etude.studies.text2math.problems import Problem
from etude.studies.text2math.program import OPERATORS, Operator, numbers_of, real
from etude.studies.text2math.retrieval import Index, Neighbour, Voted
from etude.studies.text2math.tokens import PAD, START, Tokens

_TOGETHER = 512
"""Programs whose probability is computed at a time."""
_CONSTANT = 1e-9
_SAME = 1e-4
"""Values within this share of each other agree."""


@dataclass(frozen=True)
class Candidate:
    """A program that may answer a problem.

    Attributes:
        program: the program, without a last ``|``.
        place: its place in the beam; None where the beam did not find it.
        voted: what neighbours say of it; None where none has it.
        value: its value for the problem; None where that is no finite number.
    """

    program: str
    place: int | None
    voted: Voted | None
    value: float | None


def candidates_of(
    hypotheses: Sequence[Hypothesis], voted: Sequence[Voted], problem: Problem, tokens: Tokens,
    operators: Mapping[str, Operator] = OPERATORS,
) -> list[Candidate]:  # fmt: skip
    """Return the programs of a beam and of neighbours, each once."""
    beam = [scores.canonical(tokens.decode(hypothesis.tokens)) for hypothesis in hypotheses if hypothesis.ended]
    places = {program: place for place, program in reversed([*enumerate(beam)])}
    votes = {one.program: one for one in voted}
    numbers = numbers_of(problem.text)
    return [
        Candidate(
            program, places.get(program), votes.get(program), real(scores.value_of(program, numbers, operators))
        )
        for program in dict.fromkeys([*beam, *votes])
        if tokens.encode(program) is not None
    ]  # fmt: skip


@torch.inference_mode()
def log_probabilities(
    model: Text2Math, problems: Batch, programs: Sequence[Sequence[str]], tokens: Tokens, size: int = 64
) -> list[list[float]]:
    """Return the log-probability under the network of some programs of each problem, the end included.

    Args:
        model: the network, in evaluation mode.
        problems: the problems.
        programs: of each problem, programs whose tokens are known; ``C`` of them at most.
        tokens: the vocabulary.
        size: problems at a time.
    """
    found = [[0.0] * len(some) for some in programs]
    for rows_N, batch in problems.by_length(size):
        memory, state = model.encode(batch)
        rows: list[int] = rows_N.tolist()
        # Programs of like length together, whatever their problem is.
        pairs = sorted(
            (
                (tokens.encode(program) or [], place, row, number)
                for place, row in enumerate(rows)
                for number, program in enumerate(programs[row])
            ),
            key=lambda pair: len(pair[0]),
        )
        for start in range(0, len(pairs), _TOGETHER):
            some = pairs[start : start + _TOGETHER]
            targets_BS = pad_sequence([torch.tensor(ids) for ids, *_ in some], batch_first=True).to(
                memory.mask_NT.device
            )
            places_B = torch.tensor([place for _, place, _, _ in some], device=targets_BS.device)
            inputs_BS = functional.pad(targets_BS[:, :-1], (1, 0), value=START)
            hidden, cell = (part.index_select(1, places_B) for part in state)
            s_BSH, _ = model.decoder.run(inputs_BS, (hidden, cell))
            mine = memory.take(places_B)
            u_BSH, _, copied_BSJ = model.decoder.attend(s_BSH, mine)
            log_p_BSV = model.decoder.project(u_BSH, mine, copied_BSJ).log_softmax(-1)
            log_p_BS = log_p_BSV.gather(-1, targets_BS[..., None])[..., 0].masked_fill(targets_BS == PAD, 0.0)
            for (_, _, row, number), log_p in zip(some, log_p_BS.sum(1).tolist(), strict=True):
                found[row][number] = log_p
    return found


_NUMBER = re.compile(r"\bn(\d+)\b")
_ARGUMENTS = re.compile(r"\(.*?\)")


class Features:
    """What is known of the candidates of a problem, as numbers.

    Args:
        index: the training problems, whose programs' frequencies count.
    """

    def __init__(self, index: Index) -> None:
        self.programs = Counter(index.programs)
        self.templates = Counter(_ARGUMENTS.sub("", program) for program in index.programs)

    NAMES = (
        "log p", "log p of a token", "log p below the best", "share of p", "tokens", "in the beam", "place in the beam",
        "share of the vote", "cosine", "as many numbers", "neighbours", "rank of the neighbour", "has a neighbour",
        "cosine of the nearest", "cosine below the nearest", "share of the vote of the first",
        "has a value", "above zero", "whole", "two decimals", "log of the value",
        "numbers used", "all numbers used", "numbers unused", "numbers",
        "share of p of its value", "share of the vote of its value", "candidates of its value",
        "log frequency", "log frequency of its operators", "steps", "first of the vote", "first of p",
    )  # fmt: skip

    def of(
        self,
        candidates: Sequence[Candidate],
        log_p_C: Sequence[float],
        neighbours: Sequence[Neighbour],
        problem: Problem,
    ) -> np.ndarray:
        """Return the features of a problem's candidates, float64 ``[C, F]``."""
        numbers = len(numbers_of(problem.text))
        best = max(log_p_C, default=0.0)
        p_C = [math.exp(log_p - best) for log_p in log_p_C]
        total = sum(p_C) or 1.0
        shares = [one.voted.share if one.voted else 0.0 for one in candidates]
        first_vote = max(shares, default=0.0)
        nearest = neighbours[0].cosine if neighbours else 0.0
        keys = [None if one.value is None else f"{one.value:.4g}" for one in candidates]
        of_value: dict[str | None, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        for key, p, share in zip(keys, p_C, shares, strict=True):
            for place, amount in enumerate((p / total, share, 1.0)):
                of_value[key][place] += amount
        rows: list[list[float]] = []
        for one, key, log_p, p, share in zip(candidates, keys, log_p_C, p_C, shares, strict=True):
            steps = one.program.count("(")
            length = steps + one.program.count(",") + steps + 1
            used = {int(found) for found in _NUMBER.findall(one.program)}
            value = one.value
            agree = of_value[key] if key is not None else [0.0, 0.0, 0.0]
            voted = one.voted
            rows.append([
                log_p, log_p / length, log_p - best, p / total, length,
                float(one.place is not None), float(one.place if one.place is not None else 30),
                share, voted.nearest.cosine if voted else 0.0, float(voted.nearest.same) if voted else 0.0,
                math.log1p(voted.count) if voted else 0.0, math.log1p(voted.rank if voted else 100),
                float(voted is not None), nearest, nearest - (voted.nearest.cosine if voted else 0.0), first_vote,
                float(value is not None), float(value is not None and value > 0),
                float(value is not None and _is_whole(value)),
                float(value is not None and _is_whole(100 * value)),
                math.log10(abs(value) + 1e-6) if value is not None else -6.0,
                len(used) / max(1, numbers), float(len(used) >= numbers), float(numbers - len(used)), float(numbers),
                *agree[:2], math.log1p(agree[2]),
                math.log1p(self.programs[one.program]), math.log1p(self.templates[_ARGUMENTS.sub("", one.program)]),
                float(steps), float(share == first_vote and share > 0), float(log_p == best),
            ])  # fmt: skip
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.NAMES))


def _is_whole(value: float) -> bool:
    return math.isfinite(value) and abs(value - round(value)) < _SAME


@dataclass(frozen=True)
class Judged:
    """The candidates of a problem with what is known of each, float64 ``[C, F]``, and the problem's neighbours."""

    candidates: list[Candidate]
    x_CF: np.ndarray
    neighbours: Sequence[Neighbour]


class Candidates:
    """The way from what a beam found to the candidates of problems.

    Args:
        model: the network, in evaluation mode.
        tokens: its vocabulary.
        index: the training problems.
        count: how many neighbours are asked.
    """

    def __init__(self, model: Text2Math, tokens: Tokens, index: Index, count: int) -> None:
        self.model, self.tokens, self.index, self.count = model, tokens, index, count
        self.features = Features(index)

    def judged(
        self, problems: Sequence[Problem], encoded: Batch, found: Sequence[Sequence[Hypothesis]],
        operators: Mapping[str, Operator] = OPERATORS,
    ) -> list[Judged]:  # fmt: skip
        """Return each problem's candidates, of what a beam found for it and of its neighbours."""
        nearest = self.index.nearest(problems, self.count)
        candidates = [
            candidates_of(hypotheses, self.index.vote(near), problem, self.tokens, operators)
            for hypotheses, near, problem in zip(found, nearest, problems, strict=True)
        ]
        programs = [[one.program for one in some] for some in candidates]
        log_ps = log_probabilities(self.model, encoded, programs, self.tokens)
        return [
            Judged(some, self.features.of(some, log_p_C, near, problem), near)
            for some, log_p_C, near, problem in zip(candidates, log_ps, nearest, problems, strict=True)
        ]


@dataclass(frozen=True)
class Choice:
    """The candidate that was chosen.

    Attributes:
        program: its program; empty where there is no candidate.
        probability: how likely it is right, calibrated on dev.
        order: the numbers of all candidates, the likeliest first.
    """

    program: str
    probability: float
    order: tuple[int, ...]


@dataclass(frozen=True)
class Chooser:
    r"""A conditional logit over a problem's candidates (McFadden 1974): $p_c \propto \exp(w^\top x_c)$.

    It is fitted by the probability of all candidates that answer, with the weights' squares as the penalty. How sure
    the best one is follows from its probability.

    Attributes:
        mean_F: the features' means on dev.
        scale_F: their standard deviations; 1 where a feature is constant.
        weight_F: $w$, of the standardised features.
        slope: with ``shift``, it makes a calibrated probability of the logit of the best one's $p_c$ (Platt 1999);
            fitted out of fold.
        shift: see ``slope``.
        threshold: from this probability on, `SURE` of dev are right.
    """

    mean_F: tuple[float, ...]
    scale_F: tuple[float, ...]
    weight_F: tuple[float, ...]
    slope: float = 1.0
    shift: float = 0.0
    threshold: float = 1.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Chooser":
        """Return the classifier that `dataclasses.asdict` wrote."""
        mean_F, scale_F, weight_F = (tuple(values[name]) for name in ("mean_F", "scale_F", "weight_F"))
        return cls(mean_F, scale_F, weight_F, values["slope"], values["shift"], values["threshold"])

    def probabilities(self, x_CF: np.ndarray) -> np.ndarray:
        """Return $p_c$ of each candidate, float64 ``[C]``."""
        logit_C = (x_CF - np.array(self.mean_F)) / np.array(self.scale_F) @ np.array(self.weight_F)
        p_C = np.exp(logit_C - logit_C.max())
        return p_C / p_C.sum()

    def choose(self, judged: Judged) -> Choice:
        """Return the likeliest of a problem's candidates."""
        if not judged.candidates:
            return Choice("", 0.0, ())
        p_C = self.probabilities(judged.x_CF)
        # Candidates of one value answer alike: sureness is that of the value.
        order = np.argsort(-p_C, kind="stable").tolist()
        best = judged.candidates[order[0]]
        same = sum(p for p, one in zip(p_C.tolist(), judged.candidates, strict=True) if one.value == best.value)
        logit = self.slope * _logit(same) + self.shift
        return Choice(best.program, 1 / (1 + math.exp(-logit)), tuple(order))


def _logit(p: float) -> float:
    p = min(1 - 1e-6, max(1e-6, p))
    return math.log(p / (1 - p))


FOLDS = 5
PENALTY = 1e-3
"""The weight of the squares of the weights: of 1e-5 to 3e-2 by factors of three, it answers most of dev."""
SURE = 0.97
"""The share of right answers from the threshold on."""


def fit(judged: Sequence[Judged], problems: Sequence[Problem]) -> tuple[Chooser, list[Choice]]:
    """Return the classifier of the candidates of some problems, and what it chooses for each when fitted without it.

    A fold holds all problems of a masked text.
    """
    from sklearn.linear_model import LogisticRegression

    texts: dict[str, int] = {}
    text_N = np.array([texts.setdefault(masked(problem.text), len(texts)) for problem in problems])
    fold_N = np.random.default_rng(0).permutation(len(texts))[text_N] % FOLDS
    right = [
        np.array([scores.judge(one.program, problem).execution for one in some.candidates], dtype=bool)
        for some, problem in zip(judged, problems, strict=True)
    ]

    logit_N, right_N = np.full((len(problems), 1), _logit(0.0)), np.zeros(len(problems), dtype=bool)
    choices = [Choice("", 0.0, ())] * len(problems)
    for fold in range(FOLDS):
        rows = np.flatnonzero(fold_N != fold).tolist()
        chooser = _fitted([judged[row].x_CF for row in rows], [right[row] for row in rows])
        for row in np.flatnonzero(fold_N == fold).tolist():
            choices[row] = chooser.choose(judged[row])
            if choices[row].order:
                logit_N[row], right_N[row] = _logit(choices[row].probability), right[row][choices[row].order[0]]
    # A handful of problems may be all right, and a line through them has no end.
    platt = LogisticRegression(C=1.0).fit(logit_N, right_N) if right_N.any() and not right_N.all() else None
    slope, shift = (1.0, 0.0) if platt is None else (float(platt.coef_[0, 0]), float(platt.intercept_[0]))
    sure_N = 1 / (1 + np.exp(-(slope * logit_N[:, 0] + shift)))
    choices = [replace(choice, probability=sure) for choice, sure in zip(choices, sure_N.tolist(), strict=True)]
    chooser = _fitted([some.x_CF for some in judged], right)
    return replace(chooser, slope=slope, shift=shift, threshold=threshold_of(sure_N, right_N)), choices


def _fitted(x: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> Chooser:
    """Return the conditional logit of some problems' candidates, uncalibrated."""
    kept = [number for number, some in enumerate(right) if some.any()]
    together_BF = np.concatenate([*x, np.zeros((0, len(Features.NAMES)))])
    mean_F, scale_F = together_BF.mean(0), together_BF.std(0)
    scale_F = np.where(scale_F < _CONSTANT, 1.0, scale_F)
    x_NCF = pad_sequence([torch.from_numpy((x[number] - mean_F) / scale_F) for number in kept], batch_first=True)
    right_NC = pad_sequence([torch.from_numpy(right[number]) for number in kept], batch_first=True)
    counts_N = torch.tensor([len(x[number]) for number in kept])
    there_NC = torch.arange(x_NCF.shape[1]) < counts_N[:, None]
    weight_F = torch.zeros(x_NCF.shape[2], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_F], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        log_p_NC = (x_NCF @ weight_F).masked_fill(~there_NC, float("-inf")).log_softmax(-1)
        loss = -log_p_NC.masked_fill(~right_NC, float("-inf")).logsumexp(1).mean() + PENALTY * weight_F.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return Chooser(tuple(mean_F.tolist()), tuple(scale_F.tolist()), tuple(weight_F.detach().tolist()))


def threshold_of(sure_N: np.ndarray, right_N: np.ndarray, share: float = SURE) -> float:
    """Return the least probability from which on so large a share is right; above 1 where there is none."""
    order_N = np.argsort(-sure_N, kind="stable")
    share_N = np.cumsum(right_N[order_N]) / np.arange(1, len(order_N) + 1)
    enough = np.flatnonzero(share_N >= share)
    return float(sure_N[order_N[enough[-1]]]) if len(enough) else 1.1


def sureness(sure: Sequence[float], right: Sequence[bool], threshold: float) -> dict[str, float]:
    """Return how well probabilities say what is right, in per cent.

    Returns:
        Brier score; the share right among the surest 80 %; and of those from the threshold on, how many they are and
        the share right.
    """
    sure_N, right_N = np.array(sure), np.array(right, dtype=float)
    surest = right_N[np.argsort(-sure_N, kind="stable")][: math.ceil(0.8 * len(right_N))]
    above = right_N[sure_N >= threshold]
    return {
        "brier": 100 * float(((sure_N - right_N) ** 2).mean()),
        "right_at_80": 100 * float(surest.mean()),
        "coverage_sure": 100 * len(above) / len(right_N),
        "right_sure": 100 * float(above.mean()) if len(above) else 100.0,
    }
