"""What a preset takes of memory, and a batch cut into parts so that it takes less."""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.core import toy

from etude import registry
from etude.cli import main
from etude.core import randomness
from etude.core.config import override
from etude.core.errors import UserError
from etude.core.runtime import Runtime
from etude.core.study import Task
from etude.runs import memory

# A network whose batch takes more than everything else does.
LARGE = shlex.split(
    "resnet smoke --model.width 48 --batch.size 240 --data.size 32 --loop.max-steps 3 --batch.evaluation 64"
)


def etude(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "etude", *words]
    environment = toy.child_environment()
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


def facts(*words: str) -> dict[str, Any]:
    child = etude("check", *words, "--json")
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)[0]


@pytest.fixture(scope="module")
def large() -> dict[str, Any]:
    return facts(*LARGE)


def test_a_check_says_what_a_run_takes(tmp_path: Path, large: dict[str, Any]):
    child = etude("run", *LARGE, "--runs", str(tmp_path), "--name", "large")
    assert child.returncode == 0, child.stderr
    took = json.loads((tmp_path / "resnet" / "large" / "summary.json").read_text())["peak_memory_mb"]
    assert took > 1200, "most of it is the batch"
    assert large["peak_memory_mb"] == pytest.approx(took, rel=0.2)
    assert large["peak_memory_mb"] == max(large["memory_mb"].values())


def test_what_the_parent_holds_does_not_count():
    held = b"x" * (1 << 30)
    line = "from etude.runs.training import peak_memory_mb; print(peak_memory_mb())"
    command = [sys.executable, "-c", line]
    environment = toy.child_environment()
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert len(held) >> 20 > int(child.stdout) > 20


def test_a_part_of_the_results_is_tried(monkeypatch: pytest.MonkeyPatch):
    """Programs of a beam, and FID's network where the preset names one."""
    from etude.metrics import fid
    from etude.studies.text2math import task as words

    searched: list[int] = []
    real = words.beam_search
    monkeypatch.setattr(words, "beam_search", lambda *a, **k: searched.append(k["width"]) or real(*a, **k))
    mine = task("text2math")
    memory.rehearse(mine, mine.config)
    assert searched == [mine.config.beam.width]

    looked: list[tuple[int, ...]] = []

    class Network:
        def __init__(self, weights: Path | None, device: torch.device) -> None:
            assert (weights, device.type) == (None, "cpu")

        def features(self, images: Any) -> None:
            looked.append(images.shape)

    monkeypatch.setattr(fid, "Inception", Network)
    monkeypatch.setattr(fid, "frechet_distance", lambda real, fake: looked.append(real.shape))
    drawn = task("dcgan")
    memory.rehearse(drawn, drawn.config)
    assert looked == [], "the smoke preset measures no FID"
    memory.rehearse(drawn, override(drawn.config, {"metric.inception": ""}))
    assert looked == [(256, 8, 8), (256, fid.NUM_FEATURES)]
    encodes = task("slotdiffusion", preset="vae-smoke", **{"metric.inception": ""})
    memory.rehearse(encodes, encodes.config)
    assert len(looked) == 2, "an autoencoder measures none"


def test_a_batch_that_does_not_fit_is_cut(tmp_path: Path, large: dict[str, Any]):
    # What a process holds varies by a tenth from one to the next.
    limit = 3 * large["memory_mb"]["training"] // 4
    child = etude("run", *LARGE, "--runs", str(tmp_path), "--name", "cut", "--memory", str(limit))
    assert child.returncode == 0, child.stderr
    run = tmp_path / "resnet" / "cut"
    config = (run / "config.yaml").read_text()
    number = next(int(line.split()[1]) for line in config.splitlines() if line.strip().startswith("parts:"))
    assert number > 1
    assert 240 % number == 0
    assert f"--batch.parts {number}: a step takes" in child.stderr
    assert json.loads((run / "summary.json").read_text())["peak_memory_mb"] <= 1.2 * limit


def measured(monkeypatch: pytest.MonkeyPatch, answers: Sequence[int | None]) -> list[int]:
    """Let the measurements be these; the parts that were tried."""
    tried: list[int] = []
    left = iter(answers)

    def measure(words: Sequence[str], parts: int) -> int | None:
        tried.append(parts)
        return next(left)

    monkeypatch.setattr(memory, "_measure", measure)
    return tried


def test_the_fewest_parts_that_fit(monkeypatch: pytest.MonkeyPatch):
    config = registry.load("resnet").preset("mini").build()
    tried = measured(monkeypatch, [None, 3000, 1900])
    assert memory.fit(["resnet", "mini"], config, 2000) == (4, 1900)
    assert tried == [1, 2, 4]


