"""The encoder and the decoder: equations by hand, padding, coins, copying."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.studies.text2math.greedy import greedy
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from etude.studies.text2math.batches import Batch
from etude.studies.text2math.model import Decoder, LSTMEncoder, Text2Math, loss
from etude.studies.text2math.study import ModelConfig
from etude.studies.text2math.tokens import MAX_NUMBERS, PAD, START

NUMBER_V = [-1, -1, -1, -1, 0, 1, 2, -1]
V = len(NUMBER_V)


def network(
    *, attention: bool = True, copies: bool = False, layers: int = 1, dropout: float = 0.0, scaled: bool = False
) -> Text2Math:
    torch.manual_seed(0)
    sizes: Any = {"embedding": 4, "layers": layers, "dropout": dropout}
    encoder = LSTMEncoder(30, ModelConfig(hidden=3, **sizes))
    config = ModelConfig(hidden=5, attention=attention, copies=copies, scaled=scaled, **sizes)
    decoder = Decoder(V, 6, config, NUMBER_V)
    return Text2Math(encoder, decoder)


def batch(words: list[list[int]], numbers: list[list[int]]) -> Batch:
    longest = max(map(len, words))
    table = torch.tensor([[*row, *[0] * (longest - len(row))] for row in words])
    indices = torch.full_like(table, -1)
    for row, places in enumerate(numbers):
        for index, place in enumerate(places):
            indices[row, place] = index
    return Batch(table, indices, torch.tensor([len(row) for row in words]))


TWO = batch([[3, 9, 4, 7, 5], [8, 2, 6]], [[0, 3], [2]])


def forced(steps: int) -> Tensor:
    return torch.ones(steps, dtype=torch.bool)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def numpy_lstm(x: np.ndarray, weights: list[np.ndarray], h: np.ndarray, c: np.ndarray) -> list[np.ndarray]:
    """One direction, one problem, gates in PyTorch's order: input, forget, cell, output."""
    w_x, w_h, b_x, b_h = weights
    out: list[np.ndarray] = []
    for vector in x:
        i, f, g, o = np.split(w_x @ vector + b_x + w_h @ h + b_h, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return out


@torch.no_grad()
@pytest.mark.parametrize("scaled", [False, True])
def test_the_whole_network_against_a_numpy_twin(scaled: bool) -> None:
    """Both directions, start, attention, copying, logits: one problem, all by the equations of the docstring."""
    model = network(copies=True, scaled=scaled).double().eval()
    alone = batch([[3, 9, 4, 7]], [[0, 3]])
    targets = torch.tensor([[4, 7, 5]])
    got = model(alone, targets, forced(3))[0][0].numpy()

    p = {name: value.numpy() for name, value in model.state_dict().items()}
    x = p["encoder.words.weight"][[3, 9, 4, 7]] + p["encoder.indices.weight"][[1, 0, 0, 2]]
    zero = np.zeros(3)

    def lstm(name: str) -> list[np.ndarray]:
        return [p[f"{name}.{kind}_l0"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]

    forward = numpy_lstm(x, lstm("encoder.forwards.0"), zero, zero)
    backward = numpy_lstm(x[::-1], lstm("encoder.backwards.0"), zero, zero)[::-1]
    states = np.concatenate([forward, backward], 1)
    summary = np.concatenate([forward[-1], backward[0]])
    start = np.tanh(p["decoder.start.weight"] @ summary + p["decoder.start.bias"])
    inputs = p["decoder.tokens.weight"][[START, 4, 7]]
    wanted = []
    for s in numpy_lstm(inputs, lstm("decoder.lstm"), start[:5], start[5:]):
        scores = states @ p["decoder.keys.weight"].T @ s / (math.sqrt(5) if scaled else 1)
        weights = np.exp(scores - scores.max())
        context = weights / weights.sum() @ states
        u = np.tanh(p["decoder.combine.weight"] @ np.concatenate([s, context]) + p["decoder.combine.bias"])
        logits = p["decoder.logits.weight"] @ u + p["decoder.logits.bias"]
        query = p["decoder.number_queries.weight"] @ u
        for number, place in ((0, 0), (1, 3)):
            key = p["decoder.number_keys.weight"] @ states[place] + p["decoder.number_keys.bias"]
            logits[4 + number] += query @ key / math.sqrt(5)
        wanted.append(logits)
    assert np.allclose(got, np.stack(wanted), atol=1e-10)


@pytest.mark.parametrize("layers", [1, 2])
def test_two_passes_are_a_bidirectional_lstm(layers: int) -> None:
    """States, summary and gradients against PyTorch's own over packed sequences."""
    encoder = LSTMEncoder(
        30, ModelConfig(embedding=4, hidden=3, layers=layers, dropout=0.0, marks_numbers=False)
    ).double()
    both = nn.LSTM(4, 3, layers, batch_first=True, bidirectional=True).double()
    for layer in range(layers):
        for passes, suffix in ((encoder.forwards, ""), (encoder.backwards, "_reverse")):
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                mine = getattr(passes[layer], f"{kind}_l0")
                setattr(both, f"{kind}_l{layer}{suffix}", nn.Parameter(mine.detach().clone()))
    packed = pack_padded_sequence(encoder.words(TWO.words_NT), TWO.lengths_N, batch_first=True, enforce_sorted=False)
    states, (last, _) = both(packed)
    wanted, _ = pad_packed_sequence(states, batch_first=True)
    wanted_summary = torch.cat([last[-2], last[-1]], -1)
    got, summary = encoder(TWO)
    known = (torch.arange(5) < TWO.lengths_N[:, None])[..., None]
    assert torch.allclose(got * known, wanted, rtol=1e-12)
    assert torch.allclose(summary, wanted_summary, rtol=1e-12)
    ours = torch.autograd.grad((got * known).square().sum() + summary.sum(), encoder.words.weight)[0]
    theirs = torch.autograd.grad(wanted.square().sum() + wanted_summary.sum(), encoder.words.weight)[0]
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("copies", [True, False])
def test_padding_changes_nothing(attention: bool, copies: bool) -> None:
    model = network(attention=attention, copies=copies, layers=2).eval()
    targets = torch.tensor([[4, 5, 3, 2], [3, 4, 2, PAD]])
    together, _ = model(TWO, targets, forced(4))
    alone, _ = model(batch([[8, 2, 6]], [[2]]), targets[1:, :3], forced(3))
    assert torch.allclose(together[1, :3], alone[0], atol=1e-6)


def test_attention_is_a_share_of_the_words() -> None:
    _, seen = network().eval()(TWO, torch.tensor([[4, 2], [3, 2]]), forced(2))
    weights = seen["attention"]
    assert weights.shape == (2, 2, 5)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 2))
    assert (weights[1, :, 3:] == 0).all()


