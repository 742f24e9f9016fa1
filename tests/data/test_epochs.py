"""The order of a training set's rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.core.config import LoopConfig
from etude.core.runtime import Runtime
from etude.data.epochs import Epochs


def epochs(seed: int = 0) -> Epochs:
    return Epochs(Runtime(LoopConfig(max_steps=1, device="cpu"), seed), "cpu")


def epoch(of: Epochs, number: int, count: int, size: int) -> list[int]:
    steps = count // size
    return torch.cat([of.rows(number * steps + step, count, size) for step in range(steps)]).tolist()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
def test_an_epoch_is_a_permutation_without_the_rest(count: int, size: int, number: int) -> None:
    size = min(size, count)
    found = epoch(epochs(), number, count, size)
    assert len(found) == count // size * size
    assert len(set(found)) == len(found)
    assert set(found) <= set(range(count))


def test_every_epoch_has_an_order_and_a_rest_of_its_own() -> None:
    order = epochs()
    found = [epoch(order, number, 22, 4) for number in range(30)]
    assert len({tuple(rows) for rows in found}) == 30
    assert set().union(*found) == set(range(22)), "over epochs every row has its turn"
    assert len({frozenset(rows) for rows in found}) > 10, "the rest differs"


def test_rows_are_whole_numbers_where_they_are_wanted() -> None:
    rows = epochs().rows(0, 10, 4)
    assert (rows.shape, rows.dtype, rows.device.type) == ((4,), torch.int64, "cpu")
    assert epochs().rows(3, 4, 4).sort().values.tolist() == [0, 1, 2, 3]
    runtime = Runtime(LoopConfig(max_steps=1, device="cpu"), 0)
    assert Epochs(runtime).rows(0, 4, 2).device == runtime.device
    assert Epochs(runtime, "meta").rows(0, 4, 2).device.type == "meta"


def test_the_seed_is_the_order() -> None:
    assert epoch(epochs(3), 1, 30, 5) == epoch(epochs(3), 1, 30, 5) != epoch(epochs(4), 1, 30, 5)


@pytest.mark.parametrize("steps", [[7], [9, 2, 7], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_a_step_is_the_same_whatever_came_before(steps: list[int]) -> None:
    """A resumed run needs no state of its order."""
    order = epochs()
    for step in steps:
        rows = order.rows(step, 13, 3)
    assert rows.tolist() == epochs().rows(7, 13, 3).tolist()


def test_the_batch_does_not_change_the_order() -> None:
    assert epoch(epochs(), 2, 24, 4) == epoch(epochs(), 2, 24, 6)


def test_another_count_is_another_order() -> None:
    """Even in the same epoch of the same object, and there and back."""
    order = epochs()
    first = epoch(order, 0, 20, 5)
    longer = epoch(order, 0, 25, 5)
    assert set(longer) == set(range(25))
    assert longer == epoch(epochs(), 0, 25, 5)
    assert epoch(order, 0, 20, 5) == first


def test_a_second_stream_is_another_order_beside_the_first() -> None:
    runtime = Runtime(LoopConfig(max_steps=1, device="cpu"), 0)
    first, second = Epochs(runtime, "cpu"), Epochs(runtime, "cpu", stream="alpha/order")
    found = [[epoch(order, number, 20, 5) for number in range(2)] for order in (first, second)]
    assert all(set(rows) == set(range(20)) for rows in found[1])
    assert found[0] == [epoch(epochs(), number, 20, 5) for number in range(2)], "the first is what it was"
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]
