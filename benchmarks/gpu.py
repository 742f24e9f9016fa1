"""A training step of every study on the device that is here: its forms beside each other, and beside the roofline.

    uv run python benchmarks/gpu.py [STUDY...] [--json FILE]

Forms: `plain` has float32 without TF32, weights in the default memory layout and optimisers that are not fused; `etude`
is what a run does with no flag but the device; `bf16` adds --loop.precision bf16, `compile` --loop.compile, and `both`
the two. Pictures, words and scenes are made up, so that nothing is fetched, at the sizes of laptop presets.

The roofline is of this device, measured in the same command: the rate of a large matrix product in float32 without
TF32, and in bf16, and the rate of copying. A step's operations are counted (convolutions and matrix products), and
the bytes that its operators read and write, were nothing kept in a cache nor fused; the longer of the two times is
the bound. A form that fuses operators moves less, and may beat it.

The exit status is 1 where a form's first losses are another than the plain form's, beyond what its precision allows.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import side_by_side
from etude import registry
from etude.core import randomness
from etude.core.errors import UserError
from etude.core.files import write_json
from etude.core.runtime import Runtime, resolve_device
from etude.core.study import Task
from etude.runs.flags import parse
from etude.runs.training import choose
from faults import TARGETS

FORMS: dict[str, tuple[str, ...]] = {
    "plain": (), "etude": (), "bf16": ("--loop.precision", "bf16"), "compile": ("--loop.compile",),
    "both": ("--loop.precision", "bf16", "--loop.compile"),
}  # fmt: skip
TOLERANCE = {"etude": 1e-3, "bf16": 0.1, "compile": 1e-3, "both": 0.1}
"""The largest relative difference of the first losses from the plain form's."""
_COMPARED = 4
"""How many: the first one says nothing of gradients and optimisers."""
BYTES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SCENES = {"model.size": 64, "data.most": 64, "batch.size": 16}
SIZES: dict[str, dict[str, Any]] = {
    "resnet": {"model.width": 16, "model.n": 3, "data.size": 32, "batch.size": 128},
    "text2math": {"model.embedding": 128, "model.hidden": 256, "batch.size": 32},
    "slots": _SCENES | {"model.num-slots": 11, "model.slot-size": 64, "model.features": 64},
    "slotdiffusion, autoencoder": _SCENES,
    "slotdiffusion": _SCENES | {"model.num-slots": 11, "model.width": 32},
    "dcgan": {"model.width": 64, "batch.size": 128},
    "protonet": {"model.width": 64, "data.size": 28, "episodes.way": 20, "episodes.per-step": 1},
    "pix2pix": {"model.width": 32},
    "darts, search": {"model.channels": 16, "data.size": 32, "batch.size": 32},
    "darts, retraining": {"model.channels": 16, "data.size": 32, "batch.size": 32},
}
"""What is changed in the smoke preset of a target of `faults`."""


@dataclass(frozen=True)
class Options:
    studies: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Which; all by default."""
    json: Path | None = None
    """Where to write every measurement."""
    quick: bool = False
    """Seconds a study, at the smallest sizes: shows that the forms run and agree; its speeds mean nothing."""
    device: str = "auto"
    """Where to compute."""
    forms: tuple[str, ...] = tuple(FORMS)
    """Which forms beside the plain one."""
    steps: int = 20
    """Of a block."""
    repeats: int = 5
    """Blocks of each form, in turn."""


class Counts(TorchDispatchMode):
    """Operations of convolutions and matrix products, and bytes that operators read and write; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        places = {t.untyped_storage().data_ptr() for t in read}
        # A result in the storage of an argument, to which nothing is written, is a view.
        if func._schema.is_mutable or any(t.untyped_storage().data_ptr() not in places for t in made):
            self.bytes += sum(t.numel() * t.element_size() for t in (*made, *read))
        return out


def build(name: str, options: Options, form: str, device: str) -> Task:
    """A study's task in one of the forms."""
    study, preset, small = TARGETS[name]
    settings = small if options.quick else SIZES[name]
    flags = [word for key, value in settings.items() for word in (f"--{key}", *str(value).split())]
    chosen = choose([study, preset, *flags, "--loop.device", device, *FORMS[form]], "gpu.py")
    randomness.seed_globals(0, "init", 0)
    task = chosen.study.task(chosen.config, Runtime(chosen.config.loop, 0))
    if form == "plain":
        for network in task.modules.values():
            network.to(memory_format=torch.contiguous_format)
        for optimizer in task.optimizers.values():
            for group in optimizer.param_groups:
                group["fused"] = group["foreach"] = False
    return task


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device, *, least: float = 0.2) -> float:
    """Of one call of ``work``, repeated for at least so long."""
    work()
    wait(device)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < least:
        work()
        count += 1
        wait(device)
    return (time.perf_counter() - started) / count


