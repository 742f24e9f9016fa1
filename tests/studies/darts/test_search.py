"""The search's mathematics: second derivatives against exact ones, an eigenvalue, entropy, and when to stop."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tests.studies.darts.common import draw, one_line
from torch import Tensor, nn
from torch.nn import functional

from etude.core.errors import UserError
from etude.studies.darts import operations, search
from etude.studies.darts.search import DIFFERENCE, WINDOW, eigenvalue_rises, largest_eigenvalue, make_rule
from etude.studies.darts.supernet import SuperNetwork

Half = Literal["train", "val"]
RATE, MOMENTUM, DECAY = 0.05, 0.9, 3e-2


class Bilevel:
    """A mixture of three smooth functions of a linear map, with a loss on each half."""

    def __init__(self) -> None:
        self.alpha = draw(2, 3, seed=1).requires_grad_()
        self.weights = [draw(4, 2, seed=2).requires_grad_(), draw(2, 1, seed=3).requires_grad_()]
        self.data = {"train": (draw(20, 4, seed=4), draw(20, 1, seed=5)), "val": (draw(20, 4, seed=6), draw(20, 1))}
        self.asked: list[tuple[Half, int]] = []

    def loss(self, half: Half, alpha: Tensor, weights: Sequence[Tensor]) -> Tensor:
        x_ND, y_N1 = self.data[half]
        z_N2, mixture = x_ND @ weights[0], alpha.softmax(1)
        parts = torch.stack([z_N2.tanh(), z_N2.sin(), z_N2.sigmoid()], -1)
        return ((parts * mixture).sum(-1) @ weights[1] - y_N1).square().mean()

    def gradient(self, half: Half, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
        self.asked.append((half, len(parameters)))
        with torch.enable_grad():
            return torch.autograd.grad(self.loss(half, self.alpha, self.weights), parameters)

    def second_order(self, momenta: Sequence[Tensor | None], rate: float = RATE) -> list[Tensor]:
        return search.second_order(
            self.gradient, [self.alpha], self.weights, rate=rate, momenta=momenta, momentum=MOMENTUM,
            weight_decay=DECAY,
        )  # fmt: skip

    def exactly(self, momenta: Sequence[Tensor | None]) -> Tensor:
        """The gradient through one step of PyTorch's SGD, as `torch.func` has it."""

        def after_a_step(alpha: Tensor) -> Tensor:
            def inner(weights: Sequence[Tensor]) -> Tensor:
                decay = sum(weight.square().sum() for weight in weights) * DECAY / 2
                return self.loss("train", alpha, weights) + decay

            steps = torch.func.grad(inner)([weight.detach() for weight in self.weights])
            moved = [
                weight.detach() - RATE * (step + (0 if kept is None else MOMENTUM * kept))
                for weight, step, kept in zip(self.weights, steps, momenta, strict=True)
            ]
            return self.loss("val", alpha, moved)

        return torch.func.grad(after_a_step)(self.alpha.detach())


@pytest.mark.parametrize("momentum", ["none yet", "some"])
def test_second_order_is_the_exact_derivative(momentum: str) -> None:
    net = Bilevel()
    before = [weight.detach().clone() for weight in net.weights]
    momenta = [None, None] if momentum == "none yet" else [draw(4, 2, seed=8), draw(2, 1, seed=9)]
    (found,), exact = net.second_order(momenta), net.exactly(momenta)
    # A difference over .01 has an error in its square.
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5 * exact.abs().max().item())
    assert all(torch.equal(weight, kept) for weight, kept in zip(net.weights, before, strict=True))
    assert all(parameter.grad is None for parameter in (net.alpha, *net.weights))
    first = search.first_order(net.gradient, [net.alpha])[0]
    assert not torch.allclose(found, first, rtol=0.01), "the second term has a say"
    # Of alpha's gradient three passes by alpha, one by the weights, one by both.
    assert net.asked[:4] == [("train", 2), ("val", 3), ("train", 1), ("train", 1)]


def test_the_exact_derivative_is_that_of_sgd() -> None:
    """What the twin above takes for a step is what the optimiser does, at its second step with momentum."""
    net = Bilevel()
    weights = [weight.detach().clone().requires_grad_() for weight in net.weights]
    sgd = torch.optim.SGD(weights, RATE, momentum=MOMENTUM, weight_decay=DECAY)
    for _ in range(2):
        kept = [None if weight not in sgd.state else sgd.state[weight]["momentum_buffer"].clone() for weight in weights]
        start = [weight.detach().clone() for weight in weights]
        sgd.zero_grad()
        net.loss("train", net.alpha.detach(), weights).backward()
        steps = [weight.grad.clone() for weight in weights if weight.grad is not None]
        sgd.step()
    for weight, begun, step, old in zip(weights, start, steps, kept, strict=True):
        assert old is not None
        expected = begun - RATE * (step + DECAY * begun + MOMENTUM * old)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)


