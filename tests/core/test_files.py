"""Files are whole or absent."""

import errno
import os
from pathlib import Path

import pytest
from tests.core.disk import Ballast, largest_file, small_disk

from etude.core.errors import UserError
from etude.core.files import one_line_faults, read_json, sha256, sweep, write_atomic, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", [b"bytes\n", "text é\n", lambda to: to.write_text("by hand\n")])
def test_a_new_file(tmp_path: Path, content: object):
    path = tmp_path / "new" / "folders" / "file.txt"
    write_atomic(path, content)  # pyright: ignore[reportArgumentType]
    assert path.read_bytes() in (b"bytes\n", "text é\n".encode(), b"by hand\n")
    assert names(path.parent) == ["file.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "file.txt"
    write_atomic(path, "old")

    def fail(to: Path) -> None:
        to.write_text("half of the n")
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_the_old_file_is_whole_while_the_new_one_is_written(tmp_path: Path):
    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    seen: list[str] = []

    def write(to: Path) -> None:
        to.write_text("new")
        seen.append(path.read_text())

    write_atomic(path, write)
    assert (seen, path.read_text()) == (["old"], "new")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int):
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "file.txt", "x")
        assert os.umask(mask) == mask, "the umask is put back"
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_file_beyond_the_limit_is_one_line(tmp_path: Path):
    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    with largest_file(100), pytest.raises(UserError, match=r"no room to write .*file\.txt .*free some space") as caught:
        write_atomic(path, "x" * 1000)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_full_disk_is_one_line(tmp_path: Path):
    with small_disk(tmp_path / "disk") as disk:
        write_atomic(disk / "file.txt", "old")
        ballast = Ballast(disk)
        ballast.fill()
        with pytest.raises(UserError, match=r"no room to write .*file\.txt \(No space left on device\)"):
            write_atomic(disk / "file.txt", "x" * 5000)
        with pytest.raises(UserError, match="no room to write"):
            write_atomic(disk / "new" / "file.txt", "x" * 5000)
        assert (disk / "file.txt").read_text() == "old"
        assert not list(disk.rglob("*.tmp"))
        ballast.remove()
        write_atomic(disk / "file.txt", "x" * 5000)
        assert (disk / "file.txt").stat().st_size == 5000


def test_a_place_that_is_no_folder_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for place in ("file/below.txt", "file/deeper/below.txt", "x" * 300 + "/below.txt"):
        with pytest.raises(UserError, match=r"cannot write .*choose a folder") as caught:
            write_atomic(tmp_path / place, "x")
        assert "\n" not in str(caught.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_atomic(tmp_path / "folder", "x")
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EISDIR])
def test_a_refusal_is_one_line(tmp_path: Path, number: int):
    with pytest.raises(UserError, match="cannot write"), one_line_faults(tmp_path):
        raise OSError(number, os.strerror(number))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a tree of the kernel")
def test_a_tree_of_the_kernel_is_one_line():
    with pytest.raises(UserError, match=r"cannot write /proc/nowhere/file\.txt .*: choose a folder"):
        write_atomic(Path("/proc/nowhere/file.txt"), "text")


def test_a_fault_of_the_hardware_is_no_fault_of_the_user(tmp_path: Path):
    with pytest.raises(OSError, match="Input/output error") as caught, one_line_faults(tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert not isinstance(caught.value, UserError)


def test_json(tmp_path: Path):
    path = tmp_path / "a.json"
    value = {"é": [1, 2.5, None, True], "tiny": 5e-324}
    write_json(path, value)
    assert read_json(path) == value
    assert path.read_text().endswith("\n")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"a": 1}}'])
def test_broken_json_is_one_line(tmp_path: Path, content: bytes):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json cannot be read as JSON") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)


def test_no_json_is_one_line(tmp_path: Path):
    with pytest.raises(UserError, match=r"a\.json is missing"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_json(tmp_path)


def test_sweep_removes_what_a_kill_left(tmp_path: Path):
    write_atomic(tmp_path / "kept.json", "{}")
    (tmp_path / ".kept.json.abc.tmp").write_text("{")
    (tmp_path / ".step-1.abc.tmp").mkdir()
    (tmp_path / ".step-1.abc.tmp" / "weights").write_text("half")
    (tmp_path / "mine.tmp").write_text("not ours")
    sweep(tmp_path)
    assert names(tmp_path) == ["kept.json", "mine.tmp"]
    sweep(tmp_path / "nowhere")


def test_sha256(tmp_path: Path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
