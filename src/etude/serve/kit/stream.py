"""Long work that tells of itself on the way, and ends when nobody listens any more."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_PATIENCE = 0.2
"""Seconds between two looks at whether somebody still listens."""


class Stopped(Exception):  # noqa: N818 - it is no fault
    """Nobody listens any more."""


class Line(Generic[T]):
    """From work to its listener."""

    def __init__(self) -> None:
        self._told: queue.Queue[tuple[T | None, bool, BaseException | None]] = queue.Queue(1)
        self._closed = threading.Event()

    def check(self) -> None:
        """Raise `Stopped` where nobody listens: to be called often."""
        if self._closed.is_set():
            raise Stopped

    def tell(self, item: T) -> None:
        """Hand something over; wait while the listener has not taken what came before. Raises `Stopped`."""
        self._put((item, False, None))

    def _put(self, row: tuple[T | None, bool, BaseException | None]) -> None:
        while True:
            self.check()
            try:
                self._told.put(row, timeout=_PATIENCE)
                return
            except queue.Full:
                continue

    def run(self, work: "Callable[[Line[T]], Any]") -> None:
        fault: BaseException | None = None
        try:
            try:
                work(self)
            except Stopped:
                raise
            except BaseException as error:  # whatever it is, the listener gets it
                fault = error
            self._put((None, True, fault))
        except Stopped:
            return

    def listen(self) -> Iterator[T]:
        try:
            while True:
                item, last, fault = self._told.get()
                if fault is not None:
                    raise fault
                if last:
                    return
                yield item  # pyright: ignore[reportReturnType]
        finally:
            self._closed.set()


def told_by(work: Callable[[Line[T]], Any]) -> Iterator[T]:
    """What ``work(line)`` tells, in its order, each as soon as it is told.

    The work runs in a thread of its own, at most one ``tell`` ahead of its listener. When the iterator is closed or
    dropped, the next ``tell`` or ``check`` raises `Stopped` there, which is to end the work.

    Args:
        work: called once, when the first is asked for; what it raises is raised here.
    """
    line: Line[T] = Line()
    threading.Thread(target=line.run, args=(work,), name="etude-work", daemon=True).start()
    yield from line.listen()
