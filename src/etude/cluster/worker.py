"""What happens on a node: a run is begun or gone on with, in a process that ends when the worker does."""

import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from etude.cluster.storage import Away, Lost, Mirror, Storage
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder
from etude.runs.grid import STOPPED, start
from etude.runs.monitor import ask_monitor

_POLL = 0.2
_PUSH = 2.0
"""Seconds between two looks for what the storage lacks."""
_SAVE = 60.0
"""Seconds that a run has to end a step and save when it is asked to stop."""
_LOCK = 180.0
"""Seconds to wait for a folder that a process of a lost worker still holds; NFS keeps a dead node's lock for 90."""
_ARRIVE = 60.0
"""Seconds to try to bring a run from the storage."""
_AWAY = 300.0
"""Seconds to try to send what an ended run leaves."""
ELSEWHERE = -1
"""The exit status of a run that was killed or asked to stop by somebody else, or that the storage kept from beginning
or ending: it goes on on another node."""
PLACES = ("folder", "folder-b", "split-file", "bert", "weights", "inception", "start", "selected-run")
"""Flags, without what stands before a dot, whose value may name a file or folder by a plain name."""


@dataclass(frozen=True)
class Work:
    """A run, for whichever node has room."""

    study: str
    name: str
    words: tuple[str, ...]
    """Of ``etude`` for a new run; ``--runs`` is the folder below which they name other runs."""
    runs: str
    """That folder, as the words call it."""
    cwd: str
    """The folder of the command, where relative paths begin."""
    log: str
    cpus: int = 1
    storage: str = ""
    before: tuple[str, ...] = ()
    """Names of the runs that the words mention."""
    environment: tuple[tuple[str, str], ...] = ()
    """For variables that the node itself does not set."""
    source: str = ""
    """Where etude's source lies, if it is not installed."""


class Attempt:
    """One attempt at a run. With a storage it works in a folder of its own, which the storage mirrors.

    Raises `UserError` from the start where the folder cannot be had, and of that `Away` where the storage cannot.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.mirror: Mirror | None = None
        self.shop: _Workshop | None = None
        self.child: subprocess.Popen[bytes] | None = None
        self.pushed = 0.0
        self.logged = -1
        """Bytes of the log that the storage has."""
        here = Path(work.cwd)
        words = list(work.words)
        if work.storage:
            self.shop = _Workshop()
            here = self.shop.path
            words = _moved(work)
            self.path = here / "runs" / work.study / work.name
            self.log = self.path.parent / f"{work.name}.log"
        else:
            if not here.is_dir():
                raise UserError(
                    f"the node {socket.gethostname()} has no folder {here}: start from a disk that all nodes see, or "
                    "give --storage URL"
                )
            self.path = here / work.runs / work.study / work.name
            self.log = here / work.log
        try:
            self._begin(here, words)
        except BaseException:
            self.close()
            raise

    def _begin(self, here: Path, words: Sequence[str]) -> None:
        work = self.work
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if work.storage:
            storage = Storage(work.storage)
            self.mirror = Mirror(storage, f"{work.study}/{work.name}", self.path, uuid.uuid4().hex)
            _patiently(self._bring, _ARRIVE)
        elif self.path.exists():
            _wait_for_lock(self.path)
        # Decided here and now: an attempt that was lost may have begun it.
        begun = (self.path / "config.yaml").exists()
        where = os.path.relpath(self.path, here) if work.storage else str(Path(work.runs) / work.study / work.name)
        words = ["resume", where] if begun else words
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"etude: on {socket.gethostname()}: etude {shlex.join(words)}\n")
        self.child = start(words, self.log, environment(work), here)

    def _bring(self) -> None:
        assert self.mirror is not None
        work, storage = self.work, self.mirror.storage
        for name in (work.name, *work.before):
            # Of an earlier try.
            shutil.rmtree(self.path.parent / name, ignore_errors=True)
        self.mirror.claim()
        self.mirror.bring()
        with storage.faults():
            if storage.exists(f"{work.study}/{self.log.name}"):
                self.log.write_text(storage.read(f"{work.study}/{self.log.name}"), encoding="utf-8")
            for name in work.before:
                storage.bring(f"{work.study}/{name}", self.path.parent / name, chosen=True)

    def wait(self) -> int:
        """Returns the exit status of the run once it has ended, or `ELSEWHERE`."""
        assert self.child is not None
        while (status := self.child.poll()) is None:
            if time.monotonic() - self.pushed > _PUSH:
                # What cannot be sent now is sent later: a run outlives a storage that is away for a while.
                with contextlib.suppress(UserError):
                    self._push()
            time.sleep(_POLL)
        _patiently(lambda: self._push(last=True), _AWAY)
        # Killed by the system, or asked by it to make room.
        return ELSEWHERE if status in (-signal.SIGKILL, -signal.SIGTERM, STOPPED) else status

    def stop(self) -> None:
        """Ask the run to save and end; kill it where that takes too long."""
        if self.child is None or self.child.poll() is not None:
            return
        self.child.terminate()
        try:
            self.child.wait(_SAVE)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self._push(last=True)

    def close(self) -> None:
        """Leave nothing behind: no process, no folder of the attempt's own."""
        if self.child is not None:
            if self.child.poll() is None:
                self.child.kill()
                self.child.wait()
            assert self.child.stdin is not None
            self.child.stdin.close()
        if self.shop is not None:
            self.shop.close()

    def _push(self, *, last: bool = False) -> None:
        self.pushed = time.monotonic()
        if self.mirror is None:
            return
        with self.mirror.storage.faults():
            self.mirror.push(last=last)
            length = self.log.stat().st_size
            if length != self.logged:
                self.mirror.check()
                self.mirror.storage.put(self.log, f"{self.work.study}/{self.log.name}")
                self.logged = length