def roofline(device: torch.device, *, quick: bool) -> dict[str, float]:
    """Operations a second of a matrix product in float32 and in bf16, and bytes a second of copying."""
    side = 256 if quick else 8192 if device.type == "cuda" else 2048
    found: dict[str, float] = {}
    for name, kind in BYTES.items():
        a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
        found[f"{name}_per_s"] = 2 * side**3 / seconds(lambda a=a, b=b: a @ b, device)
    source = torch.empty((1 << 24) if quick or device.type == "cpu" else (1 << 29), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["bytes_per_s"] = 2 * source.numel() / seconds(lambda: target.copy_(source), device)
    return found


def cost(task: Task, number: int) -> tuple[float, dict[str, int]]:
    """The loss of a step, and its operations and bytes."""
    with Counts() as counts:
        loss = step(task, number)
    return loss, {"flops": counts.flops, "bytes": counts.bytes}


def step(task: Task, number: int) -> float:
    randomness.seed_globals(0, "step", number)
    return float(task.train_step(number)["loss"])


def apart(losses: Sequence[float], plain: Sequence[float]) -> float:
    """The largest relative difference; infinity where a loss is no number."""
    apart = [abs(one - other) / max(1e-9, abs(other)) for one, other in zip(losses, plain, strict=True)]
    return max(apart) if all(map(math.isfinite, apart)) else math.inf


def measure(name: str, options: Options, device: torch.device, peaks: Mapping[str, float]) -> dict[str, Any]:
    """All forms of one study."""
    exact = {"matmul": torch.backends.cuda.matmul, "conv": torch.backends.cudnn}
    tf32 = {key: backend.allow_tf32 for key, backend in exact.items()}
    tasks: dict[str, Task] = {}
    losses: dict[str, list[float]] = {}
    times: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    bound: dict[str, int] = {}
    # "plain" first: the others are held against it.
    for form in ("plain", *(form for form in options.forms if form != "plain")):
        for backend in exact.values():
            backend.allow_tf32 = False
        # What the forms before hold is not this one's.
        held = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        tasks[form] = build(name, options, form, device.type)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        losses[form] = [step(tasks[form], number) for number in range(_COMPARED - 1)]
        if form == "plain":
            last, bound = cost(tasks[form], _COMPARED - 1)
        else:
            last = step(tasks[form], _COMPARED - 1)
        losses[form].append(last)
        memory[form] = math.nan
        if device.type == "cuda":
            memory[form] = (torch.cuda.max_memory_allocated(device) - held) / 2**20
    blocks, steps = (1, 2) if options.quick else (options.repeats, options.steps)
    for _ in range(blocks):
        for form, task in tasks.items():
            for key, backend in exact.items():
                backend.allow_tf32 = False if form == "plain" else tf32[key]
            wait(device)
            started = time.perf_counter()
            for number in range(steps):
                randomness.seed_globals(0, "step", number)
                task.train_step(number)
            wait(device)
            times.setdefault(form, []).append((time.perf_counter() - started) / steps)
    for key, backend in exact.items():
        backend.allow_tf32 = tf32[key]
    plain = statistics.median(times["plain"])
    rows: dict[str, Any] = {}
    for form, row in times.items():
        rate = peaks["bf16_per_s" if form in ("bf16", "both") else "fp32_per_s"]
        least = max(bound["flops"] / rate, bound["bytes"] / peaks["bytes_per_s"])
        median = statistics.median(row)
        rows[form] = {
            "seconds": row, "median_s": median, "lead": plain / median, "bound_s": least, "attained": least / median,
            "losses": losses[form], "apart": apart(losses[form], losses["plain"]),
            "memory_mb": memory[form],
        }  # fmt: skip
    return {"cost": bound, "forms": rows}


def main(args: list[str]) -> int:
    options = parse(Options, args, prog="gpu.py", description=__doc__ or "")
    unknown = set(options.studies) - set(registry.NAMES)
    if unknown or set(options.forms) - set(FORMS):
        raise UserError(f"no study or form {sorted(unknown | (set(options.forms) - set(FORMS)))}: known are "
                        f"{', '.join(registry.NAMES)}; {', '.join(FORMS)}")  # fmt: skip
    device = torch.device(resolve_device(options.device))
    peaks = roofline(device, quick=options.quick)
    about = side_by_side.surroundings()
    where = about["accelerator"] if device.type == "cuda" else side_by_side.machine(about)
    print(f"{where}; torch {torch.__version__}, etude at {about['commit']}")
    print(", ".join(f"{name.replace('_per_s', '')} {value / 1e9:,.0f} G/s" for name, value in peaks.items()))
    found: dict[str, Any] = {}
    worst = 0
    headings = ["ms a step", "over plain", "bound ms", "attained", "MB", "loss apart"]
    for name, (study, _, _) in TARGETS.items():
        if options.studies and study not in options.studies:
            continue
        found[name] = measure(name, options, device, peaks)
        count = found[name]["cost"]
        title = f"{name}: {count['flops'] / 1e9:.2f} G operations, {count['bytes'] / 2**20:,.0f} MB a step"
        table = side_by_side.new_table(title, ["form"], headings)
        for form, row in found[name]["forms"].items():
            holds = form == "plain" or row["apart"] <= TOLERANCE[form]
            worst |= not holds
            table.add_row(
                form, f"{1e3 * row['median_s']:,.2f}", f"{row['lead']:.2f}x", f"{1e3 * row['bound_s']:,.2f}",
                f"{100 * row['attained']:.0f} %", f"{row['memory_mb']:,.0f}",
                f"{row['apart']:.1e}{'' if holds else ' DISAGREES'}",
            )  # fmt: skip
        side_by_side.Console(soft_wrap=True).print(table)
    if options.json is not None:
        write_json(options.json, {"benchmark": "gpu", "quick": options.quick, "device": device.type,
                                  "environment": about, "roofline": peaks, "studies": found})  # fmt: skip
    return int(worst)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        sys.exit(2)
