"""The engine that runs commands on a Ray cluster."""

import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etude.cluster.connect import connect, require_room, require_sizes, room, source
from etude.cluster.storage import Storage
from etude.cluster.worker import ELSEWHERE, Work
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder
from etude.runs.grid import STOPPED, Engine, LocalEngine

RETRIES = 5
"""The number of times that a run whose node or worker died goes on elsewhere."""
_MOST = 1000
"""Runs that are handed to Ray at a time where nothing else limits them; it starts those that have room."""
_SAVING = 90.0
"""Seconds for cancelled runs to save."""
_DEATHS = {
    "WorkerCrashedError": "its worker died", "NodeDiedError": "its node died", "LocalRayletDiedError": "its node died",
    "OutOfMemoryError": "its node ran out of memory", "ObjectLostError": "its node died",
}  # fmt: skip
"""Ray's errors of what was lost, in words."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """Flags of a verb that makes many runs: this machine, or a cluster."""

    ray: str = ""
    """A Ray cluster to run on: local (started here for this command), auto (the one of this machine), HOST:PORT."""
    jobs: int = 0
    """Runs at a time; 0: one on this machine, as many as have room on a cluster."""
    cpus: int = 1
    """On a cluster: cores of a run, and its threads."""
    gpus: float = 0.0
    """On a cluster: GPUs of a run, or a fraction of one, such as 0.5 for two runs on each."""
    storage: str = ""
    """On a cluster whose nodes share no disk: a URL for run folders, such as s3://bucket/runs (what fsspec knows)."""
    runs: Path = Path("runs")
    """The folder that the run folders go to."""
    json: bool = False
    """Print the outcomes as a JSON list."""

    def check(self) -> None:
        """Refuse flags that do not go together."""
        if self.jobs < 0:
            raise UserError(f"--jobs must be at least 0, not {self.jobs}")
        if not self.ray and (self.cpus != 1 or self.gpus or self.storage):
            raise UserError("--cpus, --gpus and --storage are for a cluster: name it as --ray, such as --ray local")
        require_sizes(self.cpus, self.gpus)

    def engine(self, say: Callable[[str], None]) -> Engine:
        """The engine that makes the runs."""
        if not self.ray:
            return LocalEngine(self.jobs or 1)
        return RayEngine(self, say)


class RayEngine:
    """Runs as Ray tasks, each a process of ``etude`` on some node.

    Args:
        flags: name the cluster, see `etude.cluster.connect.connect`, and the sizes of runs.
        say: is told what happens.

    Raises:
        UserError: no Ray, no cluster at the address, no node large enough, a storage that cannot be written to.
    """

    def __init__(self, flags: Where, say: Callable[[str], None]) -> None:
        self.cpus, self.gpus, self.jobs, self.say = flags.cpus, flags.gpus, flags.jobs, say
        self.storage = Storage(flags.storage) if flags.storage else None
        if self.storage is not None:
            self.storage.check()
        self.ray = connect(flags.ray)
        try:
            require_room(self.ray, self.cpus, self.gpus)
        except BaseException:
            self.ray.shutdown()
            raise
        self.task = self._remote("run", max_retries=0)
        self.pool = ThreadPoolExecutor(self.jobs or _MOST)
        self.closing = False
        self.pending: dict[Path, Any] = {}
        """The runs that Ray has, by their logs."""
        self.stopped: set[Path] = set()
        self.guard = threading.Lock()

    @property
    def slots(self) -> int:
        return self.jobs or max(1, room(self.ray, self.cpus, self.gpus))

    def _remote(self, name: str, **options: int) -> Any:
        return self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, **options)(portable(name, source()))

    def submit(self, command: Sequence[str], log: Path) -> Future[int]:
        return self.pool.submit(self._run, work_of(command, log, self.cpus, self.storage), log)

    def _run(self, work: Work, log: Path) -> int:
        path = Path(work.path)
        if self.storage is not None:
            # What this machine alone has: the run if it was begun here, and those it follows.
            for other in (path, *map(path.with_name, work.before)):
                if (other / "config.yaml").exists():
                    self.storage.send(other)
        lost = 0
        while True:
            status, fault, reason = self._attempt(work, log)
            if self.storage is not None:
                self.storage.bring_log(path)
            if fault:
                _add(log, fault)
            if status != ELSEWHERE:
                break
            lost, reason = lost + 1, fault or reason
            if lost > RETRIES:
                _add(log, f"lost {lost} times, the last time because {reason}")
                return 1
            self.say(f"lost: {path.name} ({reason}): it goes on elsewhere ({lost} of {RETRIES})")
        if status == 0 and self.storage is not None:
            self.storage.gather(path, self.say, chosen=True)
        elif status == 0 and not (path / "summary.json").exists():
            _add(log, f"{path} ended well on a node whose disk is not seen here: give --storage URL")
            return 1
        return status

    def _attempt(self, work: Work, log: Path) -> tuple[int, str, str]:
        """One attempt: its status, what stood in its way, and why it was lost."""
        errors = self.ray.exceptions
        with self.guard:
            if self.closing or log in self.stopped:
                return STOPPED, "", ""
            reference = self.pending[log] = self.task.remote(dataclasses.asdict(work))
        try:
            status, fault = self.ray.get(reference)
            return status, fault, "it was killed or asked to stop"
        except errors.TaskCancelledError:
            return STOPPED, "", ""
        except errors.RayError as error:
            reason = next((why for name, why in _DEATHS.items() if isinstance(error, getattr(errors, name))), "")
            if not reason:
                raise
            return ELSEWHERE, "", reason
        finally:
            with self.guard:
                del self.pending[log]

    def stop(self, log: Path) -> None:
        with self.guard:
            self.stopped.add(log)
            reference = self.pending.get(log)
        if reference is not None:
            self.ray.cancel(reference)

    def monitor(self, words: Sequence[str]) -> dict[str, str]:
        work = work_of(words, Path("monitor.log"), self.cpus, None)
        return self.ray.get(self._remote("monitor").remote(dataclasses.asdict(work)))

    def close(self) -> None:
        """Ask what still runs to save and end, and leave the cluster; one that was started here ends."""
        with self.guard:
            self.closing = True
            pending = list(self.pending.values())
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
    """The meaning of the words for a run to a node."""
    path, mentioned = log.with_name(log.name.removesuffix(".log")), list(command)
    if command[0] == "resume":
        # What it was begun with may name runs too.
        mentioned = list(RunFolder.open(path).record.overrides.values())
    prefix = f"{path.parent}/"
    names = {str(word).removeprefix(prefix).split("/")[0] for word in mentioned if str(word).startswith(prefix)}
    # Runs take over where data are, where their node does not say otherwise.
    places = tuple((name, os.environ[name]) for name in ("ETUDE_CACHE", "ETUDE_MIRROR") if name in os.environ)
    return Work(
        str(path), tuple(command), str(Path.cwd()), cpus, storage.url if storage else "", tuple(sorted(names)), places,
        source(),
    )  # fmt: skip


def _add(log: Path, text: str) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"etude: {text}\n")
