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

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from etude.studies.text2math.batches import Batch
from etude.studies.text2math.model import State, Text2Math
from etude.studies.text2math.tokens import END, MAX_TOKENS, START, Grammar, Tokens

Rule = Literal["standard", "nested"]
Listener = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""A listener is called after each step with the problems in the batch ``[N]`` and, for each place of the beam, the
place before that it continues, the token written and the log-probability so far, -inf where it is empty, each
``[N, K]``."""


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
    on_step: Listener | None = None,
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
        on_step: a listener.

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

    def collect(which_NK: Tensor, tokens_NKS: Tensor, *, ended: bool) -> None:
        rows_R, places_R = which_NK.nonzero(as_tuple=True)
        # The end counts as a token.
        length = tokens_NKS.shape[-1] + ended
        for problem, log_p, tokens in zip(
            problems_N[rows_R].tolist(), scores_NK[rows_R, places_R].tolist(), tokens_NKS[rows_R, places_R].tolist(),
            strict=True,
        ):  # fmt: skip
            found[problem].append(Hypothesis(tuple(tokens), log_p, log_p / length**alpha, ended))

    for length in range(1, max_tokens + 1):
        log_p_NKV, state = model.step(last_NK, memory, state)
        if rules is not None:
            log_p_NKV = log_p_NKV.masked_fill(~rules.allowed(), float("-inf"))
        total_NKV = scores_NK[..., None] + log_p_NKV
        scores_NK, from_NK, last_NK = _keep(total_NKV, closed_NK, rule)
        if on_step is not None:
            on_step(problems_N, from_NK, last_NK, scores_NK)
        written_NKS = written_NKS.gather(1, from_NK[..., None].expand(-1, -1, length - 1))
        written_NKS = torch.cat([written_NKS, last_NK[..., None]], -1)
        ends_NK = (last_NK == END) & scores_NK.isfinite()
        if length == max_tokens:
            collect(~ends_NK & scores_NK.isfinite(), written_NKS, ended=False)
        collect(ends_NK, written_NKS[..., :-1], ended=True)
        scores_NK = scores_NK.masked_fill(ends_NK, float("-inf"))
        closed_NK = closed_NK | ends_NK
        if rule == "standard":
            # Its places are in the order of the scores: the last ones close, as many as have ended.
            closed_NK = closed_NK.sort(1).values
        rows_N = scores_NK.isfinite().any(1).nonzero().flatten()
        if len(rows_N) == 0:
            break
        state = _take(state, rows_N, from_NK, len(problems_N))
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


def _take(state: State, rows_N: Tensor, from_NK: Tensor, num: int) -> State:
    """Return the state of the hypotheses that go on, in their new order."""
    width = state[0].shape[1] // num
    index = (rows_N[:, None] * width + from_NK[rows_N]).flatten()
    return state[0].index_select(1, index), state[1].index_select(1, index)
