r"""Beam search, batched over problems.

A hypothesis is a program so far with its log-probability. Every step extends all hypotheses of all problems in one
call of the decoder, keeps some, and moves those that wrote the end out of the beam; a problem whose beam is empty
leaves the batch. What has ended is ranked by $\log p / \text{length}^\alpha$ (Wu et al. 2016, section 7, without the
constant).

Two rules say which are kept:

- ``standard``: the best of all extensions, as many as are still being written.
- ``nested``: place k of the beam goes to the best extension of the hypotheses at places 1 to k that no earlier place
  has taken. The first k places then are what a beam of k keeps, so a wider beam finds all that a narrower one found and
  its best score never falls; with the standard rule it may. A beam of one is greedy search with either.

Shape suffixes: N problems, K hypotheses, V tokens, S tokens written.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from etude.studies.text2math.batches import Batch
from etude.studies.text2math.model import Text2Math
from etude.studies.text2math.tokens import END, MAX_TOKENS, START, Grammar, Tokens

Rule = Literal["standard", "nested"]


@dataclass(frozen=True)
class Hypothesis:
    r"""A program that a beam search found.

    Attributes:
        tokens: its tokens, without the end.
        log_probability: the network's, of its tokens and the end.
        score: $\log p / \text{length}^\alpha$, by which hypotheses are ranked.
        ended: False where the longest length came first.
    """

    tokens: tuple[int, ...]
    log_probability: float
    score: float
    ended: bool


ROOT = -1


@dataclass(frozen=True)
class Node:
    """A token that was written.

    Attributes:
        parent: the number of the node before it; `ROOT` for the first.
        token: the token; END ends a hypothesis.
        log_probability: the sum over the tokens up to it.
        depth: how many tokens stand before it.
    """

    parent: int
    token: int
    log_probability: float
    depth: int


class BeamTree:
    """The tokens that a beam search of one problem kept at each step: which were continued, and which were pruned.

    Attributes:
        nodes: the tokens, those of a step after those of the step before, the best first.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._depth = 0
        # The node at each place of the beam; before the first step there is one place.
        self._at: dict[int, int] = {0: ROOT}

    def add(self, from_NK: Tensor, last_NK: Tensor, scores_NK: Tensor) -> None:
        """Add a step: the place that each place continues, its token, and its score, -inf where it is empty."""
        [origins], [tokens], [scores] = from_NK.tolist(), last_NK.tolist(), scores_NK.tolist()
        at: dict[int, int] = {}
        for place, (origin, token, score) in enumerate(zip(origins, tokens, scores, strict=True)):
            # A place may be empty: its hypothesis has ended, or no extension was left for it.
            if score == float("-inf"):
                continue
            at[place] = len(self.nodes)
            self.nodes.append(Node(self._at[origin], token, score, self._depth))
        self._at, self._depth = at, self._depth + 1

    @property
    def ended(self) -> list[int]:
        """The nodes at which a hypothesis ended."""
        return [number for number, node in enumerate(self.nodes) if node.token == END]

    @property
    def alive(self) -> set[int]:
        """The nodes on the way to a hypothesis that ended, or that the longest length cut off; the rest was pruned."""
        cut = [number for number, node in enumerate(self.nodes) if node.depth == self._depth - 1]
        return {number for end in (*self.ended, *cut) for number in self.path(end)}

    def path(self, number: int) -> list[int]:
        """Return the nodes from the first token to one, both included."""
        found: list[int] = []
        while number != ROOT:
            found.append(number)
            number = self.nodes[number].parent
        return found[::-1]


