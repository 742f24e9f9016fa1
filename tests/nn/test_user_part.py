"""What a user's part must answer to zeros, and one line where it does not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from etude.core.errors import UserError
from etude.nn.user_part import tried, tried_module


class Says(nn.Module):
    """Answers whatever it is told to, and notes how it was asked."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer, self.asked = answer, []

    def forward(self, x: Tensor) -> Any:
        self.asked.append((tuple(x.shape), x.any().item(), self.training, torch.is_grad_enabled()))
        return self.answer(x) if callable(self.answer) else self.answer


def test_it_is_asked_once_for_zeros() -> None:
    made = Says(torch.ones(2, 5, 7))
    part, answer = tried_module("part", lambda: made, [torch.zeros(2, 3)], [2, "n", 7])
    assert part is made
    assert answer is made.answer
    assert made.asked == [((2, 3), False, False, False)]
    assert part.training, "it is given back in training mode"
    assert torch.is_grad_enabled()


def test_running_statistics_stay() -> None:
    part, _ = tried_module("part", lambda: nn.BatchNorm1d(3), [torch.zeros(4, 3)], [4, 3])
    assert isinstance(part, nn.BatchNorm1d)
    assert part.running_var is not None
    assert part.running_var.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (torch.tensor(1.0), []),
        ((torch.ones(2, 3), {}), ([2, "D"], dict)),
        ((torch.ones(2), (torch.ones(1), 5)), (["N"], ([1], int))),
        (3, object),
    ],
)
def test_answers_that_fit(answer: Any, wanted: Any) -> None:
    assert tried("part", "nothing", lambda: answer, wanted) is answer


@pytest.mark.parametrize(
    ("answer", "met"),
    [
        (torch.ones(2, 5), "[2, 5]"),
        (torch.ones(2, 5, 7, 1), "[2, 5, 7, 1]"),
        (torch.ones(3, 5, 7), "[3, 5, 7]"),
        (torch.ones(2, 5, 8), "[2, 5, 8]"),
        (torch.tensor(1.0), "[]"),
        ((torch.ones(2, 5, 7),), "([2, 5, 7])"),
        ([2, 5, 7], "list"),
        (None, "NoneType"),
    ],
)
def test_another_answer(answer: Any, met: str) -> None:
    with pytest.raises(UserError) as caught:
        tried("encoder mine.py:Net", "[2, 3]", lambda: answer, [2, "n", 7])
    assert str(caught.value) == f"the encoder mine.py:Net must map [2, 3] to [2, n, 7], not {met}"


def _raise(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: _raise(TypeError("no such\nsetting")), "TypeError: no such setting"),
        (lambda: Says(lambda _: _raise(RuntimeError("a\n  b"))), "RuntimeError: a b"),
        (lambda: None, "TypeError: NoneType is no torch.nn.Module"),
        (lambda: nn.Linear(4, 1), "RuntimeError: "),
    ],
)
def test_a_part_that_fails(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        tried_module("decoder mine.py:Net", make, [torch.zeros(2, 3)], [2, "n"])
    assert str(caught.value).startswith(f"the decoder mine.py:Net failed on [2, 3]: {says}")
    assert "\n" not in str(caught.value)
    assert torch.is_grad_enabled()
