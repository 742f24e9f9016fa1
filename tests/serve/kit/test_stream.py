"""Work that tells of itself on the way, and ends when nobody listens."""

import threading
import time
from collections.abc import Callable

import pytest

from etude.serve.kit.stream import Line, Stopped, streamed


def at_work() -> int:
    return sum(thread.name == "etude-work" for thread in threading.enumerate())


def wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_all_is_told_in_order():
    assert list(streamed(lambda line: [line.send(number) for number in range(50)])) == list(range(50))
    wait(lambda: at_work() == 0)


def test_nothing_is_told():
    assert list(streamed(lambda line: None)) == []


def test_a_fault_comes_after_what_was_told():
    def work(line: Line[int]) -> None:
        line.send(1)
        raise KeyError("fault")

    told = streamed(work)
    assert next(told) == 1
    with pytest.raises(KeyError, match="fault"):
        next(told)


def test_work_waits_for_its_listener_and_ends_with_it():
    reached: list[int] = []
    ended = threading.Event()

    def work(line: Line[int]) -> None:
        try:
            for number in range(10**6):
                reached.append(number)
                line.send(number)
        except Stopped:
            ended.set()
            raise

    told = streamed(work)
    assert [next(told), next(told)] == [0, 1]
    time.sleep(0.3)
    assert len(reached) <= 4, "one in the listener's hand, one handed over, one that waits"
    told.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert ended.wait(5)
    wait(lambda: at_work() == 0)


def test_work_that_only_checks_ends_too_when_it_is_dropped():
    def work(line: Line[int]) -> None:
        line.send(0)
        while True:
            line.check()
            time.sleep(0.001)

    told = streamed(work)
    assert next(told) == 0
    del told
    wait(lambda: at_work() == 0)
