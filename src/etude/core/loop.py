"""The training loop: it counts, logs, evaluates, saves and resumes. The algorithm is the task's."""

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol, cast, runtime_checkable

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

from etude.core import randomness
from etude.core.checkpoint import Checkpoints, WeightsHeader, refuse_other_network
from etude.core.config import LoopConfig
from etude.core.errors import Interrupted, UserError
from etude.core.run_folder import RunFolder
from etude.core.runtime import Runtime
from etude.core.study import Task


@runtime_checkable
class Sink(Protocol):
    """A tracker that is told what metrics.jsonl is told."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


@dataclass
class LoopState:
    """The state that the loop itself must keep for an exact resume."""

    step: int = 0
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    """Evaluations since the best one."""
    stopped_early: bool = False
    seconds: float = 0.0
    """Training time over all parts of a run that was resumed."""


class _Window:
    """Training metrics since the last log line, summed on the device so that no step waits for it."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.bad_step: Tensor | None = None

    def add(self, metrics: Mapping[str, Tensor], step: int) -> None:
        for name, value in metrics.items():
            value = value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1
        loss = metrics["loss"].detach()
        if self.bad_step is None:
            self.bad_step = torch.full_like(loss, -1, dtype=torch.long)
        first = ~torch.isfinite(loss) & (self.bad_step < 0)
        self.bad_step = torch.where(first, torch.full_like(self.bad_step, step), self.bad_step)

    def means(self, runtime: Runtime) -> dict[str, float]:
        """The means over steps and processes; empties the window."""
        names = sorted(self.sums)
        if not names:
            return {}
        total = runtime.sum(torch.stack([self.sums[name] for name in names])) / (self.count * runtime.world)
        self.sums, self.count = {}, 0
        return dict(zip(names, cast(Any, total).tolist(), strict=True))

    def first_bad_step(self, runtime: Runtime) -> int | None:
        """The first step whose loss was not finite, in any process."""
        if self.bad_step is None:
            return None
        steps = runtime.gather(self.bad_step.reshape(1), runtime.world)
        bad = steps[steps >= 0]
        return int(bad.min().item()) if len(bad) else None

    def state(self, runtime: Runtime) -> dict[str, Any]:
        """The means over the processes, of which a resume may have another number."""
        sums = {name: runtime.sum(value) / runtime.world for name, value in self.sums.items()}
        return {"sums": sums, "count": self.count}

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.count = state["count"]


