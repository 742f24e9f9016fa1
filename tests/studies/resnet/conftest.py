"""What the tests of the residual networks share: a task, a run of a few steps, and folders of pictures."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.studies.resnet import common

from etude import cli


@pytest.fixture(scope="session")
def finished(built_once: Callable[..., Path]) -> Path:
    """A run folder: a small network with batch norm that has trained for a few steps. It is to be left as it is."""

    def build(runs: Path) -> None:
        words = ["run", "resnet", "smoke", "--name", "tiny", "--runs", str(runs), "--model.norm", "bn", *common.TINY]
        assert cli.main(words) == 0

    return built_once("resnet", build) / "resnet" / "tiny"
