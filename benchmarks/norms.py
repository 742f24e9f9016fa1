"""etude's normalisations beside PyTorch's layers on the CPU: forward and backward, eager and compiled.

Command: ``uv run python benchmarks/norms.py``. The protocol is in benchmarks/README.md.
"""

import dataclasses
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

import side_by_side
from etude.core.config import LoopConfig
from etude.core.files import write_json
from etude.core.runtime import Runtime
from etude.nn.fast_norms import Form, make_norm
from etude.studies.resnet.model import ResNet
from side_by_side import ETUDE, Bar, Block, Side, interleave, timed

BARS = {"eager": 0.5, "compiled": 0.9}
# Where a value of two sides differs by more of the largest one, they do not compute the same.
TOLERANCE = 1e-3
GROUPS = 8
LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}

Mode = Literal["eager", "compiled"]


@dataclass(frozen=True)
class Options:
    json: Path | None = None
    """Where to write every measurement."""
    quick: bool = False
    """Seconds, small and eager: shows that all sides run and agree; its speeds mean nothing."""
    threads: int = torch.get_num_threads()
    """Threads of all sides."""
    repeats: int | None = None
    """Blocks of each side; 9, or 1 when quick."""
    modes: tuple[Mode, ...] = ("eager", "compiled")
    """Which to measure; compiling takes most of the time, and needs a C++ compiler."""


@dataclass(frozen=True)
class Layers:
    """Equal layers of the network: how many, and their maps."""

    number: int
    channels: int
    size: int


@dataclass(frozen=True)
class Sizes:
    repeats: int
    batch: int
    layers: tuple[Layers, ...]
    sweeps: int
    """Passes through all layers in a block."""
    steps: int
    """Training steps in a block."""


# The norm layers of a residual network of 20 layers, as section 4.2 of He et al. 2016 has it.
FULL = Sizes(9, 128, (Layers(7, 16, 32), Layers(6, 32, 16), Layers(6, 64, 8)), 4, 2)
QUICK = Sizes(1, 4, (Layers(1, 16, 8), Layers(1, 32, 4)), 1, 1)


# The sides