@torch.inference_mode()
def beam_search(
    model: Text2Math,
    batch: Batch,
    *,
    width: int,
    max_tokens: int = MAX_TOKENS,
    alpha: float = 1.0,
    rule: Rule = "nested",
    grammar: Tokens | None = None,
    tree: BeamTree | None = None,
) -> list[list[Hypothesis]]:
    """Return the likeliest programs of each problem.

    Args:
        model: the network, in evaluation mode.
        batch: the problems.
        width: K, hypotheses of a problem, and answers at most.
        max_tokens: after so many, the end included, a hypothesis is given up as it stands.
        alpha: the exponent of the length in the score; 0 ranks by the probability alone.
        rule: which extensions are kept; see the top of this file.
        grammar: the vocabulary, where only programs may be written that are well formed and use numbers that the
            problem has; the probabilities are not scaled up for what is left out.
        tree: what the search of one problem does is added to it.

    Returns:
        For each problem its hypotheses, the best score first, those that ended before those that did not.

    Raises:
        ValueError: a width or length below 1.
    """
    if width < 1 or max_tokens < 1:
        raise ValueError(f"a beam of width {width} and length {max_tokens}: both must be at least 1")
    memory, state = model.encode(batch)
    device, num = batch.words_NT.device, len(batch)
    problems_N = torch.arange(num, device=device)
    scores_NK = torch.zeros(num, 1, device=device)
    last_NK = torch.full((num, 1), START, device=device)
    written_NKS = torch.zeros(num, 1, 0, dtype=torch.int64, device=device)
    # Places of the beam whose hypothesis has ended; they stay empty.
    closed_NK = torch.zeros(num, width, dtype=torch.bool, device=device)
    rules = None if grammar is None else Grammar(grammar, batch.counts)
    found: list[list[Hypothesis]] = [[] for _ in range(num)]
    for length in range(1, max_tokens + 1):
        log_p_NKV, state = model.step(last_NK, memory, state)
        if rules is not None:
            log_p_NKV = log_p_NKV.masked_fill(~rules.allowed(), float("-inf"))
        total_NKV = scores_NK[..., None] + log_p_NKV
        scores_NK, from_NK, last_NK = _keep(total_NKV, closed_NK, rule)
        if tree is not None:
            tree.add(from_NK, last_NK, scores_NK)
        written_NKS = written_NKS.gather(1, from_NK[..., None].expand(-1, -1, length - 1))
        written_NKS = torch.cat([written_NKS, last_NK[..., None]], -1)
        ends_NK = (last_NK == END) & scores_NK.isfinite()
        done_NK = scores_NK.isfinite() if length == max_tokens else ends_NK
        rows_R, places_R = done_NK.nonzero(as_tuple=True)
        for problem, log_p, tokens in zip(
            problems_N[rows_R].tolist(), scores_NK[rows_R, places_R].tolist(), written_NKS[rows_R, places_R].tolist(),
            strict=True,
        ):  # fmt: skip
            ended = tokens[-1] == END
            body = tuple(tokens[:-1] if ended else tokens)
            found[problem].append(Hypothesis(body, log_p, log_p / length**alpha, ended))
        scores_NK = scores_NK.masked_fill(ends_NK, float("-inf"))
        closed_NK = closed_NK | ends_NK
        if rule == "standard":
            # Its places are in the order of the scores: the last ones close, as many as have ended.
            closed_NK = closed_NK.sort(1).values
        rows_N = scores_NK.isfinite().any(1).nonzero().flatten()
        if len(rows_N) == 0:
            break
        # The state of the hypotheses that go on, in their new order.
        index = (rows_N[:, None] * (state[0].shape[1] // len(problems_N)) + from_NK[rows_N]).flatten()
        state = state[0].index_select(1, index), state[1].index_select(1, index)
        if rules is not None:
            rules.advance(rows_N, from_NK[rows_N], last_NK[rows_N])
        if len(rows_N) < len(problems_N):
            memory, problems_N = memory.take(rows_N), problems_N[rows_N]
            scores_NK, last_NK, written_NKS = scores_NK[rows_N], last_NK[rows_N], written_NKS[rows_N]
            closed_NK = closed_NK[rows_N]
    return [sorted(some, key=lambda h: (not h.ended, -h.score))[:width] for some in found]


def _keep(total_NKV: Tensor, closed_NK: Tensor, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """Return the extensions that stay: their scores, the hypotheses they extend and their tokens, ``[N, K]`` each.

    A place that is closed, or that none is left for, has the score -inf.
    """
    size, width = total_NKV.shape[-1], closed_NK.shape[1]
    if rule == "standard":
        total_NR = total_NKV.flatten(1)
        # A first step may have fewer extensions than the beam has places.
        total_NR = functional.pad(total_NR, (0, max(0, width - total_NR.shape[1])), value=float("-inf"))
        scores_NK, index_NK = total_NR.topk(width, -1)
        index_NK = index_NK.clamp_max(total_NKV[0].numel() - 1)
        return scores_NK.masked_fill(closed_NK, float("-inf")), index_NK // size, index_NK % size
    # The k-th place needs no more than the k best extensions of a hypothesis.
    best_NKW, token_NKW = total_NKV.topk(min(width, size), -1)
    best_NKW = best_NKW.clone()
    count = best_NKW.shape[-1]
    scores, origins, tokens = [], [], []
    for place in range(width):
        pool_NR = best_NKW[:, : place + 1].flatten(1)
        score_N, index_N = pool_NR.max(1)
        score_N = score_N.masked_fill(closed_NK[:, place], float("-inf"))
        taken = torch.zeros_like(pool_NR, dtype=torch.bool).scatter_(1, index_N[:, None], score_N.isfinite()[:, None])
        best_NKW[:, : place + 1] = pool_NR.masked_fill(taken, float("-inf")).unflatten(1, (-1, count))
        scores.append(score_N)
        origins.append(index_N // count)
        tokens.append(token_NKW[:, : place + 1].flatten(1).gather(1, index_N[:, None])[:, 0])
    return torch.stack(scores, 1), torch.stack(origins, 1), torch.stack(tokens, 1)
