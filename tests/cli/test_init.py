"""A run that begins with trained weights: of the same network, with other classes, of another network or study."""

import json
from pathlib import Path

import pytest
import torch
from tests.cli.faults import fault

from etude.cli import main
from etude.core.checkpoint import read_weights, write_tensors
from etude.core.run_folder import RunFolder

_SHORT = ["--loop.max-steps", "1", "--loop.eval-every", "1", "--loop.save-every", "1"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    assert main(["run", "resnet", "smoke", "--name", "first", "--runs", str(runs), *_SHORT]) == 0
    return runs / "resnet/first"


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    return dict(read_weights(RunFolder.open(run).checkpoints().weights(1))[0])


def test_a_head_of_other_classes_begins_anew(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = _tensors(first)["model.linear.weight"].shape[0] + 3
    words = ["--init", str(first), "--model.num-classes", str(classes), "--optim.lr", "1e-12"]
    assert main(["run", "resnet", "smoke", "--name", "second", "--runs", str(first.parents[1]), *_SHORT, *words]) == 0
    said = capsys.readouterr().err
    assert "begins with" in said
    assert f"model.linear.weight [{classes - 3}, " in said
    before, after = _tensors(first), _tensors(first.with_name("second"))
    torch.testing.assert_close(after["model.conv.weight"], before["model.conv.weight"])
    assert after["model.linear.weight"].shape[0] == classes
    record = RunFolder.open(first.with_name("second")).record
    assert record.overrides["init"] == str(first)
    assert "--init" in json.loads((first.with_name("second") / "summary.json").read_text())["command"]


def test_other_networks_are_refused(first: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = ["run", "resnet", "smoke", "--name", "x", "--runs", str(tmp_path), *_SHORT]
    assert "--model.norm" in fault(capsys, *run, "--init", str(first), "--model.norm", "ln")
    assert "--model.width" in fault(capsys, *run, "--init", str(first), "--model.width", "4")
    assert "'protonet', not of 'resnet'" in fault(capsys, *run, "--init", "protonet")
    assert "no run folder" in fault(capsys, *run, "--init", "nowhere")
    assert not (tmp_path / "resnet/x").exists()


def test_other_words_are_no_other_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows of an embedding stand for words: those of other words would be taken for them."""
    run = ["run", "text2math", "smoke", "--runs", str(tmp_path), *_SHORT]
    assert main([*run, "--name", "first"]) == 0
    path = RunFolder.open(tmp_path / "text2math/first").checkpoints().weights(1)
    assert main([*run, "--name", "same", "--init", str(path)]) == 0
    tensors, header = read_weights(path)
    key = next(name for name in tensors if name.endswith("vocabularies"))
    for words in (tensors[key].flip(0), tensors[key][:-1]):
        other = tmp_path / "other.safetensors"
        write_tensors(other, {**tensors, key: words.contiguous()}, header)
        assert "vocabularies" in fault(capsys, *run, "--name", "x", "--init", str(other))
