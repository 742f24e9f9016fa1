"""What a stranger may do to a file: bytes, and the fields of the formats that etude reads.

All of it is driven by ``pick(n)``, a number from 0 to n - 1: of hypothesis in the tests, of atheris in its harness.
"""

import gzip
import io
import json
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import yaml

Pick = Callable[[int], int]
T = TypeVar("T")

_DEEP = "[" * 3000 + "]" * 3000
_RAW: Sequence[str] = (
    "null", "true", "0", "-1", "1", "2", "7", "1.5", "1e999", "-1e999", "NaN", "Infinity", "1" + "0" * 400,
    "9" * 5000,
    "9223372036854775808", "-9223372036854775809", "1e-400", '""', '"\\ud800"', '"a\\nb\\u0000"',
    '"<script>alert(1)</script>"',
    '"../../../etc/passwd"', '"/dev/zero"', '"~"', '"x.py:Part"', f'"{"x" * 5000}"', '"no"', "[]", "{}", "[[]]",
    "[null]",
    '{"": 0}', "[0, 1]", '["a", "a"]', '[["sep_conv_3x3", 0]]', '{"a": {"a": {"a": 1}}}', "[1e999]", _DEEP,
    '{"a":' * 900 + "0" + "}" * 900,
    "[" + "0," * 3000 + "0]",
)  # fmt: skip
"""Values as JSON writes them, or writes them not."""
_BYTES: Sequence[bytes] = (
    b"\0", b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x80\x04.", b"PK\3\4", b"\n", b'"', b"{", b"[" * 2000,
    b"\x1b[2J", b"\xed\xa0\x80",
    "\u2028".encode(), b"..", b"/", b"-1", b"1e999", b"99999999999999999999", b"\r\n\r\n", b"&a [*a]",
    b"!!python/object/apply:os.system ['x']",
)  # fmt: skip


def choose(pick: Pick, of: Sequence[T]) -> T:
    return of[pick(len(of))]


def garbled(pick: Pick, body: bytes) -> bytes:
    """Some bytes changed, put in, taken out, repeated or cut off."""
    for _ in range(1 + pick(3)):
        at, span = pick(len(body) + 1), 1 + pick(40)
        kind = pick(6)
        if kind == 0 and at < len(body):
            body = body[:at] + bytes([body[at] ^ (1 << pick(8))]) + body[at + 1 :]
        elif kind == 1 and at < len(body):
            body = body[:at] + bytes([pick(256)]) + body[at + 1 :]
        elif kind == 2:
            body = body[:at] + choose(pick, _BYTES) + body[at:]
        elif kind == 3:
            body = body[:at] + body[at + span :]
        elif kind == 4:
            body = body[:at] + body[at : at + span] * 2 + body[at + span :]
        else:
            body = body[:at]
    return body


# --- trees of values ---

_MARK = "\u00a7raw{}\u00a7"


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, part in list(pairs)[:40] for place in _places(part, (*at, key)))]


def _changed(pick: Pick, value: Any, new: Any) -> Any:
    """A tree with one place changed, taken out, repeated or renamed."""
    place = choose(pick, _places(value))
    if not place:
        return new
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    key, kind = place[-1], pick(6)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, dict):
        parent[choose(pick, ["", "x", "__class__", "a\nb", "\ud800", "9" * 300])] = parent.pop(key)
    elif kind == 1:
        parent += parent[:50]
    elif kind == 2 and isinstance(parent, dict):
        parent[choose(pick, ["more", "step", "kind", "format"])] = new
    else:
        parent[key] = new
    return value


def json_garbled(pick: Pick, body: bytes) -> bytes:
    """A JSON text with some values changed; sometimes its bytes."""
    if pick(4) == 0:
        return garbled(pick, body)
    value, raw = json.loads(body), []
    for number in range(1 + pick(2)):
        raw.append(choose(pick, _RAW))
        value = _changed(pick, value, _MARK.format(number))
    text = json.dumps(value)
    for number, part in enumerate(raw):
        text = text.replace(json.dumps(_MARK.format(number)), part)
    return text.encode()


def lines_garbled(pick: Pick, body: bytes) -> bytes:
    """JSON lines, some of them changed."""
    lines = body.splitlines()
    at = pick(len(lines))
    lines[at] = json_garbled(pick, lines[at])
    return b"\n".join(lines) + choose(pick, [b"", b"\n", b"\n\n", b"{", b"null\n"])


_TAGS = (
    "!!int x", "!!float x", "!!bool x", "!!timestamp x", "2001-99-99", "!!binary x", "!!set [a]", "!!omap [a]",
    "!!pairs x",
    "!!python/object/apply:os.system ['x']", "!!python/name:os.system", "&a [*a]", "*b", "1:2:3:4", "0o9", "0x",
    "1_", ".inf", ".nan",
    "9" * 5000, "[" * 3000, "? [a]", "<<: 1", "!x y", "'", '"\\ud800"', "|", "!!merge x", "!!value =", "~",
    "!!null x", "190:20:30", "!!str",
    "&a {<<: *a}", "!!int ''", "!!timestamp ''", "0b2", "!!seq {}", "!!map []",
)  # fmt: skip


