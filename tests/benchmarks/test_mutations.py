"""benchmarks/mutations.py: every mistake has its place in the source, and the verdicts on some small ones."""

import json
import subprocess
from pathlib import Path

import pytest
from benchmarks.mutations import Mutation

from benchmarks import mutations

SOURCE = "def double(x):\n    return 2 * x\n\n\ndef half(x):\n    return x / 2\n"
TESTS = "from it import double\n\n\ndef test_double():\n    assert double(3) == 6\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    place = tmp_path / "checkout"
    for name, text in (("src/it.py", SOURCE), ("tests/core/test_it.py", TESTS)):
        (place / name).parent.mkdir(parents=True)
        (place / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(place)], check=True)
    return place


def test_every_mistake_has_one_place_and_tests(root: Path):
    every = mutations.read()
    for mutation in every:
        path, text = mutations.place_of(mutation, root / "src")
        assert text != path.read_text(), mutation.name
        assert mutations.tests_of(mutation, root / "tests"), mutation.name
    assert len({mutation.name for mutation in every}) == len(every) == 60


def test_a_second_spelling_is_taken_where_the_first_is_gone(checkout: Path):
    mutation = Mutation("m", "3 * x", "4 * x", ("core",), "2 * x", "5 * x")
    path, text = mutations.place_of(mutation, checkout / "src")
    assert path.name == "it.py"
    assert "5 * x" in text
    with pytest.raises(LookupError, match="2 times"):
        mutations.place_of(Mutation("m", "return", "yield", ("core",)), checkout / "src")


def test_tests_that_have_moved_are_found(checkout: Path):
    def found(name: str) -> list[str]:
        return mutations.tests_of(Mutation("m", "", "", (name,)), checkout / "tests")

    assert found("core/test_it.py") == found("nn/test_it.py") == ["tests/core/test_it.py"]
    assert found("core/test_gone.py") == ["tests/core"]
    assert found("nn/test_gone.py") == []


def test_the_first_test_that_fails_is_named(checkout: Path):
    (checkout / "src" / "it.py").write_text(SOURCE.replace("2 * x", "3 * x"))
    assert mutations.run_tests(checkout, ["tests"], 60, "-x") == ("failed", ["tests/core/test_it.py::test_double"])


def test_verdicts(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    some = (
        Mutation("seen", "2 * x", "3 * x", ("core/test_it.py",)),
        Mutation("unseen", "x / 2", "x / 3", ("core/test_it.py",)),
        Mutation("gone", "x - 2", "x - 3", ("core/test_it.py",)),
    )
    runs, wanted = [], "2 * x"

    def run_tests(copy: Path, words: list[str], seconds: int, *stop: str) -> tuple[str, list[str]]:
        runs.append(words)
        holds = wanted in (copy / "src" / "it.py").read_text()
        return ("passed", []) if holds else ("failed", ["tests/core/test_it.py::test_double"])

    monkeypatch.setattr(mutations, "run_tests", run_tests)
    report = tmp_path / "found.json"
    for _ in range(2):
        assert mutations.main([str(checkout), "--json", str(report)], some) == 1
        assert "1 killed, 1 survived, 1 not applicable" in capsys.readouterr().out
    # The second time all is read.
    assert runs == [["tests/core/test_it.py"], ["tests/core/test_it.py"], ["tests/core/test_it.py::test_double"]]
    assert json.loads(report.read_text())["seen"]["about"] == "tests/core/test_it.py::test_double"
    assert mutations.main([str(checkout), "--json", str(report), "--only", "1"], some) == 0
    assert (checkout / "src" / "it.py").read_text() == SOURCE
    # A test that fails without the mistake too tells nothing of it.
    wanted = "no such text"
    assert mutations.main([str(checkout), "--only", "1..1"], some) == 1
    assert "1 untested" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0", "2..1", "1..61", "a"])
def test_a_part_that_there_is_not_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        mutations.main([str(tmp_path), "--only", text])
    assert "1..60" in capsys.readouterr().err
