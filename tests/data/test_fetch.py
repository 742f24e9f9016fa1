"""Downloads: verified, continued, mirrored, refused, each from a real server on this machine."""

import hashlib
import http.server
import json
import logging
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tests.forks import Fork

from etude.core.errors import UserError
from etude.data import fetch as fetching
from etude.data.fetch import Source, cache_folder, cache_place, fetch, status

CONTENT = hashlib.shake_256(b"etude").digest(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PIECE = 20_000
"""The most that a broken connection may lose."""


@dataclass
class Served:
    """A server's files, its faults, and what it was asked for."""

    port: int
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    """Bytes after which the next answers break off."""
    ranges: bool = True
    length: bool = True
    status: int = 200
    gate: threading.Event | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    first: threading.Event = field(default_factory=threading.Event)
    sent: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        served: Served = self.server.served
        wanted = self.headers.get("Range")
        served.asked.append((self.path, wanted))
        served.first.set()
        if served.gate is not None:
            served.gate.wait(20)
        body = served.files.get(self.path)
        if body is None or served.status != 200:
            self.send_error(404 if body is None else served.status)
            return
        start = 0
        if wanted and served.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if served.length:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        piece = body[start:]
        if served.cuts:
            piece = piece[: served.cuts.pop(0)]
        self.wfile.write(piece)
        served.sent += len(piece)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def home() -> Iterator[Served]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as listening:
        listening.served = served = Served(listening.server_address[1])
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield served
        listening.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ETUDE_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetching, "_PAUSE_S", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def source(home: Served) -> Source:
    home.files["/home/words.bin"] = CONTENT
    return Source("letters", "words.bin", f"{home.url}/home/words.bin", SHA256, len(CONTENT))


def closed_url() -> str:
    """A URL on this machine where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/words.bin"


def one_line(caught: pytest.ExceptionInfo[UserError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def left_over(cache: Path) -> list[str]:
    """Everything in the data set's folder but the locks."""
    return sorted(path.name for path in (cache / "letters").iterdir() if not path.name.endswith(".lock"))


def test_a_download_is_whole_and_made_once(source: Source, home: Served, cache: Path) -> None:
    assert status(source) == "missing"
    path = fetch(source)
    assert path == cache / "letters" / "words.bin"
    assert path.read_bytes() == CONTENT
    assert left_over(cache) == ["words.bin"]
    assert fetch(source) == path
    assert len(home.asked) == 1
    assert home.sent == len(CONTENT)
    assert status(source) == "verified"


def test_a_file_name_with_a_folder_in_it(source: Source, home: Served, cache: Path) -> None:
    nested = replace(source, filename="splits/a b.bin")
    assert fetch(nested) == cache / "letters" / "splits" / "a b.bin"


def test_a_broken_connection_is_continued_at_its_byte(source: Source, home: Served) -> None:
    home.cuts = [100_000, 50_000]
    assert fetch(source).read_bytes() == CONTENT
    first, *later = [wanted for _, wanted in home.asked]
    starts = [int(wanted.removeprefix("bytes=").removesuffix("-")) for wanted in later]
    assert first is None
    assert 100_000 - PIECE < starts[0] <= 100_000
    assert starts[0] + 50_000 - PIECE < starts[1] <= starts[0] + 50_000
    assert home.sent < len(CONTENT) + 2 * PIECE, "what had come was sent again"


def test_a_download_goes_on_in_a_later_call(source: Source, home: Served, cache: Path) -> None:
    # Nothing more after the first piece: this call gives up, and keeps what it has.
    home.cuts = [120_000, 0]
    with pytest.raises(UserError) as caught:
        fetch(source)
    assert not (cache / "letters" / "words.bin").exists()
    (part,) = (cache / "letters").glob("*.part")
    kept = part.stat().st_size
    assert 120_000 - PIECE < kept <= 120_000
    assert f"{kept:,} bytes are kept" in one_line(caught)
    assert fetch(source).read_bytes() == CONTENT
    assert home.asked[-1][1] == f"bytes={kept}-"
    assert home.sent < len(CONTENT) + PIECE
    assert left_over(cache) == ["words.bin"]


def test_a_whole_part_is_not_sent_again(source: Source, home: Served, cache: Path) -> None:
    home.length = False
    home.cuts = [len(CONTENT) - 5]
    with pytest.raises(UserError):
        fetch(source)
    # Killed after the last byte, before the move into place.
    home.length = True
    name = f"words.bin.{hashlib.sha256(source.url.encode()).hexdigest()[:8]}.part"
    (cache / "letters" / name).write_bytes(CONTENT)
    sent = home.sent
    assert fetch(source).read_bytes() == CONTENT
    assert home.sent == sent


def test_a_server_that_ignores_range_sends_all_again(source: Source, home: Served) -> None:
    home.ranges = False
    home.cuts = [100_000]
    assert fetch(source).read_bytes() == CONTENT
    assert home.sent == 100_000 + len(CONTENT)


def test_a_part_of_another_version_is_dropped(source: Source, home: Served, cache: Path) -> None:
    home.cuts = [100_000, 0]
    with pytest.raises(UserError):
        fetch(source)
    (part,) = (cache / "letters").glob("*.part")
    part.write_bytes(b"x" * 100_000)
    assert fetch(source).read_bytes() == CONTENT
    # Continued, found wrong, and had once more from its start.
    assert [wanted for _, wanted in home.asked][-2:] == ["bytes=100000-", None]


@pytest.mark.parametrize("longer", [1, 4000])
def test_a_part_longer_than_the_file_is_dropped(source: Source, cache: Path, longer: int) -> None:
    name = f"words.bin.{hashlib.sha256(source.url.encode()).hexdigest()[:8]}.part"
    (cache / "letters").mkdir(parents=True)
    (cache / "letters" / name).write_bytes(CONTENT + b"x" * longer)
    assert fetch(source).read_bytes() == CONTENT
    assert left_over(cache) == ["words.bin"]


@pytest.mark.parametrize("damage", ["truncated", "altered", "emptied"])
def test_a_damaged_file_is_named_and_fetched_again(
    source: Source, home: Served, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path = fetch(source)
    bad = {"truncated": CONTENT[:-1], "altered": b"X" + CONTENT[1:], "emptied": b""}[damage]
    path.write_bytes(bad)
    with caplog.at_level(logging.WARNING, "etude.data"):
        assert fetch(source).read_bytes() == CONTENT
    assert [record.getMessage() for record in caplog.records] == [f"{path} is truncated or altered: getting it again"]
    assert len(home.asked) == 2
    assert status(source) == "verified"


def test_a_file_is_hashed_once(source: Source, home: Served, cache: Path) -> None:
    path = fetch(source)
    (note,) = (cache / ".verified").glob("*.json")
    assert json.loads(note.read_text())["sha256"] == SHA256
    before = note.stat()
    # Other bytes with the size and time of the verified ones: only a new hash could tell.
    times = path.stat()
    path.write_bytes(b"X" + CONTENT[1:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fetch(source) == path
    assert path.read_bytes()[:1] == b"X", "the file was hashed again"
    assert note.stat() == before
    assert status(source) == "verified"
    assert status(source, recheck=True) == "altered"
    # The recheck is noted, so that the next call mends the file.
    assert fetch(source).read_bytes() == CONTENT


def test_a_touched_file_is_hashed_again_and_kept(source: Source, home: Served) -> None:
    path = fetch(source)
    os.utime(path, ns=(1, 1))
    assert status(source) == "present"
    assert fetch(source) == path
    assert len(home.asked) == 1
    assert status(source) == "verified"


@pytest.mark.parametrize("note", ["", "{", "[]", "null", '{"path": 3}', "\xff"])
def test_a_broken_note_is_no_note(source: Source, home: Served, cache: Path, note: str) -> None:
    path = fetch(source)
    (place,) = (cache / ".verified").glob("*.json")
    place.write_bytes(note.encode("latin-1"))
    assert fetch(source) == path
    assert len(home.asked) == 1
    assert json.loads(place.read_text())["sha256"] == SHA256


def test_a_file_without_a_published_digest_is_held_to_what_it_was(
    source: Source, home: Served, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = replace(source, sha256="")
    path = fetch(source)
    assert path.read_bytes() == CONTENT
    assert (status(source), status(source, recheck=True)) == ("present", "present")
    assert fetching.noted_digest(source) == SHA256
    asked = len(home.asked)
    assert fetch(source) == path
    assert len(home.asked) == asked
    # Touched, it is the same; altered, it is fetched again.
    os.utime(path, (1, 1))
    assert fetch(source) == path
    assert len(home.asked) == asked
    path.write_bytes(CONTENT[:-1] + b"x")
    os.utime(path, (2, 2))
    assert status(source, recheck=True) == "altered"
    assert fetch(source).read_bytes() == CONTENT
    assert "altered" in caplog.text
    # Another file at its home is not taken for it, unless one forgets the first.
    home.files = dict.fromkeys(home.files, CONTENT[::-1])
    path.unlink()
    with pytest.raises(UserError, match="does not send the published file"):
        fetch(source)
    fetching.forget(source)
    assert fetch(source).read_bytes() == CONTENT[::-1]
    assert fetching.noted_digest(replace(source, filename="other")) == ""


def test_what_cannot_be_fetched_without_a_digest_names_none(source: Source, home: Served, cache: Path) -> None:
    home.status = 500
    with pytest.raises(UserError) as caught:
        fetch(replace(source, sha256=""))
    assert f"put {source.url} at" in one_line(caught)


def test_status_of_files_put_there_by_hand(source: Source, cache: Path) -> None:
    path = cache / "letters" / "words.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert status(source) == "present"
    assert status(source, recheck=True) == "verified"
    path.write_bytes(CONTENT[:-1])
    assert status(source) == "altered"
    path.unlink()
    assert status(source) == "missing"


def test_wrong_content_is_refused(source: Source, home: Served, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    home.files["/home/words.bin"] = CONTENT[::-1]
    with pytest.raises(UserError) as caught:
        fetch(source)
    assert "does not send the published file" in one_line(caught)
    assert left_over(cache) == []
    assert status(source) == "missing"
    assert len(home.asked) == 1
    assert f"{source.url} does not send the published letters/words.bin" in caplog.text


@pytest.mark.parametrize("code", [403, 404, 500, 503])
def test_a_refusal_is_one_line(source: Source, home: Served, cache: Path, code: int) -> None:
    home.status = code
    with pytest.raises(UserError) as caught:
        fetch(source)
    assert f"answered {code}" in one_line(caught)
    assert left_over(cache) == []


def test_offline_says_what_to_put_where(source: Source, cache: Path) -> None:
    url = closed_url()
    with pytest.raises(UserError) as caught:
        fetch(replace(source, url=url))
    text = one_line(caught)
    for part in (url, SHA256, str(cache / "letters" / "words.bin"), "ETUDE_MIRROR", "no connection to 127.0.0.1"):
        assert part in text
    # And following the advice helps.
    (cache / "letters" / "words.bin").write_bytes(CONTENT)
    assert fetch(replace(source, url=url)).read_bytes() == CONTENT


# --- mirrors ---


def test_a_mirror_folder_is_used_in_place(
    source: Source, home: Served, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "mirror" / "letters" / "words.bin"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CONTENT)
    monkeypatch.setenv("ETUDE_MIRROR", str(tmp_path / "mirror"))
    assert status(source) == "present"
    assert fetch(source) == copy
    assert status(source) == "verified"
    assert not home.asked
    assert not (cache / "letters").exists()


def test_a_wrong_file_in_a_mirror_folder_is_named_and_passed_over(
    source: Source, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "mirror" / "letters" / "words.bin"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(CONTENT[:-3])
    monkeypatch.setenv("ETUDE_MIRROR", str(tmp_path / "mirror"))
    assert status(source) == "altered"
    assert fetch(source) == cache / "letters" / "words.bin"
    assert f"{copy} is not the published file: trying {source.url}" in caplog.text
    assert copy.read_bytes() == CONTENT[:-3], "a mirror is never written"
    assert status(source) == "verified"


def test_a_mirror_url_comes_first(source: Source, home: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    home.files["/mirror/letters/words.bin"] = CONTENT
    monkeypatch.setenv("ETUDE_MIRROR", f"{home.url}/mirror/")
    assert fetch(source).read_bytes() == CONTENT
    assert [path for path, _ in home.asked] == ["/mirror/letters/words.bin"]


def test_a_mirror_url_that_lacks_the_file_gives_way_to_the_home(
    source: Source, home: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETUDE_MIRROR", f"{home.url}/mirror")
    assert fetch(source).read_bytes() == CONTENT
    assert [path for path, _ in home.asked] == ["/mirror/letters/words.bin", "/home/words.bin"]


def test_what_the_mirror_began_is_not_continued_from_the_home(
    source: Source, home: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.files["/mirror/letters/words.bin"] = b"x" * len(CONTENT)
    home.cuts = [50_000, 0]
    monkeypatch.setenv("ETUDE_MIRROR", f"{home.url}/mirror")
    assert fetch(source).read_bytes() == CONTENT
    assert home.asked[-1] == ("/home/words.bin", None)
    assert left_over(cache) == ["words.bin"]


NONSENSE = {
    "nowhere/at/all": "folder",
    "ftp://127.0.0.1/x": "folder",
    "http:/one-slash": "folder",
    "http://": "URL",
    "http://[": "URL",
    "https://:80": "URL",
    "http://127.0.0.1:99999999": "URL",
}


@pytest.mark.parametrize("mirror", NONSENSE)
def test_a_nonsense_mirror_is_one_line(source: Source, monkeypatch: pytest.MonkeyPatch, mirror: str) -> None:
    monkeypatch.setenv("ETUDE_MIRROR", mirror)
    for ask in (fetch, status):
        with pytest.raises(UserError) as caught:
            ask(source)
        assert one_line(caught).startswith(f"ETUDE_MIRROR={mirror} is no {NONSENSE[mirror]}: ")


@pytest.mark.parametrize("mirror", ["http://.", "http://a b.invalid", "http://..", "http://*"])
def test_a_mirror_that_cannot_be_reached_gives_way_to_the_home(
    source: Source, monkeypatch: pytest.MonkeyPatch, mirror: str
) -> None:
    monkeypatch.setenv("ETUDE_MIRROR", mirror)
    assert fetch(source).read_bytes() == CONTENT


def test_a_repacked_mirror_is_accepted_and_a_repacked_home_is_not(
    source: Source, home: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = CONTENT + b"again"
    both = replace(source, mirror_sha256=("0" * 64, hashlib.sha256(packed).hexdigest()))
    home.files = {"/home/words.bin": packed, "/mirror/letters/words.bin": packed}
    with pytest.raises(UserError, match="does not send the published file"):
        fetch(both)
    monkeypatch.setenv("ETUDE_MIRROR", f"{home.url}/mirror")
    assert fetch(both).read_bytes() == packed
    # One download for the three digests.
    assert [path for path, _ in home.asked] == ["/home/words.bin", "/mirror/letters/words.bin"]
    assert left_over(cache) == ["words.bin"]
    assert status(both) == status(both, recheck=True) == "verified"
    assert status(source) == "altered"


# --- the cache's own faults ---


def test_a_cache_below_a_file_is_one_line(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError) as caught:
        fetch(source)
    assert one_line(caught).startswith(f"cannot write {tmp_path / 'file' / 'cache'} (")
    assert "ETUDE_CACHE" in one_line(caught)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_an_unwritable_cache_is_one_line(source: Source, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(0o555)
    with pytest.raises(UserError) as caught:
        fetch(source)
    assert one_line(caught).startswith(f"cannot write {cache} (Permission denied)")


def test_a_folder_where_the_file_belongs_is_one_line(source: Source, cache: Path) -> None:
    (cache / "letters" / "words.bin").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        fetch(source)
    assert str(cache / "letters" / "words.bin") in one_line(caught)


def test_the_cache_follows_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ETUDE_CACHE", "~/deep/cache")
    assert cache_place() == tmp_path / "deep" / "cache"
    assert not cache_place().exists()
    assert cache_folder().is_dir()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_line(
    source: Source, home: Served, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETUDE_CACHE", str(small_disk))
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (1_048_576 - 200_000))
    with pytest.raises(UserError) as caught:
        fetch(source)
    text = one_line(caught)
    assert text.startswith(f"no room to write {small_disk / 'letters' / 'words.bin'} (")
    assert "free some space" in text
    assert status(source) == "missing"
    # Once there is room, the download goes on where it stopped.
    filler.unlink()
    # What was sent is no measure: the server may not have noticed yet that the first reader has gone.
    assert fetch(source).read_bytes() == CONTENT
    (_, first), (_, second) = home.asked
    assert first is None
    assert second is not None
    assert int(second.removeprefix("bytes=").removesuffix("-")) > 0


_FETCH = """
import logging, sys
logging.basicConfig(level=logging.WARNING)
from etude.data.fetch import Source, fetch
print(fetch(Source("letters", "words.bin", sys.argv[1], sys.argv[2])).stat().st_size)
"""


def test_two_processes_download_once(source: Source, home: Served) -> None:
    home.gate = threading.Event()
    words = ["-c", _FETCH, source.url, SHA256]

    def start() -> subprocess.Popen[str]:
        return Fork(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    with start() as one:
        assert home.first.wait(30)
        with start() as two:
            # The second one says that it waits; only then may the first one have its answer.
            assert "waiting for another process" in two.stderr.readline()
            home.gate.set()
            outputs = [process.communicate(timeout=30)[0] for process in (one, two)]
    assert outputs == [f"{len(CONTENT)}\n"] * 2
    assert len(home.asked) == 1
