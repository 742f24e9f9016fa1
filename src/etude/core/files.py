"""Files that are whole or absent: written beside their place, synced and renamed into it."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from etude.core.errors import UserError

# What a full disk, a quota and a file-size limit answer.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
    errno.EBUSY, errno.ENOENT,
}  # fmt: skip


@contextlib.contextmanager
def one_line_faults(path: Path) -> Generator[None, None, None]:
    """Turn the operating system's refusal to write below ``path`` into a one-line `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise UserError(
                f"no room to write {path} ({error.strerror}): free some space; what was there before is kept"
            ) from error
        if error.errno in _REFUSED:
            raise UserError(f"cannot write {path} ({error.strerror}): choose a folder that you may write to") from error
        raise


def write_atomic(path: Path, write: Callable[[Path], None] | bytes | str) -> None:
    """Make ``path`` whole, and its folder if need be, or leave it as it was.

    ``write`` is the content, or a function that writes it to the temporary path it is given.

    Raises:
        UserError: no room, or no permission; the file that stood there before is untouched.
    """
    with one_line_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            if callable(write):
                write(temporary)
            else:
                temporary.write_bytes(write.encode(errors="replace") if isinstance(write, str) else write)
            sync(temporary)
            # mkstemp gives 0600: a run folder is read by others too.
            temporary.chmod(0o666 & ~umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


@contextlib.contextmanager
def locked(path: Path, refusal: str, patience: float = 0.0) -> Generator[None, None, None]:
    """Hold the lock file ``path`` until the block or this process ends; wait so long for another (-1: for ever).

    The file stays: were it removed, two processes could hold two files of one name.

    Raises:
        UserError: another holds it (``refusal``), or it cannot be written.
    """
    lock = FileLock(path, thread_local=False)
    with one_line_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=patience)
        except Timeout as error:
            raise UserError(refusal) from error
    try:
        yield
    finally:
        lock.release()


def umask() -> int:
    """The permissions that this process takes from new files."""
    current = os.umask(0)
    os.umask(current)
    return current


def sweep(folder: Path) -> None:
    """Remove what a kill in the middle of a write left in a folder; the caller alone writes there."""
    for left in folder.glob(".*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def expanded(path: str | Path, setting: str) -> Path:
    """A path with its ``~`` or ``~name`` made a home folder; `UserError` naming ``setting`` where there is no such."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{setting}: {path} names no home folder that is known here: give the whole path") from error


def sync(path: Path) -> None:
    """Ask the disk to hold what was written to a file or a folder."""
    if os.name == "nt" and path.is_dir():
        return
    # Windows flushes only what is open for writing.
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot sync a folder.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` for a JSON value, as `as_json` puts it."""
    write_atomic(path, as_json(value))


def as_json(value: Any) -> str:
    """A JSON value as text, indented, ending in a newline; a number that is not finite is null."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    # A file's name may hold half a sign, which UTF-8 does not.
    return re.sub(r"[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text) + "\n"


def finite(value: Any) -> Any:
    """A JSON value with None for every number that is not finite, which JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]  # pyright: ignore[reportUnknownVariableType]
    return value


def read_json(path: Path) -> Any:
    """A JSON file's value; `UserError` where it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from error


def sha256(path: Path) -> str:
    """The hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
