"""A tiny task on the real interfaces: regression with batch norm, dropout and Adam, on keyed data."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from tests.forks import Fork
from torch import Tensor, nn

from etude.core import randomness
from etude.core.checkpoint import WeightsHeader
from etude.core.config import StudyConfig, from_dict, to_dict
from etude.core.errors import Interrupted
from etude.core.loop import Loop
from etude.core.run_folder import RunFolder, RunRecord
from etude.core.runtime import Runtime
from etude.core.study import Result, Task
from etude.runs.tracking import open_sinks

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class NetConfig:
    width: int = 8
    """Hidden units."""
    norm: bool = True
    """Batch norm after the hidden layer."""
    dropout: float = 0.3
    """Drawn from the global generator, as a library's layer would."""


@dataclass(frozen=True, kw_only=True)
class ToyConfig(StudyConfig):
    net: NetConfig = field(default_factory=NetConfig)
    """The network."""
    per_step: int = 1
    """Parts of a step's batch, of 6 rows each."""
    nan_at: int = -1
    """The step whose loss is made not a number."""
    sleep: float = 0.0
    """Seconds that a step waits."""
    scores: tuple[float, ...] = ()
    """Validation losses to report in place of the real ones, by evaluation."""


def config(max_steps: int = 12, **changes: Any) -> ToyConfig:
    """Log every 2 steps, evaluate every 4, save every 3; settings of the loop and of the task by name."""
    loop = {"max_steps": max_steps, "log_every": 2, "eval_every": 4, "save_every": 3, "device": "cpu"}
    own = {"net", "per_step", "nan_at", "sleep", "scores", "seed"}
    loop |= {name: value for name, value in changes.items() if name not in own}
    return from_dict(ToyConfig, {"loop": loop} | {name: value for name, value in changes.items() if name in own})


