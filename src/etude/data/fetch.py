"""Files of data sets: downloaded once, verified by their digest, kept in a cache.

The cache is ``$ETUDE_CACHE``, else the operating system's place for caches. ``$ETUDE_MIRROR`` names a folder or a
URL that holds ``<data set>/<file>``; a file of a mirror folder is used where it lies.
"""

import contextlib
import errno
import glob
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import pooch
import requests
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from etude.core.errors import UserError
from etude.core.files import expanded, sync, write_json
from etude.core.files import sha256 as file_sha256

Status = Literal["verified", "present", "missing", "altered"]

_log = logging.getLogger("etude.data")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CHUNK_BYTES = 1 << 14
"""A connection that breaks loses less than this."""
_TIMEOUT_S = (10.0, 30.0)
"""The seconds to connect, and between two pieces of an answer."""
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
        size: the number of bytes of the home's file.
        mirror_sha256: other digests to accept, such as one of a mirror that packed the same content again.
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
    """The place of the cache, whether it has been made or not; enough for reading from it."""
    chosen = os.environ.get("ETUDE_CACHE")
    return expanded(chosen or pooch.os_cache("etude"), "ETUDE_CACHE").absolute()


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
    """One process at a time makes ``path``; the others wait. Call within `cache_faults`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        _log.warning("waiting for another process that makes %s", path)
        held = lock.acquire()
    with held:
        yield


def fetch(source: Source) -> Path:
    """A verified file: the cached one, the one of a mirror folder, or a fresh download, with a bar on a terminal.

    A file is hashed once; later calls compare its size and time of change with what was noted then.

    Raises:
        UserError: the file cannot be had, or the cache cannot be written.
    """
    target = cache_place() / source.dataset / source.filename
    for path in _copies(source):
        if _state(path, source, "if changed") != "altered":
            return path
        if path == target:
            _log.warning("%s is truncated or altered: getting it again", path)
        else:
            _log.warning("%s is not the published file: trying %s", path, source.url)
    cache_folder()
    mirror = _mirror()
    # Where nobody published a digest, what was had before is the published file.
    known = source.sha256 or (_noted(target) or {}).get("sha256", "")
    routes: list[tuple[str, tuple[str, ...]]] = [(source.url, (known,))]
    if isinstance(mirror, str):
        routes.insert(0, (f"{mirror}/{source.dataset}/{quote(source.filename)}", source.accepted))
    with cache_faults(target), locked(target):
        # Another process may have fetched it while this one waited.
        if target.is_file() and _state(target, source, "if changed") != "altered":
            return target
        faults: list[str] = []
        for url, accepted in routes:
            fault = _download(url, accepted, target, source)
            if not fault:
                return target
            faults.append(fault)
            _log.info("%s: %s", source.name, fault)
    kind, _, value = source.sha256.rpartition(":")
    digest = f" ({kind or 'sha256'} {value})" if value else ""
    raise UserError(
        f"{source.name} cannot be fetched ({'; '.join(faults)}): run again once connected, or put {source.url}{digest} "
        f"at {target}, or set ETUDE_MIRROR to a folder or URL that holds {source.name}"
    )


def forget(source: Source) -> None:
    """Remove a file from the cache, with what was noted of it."""
    path = cache_place() / source.dataset / source.filename
    with cache_faults(path):
        path.unlink(missing_ok=True)
        _note_place(path).unlink(missing_ok=True)


@contextlib.contextmanager
def damage(path: Path, fix: str = "remove it and run again") -> Iterator[None]:
    """Turn whatever a reader raises at broken contents of ``path`` into a one-line `UserError`."""
    try:
        yield
    except UserError:
        raise
    # Broken archives and arrays are answered with many kinds of exception.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UserError(f"{path} is damaged ({reason}): {fix}") from error


def noted_digest(source: Source) -> str:
    """The digest of a file that was fetched, hex; empty where it is not there or was never hashed."""
    return next(((_noted(path) or {}).get("sha256", "") for path in _copies(source)), "")


def status(source: Source, *, recheck: bool = False) -> Status:
    """The state of a file in the cache or in a mirror folder; nothing is downloaded.

    Args:
        source: the file.
        recheck: hash the file again instead of trusting what was noted.

    Returns:
        ``verified``: its digest is right and it has not changed since that was found out. ``present``: it is there,
        its digest is not known, or nobody published one. ``altered``: it is there and wrong. ``missing``: it is not
        there.
    """
    found = {_state(path, source, "always" if recheck else "never") for path in _copies(source)}
    order: tuple[Status, ...] = ("verified", "present", "altered", "missing")
    return next(state for state in order if state in found or state == "missing")


def _copies(source: Source) -> Iterator[Path]:
    """The file in the cache and in a mirror's folder, where it is there."""
    for place in (cache_place, _mirror):
        folder = place()
        if isinstance(folder, Path) and (path := folder / source.dataset / source.filename).is_file():
            yield path


