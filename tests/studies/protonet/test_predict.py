"""`etude predict` on a user's own pictures: right answers, and every fault as one line that overwrites nothing."""

import contextlib
import copy
import dataclasses
import io
import json
import pickle
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.studies.conftest import Answer

from etude.core.checkpoint import WeightsHeader, load_weights, save_weights
from etude.core.config import override, to_dict
from etude.core.run_folder import RunFolder, RunRecord
from etude.core.runtime import Runtime
from etude.data.strokes import strokes
from etude.studies.protonet.predict import Options, prepare
from etude.studies.protonet.study import smoke
from etude.studies.protonet.task import ProtonetTask

Etude = Callable[..., Answer]
CLASSES = ("alpha", "beta", "gamma", "delta", "eta")
SHOTS = 5


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network, trained for seconds on the generated twin."""
    config = override(smoke(), {"loop.max_steps": 120, "optim.lr": 4e-3, "optim.schedule": "linear"})
    task = ProtonetTask(config, Runtime(config.loop, config.seed))
    for step in range(config.loop.max_steps):
        task.train_step(step)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(path, task.modules, WeightsHeader("protonet", to_dict(config), task.finish()))
    return path


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights, without thresholds."""
    config = override(smoke(), {"seed": 7})
    task = ProtonetTask(config, Runtime(config.loop, config.seed))
    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    save_weights(path, task.modules, WeightsHeader("protonet", to_dict(config), {}))
    return path


def saved(ink_HW: np.ndarray, path: Path, number: int) -> None:
    """A drawing as somebody's file: its size, format, paper and ink differ by ``number``."""
    size = (40, 57, 90, 120)[number % 4]
    ink = np.asarray(Image.fromarray(ink_HW).resize((size, size), Image.Resampling.BILINEAR), np.float64) / 255
    if number % 3 == 1:
        ink = np.pad(ink, ((0, 0), (9, 14)))
    paper, pen = ((255, 0), (0, 255), (225, 40), (12, 200))[number % 4]
    grey = (paper + (pen - paper) * ink).round().astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(grey)
    if number % 2:
        image.save(path.with_suffix(".png"))
    else:
        image.convert("RGB").save(path.with_suffix(".jpg"), quality=92)


class Pictures(NamedTuple):
    support: Path
    queries: Path
    strangers: Path


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    drawn = strokes(8, 12, 60, seed=11)
    for c, name in enumerate(CLASSES):
        for n in range(12):
            place = folder / "support" / name if n < SHOTS else folder / "queries"
            saved(drawn[c, n], place / f"{name}-{n}", n + c)
    for c in range(5, 8):
        for n in range(6):
            saved(drawn[c, n], folder / "strangers" / f"{c}-{n}", n)
    return folder


@pytest.fixture
def pictures(originals: Path, tmp_path: Path) -> Pictures:
    """A copy that a test may spoil."""
    shutil.copytree(originals, tmp_path / "pictures")
    return Pictures(*(tmp_path / "pictures" / name for name in Pictures._fields))


def refused(answer: Answer, *parts: str) -> None:
    """Exactly one line that says what is wrong, and exit status 2."""
    assert answer.status == 2, answer
    assert answer.out == ""
    assert answer.err.endswith("\n")
    assert answer.err.count("\n") == 1, answer.err
    assert answer.err.startswith("etude: ")
    for part in parts:
        assert part in answer.err, answer.err


def share_right(found: list[dict]) -> float:
    return float(np.mean([Path(row["query"]).stem.split("-")[0] == row["label"] for row in found]))


# --- pictures that it answers ---


def test_pictures_of_any_size_format_and_polarity(weights: Path, pictures: Pictures, rows: Callable) -> None:
    found = rows(weights, pictures.queries, "--support", pictures.support)
    assert len(found) == 7 * len(CLASSES)
    assert {Path(row["query"]).suffix for row in found} == {".png", ".jpg"}
    assert share_right(found) > 0.75
    for row in found:
        assert set(row["distances"]) == set(CLASSES)
        assert row["distance"] == min(row["distances"].values()) == row["distances"][row["label"]]
        exponents = np.exp(row["distance"] - np.array(list(row["distances"].values())))
        assert row["probability"] == pytest.approx(1 / exponents.sum(), rel=1e-4)


