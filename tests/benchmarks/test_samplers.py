"""The table of samplers of a run: what it refuses, and what it asks of the run."""

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from etude.core.errors import UserError
from etude.core.study import Result
from etude.studies.slotdiffusion.task import SlotDiffusionTask


@pytest.fixture
def samplers(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("samplers", root / "benchmarks" / "samplers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trained(inception: str) -> SlotDiffusionTask:
    """A run's task that says of itself what is asked here."""
    task = object.__new__(SlotDiffusionTask)
    task.config = SimpleNamespace(metric=SimpleNamespace(inception=inception), chain=SimpleNamespace(steps=100))  # type: ignore[assignment]

    def distances(chosen: dict[str, tuple[str, int]]) -> list[Result]:
        return [
            Result("t", "c", f"{name}{ending}", "val", 10.0 * steps + place, "", 1.5 if name == "fid" else None)
            for ending, (_, steps) in chosen.items()
            for place, name in enumerate(("fid", "kid", "seconds"))
        ]

    task.distances = distances  # type: ignore[method-assign]
    return task


def test_a_row_a_sampler(samplers: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(samplers, "load_trained", lambda path: (None, None, {}, trained("file.pt")))
    assert samplers.main(["run", "ddim:5", "dpm-solver++:20", "ddim:50"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| ddim | 5 | 50.0 | +- 1.5 | 51.0 | 52 |",
        "| dpm-solver++ | 20 | 200.0 | +- 1.5 | 201.0 | 202 |",
        "| ddim | 50 | 500.0 | +- 1.5 | 501.0 | 502 |",
    ]


@pytest.mark.parametrize(
    ("words", "inception", "says"),
    [
        (["ddim"], "file.pt", "'ddim' is no sampler with its steps"),
        (["ddim:x"], "file.pt", "'ddim:x' is no sampler"),
        (["ddim:101"], "file.pt", "cannot sample in 101 steps"),
        (["ddim:0"], "file.pt", "cannot sample in 0 steps"),
        (["ddim:5"], "none", "no compositions that were scored"),
    ],
)
def test_refusals(
    samplers: ModuleType, monkeypatch: pytest.MonkeyPatch, words: list[str], inception: str, says: str
) -> None:
    monkeypatch.setattr(samplers, "load_trained", lambda path: (None, None, {}, trained(inception)))
    with pytest.raises(UserError, match=says):
        samplers.main(["run", *words])
