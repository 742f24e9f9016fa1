"""What the tests of architecture search share: a run of each phase, and the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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


class Answer(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def etude(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """The command line."""

    def call(*words: object) -> Answer:
        capsys.readouterr()
        status = cli.main([str(word) for word in words])
        return Answer(status, *capsys.readouterr())

    return call


@pytest.fixture
def refused(etude: Callable[..., Answer]) -> Callable[..., str]:
    """The one line that a wrong call prints; nothing else is printed, and the exit status is 2."""

    def call(*words: object, says: tuple[str, ...]) -> str:
        answer: Any = etude(*words)
        assert answer.status == 2, answer
        assert answer.out == ""
        assert answer.err.endswith("\n")
        assert answer.err.count("\n") == 1, answer.err
        assert answer.err.startswith("etude: ")
        for part in says:
            assert part in answer.err, answer.err
        return answer.err

    return call


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    return place