@pytest.mark.parametrize(
    ("answers", "fewest", "tried"),
    [
        ([None, 1900, 1950, None], (6, 1950), [4, 8, 6, 5]),
        ([None, 1900, 2100], (8, 1900), [4, 8, 6]),
        ([None, None, 1400, 2100, 1800], (15, 1800), [4, 8, 16, 12, 15]),
    ],
)
def test_what_lies_between_a_failure_and_a_fit(
    monkeypatch: pytest.MonkeyPatch, answers: list[int | None], fewest: tuple[int, int], tried: list[int]
):
    config = override(registry.load("resnet").preset("mini").build(), {"batch.size": 240, "batch.parts": 4})
    seen = measured(monkeypatch, answers)
    assert memory.fit(["resnet", "mini"], config, 2000) == fewest
    assert seen == tried


def test_a_limit_within_several_processes_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("RANK", "0")
    assert main(["run", "resnet", "smoke", "--memory", "2000"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "`etude check resnet smoke --memory 2000` names the parts" in said


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([3000, 2990, 2985], r"in 4 part\(s\) takes 2,985 MB, and smaller parts save nothing"),
        ([None] * 8, r"in 128 part\(s\) takes more than there is"),
    ],
)
def test_what_no_parts_can_do_is_one_line(monkeypatch: pytest.MonkeyPatch, answers: list[int | None], says: str):
    measured(monkeypatch, answers)
    with pytest.raises(UserError, match=f"--memory 2000: a step {says}"):
        memory.fit(["resnet", "mini"], registry.load("resnet").preset("mini").build(), 2000)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("check protonet smoke --memory 100", "a step of protonet is whole episodes"),
        ("run resnet smoke --memory much", "--memory takes megabytes, such as 2000, not 'much'"),
        ("check resnet smoke --memory 0", "--memory takes megabytes"),
    ],
)
def test_a_wrong_limit_is_one_line(words: str, says: str, capsys: pytest.CaptureFixture[str]):
    assert main(words.split()) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.count("\n") == 1


PLAIN: dict[str, dict[str, Any]] = {
    "resnet": {"model.norm": "gn", "model.width": 16, "data.size": 16, "batch.size": 24, "augment.flip": False,
               "augment.pad": 0},
    "text2math": {"batch.size": 12, "teacher_forcing": 1.0, "model.dropout": 0.0},
}  # fmt: skip


def task(study: str, preset: str = "smoke", **settings: Any) -> Task:
    loaded = registry.load(study)
    config = override(loaded.preset(preset).build(), settings | {"loop.device": "cpu"})
    return loaded.task(config, Runtime(config.loop, config.seed))


def trained(study: str, parts: int, **settings: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of three steps, and the first network's weights after them."""
    mine = task(study, **(PLAIN[study] | settings | {"batch.parts": parts}))
    losses: list[float] = []
    for step in range(3):
        randomness.seed_globals(0, "step", step)
        losses.append(mine.train_step(step)["loss"].item())
    return losses, {name: value.clone() for name, value in next(iter(mine.modules.values())).named_parameters()}


@pytest.mark.parametrize("study", sorted(PLAIN))
def test_parts_are_equal_mathematics_where_norms_allow(study: str):
    """Where nothing is drawn: the gradient of the whole batch, of parts that have other numbers of tokens too."""
    one, whole = trained(study, 1)
    many, cut = trained(study, 4)
    assert many == pytest.approx(one, rel=1e-5)
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-3, atol=2e-5)


def test_batch_norm_does_not_allow_it_and_is_named():
    one, _ = trained("resnet", 1, **{"model.norm": "bn"})
    many, _ = trained("resnet", 4, **{"model.norm": "bn"})
    assert many != pytest.approx(one, rel=1e-3)
    assert "other mathematics than in one part: model.norm" in memory.about_parts(
        task("resnet", **{"model.norm": "bn"})
    )


@pytest.mark.parametrize(
    ("study", "settings", "equal"),
    [
        ("resnet", {"model.norm": "gn", "model.width": 16}, True), ("resnet", {"model.norm": "bin"}, False),
        ("resnet", {"model.norm": "in"}, True), ("resnet", {"model.norm": "bn-torch"}, False), ("text2math", {}, True),
        ("slots", {}, True), ("slotdiffusion", {}, True), ("dcgan", {}, False), ("darts", {}, False),
    ],
)  # fmt: skip
def test_each_study_says_whether_parts_are_equal(study: str, settings: dict[str, Any], equal: bool):
    assert memory.about_parts(task(study, **settings)).startswith("the same" if equal else "other") is True