def yaml_garbled(pick: Pick, body: bytes) -> bytes:
    """A YAML text with a value changed to one of JSON's or to an odd tag; sometimes its bytes."""
    if pick(4) == 0:
        return garbled(pick, body)
    text = yaml.safe_dump(_changed(pick, yaml.safe_load(body), "RAW"), sort_keys=False)
    return text.replace("RAW", choose(pick, [*_TAGS, *_RAW]), 1).encode("utf-8", "surrogatepass")


def text_garbled(pick: Pick, body: bytes) -> bytes:
    """A text with a word or line changed; sometimes its bytes."""
    if pick(3) == 0:
        return garbled(pick, body)
    parts = re.split(rb"(\s+|[=,|()\[\]\"])", body)
    at = pick(len(parts))
    parts[at] = choose(pick, [*_BYTES, *(raw.encode("utf-8", "surrogatepass") for raw in _RAW)])
    return b"".join(parts)


# --- containers ---


def zip_garbled(pick: Pick, body: bytes, inner: Callable[[Pick, bytes], bytes] = garbled) -> bytes:
    """A zip file with a member changed: its content, name, size, kind; sometimes its bytes."""
    if pick(3) == 0:
        return garbled(pick, body)
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    chosen, kind = pick(len(members)), pick(8)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", choose(pick, [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])) as archive:
        for number, (info, content) in enumerate(members):
            name, mode = info.filename, 0o100644
            if number == chosen:
                if kind == 0:
                    continue
                if kind == 1:
                    stem = name.rpartition("/")[2]
                    odd = [f"../{stem}", f"/etc/{stem}", f"C:\\{stem}", f"a\\..\\..\\{stem}", "x" * 3000, "", stem]
                    odd += [f"{'a/' * 3000}{stem}", f"\u202e{stem}", f"{stem}/{stem}"]
                    name = choose(pick, odd)
                elif kind == 2:
                    mode, content = 0o120777, b"/etc/passwd"
                elif kind == 3:
                    content = bytes(1 << 25)
                elif kind == 4:
                    mode = choose(pick, [0o20666, 0o60666, 0o10666, 0o40755])
                else:
                    content = inner(pick, content)
            entry = zipfile.ZipInfo(name)
            entry.external_attr, entry.compress_type = mode << 16, archive.compression
            archive.writestr(entry, content)
            if number == chosen and kind == 5:
                with warnings.catch_warnings():
                    # Of a name that stands there twice, which is what is wanted.
                    warnings.simplefilter("ignore", UserWarning)
                    archive.writestr(entry, b"twice")
    body = made.getvalue()
    if kind == 6:
        # Sizes and flags in the list of contents, without the file's.
        at = body.rfind(b"PK\1\2")
        field = choose(pick, [8, 10, 16, 20, 24, 28, 30, 42])
        body = body[: at + field] + choose(pick, [b"\xff\xff", b"\1\0", b"\0\x80", b"\x63\0"]) + body[at + field + 2 :]
    return body


def gzip_garbled(pick: Pick, body: bytes) -> bytes:
    """What is in a gzip file changed, or the file."""
    return garbled(pick, body) if pick(3) == 0 else gzip.compress(tar_garbled(pick, gzip.decompress(body)), 1)


def tar_garbled(pick: Pick, body: bytes) -> bytes:
    """Bytes of a tar file, with a member's checksum put right so that it is looked at."""
    blocks = [at for at in range(0, len(body) - 511, 512) if body[at + 257 : at + 262] == b"ustar"]
    if not blocks or pick(3) == 0:
        return garbled(pick, body)
    at = choose(pick, blocks)
    head = bytearray(body[at : at + 512])
    kind = pick(4)
    if kind == 0:
        head[156:157] = choose(pick, [b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"x", b"g", b"L", b"K", b"S", b"\0"])
    elif kind == 1:
        head[124:136] = choose(
            pick, [b"77777777777\0", b"00000000000\0", b"\xff" * 12, b"\x80" + b"\x7f" * 11, b"-0000000001\0"]
        )
    elif kind == 2:
        head[0:100] = choose(pick, [b"../../x.png", b"/etc/passwd", b"train/\xff.png", b"train/.png"]).ljust(100, b"\0")
    else:
        head[pick(500)] = pick(256)
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return body[:at] + bytes(head) + body[at + 512 :]


