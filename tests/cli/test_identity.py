"""A run is what its configuration says: grids, names, longer runs; results without pictures; settings that are none."""

import json
import math
from pathlib import Path

import pytest
import torch
from tests.cli.faults import fault

from etude import registry
from etude.cli import main
from etude.core.config import override
from etude.core.errors import UserError
from etude.core.files import as_json
from etude.core.run_folder import RunFolder
from etude.draw import figures
from etude.draw.metrics import read_metrics
from etude.runs.experiment import Grid, settings
from etude.studies.resnet.figures import confusion

_ALONE = figures.each_alone
"""As it is outside the tests, in which a picture that fails is a fault."""
_SMALL = ["--loop.max-steps", "4", "--loop.eval-every", "2", "--loop.save-every", "2"]


def _run(runs: Path, name: str, *words: str) -> Path:
    assert main(["run", "protonet", "smoke", "--name", name, "--runs", str(runs), *_SMALL, *words]) == 0
    return runs / "protonet" / name


def _tensors(run: Path, step: int) -> bytes:
    return RunFolder.open(run).checkpoints().weights(step).read_bytes()


@pytest.mark.parametrize(("study", "experiment", "a", "b"), [
    ("protonet", "distance", "episodes.query=4", "evaluation.query=4"),
    ("darts", "search", "search.lr=0.5", "optim.lr=0.02"),
    ("darts", "search", "search.weight_decay=0.1", "optim.weight_decay=0.1"),
    ("resnet", "depth", "data.size=16", "batch.size=16"),
    ("slotdiffusion", "init", "chain.steps=10", "sample.steps=10"),
])  # fmt: skip
def test_other_settings_other_folders(study: str, experiment: str, a: str, b: str) -> None:
    found = registry.load(study)
    one, two = (Grid(found, experiment, "smoke", settings(found, "smoke", [word]), Path("runs")) for word in (a, b))
    assert [item.path for item in one.items([0])] != [item.path for item in two.items([0])]


def test_a_grid_refuses_folders_of_other_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = registry.load("protonet")
    grid = Grid(study, "distance", "smoke", {}, tmp_path)
    item = grid.items([0])[0]
    _run(tmp_path, item.name, "--episodes.query", "2")
    said = fault(capsys, "study", "protonet", "distance", "--preset", "smoke", "--runs", str(tmp_path))
    assert "episodes.query is 2 there" in said
    assert "--runs" in said


def test_what_the_grid_varies_is_not_set(tmp_path: Path) -> None:
    study = registry.load("protonet")
    with pytest.raises(UserError, match=r"--set model.distance=cosine: .* varies model.distance"):
        Grid(study, "distance", "smoke", {"model.distance": "cosine"}, tmp_path).items([0])


def test_a_name_that_is_taken_by_other_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path, "a")
    again = ["run", "protonet", "smoke", "--name", "a", "--runs", str(tmp_path)]
    assert "`etude resume" in fault(capsys, *again, *_SMALL)
    said = fault(capsys, *again, *_SMALL, "--optim.lr", "0.5", "--seed", "3")
    assert "optim.lr is" in said
    assert "seed is 0 there and 3 here" in said


def test_a_run_that_has_ended_is_made_longer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    longer, whole = _run(tmp_path, "longer"), _run(tmp_path, "whole", "--loop.max-steps", "8")
    assert main(["resume", str(longer), "--loop.max-steps", "8"]) == 0
    assert "goes on to step 8" in capsys.readouterr().err
    summary, as_one = (json.loads((run / "summary.json").read_text()) for run in (longer, whole))
    assert summary["results"] == as_one["results"]
    assert summary["overrides"] == as_one["overrides"]
    assert RunFolder.open(longer).checkpoints().steps()[-1] == 8
    assert "trained 8 steps: give more" in fault(capsys, "resume", str(longer), "--loop.max-steps", "8")


@pytest.mark.parametrize("value", ["inf", "nan", "-inf"])
def test_numbers_that_are_not_finite(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "optim.lr must be" in fault(capsys, "run", "protonet", "smoke", f"--optim.lr={value}")
    with pytest.raises(ValueError, match=r"optim\.lr must be"):
        override(registry.load("protonet").preset("smoke").build(), {"optim.lr": float(value)})


def test_not_a_number_is_null_in_files(tmp_path: Path) -> None:
    assert json.loads(as_json({"a": [math.nan, 1.0], "b": {"c": -math.inf}})) == {"a": [None, 1.0], "b": {"c": None}}
    run = RunFolder(tmp_path)
    run.append_metrics({"step": 1, "loss": math.nan})
    assert "null" in (tmp_path / "metrics.jsonl").read_text()
    assert math.isnan(next(run.metrics())["loss"])
    rows, notes = read_metrics(tmp_path / "metrics.jsonl")
    assert rows == [{"step": 1}]
    assert "loss" in notes[0]


def test_results_stand_where_a_picture_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from etude.studies.protonet import figures as pictures

    drawn = pictures.draw

    def draw(task: object, folder: Path, metrics: object) -> None:
        with figures.figure(folder / "broken.png", 2.0, 2.0):
            raise MemoryError("525 classes")
        drawn(task, folder, metrics)  # pyright: ignore

    monkeypatch.setattr(pictures, "draw", draw)
    monkeypatch.setattr(figures, "each_alone", _ALONE)
    run = _run(tmp_path, "a")
    assert json.loads((run / "summary.json").read_text())["results"]
    said = capsys.readouterr().err
    assert "broken.png cannot be drawn (MemoryError" in said, said
    assert (run / "figures/curves.png").is_file()
    assert (run / "model_card.md").is_file()


def test_outside_a_run_a_picture_that_fails_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(MemoryError), figures.figure(tmp_path / "a.png", 2.0, 2.0):
        raise MemoryError


@pytest.mark.parametrize("count", [1, 200, 2000])
def test_a_confusion_of_many_classes_is_bounded(tmp_path: Path, count: int) -> None:
    from PIL import Image

    truth = torch.arange(count)
    confusion(tmp_path / "a.png", truth, truth.flip(0), [f"class {number}" for number in range(count)])
    with Image.open(tmp_path / "a.png") as image:
        assert max(image.size) <= 3400


def test_a_run_without_a_terminal_tells_of_its_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(tmp_path, "told")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("told: step")]
    assert [line.split(",")[0] for line in lines] == ["told: step 2 of 4", "told: step 4 of 4"]
    assert "min left" in lines[0]


@pytest.mark.parametrize("words", [
    ("predict", "resnet", "none.png"), ("predict", "protonet", "--support", "no/where", "query.png"),
    ("eval", "runs/none"), ("predict", "runs/protonet/none", "query.png"),
])  # fmt: skip
def test_paths_are_looked_at_first(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"{name} is imported"))
    assert "does not exist" in fault(capsys, *words)
