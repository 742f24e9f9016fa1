"""What the tests of architecture search share: a run of each phase, and the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.studies.darts import common

from etude import cli


def _train(runs: Path, preset: str, *words: str) -> None:
    assert cli.main(["run", "darts", preset, "--name", preset, "--runs", str(runs), *common.TINY, *words]) == 0


@pytest.fixture(scope="session")
def searched(built_once: Callable[..., Path]) -> Path:
    """The run folder of a search of a few steps. It is to be left as it is."""
    return built_once("searched", lambda runs: _train(runs, "smoke")) / "darts" / "smoke"


@pytest.fixture(scope="session")
def retrained(built_once: Callable[..., Path], searched: Path) -> Path:
    """The run folder of a retraining of its cell, likewise."""
    preset = "retrain-smoke"
    return built_once("retrained", lambda runs: _train(runs, preset, "--genotype", str(searched))) / "darts" / preset


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place
