"""From a configuration to a finished run folder; `run`, `resume`, `demo` and `study` go through here."""

import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from etude import studies
from etude.core.checkpoint import WeightsHeader
from etude.core.config import StudyConfig
from etude.core.errors import UserError
from etude.core.loop import Loop
from etude.core.run_folder import RunFolder
from etude.core.runtime import Runtime
from etude.core.study import Study, Task
from etude.report.card import write_card


def run_to_end(study: Study, run: RunFolder, config: StudyConfig, *, quiet: bool = False) -> dict[str, Any]:
    """Train a run from wherever it stands, evaluate it on the test split, and write what it leaves.

    Returns the summary. A run that has ended already is left as it is.
    """
    runtime = Runtime(config.loop, config.seed)
    if runtime.is_main:
        run.lock()
    try:
        if run.summary is not None:
            return run.summary
        task = study.task(config, runtime)
        header = WeightsHeader(study.name, run.record.config, {})
        loop = Loop(task, config.loop, run, runtime, header)
        resumed_at = loop.resume()
        if runtime.is_main:
            run.write_environment(task.data_checksums(), processes=runtime.world, device=str(runtime.device))
            if not quiet:
                start = f", from step {resumed_at}" if resumed_at else ""
                say(f"{study.name} {run.record.preset} in {run.path}{start}")
        loop.train()
        step = loop.reload()
        summary = _summary(run, task, loop, step)
        if runtime.is_main:
            run.figures.mkdir(exist_ok=True)
            task.figures(run.figures, list(run.metrics()))
            run.write_summary(summary)
            write_card(study, run)
        runtime.wait()
        return summary
    finally:
        run.unlock()


def _summary(run: RunFolder, task: Task, loop: Loop, step: int) -> dict[str, Any]:
    record, state = run.record, loop.state
    extra = task.finish()
    return {
        "format": 1,
        "study": record.study,
        "preset": record.preset,
        "scale": record.scale,
        "seed": record.config["seed"],
        "overrides": record.overrides,
        "command": record.command,
        "step": step,
        "steps_trained": state.step,
        "stopped_early": state.stopped_early,
        "validation": {"metric": task.monitor[0], "best": state.best} if task.monitor else None,
        "results": [result.to_dict() for result in task.results()],
        "parameters": {name: sum(p.numel() for p in module.parameters()) for name, module in task.modules.items()},
        "train_seconds": round(state.seconds, 1),
        "peak_memory_mb": peak_memory_mb(),
        "extra": extra,
    }


def peak_memory_mb() -> int:
    """The most memory this process has held: on the accelerator if there is one, else in RAM."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() // 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def open_run(path: Path) -> tuple[Study, RunFolder, StudyConfig]:
    """A run folder with its study and configuration."""
    run = RunFolder.open(path)
    study = studies.load(run.record.study)
    return study, run, run.config(study.config)


def load_trained(path: Path) -> tuple[Study, RunFolder, StudyConfig, Task]:
    """A finished run's task with its chosen weights."""
    study, run, config = open_run(path)
    task = study.task(config, Runtime(config.loop, config.seed))
    checkpoints = run.checkpoints()
    step = checkpoints.best_step if checkpoints.best_step is not None else checkpoints.newest()
    if step is None:
        raise UserError(f"{path} has no checkpoint yet: `etude resume {path}` trains it")
    checkpoints.load_weights(step, task.modules, study.name)
    return study, run, config, task


def say(text: str) -> None:
    """One line for the person at the terminal, on standard error."""
    print(text, file=sys.stderr, flush=True)


def default_name(preset: str, overrides: Mapping[str, Any], seed: int) -> str:
    """A run's name from what sets it apart: ``laptop-shot=5-seed0``."""
    parts = [
        f"{name.split('.')[-1]}={value}"
        for name, value in overrides.items()
        if name not in {"seed", "selected_run"} and not name.startswith("loop.")
    ]
    return "-".join([preset, *parts, f"seed{seed}"]).replace("/", "_").replace(" ", "")
