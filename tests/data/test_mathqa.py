"""MathQA's archive and GloVe's vectors: read, cut, cached, and files that are not the published ones."""

import dataclasses
import hashlib
import io
import json
import os
import re
import socket
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etude.core.errors import UserError
from etude.data import mathqa
from etude.data.fetch import Source, fetch, status

MIRROR = os.environ.get("ETUDE_MIRROR") or str(Path(__file__).parents[3] / "shared" / "data")
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ROWS = [
    {"Problem": f"{number} and 1", "linear_formula": "add(n0,n1)", "correct": "a", "options": "a ) 1"}
    for number in range(3)
]


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty mirror and an empty cache; the homes of the files are not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x"
    for name in ("ARCHIVE", "GLOVE"):
        monkeypatch.setattr(mathqa, name, dataclasses.replace(getattr(mathqa, name), url=url, size=None))
    for name in ("FILTERED", "GLOVE_CUT"):
        changed = {key: dataclasses.replace(source, url=url) for key, source in getattr(mathqa, name).items()}
        monkeypatch.setattr(mathqa, name, changed)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("etude.data.fetch._PAUSE_S", 0.01)
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ETUDE_MIRROR", str(tmp_path / "mirror"))
    for name in ("mathqa", "glove"):
        (tmp_path / "mirror" / name).mkdir(parents=True)
    return tmp_path / "mirror"