class ToyTask(Task):
    def __init__(self, config: ToyConfig, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        randomness.seed_globals(config.seed, "init", 0)
        net = config.net
        norm = nn.BatchNorm1d(net.width) if net.norm else nn.Identity()
        self.net = nn.Sequential(
            nn.Linear(4, net.width), norm, nn.ReLU(), nn.Dropout(net.dropout), nn.Linear(net.width, 1)
        )
        self.shared = runtime.prepare(self.net)
        self.adam = torch.optim.Adam(self.net.parameters(), lr=0.02)
        self.modules = {"net": self.net}
        self.optimizers = {"adam": self.adam}
        self.monitor = ("loss", "min")
        self.before: dict[int, Callable[[], object]] = {}
        """Something to do at the start of a step."""
        self.steps: list[int] = []
        """The steps that this object took."""

    def batch(self, stream: str, step: int, part: int, rows: int = 6) -> tuple[Tensor, Tensor]:
        x_ND = torch.randn(rows, 4, generator=self.runtime.generator(stream, step, part))
        return x_ND, x_ND.sin().sum(1, keepdim=True)

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        self.before.get(step, lambda: None)()
        time.sleep(self.config.sleep)
        self.steps.append(step)
        self.net.train()

        def compute(part: int) -> dict[str, Tensor]:
            x_ND, y_N1 = self.batch("train/batch", step, part)
            loss = (self.shared(x_ND) - y_N1).square().mean()
            return {"loss": loss * float("nan") if step == self.config.nan_at else loss}

        return self.runtime.descend(self.adam, compute, self.config.per_step, self.shared)

    def evaluate(self) -> dict[str, float]:
        if self.config.scores:
            score = self.config.scores[self.steps[-1] // self.config.loop.eval_every]
            # No setting may be NaN: the score -1 stands for it.
            return {"loss": math.nan if score == -1 else score}
        self.net.eval()
        with torch.no_grad():
            x_ND, y_N1 = self.batch("val", 0, 0, 64)
            return {"loss": (self.net(x_ND) - y_N1).square().mean().item()}

    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        return [Result("toy", "one", "loss", "test", self.evaluate()["loss"], "64 rows")]


T = TypeVar("T", bound=Task)


def begin(path: Path, study: str, kind: Callable[[Any, Runtime], T], settings: StudyConfig) -> tuple[T, Loop]:
    """The task and loop of a run folder of any study, made if it is not there."""
    if (path / "config.yaml").exists():
        run = RunFolder.open(path)
    else:
        run = RunFolder.create(path, RunRecord(study, "smoke", "smoke", {}, to_dict(settings)))
    runtime = Runtime(settings.loop, settings.seed)
    task = kind(settings, runtime)
    return task, Loop(task, settings.loop, run, runtime, WeightsHeader(study, to_dict(settings), {}))


def build(path: Path, settings: ToyConfig) -> tuple[ToyTask, Loop]:
    """The toy's task and loop."""
    return begin(path, "toy", ToyTask, settings)


class Cut(Exception):  # noqa: N818
    """Ends a training; it is no fault."""


def resumes_exactly(
    path: Path, study: str, kind: Callable[[Any, Runtime], Task], settings: StudyConfig, cut_at: int
) -> int:
    """Assert that a run that is cut at a step and taken up again ends as one in one go, bit for bit.

    Returns:
        the step that it was taken up at.
    """
    whole = begin(path / "whole", study, kind, settings)[1]
    whole.resume()
    whole.train()
    task, loop = begin(path / "cut", study, kind, settings)
    step = task.train_step

    def cut(number: int) -> Mapping[str, Tensor]:
        if number == cut_at:
            raise Cut
        return step(number)

    task.train_step = cut  # type: ignore[method-assign]
    loop.resume()
    with pytest.raises(Cut):
        loop.train()
    again = begin(path / "cut", study, kind, settings)[1]
    taken_up = again.resume()
    again.train()
    assert metrics(path / "cut") == metrics(path / "whole")
    for name, module in again.task.modules.items():
        assert same(module.state_dict(), whole.task.modules[name].state_dict())
    last = settings.loop.max_steps
    assert same(again.checkpoints.load_resume(last), whole.checkpoints.load_resume(last))
    assert again.reload() == whole.reload()
    return taken_up


def train(path: Path, settings: ToyConfig, before: Mapping[int, Callable[[], object]] | None = None) -> Loop:
    """Train a run from wherever it stands to its end."""
    task, loop = build(path, settings)
    task.before |= before or {}
    resumed_at = loop.resume()
    loop.train(open_sinks(settings.loop.trackers, path, resumed_at))
    return loop


def metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the one thing that differs between two equal runs."""
    rows = list(RunFolder(path).metrics())
    for row in rows:
        assert row.pop("seconds") >= 0
    return rows


def same(left: Any, right: Any) -> bool:
    """Whether two nested values are equal bit for bit; times are left out."""
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return torch.equal(left, right) and left.dtype == right.dtype
    if isinstance(left, Mapping):
        keys = left.keys() - {"seconds"}
        return keys == right.keys() - {"seconds"} and all(same(left[key], right[key]) for key in keys)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def child_environment() -> dict[str, str]:
    """For processes that the tests start: one thread each, and compiled files kept for the next one."""
    bytecode = Path(os.environ["ETUDE_CACHE"]).parent / "bytecode"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": str(bytecode)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def start(path: Path, more: Mapping[str, str] | None = None, **changes: Any) -> "subprocess.Popen[str]":
    """Train the toy in a process of its own, with ``more`` in its environment.

    It ends with 130 where it was asked to stop.
    """
    code = (
        f"from pathlib import Path; from tests.core import toy; "
        f"raise SystemExit(toy.main(Path({str(path)!r}), toy.config(**{changes!r})))"
    )
    environment = child_environment() | dict(more or {})
    return Fork(["-c", code], cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE)


def main(path: Path, settings: ToyConfig) -> int:
    try:
        train(path, settings)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 130
    return 0
