"""Two processes end as one does, and take up what one began."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.core import toy
from tests.forks import Fork

from etude import registry
from etude.core.checkpoint import read_weights
from etude.core.config import override
from etude.core.errors import Interrupted
from etude.core.run_folder import RunFolder
from etude.studies.darts.search_task import SearchTask

# In double precision, so that the order of a sum cannot grow into another accuracy: in single precision the
# biases before a batch norm, whose gradient is zero but for rounding, drift with Adam.
ENCODER = """
from torch import nn

from etude.studies.protonet.model import Conv4


class Precise(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Conv4(width=4).double()

    def forward(self, x):
        return self.net(x.double())
"""
STEPS = 16
PATIENCE = 300.0


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    encoder = tmp_path_factory.mktemp("encoder") / "mine.py"
    encoder.write_text(ENCODER)
    # Three parts are more than two processes share evenly.
    return (
        f"--loop.max-steps {STEPS} --loop.save-every 4 --loop.log-every 2 --loop.eval-every 4 --data.size 16 "
        "--episodes.way 5 --episodes.per-step 3 --evaluation.ways 5 --evaluation.episodes 20 "
        f"--evaluation.pool-episodes 20 --evaluation.val-episodes 20 --model.encoder {encoder}:Precise"
    ).split()


def begin(processes: int, *words: str) -> "subprocess.Popen[str]":
    """`etude` with these words, in one process or several."""
    return launch(processes, ["-m", "etude", *words])


def launch(processes: int, words: list[str]) -> "subprocess.Popen[str]":
    """Python with these words, likewise."""
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "env": toy.child_environment(), "text": True}
    if processes == 1 and words[0] == "-m":
        return Fork(words, **pipes)
    command = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(port)]
    return subprocess.Popen([*command, *words], **pipes)


def end(child: "subprocess.Popen[str]") -> None:
    try:
        _, said = child.communicate(timeout=PATIENCE)
    finally:
        child.kill()
    assert child.returncode == 0, said


def close_to(value: Any) -> Any:
    """A nested value whose floats may differ by rounding."""
    if isinstance(value, dict):
        return {key: close_to(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [close_to(entry) for entry in value]
    return pytest.approx(value, rel=1e-5) if isinstance(value, float) else value


def summary(path: Path) -> dict[str, Any]:
    found = json.loads((path / "summary.json").read_text())
    return {name: found[name] for name in ("step", "steps_trained", "validation", "results", "parameters", "extra")}


def assert_same_run(path: Path, whole: Path) -> None:
    assert len(toy.metrics(whole)) == STEPS // 2
    assert toy.metrics(path) == close_to(toy.metrics(whole))
    assert summary(path) == close_to(summary(whole))
    assert summary(path)["results"]
    names = [sorted(str(p.relative_to(run)) for p in run.rglob("*")) for run in (path, whole)]
    assert names[0] == names[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, flags: list[str]) -> Path:
    """The run of one process."""
    runs = tmp_path_factory.mktemp("one")
    end(begin(1, "run", "protonet", "smoke", "--name", "whole", "--runs", str(runs), *flags))
    return runs / "protonet" / "whole"


def wait_for_step_4(path: Path, child: "subprocess.Popen[str]") -> None:
    """Until a run has saved its fourth step."""
    deadline = time.monotonic() + PATIENCE
    while not (path / "checkpoints" / "step-00000004").exists():
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_two_processes_equal_one(tmp_path: Path, flags: list[str], whole: Path):
    end(begin(2, "run", "protonet", "smoke", "--name", "two", "--runs", str(tmp_path), *flags))
    path = tmp_path / "protonet" / "two"
    assert json.loads((path / "environment.json").read_text())["processes"] == 2
    assert_same_run(path, whole)


def test_two_processes_go_on_where_one_stopped(tmp_path: Path, flags: list[str], whole: Path):
    """And the best weights, which the one process scored, stand before the two."""
    path = tmp_path / "protonet" / "half"
    child = begin(1, "run", "protonet", "smoke", "--name", "half", "--runs", str(tmp_path), *flags)
    wait_for_step_4(path, child)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=PATIENCE)
    assert child.returncode == 130, said
    assert "saved: `etude resume" in said
    end(begin(2, "resume", str(path)))
    assert json.loads((path / "environment.json").read_text())["processes"] == 2
    assert_same_run(path, whole)


def test_a_process_that_is_killed_ends_all_and_the_run_goes_on(tmp_path: Path, flags: list[str], whole: Path):
    """Within a minute, with one line of the process that is left; one process alone then ends the run."""
    path = tmp_path / "protonet" / "cut"
    child = begin(2, "run", "protonet", "smoke", "--name", "cut", "--runs", str(tmp_path), *flags)
    wait_for_step_4(path, child)
    ranks = {rank_of(pid): pid for pid in children(child.pid)}
    assert set(ranks) == {0, 1}
    os.kill(ranks[1], signal.SIGKILL)
    killed = time.monotonic()
    _, said = child.communicate(timeout=PATIENCE)
    assert time.monotonic() - killed < 60
    assert child.returncode != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    ours = [line for line in said.splitlines() if line.startswith("etude: ")]
    assert ours == [
        f"etude: process 0 of 2 lost another one, which ended or cannot be reached: `etude resume {path}`, in as many "
        "processes as you like, goes on from the last checkpoint"
    ]
    assert "[rank0]: Traceback" not in said
    end(begin(1, "resume", str(path)))
    assert_same_run(path, whole)


def test_a_signal_to_every_process_saves(tmp_path: Path, flags: list[str], whole: Path):
    """As SLURM sends it before the time is up; torchrun then sends it to its processes once more."""
    path = tmp_path / "protonet" / "late"
    child = begin(2, "run", "protonet", "smoke", "--name", "late", "--runs", str(tmp_path), *flags)
    wait_for_step_4(path, child)
    for pid in [*children(child.pid), child.pid]:
        os.kill(pid, signal.SIGTERM)
    _, said = child.communicate(timeout=PATIENCE)
    assert child.returncode != 0
    ours = {line for line in said.splitlines() if line.startswith("etude: ")}
    newest = RunFolder.open(path).checkpoints().newest()
    assert newest is not None
    assert ours == {f"etude: stopped at step {newest}, saved: `etude resume {path}` goes on"}
    assert 4 < newest < STEPS
    end(begin(1, "resume", str(path)))
    assert_same_run(path, whole)


# The second process is gone while both measure the final results.
LAST = """
import os
import signal
import sys

from etude import cli
from etude.studies.protonet.task import ProtonetTask

results = ProtonetTask.results


def kill(task, extra):
    if task.runtime.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    task.runtime.wait()
    return results(task, extra)


ProtonetTask.results = kill
raise SystemExit(cli.main(sys.argv[1:]))
"""


def test_a_process_lost_after_training_is_one_line_too(tmp_path: Path, flags: list[str], whole: Path):
    (tmp_path / "last.py").write_text(LAST)
    path = tmp_path / "protonet" / "last"
    words = [str(tmp_path / "last.py"), "run", "protonet", "smoke", "--name", "last", "--runs", str(tmp_path), *flags]
    child = launch(2, words)
    _, said = child.communicate(timeout=PATIENCE)
    assert child.returncode != 0
    (line,) = (line for line in said.splitlines() if line.startswith("etude: "))
    # Whichever comes first: the broken connection, or the signal by which torchrun ends those that are left.
    assert line.startswith(("etude: process 0 of 2 lost another one", f"etude: stopped, step {STEPS} is saved"))
    assert f"`etude resume {path}`" in line
    assert "[rank0]: Traceback" not in said
    end(begin(1, "resume", str(path)))
    assert_same_run(path, whole)


def children(pid: int) -> list[int]:
    """The processes that a process started."""
    return [
        int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()
    ]


def rank_of(pid: int) -> int:
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(int(word[5:]) for word in words if word.startswith(b"RANK="))


def test_two_processes_write_programs_as_one(tmp_path: Path):
    """With a clip of the gradient's norm, coins of teacher forcing, and a last batch that is not full."""
    counts = {"loop.max-steps": 20, "loop.log-every": 1, "loop.eval-every": 10, "batch.parts": 2}
    flags = [word for name, value in counts.items() for word in (f"--{name}", str(value))]
    for processes, name in ((1, "one"), (2, "two")):
        end(begin(processes, "run", "text2math", "smoke", "--name", name, "--runs", str(tmp_path), *flags))
    one, two = (toy.metrics(tmp_path / "text2math" / name) for name in ("one", "two"))
    assert len(one) == len(two) == 20
    for mine, theirs in zip(two, one, strict=True):
        assert mine.keys() == theirs.keys()
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-3)
    assert two[-1]["val/loss"] == pytest.approx(one[-1]["val/loss"], rel=1e-3)