class TorchMixture(nn.Module):
    """Batch-instance normalisation out of PyTorch's two, as its authors' code has it."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.batch = nn.BatchNorm2d(num_channels)
        self.gate = nn.Parameter(torch.ones(num_channels))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        norm = self.batch
        assert norm.weight is not None
        by_batch = functional.batch_norm(
            x_NCHW, norm.running_mean, norm.running_var, norm.weight * self.gate, norm.bias, True, eps=norm.eps
        )
        return by_batch + functional.instance_norm(x_NCHW, weight=norm.weight * (1 - self.gate), eps=norm.eps)


THEIRS: dict[str, Callable[[int], nn.Module]] = {
    "bn": nn.BatchNorm2d,
    "in": lambda channels: nn.InstanceNorm2d(channels, affine=True),
    "bin": TorchMixture,
    "ln": lambda channels: nn.GroupNorm(1, channels),
    "gn": lambda channels: nn.GroupNorm(GROUPS, channels),
}


def ours(name: str, channels: int, form: Form = "fast") -> nn.Module:
    return make_norm(name, channels, form, **({"num_groups": GROUPS} if name == "gn" else {}))


SIDES: dict[str, Callable[[str, int], nn.Module]] = {
    ETUDE: ours,
    "plain reference": lambda name, channels: ours(name, channels, "plain"),
    "PyTorch": lambda name, channels: THEIRS[name](channels),
}


@dataclass(frozen=True)
class Case:
    """A layer with its input and the gradient that comes back."""

    norm: nn.Module
    number: int
    x_NCHW: Tensor
    dy_NCHW: Tensor

    def run(self) -> tuple[Tensor, list[Tensor]]:
        """The output and the gradients of input, scale and shift, and of the gate if there is one."""
        y_NCHW = self.norm(self.x_NCHW)
        parameters = dict(self.norm.named_parameters())
        grads = torch.autograd.grad(y_NCHW, (self.x_NCHW, *parameters.values()), self.dy_NCHW)
        # By the last part of the name: a wrapper's parameters have a longer one.
        by_name = {name.rpartition(".")[2]: grad for name, grad in zip(parameters, grads[1:], strict=True)}
        return y_NCHW.detach(), [grads[0], *(by_name[name] for name in sorted(by_name))]


def cases(side: str, name: str, layout: str, mode: Mode, sizes: Sizes) -> list[Case]:
    """The layers of one side, with the same values on every side."""
    made: list[Case] = []
    for layers in sizes.layers:
        draw = torch.Generator().manual_seed(layers.channels)
        shape = (sizes.batch, layers.channels, layers.size, layers.size)
        x_NCHW, dy_NCHW = (
            torch.randn(shape, generator=draw).contiguous(memory_format=LAYOUTS[layout]) for _ in range(2)
        )
        norm = SIDES[side](name, layers.channels)
        for parameter_name, parameter in norm.named_parameters():
            nn.init.constant_(parameter, 0.7 if parameter_name.endswith("gate") else 0.9)
        if mode == "compiled":
            norm.compile(fullgraph=True, dynamic=False)
        made.append(Case(norm, layers.number, x_NCHW.requires_grad_(), dy_NCHW))
    return made


def layers_side(layers: list[Case], sweeps: int) -> Side[Block]:
    """Passes through all layers."""

    def sweep(number: int) -> None:
        for case in layers:
            for _ in range(case.number):
                case.run()

    return timed(sweep, sweeps, calls=sweeps)


def difference(layers: list[Case], reference: list[Case]) -> float:
    """The largest difference of an output or a gradient, as a share of its largest value."""
    largest = 0.0
    for case, other in zip(layers, reference, strict=True):
        (y, grads), (expected_y, expected) = case.run(), other.run()
        for value, right in zip((y, *grads), (expected_y, *expected), strict=True):
            largest = max(largest, ((value - right).abs().max() / right.abs().max()).item())
    return largest


def double(layers: list[Case]) -> list[Case]:
    return [
        Case(case.norm.double(), case.number, case.x_NCHW.detach().double().requires_grad_(), case.dy_NCHW.double())
        for case in layers
    ]


def training_side(make: Callable[[int], nn.Module], sizes: Sizes) -> Side[Block]:
    """Training steps of the whole network, etude's layout and optimiser setting on every side."""
    torch.manual_seed(0)
    model = ResNet(3, 10, make).to(memory_format=torch.channels_last).train()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True)
    x_NCHW = torch.randn(sizes.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels_N = torch.randint(10, (sizes.batch,))

    def step(number: int) -> None:
        loss = functional.cross_entropy(model(x_NCHW)[0], labels_N)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        loss.item()

    return timed(step, sizes.steps, calls=sizes.steps)


# The report


def milliseconds(blocks: Sequence[Block]) -> list[float]:
    """Of one turn, a pass through all layers or a training step, in each block."""
    return [1000 * block.seconds / block.count for block in blocks]


def median(blocks: Sequence[Block]) -> float:
    return statistics.median(milliseconds(blocks))


def add_rows(table: Table, norm: str, blocks: dict[str, list[Block]]) -> None:
    for side, row in blocks.items():
        ratio = "" if side == ETUDE else f"{median(row) / median(blocks[ETUDE]):.2f}x"
        table.add_row(norm, side, f"{median(row):,.2f}", f"{min(milliseconds(row)):,.2f}", ratio)
    table.add_section()


def times_table(title: str) -> Table:
    return side_by_side.new_table(title, ["norm", "side"], ["median ms", "best ms", f"{ETUDE} is"])


def main(options: Options) -> int:
    """Measure, print, and return 1 if two sides do not compute the same."""
    sizes = QUICK if options.quick else FULL
    repeats = options.repeats or sizes.repeats
    modes = ("eager",) if options.quick else options.modes
    # The trainings that the numbers are for keep freed memory; so does every side here.
    Runtime(LoopConfig(max_steps=1, device="cpu"), 0)
    torch.set_num_threads(options.threads)
    about = side_by_side.surroundings()
    console = Console(soft_wrap=True)
    console.print(
        f"batch {sizes.batch}; {side_by_side.machine(about)}, etude {about['versions']['etude']} at {about['commit']}; "
        f"interleaved repeats: {repeats}"
    )
    tables: dict[str, dict[str, list[Block]]] = {}
    differences: dict[str, float] = {}
    bars: dict[str, Bar] = {}
    for mode in modes:
        for layout in LAYOUTS:
            table = times_table(f"Norm layers of a ResNet-20, forward and backward: {mode}, {layout}")
            for name in THEIRS:
                key = f"{name}, {mode}, {layout}"
                torch.compiler.reset()
                sides = {side: cases(side, name, layout, mode, sizes) for side in SIDES}
                reference = double(cases("plain reference", name, layout, "eager", sizes))
                with warnings.catch_warnings():
                    # The compiler's own.
                    warnings.simplefilter("ignore")
                    for side, layers in sides.items():
                        differences[f"{key}, {side}"] = difference(layers, reference)
                    blocks = tables[key] = interleave(
                        {side: layers_side(layers, sizes.sweeps) for side, layers in sides.items()},
                        repeats,
                        warm_up=not options.quick,
                    )
                add_rows(table, name, blocks)
                if layout == "channels last":
                    bars[key] = Bar(median(blocks["PyTorch"]) / median(blocks[ETUDE]), BARS[mode])
            console.print(table)

    table = times_table("Training step of a ResNet-20, eager, channels last")
    for name in THEIRS:
        makers = {side: lambda channels, name=name, side=side: SIDES[side](name, channels) for side in SIDES}
        steps = interleave(
            {side: training_side(make, sizes) for side, make in makers.items()}, repeats, warm_up=not options.quick
        )
        tables[f"{name}, training step"] = steps
        add_rows(table, name, steps)
    console.print(table)

    for key, value in differences.items():
        if value > TOLERANCE:
            console.print(f"DISAGREE: {key}: {value:.1e} of the largest value, tolerance {TOLERANCE:g}")
    worst = max(differences, key=lambda key: differences[key])
    console.print(f"largest difference to the formula in float64: {differences[worst]:.1e} ({worst})")
    side_by_side.tell_bars(console, bars, judged=not options.quick)
    agree = all(value <= TOLERANCE for value in differences.values())
    if options.json is not None:
        written = side_by_side.report("norms", tables, "turns", bars, about=about, repeats=repeats, quick=options.quick)
        own = {
            "threads": options.threads,
            "sizes": dataclasses.asdict(sizes),
            "differences": differences,
            "agree": agree,
        }
        write_json(options.json, written | own)
    return 0 if agree else 1


if __name__ == "__main__":
    side_by_side.run(main, Options, __doc__, "norms")
