"""``etude check STUDY [PRESET] [--flags]``: one batch of everything, and what a run will cost.

Builds the preset, trains a few steps, evaluates, saves a checkpoint and reads it back into a second
network, in a folder that is removed again.
"""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from etude.core.config import to_dict
from etude.core.run_folder import RunFolder, RunRecord
from etude.core.study import Task
from etude.runs import memory
from etude.runs.flags import switch, take
from etude.runs.table import show
from etude.runs.training import Choice, choose, peak_memory_mb

HELP = """usage: etude check STUDY [PRESET] [--flags] [--memory MB] [--training-only] [--json]

Runs one batch of training, evaluation, saving and reloading, and a part of the final results. Prints parameters,
time a step, memory and the estimated time of the whole run without its final results. The flags are those of
`etude run`.

--memory MB: find the fewest parts (--batch.parts) of a step's batch that keep training within so much, and check those.
--training-only: leave evaluation, saving and reloading out."""
_STEPS = 4

T = TypeVar("T")


def main(args: list[str]) -> None:
    as_json, short = switch(args, "--json"), switch(args, "--training-only")
    word = take(args, "--memory", "")
    most = memory.limit(word) if word else 0
    chosen = choose(args, "etude check")
    found: dict[str, Any] = {}
    if most:
        # First: the batch in one may take more than there is.
        number, took = memory.fit(args, chosen.config, most)
        found = {"parts_within_limit": {"limit_mb": most, "parts": number, "training_mb": took}}
        chosen = choose([*args, "--batch.parts", str(number)], "etude check")
    facts = check(chosen, training_only=short) | found
    if as_json:
        show([facts], as_json=True)
    else:
        lines = [line.partition(": ") for line in facts.pop("inventory").get("lines", ())]
        told = [{"fact": name.replace("_", " "), "value": _words(name, value)} for name, value in facts.items()]
        show(told + [{"fact": name, "value": value} for name, _, value in lines])


def check(choice: Choice, *, training_only: bool = False) -> dict[str, Any]:
    """Try a preset out and measure it; raises where training, evaluation, saving or reloading fails."""
    import torch

    from etude.core import randomness
    from etude.core.checkpoint import WeightsHeader
    from etude.core.loop import Loop
    from etude.core.runtime import Runtime

    study, config = choice.study, choice.config
    runtime = Runtime(config.loop, config.seed)

    def first() -> Task:
        task = study.task(config, runtime)
        task.train_step(0)
        return task

    def more() -> float:
        for step in range(1, _STEPS + 1):
            randomness.seed_globals(config.seed, "step", step)
            metrics = task.train_step(step)
        return metrics["loss"].item()

    task, prepare_s = _timed(first)
    loss, steps_s = _timed(more)
    # Where batches are not alike, most memory is that of the largest.
    heaviest = getattr(task, "heaviest_step", None)
    if heaviest is not None:
        task.train_step(heaviest())
    held = {"training": peak_memory_mb()}
    if not math.isfinite(loss):
        raise RuntimeError(f"the loss is {loss} after {_STEPS + 1} steps")
    facts: dict[str, Any] = {
        "study": study.name,
        "preset": choice.preset,
        "inventory": dict(task.inventory()),
        "device": str(runtime.device),
        "processes": runtime.world,
        "threads": torch.get_num_threads(),
        "parameters": {name: sum(p.numel() for p in module.parameters()) for name, module in task.modules.items()},
        "loss_after_steps": loss,
        "seconds_to_first_step": prepare_s,
        "seconds_per_step": steps_s / _STEPS,
        "batch_in_parts": memory.about_parts(task),
    }
    if own := getattr(task, "own_parts", list)():
        facts["own_parts"] = "; ".join(own)
    if training_only:
        return facts | {"memory_mb": held}
    memory.reset_peak()
    validation, eval_s = _timed(task.evaluate)
    held["evaluation"] = peak_memory_mb()
    memory.reset_peak()
    _, rehearse_s = _timed(lambda: memory.rehearse(task, config))
    held["final results"] = peak_memory_mb()
    with tempfile.TemporaryDirectory() as folder:
        record = RunRecord(study.name, choice.preset, choice.scale, choice.overrides, to_dict(config))
        run = RunFolder.create(Path(folder) / study.name / "check", record)
        loop = Loop(task, config.loop, run, runtime, WeightsHeader(study.name, record.config, {}))
        loop.state = replace(loop.state, step=_STEPS + 1)
        _, save_s = _timed(loop.save)
        size_mb = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file()) / 2**20
        again = study.task(config, runtime)
        Loop(again, config.loop, run, runtime, loop.header).resume()
    for name, module in task.modules.items():
        for (key, one), two in zip(module.state_dict().items(), again.modules[name].state_dict().values(), strict=True):
            if not torch.equal(one, two):
                raise RuntimeError(f"{name}.{key} is another after a reload")
    steps, every = task.num_steps, config.loop.eval_every
    evaluations = max(1, steps // every if every else 1)
    saves = steps / (config.loop.save_every or steps)
    return facts | {
        "validation": validation,
        "seconds_per_evaluation": eval_s,
        "seconds_per_checkpoint": save_s,
        "seconds_of_a_part_of_the_results": rehearse_s,
        "checkpoint_mb": size_mb,
        "memory_mb": held,
        "peak_memory_mb": max(held.values()),
        "steps": steps,
        "estimated_seconds": prepare_s + steps * steps_s / _STEPS + evaluations * eval_s + saves * save_s,
        "reload": "equal",
    }


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """The result of some work, and the seconds that it took."""
    started = time.monotonic()
    return work(), time.monotonic() - started


def _words(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(name, part)}" for key, part in value.items())
    if name == "estimated_seconds":
        hours, minutes = divmod(round(value / 60), 60)
        return f"{value:.0f} ({hours} h {minutes:02d} min)"
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
