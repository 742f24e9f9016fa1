"""The start of a run in several processes: a torchrun line, or a SLURM script around it."""

import shlex
from typing import Any

from etude.core.config import StudyConfig
from etude.core.errors import UserError

FORMS = ("torchrun", "slurm")
_SLURM = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={per_node}
#SBATCH --cpus-per-task={cores}
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120

# torchrun hands the signal on, and kills what has not saved after so many seconds; it would wait 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100
# Data are there before the job: `etude data get` on a machine with a network.
export ETUDE_CACHE=${{ETUDE_CACHE:-$SCRATCH/etude}}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
etude=(-m etude {words})
if [ -d {run} ]; then etude=(-m etude resume {run}); fi

srun uv run torchrun \\
  --nnodes "$SLURM_NNODES" --nproc_per_node {per_node} \\
  --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$first:29500" \\
  "${{etude[@]}}"
"""


def parts(config: StudyConfig) -> tuple[str, int]:
    """The flag that says into how many parts a step's batch is cut, and how many they are: processes share parts."""
    untyped: Any = config
    if hasattr(config, "batch"):
        return "--batch.parts", untyped.batch.parts
    return "--episodes.per-step", untyped.episodes.per_step


def launch(form: str, words: list[str], *, config: StudyConfig, run: str, nodes: str, per_node: str) -> str:
    """The text that starts ``etude`` with these words on several machines.

    Args:
        form: ``torchrun``, a line for each machine, or ``slurm``, a script for sbatch.
        words: the words of `etude`, the run's name among them, which make ``config``.
        run: the run's folder, which a job that is submitted again goes on with.
        nodes: the number of machines.
        per_node: processes on each, one a GPU; empty: as many as the parts allow, at most eight.

    Raises:
        UserError: an unknown form, a count that is none, or more processes than the batch has parts.
    """
    if form not in FORMS:
        raise UserError(f"--print-launch takes {' or '.join(FORMS)}, not '{form}'")
    flag, most = parts(config)
    many = _count("--nodes", nodes)
    each = _count("--per-node", per_node) if per_node else max(1, min(8, most // many))
    if many * each > most:
        raise UserError(
            f"{many * each} processes cannot share a batch of {most} part(s): {flag} {many * each}, or fewer processes"
        )
    line = shlex.join(words)
    if form == "slurm":
        name = run.rstrip("/").rpartition("/")[2]
        return _SLURM.format(
            name=shlex.quote(name), nodes=many, per_node=each, cores=4 * each, words=line, run=shlex.quote(run)
        ).rstrip("\n")
    where = f"--nnodes {many} --nproc_per_node {each} --rdzv_backend c10d --rdzv_endpoint first:29500"
    return f"uv run torchrun {where if many > 1 else f'--nproc_per_node {each}'} -m etude {line}"


def _count(flag: str, word: str) -> int:
    if not word.isdigit() or not 1 <= int(word) <= 10_000:
        raise UserError(f"{flag} takes a whole number of at least 1, not '{word}'")
    return int(word)