def test_answers_come_in_the_order_of_the_queries(weights: Path, pictures: Pictures, rows: Callable) -> None:
    files = sorted(pictures.queries.iterdir(), reverse=True)[:5]
    found = rows(weights, *files, "--support", pictures.support)
    assert [row["query"] for row in found] == [str(path) for path in files]
    both = rows(weights, files[0], pictures.queries, "--support", pictures.support)
    assert [row["query"] for row in both] == [str(files[0]), *map(str, sorted(pictures.queries.iterdir()))]
    # Alone or among others, a picture has the same answer.
    alone = next(row for row in both[1:] if row["query"] == str(files[0]))
    assert found[0]["distance"] == pytest.approx(alone["distance"], rel=1e-4)


def test_a_table_for_eyes(weights: Path, pictures: Pictures, etude: Etude) -> None:
    answer = etude("predict", weights, pictures.queries, "--support", pictures.support)
    assert (answer.status, answer.err) == (0, "")
    header, *lines = answer.out.splitlines()
    assert header.split() == ["query", "label", "probability", "distance"]
    assert len(lines) == 35
    assert all(any(name in line for name in CLASSES) for line in lines)


def test_names_are_printed_as_they_are(weights: Path, pictures: Pictures, etude: Etude) -> None:
    # What the table's library would take for its own marks.
    names = ("[b]", "[red]", "Σίγμα ☺", "two words", "%s {0}")
    for old, new in zip(CLASSES, names, strict=True):
        (pictures.support / old).rename(pictures.support / new)
    folder = pictures.queries.parent / "["
    pictures.queries.rename(folder)
    next(folder.glob("eta*")).rename(folder / "oops].png")
    answer = etude("predict", weights, folder, "--support", pictures.support)
    assert (answer.status, answer.err) == (0, "")
    for name in (*names, "[/oops].png"):
        assert name in answer.out


def test_one_picture_a_class_is_enough(weights: Path, pictures: Pictures, rows: Callable) -> None:
    for folder in pictures.support.iterdir():
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    found = rows(weights, pictures.queries, "--support", pictures.support)
    assert len(found) == 35
    assert share_right(found) > 0.4


def test_a_support_picture_of_one_shot_is_at_no_distance(weights: Path, pictures: Pictures, rows: Callable) -> None:
    for folder in pictures.support.iterdir():
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    queries = sorted(pictures.support.glob("*/*"))
    found = rows(weights, *queries, "--support", pictures.support)
    assert [row["label"] for row in found] == [path.parent.name for path in queries]
    assert all(row["distance"] < 1e-3 for row in found)


def test_a_few_pictures_of_every_mode_work(weights: Path, pictures: Pictures, rows: Callable) -> None:
    ink = strokes(1, 1, 64, seed=11)[0, 0]
    dark = 255 - ink
    black = np.zeros((64, 64, 3), np.uint8)
    images = {
        "grey.png": Image.fromarray(dark),
        "wide.png": Image.fromarray(dark.astype(np.uint16) * 257),
        "rgba.png": Image.fromarray(np.dstack([black, ink])),
        "la.png": Image.fromarray(np.dstack([black[..., 0], ink])),
        "palette.gif": Image.fromarray(dark),
        "page.tif": Image.fromarray(dark),
        "light.webp": Image.fromarray(np.dstack([ink] * 3)),
        "light.bmp": Image.fromarray(ink),
    }
    folder = pictures.queries.parent / "modes"
    folder.mkdir()
    for name, image in images.items():
        image.save(folder / name, lossless=True)
    found = rows(weights, folder, "--support", pictures.support)
    assert len(found) == len(images)
    # One drawing in eight files has one answer.
    assert {row["label"] for row in found} == {"alpha"}
    distances = [row["distance"] for row in found]
    assert max(distances) - min(distances) < 0.05 * max(distances)


def test_a_blank_page_is_answered(weights: Path, pictures: Pictures, rows: Callable) -> None:
    for number, value in enumerate((0, 128, 255)):
        Image.new("L", (50, 30), value).save(pictures.queries / f"blank-{number}.png")
    found = rows(weights, *sorted(pictures.queries.glob("blank*")), "--support", pictures.support)
    assert len({row["distance"] for row in found}) == 1
    assert all(np.isfinite(row["distance"]) for row in found)