@contextmanager
def on_stop(handler: Callable[[int, FrameType | None], None]) -> Generator[None, None, None]:
    """Within it, Ctrl-C and SIGTERM call ``handler``; in another thread than the main one they do what they did."""
    try:
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        # Only the main thread may set handlers.
        yield
        return
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def progress_bar(*, enabled: bool = True) -> Progress:
    """A progress bar with the time left, on standard error; silent where that is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    return Progress(*columns, *left, console=console, disable=not (enabled and console.is_terminal), transient=True)


class Loop:
    """Trains a task within a run folder, which the main process has locked; each weights file says ``header``."""

    def __init__(self, task: Task, config: LoopConfig, run: RunFolder, runtime: Runtime, header: WeightsHeader) -> None:
        self.task, self.config, self.run, self.runtime, self.header = task, config, run, runtime, header
        self.checkpoints: Checkpoints = run.checkpoints(config.keep)
        self.state = LoopState()
        self.window = _Window()
        self.saved_at = time.monotonic()
        self.scored_here = False
        """True if this process measured the best score."""

    def resume(self) -> int:
        """Take up the newest checkpoint that is whole. Returns its step; 0 if there is none."""
        step = self.checkpoints.newest()
        if step is None:
            if self.checkpoints.steps():
                raise UserError(f"no checkpoint in {self.checkpoints.folder} is whole: start a new run")
            if self.runtime.is_main:
                self.run.rewind_metrics(0)
            return 0
        resume = self.checkpoints.load_resume(step)
        header = self.checkpoints.load_weights(step, self.task.modules, self.header.study)
        refuse_other_network(header, self.header.config, self.checkpoints.path(step))
        for name, optimizer in self.task.optimizers.items():
            optimizer.load_state_dict(resume["optimizers"][name])
        self.task.load_extra_state(resume["task"])
        self.runtime.load_state(resume["runtime"])
        self.window.load_state(resume["window"], self.runtime.device)
        self.state = state = LoopState(**resume["loop"])
        if self.config.max_steps > header.config.get("loop", {}).get("max_steps", self.config.max_steps):
            # A run that is made longer gets its patience anew.
            state.stopped_early, state.stale = False, 0
        if state.best_step not in (None, step) and not self.checkpoints.usable(state.best_step):
            # A later best one, which is broken now, had taken its place.
            state.best = state.best_step = None
            if state.stopped_early or step == self.task.num_steps:
                self._judge(self.task.evaluate())
        if self.runtime.is_main:
            self.run.rewind_metrics(step)
            # A kill may have come between the checkpoint and the mark.
            self._mark_best()
        return step

    def train(self, sinks: Sequence[Sink] = ()) -> None:
        """Train to the end, from where `resume` left it or from the start; trackers are closed in any case.

        Raises:
            UserError: a loss that is not finite, or no room for a checkpoint.
            Interrupted: Ctrl-C or SIGTERM; the step under way has ended and is saved.
            KeyboardInterrupt: a second Ctrl-C, at once, where this is the only process; or a stop after the last save.
        """
        config, state = self.config, self.state
        stopping: list[int] = []

        def note(number: int, frame: FrameType | None) -> None:
            # A launcher hands on what its processes were sent themselves, and has a kill of its own.
            if number == signal.SIGINT and number in stopping and self.runtime.world == 1:
                raise KeyboardInterrupt
            stopping.append(number)

        with ExitStack() as ends, on_stop(note), progress_bar(enabled=self.runtime.is_main) as bar:
            for sink in sinks:
                ends.callback(sink.close)
            shown = bar.add_task(self.run.path.name, total=self.task.num_steps, completed=state.step, note="")
            while state.step < self.task.num_steps and not state.stopped_early:
                started = time.monotonic()
                randomness.seed_globals(self.runtime.seed, "step", state.step, self.runtime.rank)
                self.window.add(self.task.train_step(state.step), state.step)
                state.step += 1
                state.seconds += time.monotonic() - started
                last = state.step == self.task.num_steps
                rows: dict[str, float] = {}
                if last or _due(state.step, config.log_every):
                    self._refuse_non_finite()
                    rows = {f"train/{name}": value for name, value in self.window.means(self.runtime).items()}
                    bar.update(shown, note=f"loss {rows['train/loss']:.4f}")
                improved = False
                if last or _due(state.step, config.eval_every):
                    self._refuse_non_finite()
                    validation = self.task.evaluate()
                    rows |= {name if "/" in name else f"val/{name}": value for name, value in validation.items()}
                    improved = self._judge(validation)
                    state.stopped_early |= self.task.ended
                    if bar.disable and self.runtime.is_main:
                        print(self._progress(rows), file=sys.stderr, flush=True)
                if rows and self.runtime.is_main:
                    self.run.append_metrics({"step": state.step, "seconds": round(state.seconds, 3)} | rows)
                    for sink in sinks:
                        sink.log(rows, state.step)
                bar.advance(shown)
                stop = self._any(bool(stopping))
                minutes = (time.monotonic() - self.saved_at) / 60
                timed = config.save_minutes > 0 and self._any(minutes >= config.save_minutes)
                if last or stop or improved or timed or state.stopped_early or _due(state.step, config.save_every):
                    self._refuse_non_finite(weights=True)
                    self.save()
                if stop:
                    raise Interrupted(f"stopped at step {state.step}, saved: `etude resume {self.run.path}` goes on")
            if stopping:
                # It came while the last step was saved.
                raise KeyboardInterrupt

    def _progress(self, rows: Mapping[str, float]) -> str:
        """One line for a log where no bar is drawn: the step, the loss, the metric that chooses, the time left."""
        name, state = self.task.monitor[0] if self.task.monitor else "loss", self.state
        shown = {"loss": rows.get("train/loss"), f"validation {name}": rows.get(f"val/{name}")}
        numbers = "".join(f", {said} {value:.4g}" for said, value in shown.items() if value is not None)
        minutes = state.seconds / state.step * (self.task.num_steps - state.step) / 60
        return f"{self.run.path.name}: step {state.step:,} of {self.task.num_steps:,}{numbers}, {minutes:.0f} min left"

    def _any(self, here: bool) -> bool:
        """True where it holds in any process, so that all of them take the same turn."""
        if self.runtime.world == 1:
            return here
        return bool(self.runtime.sum(torch.tensor(float(here), device=self.runtime.device)).item() > 0)

    def _judge(self, validation: Mapping[str, float]) -> bool:
        """Count an evaluation that is not the best so far. Returns whether it is."""
        if self.task.monitor is None:
            return False
        name, direction = self.task.monitor
        value, state = validation[name], self.state
        better = state.best is None or (value > state.best if direction == "max" else value < state.best)
        if better and math.isfinite(value):
            state.best, state.best_step, state.stale = value, state.step, 0
            self.scored_here = True
            return True
        state.stale += 1
        state.stopped_early = 0 < self.config.patience <= state.stale
        return False

    def _refuse_non_finite(self, *, weights: bool = False) -> None:
        bad, what = self.window.first_bad_step(self.runtime), "loss is"
        if bad is None and weights:
            learned = [p for module in self.task.modules.values() for p in module.parameters() if p.requires_grad]
            if not all(bool(p.isfinite().all()) for p in learned):
                # An infinite gradient of a finite loss.
                bad, what = self.state.step - 1, "weights are"
        if bad is None:
            return
        good = self.checkpoints.newest()
        kept = f"the last good checkpoint is {self.checkpoints.path(good)}" if good is not None else "none is saved yet"
        seed = randomness.key(self.runtime.seed, "step", bad)
        raise UserError(
            f"the {what} not finite at step {bad} (batch seed {seed}); {kept}: "
            "lower the learning rate or use --loop.precision fp32"
        )

    def save(self) -> None:
        """Write a checkpoint of the step that `state` holds, and prune older ones."""
        self.runtime.wait()
        window = self.window.state(self.runtime)
        if self.runtime.is_main:
            step = self.state.step
            resume = {
                "loop": dataclasses.asdict(self.state),
                "optimizers": {name: o.state_dict() for name, o in self.task.optimizers.items()},
                "task": self.task.extra_state(),
                "runtime": self.runtime.state(),
                "window": window,
            }
            self.checkpoints.save(step, self.task.modules, self.header, resume)
            self._mark_best()
            self.checkpoints.prune(step)
        self.saved_at = time.monotonic()
        self.runtime.wait()

    def _mark_best(self) -> None:
        state = self.state
        if self.task.monitor and state.best is not None and state.best_step is not None:
            self.checkpoints.mark_best(state.best_step, self.task.monitor[0], state.best)
        else:
            (self.checkpoints.folder / "best.json").unlink(missing_ok=True)

    def reload(self) -> int:
        """Put the chosen weights, the best or else the last, back from disk. Returns their step.

        Raises:
            RuntimeError: the weights on disk do not score what they scored in training.
        """
        chosen = self.checkpoints.best_step
        step = chosen if chosen is not None else self.checkpoints.newest()
        assert step is not None, "a run that trained has a checkpoint"
        self.checkpoints.load_weights(step, self.task.modules, self.header.study)
        if self.task.monitor is not None and self.state.best is not None and chosen is not None:
            name = self.task.monitor[0]
            again = self.task.evaluate()[name]
            # Sums may be ordered otherwise on an accelerator, and with another number of threads or processes.
            exact = self.runtime.device.type == "cpu" and self.scored_here
            tolerance = 0.0 if exact else 1e-3 * max(1.0, abs(self.state.best))
            if not abs(again - self.state.best) <= tolerance:
                raise RuntimeError(f"{name} of step {step} was {self.state.best}, and is {again} after a reload")
        return step


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
