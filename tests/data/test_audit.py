"""The audit of a data set: what is equal and nearly equal across its splits and classes, by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from etude.cli import main
from etude.core.errors import UserError
from etude.data.audit import Finding, audit, findings, picture, problem


def drawn(seed: int) -> np.ndarray:
    """A smooth picture of its own: a coarse grid of colours, enlarged."""
    grid = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(grid).resize((64, 64), Image.Resampling.BICUBIC))


def of(rows: list[Finding], what: str, items: str, among: str) -> Finding:
    (row,) = (row for row in rows if (row.what, row.items, row.among) == (what, items, among))
    return row


def test_problems_are_equal_where_only_their_numbers_differ():
    rows = findings(
        [
            problem("a", "train", "if 3 men eat 12.5 apples , how many in 7 days"),
            problem("b", "train", "what is 2 % of 1,000"),
            problem("c", "test", "If 4 men eat 1 apples , how many in 30 days"),
            problem("d", "test", "what is 2 % of the sum"),
        ]
    )
    assert of(rows, "equal", "test", "train") == Finding("equal", "test", "train", 1, 2, 50.0, "c = a")
    assert of(rows, "equal", "train", "itself").count == 0
    assert {row.what for row in rows} == {"equal"}


def test_pictures_are_equal_by_their_pixels_and_nearly_by_what_they_show():
    one = drawn(0)
    saved = np.clip(one.astype(int) + np.random.default_rng(1).integers(-6, 7, one.shape), 0, 255).astype(np.uint8)
    smaller = np.asarray(Image.fromarray(one).resize((48, 48), Image.Resampling.BICUBIC))
    rows = findings(
        [
            picture("one", "train", "owl", one),
            picture("two", "train", "owl", drawn(2)),
            picture("copy", "test", "owl", one.copy()),
            picture("saved", "test", "owl", saved),
            picture("smaller", "test", "eagle", smaller),
            picture("other", "test", "eagle", drawn(3)),
        ]
    )
    assert of(rows, "equal", "test", "train") == Finding("equal", "test", "train", 1, 4, 25.0, "copy = one")
    near = of(rows, "nearly equal", "test", "train")
    assert (near.count, near.of, near.example) == (2, 4, "saved = one")
    assert of(rows, "equal", "all", "another class").count == 0
    # The small one, and the three of the other class that it resembles.
    assert of(rows, "nearly equal", "all", "another class").count == 4


def test_one_picture_in_two_classes_is_found():
    rows = findings(
        [picture("a/1", "", "a", drawn(0)), picture("b/1", "", "b", drawn(0)), picture("b/2", "", "b", drawn(1))]
    )
    found = of(rows, "equal", "all", "another class")
    assert (found.count, found.of, found.example) == (2, 3, "a/1 = b/1")
    assert of(rows, "equal", "all", "itself").count == 2


def test_a_folder_of_classes_and_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    for split, name, seed in (("train", "a", 0), ("train", "b", 1), ("test", "a", 0), ("test", "b", 2)):
        (tmp_path / split / name).mkdir(parents=True)
        Image.fromarray(drawn(seed)).save(tmp_path / split / name / "1.png")
    (tmp_path / "test" / "b" / "broken.png").write_bytes(b"x")
    assert main(["data", "audit", str(tmp_path), "--json"]) == 0
    said = capsys.readouterr()
    rows = json.loads(said.out)
    (leak,) = (row for row in rows if (row["what"], row["items"], row["among"]) == ("equal", "test", "train"))
    assert (leak["count"], leak["of"], leak["share"]) == (1, 2, 50.0)
    assert (leak["example"].split(" = ")) == ["test/a/1.png", "train/a/1.png"]
    assert "broken.png is not an image" in caplog.text


def test_a_folder_of_problems(tmp_path: Path):
    for split, text in (("train", "add 1 and 2"), ("test", "add 30 and 4")):
        (tmp_path / f"{split}.json").write_text(json.dumps([{"Problem": text}]))
    (tmp_path / "._test.json").write_bytes(b"what macOS leaves")
    assert of(audit(str(tmp_path)), "equal", "test", "train").share == 100.0


@pytest.mark.parametrize(("body", "says"), [("{", "no list of problems"), ('[{"text": 1}]', "field Problem")])
def test_no_problems_is_one_line(tmp_path: Path, body: str, says: str):
    (tmp_path / "train.json").write_text(body)
    with pytest.raises(UserError, match=says):
        audit(str(tmp_path))


def test_what_cannot_be_audited_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for words, says in (
        ([str(tmp_path / "none")], "does not exist"),
        (["clevrtex"], "give its folder"),
        ([], "name what is audited"),
    ):
        assert main(["data", "audit", *words]) == 2
        said = capsys.readouterr().err
        assert says in said
        assert said.count("\n") == 1


@pytest.mark.real_data
def test_three_of_four_texts_of_the_test_split_are_in_training(real_mnist: Path):
    """1,384 of 1,925, counted by a script of its own before this was written."""
    assert of(audit("mathqa"), "equal", "test", "train").count == 1384
