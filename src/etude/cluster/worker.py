"""The work of a node: a run is begun or gone on with, in a process that ends when the worker does."""

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from etude.cluster.storage import Lost, Mirror, Storage, Unreachable, name_of
from etude.core.errors import UserError
from etude.core.files import locked
from etude.runs.grid import STOPPED, log_of, start
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
PLACES = (
    "folder", "folder-b", "split-file", "bert", "weights", "inception", "start", "selected-run", "table-file", "init"
)  # fmt: skip
"""Flags, without what stands before a dot, whose value may name a file or folder by a plain name."""


@dataclass(frozen=True)
class Work:
    """A run, for whichever node has room."""

    path: str
    """Its folder, ``RUNS/STUDY/NAME`` as the words call it; the log lies beside it."""
    words: tuple[str, ...]
    """The words of ``etude`` for a new run; below ``RUNS/STUDY`` they name other runs."""
    cwd: str
    """The folder of the command, where relative paths begin."""
    cpus: int = 1
    storage: str = ""
    before: tuple[str, ...] = ()
    """Names of the runs that the words mention."""
    environment: tuple[tuple[str, str], ...] = ()
    """Values for variables that the node itself does not set."""
    source: str = ""
    """The folder of etude's source, if it is not installed."""


class Attempt:
    """One attempt at a run. With a storage, which mirrors its folder, it works in a folder of its own.

    Args:
        work: the run.
        here: where relative paths begin.
    """

    def __init__(self, work: Work, here: Path) -> None:
        self.work, self.here = work, here
        self.mirror: Mirror | None = None
        self.pushed = 0.0
        self.logged = -1
        """Bytes of the log that the storage has."""
        self.place = Path("runs", *Path(work.path).parts[-2:]) if work.storage else Path(work.path)
        self.path = here / self.place
        self.log = log_of(self.path)

    def run(self) -> int:
        """Returns the exit status of the run once it has ended, or `ELSEWHERE`. A cancelled task saves first.

        Raises:
            UserError: the folder cannot be had; of that `Unreachable` where the storage cannot.
            Lost: another attempt has taken the run over.
        """
        self._prepare()
        words = _moved(self.work) if self.work.storage else self.work.words
        # Decided here and now: an attempt that was lost may have begun it.
        if (self.path / "config.yaml").exists():
            words = ["resume", str(self.place)]
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"etude: on {socket.gethostname()}: etude {shlex.join(words)}\n")
        # At its end the pipe is closed, by which a process dies that still runs.
        with start(words, self.log, environment(self.work), self.here) as child:
            try:
                while child.poll() is None:
                    if time.monotonic() - self.pushed > _PUSH:
                        # What cannot be sent now is sent later: a run outlives a storage that is away for a while.
                        with contextlib.suppress(UserError):
                            self._push()
                    time.sleep(_POLL)
            except Lost:
                raise
            except BaseException:
                # It saves and ends, or is killed where that takes too long.
                child.terminate()
                try:
                    child.wait(_SAVE)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
                self._push(last=True)
                raise
        _patiently(lambda: self._push(last=True), _AWAY)
        # Killed by the system, or asked by it to make room.
        return ELSEWHERE if child.returncode in (-signal.SIGKILL, -signal.SIGTERM, STOPPED) else child.returncode

    def _prepare(self) -> None:
        work = self.work
        if not self.here.is_dir():
            raise UserError(
                f"the node {socket.gethostname()} has no folder {self.here}: start from a disk that all nodes see, or "
                "give --storage URL"
            )
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if work.storage:
            self.mirror = mirror = Mirror(Storage(work.storage), name_of(self.path), self.path, uuid.uuid4().hex)
            _patiently(lambda: self._bring(mirror), _ARRIVE)
        elif self.path.exists():
            # Held by the process of a lost attempt, it may be; after a while the run itself says who has it.
            with contextlib.suppress(UserError), locked(self.path / ".lock", "", _LOCK):
                pass

    def _bring(self, mirror: Mirror) -> None:
        before = [self.path.with_name(name) for name in self.work.before]
        for path in (self.path, *before):
            # An earlier try has left it.
            shutil.rmtree(path, ignore_errors=True)
        mirror.claim()
        mirror.bring()
        mirror.storage.bring_log(self.path)
        with mirror.storage.faults():
            for path in before:
                mirror.storage.bring(name_of(path), path, chosen=True)

    def _push(self, *, last: bool = False) -> None:
        self.pushed = time.monotonic()
        if self.mirror is None:
            return
        with self.mirror.storage.faults():
            self.mirror.push(last=last)
            length = self.log.stat().st_size
            if length != self.logged:
                self.mirror.check()
                self.mirror.storage.put(self.log, name_of(self.log))
                self.logged = length


