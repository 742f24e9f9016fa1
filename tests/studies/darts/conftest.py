"""What the tests of architecture search share: a run of each phase, and the command line."""

from pathlib import Path

import pytest
from tests.studies.darts import common

from etude import cli


def _run(runs: Path, preset: str, *words: str) -> Path:
    assert cli.main(["run", "darts", preset, "--name", preset, "--runs", str(runs), *common.TINY, *words]) == 0
    return runs / "darts" / preset


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a search of a few steps. It is to be left as it is."""
    return _run(tmp_path_factory.mktemp("searched"), "smoke")


@pytest.fixture(scope="session")
def retrained(tmp_path_factory: pytest.TempPathFactory, searched: Path) -> Path:
    """Likewise of a retraining of its cell."""
    return _run(tmp_path_factory.mktemp("retrained"), "retrain-smoke", "--genotype", str(searched))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place
