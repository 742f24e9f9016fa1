"""Decoded arrays: built once, mapped as private copies, built again when anything that made them changes."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.forks import Fork

from etude.core.errors import UserError
from etude.data.cache import decoded, digest

SHAPE = (3, 4, 5)
KEY = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "letters" / "decoded"


class Build:
    """Fills an array with its number of calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, to: np.ndarray) -> None:
        self.calls += 1
        assert not to.any(), "the array starts at zero"
        to[...] = self.calls


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_an_array_is_built_once_and_what_is_written_to_it_is_private(folder: Path) -> None:
    build = Build()
    first = decoded("letters", KEY, 1, SHAPE, build)
    second = decoded("letters", KEY, 1, SHAPE, build)
    assert build.calls == 1
    for array in (first, second):
        assert isinstance(array, np.memmap)
        assert (array.shape, array.dtype) == (SHAPE, np.uint8)
        assert (array == 1).all()
        array[0] = 9
    assert files(folder) == [f"letters-v1-{KEY[:16]}.npy"]


def test_only_the_first_sixteen_digits_of_a_key_name_the_file() -> None:
    build = Build()
    decoded("letters", KEY, 1, SHAPE, build)
    decoded("letters", KEY[:16] + "f" * 48, 1, SHAPE, build)
    assert build.calls == 1


@pytest.mark.parametrize(
    "change",
    [
        {"key": "f" * 64},
        {"version": 2},
        {"shape": (3, 4, 6)},
        {"shape": (60,)},
        {"dtype": np.int16},
        {"dataset": "digits"},
    ],
)
def test_what_the_values_depend_on_builds_again(change: dict) -> None:
    build = Build()
    asked = {"dataset": "letters", "key": KEY, "version": 1, "shape": SHAPE, "build": build, "dtype": np.uint8}
    decoded(**asked)
    again = decoded(**asked | change)
    assert build.calls == 2
    assert (again == 2).all()
    assert again.shape == change.get("shape", SHAPE)
    assert again.dtype == change.get("dtype", np.uint8)


@pytest.mark.parametrize("dtype", ["u1", "<f4", ">i8", "bool", "c8"])
def test_values_of_every_dtype_come_back(dtype: str) -> None:
    values = np.arange(60).reshape(SHAPE).astype(dtype)
    array = decoded("letters", KEY, 1, SHAPE, lambda to: np.copyto(to, values), dtype)
    assert array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array, values)


@pytest.mark.parametrize("kept", [0, 3, 10, 100, -1])
def test_a_file_cut_short_is_built_again(folder: Path, kept: int) -> None:
    build = Build()
    decoded("letters", KEY, 1, SHAPE, build)
    (path,) = folder.glob("*.npy")
    path.write_bytes(path.read_bytes()[:kept])
    assert (decoded("letters", KEY, 1, SHAPE, build) == 2).all()
    assert build.calls == 2


FOREIGN = [b"text", b"\x93NUMPY\x01\x00\xff\xff", b"\x80\x04N.", b"PK\x03\x04" + b"x" * 300, b"\x00" * 188]


@pytest.mark.parametrize("body", FOREIGN)
def test_a_file_of_something_else_is_built_again(folder: Path, body: bytes) -> None:
    build = Build()
    decoded("letters", KEY, 1, SHAPE, build)
    (path,) = folder.glob("*.npy")
    path.write_bytes(body)
    assert (decoded("letters", KEY, 1, SHAPE, build) == 2).all()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 127), st.binary(min_size=1, max_size=8))
def test_a_garbled_header_is_never_an_exception(at: int, bytes_in: bytes) -> None:
    decoded("garbled", KEY, 1, SHAPE, Build())
    (path,) = (Path(os.environ["ETUDE_CACHE"]) / "garbled" / "decoded").glob("*.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + bytes_in + whole[at + len(bytes_in) :])
    array = decoded("garbled", KEY, 1, SHAPE, Build())
    assert (array.shape, array.dtype) == (SHAPE, np.uint8)
    path.unlink()


def test_a_pickled_array_is_not_unpickled(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "sprung",)

    build = Build()
    decoded("letters", KEY, 1, SHAPE, build)
    (path,) = folder.glob("*.npy")
    np.save(path, np.array([Trap()], object), allow_pickle=True)
    assert (decoded("letters", KEY, 1, SHAPE, build) == 2).all()
    assert not (tmp_path / "sprung").exists()


def test_a_failing_build_leaves_nothing_and_passes_through(folder: Path) -> None:
    def fail(to: np.ndarray) -> None:
        to[...] = 7
        raise OSError(28, "of the source, not of the cache")

    with pytest.raises(OSError, match="of the source"):
        decoded("letters", KEY, 1, SHAPE, fail)
    assert files(folder) == []
    assert (decoded("letters", KEY, 1, SHAPE, Build()) == 1).all()


def test_what_a_killed_process_left_is_written_over(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / f".letters-v1-{KEY[:16]}.npy.tmp").write_bytes(b"\xff" * 500)
    assert (decoded("letters", KEY, 1, SHAPE, Build()) == 1).all()
    assert files(folder) == [f"letters-v1-{KEY[:16]}.npy"]


def test_an_older_mapping_outlives_a_rebuild(folder: Path) -> None:
    build = Build()
    old = decoded("letters", KEY, 1, SHAPE, build)
    new = decoded("letters", KEY, 1, (*SHAPE, 2), build)
    assert (old == 1).all()
    assert (new == 2).all()


def test_a_cache_below_a_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"^cannot write .*ETUDE_CACHE") as caught:
        decoded("letters", KEY, 1, SHAPE, Build())
    assert "\n" not in str(caught.value)


def test_a_disk_that_is_too_small_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a small disk cannot be mounted here")
    try:
        monkeypatch.setenv("ETUDE_CACHE", str(disk))
        build = Build()
        # Without the room taken beforehand, writing to the mapping kills the process.
        with pytest.raises(UserError, match=r"^no room to write ") as caught:
            decoded("letters", KEY, 1, (3_000_000,), build)
        assert "\n" not in str(caught.value)
        assert build.calls == 0
        assert files(disk / "letters" / "decoded") == []
        assert len(decoded("letters", KEY, 1, (300_000,), build)) == 300_000
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


_BUILD = """
import logging, sys
logging.basicConfig(level=logging.WARNING)
from etude.data.cache import decoded
def build(to):
    print("building", flush=True)
    sys.stdin.readline()
    to[...] = 5
print(decoded("letters", "ab" * 32, 1, (10,), build).sum(), flush=True)
"""


def test_two_processes_build_once() -> None:
    def start() -> subprocess.Popen[str]:
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return Fork(["-c", _BUILD], text=True, **pipes)

    with start() as one:
        assert one.stdout.readline() == "building\n"
        with start() as two:
            assert "waiting for another process" in two.stderr.readline()
            assert one.communicate("\n", timeout=30)[0] == "50\n"
            assert two.communicate(timeout=30)[0] == "50\n"


TEXTS = st.lists(st.text(max_size=4), max_size=4)


def test_a_digest_is_of_the_list() -> None:
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")
    assert digest("abc", "") != digest("abc")
    assert digest("1:a", "b") != digest("1:a1:b")
    assert digest("x", "y") == digest("x", "y")
    assert len(digest()) == 64


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS, TEXTS)
def test_equal_digests_mean_equal_lists(one: list[str], two: list[str]) -> None:
    assert (digest(*one) == digest(*two)) == (one == two)
