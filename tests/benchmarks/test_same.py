"""benchmarks/same.py: what it compares, and that it finds what two small trees give differently."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks import same
from etude import registry
from etude.cli import VERBS

TREE = """
import sys
from pathlib import Path
Path("left.json").write_text('{"seconds": 1, "value": 1}')
print("one", *sys.argv[1:])
sys.exit(len(sys.argv) - 1)
"""


def tree(place: Path, text: str) -> Path:
    (place / "src" / "etude").mkdir(parents=True)
    (place / "src" / "etude" / "__main__.py").write_text(text)
    (place / "src" / "etude" / "__init__.py").touch()
    return place


def test_one_row_more_is_one_rows_lines():
    rows = [{"value": 1, "of": {"name": "a"}}, {"value": 2, "of": {"name": "b"}}]
    old, new = same.told(json.dumps(rows[1:])), same.told(json.dumps(rows))
    assert list(same.differences("x", old, new)) == ['x | + [].of.name: "a"', "x | + [].value: 1"]
    assert list(same.differences("x", new, new)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('{"train_seconds": 1.5}', '{"train_seconds": 2.5}'),
        ("made 2026-01-01 10:11:12 by " + "a" * 40, "made 2027-01-01 10:11:13 by " + "b" * 40 + "+changes"),
        ("- training time: 0.1 minutes; peak memory 1,019 MB", "- training time: 0.2 minutes; peak memory 999 MB"),
    ],
)
def test_times_are_masked(old: str, new: str):
    assert same.told(old) == same.told(new)


def test_of_a_help_the_wording_is_free_and_the_flags_are_not():
    text = "usage: etude x [-h] STR\n\nWords.\n\n options\n ----\n  --out {None}|PATH\n       Where. (default: None)\n"
    assert same.flags(text) == ["usage: etude x [-h] STR", "--out {None}|PATH (default: None)"]
    assert same.flags(text) == same.flags(text.replace("Where.", "The place,\n       as --so says."))
    for word, other in (("PATH", "STR"), ("default: None", "default: x"), ("--out", "--to")):
        assert same.flags(text) != same.flags(text.replace(word, other))


def test_weights_are_compared_bit_for_bit_with_their_header(tmp_path: Path):
    def lines(value: float, study: str) -> list[str]:
        save_file({"w": torch.tensor([value])}, tmp_path / "w.safetensors", {"etude": json.dumps({"study": study})})
        return same.content(tmp_path / "w.safetensors")

    first, second, third = lines(1.0, "a"), lines(1.0 + 2**-23, "a"), lines(1.0, "b")
    assert first == lines(1.0, "a")
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, False]
    assert [a == b for a, b in zip(first, third, strict=True)] == [False, True, False]


def test_pictures_are_compared_by_their_pixels_and_drawn_ones_are_not(tmp_path: Path):
    (tmp_path / "figures").mkdir()
    for name, colour in (("a.png", 1), ("b.png", 2), ("figures/c.png", 3)):
        Image.new("L", (4, 4), colour).save(tmp_path / name)
    assert same.content(tmp_path / "a.png") != same.content(tmp_path / "b.png")
    assert same.content(tmp_path / "figures" / "c.png") == []


def test_all_verbs_and_studies_are_asked():
    assert set(same.VERBS.split()) <= set(VERBS)
    assert set(same.PREDICTED) == set(registry.NAMES)
    presets = {name: list(registry.load(name).presets) for name in registry.NAMES}
    for study, preset in same.TRAINED:
        assert preset in presets[study]
    for group in same.GROUPS:
        asked = same.commands(group, presets)
        assert len(set(asked)) == len(asked) > 3, group


def test_what_differs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    old = tree(tmp_path / "old", TREE)
    new = tree(tmp_path / "new", TREE.replace('"one"', '"two"').replace('"value": 1', '"value": 2'))
    for side in (old, new):
        (side / "pyproject.toml").touch()
    found = [
        same.ask(side, ["", "a b"], tmp_path / f"left{number}", {}, tmp_path, outside=())
        for number, side in enumerate((old, old, new))
    ]
    assert [status for status, *_ in found[0].answers] == [0, 2]
    assert list(same.compared("words", ["", "a b"], found[0], found[1])) == []
    differ = list(same.compared("words", ["", "a b"], found[1], found[2]))
    assert differ[:2] == ["etude  | out | - one", "etude  | out | + two"]
    assert differ[-2:] == ["words | left.json | - value: 1", "words | left.json | + value: 2"]
    assert same.tell(differ, 1) == 1
    assert "and 1 lines more" in capsys.readouterr().out
    assert same.tell([], 1) == 0


def test_a_folder_that_is_no_checkout_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        same.main([str(tmp_path), "--keep", str(tmp_path)])
    assert str(tmp_path) in capsys.readouterr().err