def test_polarity_can_be_said(weights: Path, pictures: Pictures, rows: Callable, etude: Etude, tmp_path: Path) -> None:
    path = tmp_path / "prototypes.safetensors"
    etude("predict", weights, "--support", pictures.support, "--save-prototypes", path)
    for query in sorted(pictures.queries.iterdir())[:4]:
        border = np.asarray(Image.open(query).convert("L"))[0]
        true, false = ("dark", "light") if np.median(border) > 127 else ("light", "dark")
        distances = {
            word: rows(weights, query, "--prototypes", path, "--polarity", word)[0]["distance"]
            for word in ("auto", true, false)
        }
        assert distances["auto"] == distances[true] != distances[false]
    answer = etude("predict", weights, query, "--prototypes", path, "--polarity", "sepia")
    refused(answer, "--polarity is auto, dark or light, not 'sepia'")


# --- a picture as the network saw characters ---


@settings(max_examples=80, deadline=None, derandomize=True)
@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40)), st.integers(16, 32))
def test_any_picture_is_prepared(image: np.ndarray, size: int) -> None:
    for polarity in ("auto", "dark", "light"):
        prepared = prepare(image, size, polarity)
        assert (prepared.shape, prepared.dtype) == ((size, size), np.uint8)
        assert prepared.max() in (0, 255)


def test_ink_is_bright_whatever_the_paper() -> None:
    ink = strokes(1, 1, 28, seed=3)[0, 0]
    for paper, pen in ((255, 0), (0, 255), (200, 60), (30, 140)):
        grey = (paper + (pen - paper) * (ink / 255)).round().astype(np.uint8)
        prepared = prepare(grey, 28, "auto")
        # Faint ink has fewer greys.
        np.testing.assert_allclose(prepared, ink.astype(float), atol=2.5 * 255 / abs(pen - paper) + 1)
        assert prepared.max() == 255
        assert prepared[0, 0] == 0


# --- prototypes ---