@pytest.fixture
def real_mirror(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mirror's folder; the test is skipped where it lacks the course's split or GloVe's cut."""
    names = [source.name for source in (*mathqa.FILTERED.values(), *mathqa.GLOVE_CUT.values())]
    for name in names:
        if not (Path(MIRROR) / name).is_file():
            pytest.skip(f"no mirror of {name}: set ETUDE_MIRROR")
    monkeypatch.setenv("ETUDE_MIRROR", MIRROR)
    return Path(MIRROR)


def believed(source: Source, body: bytes) -> Source:
    """As if these bytes were the published ones."""
    return dataclasses.replace(source, sha256=hashlib.sha256(body).hexdigest())


def packed(files: Mapping[str, str | bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    to = io.BytesIO()
    with zipfile.ZipFile(to, "w", how) as archive:
        for name, body in files.items():
            archive.writestr(name, body)
    return to.getvalue()


def never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("not to be called")


def one_line(caught: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    text = str(caught.value)
    assert text.isprintable()
    for part in parts:
        assert part in text, text


def test_the_set_names_its_file() -> None:
    assert mathqa.DATASET.sources == (mathqa.ARCHIVE,)
    assert "Amini et al. 2019" in mathqa.DATASET.licence
    assert sum(mathqa.NUM_ROWS.values()) == 37_297
    for source in (mathqa.ARCHIVE, mathqa.GLOVE, *mathqa.FILTERED.values(), *mathqa.GLOVE_CUT.values()):
        assert re.fullmatch(r"[0-9a-f]{64}", source.sha256)
        assert source.url.startswith("https://")


# --- the official archive ---


def put_archive(mirror: Path, monkeypatch: pytest.MonkeyPatch, body: bytes) -> Path:
    path = mirror / "mathqa" / "MathQA.zip"
    path.write_bytes(body)
    monkeypatch.setattr(mathqa, "ARCHIVE", believed(mathqa.ARCHIVE, body))
    monkeypatch.setattr(mathqa, "NUM_ROWS", {"train": 3, "dev": 2, "test": 1})
    return path


@pytest.mark.parametrize("prefix", ["", "MathQA/"])
def test_rows_of_the_archive(mirror: Path, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    files = {
        f"{prefix}{split}.json": json.dumps(ROWS[:size]) for split, size in (("train", 3), ("dev", 2), ("test", 1))
    }
    ghosts = {f"__MACOSX/{prefix}{split}.json": b"\0\5\x16\7" for split in ("train", "dev", "test")}
    other = {f"{prefix}challenge_test.json": "[]", f"{prefix}._dev.json": "x"}
    put_archive(mirror, monkeypatch, packed(ghosts | other | files))
    assert mathqa.official_rows("train") == ROWS
    assert mathqa.official_rows("dev") == ROWS[:2]
    assert mathqa.official_rows("test") == ROWS[:1]


@pytest.mark.parametrize("size", [0, 1, 3])
def test_another_number_of_rows(mirror: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    path = put_archive(mirror, monkeypatch, packed({"dev.json": json.dumps(ROWS[:size])}))
    with pytest.raises(UserError) as caught:
        mathqa.official_rows("dev")
    one_line(caught, f"{path} has {size} rows of dev in place of 2: remove it and run again")


WHOLE = packed({"dev.json": json.dumps(ROWS[:2])})
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "no archive": b"hello",
    "cut short": WHOLE[:-30],
    "half": WHOLE[: len(WHOLE) // 2],
    "other bytes": WHOLE[:50] + bytes(20) + WHOLE[70:],
    "an empty archive": packed({}),
    "no such file": packed({"train.json": "[]"}),
    "only the ghost": packed({"__MACOSX/dev.json": "[]"}),
    "no JSON": packed({"dev.json": "[{"}),
    "not UTF-8": packed({"dev.json": b"\xff\xff\xff\xff["}),
    "an object": packed({"dev.json": '{"a": 1, "b": 2}'}),
    "a number": packed({"dev.json": "2"}),
    "a text": packed({"dev.json": '"ab"'}),
    "too deep": packed({"dev.json": "[" * 100_000}),
    "too many digits": packed({"dev.json": f"[{'1' * 5000}, 1]"}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_archive_that_cannot_be_read(mirror: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    path = put_archive(mirror, monkeypatch, BROKEN[case])
    with pytest.raises(UserError) as caught:
        mathqa.official_rows("dev")
    one_line(caught, f"{path} is damaged (", "): remove it and run again")


@FUZZ
@given(data=st.data())
def test_garbled_archives_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, mirror: Path, data: st.DataObject
) -> None:
    body = bytearray(
        data.draw(st.sampled_from([WHOLE, packed({"dev.json": json.dumps(ROWS[:2])}, zipfile.ZIP_STORED)]))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.one_of(st.just(len(body)), st.integers(0, len(body))))]
    path = tmp_path_factory.mktemp("garbled") / "MathQA.zip"
    path.write_bytes(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mathqa, "NUM_ROWS", {"dev": 2})
        patch.setattr(mathqa, "fetch", lambda source: path)
        try:
            rows = mathqa.official_rows("dev")
        except UserError as error:
            refusal = str(error)
        else:
            assert len(rows) == 2
            return
    assert refusal.isprintable()


def test_an_altered_archive_is_refused_by_its_digest(
    mirror: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = mirror / "mathqa" / "MathQA.zip"
    path.write_bytes(WHOLE)
    with pytest.raises(UserError) as caught:
        mathqa.official_rows("dev")
    one_line(caught, "mathqa/MathQA.zip cannot be fetched")
    assert f"{path} is not the published file" in caplog.text


# --- the split as it was handed out ---


def put_copies(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = {split: f'[{{"split": "{split}"}}]'.encode() for split in mathqa.FILTERED}
    for split, body in bodies.items():
        (mirror / "mathqa" / f"{split}.json").write_bytes(body)
    changed = {split: believed(source, bodies[split]) for split, source in mathqa.FILTERED.items()}
    monkeypatch.setattr(mathqa, "FILTERED", changed)


def test_copies_in_the_mirror_are_used_where_they_lie(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mathqa.filtered_copies() is None
    put_copies(mirror, monkeypatch)
    for _ in range(2):
        assert mathqa.filtered_copies() == {
            split: mirror / "mathqa" / f"{split}.json" for split in ("train", "dev", "test")
        }
    (mirror / "mathqa" / "dev.json").unlink()
    assert mathqa.filtered_copies() is None


@pytest.mark.parametrize("known", [False, True])
def test_altered_copies_are_passed_over_and_no_server_is_asked(
    mirror: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    put_copies(mirror, monkeypatch)
    if known:
        assert mathqa.filtered_copies() is not None
    (mirror / "mathqa" / "dev.json").write_bytes(b'[{"split": "DEV"}]')
    monkeypatch.setattr("etude.data.fetch._download", never)
    for _ in range(2):
        assert mathqa.filtered_copies() is None


@pytest.mark.real_data
def test_the_real_copies(real_mirror: Path) -> None:
    copies = mathqa.filtered_copies()
    assert copies == {split: real_mirror / "mathqa" / f"{split}.json" for split in ("train", "dev", "test")}


# --- GloVe ---

VECTORS: dict[str, list[float]] = {
    "the": [0.5, -1.25],
    ",": [2.0, 0.0],
    "caf\u00e9": [-3.0, 4.5],
    "n't": [0.125, 1e-3],
}


def glove_text(dim: int, vectors: Mapping[str, Sequence[float]] = VECTORS) -> str:
    """The file for one length: the numbers above, repeated."""
    lines = [f"{word} {' '.join(f'{number:.5f}' for number in numbers)}" for word, numbers in vectors.items()]
    return "".join(f"{line.split(' ')[0]} {' '.join((line.split(' ')[1:] * dim)[:dim])}\n" for line in lines)


def put_glove(mirror: Path, monkeypatch: pytest.MonkeyPatch, body: bytes | None = None) -> Path:
    path = mirror / "glove" / "glove.6B.zip"
    made = packed({f"glove.6B.{dim}d.txt": glove_text(dim) for dim in (50, 100, 200, 300)}) if body is None else body
    path.write_bytes(made)
    monkeypatch.setattr(mathqa, "GLOVE", believed(mathqa.GLOVE, made))
    return path


def expected(word: str, dim: int) -> np.ndarray:
    return np.array((VECTORS.get(word, [0.0, 0.0]) * dim)[:dim], np.float32)


@pytest.mark.parametrize("dim", [50, 100, 200, 300])
def test_vectors_are_cut_out_of_the_archive(mirror: Path, monkeypatch: pytest.MonkeyPatch, dim: int) -> None:
    put_glove(mirror, monkeypatch)
    words = ["n't", "nowhere", "the", "caf\u00e9", "The", ","]
    vectors_WD, found_W, name = mathqa.glove(words, dim)
    assert name == "glove.6B.zip"
    assert vectors_WD.dtype == np.float32
    assert found_W.dtype == np.bool_
    assert vectors_WD.shape == (6, dim)
    assert found_W.tolist() == [True, False, True, True, False, True]
    for row, word in enumerate(words):
        np.testing.assert_array_equal(vectors_WD[row], expected(word, dim))


def test_the_archive_is_read_once_for_a_list_of_words(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put_glove(mirror, monkeypatch)
    first = mathqa.glove(["the", "nowhere"], 50)
    assert len(list((tmp_path / "cache" / "glove" / "decoded").glob("*.npy"))) == 1
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(mathqa, "_read", never)
        patch.setattr(mathqa, "fetch", never)
        again = mathqa.glove(["the", "nowhere"], 50)
    np.testing.assert_array_equal(again[0], first[0])
    np.testing.assert_array_equal(again[1], first[1])
    assert again[2] == first[2] == "glove.6B.zip"


@pytest.mark.parametrize(("words", "dim"), [(["nowhere", "the"], 50), (["the"], 50), (["the", "nowhere"], 100)])
def test_other_words_and_lengths_are_other_cuts(
    mirror: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], dim: int
) -> None:
    put_glove(mirror, monkeypatch)
    mathqa.glove(["the", "nowhere"], 50)
    vectors_WD, found_W, _ = mathqa.glove(words, dim)
    assert found_W.tolist() == [word == "the" for word in words]
    np.testing.assert_array_equal(vectors_WD, [expected(word, dim) for word in words])


def test_a_word_asked_for_twice_and_no_word_at_all(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_glove(mirror, monkeypatch)
    vectors_WD, found_W, _ = mathqa.glove(["the", "x", "the"], 50)
    assert found_W.tolist() == [True, False, True]
    np.testing.assert_array_equal(vectors_WD, [expected(word, 50) for word in ("the", "x", "the")])
    vectors_WD, found_W, _ = mathqa.glove([], 50)
    assert vectors_WD.shape == (0, 50)
    assert found_W.shape == (0,)


@pytest.mark.parametrize("dim", [-50, 0, 1, 51, 150, 301])
def test_lengths_that_glove_does_not_have(mirror: Path, monkeypatch: pytest.MonkeyPatch, dim: int) -> None:
    monkeypatch.setattr(mathqa, "fetch", never)
    with pytest.raises(UserError) as caught:
        mathqa.glove(["the"], dim)
    one_line(caught, f"vectors of 50, 100, 200 and 300 numbers, not of {dim}")


def broken_glove() -> dict[str, bytes]:
    name, text = "glove.6B.50d.txt", glove_text(50)
    whole = packed({name: text})
    return {
        "empty": b"",
        "no archive": b"hello",
        "cut short": whole[:-30],
        "other bytes": whole[:60] + bytes(20) + whole[80:],
        "no such file": packed({"glove.6B.100d.txt": text}),
        "too few numbers": packed({name: text.replace(" 0.50000", "", 1)}),
        "one number": packed({name: "the 1.0\n"}),
        "no number": packed({name: "the \n"}),
        "too many numbers": packed({name: text.replace("the ", "the 1.0 ", 1)}),
        "a word for a number": packed({name: text.replace("0.50000", "half", 1)}),
        "not UTF-8": packed({name: b"\xff\xfe " + text.encode()}),
    }


@pytest.mark.parametrize("case", broken_glove())
def test_an_archive_that_is_not_gloves(
    mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    path = put_glove(mirror, monkeypatch, broken_glove()[case])
    with pytest.raises(UserError) as caught:
        mathqa.glove(["the"], 50)
    one_line(caught, f"{path} is damaged (", "): remove it and run again")
    assert not list((tmp_path / "cache").rglob("*.np?")), "nothing of a broken archive is kept"


def test_no_glove_at_all_is_one_line(mirror: Path) -> None:
    with pytest.raises(UserError) as caught:
        mathqa.glove(["the"], 50)
    one_line(caught, "glove/glove.6B.zip cannot be fetched")


def put_cut(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = mirror / "glove" / "glove.6B.50d.mathqa.npz"
    np.savez(
        path, words=np.array(["a", "the"]), vectors=np.stack([np.full(50, 9), np.full(50, 0.5)]).astype(np.float16)
    )
    changed = mathqa.GLOVE_CUT | {50: believed(mathqa.GLOVE_CUT[50], path.read_bytes())}
    monkeypatch.setattr(mathqa, "GLOVE_CUT", changed)
    return path


def test_a_mirrors_cut_comes_before_the_archive(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_cut(mirror, monkeypatch)
    put_glove(mirror, monkeypatch)
    for _ in range(2):
        vectors_WD, found_W, name = mathqa.glove(["the", "nowhere", "the", "a"], 50)
        assert name == "glove.6B.50d.mathqa.npz"
        assert vectors_WD.dtype == np.float32
        assert found_W.tolist() == [True, False, True, True]
        np.testing.assert_array_equal(vectors_WD[:, 0], [0.5, 0.0, 0.5, 9.0])
    assert mathqa.glove(["the"], 100)[2] == "glove.6B.zip"
    assert mathqa.glove([], 50)[0].shape == (0, 50)


def test_an_altered_cut_is_passed_over(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put_cut(mirror, monkeypatch)
    put_glove(mirror, monkeypatch)
    path.write_bytes(path.read_bytes() + b"\0")
    for words in (["the"], ["a"]):
        assert mathqa.glove(words, 50)[2] == "glove.6B.zip"


@pytest.mark.real_data
def test_the_real_cut_has_the_published_numbers(real_mirror: Path) -> None:
    published: dict[int, list[float]] = {
        50: [0.418, 0.24968, -0.41242, 0.1217, 0.34527, -0.044457],
        100: [-0.038194, -0.24487, 0.72812, -0.39961, 0.083172, 0.043953],
    }
    for dim, begins in published.items():
        vectors_WD, found_W, name = mathqa.glove(["qqqqzzzz", "the", "percent"], dim)
        assert name == f"glove.6B.{dim}d.mathqa.npz"
        assert vectors_WD.shape == (3, dim)
        assert vectors_WD.dtype == np.float32
        assert found_W.tolist() == [False, True, True]
        assert not vectors_WD[0].any()
        np.testing.assert_allclose(vectors_WD[1, :6], begins, rtol=1e-3)


@pytest.mark.real_data
def test_the_real_cut_has_most_words_of_the_problems(real_mirror: Path) -> None:
    rows: list[dict[str, Any]] = json.loads((real_mirror / "mathqa" / "dev.json").read_text())
    words = sorted({word for row in rows for word in row["Problem"].split()})
    found_W = mathqa.glove(words, 50)[1]
    assert found_W.mean() > 0.85
    assert status(mathqa.GLOVE_CUT[50]) == "verified"
    assert fetch(mathqa.GLOVE_CUT[50]).parent == real_mirror / "glove"