def environment(work: Work) -> dict[str, str]:
    """The variables of a process of a run's."""
    found = dict(work.environment) | os.environ | {"OMP_NUM_THREADS": str(work.cpus)}
    if work.source and (Path(work.source) / "etude").is_dir():
        known = found.get("PYTHONPATH")
        found["PYTHONPATH"] = os.pathsep.join([work.source, *([known] if known else [])])
    return found


def monitor(work: Work) -> dict[str, str]:
    """What `etude.runs.monitor` says of a run's words here."""
    here = Path(work.cwd)
    return ask_monitor(work.words, environment(work), here if here.is_dir() else None)


def run(work: Work) -> tuple[int, str]:
    """Make or go on with a run until it ends. A cancelled task saves first.

    Returns its exit status, or `ELSEWHERE`, and what stood in its way if it could not begin or be sent.
    """
    attempt = None
    try:
        attempt = Attempt(work)
        return attempt.wait(), ""
    except Away as error:
        return ELSEWHERE, str(error)
    except UserError as error:
        return 2, str(error)
    except Lost:
        return 1, "another attempt has taken it over"
    except BaseException:
        if attempt is not None:
            attempt.stop()
        raise
    finally:
        if attempt is not None:
            attempt.close()


def _moved(work: Work) -> list[str]:
    """The words with runs below the attempt's own folder, and other relative paths made whole."""
    prefix = prefix_of(work.runs, work.study)
    words: list[str] = []
    for word in work.words:
        if words and words[-1] == "--runs":
            word = "runs"
        elif word.startswith(prefix):
            word = f"runs/{work.study}/{word.removeprefix(prefix)}"
        elif ".py:" in word or "/" in word or (words and words[-1].startswith("--") and _names_place(words[-1])):
            file = word.rpartition(":")[0] if ".py:" in word else word
            if file and (Path(work.cwd) / file).exists():
                word = str(Path(work.cwd) / word)
        words.append(word)
    return words


def _names_place(flag: str) -> bool:
    return flag.removeprefix("--").rpartition(".")[2] in PLACES


def prefix_of(runs: str, study: str) -> str:
    """How the paths of a study's runs begin."""
    return f"{Path(runs) / study}/"


def _patiently(act: Callable[[], None], seconds: float) -> None:
    """Do what needs the storage, again and again for so long while it does not answer."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            act()
            return
        except Away:
            if time.monotonic() > deadline:
                raise
        time.sleep(_PUSH)


def _wait_for_lock(path: Path) -> None:
    """Wait until the process of a lost attempt has let go of the folder.

    After a while the run itself is left to say who holds it.
    """
    run, deadline = RunFolder(path), time.monotonic() + _LOCK
    while time.monotonic() < deadline:
        try:
            run.lock()
        except UserError:
            time.sleep(_POLL)
        else:
            run.unlock()
            return


class _Workshop:
    """A folder of an attempt's own on the node's disk; those of workers that were killed are swept away."""

    def __init__(self) -> None:
        base = Path(tempfile.gettempdir()) / f"etude-{os.getuid()}"
        base.mkdir(mode=0o700, exist_ok=True)
        if base.stat().st_uid != os.getuid():
            raise UserError(f"{base} belongs to somebody else: set TMPDIR on this node")
        with (base / ".lock").open("a") as door:
            # Else one attempt could sweep the folder that another has made and not locked yet.
            fcntl.flock(door, fcntl.LOCK_EX)
            for old in base.glob("attempt-*"):
                _sweep(old)
            self.path = Path(tempfile.mkdtemp(prefix="attempt-", dir=base))
            self.lock: IO[str] = (self.path / ".lock").open("a")
            fcntl.flock(self.lock, fcntl.LOCK_EX)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self.lock.close()


def _sweep(folder: Path) -> None:
    """Remove an attempt's folder unless its worker lives."""
    with contextlib.suppress(OSError), (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
