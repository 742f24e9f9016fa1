"""Long work that sends what it makes on the way, and ends when nobody listens any more."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_PATIENCE = 0.2
"""Seconds between two looks at whether somebody still listens."""


class Stopped(Exception):  # noqa: N818 - it is no fault
    """Nobody listens any more."""


class Line(Generic[T]):
    """The line from work to its listener."""

    def __init__(self) -> None:
        self.items: queue.Queue[Future[T] | None] = queue.Queue(1)
        """The items that were sent; None, or a fault, is the last."""
        self.closed = threading.Event()

    def check(self) -> None:
        """Raise `Stopped` where nobody listens: to be called often."""
        if self.closed.is_set():
            raise Stopped

    def send(self, item: T) -> None:
        """Hand something over; wait while the listener has not taken what came before. Raises `Stopped`."""
        sent: Future[T] = Future()
        sent.set_result(item)
        self._put(sent)

    def _put(self, item: "Future[T] | None") -> None:
        while True:
            self.check()
            with contextlib.suppress(queue.Full):
                return self.items.put(item, timeout=_PATIENCE)

    def work(self, work: "Callable[[Line[T]], Any]") -> None:
        end: Future[T] | None = None
        with contextlib.suppress(Stopped):
            try:
                work(self)
            except Stopped:
                raise
            except BaseException as fault:  # whatever it is, the listener gets it
                end = Future()
                end.set_exception(fault)
            self._put(end)


def streamed(work: Callable[[Line[T]], Any]) -> Iterator[T]:
    """The items that ``work(line)`` sends, in their order, each as soon as it is sent.

    The work runs in a thread of its own, at most one ``send`` ahead of its listener. When the iterator is closed or
    dropped, the next ``send`` or ``check`` raises `Stopped` there, which is to end the work.

    Args:
        work: called once, when the first is asked for; what it raises is raised here.
    """
    line: Line[T] = Line()
    threading.Thread(target=line.work, args=(work,), name="etude-work", daemon=True).start()
    try:
        while (item := line.items.get()) is not None:
            yield item.result()
    finally:
        line.closed.set()
