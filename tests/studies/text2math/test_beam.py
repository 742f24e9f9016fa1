"""Beam search: greedy at width one, never worse when wider, exhaustive when wide enough, the grammar kept."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.studies.text2math.greedy import greedy
from torch import Tensor

from etude.studies.text2math.batches import Batch
from etude.studies.text2math.beam import Hypothesis, beam_search
from etude.studies.text2math.model import Decoder, LSTMEncoder, Memory, State, Text2Math
from etude.studies.text2math.program import execute
from etude.studies.text2math.study import ModelConfig
from etude.studies.text2math.tokens import END, START, Tokens

TOKENS = Tokens.of(["divide(n1,n0)|multiply(#0,const_100)|sqrt(#1)|add(n2,#2)|"])


def network(seed: int, *, attention: bool = True, copies: bool = True, layers: int = 1) -> Text2Math:
    """A small network whose probabilities are far from even."""
    torch.manual_seed(seed)
    sizes: Any = {"embedding": 6, "layers": layers, "dropout": 0.0}
    encoder = LSTMEncoder(20, ModelConfig(hidden=5, **sizes))
    config = ModelConfig(hidden=7, attention=attention, copies=copies, **sizes)
    decoder = Decoder(len(TOKENS), 10, config, TOKENS.indices("n"))
    for parameter in [*encoder.parameters(), *decoder.parameters()]:
        parameter.data.mul_(4)
    return Text2Math(encoder, decoder).eval()


def problems(count: int, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 9, (count,), generator=draw)
    words = torch.randint(1, 20, (count, 8), generator=draw)
    indices = torch.full((count, 8), -1)
    indices[:, 0], indices[:, 2], indices[:, 3] = 0, 1, 2
    pads = torch.arange(8) >= lengths[:, None]
    return Batch(words.masked_fill(pads, 0), indices.masked_fill(pads, -1), lengths)


def one(batch: Batch, row: int) -> Batch:
    length = int(batch.lengths_N[row])
    return Batch(batch.words_NT[row : row + 1, :length], batch.indices_NT[row : row + 1, :length],
                 batch.lengths_N[row : row + 1])  # fmt: skip


def best(found: list[list[Hypothesis]]) -> list[float]:
    """The best score among what ended; -inf where nothing did."""
    return [max((h.score for h in part if h.ended), default=-math.inf) for part in found]


@torch.no_grad()
def forced(model: Text2Math, batch: Batch, tokens: tuple[int, ...]) -> float:
    """The log-probability of a program, computed by feeding it in."""
    targets = torch.tensor([[*tokens, END]])
    logits, _ = model(batch, targets, torch.ones(targets.shape[1], dtype=torch.bool))
    return logits.log_softmax(-1).gather(-1, targets[..., None]).sum().item()


@pytest.mark.parametrize("rule", ["standard", "nested"])
@pytest.mark.parametrize("options", [{}, {"attention": False}, {"copies": False}, {"layers": 2}], ids=str)
def test_a_beam_of_one_is_greedy(rule: Any, options: dict[str, Any]) -> None:
    for seed in range(5):
        model, batch = network(seed, **options), problems(6, seed)
        with torch.no_grad():
            wanted = greedy(model, batch, 12).tolist()
        for row, hypotheses in zip(wanted, beam_search(model, batch, width=1, max_tokens=12, rule=rule), strict=True):
            tokens = row[: row.index(END)] if END in row else row
            assert len(hypotheses) == 1
            assert list(hypotheses[0].tokens) == tokens[: len(hypotheses[0].tokens)]
            assert hypotheses[0].ended == (END in row)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_wider_beam_never_scores_lower(alpha: float) -> None:
    for seed in range(6):
        model, batch, before = network(seed), problems(8, seed), [-math.inf] * 8
        for width in (1, 2, 3, 5, 8, 13):
            scores = best(beam_search(model, batch, width=width, max_tokens=10, alpha=alpha))
            assert all(now >= old - 1e-5 for now, old in zip(scores, before, strict=True))
            before = scores


def test_a_wider_beam_finds_all_that_a_narrower_one_found() -> None:
    model, batch = network(3), problems(8)
    wide = beam_search(model, batch, width=9, max_tokens=10)
    for narrow, more in zip(beam_search(model, batch, width=4, max_tokens=10), wide, strict=True):
        ended = {h.tokens for h in more if h.ended}
        assert {h.tokens for h in narrow if h.ended} <= ended


@pytest.mark.parametrize("rule", ["standard", "nested"])
def test_a_beam_wide_enough_is_exhaustive(rule: Any) -> None:
    """All sequences of up to three tokens over a vocabulary of five, scored one by one."""
    torch.manual_seed(1)
    table = torch.randn(5, 5) * 2

    def step(tokens_NK: Tensor, memory: Memory, state: State) -> tuple[Tensor, State]:
        # Only the last token and how often it was written decide; padding and start never follow.
        logits = table[tokens_NK].clone()
        logits[..., :END] = -math.inf
        return logits.log_softmax(-1), state

    def log_p(sequence: tuple[int, ...]) -> float:
        logits = table.clone()
        logits[:, :END] = -math.inf
        steps = itertools.pairwise((START, *sequence))
        return sum(logits.log_softmax(-1)[a, b].item() for a, b in steps)

    others = (3, 4)
    every = [(*body, END) for length in range(3) for body in itertools.product(others, repeat=length)]
    for alpha in (0.0, 0.7, 1.0):
        wanted = sorted(((log_p(s) / len(s) ** alpha, s[:-1]) for s in every), reverse=True)
        model = network(0)
        model.step = step
        found = beam_search(model, problems(3), width=64, max_tokens=3, alpha=alpha, rule=rule)
        for part in found:
            ended = [h for h in part if h.ended]
            assert len(ended) == len(every)
            assert [h.tokens for h in ended] == [tokens for _, tokens in wanted]
            assert [h.score for h in ended] == pytest.approx([score for score, _ in wanted], abs=1e-5)


@pytest.mark.parametrize("rule", ["standard", "nested"])
def test_scores_are_those_of_the_tokens(rule: Any) -> None:
    model, batch = network(1), problems(6, 2)
    seen = 0
    for row, hypotheses in enumerate(beam_search(model, batch, width=12, max_tokens=12, rule=rule, alpha=0.6)):
        assert len({h.tokens for h in hypotheses}) == len(hypotheses)
        for h in hypotheses:
            if h.ended:
                seen += 1
                assert h.log_probability == pytest.approx(forced(model, one(batch, row), h.tokens), abs=1e-3)
                assert h.score == pytest.approx(h.log_probability / (len(h.tokens) + 1) ** 0.6, abs=1e-5)
    assert seen > 5


def test_a_problem_is_answered_alone_as_in_company() -> None:
    """Padding, sentences that leave the batch and reordered states change nothing."""
    model, batch = network(4), problems(7, 4)
    together = beam_search(model, batch, width=4, max_tokens=14)
    for row, hypotheses in enumerate(together):
        (alone,) = beam_search(model, one(batch, row), width=4, max_tokens=14)
        assert [h.tokens for h in alone] == [h.tokens for h in hypotheses]
        assert [h.score for h in alone] == pytest.approx([h.score for h in hypotheses], abs=1e-4)


def test_the_best_come_first_and_the_unended_last() -> None:
    for part in beam_search(network(5), problems(9, 5), width=6, max_tokens=5):
        keys = [(not h.ended, -h.score) for h in part]
        assert keys == sorted(keys)
        assert 1 <= len(part) <= 6


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 3))
def test_with_the_grammar_every_program_that_ended_can_be_run(seed: int, width: int, numbers: int) -> None:
    model, batch = network(seed), problems(3, seed)
    fewer = batch.indices_NT.masked_fill(batch.indices_NT >= numbers, -1)
    batch = Batch(batch.words_NT, fewer, batch.lengths_N)
    for part in beam_search(model, batch, width=width, max_tokens=13, grammar=TOKENS):
        for h in part:
            if h.ended:
                # Positive numbers: of these operators none then lacks a value.
                execute(TOKENS.decode(h.tokens), [2.0, 3.0, 5.0][:numbers])


def test_the_grammar_leaves_probabilities_as_they_are() -> None:
    model, batch = network(6), problems(4, 6)
    for row, part in enumerate(beam_search(model, batch, width=4, max_tokens=12, grammar=TOKENS)):
        for h in (h for h in part if h.ended):
            assert h.log_probability == pytest.approx(forced(model, one(batch, row), h.tokens), abs=1e-3)


def test_a_step_sees_every_hypothesis() -> None:
    model, batch = network(0), problems(3)
    memory, state = model.encode(batch)
    repeated = tuple(part.repeat_interleave(4, 1) for part in state)
    tokens = torch.randint(3, len(TOKENS), (3, 4))
    log_p, _ = model.step(tokens, memory, (repeated[0], repeated[1]))
    assert log_p.shape == (3, 4, len(TOKENS))
    for place in range(4):
        alone, _ = model.step(tokens[:, place : place + 1], memory, state)
        assert torch.allclose(alone[:, 0], log_p[:, place], atol=1e-5)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"width": 2, "max_tokens": 0}])
def test_an_empty_beam_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        beam_search(network(0), problems(1), **wrong)
