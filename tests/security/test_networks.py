"""A weights file whose configuration asks for a network that no machine holds is refused before it is built."""

from pathlib import Path

import pytest

from etude import registry
from etude.cli import main
from etude.core.checkpoint import read_weights, write_tensors

LARGE = {
    "resnet": "width", "text2math": "hidden", "slots": "features", "slotdiffusion": "width", "dcgan": "width",
    "protonet": "width", "pix2pix": "width", "darts": "channels",
}  # fmt: skip
"""Of each study a setting of its network that multiplies its weights."""


@pytest.mark.parametrize("name", LARGE)
def test_a_network_that_no_machine_holds(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    study = registry.load(name)
    assert study.shipped_weights is not None
    tensors, header = read_weights(study.shipped_weights)
    header.config["model"][LARGE[name]] = 2_000_000
    if name == "resnet":
        # What looks like a part of a user's own excuses nothing.
        header.config["data"].update(source="folder", folder="mine.py:Part")
    path = tmp_path / "large.safetensors"
    write_tensors(path, tensors, header)
    words = [] if name == "dcgan" else [str(study.shipped_weights)]
    assert main(["predict", str(path), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(path) in error
    assert "and its configuration has a network of " in error


def test_every_study_with_weights_is_here():
    assert set(LARGE) == {name for name in registry.NAMES if registry.load(name).shipped_weights}
