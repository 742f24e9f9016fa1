"""The way from a configuration to a finished run folder; `run`, `resume`, `demo` and `study` go through here."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etude import registry
from etude.core.config import Scale, StudyConfig, differences, flat, override, run_name, substance, to_dict, to_yaml
from etude.core.errors import Interrupted, UserError
from etude.core.files import write_atomic, write_json
from etude.core.run_folder import FORMAT, RunFolder
from etude.core.study import Study, Task
from etude.runs.environment import environment
from etude.runs.flags import parse

if TYPE_CHECKING:
    from etude.core.loop import Loop

# What needs PyTorch is imported where it is used: help, lists and wrong words do without it.


@dataclass(frozen=True)
class Choice:
    """A preset with the flags of a command line."""

    study: Study
    preset: str
    scale: Scale
    config: StudyConfig
    overrides: dict[str, Any]
    """The settings in which ``config`` differs from the preset, dotted."""


def choose(args: list[str], prog: str) -> Choice:
    """Read ``STUDY [PRESET] [--flags]``; the preset is laptop where none is named."""
    study = registry.load(args[0])
    named = len(args) > 1 and not args[1].startswith("-")
    name, flags = (args[1], args[2:]) if named else ("laptop", args[1:])
    preset = study.preset(name)
    before = preset.build()
    about = preset.build.__doc__ or ""
    config = parse(study.config, flags, prog=f"{prog} {study.name} {name}", default=before, description=about)
    config = override(before, differences(before, config))
    return Choice(study, name, preset.scale, config, differences(before, config))


def run_to_end(study: Study, run: RunFolder, config: StudyConfig) -> dict[str, Any]:
    """Train a run from wherever it stands, evaluate it on the test split, and write what it leaves.

    Returns the summary. A run that has ended already is left as it is.
    """
    from etude.core.checkpoint import WeightsHeader
    from etude.core.loop import Loop
    from etude.core.runtime import Runtime
    from etude.runs.card import write_card
    from etude.runs.tracking import open_sinks

    with bearing_ends(run), contextlib.ExitStack() as ends:
        runtime = Runtime(config.loop, config.seed)
        ends.callback(run.unlock)
        if runtime.is_main:
            run.lock()
        if run.summary is not None:
            return run.summary
        _refuse_edited(run, config)
        task = study.task(config, runtime)
        if config.loop.epochs and not task.epoch_steps:
            raise UserError("loop.epochs must be 0 where the training has no epochs: give --loop.max-steps")
        for line in task.inventory().get("lines", ()):
            say(line)
        loop = Loop(task, config.loop, run, runtime, WeightsHeader(study.name, run.record.config, {}))
        resumed_at = loop.resume()
        if config.init and not resumed_at:
            from etude.runs.weights import begin_with

            said = begin_with(task, study, config)
            if runtime.is_main:
                say(f"{run.path.name}: {said}")
        if runtime.is_main:
            about = {"data": task.data_checksums(), "processes": runtime.world, "device": str(runtime.device)}
            about |= {"steps": task.num_steps, "epoch_steps": task.epoch_steps}
            write_json(run.path / "environment.json", environment() | about)
            if sys.stderr.isatty():
                start = f", from step {resumed_at}" if resumed_at else ""
                say(f"{study.name} {run.record.preset} in {run.path}{start}")
        loop.train(open_sinks(config.loop.trackers, run.path, resumed_at) if runtime.is_main else ())
        step = loop.reload()
        summary = _summary(run, task, loop, step)
        if runtime.is_main:
            # Pictures may fail, or take long: the results stand by then.
            run.write_summary(summary)
            run.figures.mkdir(exist_ok=True)
            if study.has("figures"):
                from etude.draw.figures import each_alone, epochs_of

                try:
                    with runtime.alone(), each_alone(say), epochs_of(task.epoch_steps):
                        study.module("figures").draw(task, run.figures, list(run.metrics()))
                except KeyboardInterrupt:
                    # Asked to stop, the run has not ended: when it is resumed, it draws.
                    (run.path / "summary.json").unlink()
                    raise
            else:
                say(f"etude: {study.lacks('figures.py')}: no pictures are drawn")
            write_card(study, run, summary)
        runtime.wait()
        return summary


def apart(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings in which two configurations of one study differ, in words: those that say what a run learns, its
    seed among them, and that both have."""
    # As JSON has them.
    old, new = (flat(json.loads(json.dumps(values))) for values in (before, now))
    said = {name: value for name, value in new.items() if name == "seed" or name in substance(new)}
    return [
        f"{name} is {old[name]} there and {value} here" for name, value in said.items()
        if name in old and old[name] != value
    ]  # fmt: skip