def npy_garbled(pick: Pick, body: bytes) -> bytes:
    """An .npy file of another shape or kind than its bytes; sometimes its bytes."""
    found = re.search(rb"\{.*\}", body[:200])
    if found is None or pick(3) == 0:
        return garbled(pick, body)
    descr = choose(pick, ["'|O'", "'|u1'", "'<f8'", "'<U9'", "'<c16'", "[('a','<i4')]", "'|S0'", "'<M8[s]'", "'bad'"])
    shape = choose(
        pick, ["()", "(0,)", "(1000000000000,)", "(99999999999999999999,)", "(-1,)", "(2, 3)", "(1,) * 9", "'x'"]
    )
    header = re.sub(rb"'descr': [^,]+", f"'descr': {descr}".encode(), found[0]) if pick(2) else found[0]
    header = re.sub(rb"'shape': \([^)]*\)", f"'shape': {shape}".encode(), header).ljust(118) + b"\n"
    return body[:8] + struct.pack("<H", len(header)) + header + body[found.end() + 1 :]


def npz_garbled(pick: Pick, body: bytes) -> bytes:
    return zip_garbled(pick, body, npy_garbled)


_KINDS = ("F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "I8", "F8_E4M3", "C64", "X", "F4", 1)


def safetensors_garbled(pick: Pick, body: bytes) -> bytes:
    """A safetensors file with its header changed; sometimes its bytes."""
    if pick(4) == 0:
        return garbled(pick, body[:2000]) + body[2000:] if pick(2) else garbled(pick, body)
    (length,) = struct.unpack("<Q", body[:8])
    header, rest, kind = json.loads(body[8 : 8 + length]), body[8 + length :], pick(6)
    names = [name for name in header if name != "__metadata__"]
    if kind <= 2 and "__metadata__" in header:
        about = header["__metadata__"]
        key = choose(pick, sorted(about))
        about[key] = json_garbled(pick, about[key].encode()).decode("utf-8", "replace")
        text = json.dumps(header)
    elif kind == 3:
        one = header[choose(pick, names)]
        one[choose(pick, ["dtype", "shape", "data_offsets"])] = choose(
            pick, [*_KINDS, [], [0], [-1], [10**12, 10**12], [1, 1], [0, 10**15], [5, 2], [2**64], "x", None]
        )
        text = json.dumps(header)
    elif kind == 4:
        one = header[choose(pick, names)]
        one["dtype"] = choose(pick, {"F16": ["BF16", "I16", "U16"], "F32": ["I32", "U32"]}.get(one["dtype"], ["F64"]))
        text = json.dumps(header)
    else:
        text = json_garbled(pick, json.dumps(header).encode()).decode("utf-8", "replace")
    if pick(8) == 0:
        rest = rest[: pick(len(rest) + 1)]
    if pick(8) == 0:
        # Numbers that are none.
        rest = b"\xff\x7f" * (len(rest) // 2) + rest[len(rest) // 2 * 2 :]
    encoded = text.encode("utf-8", "replace")
    size = choose(pick, [0, 2**63, 2**64 - 1, 10**9]) if pick(10) == 0 else len(encoded)
    return struct.pack("<Q", size) + encoded + rest


def png_garbled(pick: Pick, body: bytes) -> bytes:
    """A PNG file with a chunk changed under a right checksum; sometimes its bytes."""
    if pick(3) == 0 or not body.startswith(b"\x89PNG"):
        return garbled(pick, body)
    chunks, at = [], 8
    while at < len(body):
        (length,) = struct.unpack(">I", body[at : at + 4])
        chunks.append((body[at + 4 : at + 8], body[at + 8 : at + 8 + length]))
        at += 12 + length
    chosen = pick(len(chunks))
    name, content = chunks[chosen]
    kind = pick(6)
    if kind == 0:
        del chunks[chosen]
    elif kind == 1:
        chunks.insert(chosen, chunks[chosen])
    elif kind == 2:
        head = bytearray(chunks[0][1].ljust(13, b"\0"))
        head[pick(13)] = choose(pick, [0, 1, 2, 3, 4, 8, 16, 255])
        chunks[0] = (chunks[0][0], bytes(head))
    elif kind == 3:
        new = choose(
            pick,
            [
                b"tRNS",
                b"PLTE",
                b"gAMA",
                b"eXIf",
                b"iCCP",
                b"zTXt",
                b"acTL",
                b"fcTL",
                b"fdAT",
                b"sRGB",
                b"pHYs",
                b"cHRM",
            ],
        )
        chunks.insert(
            1 + pick(len(chunks)),
            (new, choose(pick, [b"", b"\0" * 4, b"\xff" * 26, b"a\0\0" + zlib.compress(bytes(1 << 20))])),
        )
    elif kind == 4 and name == b"IDAT":
        chunks[chosen] = (name, zlib.compress(choose(pick, [b"", bytes(1 << 22), b"\xff" * 100])))
    else:
        chunks[chosen] = (name, garbled(pick, content))
    made = b"\x89PNG\r\n\x1a\n"
    for name, content in chunks:
        made += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    return made
