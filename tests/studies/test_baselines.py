"""The simple methods beside each study's networks: by hand on tiny cases, and on real data where it is at hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from etude import registry
from etude.core.study import Study
from etude.studies.text2math import baseline as text2math
from etude.studies.text2math.problems import Problem


def silent(text: str) -> None:
    """Nobody listens."""


def test_a_study_without_the_part_says_so_in_one_line(
    refused: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Study, "has", lambda self, part: part != "baseline")
    refused("baseline", "resnet", says=("'resnet' has no baseline.py yet",))
    assert not (tmp_path / "runs").exists()


def test_the_verb_writes_what_it_prints(etude: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = registry.load("text2math").module("baseline")
    train, dev = [Problem("add 1 to 2", "add(n0,n1)|", 3.0)], [Problem("add 3 to 5", "add(n0,n1)|", 8.0)]
    monkeypatch.setattr(module, "load", lambda config: {"train": train, "dev": dev, "test": dev})
    monkeypatch.setattr(module, "checksums", lambda: {"train.json": "00"})
    answer = etude("baseline", "text2math", "--runs", tmp_path, "--json")
    assert answer.status == 0
    body = json.loads((tmp_path / "text2math" / "baseline.json").read_text())
    assert body["rows"] == json.loads(answer.out)
    assert body["command"] == "etude baseline text2math"
    assert body["data"] == {"train.json": "00"}
    assert {"commit", "seconds"} <= body.keys()
    assert "nearest" in etude("baseline", "text2math", "--runs", tmp_path).out


def test_a_problem_takes_the_program_of_its_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text2math, "NEIGHBOURS", 2)
    train = [
        Problem("a train runs 60 km in 2 hours . what is its speed ?", "divide(n0,n1)|", 30.0),
        Problem("a train runs 60 km . how many meters is that ?", "multiply(n0,const_1000)|", 60_000.0),
        Problem("what is the sum of 3 and 4 ?", "add(n0,n1)", 7.0),
    ]
    asked = [
        Problem("a train runs 1,200.5 km in 7 hours . what is its speed ?", "divide(n0,n1)", 171.5),
        # The words of the second, and as many numbers as the others.
        Problem("a train runs 60 km . how many meters is that 5 times ?"),
    ]
    assert text2math.masked(asked[0].text) == text2math.masked(train[0].text)
    assert text2math.nearest_programs(train, asked) == ["divide(n0,n1)", "divide(n0,n1)"]
    rows = {(row.name.split(" ")[0], row.metric, row.split): row.value
            for row in text2math.compared(train, asked[:1], "test", "here", silent)}  # fmt: skip
    assert rows["nearest", "exact", "test, texts seen in training"] == 100
    assert rows["nearest", "execution", "test"] == 100
    assert rows["the", "exact", "test"] == 100


@pytest.mark.real_data
@pytest.mark.usefixtures("real_mathqa")
def test_the_nearest_training_problem_answers_real_ones() -> None:
    problems = text2math.load(text2math.DataConfig())
    known = {text2math.masked(problem.text) for problem in problems["train"]}
    assert sum(text2math.masked(problem.text) in known for problem in problems["test"]) == 1384
    rows = text2math.compared(problems["train"], problems["test"][:200], "test", "MathQA", silent)
    found = {row.metric: row.value for row in rows if row.split == "test" and row.name.startswith("nearest")}
    assert 75 < found["exact"] < found["execution"] < 92