def test_saved_prototypes_answer_as_their_support_did(
    weights: Path, pictures: Pictures, rows: Callable, etude: Etude, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "prototypes.safetensors"
    saving = rows(weights, pictures.queries, "--support", pictures.support, "--save-prototypes", path)
    shutil.rmtree(pictures.support)
    assert rows(weights, pictures.queries, "--prototypes", path) == saving
    assert load_file(path)["prototypes"].shape == (5, 16)


def test_prototypes_can_be_saved_without_a_query(
    weights: Path, pictures: Pictures, etude: Etude, rows: Callable, tmp_path: Path
) -> None:
    path = tmp_path / "prototypes.safetensors"
    answer = etude("predict", weights, "--support", pictures.support, "--save-prototypes", path)
    assert (answer.status, answer.out, answer.err) == (0, "", "")
    assert share_right(rows(weights, pictures.queries, "--prototypes", path)) > 0.75


def test_prototypes_of_other_weights_are_refused(
    weights: Path, untrained: Path, pictures: Pictures, etude: Etude, tmp_path: Path
) -> None:
    path = tmp_path / "prototypes.safetensors"
    assert etude("predict", weights, "--support", pictures.support, "--save-prototypes", path).status == 0
    refused(etude("predict", untrained, pictures.queries, "--prototypes", path), str(path), "made with other weights")


ABOUT = {"format": 1, "classes": ["a", "b"], "shots": [1, 1], "weights": "0" * 16}


@pytest.mark.parametrize(
    ("about", "shape", "fault"),
    [
        (None, (2, 16), "holds no prototypes of etude"),
        ("text", (2, 16), "holds no prototypes of etude"),
        ("[]", (2, 16), "holds no prototypes of etude"),
        ("3", (2, 16), "holds no prototypes of etude"),
        ("{}", (2, 16), "holds no prototypes of etude"),
        (json.dumps(ABOUT | {"shots": [1]}), (2, 16), "holds no prototypes of etude"),
        (json.dumps(ABOUT), (3, 16), "holds no prototypes of etude"),
        (json.dumps(ABOUT), (2,), "holds no prototypes of etude"),
        (json.dumps(ABOUT | {"format": 2}), (2, 16), "was written by a newer etude (format 2, "),
        (json.dumps(ABOUT), (2, 16), "made with other weights"),
    ],
)
def test_foreign_prototypes_are_refused(
    weights: Path, pictures: Pictures, etude: Etude, tmp_path: Path, about: str | None, shape: tuple, fault: str
) -> None:
    path = tmp_path / "foreign.safetensors"
    metadata = None if about is None else {"etude-prototypes": about}
    save_file({"prototypes": torch.zeros(shape)}, path, metadata=metadata)
    refused(etude("predict", weights, pictures.queries, "--prototypes", path), str(path), fault)


@pytest.mark.parametrize("body", [b"", b"text", b"\xff" * 100, b"PK\x03\x04" + b"x" * 60])
def test_files_that_are_no_prototypes_are_refused(
    weights: Path, pictures: Pictures, etude: Etude, tmp_path: Path, body: bytes
) -> None:
    path = tmp_path / "prototypes.safetensors"
    path.write_bytes(body)
    refused(etude("predict", weights, pictures.queries, "--prototypes", path), f"{path} holds no prototypes of etude")
    path.unlink()
    refused(etude("predict", weights, pictures.queries, "--prototypes", path), f"no prototypes at {path}")


# --- unknown classes ---


def test_strangers_are_unknown(weights: Path, pictures: Pictures, rows: Callable) -> None:
    def share_unknown(queries: Path, *flags: object) -> float:
        found = rows(weights, queries, "--support", pictures.support, *flags)
        return float(np.mean([row["label"] == "unknown" for row in found]))

    assert share_unknown(pictures.strangers) == 0
    known, strange = share_unknown(pictures.queries, "--unknown"), share_unknown(pictures.strangers, "--unknown")
    assert known < 0.3
    assert strange > known + 0.1
    assert share_unknown(pictures.strangers, "--threshold", 0) == 1
    assert share_unknown(pictures.strangers, "--unknown", "--threshold", 1e9) == 0


def test_a_threshold_splits_at_its_distance(weights: Path, pictures: Pictures, rows: Callable) -> None:
    ask = (weights, pictures.queries, "--support", pictures.support)
    distances = sorted(row["distance"] for row in rows(*ask))
    limit = (distances[9] + distances[10]) / 2
    found = rows(*ask, "--threshold", limit)
    assert sum(row["label"] != "unknown" for row in found) == 10
    assert all((row["label"] == "unknown") == (row["distance"] > limit) for row in found)
    assert all(row["label"] in {"unknown", min(row["distances"], key=row["distances"].get)} for row in found)


def test_weights_without_thresholds_say_so(untrained: Path, pictures: Pictures, etude: Etude, rows: Callable) -> None:
    ask = (untrained, pictures.queries, "--support", pictures.support)
    refused(etude("predict", *ask, "--unknown"), "carry no threshold", "--threshold")
    assert len(rows(*ask, "--threshold", 1.0)) == 35


# --- faults, each in one line ---


def test_a_support_is_read_as_any_folder_of_classes(
    weights: Path, pictures: Pictures, etude: Etude, caplog: Any
) -> None:
    support, words = pictures.support, (weights, pictures.queries, "--support")
    before = json.loads(etude("predict", *words, support, "--json").out)
    (support / "__MACOSX" / CLASSES[0]).mkdir(parents=True)
    (support / "__MACOSX" / CLASSES[0] / "._1.png").touch()
    for path in [*support.glob("*/*.jpg")]:
        path.rename(path.with_suffix(".jfif"))
    packed = shutil.make_archive(str(support), "zip", support)
    for place in (support, packed):
        found = json.loads(etude("predict", *words, place, "--json").out)
        assert found == before
    assert not caplog.records
    one, two = (next((support / name).glob("*.png")) for name in CLASSES[:2])
    shutil.copy(one, two.with_name("copy.png"))
    (support / CLASSES[0] / "phone.heic").touch()
    assert etude("predict", *words, support).status == 0
    assert "2 equal files in two classes" in caplog.text
    assert "phone.heic" in caplog.text
    (support / CLASSES[0] / "zz.png").symlink_to("/nowhere.png")
    refused(etude("predict", *words, support), "zz.png is a broken link")
    shutil.copytree(pictures.support, pictures.support.parent / "split" / "train", symlinks=True)
    shutil.copytree(pictures.support, pictures.support.parent / "split" / "test", symlinks=True)
    refused(etude("predict", *words, pictures.support.parent / "split"), "has the splits", "train")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """An older file where prototypes are to be saved; it must outlive every fault."""
    path = tmp_path / "kept.safetensors"
    path.write_bytes(b"older")
    return path


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


def spoil_empty(pictures: Pictures) -> str:
    shutil.rmtree(pictures.support)
    pictures.support.mkdir()
    return "support has no sub-folders: make one sub-folder a class"


def spoil_missing(pictures: Pictures) -> str:
    shutil.rmtree(pictures.support)
    return "support does not exist"


def spoil_flat(pictures: Pictures) -> str:
    shutil.rmtree(pictures.support)
    shutil.copytree(pictures.queries, pictures.support)
    return "support holds images but no sub-folders"


def spoil_file(pictures: Pictures) -> str:
    shutil.rmtree(pictures.support)
    pictures.support.touch()
    return "support is neither a folder nor a zip file"


def spoil_bare_class(pictures: Pictures) -> str:
    (pictures.support / "bare").mkdir()
    (pictures.support / "bare" / "notes.txt").touch()
    return "bare holds no image"


def spoil_one_class(pictures: Pictures) -> str:
    for name in CLASSES[1:]:
        shutil.rmtree(pictures.support / name)
    return "has only one class"


def spoil_corrupt(pictures: Pictures) -> str:
    path = next((pictures.support / "beta").glob("*.png"))
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 0xFF
    path.write_bytes(body)
    return f"{path.name} is damaged or cut short"


def spoil_truncated(pictures: Pictures) -> str:
    path = next((pictures.support / "beta").glob("*.jpg"))
    path.write_bytes(path.read_bytes()[:300])
    return f"{path.name} is "


def spoil_huge(pictures: Pictures) -> str:
    (pictures.support / "eta" / "huge.png").write_bytes(png_header(100_000, 100_000))
    return "huge.png has too many pixels: make it smaller"


def spoil_large(pictures: Pictures) -> str:
    (pictures.support / "eta" / "large.png").write_bytes(png_header(9000, 9000))
    return "large.png is 9000 x 9000 pixels, more than 64,000,000: make it smaller"


def spoil_text(pictures: Pictures) -> str:
    (pictures.support / "eta" / "words.png").write_text("not a picture\n" * 9)
    return "words.png is not an image of a known format"


def spoil_nothing_in_it(pictures: Pictures) -> str:
    (pictures.support / "eta" / "zero.png").touch()
    return "zero.png is empty"


def thin() -> bytes:
    to = io.BytesIO()
    Image.new("L", (65_600, 1)).save(to, "PNG")
    return to.getvalue()


def spoil_thin(pictures: Pictures) -> str:
    (pictures.support / "eta" / "thin.png").write_bytes(thin())
    return "too long and thin"


SPOILERS = [function for name, function in sorted(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda function: function.__name__.removeprefix("spoil_"))
def test_a_spoiled_support_is_one_line(
    weights: Path, pictures: Pictures, etude: Etude, kept: Path, spoil: Callable[[Pictures], str]
) -> None:
    fault = spoil(pictures)
    words = (weights, pictures.queries, "--support", pictures.support, "--save-prototypes", kept)
    refused(etude("predict", *words), fault)
    assert kept.read_bytes() == b"older"


@pytest.mark.parametrize(
    ("name", "body", "fault"),
    [
        ("none.png", None, "none.png does not exist: check the path"),
        ("words.png", b"not a picture", "words.png is not an image of a known format"),
        ("zero.png", b"", "zero.png is empty (0 bytes)"),
        ("cut.png", png_header(30, 30)[:-16], "cut.png is damaged or cut short"),
        ("huge.png", png_header(100_000, 100_000), "huge.png has too many pixels"),
        ("thin.png", thin(), "too long and thin"),
    ],
)
def test_a_spoiled_query_is_one_line(
    weights: Path, pictures: Pictures, etude: Etude, name: str, body: bytes | None, fault: str
) -> None:
    path = pictures.queries / name
    if body is not None:
        path.write_bytes(body)
    refused(etude("predict", weights, path, "--support", pictures.support), fault)
    for words in ((pictures.queries, path), (path, pictures.queries)):
        answer = etude("predict", weights, *words, "--support", pictures.support, "--json")
        assert answer.status == 1
        assert fault in answer.err
        found = json.loads(answer.out)
        assert [row["input"] for row in found if "input" in row] == [str(path)] * (1 if body is None else 2)
        assert sum("label" in row for row in found) == len(list(pictures.queries.glob("*"))) - (body is not None)


def test_words_that_do_not_go_together(weights: Path, pictures: Pictures, etude: Etude, kept: Path) -> None:
    query, support = pictures.queries, pictures.support
    empty = pictures.queries.parent / "empty"
    empty.mkdir()
    cases = [
        ([weights, query], "give either --support FOLDER"),
        ([weights, query, "--support", support, "--prototypes", kept], "give either --support FOLDER"),
        ([weights, query, "--prototypes", kept, "--save-prototypes", kept], "give --support FOLDER"),
        ([weights, "--support", support], "no pictures to classify"),
        ([weights, empty, "--support", support], "empty holds no image"),
        ([weights, query, "--support", support, "--max-pixels", "100"], "pixels, more than 100: make it smaller"),
        ([weights, query, "--suport", support], "--suport"),
        ([weights, query, "--support", support, "--threshold", "far"], "far"),
        ([weights, query, "--support"], "--support"),
        (["nowhere", query, "--support", support], "'nowhere' is no run folder, weights file or study"),
        ([pictures.queries, query, "--support", support], "is not a run folder"),
    ]
    for words, fault in cases:
        refused(etude("predict", *words), fault)
    assert kept.read_bytes() == b"older"


# --- weights that are not ours ---


class Payload:
    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple:
        return Path.touch, (self.sprung,)


@pytest.mark.parametrize("how", ["pickle", "torch", "old torch"])
def test_code_in_a_weights_file_is_not_run(pictures: Pictures, etude: Etude, tmp_path: Path, how: str) -> None:
    path, sprung = tmp_path / "model.safetensors", tmp_path / "sprung"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Payload(sprung)))
    else:
        torch.save({"weights": Payload(sprung)}, path, _use_new_zipfile_serialization=how == "torch")
    answer = etude("predict", path, pictures.queries, "--support", pictures.support)
    refused(answer, str(path), "pickle")
    assert not sprung.exists()
    # The trap does spring where a pickle is trusted.
    if how == "pickle":
        pickle.loads(path.read_bytes())
        assert sprung.exists()


