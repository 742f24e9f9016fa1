"""The mean of weights by hand."""

import pytest
import torch
from torch import nn

from etude.nn.mean_weights import average_


class Part(nn.Module):
    """Two weights and two buffers."""

    def __init__(self, value: float, count: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.full((2, 3), value))
        self.bias = nn.Parameter(torch.tensor(value))
        self.register_buffer("seen", torch.tensor(count))
        self.register_buffer("level", torch.tensor(value))


def test_a_step_by_hand() -> None:
    mean, now = Part(1.0, 3), Part(5.0, 8)
    average_(mean, now, 0.75, step=1000)
    assert mean.matrix.eq(0.75 * 1 + 0.25 * 5).all()
    assert mean.bias.item() == 2
    assert (mean.seen.item(), mean.level.item()) == (8, 5), "buffers are copied"
    assert (now.matrix.eq(5).all(), now.bias.item(), now.seen.item()) == (True, 5, 8), "what is learned stays"
    assert mean.matrix.requires_grad
    assert mean.matrix.grad_fn is None


@pytest.mark.parametrize(("step", "memory"), [(0, 0.1), (1, 2 / 11), (8, 0.5), (80, 0.9), (81, 0.9), (10**6, 0.9)])
def test_memory_is_shorter_early(step: int, memory: float) -> None:
    """(1 + s) / (10 + s), until that is longer than the memory asked for."""
    mean = Part(0.0, 0)
    average_(mean, Part(1.0, 0), 0.9, step)
    assert mean.bias.item() == pytest.approx(1 - memory)


def test_no_memory_is_a_copy() -> None:
    mean = Part(0.0, 0)
    average_(mean, Part(1.25, 0), 0.0, 5)
    assert mean.bias.item() == 1.25


def test_what_is_passed_on_is_the_buffers_value() -> None:
    mean, now = Part(0.0, 0), Part(1.0, 1)
    average_(mean, now, 0.5, 0)
    now.level.fill_(7)
    now.bias.data.fill_(7)
    assert mean.level.item() == 1
    assert mean.bias.item() == pytest.approx(0.9)


def test_many_steps_are_a_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    mean, now = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    slow = mean.weight.detach().clone()
    for step in range(30):
        now.weight.data.normal_(generator=draw)
        average_(mean, now, 0.7, step)
        kept = min(0.7, (1 + step) / (10 + step))
        slow = kept * slow + (1 - kept) * now.weight.detach()
    torch.testing.assert_close(mean.weight.detach(), slow)


def test_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        average_(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.5, 0)