def test_without_attention_words_reach_the_decoder_by_the_summary_alone() -> None:
    model = network(attention=False).eval()
    _, seen = model(TWO, torch.tensor([[4, 2], [3, 2]]), forced(2))
    assert seen["attention"].shape == (2, 2, 0)
    assert model.decoder.keys is None


def test_tails_give_the_networks_own_tokens() -> None:
    """With no step forced, the logits are those of greedy search, whatever the targets are."""
    model = network(layers=2, copies=True).eval()
    with torch.no_grad():
        written = greedy(model, TWO, 6)
        logits, _ = model(TWO, torch.full((2, 6), 3), torch.zeros(6, dtype=torch.bool))
    steps = written.shape[1]
    for row in range(2):
        until = next((place for place, token in enumerate(written[row].tolist()) if token in (2, PAD)), steps - 1)
        assert logits[row, : until + 1].argmax(-1).tolist() == written[row, : until + 1].tolist()


def test_heads_give_the_right_tokens() -> None:
    """A forced step sees the target before it; the first coin is not looked at."""
    model = network().eval()
    targets = torch.tensor([[4, 5, 3, 2], [3, 4, 6, 2]])
    coins = torch.tensor([False, True, False, True])
    got, _ = model(TWO, targets, coins)
    with torch.no_grad():
        all_forced, _ = model(TWO, targets, forced(4))
    assert torch.allclose(got[:, :2], all_forced[:, :2], atol=1e-6)
    replaced = targets.clone()
    replaced[:, 1] = got[:, 1].argmax(-1)
    by_hand, _ = model(TWO, replaced, forced(4))
    # Step 2 saw the network's own token of step 1, and step 3 the target of step 2.
    assert torch.allclose(got, by_hand, atol=1e-6)


def test_copying_moves_the_logits_of_the_problems_numbers_alone() -> None:
    model = network(copies=True).eval()
    targets = torch.tensor([[4, 2], [3, 2]])
    with torch.no_grad():
        before, _ = model(TWO, targets, forced(2))
        assert model.decoder.number_keys is not None
        model.decoder.number_keys.bias.add_(1.0)
        after, _ = model(TWO, targets, forced(2))
    moved = (before - after).abs() > 1e-6
    # n0 and n1 of the first problem, n0 of the second.
    assert moved[0].any(0).tolist() == [False] * 4 + [True, True, False, False]
    assert moved[1].any(0).tolist() == [False] * 4 + [True, False, False, False]


def test_more_numbers_than_have_an_index() -> None:
    words = list(range(1, 29))
    many = batch([words], [list(range(28))])
    assert MAX_NUMBERS < 28
    logits, _ = network(copies=True).eval()(many, torch.tensor([[4, 2]]), forced(2))
    assert logits.isfinite().all()


def test_the_loss_leaves_padding_out() -> None:
    logits = torch.randn(2, 3, V)
    targets = torch.tensor([[4, 5, 2], [3, 2, PAD]])
    kept = functional.cross_entropy(logits.flatten(0, 1)[:5], targets.flatten()[:5])
    assert loss(logits, targets) == pytest.approx(kept.item(), rel=1e-6)
    smooth = functional.cross_entropy(logits.flatten(0, 1)[:5], targets.flatten()[:5], label_smoothing=0.1)
    assert loss(logits, targets, 0.1) == pytest.approx(smooth.item(), rel=1e-6)


def test_every_parameter_learns() -> None:
    model = network(copies=True, layers=2, dropout=0.1)
    logits, _ = model(TWO, torch.tensor([[4, 7, 2], [3, 4, 2]]), torch.tensor([True, False, True]))
    loss(logits, torch.tensor([[4, 7, 2], [3, 4, 2]])).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


@pytest.mark.parametrize(
    ("hidden", "wanted"),
    [
        # Words and indices; both directions; tokens; LSTM; start; keys; combine; logits.
        (3, 30 * 4 + 25 * 4 + 2 * (4 * 3 * (4 + 3 + 2)) + V * 4 + 4 * 5 * (4 + 5 + 2) + 6 * 10 + 10 + 30 + 60 + V * 6),
    ],
)
def test_parameter_count(hidden: int, wanted: int) -> None:
    assert sum(p.numel() for p in network().parameters()) == wanted