def test_weights_of_another_study_are_refused(weights: Path, pictures: Pictures, etude: Etude, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    config = smoke()
    task = ProtonetTask(config, Runtime(config.loop, config.seed))
    save_weights(path, task.modules, WeightsHeader("dcgan-of-mine", to_dict(config), {}))
    refused(etude("predict", path, pictures.queries, "--support", pictures.support), "dcgan-of-mine")
    folder = tmp_path / "run"
    record = RunRecord("dcgan-of-mine", "smoke", "smoke", {}, to_dict(config))
    RunFolder.create(folder, record).checkpoints().save(1, task.modules, WeightsHeader("x", {}, {}), {})
    refused(etude("predict", folder, pictures.queries, "--support", pictures.support), "dcgan-of-mine")


@pytest.mark.parametrize("kept_bytes", [0, 3, 7, 8, 100, 5000, -1])
def test_truncated_weights_are_refused(
    weights: Path, pictures: Pictures, etude: Etude, tmp_path: Path, kept_bytes: int
) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(weights.read_bytes()[:kept_bytes])
    answer = etude("predict", path, pictures.queries, "--support", pictures.support)
    refused(answer, f"{path} is truncated or not a safetensors file")


def test_weights_of_another_width_or_no_header_are_refused(
    weights: Path, pictures: Pictures, etude: Etude, tmp_path: Path
) -> None:
    path = tmp_path / "odd.safetensors"
    config = smoke()
    task = ProtonetTask(config, Runtime(config.loop, config.seed))
    wider = to_dict(override(config, {"model.width": 32}))
    unknown = to_dict(config) | {"novelty": 1}
    cases = [(wider, "does not fit the network 'encoder'"), (unknown, "no setting 'novelty'"), ({}, str(path))]
    for about, fault in cases:
        save_weights(path, task.modules, WeightsHeader("protonet", about, {}))
        refused(etude("predict", path, pictures.queries, "--support", pictures.support), str(path), fault)
    save_file(load_file(weights), path)
    refused(etude("predict", path, pictures.queries, "--support", pictures.support), "was not written by etude")


def test_weights_and_runs_of_a_newer_etude_are_refused(
    weights: Path, pictures: Pictures, etude: Etude, tmp_path: Path
) -> None:
    header = {"format": 99, "study": "protonet", "config": to_dict(smoke()), "extra": {}}
    path = tmp_path / "newer.safetensors"
    save_file(load_file(weights), path, metadata={"etude": json.dumps(header)})
    ask = (pictures.queries, "--support", pictures.support)
    refused(etude("predict", path, *ask), "was written by a newer etude (format 99")
    folder = tmp_path / "run"
    RunFolder.create(folder, RunRecord("protonet", "smoke", "smoke", {}, to_dict(smoke())))
    refused(etude("predict", folder, *ask), "has no checkpoint yet")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("format: 1", "format: 99", 1))
    refused(etude("predict", folder, *ask), str(folder), "was written by a newer etude (format 99")


