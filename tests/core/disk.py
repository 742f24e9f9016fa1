"""Disks that are full: a limit on the size of a file, and a small file system where mounting is permitted."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes; the kernel answers EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; the test is skipped where it may not be mounted."""
    path.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


class Ballast:
    """A file that fills a disk."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ballast"

    def fill(self, free: int = 0) -> None:
        """Leave about ``free`` bytes, in whole pages."""
        with self.path.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                file.truncate(max(0, os.fstat(file.fileno()).st_size - free))

    def remove(self) -> None:
        self.path.unlink()