@pytest.mark.parametrize("study", ["dcgan", "pix2pix"])
def test_two_processes_train_adversaries_as_one(tmp_path: Path, study: str):
    """Two networks, each of which learns from the other's gradient."""
    counts = {"loop.max-steps": 6, "loop.log-every": 1, "loop.eval-every": 6, "batch.parts": 2}
    flags = [word for name, value in counts.items() for word in (f"--{name}", str(value))]
    for processes, name in ((1, "one"), (2, "two")):
        end(begin(processes, "run", study, "smoke", "--name", name, "--runs", str(tmp_path), *flags))
    one, two = (toy.metrics(tmp_path / study / name) for name in ("one", "two"))
    assert len(one) == len(two) == 6
    for mine, theirs in zip(two, one, strict=True):
        assert mine.keys() == theirs.keys()
        for name in ("train/loss", "train/discriminator", "train/generator"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3)


def test_two_processes_train_the_residual_network_as_one(tmp_path: Path):
    """Batch statistics, gates and running averages among them; few steps, for single precision drifts apart."""
    counts = {"loop.max-steps": 6, "loop.log-every": 1, "loop.eval-every": 6, "batch.parts": 2, "batch.size": 16}
    settings = counts | {"model.width": 4, "model.norm": "bin", "data.size": 16, "optim.lr": 0.01}
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    for processes, name in ((1, "one"), (2, "two")):
        end(begin(processes, "run", "resnet", "smoke", "--name", name, "--runs", str(tmp_path), *flags))
    one, two = (toy.metrics(tmp_path / "resnet" / name) for name in ("one", "two"))
    assert len(one) == len(two)
    for mine, theirs in zip(two, one, strict=True):
        assert mine.keys() == theirs.keys()
        for name in ("train/loss", "val/loss", "fit/loss"):
            if name in theirs:
                assert mine[name] == pytest.approx(theirs[name], rel=1e-3)
    assert sum("train/loss" in row for row in one) == 6


