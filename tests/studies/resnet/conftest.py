"""What the tests of the residual networks share: a task, a run of a few steps, and folders of pictures."""

from pathlib import Path

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
