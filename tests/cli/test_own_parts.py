"""A user's own parts: what they compute beside the built-in ones, and their code in an export."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from etude.cli import main
from etude.core.config import read_yaml
from etude.nn.fast_norms import norm_beside
from etude.nn.user_part import beside

_CODE = '''
import torch
from torch import nn

class Biased(nn.BatchNorm2d):
    """A batch norm whose statistics are of half the batch."""
    def forward(self, x):
        half = x[: len(x) // 2]
        mean, var = half.mean((0, 2, 3), keepdim=True), half.var((0, 2, 3), keepdim=True)
        return (x - mean) / (var + self.eps).sqrt()

class Layer(nn.GroupNorm):
    def __init__(self, channels):
        super().__init__(1, channels)

def squared(query, proto):
    return torch.cdist(query, proto) ** 2

def manhattan(query, proto):
    return torch.cdist(query, proto, p=1)
'''


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "mine" / "own.py"
    path.parent.mkdir()
    path.write_text(_CODE)
    return path


def test_a_norm_is_told_beside_the_nearest(own: Path) -> None:
    assert "equal to the built-in ln" in norm_beside(f"{own}:Layer")
    said = norm_beside(f"{own}:Biased")
    assert "nearest the built-in bn" in said
    assert "away" in said


def test_answers_that_are_nothing_like_a_built_in_one() -> None:
    ones = torch.ones(2, 2)
    assert "no built-in one" in beside("part", lambda: ones, {"a": lambda: torch.ones(3)})
    assert "not finite" in beside("part", lambda: ones / 0, {"a": lambda: ones})


def test_check_says_what_a_distance_computes(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(name: str) -> str:
        words = ["check", "protonet", "smoke", "--training-only", "--json", "--model.distance", f"{own}:{name}"]
        assert main(words) == 0
        return json.loads(capsys.readouterr().out)[0]["own_parts"]

    assert "equal to the built-in euclidean" in told("squared")
    assert "away" in told("manhattan")


def test_an_export_holds_the_code(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, sent = tmp_path / "runs", tmp_path / "sent"
    words = ["--loop.max-steps", "2", "--loop.eval-every", "2", "--model.distance", f"{own}:manhattan"]
    assert main(["run", "protonet", "smoke", "--name", "a", "--runs", str(runs), *words]) == 0
    assert main(["export", str(runs / "protonet/a"), "--out", str(sent)]) == 0
    assert (sent / "own.py").read_text() == _CODE
    assert json.loads((sent / "config.json").read_text())["config"]["model"]["distance"] == "own.py:manhattan"
    shutil.rmtree(own.parent)
    there = tmp_path / "there"
    sent.rename(there)
    assert main(["load", str(there), "--runs", str(tmp_path / "other")]) == 2
    assert "--trust-code" in capsys.readouterr().err
    assert main(["load", str(there), "--runs", str(tmp_path / "other"), "--trust-code"]) == 0
    shutil.rmtree(there)
    run = tmp_path / "other/protonet/there"
    assert read_yaml(run / "config.yaml")["config"]["model"]["distance"] == f"{run / 'own.py'}:manhattan"
    assert main(["eval", str(run), "--json"]) == 0
    found = {row["metric"]: row["value"] for row in json.loads(capsys.readouterr().out)}
    summary = json.loads((runs / "protonet/a/summary.json").read_text())
    before = {row["metric"]: row["value"] for row in summary["results"]}
    assert found.keys() == before.keys()
