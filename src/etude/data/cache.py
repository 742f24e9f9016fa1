"""Decoded arrays, made once and then mapped from disk."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike

from etude.core.files import sync
from etude.data.fetch import cache_faults, cache_folder, cache_place, locked

_ZEROS_BYTES = 1 << 24


def digest(*parts: str) -> str:
    """A sha256 hex digest of a list of strings: of the list, so that ``("ab", "c")`` and ``("a", "bc")`` differ."""
    whole = hashlib.sha256()
    for part in parts:
        encoded = part.encode()
        whole.update(f"{len(encoded)}:".encode() + encoded)
    return whole.hexdigest()


def decoded(
    dataset: str,
    key: str,
    version: int,
    shape: tuple[int, ...],
    build: Callable[[np.ndarray], None],
    dtype: DTypeLike = np.uint8,
) -> np.ndarray:
    """An array mapped from ``<cache>/<dataset>/decoded/<dataset>-v<version>-<key>.npy``, built if need be.

    Processes that ask for one array at once build it once: the others wait for it. The array stays on disk until it is
    read; what is written to it is private.

    Args:
        dataset: the data set's folder in the cache.
        key: hex digest of everything that the values depend on, see `digest`; its first 16 digits name the file.
        version: the version of the code in ``build``; raise it when that code changes.
        shape: the array's shape.
        build: fills the writable array it is given, whose values start at zero.
        dtype: the array's type.

    Raises:
        UserError: no room, or the cache cannot be written. Faults of ``build`` pass through.
    """
    name = f"{dataset}-v{version}-{key[:16]}.npy"
    path = cache_place() / dataset / "decoded" / name
    wanted = np.dtype(dtype)
    found = _mapped(path, shape, wanted)
    if found is not None:
        return found
    cache_folder()
    with contextlib.ExitStack() as held:
        # The faults of `build` are not the cache's.
        with cache_faults(path):
            held.enter_context(locked(path))
        found = _mapped(path, shape, wanted)
        if found is not None:
            return found
        # One name for all: what a killed process left is written over, not gathered.
        temporary = path.with_name(f".{name}.tmp")
        held.callback(temporary.unlink, missing_ok=True)
        with cache_faults(path):
            array = _reserved(temporary, shape, wanted)
        build(array)
        with cache_faults(path):
            array.flush()
            sync(temporary)
            temporary.replace(path)
        made = _mapped(path, shape, wanted)
    assert made is not None, f"{path} was made just now"
    return made


def _mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """The array in a file, or None where the file is missing, cut short or another array's."""
    try:
        found = npy.open_memmap(path, "c")
    # NumPy answers garbled bytes with many kinds of exception.
    except Exception:
        return None
    fits = (found.shape, found.dtype) == (shape, dtype) and found.flags.c_contiguous
    return found if fits else None


def _reserved(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """A writable mapped array of zeros whose room on disk is taken at once.

    A full disk would otherwise kill the process (SIGBUS) at the first write to a page that finds no room.
    """
    array = npy.open_memmap(path, "w+", dtype, shape)
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, array.offset + array.nbytes)
        else:
            file.seek(array.offset)
            for start in range(0, array.nbytes, _ZEROS_BYTES):
                file.write(bytes(min(_ZEROS_BYTES, array.nbytes - start)))
    return array
