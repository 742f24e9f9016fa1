"""`etude run --print-launch`: what it prints starts the run in several processes."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.core import toy

from etude.cli import main

SMALL = shlex.split(
    "--loop.max-steps 4 --model.width 4 --data.size 16 --episodes.way 5 --episodes.per-step 2 --evaluation.ways 5 "
    "--evaluation.episodes 20 --evaluation.pool-episodes 20 --evaluation.val-episodes 20"
)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*words: str) -> str:
        assert main(["run", *words]) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
    """An environment in which SLURM has one machine, this one, and `uv run` runs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    python = shlex.quote(sys.executable)
    for name, text in {
        "scontrol": "echo 127.0.0.1",
        "srun": 'exec "$@"',
        # The port that the script names may be taken here: one machine needs no meeting point.
        "uv": f'shift 2; words=(); for w in "$@"; do words+=("${{w/127.0.0.1:29500/localhost:0}}"); done; '
        f'exec {python} -m torch.distributed.run "${{words[@]}}"',
    }.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    slurm = {"SLURM_JOB_NODELIST": "here", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "SCRATCH": str(tmp_path)}
    return toy.child_environment() | slurm | {"PATH": path}


def test_a_line_for_one_machine_and_for_two(printed: Callable[..., str]):
    words = "slots paper --batch.parts 16 --name mine --print-launch torchrun"
    assert printed(*words.split()) == (
        "uv run torchrun --nproc_per_node 8 -m etude run slots paper --batch.parts 16 --name mine\n"
    )
    assert printed(*words.split(), "--nodes", "2", "--runs", "on disk") == (
        "uv run torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint first:29500 "
        "-m etude run slots paper --batch.parts 16 --name mine --runs 'on disk'\n"
    )


def test_the_line_trains_in_two_processes(tmp_path: Path, printed: Callable[..., str], programs: dict[str, str]):
    line = printed("protonet", "smoke", *SMALL, "--runs", str(tmp_path), "--print-launch", "torchrun")
    subprocess.run(["bash", "-c", line], env=programs, check=True, capture_output=True, timeout=300)
    (run,) = (tmp_path / "protonet").iterdir()
    assert json.loads((run / "environment.json").read_text())["processes"] == 2


def test_the_script_trains_and_goes_on(tmp_path: Path, printed: Callable[..., str], programs: dict[str, str]):
    words = ["protonet", "smoke", *SMALL, "--runs", str(tmp_path), "--name", "it's", "--print-launch", "slurm"]
    script = tmp_path / "job.sbatch"
    script.write_text(printed(*words))
    for said in ("done: ", "ended already: "):
        child = subprocess.run(
            ["bash", str(script)], env=programs, check=True, capture_output=True, text=True, timeout=300
        )
        assert f"{said}{tmp_path}/protonet/it's" in child.stderr
    assert json.loads((tmp_path / "protonet" / "it's" / "environment.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--print-launch lsf", "--print-launch takes torchrun or slurm, not 'lsf'"),
        ("--print-launch slurm --nodes 0", "--nodes takes a whole number of at least 1, not '0'"),
        ("--print-launch slurm --per-node two", "--per-node takes a whole number of at least 1, not 'two'"),
        (
            "--print-launch torchrun --per-node 4",
            "cannot share a batch of 1 part(s): --episodes.per-step 4",
        ),
        ("--print-launch torchrun --nodes 2", "2 processes cannot share a batch of 1 part(s): --episodes.per-step 2"),
        ("--nodes 2", "--nodes and --per-node are of --print-launch"),
    ],
)
def test_a_wrong_launch_is_one_line(words: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["run", "protonet", "smoke", "--runs", str(tmp_path), *words.split()]) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not list(tmp_path.iterdir())


def test_a_batch_is_named_as_the_study_names_it(capsys: pytest.CaptureFixture[str]):
    assert main(["run", "resnet", "smoke", "--print-launch", "torchrun", "--per-node", "2"]) == 2
    assert "--batch.parts 2, or fewer processes" in capsys.readouterr().err