def environment(work: Work) -> dict[str, str]:
    """The variables of a process of a run's."""
    found = dict(work.environment) | os.environ | {"OMP_NUM_THREADS": str(work.cpus)}
    if work.source and (Path(work.source) / "etude").is_dir():
        known = found.get("PYTHONPATH")
        found["PYTHONPATH"] = os.pathsep.join([work.source, *([known] if known else [])])
    return found


def monitor(work: Work) -> dict[str, str]:
    """The answer of `etude.runs.monitor` about a run's words here."""
    here = Path(work.cwd)
    return ask_monitor(work.words, environment(work), here if here.is_dir() else None)


def run(work: Work) -> tuple[int, str]:
    """Make or go on with a run until it ends.

    Returns its exit status, or `ELSEWHERE`, and what stood in its way if it could not begin or be sent.
    """
    try:
        with _workshop() if work.storage else contextlib.nullcontext(Path(work.cwd)) as here:
            return Attempt(work, here).run(), ""
    except Unreachable as error:
        return ELSEWHERE, str(error)
    except UserError as error:
        return 2, str(error)
    except Lost:
        return 1, "another attempt has taken it over"


def _moved(work: Work) -> list[str]:
    """The words with runs below the attempt's own folder, and other relative paths made whole."""
    folder = Path(work.path).parent
    words: list[str] = []
    for flag, word in zip(("", *work.words), work.words, strict=False):
        if flag == "--runs":
            word = "runs"
        elif word.startswith(f"{folder}/"):
            word = f"runs/{folder.name}/{word.removeprefix(f'{folder}/')}"
        elif ".py:" in word or "/" in word or (flag[:2] == "--" and flag[2:].rpartition(".")[2] in PLACES):
            file = word.rpartition(":")[0] if ".py:" in word else word
            if file and (Path(work.cwd) / file).exists():
                word = str(Path(work.cwd) / word)
        words.append(word)
    return words


def _patiently(act: Callable[[], None], seconds: float) -> None:
    """Do what needs the storage, again and again for so long while it does not answer."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            act()
            return
        except Unreachable:
            if time.monotonic() > deadline:
                raise
        time.sleep(_PUSH)


@contextlib.contextmanager
def _workshop() -> Iterator[Path]:
    """A folder of an attempt's own on the node's disk; those of workers that were killed are swept away."""
    base = Path(tempfile.gettempdir()) / f"etude-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    if base.stat().st_uid != os.getuid():
        raise UserError(f"{base} belongs to somebody else: set TMPDIR on this node")
    with contextlib.ExitStack() as held:
        # Else one attempt could sweep the folder that another has made and not locked yet.
        with locked(base / ".lock", "", -1.0):
            for old in base.glob("attempt-*"):
                with contextlib.suppress(UserError), locked(old / ".lock", ""):
                    shutil.rmtree(old, ignore_errors=True)
            path = Path(tempfile.mkdtemp(prefix="attempt-", dir=base))
            held.enter_context(locked(path / ".lock", ""))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
