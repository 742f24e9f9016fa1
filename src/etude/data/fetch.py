"""Files of data sets: downloaded once, verified by their digest, kept in a cache.

The cache is ``$ETUDE_CACHE``, else the operating system's place for caches. ``$ETUDE_MIRROR`` names a folder or a
URL that holds ``<data set>/<file>``; a file of a mirror folder is used where it lies.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import pooch
import requests
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from etude.core.errors import UserError
from etude.core.files import sha256 as file_sha256
from etude.core.files import sync, write_json

Status = Literal["verified", "present", "missing", "altered"]

_log = logging.getLogger("etude.data")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CHUNK_BYTES = 1 << 14
"""A connection that breaks loses less than this."""
_TIMEOUT_S = (10.0, 30.0)
"""To connect, and between two pieces of an answer."""
_ATTEMPTS = 5
_PAUSE_S = 1.0


@dataclass(frozen=True)
class Source:
    """One file of a data set.

    Attributes:
        dataset: the folder in the cache and in a mirror.
        filename: the path inside that folder, with ``/``.
        url: the data set's own home.
        sha256: hex digest of the home's file; ``md5:`` and that digest where nobody published the other; empty where
            nobody published any. The first file that is had is then noted, and held to its digest from there on.
        size: bytes of the home's file.
        mirror_sha256: other digests to accept, of a mirror that packed the same content again.
    """

    dataset: str
    filename: str
    url: str
    sha256: str
    size: int | None = None
    mirror_sha256: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``dataset/filename``."""
        return f"{self.dataset}/{self.filename}"

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every digest that the file may have."""
        return (self.sha256, *self.mirror_sha256)


def cache_place() -> Path:
    """Where the cache is, whether it has been made or not; enough for reading from it."""
    chosen = os.environ.get("ETUDE_CACHE")
    return (Path(chosen).expanduser() if chosen else pooch.os_cache("etude")).absolute()


def cache_folder() -> Path:
    """The folder of all cached files, made if need be.

    Raises:
        UserError: it cannot be made or written.
    """
    folder = cache_place()
    with cache_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return folder


@contextlib.contextmanager
def cache_faults(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write ``path`` into a one-line `UserError`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno in _NO_ROOM:
            fault, fix = f"no room to write {path} ({reason})", "free some space, or set ETUDE_CACHE to a larger disk"
        else:
            fault, fix = f"cannot write {path} ({reason})", "set ETUDE_CACHE to a folder that you may write to"
        raise UserError(f"{fault}: {fix}") from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process at a time makes ``path``; the others wait. Call within `cache_faults`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        _log.warning("waiting for another process that makes %s", path)
        held = lock.acquire()
    with held:
        yield


def fetch(source: Source, *, progress: bool | None = None) -> Path:
    """A verified file: the cached one, the one of a mirror folder, or a fresh download.

    A file is hashed once; later calls compare its size and time of change with what was noted then.

    Args:
        source: which file.
        progress: show a bar on stderr; by default only where stderr is a terminal.

    Returns:
        The file's path in the cache or in the mirror folder.

    Raises:
        UserError: the file cannot be had, or the cache cannot be written.
    """
    cached = cache_place() / source.dataset / source.filename
    if cached.is_file():
        if _is_accepted(cached, source):
            return cached
        _log.warning("%s is truncated or altered: getting it again", cached)
    mirror = _mirror()
    if isinstance(mirror, Path):
        copy = mirror / source.dataset / source.filename
        if copy.is_file():
            if _is_accepted(copy, source):
                return copy
            _log.warning("%s is not the published file: trying %s", copy, source.url)

    target = cache_folder() / source.dataset / source.filename
    # Where nobody published a digest, what was had before is the published file.
    known = source.sha256 or (_noted(target) or {}).get("sha256", "")
    routes: list[tuple[str, tuple[str, ...]]] = [(source.url, (known,))]
    if isinstance(mirror, str):
        routes.insert(0, (f"{mirror}/{source.dataset}/{quote(source.filename)}", source.accepted))
    with cache_faults(target), locked(target):
        # Another process may have fetched it while this one waited.
        if target.is_file() and _is_accepted(target, source):
            return target
        faults = []
        for url, accepted in routes:
            try:
                sha256 = _download(url, accepted, target, source, progress)
            except _RouteError as fault:
                faults.append(str(fault))
                _log.info("%s: %s", source.name, fault)
                continue
            _note(target, target.stat(), sha256)
            return target
    raise UserError(
        f"{source.name} cannot be fetched ({'; '.join(faults)}): run again once connected, or put {source.url}"
        f"{' (' + ' '.join(_kind(source.sha256)) + ')' if source.sha256 else ''} at {target}, "
        f"or set ETUDE_MIRROR to a folder or URL that holds {source.name}"
    )


def forget(source: Source) -> None:
    """Remove a file from the cache, with what was noted of it."""
    path = cache_place() / source.dataset / source.filename
    with cache_faults(path):
        path.unlink(missing_ok=True)
        _note_place(path).unlink(missing_ok=True)


def noted_digest(source: Source) -> str:
    """The digest of a file that was fetched, hex; empty where it is not there or was never hashed."""
    places: list[Path | str | None] = [cache_place(), _mirror()]
    for place in places:
        if isinstance(place, Path) and (path := place / source.dataset / source.filename).is_file():
            return (_noted(path) or {}).get("sha256", "")
    return ""


def status(source: Source, *, recheck: bool = False) -> Status:
    """Whether a file is at hand in the cache or in a mirror folder; nothing is downloaded.

    Args:
        source: which file.
        recheck: hash the file again instead of trusting what was noted.

    Returns:
        ``verified``: its digest is right and it has not changed since that was found out. ``present``: it is there,
        its digest is not known, or nobody published one. ``altered``: it is there and wrong. ``missing``: it is not
        there.
    """
    places = [cache_place()]
    mirror = _mirror()
    if isinstance(mirror, Path):
        places.append(mirror)
    paths = [place / source.dataset / source.filename for place in places]
    found = {_state(path, source, recheck) for path in paths if path.is_file()}
    best: tuple[Status, ...] = ("verified", "present", "altered")
    for state in best:
        if state in found:
            return state
    return "missing"


def _state(path: Path, source: Source, recheck: bool) -> Status:
    if recheck:
        good: Status = "verified" if source.sha256 else "present"
        return good if _is_accepted(path, source, rehash=True) else "altered"
    now, noted = path.stat(), _noted(path)
    if noted is None:
        # A mirror that packed the content again has another size.
        wrong_size = source.size not in (None, now.st_size) and not source.mirror_sha256
        return "altered" if wrong_size else "present"
    if noted["size"] != now.st_size:
        return "altered"
    if noted["mtime_ns"] != now.st_mtime_ns or not source.sha256:
        return "present"
    return "verified" if noted["sha256"] in source.accepted else "altered"


# --- places ---


def _mirror() -> Path | str | None:
    """The mirror's folder, or its URL without a last slash."""
    chosen = os.environ.get("ETUDE_MIRROR")
    if not chosen:
        return None
    if chosen.startswith(("http://", "https://")):
        if not _is_url(chosen):
            raise UserError(f"ETUDE_MIRROR={chosen} is no URL: set it to a folder, to an http(s) URL, or unset it")
        return chosen.rstrip("/")
    folder = Path(chosen).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"ETUDE_MIRROR={chosen} is no folder: set it to a folder, to an http(s) URL, or unset it")
    return folder


