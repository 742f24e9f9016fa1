"""Run folders on shared or object storage, by fsspec: file://, s3://, gs:// and what else it knows.

An upload that a kill cuts short must not be taken for a whole one: a checkpoint's manifest goes last, and is removed
first. The lines of a checkpoint's steps in metrics.jsonl go before the checkpoint.
"""

import contextlib
import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from etude.cluster.connect import load
from etude.core.config import read_yaml, to_yaml
from etude.core.errors import UserError
from etude.core.files import read_json, umask, write_atomic, write_json
from etude.core.run_folder import RunFolder
from etude.runs.grid import log_of

# A put is whole or absent there; elsewhere a file is renamed into place.
_OBJECTS = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "memory"}
_STEP = re.compile(r"checkpoints/step-(\d+)/")
_OWNER = ".owner"
_MANIFEST, _BEST, _SUMMARY = "manifest.json", "checkpoints/best.json", "summary.json"


class Lost(Exception):  # noqa: N818 - it is no fault of ours
    """Another process has taken the run over."""


class Away(UserError):  # noqa: N818 - a line for the user, as the others
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
        """Whether a file is there whole or not at all."""
        self.mark = uuid.uuid4().hex[:12]
        """What two processes that write the same name do not share."""

    @contextlib.contextmanager
    def faults(self) -> Iterator[None]:
        """One line for what the storage answers; each kind has exceptions of its own."""
        try:
            yield
        except (UserError, Lost, KeyboardInterrupt):
            raise
        except Exception as error:
            raise Away(f"--storage {self.url}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error

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
        place = self.at(name)
        if self.whole:
            send(place)
            return
        self.fs.makedirs(str(PurePosixPath(place).parent), exist_ok=True)
        # By the mark, for a node that was thought dead may be at the same file.
        beside = str(PurePosixPath(place).with_name(f".{PurePosixPath(place).name}.{self.mark}.part"))
        send(beside)
        self.fs.mv(beside, place)

    def remove(self, name: str) -> None:
        """Remove a file or a folder, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.at(name), recursive=True)

    def clean(self, name: str) -> None:
        """Remove what cut-short uploads of a run and of its log left."""
        if self.whole:
            return
        self.fs.invalidate_cache()
        place = PurePosixPath(self.at(name))
        found = [path for path in self.fs.find(str(place)) if path.endswith(".part")]
        logs = self.fs.ls(str(place.parent), detail=False) if self.fs.exists(str(place.parent)) else []
        start = f".{place.name}.log."
        found += [p for p in logs if PurePosixPath(p).name.startswith(start) and p.endswith(".part")]
        for path in found:
            with contextlib.suppress(FileNotFoundError):
                self.fs.rm(path)

    def newest(self, name: str) -> int | None:
        """The step of a run's newest whole checkpoint."""
        found = [path for path in self.files(name) if path.endswith(f"/{_MANIFEST}")]
        return max((int(at[1]) for path in found if (at := _STEP.match(path))), default=None)

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
            folder: where to; there must be none, or an empty one.
            chosen: leave out all checkpoints but the one that predictions use.

        Returns whether there is such a run.
        """
        files = self.files(name)
        if "config.yaml" not in files:
            return False
        whole = {int(at[1]) for path in files if (at := _STEP.match(path)) and path.endswith(_MANIFEST)}
        if chosen and whole:
            best = int(json.loads(self.read(f"{name}/{_BEST}"))["step"]) if _BEST in files else max(whole)
            whole &= {best}
        for path in files:
            at = _STEP.match(path)
            if path != _OWNER and (at is None or int(at[1]) in whole):
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
        if here := path.exists():
            try:
                run.lock()
            except UserError:
                say(f"left: {path} trains here now; what the storage has of it is not brought")
                return
        try:
            if here and self._further(name, path):
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent))
            try:
                with self.faults():
                    self.bring(name, beside, chosen=chosen)
                translate(beside, _there(path), f"{path.parent}/")
                beside.chmod(0o777 & ~umask())
                shutil.rmtree(path, ignore_errors=True)
                beside.rename(path)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        finally:
            run.unlock()

    def _further(self, name: str, path: Path) -> bool:
        """Whether the run here is as far as what the storage has of it, or further."""
        steps = [int(found.parent.name.removeprefix("step-")) for found in path.glob(f"checkpoints/step-*/{_MANIFEST}")]
        if not steps:
            return False
        with self.faults():
            theirs = self.newest(name)
            ended = self.exists(f"{name}/{_SUMMARY}")
        return theirs is None or max(steps) > theirs or (max(steps) == theirs and not ended)

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
        with contextlib.suppress(Away), self.faults(), tempfile.TemporaryDirectory() as folder:
            name = f"{name_of(path)}/metrics.jsonl"
            if self.exists(name):
                self.fs.get_file(self.at(name), f"{folder}/metrics.jsonl")
                return list(RunFolder(Path(folder)).metrics())
        return list(RunFolder(path).metrics())


def name_of(path: Path) -> str:
    """What the storage calls a run folder or a log of this machine."""
    return f"{path.parent.name}/{path.name}"


def _there(path: Path) -> str:
    """How the paths of a study's runs begin where a node trains."""
    return f"runs/{path.parent.name}/"


class Mirror:
    """Keeps a run folder on the storage as a local one is, while the run trains.

    Args:
        storage: where to.
        name: ``STUDY/NAME``.
        folder: the local folder, as `Storage.bring` left it.
        owner: who pushes; "" for one that nobody contends with.
    """

    def __init__(self, storage: Storage, name: str, folder: Path, owner: str) -> None:
        self.storage, self.name, self.folder, self.owner = storage, name, folder, owner
        self.known: dict[str, tuple[int, int]] = {}
        """What the storage has: files by their stamp here; of a checkpoint its manifest."""

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
        self.known = {path: self._stamp(path) for path in (*self._others(), *self._manifests())}

    def push(self, *, last: bool = False) -> None:
        """Send what is new; with ``last`` the summary too, which says that the run has ended.

        Before each change the owner is read again: what takes long may end after another has taken the run over.
        """
        manifests = self._manifests()
        changed = [path for path in self._others() if self._new(path)]
        checkpoints = [path for path in manifests if self._new(path)]
        if not changed and not checkpoints and not last:
            return
        with self.storage.faults():
            self.check()
            for path in changed:
                if path not in (_BEST, _SUMMARY):
                    self._send(path)
            for path in checkpoints:
                self._send_checkpoint(path)
            if _BEST in changed:
                self._send(_BEST)
            self._prune()
            if last and _SUMMARY in changed:
                self._send(_SUMMARY)

    def _send(self, path: str) -> None:
        self.check()
        try:
            # Before the file is read, so that what is written meanwhile is sent the next time.
            stamp = self._stamp(path)
            self.storage.put(self.folder / path, f"{self.name}/{path}")
            self.known[path] = stamp
        except FileNotFoundError:
            # Unless the run has removed it meanwhile.
            if (self.folder / path).exists():
                raise

    def _send_checkpoint(self, manifest: str) -> None:
        place = manifest.removesuffix(f"/{_MANIFEST}")
        self.check()
        try:
            self.storage.remove(f"{self.name}/{manifest}")
            for file in sorted((self.folder / place).iterdir()):
                if file.name != _MANIFEST:
                    self.check()
                    self.storage.put(file, f"{self.name}/{place}/{file.name}")
            self._send(manifest)
        except FileNotFoundError:
            if (self.folder / manifest).exists():
                raise
            # The run has pruned it meanwhile.
            self.check()
            self.known.pop(manifest, None)
            self.storage.remove(f"{self.name}/{place}")

    def _prune(self) -> None:
        sent = sorted(path for path in self.known if path.endswith(f"/{_MANIFEST}"))
        # The newest stays in any case: the next may not be sent yet.
        for manifest in sent[:-1]:
            if not (self.folder / manifest).exists():
                self.check()
                self.storage.remove(f"{self.name}/{manifest}")
                self.storage.remove(f"{self.name}/{manifest.removesuffix(f'/{_MANIFEST}')}")
                del self.known[manifest]

    def _manifests(self) -> list[str]:
        paths = self.folder.glob(f"checkpoints/step-*/{_MANIFEST}")
        return sorted(str(path.relative_to(self.folder)) for path in paths)

    def _others(self) -> list[str]:
        paths = [path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file()]
        hidden = {path for path in paths if any(part.startswith(".") for part in path.parts)}
        return sorted(str(path) for path in set(paths) - hidden if not _STEP.match(str(path)))

    def _stamp(self, path: str) -> tuple[int, int]:
        about = (self.folder / path).stat()
        return about.st_mtime_ns, about.st_size

    def _new(self, path: str) -> bool:
        try:
            return self.known.get(path) != self._stamp(path)
        except FileNotFoundError:
            return False


def translate(folder: Path, old: str, new: str) -> None:
    """Let a run's record name other runs, such as the one that chose its length, by where they lie now."""

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: moved(entry) for name, entry in value.items()}
        if isinstance(value, list):
            return [moved(entry) for entry in value]
        return new + value.removeprefix(old) if isinstance(value, str) and value.startswith(old) else value

    if old == new:
        return
    config, summary = folder / "config.yaml", folder / _SUMMARY
    if config.exists():
        before = read_yaml(config)
        if moved(before) != before:
            write_atomic(config, to_yaml(moved(before)))
    if summary.exists():
        before = read_json(summary)
        after = moved(before)
        if isinstance(after.get("command"), str):
            after["command"] = after["command"].replace(f" {old}", f" {new}")
        if after != before:
            write_json(summary, after)
