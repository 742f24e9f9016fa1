"""Run folders on shared or object storage, by fsspec: file://, s3://, gs:// and what else it knows.

An upload that a kill cuts short must not be taken for a whole one: a checkpoint's manifest goes last, and is removed
first. The lines of a checkpoint's steps in metrics.jsonl go before the checkpoint.
"""

import contextlib
import glob
import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from etude.cluster.connect import load
from etude.core.config import read_yaml, to_yaml
from etude.core.errors import UserError
from etude.core.files import as_json, read_json, umask, write_atomic
from etude.core.run_folder import RunFolder
from etude.runs.grid import log_of

# A put is whole or absent there; elsewhere a file is renamed into place.
_OBJECTS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "memory"}
_OWNER = ".owner"
_MANIFEST, _BEST, _SUMMARY = "manifest.json", "checkpoints/best.json", "summary.json"


class Lost(Exception):  # noqa: N818 - it is no fault of ours
    """Another process has taken the run over."""


class Unreachable(UserError):  # noqa: N818 - a line for the user, as the others
    """The storage did not answer as it should: another try, or another node, may have more luck."""


class Storage:
    """A place of run folders, ``URL/STUDY/NAME``. Credentials are fsspec's own business.

    Args:
        url: a folder; without a scheme it is one of this machine.
    """

    def __init__(self, url: str) -> None:
        core = load("fsspec.core")
        try:
            self.fs, root = core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise UserError(f"--storage {url}: {' '.join(str(error).split())}") from error
        self.root = PurePosixPath(root)
        # A relative path means this process's folder, wherever it is sent.
        self.url = url if "://" in url else f"file://{root}"
        protocols = self.fs.protocol
        self.whole = bool(_OBJECTS & {protocols, *(protocols if isinstance(protocols, tuple) else ())})
        """True where a file is there whole or not at all."""
        self.mark = uuid.uuid4().hex[:12]
        """A mark that two processes that write the same name do not share."""

    @contextlib.contextmanager
    def faults(self) -> Iterator[None]:
        """One line for what the storage answers; each kind has exceptions of its own."""
        try:
            yield
        except (UserError, Lost, KeyboardInterrupt):
            raise
        except Exception as error:
            raise Unreachable(
                f"--storage {self.url}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ) from error

    def check(self) -> None:
        """Write and remove a small file, so that a wrong place or missing rights show before anything trains."""
        with self.faults():
            probe = f".etude-{self.mark}"
            self.write(probe, "")
            self.fs.rm(self.at(probe))

    def at(self, name: str) -> str:
        return str(self.root / name)

    def exists(self, name: str) -> bool:
        self.fs.invalidate_cache()
        return self.fs.exists(self.at(name))

    def read(self, name: str) -> str:
        return self.fs.cat_file(self.at(name)).decode("utf-8", "replace")

    def write(self, name: str, text: str) -> None:
        self._make(name, lambda place: self.fs.pipe_file(place, text.encode()))

    def put(self, source: Path, name: str) -> None:
        self._make(name, lambda place: self.fs.put_file(str(source), place))

    def _make(self, name: str, send: Callable[[str], object]) -> None:
        if self.whole:
            send(self.at(name))
            return
        place = self.root / name
        self.fs.makedirs(str(place.parent), exist_ok=True)
        # By the mark, for a node that was thought dead may be at the same file.
        beside = str(place.with_name(f".{place.name}.{self.mark}.part"))
        send(beside)
        self.fs.mv(beside, str(place))

    def remove(self, name: str) -> None:
        """Remove a file or a folder, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.at(name), recursive=True)

    def clean(self, name: str) -> None:
        """Remove what cut-short uploads of a run and of its log left."""
        if self.whole:
            return
        self.fs.invalidate_cache()
        place = self.root / name
        found = self.fs.glob(f"{glob.escape(str(place))}/**/.*.part")
        found += self.fs.glob(f"{glob.escape(str(place.parent))}/.{glob.escape(place.name)}.log.*.part")
        for path in found:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm(path)

    def files(self, name: str) -> list[str]:
        """The files of a folder, relative to it, without what an upload left half."""
        self.fs.invalidate_cache()
        place = self.at(name)
        found = [str(PurePosixPath(path).relative_to(place)) for path in self.fs.find(place)]
        return [path for path in found if not path.endswith(".part")]

    def bring(self, name: str, folder: Path, *, chosen: bool = False) -> bool:
        """Copy a run folder here; checkpoints whose upload was cut short are left out.

        Args:
            name: ``STUDY/NAME``.
            folder: the place here; there must be none, or an empty one.
            chosen: leave out all checkpoints but the one that predictions use.

        Returns whether there is such a run.
        """
        files = self.files(name)
        if "config.yaml" not in files:
            return False
        whole = _whole(files)
        if chosen and whole:
            whole &= {int(json.loads(self.read(f"{name}/{_BEST}"))["step"]) if _BEST in files else max(whole)}
        for path in files:
            if path != _OWNER and _step(path) in {None, *whole}:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                self.fs.get_file(self.at(f"{name}/{path}"), str(folder / path))
        return True

    def bring_log(self, path: Path) -> None:
        """Copy a run's log to its place on this machine, beside ``path``, if there is one."""
        log = log_of(path)
        with self.faults():
            if self.exists(name_of(log)):
                write_atomic(log, self.read(name_of(log)))

    def gather(self, path: Path, say: Callable[[str], None], *, chosen: bool) -> None:
        """Put a run in its place on this machine, whole or not at all; what trains there, or came further, is left.

        Args:
            path: the place, ``RUNS/STUDY/NAME``.
            say: told what is left because it trains.
            chosen: see `bring`.
        """
        run, name = RunFolder(path), name_of(path)
        with self.faults():
            if not self.exists(f"{name}/config.yaml"):
                return
        with contextlib.ExitStack() as held:
            if path.exists():
                try:
                    run.lock()
                except UserError:
                    say(f"left: {path} trains here now; what the storage has of it is not brought")
                    return
                held.callback(run.unlock)
                if self._further(name, path):
                    return
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent))
            held.callback(shutil.rmtree, beside, ignore_errors=True)
            with self.faults():
                self.bring(name, beside, chosen=chosen)
            translate(beside, _there(path), f"{path.parent}/")
            beside.chmod(0o777 & ~umask())
            shutil.rmtree(path, ignore_errors=True)
            beside.rename(path)

    def _further(self, name: str, path: Path) -> bool:
        """True where the run here is as far as what the storage has of it, or further."""
        here = max(_whole([str(found.relative_to(path)) for found in path.glob(f"*/*/{_MANIFEST}")]), default=-1)
        with self.faults():
            files = self.files(name)
        there = max(_whole(files), default=-1)
        return here >= 0 and (here > there or (here == there and _SUMMARY not in files))

    def send(self, path: Path) -> None:
        """Put a run of this machine on the storage, unless one is there already."""
        with self.faults():
            if self.exists(f"{name_of(path)}/config.yaml"):
                return
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / path.name
                shutil.copytree(path, copy, ignore=shutil.ignore_patterns(".*"))
                translate(copy, f"{path.parent}/", _there(path))
                Mirror(self, name_of(path), copy, "").push(last=True)

    def metrics(self, path: Path) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl`` of a run: those of the storage, or those here where it has none to give."""
        with contextlib.suppress(Unreachable), self.faults(), tempfile.TemporaryDirectory() as folder:
            name = f"{name_of(path)}/metrics.jsonl"
            if self.exists(name):
                self.fs.get_file(self.at(name), f"{folder}/metrics.jsonl")
                return list(RunFolder(Path(folder)).metrics())
        return list(RunFolder(path).metrics())


def name_of(path: Path) -> str:
    """The storage's name for a run folder or a log of this machine."""
    return f"{path.parent.name}/{path.name}"


