"""What the fuzz found, as small as it is."""

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch
from tests.fuzz.targets import TARGETS, fresh, pngs

from etude.core.errors import UserError
from etude.core.summary import read_summary
from etude.data import pairs

pytest.importorskip("gradio", reason="the page is an extra: `uv sync --extra web`")


def _prototypes(**changes: object) -> bytes:
    """A file of prototypes, of the right weights, with other numbers or names."""
    body = TARGETS["prototypes"].seeds()[0]
    length = int.from_bytes(body[:8], "little")
    about = json.loads(json.loads(body[8 : 8 + length])["__metadata__"]["etude-prototypes"])
    width = changes.pop("width", 64)
    kind = changes.pop("kind", torch.float32)
    assert isinstance(width, int)
    assert isinstance(kind, torch.dtype)
    tensors = {"prototypes": torch.zeros(len(about["classes"]), width).to(kind)}
    return safetensors.torch.save(tensors, metadata={"etude-prototypes": json.dumps(about | changes)})


def _npy(array: np.ndarray) -> bytes:
    to = io.BytesIO()
    np.save(to, array)
    return to.getvalue()


def _npz(changed: str, body: bytes, name: str = "glove npz") -> bytes:
    """A file of arrays, one of them another."""
    to = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(TARGETS[name].seeds()[0])) as whole, zipfile.ZipFile(to, "w") as made:
        for member in whole.namelist():
            made.writestr(member, body if member == f"{changed}.npy" else whole.read(member))
    return to.getvalue()


def _official(changes: dict[str, object]) -> bytes:
    rows = [{"Problem": "1 and 2", "options": "a ) 3", "correct": "a", "linear_formula": "add(n0,n1)"} | changes] * 2
    to = io.BytesIO()
    with zipfile.ZipFile(to, "w") as made:
        made.writestr("train.json", json.dumps(rows))
    return to.getvalue()


def _cut_short() -> bytes:
    body = gzip.decompress(TARGETS["scenes tar"].seeds()[0])
    return gzip.compress(body[: body.index(b"\x89PNG") + 100])


FOUND: dict[str, tuple[str, Callable[[], bytes]]] = {
    "vectors of another width": ("prototypes", lambda: _prototypes(width=1)),
    "vectors of whole numbers": ("prototypes", lambda: _prototypes(kind=torch.int64)),
    "classes that are no names": ("prototypes", lambda: _prototypes(classes=[["a"]] * 5)),
    "shots that are no numbers": ("prototypes", lambda: _prototypes(shots=["x"] * 5)),
    "a format without end": ("prototypes", lambda: _prototypes(format=float("inf"))),
    "a summary that is a list": ("run summary.json", lambda: b"[1]"),
    "a summary that is a number": ("run summary.json", lambda: b"1.5"),
    "a step that is true": ("run metrics.jsonl", lambda: b'{"step": true, "train/loss": 1.0}\n'),
    "a loss of 400 figures": ("run metrics.jsonl", lambda: b'{"step": 1, "train/loss": 1' + b"0" * 400 + b"}\n"),
    "a setting of two lines": ("reference", lambda: b'[[number]]\n"a\\nb" = 1\n'),
    "a table too deep": ("reference", lambda: b"a = " + b"[" * 5000),
    "a note too deep": ("cache note", lambda: b"[" * 100_000),
    "a note of no numbers": ("cache note", lambda: b'{"path": "P", "size": "x", "mtime_ns": null, "sha256": 1}'),
    "a list of files too deep": ("pairs listing", lambda: b"[" * 100_000),
    "a list of no files": ("pairs listing", lambda: b"[1, {}]"),
    "a vocabulary that is no array": ("glove npz", lambda: b"\x93NUMPY"),
    "vectors that are no array": ("glove npz", lambda: _npz("vectors", b"bytes")),
    "a vector of no dimension": ("glove npz", lambda: _npz("words", _npy(np.array("a")))),
    "vectors of other sizes": ("glove npz", lambda: _npz("vectors", _npy(np.ones((2, 7), np.float16)))),
    "labels that are no array": ("cifar npz", lambda: _npz("train_labels", b"bytes", "cifar npz")),
    "offsets that are no array": ("cifar npz", lambda: _npz("train_offsets", b"", "cifar npz")),
    "a problem without options": ("mathqa zip", lambda: _official({"options": None})),
    "a problem that is a number": ("mathqa zip", lambda: _official({"Problem": 1})),
    "a program that is a list": ("mathqa zip", lambda: _official({"linear_formula": ["add(n0,n1)"]})),
    "options that are an object": ("mathqa zip", lambda: _official({"options": {"a": 1}})),
    "an archive cut within a member": ("scenes tar", _cut_short),
}
TAKEN = {
    "a note too deep", "a note of no numbers", "a list of files too deep", "a list of no files",
    "a step that is true", "a loss of 400 figures",
}  # fmt: skip
"""Notes that are made again, and lines that are passed over."""


@pytest.mark.parametrize("case", FOUND)
def test_files_that_once_ended_in_a_traceback(case: str, tmp_path: Path) -> None:
    name, made = FOUND[case]
    path = tmp_path / f"x{TARGETS[name].suffix}"
    path.write_bytes(made())
    if case in TAKEN:
        TARGETS[name].read(path)
        return
    with pytest.raises(UserError) as caught:
        TARGETS[name].read(path)
    assert len(str(caught.value).splitlines()) == 1


def test_the_right_prototypes_are_taken(tmp_path: Path) -> None:
    """Else the cases above would be refused for another reason."""
    (tmp_path / "x.safetensors").write_bytes(_prototypes())
    TARGETS["prototypes"].read(tmp_path / "x.safetensors")


def test_a_summary_of_endless_training(tmp_path: Path) -> None:
    """A number that JSON writes and no clock shows."""
    body = TARGETS["run summary.json"].seeds()[0].replace(b'"train_seconds": 61.5', b'"train_seconds": 1e999')
    assert b"1e999" in body
    (tmp_path / "x.file").write_bytes(body)
    with pytest.raises(UserError, match="train_seconds"):
        read_summary(tmp_path / "x.file")
    # The report says so, and goes on.
    TARGETS["run summary.json"].read(tmp_path / "x.file")


def test_names_in_an_archive_that_are_no_text(tmp_path: Path) -> None:
    """Such a picture is passed over: its name could not be written down."""
    path = tmp_path / "maps.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("maps/train/1.png", "maps/train/2.png", "maps/train/\udcff.png", "maps/val/1.png"):
            info = tarfile.TarInfo(name)
            info.size = len(pngs()[1])
            archive.addfile(info, io.BytesIO(pngs()[1]))
    with fresh(), mock.patch.object(pairs, "fetch", return_value=path):
        read = pairs.archive("maps", 8, 8)
    assert sum(len(part) for part in read.splits.values()) == 3
