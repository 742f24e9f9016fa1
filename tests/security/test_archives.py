"""Archives, texts and weights that are made to do harm: refused in one line, with little memory and soon."""

import contextlib
import gzip
import io
import json
import os
import resource
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from PIL import Image
from tests.fuzz.targets import command, jpegs, pngs

from etude.core.checkpoint import read_weights
from etude.core.config import read_yaml
from etude.core.errors import UserError
from etude.core.files import read_json
from etude.data import cifar10, clevrtex, folders, mnist, pairs
from etude.data.images import read_image

PICTURE = pngs()[1]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))


def entry(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.external_attr, made.compress_type = mode << 16, zipfile.ZIP_DEFLATED
    return made


def birds(path: Path, **odd: Any) -> Path:
    """A zip file of two classes with further members."""
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name in ("cat/1.png", "cat/2.png", "cat/3.png", "dog/1.png", "dog/2.png", "dog/3.png"):
            archive.writestr(entry(name), PICTURE)
        for info, body in odd.get("members", ()):
            archive.writestr(info, body)
    return path


def refused(path: Path, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        folders.read(path, size=8, **more)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("name", ["../evil.png", "cat/../../evil.png", "/etc/evil.png", "C:\\evil.png", "..\\evil.png"])
def test_a_zip_file_writes_nothing_outside(name: str, tmp_path: Path) -> None:
    """Nor anything inside: it is read in memory, and what leads up or lies beside the classes is passed over."""
    (tmp_path / "in").mkdir()
    path = birds(tmp_path / "in" / "birds.zip", members=[(entry(name), PICTURE)])
    before = {file for file in tmp_path.rglob("*") if "cache" not in file.parts}
    names: tuple[str, ...] = ()
    # `/etc/evil.png` is a class of one picture, which is too few.
    with contextlib.suppress(UserError):
        names = folders.read(path, size=8).images.names
    assert all(".." not in name and not name.startswith("/") for name in names)
    after = {file for file in tmp_path.rglob("*") if "cache" not in file.parts}
    assert after == before
    assert not Path("/etc/evil.png").exists()


@pytest.mark.parametrize("mode", [0o120777, 0o20666, 0o60666, 0o10666])
def test_links_and_devices_in_a_zip_file_are_bytes(mode: int, tmp_path: Path) -> None:
    """What such a member holds is taken for a picture's bytes; nothing is followed or opened."""
    (tmp_path / "secret.png").write_bytes(PICTURE)
    path = birds(tmp_path / "birds.zip", members=[(entry("cat/9.png", mode), str(tmp_path / "secret.png").encode())])
    assert "cat/9.png is not an image" in refused(path)


@pytest.mark.parametrize("kind", ["link", "hard link", "device", "pipe", "up", "absolute"])
def test_tar_members_that_are_no_plain_files(kind: str, tmp_path: Path) -> None:
    """They are passed over: an archive is read as a stream, and nothing of it is written by its names."""
    path, secret = tmp_path / "maps.tar.gz", tmp_path / "secret.png"
    secret.write_bytes(PICTURE)
    with tarfile.open(path, "w:gz") as archive:
        for name in ("maps/train/1.png", "maps/train/2.png", "maps/val/1.png", "maps/val/2.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PICTURE)
            archive.addfile(info, io.BytesIO(PICTURE))
        info = tarfile.TarInfo({"up": "../../train/9.png", "absolute": "/train/9.png"}.get(kind, "maps/train/9.png"))
        kinds = {
            "link": tarfile.SYMTYPE,
            "hard link": tarfile.LNKTYPE,
            "device": tarfile.CHRTYPE,
            "pipe": tarfile.FIFOTYPE,
        }
        info.type, info.linkname = kinds.get(kind, tarfile.REGTYPE), str(secret)
        info.size = 0 if kind in kinds else len(PICTURE)
        archive.addfile(info, io.BytesIO(PICTURE if info.size else b""))
    with mock.patch.object(pairs, "fetch", return_value=path):
        names = sorted(name for name, _ in pairs._unpacked(pairs.ARCHIVES["maps"], None))
        assert names == ["train/1.png", "train/2.png", *(["train/9.png"] if kind in ("up", "absolute") else []),
                         "val/1.png", "val/2.png"]  # fmt: skip
        pairs.archive("maps", 8, 8)
    assert not (tmp_path.parent.parent / "train").exists()
    assert not Path("/train").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_links_in_place_of_a_published_file(kind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with mock.patch.object(cifar10, "fetch", return_value=path), pytest.raises(UserError, match="is damaged"):
        cifar10.load("test")


def test_a_name_that_stands_twice_is_read_once(tmp_path: Path) -> None:
    other = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(other, "PNG")
    path = birds(tmp_path / "birds.zip", members=[(entry("cat/1.png"), other.getvalue())])
    assert len(folders.read(path, size=8).images) == 6


def test_an_encrypted_member(tmp_path: Path) -> None:
    path = birds(tmp_path / "birds.zip")
    body = bytearray(path.read_bytes())
    for at in (body.find(b"PK\3\4") + 6, body.find(b"PK\1\2") + 8):
        body[at] |= 1
    path.write_bytes(body)
    assert "cat/1.png needs a password" in refused(path)


@pytest.mark.parametrize("kept", [0, 10, 200, -1, -30])
def test_a_zip_file_cut_short(kept: int, tmp_path: Path) -> None:
    path = birds(tmp_path / "birds.zip")
    path.write_bytes(path.read_bytes()[:kept])
    refused(path)


def test_a_deep_name_fills_no_memory(tmp_path: Path) -> None:
    path = birds(tmp_path / "birds.zip", members=[(entry("a/" * 30_000 + "x.png"), PICTURE)])
    assert "has folders 30,001 deep" in refused(path)


# --- bombs ---

_BOUNDED = """
import resource, sys
import torch, PIL.Image, numpy
from etude.cli import main
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[1]), -1))
sys.exit(main(sys.argv[2:]))
"""


def bounded(megabytes: int, *words: object) -> str:
    """What the command line says in a process that may grow by so much; it must refuse, and soon."""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _BOUNDED, str(megabytes << 20), *map(str, words)],
        capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert time.monotonic() - start < 200
    return done.stderr


linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded by Linux's means")


@linux
def test_a_zip_bomb(tmp_path: Path) -> None:
    """Eight pictures of 250 MB of zeros, of which as many are in memory as there are threads."""
    zeros = io.BytesIO()
    with zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for number in range(8):
            with archive.open(entry(f"{'ab'[number % 2]}/{number}.png"), "w", force_zip64=True) as member:
                for _ in range(250):
                    member.write(bytes(1 << 20))
    (tmp_path / "bomb.zip").write_bytes(zeros.getvalue())
    assert len(zeros.getvalue()) < 10 << 20
    said = bounded(400, "check", "resnet", "smoke", "--data.source", "folder", "--data.folder", tmp_path / "bomb.zip")
    assert "would unpack from" in said


def test_a_gzip_bomb_in_place_of_digits(tmp_path: Path) -> None:
    """300 MB of zeros: no more than the digits' own bytes are unpacked."""
    path = tmp_path / "digits.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28]))
        for _ in range(300):
            file.write(bytes(1 << 20))
    asked: list[int] = []
    real = gzip.GzipFile.read

    def read(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        asked.append(-1 if size is None else size)
        return real(self, size)

    with (
        mock.patch.object(mnist, "fetch", return_value=path), mock.patch.object(gzip.GzipFile, "read", read),
        pytest.raises(UserError, match="does not hold 2 x 28 x 28 bytes"),
    ):  # fmt: skip
        mnist._read(mnist.FILES["train"][0], (2, 28, 28))
    assert asked == [16 + 2 * 28 * 28 + 1]


def _with_header(kind: bytes, size: int, body: bytes = b"") -> bytes:
    """A tar.gz file whose second member says that it has a size and is of a kind."""
    to = io.BytesIO()
    with tarfile.open(fileobj=to, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in ("maps/train/1.png", "maps/train/2.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PICTURE)
            archive.addfile(info, io.BytesIO(PICTURE))
    plain = to.getvalue()
    info = tarfile.TarInfo("maps/train/9.png")
    info.type, info.size = kind, size
    head = info.tobuf(tarfile.GNU_FORMAT)
    return gzip.compress(plain[: plain.rindex(b"maps/train/2.png")] + head + body, 1)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.DIRTYPE])
@pytest.mark.parametrize("size", [2**80, 2**40, 2**33 - 1])
def test_a_tar_member_of_a_size_that_cannot_be(kind: bytes, size: int, tmp_path: Path) -> None:
    """Python's reader of streams would skip as many bytes, block by block, past the end of the file."""
    path = tmp_path / "x.tar.gz"
    path.write_bytes(_with_header(kind, size, bytes(1 << 20)))
    start = time.monotonic()
    with mock.patch.object(pairs, "fetch", return_value=path), pytest.raises(UserError, match="is damaged"):
        list(pairs._unpacked(pairs.ARCHIVES["maps"], None))
    whole = mock.patch.object(clevrtex, "fetch", return_value=path)
    with whole, pytest.raises(UserError, match="are damaged"), clevrtex._opened([]) as archive:
        list(archive)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("shape", ["(1000000000000000,)", "(99999999999999999999,)", "(-1,)", "(2,) * 9"])
def test_an_array_of_a_shape_that_cannot_be(shape: str, tmp_path: Path) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    path = tmp_path / "cifar10_jpeg.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("train_jpeg", "train_offsets", "train_labels", "classes"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\1\0" + struct.pack("<H", 118) + header.ljust(117) + b"\n")
    with pytest.raises(UserError, match="is not the file of JPEG copies"):
        cifar10._read_jpegs(path, "train")


def bomb(width: int, height: int, kind: bytes = b"IHDR") -> bytes:
    """A small PNG that says it is large."""
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(kind, struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


def _gif(width: int, height: int) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", width, height, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, width, height, 0)
        + b"\2\0;"
    )


def _tiff(width: int, height: int) -> bytes:
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (279, 4, 1),
    ]
    body = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags
    )
    return b"II*\0" + struct.pack("<I", 8) + body + bytes(4)


@linux
@pytest.mark.parametrize(("name", "body"), [
    ("1.png", bomb(50_000, 50_000)), ("2.png", bomb(2**31 - 1, 2**31 - 1)), ("3.png", bomb(9_000, 9_000)),
    ("4.gif", _gif(65_535, 65_535)), ("5.tif", _tiff(2**31, 2**31)), ("6.tif", _tiff(40_000, 40_000)),
    ("7.ppm", b"P6 60000 60000 255\n"), ("8.bmp",
    b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)),
    ("9.png", bomb(0, 0)), ("10.png", b""),
])  # fmt: skip
def test_pictures_that_say_they_are_huge(name: str, body: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(body)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        command("predict", "resnet", tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1
    # Of 64 million pixels of four bytes, which the largest picture may have, nothing was held.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


@pytest.mark.parametrize("number", range(4))
def test_odd_jpegs_are_read(number: int, tmp_path: Path) -> None:
    """CMYK, grey, turned by their metadata, progressive."""
    (tmp_path / "x.jpg").write_bytes(jpegs()[number])
    turned = number == 3
    assert read_image(tmp_path / "x.jpg", "RGB").shape == ((20, 16, 3) if turned else (16, 20, 3))


def test_a_mask_of_a_format_that_starts_programs(tmp_path: Path) -> None:
    """Pillow hands PostScript to Ghostscript."""
    path = tmp_path / "x_flat.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    with mock.patch("subprocess.check_call") as started, pytest.raises(UserError, match="is no mask"):
        clevrtex._read_mask(path, path, None)
    started.assert_not_called()


# --- texts ---

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 20)
)
TEXTS = {
    "billion laughs": LAUGHS,
    "an alias of itself": "a: &a [*a]",
    "deep brackets": "a: " + "[" * 5000,
    "deep maps": "{a: " * 5000,
    "python": "a: !!python/object/apply:os.system ['touch marker']",
    "a huge integer": "a: " + "9" * 5000,
    "a day that there is not": "a: 2001-99-99",
    "no timestamp": "a: !!timestamp x",
    "no truth": "a: !!bool x",
    "no integer": "a: !!int ''",
    "a tag": "a: !x y",
    "a list for a key": "? [a]\n: 1",
    "a zero": "a: \0",
    "no text": "\udc80",
    "a list": "- 1",
    "nothing": "",
    "large": "a: x\n" + "#" * (2 << 20),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_yaml_is_data_of_bounded_size(case: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(TEXTS[case].encode("utf-8", "surrogateescape"))
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        read_yaml(tmp_path / "config.yaml")
    assert len(str(caught.value).splitlines()) == 1
    assert time.monotonic() - start < 20
    assert not (tmp_path / "marker").exists()
    with pytest.raises(UserError):
        command("predict", tmp_path, "x.png")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "nul", "\udc80", "", "{'a': 1}", "[1,]"]
)
def test_json_is_data_of_bounded_depth(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as caught:
        read_json(tmp_path / "x.json")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("value", ["Infinity", "NaN", "1e400", "9" * 300, '"1"', "[]", "null", "-1", "true", "1.5"])
def test_a_step_that_is_none(value: str, tmp_path: Path) -> None:
    from etude.core.run_folder import RunFolder
    from etude.core.summary import chosen_weights

    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.json").write_text(f'{{"step": {value}}}')
    with pytest.raises(UserError, match=r"best\.json names no step"):
        chosen_weights(RunFolder(tmp_path))


def test_metrics_that_are_none_are_left_out(tmp_path: Path) -> None:
    from etude.core.run_folder import RunFolder

    for line in ("[1]", "null", "3", '{"a": 1}', '{"step": "x"}', "[" * 100_000, '"x"', b"\xff".decode("latin-1")):
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "a": 2}}\n{line}\n{{"step": 3}}\n', encoding="latin-1")
        assert list(RunFolder(tmp_path).metrics()) == [{"step": 1, "a": 2}, {"step": 3}]


# --- weights ---


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 10**12, 10**8 + 1, 8, 0])
def test_a_header_of_a_length_that_cannot_be(length: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" + bytes(100))
    with pytest.raises(UserError, match=r"is truncated or not a safetensors file|was not written by etude"):
        read_weights(path)


@pytest.mark.parametrize("number", ["Infinity", "1e999", "null", '"x"', "[]"])
def test_a_format_that_is_no_number(number: str, tmp_path: Path) -> None:
    about = f'{{"format": {number}, "study": "protonet", "config": {{}}, "extra": {{}}}}'
    header = json.dumps({"__metadata__": {"etude": about}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError, match="has no header of ours"):
        read_weights(path)