def _mirror() -> Path | str | None:
    """The mirror's folder, or its URL without a last slash."""
    chosen = os.environ.get("ETUDE_MIRROR")
    if not chosen:
        return None
    kind = "folder"
    if chosen.startswith(("http://", "https://")):
        kind = "URL"
        # Requests answers some that have no host with a bare ValueError.
        with contextlib.suppress(ValueError):
            parts = urlsplit(chosen)
            if parts.hostname and parts.port != 0:
                return chosen.rstrip("/")
    elif (folder := expanded(chosen, "ETUDE_MIRROR").absolute()).is_dir():
        return folder
    raise UserError(f"ETUDE_MIRROR={chosen} is no {kind}: set it to a folder, to an http(s) URL, or unset it")


# --- digests, found out once ---


def _state(path: Path, source: Source, hashed: Literal["never", "if changed", "always"]) -> Status:
    """The state of a file that is there, as it is known or found out by hashing."""
    try:
        now, noted = path.stat(), _noted(path)
        known = "" if noted is None else noted["sha256"]
        changed = noted is None or (noted["size"], noted["mtime_ns"]) != (now.st_size, now.st_mtime_ns)
        if hashed == "never" and changed:
            # A mirror that packed the content again has another size.
            published = None if source.mirror_sha256 else source.size
            size = published if noted is None else noted["size"]
            return "present" if size in (None, now.st_size) else "altered"
        found = _digest(path, source) if changed or hashed == "always" else known
    except OSError:
        return "altered"
    if source.sha256:
        _note(path, now, found)
        return "verified" if found in source.accepted else "altered"
    # What was noted first stays: it is all that there is to hold the file to.
    if not known:
        _note(path, now, found)
    return "present" if found == (known or found) else "altered"


def _digest(path: Path, source: Source) -> str:
    """A file's digest, written as the source writes its own."""
    return f"md5:{pooch.file_hash(str(path), 'md5')}" if source.sha256.startswith("md5:") else file_sha256(path)


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
    value = {"path": str(path), "size": at.st_size, "mtime_ns": at.st_mtime_ns, "sha256": sha256}
    # Where the cache cannot be written, a mirror folder serves all the same: its files are hashed each time.
    with contextlib.suppress(UserError, OSError):
        if value != _noted(path):
            write_json(_note_place(path), value)


# --- downloads ---


def _download(url: str, accepted: tuple[str, ...], target: Path, source: Source) -> str:
    """Download into ``target``; why that failed, in a few words, or nothing."""
    pooch.get_logger().setLevel(logging.WARNING)
    part = target.with_name(f"{target.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")
    host = urlsplit(url).netloc

    def gather(url: str, output_file: str, _pooch: object) -> None:
        _gather(url, part, source)
        part.replace(output_file)

    # Pooch's own type for a downloader names its arguments otherwise than pooch calls them.
    downloader: Any = gather
    resumed = True
    # A continued file may be pieced together from two versions: then once more from its start.
    while resumed:
        resumed = part.exists()
        # Pooch takes what is there where it is given no digest, and it knows of one at most.
        target.unlink(missing_ok=True)
        try:
            pooch.retrieve(url, None, target.name, target.parent, downloader=downloader)
        except requests.HTTPError as error:
            return f"{host} answered {error}"
        except requests.ConnectionError:
            kept = part.stat().st_size if part.exists() else 0
            return f"the connection to {host} broke, {kept:,} bytes are kept" if kept else f"no connection to {host}"
        except requests.RequestException as error:
            return f"{host}: {type(error).__name__}"
        sha256 = _digest(target, source)
        if sha256 in accepted or accepted == ("",):
            for other in target.parent.glob(f"{glob.escape(target.name)}.*.part"):
                other.unlink(missing_ok=True)
            _note(target, target.stat(), sha256)
            return ""
        target.unlink()
    _log.warning("%s does not send the published %s", url, source.name)
    return f"{host} does not send the published file"


def _gather(url: str, part: Path, source: Source) -> None:
    """Download into ``part``, which is continued, and kept where the connection breaks for good."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(source.name, total=source.size)
        for attempt in range(_ATTEMPTS):
            before = part.stat().st_size if part.exists() else 0
            try:
                _continue(url, part, bar, task)
                break
            except (requests.exceptions.ChunkedEncodingError, requests.ConnectionError, requests.Timeout) as error:
                # A server that gives nothing more is not asked again.
                if attempt == _ATTEMPTS - 1 or not part.exists() or part.stat().st_size <= before:
                    raise requests.ConnectionError(str(error)) from error
            time.sleep(_PAUSE_S)
    sync(part)


def _continue(url: str, part: Path, bar: Progress, task: Any) -> None:
    have = part.stat().st_size if part.exists() else 0
    # Unpacked on the way, a file could not be continued at a byte.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as answer:
        reach = answer.headers.get("Content-Range", "")
        if have and answer.status_code == requests.codes.requested_range_not_satisfiable:
            if reach.endswith(f"/{have}"):
                return
            part.unlink()
            return _continue(url, part, bar, task)
        if not answer.ok:
            raise requests.HTTPError(f"{answer.status_code} {answer.reason}")
        if answer.status_code != requests.codes.partial_content or not reach.startswith(f"bytes {have}-"):
            have = 0
        length = answer.headers.get("Content-Length", "")
        bar.update(task, completed=have, total=have + int(length) if length.isdecimal() else None)
        with part.open("ab" if have else "wb") as file:
            for piece in answer.iter_content(_CHUNK_BYTES):
                file.write(piece)
                bar.advance(task, len(piece))