def test_a_run_folder_predicts_with_its_best_checkpoint(
    weights: Path, pictures: Pictures, etude: Etude, rows: Callable, tmp_path: Path
) -> None:
    config = smoke()
    task = ProtonetTask(config, Runtime(config.loop, config.seed))
    run = RunFolder.create(tmp_path / "run", RunRecord("protonet", "smoke", "smoke", {}, to_dict(config)))
    header = WeightsHeader("protonet", to_dict(config), {})
    checkpoints = run.checkpoints()
    untrained = copy.deepcopy(task.modules)
    load_weights(task.modules, load_file(weights), weights)
    checkpoints.save(20, task.modules, header, {})
    checkpoints.save(40, untrained, header, {})
    checkpoints.mark_best(20, "accuracy_20way", 50.0)
    ask = (pictures.queries, "--support", pictures.support)
    assert rows(run.path, *ask) == rows(weights, *ask)


# --- places that cannot be written ---


def test_a_place_below_a_file_or_a_folder_in_the_way(
    weights: Path, pictures: Pictures, etude: Etude, kept: Path
) -> None:
    for place in (kept / "below" / "prototypes.safetensors", pictures.support, kept.parent / ("x" * 300)):
        answer = etude("predict", weights, "--support", pictures.support, "--save-prototypes", place)
        refused(answer, str(place))
    assert kept.read_bytes() == b"older"
    assert len(list(pictures.support.iterdir())) == 5


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk without room, with an older file on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("a small disk cannot be mounted here")
    (folder / "prototypes.safetensors").write_bytes(b"older")
    # The last block may be written in part.
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"x" * 4096):
            pass
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_older_prototypes(
    weights: Path, pictures: Pictures, etude: Etude, full_disk: Path
) -> None:
    path = full_disk / "prototypes.safetensors"
    refused(
        etude("predict", weights, "--support", pictures.support, "--save-prototypes", path),
        "no room to write",
        str(path),
    )
    assert path.read_bytes() == b"older"
    assert sorted(entry.name for entry in full_disk.iterdir()) == ["filler", "prototypes.safetensors"]


# --- more than there is ---


def test_more_ways_than_classes_is_one_line(etude: Etude, tmp_path: Path) -> None:
    answer = etude("run", "protonet", "smoke", "--episodes.way", 1000, "--runs", tmp_path)
    assert answer.status == 2
    lines = [line for line in answer.err.splitlines() if line.startswith("etude: ")]
    assert lines == [answer.err.splitlines()[-1]]
    assert "1000 ways were asked for, and there are 128 classes: ask for fewer ways" in lines[0]
    assert "Traceback" not in answer.err


def test_options_are_documented() -> None:
    assert {field.name for field in dataclasses.fields(Options)} == {
        "queries", "support", "prototypes", "save_prototypes", "unknown", "threshold", "polarity", "max_pixels",
    }  # fmt: skip