def _is_url(text: str) -> bool:
    """Whether a host can be read from it; requests answers some that have none with a bare ValueError."""
    try:
        parts = urlsplit(text)
        return bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


# --- digests, found out once ---


def _is_accepted(path: Path, source: Source, *, rehash: bool = False) -> bool:
    try:
        now, noted = path.stat(), _noted(path)
        accepted = source.accepted
        if not source.sha256:
            accepted = (noted["sha256"],) if noted is not None else ()
        if not rehash and noted is not None and (noted["size"], noted["mtime_ns"]) == (now.st_size, now.st_mtime_ns):
            return noted["sha256"] in accepted
        sha256 = _digest(path, source)
    except OSError:
        return False
    if not source.sha256 and noted is not None:
        # What was noted stays: it is all that there is to hold the file to.
        return sha256 in accepted
    _note(path, now, sha256)
    return sha256 in accepted or not source.sha256


def _kind(sha256: str) -> tuple[str, str]:
    """A source's digest with the name of its kind: ``("md5", hex)`` of ``"md5:hex"``, else ``("sha256", hex)``."""
    kind, _, value = sha256.rpartition(":")
    return kind or "sha256", value


def _digest(path: Path, source: Source) -> str:
    """A file's digest, of the kind that the source names."""
    if _kind(source.sha256)[0] == "sha256":
        return file_sha256(path)
    with path.open("rb") as file:
        return f"md5:{hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()}"


def _note_place(path: Path) -> Path:
    return cache_place() / ".verified" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"