def test_second_order_of_a_rate_of_zero_is_first_order() -> None:
    net = Bilevel()
    (found,) = net.second_order([None, None], rate=0.0)
    torch.testing.assert_close(found, search.first_order(net.gradient, [net.alpha])[0], rtol=1e-12, atol=1e-12)
    assert net.asked[-1] == ("val", 1), "first order asks for alpha's gradient alone"


def test_the_difference_has_the_papers_length() -> None:
    """On both sides .01 along the gradient of the validation loss at the moved weights."""
    net = Bilevel()
    seen: list[Tensor] = []
    gradient = net.gradient

    def noted(half: Half, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
        seen.append(torch.cat([weight.detach().flatten() for weight in net.weights]))
        return gradient(half, parameters)

    net.gradient = noted  # type: ignore[method-assign]
    net.second_order([None, None])
    start, moved, plus, minus = seen
    assert (plus - start).norm().item() == pytest.approx(DIFFERENCE) == pytest.approx(0.01)
    torch.testing.assert_close(plus - start, start - minus)
    assert not torch.equal(moved, start)


def test_second_order_of_a_flat_validation_loss_is_zero() -> None:
    """No length to divide by is no NaN."""
    net = Bilevel()
    plain = net.loss
    net.loss = lambda half, alpha, weights: plain(half, alpha, weights) * (half == "train")  # type: ignore[method-assign]
    assert not net.second_order([None, None])[0].any()


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast kernel has no second derivative."""

    def convolved(x_BCHW: Tensor, weight: Tensor, stride: int) -> Tensor:
        return functional.conv2d(x_BCHW, weight, None, stride, weight.shape[3] // 2, 1, len(weight))

    monkeypatch.setattr(operations, "convolved", convolved)


Losses = tuple[SuperNetwork, Callable[[str], Tensor]]


def searched(**options: Any) -> Losses:
    """A small network of mixtures and its loss on each half; smooth around these weights but for rare rectifiers."""
    torch.manual_seed(0)
    net = SuperNetwork(4, 2, 3, 1, **options).double()
    for alpha in net.alpha.values():
        nn.init.normal_(alpha)
    data = {half: draw(4, 3, 8, 8, seed=seed) for seed, half in enumerate(("train", "val"))}
    labels = torch.tensor([0, 1, 2, 0])
    return net, lambda half: functional.cross_entropy(net(data[half])[0], labels)


def test_second_order_of_a_network_of_mixtures(plainly: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against autograd's own second derivatives, batch norms and all."""
    net, loss = searched(partial=2, edge_norm=True)
    weights, architecture = net.weights, net.architecture
    momenta = [0.1 * draw(*weight.shape, seed=3) for weight in weights]

    def gradient(half: Half, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.enable_grad():
            return torch.autograd.grad(loss(half), parameters, materialize_grads=True)

    # Shorter than the paper's, so that few rectifiers change sides.
    monkeypatch.setattr(search, "DIFFERENCE", 1e-5)
    before = [weight.detach().clone() for weight in weights]
    found = search.second_order(
        gradient, architecture, weights, rate=RATE, momenta=momenta, momentum=MOMENTUM, weight_decay=DECAY
    )
    assert all(torch.equal(weight, kept) for weight, kept in zip(weights, before, strict=True))

    steps = torch.autograd.grad(loss("train"), weights, create_graph=True, materialize_grads=True)
    with torch.no_grad():
        for weight, step, kept in zip(weights, steps, momenta, strict=True):
            weight.sub_(RATE * (step.detach() + DECAY * weight + MOMENTUM * kept))
    by_alpha = gradient("val", architecture)
    by_weights = gradient("val", weights)
    with torch.no_grad():
        for weight, kept in zip(weights, before, strict=True):
            weight.copy_(kept)
    steps = torch.autograd.grad(loss("train"), weights, create_graph=True, materialize_grads=True)
    along = sum((step * direction).sum() for step, direction in zip(steps, by_weights, strict=True))
    assert isinstance(along, Tensor)
    crossed = torch.autograd.grad(along, architecture, materialize_grads=True)
    assert max(part.abs().max().item() for part in crossed) > 1e-4
    for mine, here, there in zip(found, by_alpha, crossed, strict=True):
        expected = here - RATE * there
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-4 * RATE * max(p.abs().max() for p in crossed))


# --- the largest eigenvalue ---


def quadratic(eigenvalues: Sequence[float]) -> tuple[list[Tensor], Callable[[], list[Tensor]]]:
    """Two parameters of 2 x 2 and of the rest, and the gradient of a form with these eigenvalues."""
    size = len(eigenvalues)
    turn = torch.linalg.qr(draw(size, size, seed=3)).Q
    hessian = turn @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ turn.T
    parameters = [draw(2, 2, seed=1), draw(size - 4, seed=2)]

    def gradient() -> list[Tensor]:
        flat = hessian @ torch.cat([p.flatten() for p in parameters])
        return [flat[:4].view(2, 2), flat[4:]]

    return parameters, gradient


@pytest.mark.parametrize(
    ("eigenvalues", "largest"),
    [
        ([9, 1, 0.5, 0.1, 0, -2], 9.0),
        # Not the one of largest size.
        ([-9, 1, 0.5, 0.1, 0, 2], 2.0),
        ([-9, -1, -0.5, -0.1, -3, -2], -0.1),
        ([4, 4, 4, 1, 1, 1], 4.0),
        ([3, 3, 3, 3, 3, 3], 3.0),
    ],
)
def test_the_largest_eigenvalue(eigenvalues: list[float], largest: float) -> None:
    parameters, gradient = quadratic(eigenvalues)
    before = [p.clone() for p in parameters]
    assert largest_eigenvalue(gradient, parameters, draw(6, seed=4)) == pytest.approx(largest, rel=1e-6)
    assert all(torch.equal(p, kept) for p, kept in zip(parameters, before, strict=True)), "they are put back"


def test_ten_rounds_find_the_largest_of_many() -> None:
    """Where it stands out, as it does before a collapse."""
    eigenvalues = [5.0, *torch.linspace(-1, 1, 60).tolist()]
    parameters, gradient = quadratic(eigenvalues)
    assert largest_eigenvalue(gradient, parameters, draw(61, seed=4)) == pytest.approx(5.0, rel=1e-3)


def test_a_flat_loss_has_an_eigenvalue_of_zero() -> None:
    parameters, gradient = quadratic([0.0] * 6)
    assert largest_eigenvalue(gradient, parameters, draw(6)) == 0.0


def test_the_eigenvalue_of_a_network_of_mixtures(plainly: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the whole Hessian by alpha."""
    # A longer step makes rectifiers and poolings change sides, of which the exact Hessian knows nothing.
    monkeypatch.setattr(search, "HESSIAN_STEP", 1e-6)
    monkeypatch.setattr(search, "EIGENVALUE_STEPS", 50)
    net, loss = searched()
    architecture = net.architecture

    def gradient() -> Sequence[Tensor]:
        with torch.enable_grad():
            return torch.autograd.grad(loss("val"), architecture, materialize_grads=True)

    flat = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss("val"), architecture, create_graph=True, materialize_grads=True)]
    )
    rows = [torch.autograd.grad(one, architecture, retain_graph=True, materialize_grads=True) for one in flat]
    hessian = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
    exact = torch.linalg.eigvalsh((hessian + hessian.T) / 2)
    largest = exact[exact.abs().argmax()].item()
    assert abs(largest) > 1e-3
    found = largest_eigenvalue(gradient, architecture, draw(len(flat), seed=4))
    assert found == pytest.approx(largest, rel=1e-3)


# --- what is undone, what is watched ---


def test_statistics_are_put_back_whatever_happens() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    net(torch.randn(2, 3, 4, 4))
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def passed() -> None:
        with search.kept_statistics(net):
            net(torch.randn(2, 3, 4, 4) + 5)
            assert not torch.equal(net.state_dict()["1.running_mean"], before["1.running_mean"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        passed()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert before["1.num_batches_tracked"] == 1


def test_entropy_by_hand() -> None:
    alike, sure = torch.full((1, 8), 1 / 8), torch.eye(8)[:1]
    assert search.entropy(alike) == pytest.approx(math.log(8))
    assert search.entropy(sure) == 0.0
    assert search.entropy(torch.cat([alike, sure])) == pytest.approx(math.log(8) / 2)
    half = torch.tensor([[0.5, 0.25, 0.25, 0, 0, 0, 0, 0]])
    assert search.entropy(half) == pytest.approx(1.5 * math.log(2))


# --- when to stop ---


def rows(name: str, values: Sequence[float]) -> list[dict[str, float]]:
    return [{"step": 10.0 * (place + 1), name: value} for place, value in enumerate(values)]


def test_never() -> None:
    assert make_rule("none", 1)(rows("skips", [8, 8, 8])) is None


def test_skips_stop_once_there_are_so_many() -> None:
    rule = make_rule("skips", 3)
    assert rule(rows("skips", [3, 1, 2])) is None, "what was does not count"
    assert rule(rows("skips", [0, 3])) == 0
    assert rule(rows("skips", [4])) == 0


@pytest.mark.parametrize(
    ("values", "back"),
    [
        ([9, 1, 1, 1, 1], None),
        # Of six the mean of the last five against the first alone: 1 / 1.32 and 1 / 1.34.
        ([1, 1.32, 1.32, 1.32, 1.32, 1.32], None),
        ([1, 1.34, 1.34, 1.34, 1.34, 1.34], WINDOW),
        # One outlier moves the mean of five by a fifth of itself: 1 / 1.2, 1 / 1.4.
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 2], None),
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 3], WINDOW),
        # Falling, and then as high again as it was.
        ([5, 4, 3, 2, 1, 1, 2, 3, 4, 5], None),
        # Means of 1 and of 3, whatever came long before.
        ([50, 1, 1, 1, 1, 1, 3, 3, 3, 3, 3], WINDOW),
        # What is below zero has not risen by a third.
        ([-1, -1, -1, -1, -1, -1, -3, -3, -3, -3], None),
        ([-1, -1, -1, -1, -1, 1, 1, 1, 1, 1], WINDOW),
    ],
)
def test_an_eigenvalue_that_rises(values: list[float], back: int | None) -> None:
    assert eigenvalue_rises(rows("eigenvalue", values)) == back
    assert make_rule("eigenvalue", 2)(rows("eigenvalue", values)) == back


def own(path: Path, body: str) -> str:
    path.write_text(f"def Rule(rows):\n    {body}\n")
    return f"{path}:Rule"


MEASURED = (
    "loss",
    "accuracy",
    "alpha/loss",
    "alpha/accuracy",
    "skips",
    "reduction_skips",
    "entropy",
    "reduction_entropy",
)
"""What `evaluate` has of every evaluation."""


def test_a_rule_of_ones_own(tmp_path: Path) -> None:
    rule = make_rule(own(tmp_path / "mine.py", "return len(rows) - 1 if rows[-1]['entropy'] < 1 else None"), 2)
    assert rule(rows("entropy", [2, 1.5, 1.2])) is None
    assert rule(rows("entropy", [2, 1.5, 0.2])) == 2


@pytest.mark.parametrize("name", MEASURED)
def test_a_rule_may_ask_for_all_that_is_measured(tmp_path: Path, name: str) -> None:
    make_rule(own(tmp_path / "mine.py", f"return 0 if rows[-1]['{name}'] < -1 else None"), 2)


def test_a_rule_that_asks_for_what_is_not_measured_fails_before_the_search(tmp_path: Path) -> None:
    spec = own(tmp_path / "mine.py", "return 0 if rows[-1]['eigenvalue'] > 1e9 else None")
    make_rule(spec, 2, eigenvalue=True)
    with pytest.raises(UserError) as caught:
        make_rule(spec, 2)
    one_line(caught, "failed on 1 rows: KeyError: 'eigenvalue'")


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("return 'now'", ("must return None or how many evaluations to go back, not 'now'",)),
        ("return -1", ("not -1",)),
        ("return 1", ("not 1",)),
        ("return 0.5", ("not 0.5",)),
        # A yes or no is no number of evaluations, and no would stop at once.
        ("return False", ("not False",)),
        ("return True", ("not True",)),
        ("return rows[-1]['skip'] > 2", ("failed on 1 rows: KeyError: 'skip'",)),
        ("raise RuntimeError('two\\nlines')", ("failed on 1 rows: RuntimeError: two lines",)),
    ],
)
def test_rules_that_fail_or_answer_nonsense_do_so_at_once(tmp_path: Path, body: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        make_rule(own(tmp_path / "mine.py", body), 2)
    one_line(caught, "mine.py:Rule", *parts)


def test_a_rule_that_fails_later_is_one_line(tmp_path: Path) -> None:
    rule = make_rule(own(tmp_path / "mine.py", "return len(rows) if len(rows) > 1 else None"), 2)
    assert rule(rows("skips", [1])) is None
    with pytest.raises(UserError) as caught:
        rule(rows("skips", [1, 2]))
    one_line(caught, "mine.py:Rule", "not 2")
    rule = make_rule(own(tmp_path / "other.py", "return None if len(rows) < 2 else 1 // 0"), 2)
    with pytest.raises(UserError) as caught:
        rule(rows("skips", [1, 2]))
    one_line(caught, "failed on 2 rows: ZeroDivisionError")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("skip", ("no rule to stop by 'skip'; did you mean 'skips'?", "path/to/file.py:Name")),
        ("none.py:Rule", ("no file none.py",)),
    ],
)
def test_rules_that_are_not_there(name: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        make_rule(name, 2)
    one_line(caught, *parts)
