"""`etude export` to a folder, `etude load` of it, and folders that come from who knows where."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.cli.faults import fault

from etude import registry
from etude.cli import main
from etude.core.checkpoint import read_weights, write_tensors
from etude.core.run_folder import RunFolder
from etude.runs import hub

SHIPPED = [name for name in registry.NAMES if registry.load(name).shipped_weights is not None]
FILES = {"model.safetensors", "config.json", "README.md"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """protonet's own weights as a folder, with nothing secret in it."""
    folder = tmp_path_factory.mktemp("hub") / "omniglot"
    assert main(["export", "protonet", "--out", str(folder)]) == 0
    return folder


def test_a_folder_has_the_layout_of_the_hub(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == FILES
    config = json.loads((exported / "config.json").read_text())
    assert config["library_name"] == "etude"
    assert config["study"] == "protonet"
    assert config["preset"] == "laptop"
    # Bit-equal to what comes with the package.
    tensors, header = read_weights(exported / "model.safetensors")
    shipped = registry.load("protonet").shipped_weights
    assert shipped is not None
    before, about = read_weights(shipped)
    assert header == about
    assert tensors.keys() == before.keys()
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_the_card_is_one_that_the_hub_reads(exported: Path) -> None:
    card = ModelCard.load(exported / "README.md")
    assert card.data.library_name == "etude"
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["omniglot"]
    assert card.data.tags == ["protonet", "pytorch"]
    results = {(row.metric_name, row.dataset_split): row for row in card.data.eval_results}
    row = results["fewshot w5s1 accuracy %", "test"]
    assert row.metric_value == pytest.approx(98.9, abs=0.01)
    assert row.task_type == "image-classification"
    # The number that is committed, with its split and protocol in the text.
    assert "| fewshot w5s1 accuracy | 98.90 ± 0.14 % | test | 1,000 random test episodes" in card.text
    assert "scale: **laptop**" in card.text


def answer(capsys: pytest.CaptureFixture[str], words: list[str]) -> Any:
    capsys.readouterr()
    assert main(["predict", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def example(name: str, folder: Path) -> list[str]:
    study = registry.load(name)
    if hasattr(study.module("predict"), "example"):
        return list(study.module("predict").example(folder))
    # One small picture for the study that has no example of its own.
    image = np.random.default_rng(0).integers(0, 256, (100, 130, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / "picture.png")
    return [name, str(folder / "picture.png"), "--output", str(folder / "out")]


@pytest.mark.parametrize("name", SHIPPED)
def test_there_and_back_again(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The answers of the shipped weights, of their folder and of the run that it becomes are the same."""
    assert main(["export", name, "--out", "hub"]) == 0
    assert main(["load", "hub", "--name", "back"]) == 0
    run = Path("runs") / name / "back"
    answers, made = [], []
    for number, what in enumerate((name, "hub", str(run))):
        out = here / str(number)
        out.mkdir()
        words = [what, *example(name, out)[1:]]
        answers.append(json.loads(json.dumps(answer(capsys, words)).replace(str(out), "OUT")))
        made.append(pictures(out))
    assert answers[0] == answers[1] == answers[2]
    assert made[0] == made[1] == made[2]
    # A run like any other, but for numbers: those are to be measured here.
    record = RunFolder.open(run).record
    assert (record.study, record.config["loop"]["device"]) == (name, "auto")
    assert RunFolder.open(run).summary["results"] == []  # pyright: ignore[reportOptionalSubscript]
    assert (run / "model_card.md").read_bytes() == Path("hub/README.md").read_bytes()
    assert main(["resume", str(run)]) == 0
    # Neither the folder of the one who trained nor any other of this machine goes out.
    assert str(Path.home()) not in Path("hub/config.json").read_text()
    assert '": "/' not in Path("hub/config.json").read_text()


def test_the_library_of_slots_goes_along(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "slots", "--out", "hub"]) == 0
    assert main(["load", "hub"]) == 0
    assert main(["predict", "runs/slots/hub", "--compose", "1", "--output", "a"]) == 0
    assert main(["predict", "hub", "--compose", "1", "--output", "b"]) == 0
    assert pictures(Path("a")) == pictures(Path("b"))


def test_a_run_of_ones_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A GAN's folder lacks the network that only training needs, and its run is evaluated all the same."""
    small = ("--loop.max-steps", "4", "--loop.eval-every", "2", "--loop.save-every", "2", "--metric.samples", "10")
    assert main(["run", "dcgan", "smoke", "--name", "tiny", *small]) == 0
    assert main(["export", "runs/dcgan/tiny", "--out", "hub", "--fp32"]) == 0
    assert main(["load", "hub", "--name", "back", "--runs", "elsewhere"]) == 0
    assert main(["predict", "dcgan", "runs/dcgan/tiny", "--count", "4", "--output", "a.png"]) == 0
    assert main(["predict", "dcgan", "hub", "--count", "4", "--output", "b.png"]) == 0
    assert main(["predict", "elsewhere/dcgan/back", "--count", "4", "--output", "c.png"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes() == Path("c.png").read_bytes()
    rows = []
    for run in ("runs/dcgan/tiny", "elsewhere/dcgan/back"):
        capsys.readouterr()
        assert main(["eval", run, "--json"]) == 0
        rows.append(json.loads(capsys.readouterr().out))
    assert [row["value"] for row in rows[0]] == [row["value"] for row in rows[1]]
    assert all(row["in_summary"] is None for row in rows[1])
    # Its numbers stand in the card, as those of a smoke run.
    card = Path("elsewhere/dcgan/back/model_card.md").read_text()
    assert "scale: **smoke**" in card
    assert "is there already: choose another --name" in fault(
        capsys, "load", "hub", "--name", "back", "--runs", "elsewhere"
    )


# --- what others may send ---


@pytest.fixture
def copy(exported: Path, here: Path) -> Path:
    shutil.copytree(exported, "sent")
    return Path("sent")


def change(folder: Path, **values: Any) -> None:
    """Other values in config.json and, of ``config`` and ``extra``, in the weights' own header."""
    about = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(about))
    tensors, header = read_weights(folder / "model.safetensors")
    inner = {name: value for name, value in values.items() if name in ("config", "extra")}
    # Not by etude's own hand, which writes no odd types.
    metadata = {"etude": json.dumps({"format": 1, **vars(header), **inner})}
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(tensors, metadata=metadata))


def setting(folder: Path, part: str, name: str, value: Any) -> None:
    config = json.loads((folder / "config.json").read_text())["config"]
    config[part][name] = value
    change(folder, config=config)


def tensors(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    found, header = read_weights(folder / "model.safetensors")
    edit(found)
    write_tensors(folder / "model.safetensors", found, header)


def cut(path: Path, keep: float) -> None:
    body = path.read_bytes()
    path.write_bytes(body[: int(len(body) * keep)])


def huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{" + b" " * 100)


FAULTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ("has no model.safetensors", "etude export RUN")),
    "no config": (lambda f: (f / "config.json").unlink(), ("config.json is missing",)),
    "a pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        ("pytorch_model.bin may run code", "safetensors only"),
    ),
    "a pickle so called": (lambda f: torch.save({"x": 1}, f / "model.safetensors"), ("is a pickle", "can run code")),
    "cut tensors": (lambda f: cut(f / "model.safetensors", 0.7), ("truncated or not a safetensors file",)),
    "cut header": (lambda f: cut(f / "model.safetensors", 0.001), ("truncated or not a safetensors file",)),
    "empty": (lambda f: cut(f / "model.safetensors", 0), ("truncated or not a safetensors file",)),
    "huge header": (lambda f: huge_header(f / "model.safetensors"), ("truncated or not a safetensors file",)),
    "cut config": (lambda f: cut(f / "config.json", 0.5), ("cannot be read as JSON",)),
    "deep config": (lambda f: (f / "config.json").write_text("[" * 200_000), ("cannot be read as JSON",)),
    "huge config": (lambda f: os.truncate(f / "config.json", 1 << 25), ("33,554,432 bytes",)),
    "a list": (lambda f: (f / "config.json").write_text("[1]"), ("was not written by etude",)),
    "of another library": (
        lambda f: (f / "config.json").write_text('{"model_type": "bert"}'),
        ("not written by etude",),
    ),
    "newer": (lambda f: change(f, format=99), ("newer etude", "format 99", "upgrade etude")),
    "unknown study": (lambda f: change(f, study="protonets"), ("no study 'protonets'", "did you mean 'protonet'?")),
    "another study": (lambda f: change(f, study="dcgan"), ("checkpoint of the study 'protonet', not of 'dcgan'",)),
    "a study that is a path": (lambda f: change(f, study="../../etc"), ("no study '../../etc'",)),
    "no study's name": (lambda f: change(f, study=["x"]), ("no study",)),
    "unknown preset": (lambda f: change(f, preset="best"), ("has no preset 'best'",)),
    "odd step": (lambda f: change(f, step=-1), ("step must be a whole number",)),
    "odd extra": (lambda f: change(f, extra=[1]), ("has no header of ours",)),
    "unknown setting": (lambda f: setting(f, "model", "depth", 3), ("no setting 'model.depth'",)),
    "wrong type": (lambda f: setting(f, "model", "width", "wide"), ("model.width", "valid integer")),
    "impossible": (lambda f: setting(f, "model", "width", -5), ("model.width must be at least 1",)),
    "other width": (lambda f: setting(f, "model", "width", 32), ("the tensor encoder.blocks.0", "[64, 1, 3, 3]")),
    # Weights of 4 TB, for which no memory is asked.
    "gigantic": (lambda f: setting(f, "model", "width", 10**6), ("the tensor encoder.blocks.0", "[1000000, 1, 3, 3]")),
    "beyond numbers": (lambda f: setting(f, "model", "width", 10**15), ("makes no network",)),
    "a tensor less": (lambda f: tensors(f, lambda t: t.popitem()), ("lacks the tensor encoder.blocks",)),
    "a tensor more": (lambda f: tensors(f, lambda t: t.update(evil=torch.zeros(1))), ("has a tensor 'evil'",)),
    "another shape": (
        lambda f: tensors(f, lambda t: t.update({key: value[:1] for key, value in [next(iter(t.items()))]})),
        ("the tensor encoder.",),
    ),
    "config of one, weights of the other": (
        lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace('"seed": 0', '"seed": 1')),
        ("have another `config`",),
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_cannot_be_loaded(case: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, says = FAULTS[case]
    spoil(copy)
    line = fault(capsys, "load", "sent")
    assert all(part in line for part in says), line
    assert not Path("runs").exists() or not list(Path("runs").rglob("*.*"))
    # Nor is it used where it lies; sizes are found out when the network is built.
    if case not in ("gigantic", "beyond numbers", "a tensor more", "another shape", "other width", "a tensor less"):
        assert fault(capsys, "predict", "sent", "x.png", "--support", "y")


def test_code_is_run_only_where_it_is_trusted(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "net.py").write_text(
        "from pathlib import Path\nPath('ran').touch()\nfrom etude.studies.protonet.model import Conv4 as Net\n"
    )
    setting(copy, "model", "encoder", "sent/net.py:Net")
    for words in (("load", "sent"), ("predict", "sent", "x.png", "--support", "y")):
        line = fault(capsys, *words)
        assert "names code of its own (model.encoder sent/net.py:Net)" in line
        assert "--trust-code" in line
    assert not Path("ran").exists()
    assert main(["load", "sent", "--trust-code", "--name", "known"]) == 0
    assert Path("ran").exists()


@pytest.mark.parametrize("name", ["../out", "a/b", "..", ".hidden", "a\nb", "a\\b"])
def test_a_name_stays_below_its_study(name: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no plain name of a folder" in fault(capsys, "load", "sent", "--name", name)
    assert {path.name for path in Path().iterdir()} == {"sent"}


def test_what_is_no_folder(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is no folder" in fault(capsys, "load", "sent/model.safetensors")
    Path("empty").mkdir()
    assert "has no model.safetensors" in fault(capsys, "load", "empty")
    assert main(["load", "sent", "--name", "run"]) == 0
    assert "is a run already" in fault(capsys, "load", "runs/protonet/run")
    assert "`etude load sent` makes a run of it" in fault(capsys, "eval", "sent")
    assert "is of the study 'protonet', not of 'dcgan'" in fault(capsys, "predict", "dcgan", "sent")
    # The cache of the hub keeps files elsewhere, and links to them.
    Path("linked").mkdir()
    for file in copy.iterdir():
        (Path("linked") / file.name).symlink_to(file.resolve())
    assert main(["load", "linked"]) == 0
    assert not Path("runs/protonet/linked/checkpoints/step-00006000/weights.safetensors").is_symlink()


PLACES = ("study", "preset", "step", "format", "config", "extra", "loop", "model", "width", "resize")
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PLACES), value=_VALUES)
def test_any_value_anywhere_is_taken_or_refused_in_a_line(path: str, value: Any, exported: Path, here: Path) -> None:
    shutil.rmtree("fuzzed", ignore_errors=True)
    shutil.copytree(exported, "fuzzed")
    folder = Path("fuzzed")
    if path in ("loop", "model", "width", "resize"):
        about = json.loads((folder / "config.json").read_text())["config"]
        place = {"width": about["model"], "resize": about["data"]}.get(path, about)
        place[path] = value
        change(folder, config=about)
    else:
        change(folder, **{path: value})
    shutil.rmtree("runs", ignore_errors=True)
    # A ValueError with one line, or a run; any other exception fails.
    assert main(["load", "fuzzed"]) in (0, 2)


def test_absolute_folders_are_shortened() -> None:
    config = {"data": {"folder": "/home/someone/scenes", "source": "folder"}, "start": "~/runs/a", "seed": 0}
    assert hub.portable(config) == {"data": {"folder": "scenes", "source": "folder"}, "start": "a", "seed": 0}
