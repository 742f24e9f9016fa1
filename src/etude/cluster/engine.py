"""The engine that runs a grid on a Ray cluster."""

import dataclasses
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etude.cluster.connect import connect, require_room, require_sizes, source, surroundings
from etude.cluster.storage import Storage
from etude.cluster.worker import ELSEWHERE, Work, prefix_of
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder

RETRIES = 5
"""How often a run whose node or worker died goes on elsewhere."""
_MOST = 1000
"""Runs that are handed to Ray at a time where nothing else limits them; it starts those that have room."""
_SAVING = 90.0
"""Seconds for cancelled runs to save."""


class RayEngine:
    """Runs of a grid as Ray tasks, each a process of ``etude`` on some node.

    Args:
        address: see `etude.cluster.connect.connect`.
        cpus: cores of a run, and its threads.
        gpus: GPUs of a run, or a fraction of one.
        jobs: runs at a time; 0: as many as have room.
        storage: a URL where nodes keep run folders; "": the grid's folder lies on a disk that all of them see.
        say: told what happens.

    Raises:
        UserError: no Ray, no cluster at the address, no node large enough, a storage that cannot be written to.
    """

    def __init__(
        self, address: str, *, cpus: int = 1, gpus: float = 0.0, jobs: int = 0, storage: str = "",
        say: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        require_sizes(cpus, gpus)
        self.cpus, self.jobs, self.say = cpus, jobs, say
        self.storage = Storage(storage) if storage else None
        if self.storage is not None:
            self.storage.check()
        self.ray = connect(address)
        try:
            require_room(self.ray, cpus, gpus)
        except BaseException:
            self.ray.shutdown()
            raise
        self.task = self.ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(portable("run", source()))
        self.pool = ThreadPoolExecutor(jobs or _MOST)
        self.closing = False
        self.pending: set[Any] = set()
        self.guard = threading.Lock()

    def submit(self, command: Sequence[str], log: Path) -> Future[int]:
        return self.pool.submit(self._run, work_of(command, log, self.cpus, self.storage), log)

    def _run(self, work: Work, log: Path) -> int:
        if self.storage is not None:
            self._send(work)
        lost = 0
        while True:
            status, fault, reason = self._attempt(work)
            if self.storage is not None:
                self._bring_log(work, log)
            reason = fault or reason
            if fault:
                log.parent.mkdir(parents=True, exist_ok=True)
                with log.open("a", encoding="utf-8") as file:
                    file.write(f"etude: {fault}\n")
            if status != ELSEWHERE or self.closing:
                break
            lost += 1
            if lost > RETRIES:
                raise UserError(f"lost {lost} times, the last time because {reason}")
            self.say(f"lost: {work.name} ({reason}): it goes on elsewhere ({lost} of {RETRIES})")
        path = Path(work.runs) / work.study / work.name
        if status == 0 and self.storage is not None:
            self.storage.gather(
                f"{work.study}/{work.name}", path, chosen=True, here=prefix_of(work.runs, work.study),
                there=prefix_of("runs", work.study),
            )  # fmt: skip
        elif status == 0 and not (path / "summary.json").exists():
            raise UserError(f"{path} ended well on a node whose disk is not seen here: give --storage URL")
        return status

    def _attempt(self, work: Work) -> tuple[int, str, str]:
        """One attempt: its status, what stood in its way, and why it was lost."""
        errors = self.ray.exceptions
        died = (
            errors.WorkerCrashedError, errors.NodeDiedError, errors.LocalRayletDiedError, errors.OutOfMemoryError,
            errors.ObjectLostError,
        )  # fmt: skip
        with self.guard:
            if self.closing:
                return ELSEWHERE, "", "the grid was stopped"
            reference = self.task.remote(dataclasses.asdict(work))
            self.pending.add(reference)
        try:
            status, fault = self.ray.get(reference)
            return status, fault, "it was killed or asked to stop"
        except died as error:
            return ELSEWHERE, "", _about(error)
        except errors.TaskCancelledError:
            return ELSEWHERE, "", "the grid was stopped"
        finally:
            with self.guard:
                self.pending.discard(reference)

    def _send(self, work: Work) -> None:
        """Put what this machine alone has on the storage: the run if it was begun here, and those it follows."""
        assert self.storage is not None
        for name in (work.name, *work.before):
            path = Path(work.runs) / work.study / name
            if (path / "config.yaml").exists():
                self.storage.send(
                    path, f"{work.study}/{name}", here=prefix_of(work.runs, work.study),
                    there=prefix_of("runs", work.study),
                )  # fmt: skip

    def _bring_log(self, work: Work, log: Path) -> None:
        assert self.storage is not None
        name = f"{work.study}/{work.name}.log"
        with self.storage.faults():
            if self.storage.exists(name):
                log.parent.mkdir(parents=True, exist_ok=True)
                log.write_text(self.storage.read(name), encoding="utf-8")

    def close(self) -> None:
        """Ask what still runs to save and end, and leave the cluster; one that was started here ends."""
        with self.guard:
            self.closing = True
            pending = list(self.pending)
        for reference in pending:
            self.ray.cancel(reference)
        if pending:
            self.say(f"stopping {len(pending)} runs; they are saved first")
            self.ray.wait(pending, num_returns=len(pending), timeout=_SAVING)
        self.pool.shutdown(cancel_futures=True)
        self.ray.shutdown()


def portable(name: str, place: str) -> Callable[[dict[str, Any]], Any]:
    """A function of `etude.cluster.worker` for workers that may have to find etude first.

    A nested function travels as code, a module's as a name, and plain values need no module.
    """

    def etude_task(work: dict[str, Any]) -> Any:
        import importlib
        import sys
        from pathlib import Path

        if place and place not in sys.path and (Path(place) / "etude").is_dir():
            sys.path.insert(0, place)
        worker = importlib.import_module("etude.cluster.worker")
        return getattr(worker, name)(worker.Work(**work))

    return etude_task


def work_of(command: Sequence[str], log: Path, cpus: int, storage: Storage | None) -> Work:
    """What a grid's words mean to a node."""
    words = tuple(command)
    if words[0] == "resume":
        path = Path(words[1])
    else:
        options = dict(itertools.pairwise(words))
        path = Path(options["--runs"]) / words[1] / options["--name"]
    study, runs = path.parent.name, str(path.parents[1])
    prefix = prefix_of(runs, study)
    mentioned = list(words)
    if words[0] == "resume":
        # What it was begun with may name runs too.
        mentioned = list(RunFolder.open(path).record.overrides.values())
    names = {str(word).removeprefix(prefix).split("/")[0] for word in mentioned if str(word).startswith(prefix)}
    return Work(
        study, path.name, words, runs, str(Path.cwd()), str(log), cpus, storage.url if storage else "",
        tuple(sorted(names)), tuple(surroundings().items()), source(),
    )  # fmt: skip


def _about(error: Exception) -> str:
    return {
        "WorkerCrashedError": "its worker died", "NodeDiedError": "its node died",
        "LocalRayletDiedError": "its node died", "OutOfMemoryError": "its node ran out of memory",
        "ObjectLostError": "its node died",
    }.get(type(error).__name__, type(error).__name__)  # fmt: skip
