"""What the tests of the residual networks share: a task, a run of a few steps, and folders of pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.studies.resnet import common

from etude import cli


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: a small network with batch norm that has trained for a few steps. It is to be left as it is."""
    runs = tmp_path_factory.mktemp("finished")
    words = ["run", "resnet", "smoke", "--name", "tiny", "--runs", str(runs), "--model.norm", "bn", *common.TINY]
    assert cli.main(words) == 0
    return runs / "resnet" / "tiny"


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