def test_two_processes_find_slots_as_one(tmp_path: Path):
    """A decoder with a layer that waits, a penalty, and five validation scenes, more than two share evenly."""
    counts = {
        "loop.max-steps": 6, "loop.log-every": 1, "loop.eval-every": 3, "model.size": 16, "model.broadcast": 4,
        "model.num-slots": 3, "model.slot-size": 8, "model.features": 8, "model.hidden": 8, "model.decoder-width": 4,
        "data.most": 50, "batch.size": 8, "batch.parts": 2, "optim.coarse-steps": 2, "optim.sparsity": 0.1,
    }  # fmt: skip
    flags = ["--data.flip", *(word for name, value in counts.items() for word in (f"--{name}", str(value)))]
    for processes, name in ((1, "one"), (2, "two")):
        end(begin(processes, "run", "slots", "smoke", "--name", name, "--runs", str(tmp_path), *flags))
    one, two = (toy.metrics(tmp_path / "slots" / name) for name in ("one", "two"))
    assert len(one) == len(two) == 6
    for mine, theirs in zip(two, one, strict=True):
        assert mine.keys() == theirs.keys()
        for name in ("train/loss", "train/reconstruction", "train/gradient", "val/mse", "val/sameness", "val/spread"):
            if name in theirs:
                assert mine[name] == pytest.approx(theirs[name], rel=1e-3)
    scored = [
        {(row["split"], row["metric"]): row["value"] for row in summary(tmp_path / "slots" / name)["results"]}
        for name in ("one", "two")
    ]
    assert scored[0].keys() == scored[1].keys()
    assert scored[1]["test", "mse"] == pytest.approx(scored[0]["test", "mse"], rel=1e-3)
    names = [sorted(path.name for path in (tmp_path / "slots" / name / "figures").iterdir()) for name in ("one", "two")]
    assert names[0] == names[1]
    assert "library.safetensors" in names[0]


