"""A grid of runs: what is done is left, what is missing runs, what fails is named.

The engine that runs a command is behind an interface: this machine here, a cluster elsewhere.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from etude.runs.monitor import ask_monitor

State = Literal["done", "ran", "failed", "waits"]
STOPPED = 130
"""The exit status of a run that was asked to save and end."""


@runtime_checkable
class Engine(Protocol):
    """Runs commands somewhere, some at a time."""

    @property
    def slots(self) -> int:
        """The number of commands that have room at a time."""
        ...

    def submit(self, command: Sequence[str], log: Path) -> Future[int]:
        """The exit status of ``etude`` with these words once it has ended, for which it waits for room."""
        ...

    def stop(self, log: Path) -> None:
        """Ask the command that prints to ``log`` to save and end; its status is then `STOPPED`, or negative."""

    def monitor(self, words: Sequence[str]) -> dict[str, str]:
        """The words of `etude.runs.monitor` on a study, a preset and flags where runs train."""
        ...

    def close(self) -> None:
        """Ask what still runs to save and end, and wait for it."""


class LocalEngine:
    """Up to ``jobs`` processes on this machine, its cores shared among them."""

    def __init__(self, jobs: int) -> None:
        self.slots = jobs
        self.pool = ThreadPoolExecutor(jobs)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores // jobs))}
        self.running: dict[Path, subprocess.Popen[bytes]] = {}
        self.closing = False

    def submit(self, command: Sequence[str], log: Path) -> Future[int]:
        return self.pool.submit(self._run, command, log)

    def _run(self, command: Sequence[str], log: Path) -> int:
        log.parent.mkdir(parents=True, exist_ok=True)
        with start(command, log, self.environment) as child:
            self.running[log] = child
            if self.closing:
                child.terminate()
            status = child.wait()
            del self.running[log]
            return status

    def stop(self, log: Path) -> None:
        if log in self.running:
            self.running[log].terminate()

    def monitor(self, words: Sequence[str]) -> dict[str, str]:
        return ask_monitor(words, self.environment)

    def close(self) -> None:
        self.closing = True
        for log in list(self.running):
            self.stop(log)
        self.pool.shutdown(cancel_futures=True)


def start(
    words: Sequence[str], log: Path, environment: Mapping[str, str], cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start ``etude`` in a process that dies with this one; what it prints is added to ``log``."""
    with log.open("a", encoding="utf-8") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "etude.runs.child", *words], stdin=subprocess.PIPE, stdout=file, stderr=file,
            cwd=cwd, env=environment, start_new_session=True,
        )  # fmt: skip


def log_of(path: Path) -> Path:
    """The log of a run folder, beside it."""
    return path.with_name(f"{path.name}.log")


@dataclass(frozen=True)
class Item:
    """One run of a grid."""

    name: str
    path: Path
    """The run's folder."""
    flags: Callable[[], Sequence[str]]
    """The words of ``etude`` for a new run; asked for once the run it waits for has ended."""
    after: tuple[str, ...] = ()
    """The items that must end first, one of them well."""

    @property
    def done(self) -> bool:
        return (self.path / "summary.json").exists()

    def command(self) -> Sequence[str]:
        """The words of ``etude`` that begin the run or go on with it."""
        return ["resume", str(self.path)] if (self.path / "config.yaml").exists() else self.flags()

    @property
    def log(self) -> Path:
        return log_of(self.path)

    @property
    def last_line(self) -> str:
        """The last line of the log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        return next(filter(str.strip, reversed(lines)), "it printed nothing")


@dataclass(frozen=True)
class Outcome:
    """The end of one run of a grid."""

    item: Item
    state: State
    status: int = 0
    reason: str = ""


def run_grid(items: Sequence[Item], engine: Engine, say: Callable[[str], None]) -> list[Outcome]:
    """Run what is missing, in order of dependence, and return one outcome an item.

    A run that was begun is resumed; a run whose predecessors all failed waits for the next call. No failure
    stops the others.
    """
    outcomes: dict[str, Outcome] = {item.name: Outcome(item, "done") for item in items if item.done}
    left = [item for item in items if item.name not in outcomes]
    running: dict[Future[int], Item] = {}
    while left or running:
        waiting = len(left)
        for item in list(left):
            if any(name not in outcomes for name in item.after):
                continue
            left.remove(item)
            if item.after and all(outcomes[name].state in ("failed", "waits") for name in item.after):
                outcomes[item.name] = Outcome(item, "waits", reason=f"{', '.join(item.after)} has not ended well")
                continue
            try:
                words = item.command()
            except ValueError as error:
                outcomes[item.name] = Outcome(item, "failed", 2, str(error))
                continue
            say(f"queued: {item.name} (log: {item.log})")
            running[engine.submit(words, item.log)] = item
        assert running or len(left) < waiting, f"{[i.name for i in left]} follow runs that are not in the grid"
        if not running:
            continue
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            item = running.pop(future)
            fault = future.exception()
            status = 1 if fault is not None else future.result()
            if status == 0 and item.done:
                outcomes[item.name] = Outcome(item, "ran")
            else:
                reason = item.last_line if fault is None else f"{type(fault).__name__}: {fault}"
                outcomes[item.name] = Outcome(item, "failed", status or 1, reason)
            say(f"{outcomes[item.name].state}: {item.name}")
    return [outcomes[item.name] for item in items]
