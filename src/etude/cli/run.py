"""``etude run STUDY [PRESET] [--name NAME] [--flags]``: train a preset."""

import contextlib
import os
import shlex
import shutil
from pathlib import Path

from etude.core.config import to_dict
from etude.core.errors import UserError
from etude.core.files import locked
from etude.core.run_folder import RunFolder, RunRecord
from etude.runs.flags import take
from etude.runs.launch import launch
from etude.runs.memory import fit, limit
from etude.runs.training import bearing_ends, choose, default_name, refuse_other, run_to_end, say, world_size

HELP = """usage: etude run STUDY [PRESET] [--name NAME] [--runs FOLDER] [--flags]

Trains a preset (laptop where none is named) in runs/STUDY/NAME. `etude run STUDY PRESET --help` lists the
flags; `etude show STUDY` lists the presets. On several processes: torchrun --nproc_per_node 2 -m etude run ...
--memory MB cuts a step's batch into as many parts as keep training within so much; `etude check` says what changes.
--print-launch torchrun|slurm [--nodes N] [--per-node N] trains nothing: it prints the line or the script that does."""


def main(args: list[str]) -> None:
    name, runs = take(args, "--name", ""), take(args, "--runs", "runs")
    form, nodes, per_node = take(args, "--print-launch", ""), take(args, "--nodes", ""), take(args, "--per-node", "")
    if (nodes or per_node) and not form:
        raise UserError("--nodes and --per-node are of --print-launch: torchrun starts the processes of a run")
    if name and (name in (".", "..") or Path(name).name != name):
        raise UserError(f"--name {name} is no plain name of a folder: give one without a slash, the place is --runs")
    most = take(args, "--memory", "")
    chosen = choose(args, "etude run")
    if most:
        if "RANK" in os.environ:
            check = f"`etude check {shlex.join(args)} --memory {most}` names the parts"
            raise UserError(f"--memory measures in one process: {check}, which all are then given")
        number, took = fit(args, chosen.config, limit(most))
        say(f"--batch.parts {number}: a step takes {took:,} MB")
        args = [*args, "--batch.parts", str(number)]
        chosen = choose(args, "etude run")
    if form:
        where = f"{runs}/{chosen.study.name}/{name or default_name(chosen)}"
        words = ["run", *args, "--name", name or default_name(chosen), *(["--runs", runs] if runs != "runs" else [])]
        print(launch(form, words, config=chosen.config, run=where, nodes=nodes or "1", per_node=per_node))
        return
    path = Path(runs) / chosen.study.name / (name or default_name(chosen))
    record = RunRecord(chosen.study.name, chosen.preset, chosen.scale, chosen.overrides, to_dict(chosen.config))
    new = not path.exists()
    refuse_other(path, chosen.config)
    run = _shared_folder(path, record) if world_size() > 1 else RunFolder.create(path, record)
    try:
        summary = run_to_end(chosen.study, run, chosen.config)
    except UserError:
        # A run that could not even begin leaves its name free.
        if new and world_size() == 1:
            # Another process that resumes it meanwhile keeps it.
            with contextlib.suppress(UserError), locked(path / ".lock", "in use"):
                if not run.checkpoints().steps() and not list(run.metrics()):
                    shutil.rmtree(path)
        raise
    for row in summary["results"]:
        width = f" ± {row['half_width']:.2f}" if row["half_width"] is not None else ""
        value = f"{row['value']:.2f}{width} {row['unit']}"
        say(f"  {row['experiment']} {row['cell']} {row['metric']}: {value} ({row['split']})")
    say(f"done: {path}")


def _shared_folder(path: Path, record: RunRecord) -> RunFolder:
    """The folder of a run of several processes: made by the first, opened by all."""
    from accelerate import PartialState

    cpu = record.config["loop"]["device"] == "cpu"
    with bearing_ends(RunFolder(path)):
        state = PartialState(cpu=cpu)
        if state.is_main_process:
            RunFolder.create(path, record)
        state.wait_for_everyone()
    return RunFolder.open(path)