def _noted(path: Path) -> dict[str, Any] | None:
    try:
        noted = json.loads(_note_place(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    wanted = {"path": str, "size": int, "mtime_ns": int, "sha256": str}
    whole = isinstance(noted, dict) and all(type(noted.get(name)) is kind for name, kind in wanted.items())
    return noted if whole and noted["path"] == str(path) else None


def _note(path: Path, at: os.stat_result, sha256: str) -> None:
    # Where the cache cannot be written, a mirror folder serves all the same: its files are hashed each time.
    with contextlib.suppress(UserError, OSError):
        value = {"path": str(path), "size": at.st_size, "mtime_ns": at.st_mtime_ns, "sha256": sha256}
        write_json(_note_place(path), value)


# --- downloads ---


class _RouteError(Exception):
    """Why a URL did not give the file, in a few words."""


def _download(url: str, accepted: tuple[str, ...], target: Path, source: Source, progress: bool | None) -> str:
    """Download into ``target``; its digest."""
    pooch.get_logger().setLevel(logging.WARNING)
    part = target.with_name(f"{target.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")
    shown = sys.stderr.isatty() if progress is None else progress
    host = urlsplit(url).netloc
    # A continued file may be pieced together from two versions: then once more from its start.
    for _ in range(2):
        transfer = _Transfer(part, source, shown)
        try:
            sha256 = _retrieve(url, accepted, target, transfer)
        except requests.HTTPError as error:
            raise _RouteError(f"{host} answered {error}") from error
        except requests.Timeout as error:
            raise _RouteError(f"{host} did not answer in time") from error
        except requests.ConnectionError as error:
            kept = part.stat().st_size if part.exists() else 0
            broke = f"the connection to {host} broke, {kept:,} bytes are kept" if kept else f"no connection to {host}"
            raise _RouteError(broke) from error
        except requests.RequestException as error:
            raise _RouteError(f"{host}: {type(error).__name__}") from error
        part.unlink(missing_ok=True)
        if sha256 is not None:
            for other in target.parent.glob(f"{_glob_literal(target.name)}.*.part"):
                other.unlink(missing_ok=True)
            return sha256
        if not transfer.resumed:
            break
    _log.warning("%s does not send the published %s", url, source.name)
    raise _RouteError(f"{host} does not send the published file")


def _retrieve(url: str, accepted: tuple[str, ...], target: Path, transfer: "_Transfer") -> str | None:
    """Let pooch download, verify and move into place; the digest that fits, or None."""
    # Pooch's own type for a downloader names its arguments otherwise than pooch calls them.
    downloader: Any = transfer
    for sha256 in accepted:
        if not sha256:
            # Without a digest pooch would take whatever is there.
            target.unlink(missing_ok=True)
        try:
            known = ":".join(_kind(sha256)) if sha256 else None
            pooch.retrieve(url, known, target.name, target.parent, downloader=downloader)
        except requests.RequestException:
            raise
        except ValueError:
            # Pooch's word for another digest.
            continue
        return sha256 or file_sha256(target)
    return None


def _glob_literal(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


class _Transfer:
    """A downloader for pooch that continues an interrupted file.

    Args:
        part: where the bytes gather; kept when the transfer breaks off.
        source: names the file in the progress bar.
        shown: whether to draw the bar.
    """

    def __init__(self, part: Path, source: Source, shown: bool) -> None:
        self.part = part
        self.resumed = False
        self._source = source
        self._shown = shown
        self._whole = False

    def __call__(self, url: str, output_file: str, _pooch: object) -> None:
        if not self._whole:
            self._gather(url)
            sync(self.part)
            self._whole = True
        # A link, not a move: pooch deletes what does not fit, and the next accepted digest needs the bytes again.
        Path(output_file).unlink()
        try:
            os.link(self.part, output_file)
        except OSError:
            shutil.copyfile(self.part, output_file)

    def _gather(self, url: str) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self.resumed = self._size() > 0
        with Progress(*columns, console=Console(stderr=True), disable=not self._shown) as bar:
            task = bar.add_task(self._source.name, total=self._source.size)
            for attempt in range(_ATTEMPTS):
                before = self._size()
                try:
                    return self._continue(url, bar, task)
                except (requests.exceptions.ChunkedEncodingError, requests.ConnectionError, requests.Timeout) as error:
                    # A server that gives nothing more is not asked again.
                    if attempt == _ATTEMPTS - 1 or self._size() <= before:
                        raise requests.ConnectionError(str(error)) from error
                time.sleep(_PAUSE_S)

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _continue(self, url: str, bar: Progress, task: Any) -> None:
        have = self._size()
        # Unpacked on the way, a file could not be continued at a byte.
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer:
            if have and answer.status_code == requests.codes.requested_range_not_satisfiable:
                if answer.headers.get("Content-Range", "").endswith(f"/{have}"):
                    return
                self.part.unlink()
                return self._continue(url, bar, task)
            if not answer.ok:
                raise requests.HTTPError(f"{answer.status_code} {answer.reason}")
            follows = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            if not (answer.status_code == requests.codes.partial_content and follows):
                have = 0
            length = answer.headers.get("Content-Length", "")
            total = have + int(length) if length.isdecimal() else None
            bar.update(task, completed=have, total=total)
            with self.part.open("ab" if have else "wb") as file:
                for piece in answer.iter_content(_CHUNK_BYTES):
                    file.write(piece)
                    bar.advance(task, len(piece))