def _there(path: Path) -> str:
    """The way in which the paths of a study's runs begin where a node trains."""
    return f"runs/{path.parent.name}/"


def _step(path: str) -> int | None:
    """The step of the checkpoint that a file of a run belongs to."""
    found = re.match(r"checkpoints/step-(\d+)/", path)
    return int(found[1]) if found else None


def _whole(files: Iterable[str]) -> set[int]:
    """The steps of the checkpoints that have a manifest."""
    return {step for path in files if path.endswith(f"/{_MANIFEST}") and (step := _step(path)) is not None}


class Mirror:
    """Keeps a run folder on the storage as a local one is, while the run trains.

    Args:
        storage: keeps the run.
        name: ``STUDY/NAME``.
        folder: the local folder, as `Storage.bring` left it.
        owner: the one who pushes; "" for one that nobody contends with.
    """

    def __init__(self, storage: Storage, name: str, folder: Path, owner: str) -> None:
        self.storage, self.name, self.folder, self.owner = storage, name, folder, owner
        self.known: dict[str, tuple[int, int]] = {}
        """The files that the storage has, by their stamp here."""

    def claim(self) -> None:
        """Take the run over: a process on a node that was thought dead pushes no more."""
        with self.storage.faults():
            self.storage.write(f"{self.name}/{_OWNER}", self.owner)
            self.storage.clean(self.name)

    def check(self) -> None:
        """Raises `Lost` where another has claimed the run."""
        if self.owner and self.storage.read(f"{self.name}/{_OWNER}") != self.owner:
            raise Lost(self.name)

    def bring(self) -> None:
        with self.storage.faults():
            self.storage.bring(self.name, self.folder)
        self.known = self._files()

    def push(self, *, last: bool = False) -> None:
        """Send what is new; with ``last`` the summary too, which says that the run has ended.

        Before each change the owner is read again: what takes long may end after another has taken the run over.
        """
        here = self._files()
        new = [path for path in here if self.known.get(path) != here[path]]
        if not new and not last:
            return
        steps = _whole(new)
        wanted = [path for path in here if (path in new if _step(path) is None else _step(path) in steps)]
        with self.storage.faults():
            self.check()
            for path in wanted:
                if _step(path) is not None and path.endswith(f"/{_MANIFEST}"):
                    self.storage.remove(f"{self.name}/{path}")
            removed: set[int | None] = set()
            for path in sorted(wanted, key=_turn):
                step = _step(path)
                if step in removed or (path == _SUMMARY and not last):
                    continue
                self.check()
                try:
                    self.storage.put(self.folder / path, f"{self.name}/{path}")
                    self.known[path] = here[path]
                except FileNotFoundError:
                    # Unless the run has removed it meanwhile, and the checkpoint with it.
                    if (self.folder / path).exists():
                        raise
                    removed |= {step} - {None}
            self._prune()

    def _prune(self) -> None:
        # The newest stays in any case: the next may not be sent yet.
        for step in sorted(_whole(self.known))[:-1]:
            theirs = [path for path in self.known if _step(path) == step]
            manifest = next(path for path in theirs if path.endswith(f"/{_MANIFEST}"))
            if not (self.folder / manifest).exists():
                self.check()
                self.storage.remove(f"{self.name}/{manifest}")
                self.storage.remove(f"{self.name}/{manifest.removesuffix(f'/{_MANIFEST}')}")
                for path in theirs:
                    del self.known[path]

    def _files(self) -> dict[str, tuple[int, int]]:
        """The run's files, each with a stamp that changes when it does."""
        found: dict[str, tuple[int, int]] = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder)
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and not any(part.startswith(".") for part in name.parts):
                    about = path.stat()
                    found[str(name)] = about.st_mtime_ns, about.st_size
        return found


def _turn(path: str) -> tuple[bool, bool, int, bool, str]:
    """The place of a file in the order of an upload."""
    step = _step(path)
    return path == _SUMMARY, path == _BEST, -1 if step is None else step, path.endswith(f"/{_MANIFEST}"), path


def translate(folder: Path, old: str, new: str) -> None:
    """Let a run's record name other runs, such as the one that chose its length, by where they lie now."""

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: moved(entry) for name, entry in value.items()}
        if isinstance(value, list):
            return [moved(entry) for entry in value]
        # At its beginning, or as a word of a command.
        return re.sub(rf"(?<!\S){re.escape(old)}", lambda _: new, value) if isinstance(value, str) else value

    for path, read, text in ((folder / "config.yaml", read_yaml, to_yaml), (folder / _SUMMARY, read_json, as_json)):
        if path.exists():
            before = read(path)
            if (after := moved(before)) != before:
                write_atomic(path, text(after))
