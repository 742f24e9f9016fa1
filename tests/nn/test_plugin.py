"""Parts given as path/to/file.py:Name."""

from pathlib import Path

import pytest

from etude.core.errors import UserError
from etude.nn.plugin import resolve

BUILTIN = {"euclidean": 1, "cosine": 2}


def test_a_builtin_name():
    assert resolve("cosine", BUILTIN, "distance") == 2


def test_a_file_of_the_user(tmp_path: Path):
    (tmp_path / "mine.py").write_text("def twice(x):\n    return 2 * x\n")
    assert resolve(f"{tmp_path}/mine.py:twice", {}, "distance")(21) == 42


def test_a_path_with_a_colon(tmp_path: Path):
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "mine.py").write_text("ONE = 1\n")
    assert resolve(f"{folder}/mine.py:ONE", BUILTIN, "distance") == 1


def test_two_files_of_one_name(tmp_path: Path):
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "mine.py").write_text(f"NUMBER = {number}\n")
    assert [resolve(f"{tmp_path}/{n}/mine.py:NUMBER", BUILTIN, "distance") for n in (1, 2)] == [1, 2]


def test_a_file_with_postponed_annotations_and_a_dataclass(tmp_path: Path):
    """Dataclasses look their module up by name where annotations are strings."""
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n\n\n"
        "@dataclass\nclass Mine:\n    x: int = 3\n"
    )
    assert resolve(f"{tmp_path}/mine.py:Mine", {}, "encoder")().x == 3


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("cosin", r"no distance 'cosin'; did you mean 'cosine'\? .*path/to/file\.py:Name"),
        ("mine.txt:Name", "no distance 'mine.txt:Name'"),
        ("{}/none.py:Name", "no file .*none.py for the distance"),
        ("{}/good.py:Twise", r"good\.py has no 'Twise'; did you mean 'Twice'\?"),
        ("{}/good.py:", "good.py has no ''"),
        ("{}/raises.py:Name", "raises.py fails on import: ZeroDivisionError: division by zero"),
        ("{}/syntax.py:Name", "syntax.py fails on import: SyntaxError"),
        ("{}/missing.py:Name", "missing.py fails on import: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("{}/leaves.py:Name", "leaves.py fails on import: SystemExit"),
    ],
)
def test_a_fault_is_one_line(tmp_path: Path, spec: str, said: str):
    (tmp_path / "good.py").write_text("def Twice(x):\n    return x\n")
    (tmp_path / "raises.py").write_text("1 / 0\n")
    (tmp_path / "syntax.py").write_text("def (\n")
    (tmp_path / "missing.py").write_text("import nowhere_at_all\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(UserError, match=said) as caught:
        resolve(spec.format(tmp_path), BUILTIN, "distance")
    assert "\n" not in str(caught.value)