@pytest.mark.parametrize(("preset", "loss"), [("vae-smoke", "error"), ("smoke", "loss")])
def test_two_processes_train_latent_diffusion_as_one(tmp_path: Path, preset: str, loss: str):
    """Both phases, with a mean of the weights, slots left out, and five scenes, more than two share evenly."""
    counts = {
        "loop.max-steps": 6, "loop.log-every": 1, "loop.eval-every": 3, "vae.width": 4, "vae.multipliers": "1 2",
        "model.size": 16, "model.num-slots": 3, "model.slot-size": 8, "model.features": 8, "model.hidden": 8,
        "model.width": 4, "optim.drop": 0.3, "sample.steps": 2, "sample.ancestral": 3, "data.most": 50,
        "batch.size": 8, "batch.parts": 2, "metric.reconstructed": 5,
    }  # fmt: skip
    flags = ["--data.flip", *(word for name, value in counts.items() for word in (f"--{name}", *str(value).split()))]
    for processes, name in ((1, "one"), (2, "two")):
        end(begin(processes, "run", "slotdiffusion", preset, "--name", name, "--runs", str(tmp_path), *flags))
    runs = [tmp_path / "slotdiffusion" / name for name in ("one", "two")]
    one, two = map(toy.metrics, runs)
    assert len(one) == len(two) == 6
    names = {"train/loss", "train/gradient", f"val/{loss}", "val/psnr", "val/ari", "val/sameness", "val/spread"}
    for mine, theirs in zip(two, one, strict=True):
        assert mine.keys() == theirs.keys()
        for name in names & theirs.keys():
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3), name
    # Of the same scenes in the same order; a seed of the process's own would draw another picture.
    scored = [{(row["split"], row["metric"]): row["value"] for row in summary(run)["results"]} for run in runs]
    assert scored[0].keys() == scored[1].keys()
    for split in ("val", "test"):
        assert scored[1][split, "mse"] == pytest.approx(scored[0][split, "mse"], rel=1e-2)
    drawn = [sorted(path.name for path in (run / "figures").iterdir()) for run in runs]
    assert drawn[0] == drawn[1]
    assert json.loads((runs[1] / "environment.json").read_text())["processes"] == 2


RETRAIN = {"retrain.drop-path": 0.3, "loop.eval-every": 3}
CELLS = {
    "loop.max-steps": 6, "loop.log-every": 1, "model.channels": 4, "data.size": 8, "batch.size": 16, "batch.parts": 2,
    "optim.clip": 0.5,
}  # fmt: skip


def test_two_processes_retrain_cells_as_one(tmp_path: Path):
    """With paths that are dropped."""
    flags = [word for name, value in (CELLS | RETRAIN).items() for word in (f"--{name}", str(value))]
    for processes, name in ((1, "one"), (2, "two")):
        end(begin(processes, "run", "darts", "retrain-smoke", "--name", name, "--runs", str(tmp_path), *flags))
    runs = [tmp_path / "darts" / name for name in ("one", "two")]
    one, two = map(toy.metrics, runs)
    assert len(one) == len(two) == 6
    for mine, theirs in zip(two, one, strict=True):
        assert mine.keys() == theirs.keys()
        for name in {"train/loss", "train/gradient", "val/loss"} & theirs.keys():
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3), name
    assert summary(runs[0])["extra"] == summary(runs[1])["extra"]


# In double precision: in single, alpha's first steps are rounding where its gradient is all but zero.
SEARCH = """
import json
import sys
from pathlib import Path

import torch

from etude.core.config import override
from etude.core.runtime import Runtime
from etude.studies.darts.study import smoke
from etude.studies.darts.search_task import SearchTask

config = override(smoke(), json.loads(sys.argv[1]))
runtime = Runtime(config.loop, 0)
task = SearchTask(config, runtime)
task.model.double()
rows = []
for step in range(3):
    found = task.train_step(step)
    means = runtime.sum(torch.stack([found[name].double() for name in sorted(found)])) / runtime.world
    rows.append(dict(zip(sorted(found), means.tolist())))
rows.append(task.evaluate())
state = {name: value.tolist() for name, value in task.model.state_dict().items() if value.is_floating_point()}
if runtime.is_main:
    about = {"processes": runtime.world, "rows": rows, "state": state, "ended": task.ended}
    Path(sys.argv[2]).write_text(json.dumps(about))
runtime.wait()
torch.distributed.is_initialized() and torch.distributed.destroy_process_group()
"""