def refuse_other(path: Path, config: StudyConfig) -> None:
    """Refuse a folder that holds a run with other settings; one with the same is for `etude resume`."""
    if (path / "config.yaml").exists():
        differ = apart(RunFolder.open(path).record.config, to_dict(config))
        if differ:
            fault = f"{path} holds a run already with other settings ({'; '.join(differ)})"
            raise UserError(f"{fault}: choose another --name or --runs, or move it")


def _refuse_edited(run: RunFolder, config: StudyConfig) -> None:
    """Refuse settings that were changed since a run's newest checkpoint, which its optimisers would only half obey.

    The loop's own may change, and the place of a folder.
    """
    from etude.core.checkpoint import read_weights

    step = max(run.checkpoints().steps(), default=None)
    if step is None:
        return
    try:
        _, header = read_weights(run.checkpoints().path(step) / "weights.safetensors")
    except UserError:
        # Passed over with a warning when the run is resumed.
        return
    edited = [
        line for line in apart(header.config, to_dict(config))
        if not line.startswith("loop.") and not line.split(" ")[0].endswith("folder")
    ]  # fmt: skip
    if edited:
        fix = f"put it back, or begin a run of its own with `etude run {run.record.study}`"
        raise UserError(f"{run.path / 'config.yaml'} was edited after step {step}: {'; '.join(edited)}: {fix}")


def lengthen(run: RunFolder, steps: int) -> None:
    """Record that a run, which may have ended, trains up to ``steps``.

    Raises:
        UserError: it has trained as many already, or is in use.
    """
    run.lock()
    try:
        record, trained = run.record, run.checkpoints().newest() or 0
        if steps <= trained:
            raise UserError(f"--loop.max-steps {steps}: {run.path} has trained {trained} steps: give more")
        length = {"max_steps": steps, "epochs": 0.0}
        overrides = record.overrides | {"loop.max_steps": steps}
        if record.config["loop"].get("epochs"):
            overrides["loop.epochs"] = 0.0
        changed = {"overrides": overrides, "config": record.config | {"loop": record.config["loop"] | length}}
        write_atomic(run.path / "config.yaml", to_yaml({"format": FORMAT, **vars(record), **changed}))
        (run.path / "summary.json").unlink(missing_ok=True)
    finally:
        run.unlock()


@contextlib.contextmanager
def bearing_ends(run: RunFolder) -> Generator[None, None, None]:
    """Within it, whatever ends a run's process or another one of it, the last line says how the run goes on.

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
        UserError: another process is gone.
    """
    from etude.core.loop import on_stop

    rank, world = os.environ.get("RANK", "0"), world_size()
    try:
        with on_stop(signal.default_int_handler):
            try:
                yield
            except RuntimeError as error:
                import torch.distributed

                # Gloo has no error class of its own.
                gone = isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()
                if world == 1 or not gone:
                    raise
                lost = f"process {rank} of {world} lost another one, which ended or cannot be reached"
                if not (run.path / "config.yaml").exists():
                    raise UserError(f"{lost} before the run began: start it again") from error
                how = "in as many processes as you like, goes on from the last checkpoint"
                raise UserError(f"{lost}: `etude resume {run.path}`, {how}") from error
    except KeyboardInterrupt as error:
        if world > 1:
            # A launcher hands on what all its processes were sent: the line below must come all the same.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if not (run.path / "config.yaml").exists():
            raise Interrupted("stopped before the run began") from error
        steps = run.checkpoints().steps()
        saved = f"step {steps[-1]} is saved" if steps else "no step is saved yet"
        raise Interrupted(f"stopped, {saved}: `etude resume {run.path}` goes on") from error


def world_size() -> int:
    """The number of processes that the launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _summary(run: RunFolder, task: Task, loop: "Loop", step: int) -> dict[str, Any]:
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
        "validation": (
            {"metric": task.monitor[0], "best": state.best, "direction": task.monitor[1]} if task.monitor else None
        ),
        "results": [result.to_dict() for result in task.results(extra)],
        "inventory": dict(task.inventory()),
        "parameters": {name: sum(p.numel() for p in module.parameters()) for name, module in task.modules.items()},
        "train_seconds": round(state.seconds, 1),
        "peak_memory_mb": peak_memory_mb(),
        "extra": extra,
    }


def peak_memory_mb() -> int:
    """The most memory this process has held: on the accelerator if there is one, else in RAM."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() // 2**20
    with contextlib.suppress(OSError, StopIteration):
        # Not getrusage(2), to which what the parent held at the start also counts.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 2**10
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset // 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def say(text: str) -> None:
    """One line for the person at the terminal, on standard error; of several processes the first speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


def default_name(choice: Choice) -> str:
    """A run's name from what sets it apart: ``laptop-shot=5-seed0``."""
    return run_name([choice.preset], choice.overrides, [f"seed{choice.config.seed}"])
