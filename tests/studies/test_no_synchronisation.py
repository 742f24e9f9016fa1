"""A training step never asks the device for a value, which would be to wait for all that was queued before.

On the CPU nothing waits: here the operations that would are counted. Where there is CUDA, its profiler counts.
"""

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.faults import TARGETS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import etude
from etude import registry
from etude.core import randomness
from etude.core.runtime import Runtime
from etude.core.study import Task
from etude.runs.training import choose

ROOT = Path(etude.__file__).parent
_ATEN = torch.ops.aten
WAIT = {
    _ATEN._local_scalar_dense.default, _ATEN.nonzero.default, _ATEN.equal.default, _ATEN.is_nonzero.default,
    _ATEN.masked_select.default, _ATEN._unique2.default, _ATEN.unique_dim.default,
    _ATEN.unique_consecutive.default, _ATEN.bincount.default, _ATEN.repeat_interleave.Tensor,
}  # fmt: skip
"""What has a value or a size that only the device knows."""
_INDEX = {_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default}
ALLOWED = {
    ("studies/dcgan/model.py", "forward"): "one_hot looks at its labels on the CPU, and not on a GPU",
    ("studies/text2math/batches.py", "longest"): "of lengths that are kept on the CPU",
}
"""By file and function, and why."""


class Waits(TorchDispatchMode):
    """Notes the operations that wait, and where etude asked for them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, str, str]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masked = func in _INDEX and any(i is not None and i.dtype == torch.bool for i in args[1])
        if func in WAIT or masked:
            ours = [f for f in traceback.extract_stack() if f.filename.startswith(str(ROOT))]
            place = (str(Path(ours[-1].filename).relative_to(ROOT)), ours[-1].name) if ours else ("elsewhere", "")
            self.seen.add((*place, str(func)))
        return func(*args, **(kwargs or {}))


def build(name: str, *more: str) -> Task:
    study, preset, settings = TARGETS[name]
    flags = [word for key, value in settings.items() for word in (f"--{key}", *str(value).split())]
    chosen = choose([study, preset, *flags, *more], "etude run")
    return chosen.study.task(chosen.config, Runtime(chosen.config.loop, 0))


def step(task: Task, number: int) -> Tensor:
    randomness.seed_globals(0, "step", number)
    return task.train_step(number)["loss"]


@pytest.mark.filterwarnings("ignore:up to 8 objects")
@pytest.mark.parametrize("name", TARGETS)
def test_a_step_asks_the_device_for_nothing(name: str):
    task = build(name, "--loop.device", "cpu")
    # The first ones may look at the data.
    step(task, 0)
    step(task, 1)
    with Waits() as waits:
        for number in range(2, 5):
            step(task, number)
    assert not [seen for seen in waits.seen if seen[:2] not in ALLOWED]


def test_what_is_allowed_is_still_there():
    """A place that asks no more leaves the list."""
    found: set[tuple[str, str]] = set()
    for name, flags in (("dcgan", ["--model.conditional"]), ("text2math", [])):
        task = build(name, "--loop.device", "cpu", *flags)
        with Waits() as waits:
            step(task, 0)
        found |= {seen[:2] for seen in waits.seen}
    assert found >= set(ALLOWED)


@pytest.mark.parametrize(
    "ask", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool((x > 0).all()), torch.nonzero, torch.unique]
)
def test_each_way_of_asking_is_seen(ask: Any):
    with Waits() as waits:
        ask(torch.ones(3))
    assert waits.seen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", sorted({study for study, _, _ in TARGETS.values()}))
def test_nothing_waits_on_a_gpu(name: str):
    task = build(name, "--loop.device", "cuda")
    for number in range(3):
        step(task, number)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        for number in range(3, 6):
            step(task, number)
    waits = {
        event.key: event.count
        for event in profile.key_averages()
        if "Synchronize" in event.key or "DtoH" in event.key or event.key == "aten::item"
    }
    # The end of the profile waits once.
    assert waits.get("cudaStreamSynchronize", 0) + waits.get("cudaDeviceSynchronize", 0) <= 1, waits


def test_every_study_is_here():
    assert {study for study, _, _ in TARGETS.values()} == set(registry.NAMES)