def test_two_processes_search_cells_as_one(tmp_path: Path):
    """Alpha's gradients of second order and the weights', an eigenvalue, and what both do to running statistics."""
    (tmp_path / "search.py").write_text(SEARCH)
    settings = {
        "search.order": 2, "search.partial": 2, "search.edge_norm": True, "search.stop": "eigenvalue", "data.size": 8,
        "batch.size": 16, "batch.parts": 2, "search.auxiliary_skip": True, "optim.clip": 0.5,
    }  # fmt: skip
    found: list[dict[str, Any]] = []
    for processes in (1, 2):
        words = [str(tmp_path / "search.py"), json.dumps(settings), str(tmp_path / f"{processes}.json")]
        end(launch(processes, words))
        found.append(json.loads((tmp_path / f"{processes}.json").read_text()))
    assert [about.pop("processes") for about in found] == [1, 2]
    one, two = found
    assert one["state"].keys() == two["state"].keys()
    assert one["rows"][0]["alpha_loss"] != one["rows"][0]["loss"]
    assert one["rows"][-1]["eigenvalue"] > 0
    assert two["rows"] == [pytest.approx(row, rel=1e-5) for row in one["rows"]]
    for name, value in one["state"].items():
        np.testing.assert_allclose(two["state"][name], value, rtol=1e-5, atol=1e-7, err_msg=name)
    assert one["ended"] == two["ended"]


LIVES: dict[str, dict[str, Any]] = {
    "protonet": {"data.size": 16, "model.width": 4, "episodes.way": 5, "episodes.per_step": 2},
    "dcgan": {"batch.parts": 2},
    "pix2pix": {"batch.parts": 2},
    "darts": {"model.channels": 4, "data.size": 8, "batch.size": 16, "batch.parts": 2},
}
# A window of the log lies across both changes of the number of processes.
LENGTHS = {"loop.max_steps": 6, "loop.eval_every": 0, "loop.log_every": 3, "loop.save_every": 0}
SPOILED = (1, 3)
"""Steps in which the generator's gradient is not finite: the last of the first life, and of the second."""


def live(study: str, path: str, since: int, until: int, processes: int) -> None:
    """Take a run up where it must stand, or begin it, and stop it after some steps."""
    kind = SearchTask if study == "darts" else registry.load(study).module("task").make_task
    config = override(registry.load(study).preset("smoke").build(), LIVES[study] | LENGTHS)
    task, loop = toy.begin(Path(path), study, kind, config)
    assert loop.runtime.world == processes
    step, now = task.train_step, 0

    def train_step(number: int) -> Any:
        nonlocal now
        now = number
        if number == until - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(number)

    task.train_step = train_step  # type: ignore[method-assign]
    if "generator" in task.modules:
        weight = next(task.modules["generator"].parameters())
        weight.register_hook(lambda gradient: gradient * math.inf if now in SPOILED else gradient)
    assert loop.resume() == since
    with pytest.raises(Interrupted, match=f"stopped at step {until}, saved"):
        loop.train()
    if processes > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("study", LIVES)
def test_one_process_then_two_then_one_end_as_one(tmp_path: Path, study: str):
    """Weights, optimisers, what tasks keep beside them, all bit for bit, though Adam's first steps follow the sign of a
    gradient that is but rounding: of two parts there is one sum, in whichever order and process they are computed.
    """
    whole, cut, script = (tmp_path / name for name in ("whole", "cut", "live.py"))
    live(study, str(whole), 0, 6, 1)
    live(study, str(cut), 0, 2, 1)
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(toy.ROOT)!r})\nfrom tests.test_distributed import live\n"
        f"live({study!r}, {str(cut)!r}, 2, 4, 2)\n"
    )
    end(launch(2, [str(script)]))
    live(study, str(cut), 4, 6, 1)
    ours, theirs = (RunFolder.open(path).checkpoints() for path in (cut, whole))
    assert toy.same(read_weights(ours.weights(6))[0], read_weights(theirs.weights(6))[0])
    state = theirs.load_resume(6)
    assert toy.same(ours.load_resume(6), state)
    assert len(toy.metrics(whole)) == 2
    assert toy.metrics(cut) == [close_to(row) for row in toy.metrics(whole)]
    # What was kept is no beginner's: the comparison is of something.
    assert len(state["optimizers"]) == {"protonet": 1}.get(study, 2)
    if study in ("dcgan", "pix2pix"):
        assert state["task"]["steps"]["skipped"] == len(SPOILED)
