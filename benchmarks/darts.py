"""A step of architecture search beside the straightforward form of the paper, and a step of retraining likewise.

    uv run python benchmarks/darts.py

The plain form of a search goes edge by edge and operation by operation, with PyTorch's own convolutions and default
memory layout; alpha's step is a whole `backward`, which computes the gradients of the weights too, as the paper's code
does. Both sides see the same augmented pictures, from the same weights. The plain form of retraining has PyTorch's own
depthwise convolutions and layout.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import side_by_side
from etude.core.config import LoopConfig
from etude.core.files import write_json
from etude.core.runtime import Runtime
from etude.data.picture_config import PictureConfig
from etude.studies.darts.operations import Depthwise
from etude.studies.darts.retrain_task import RetrainTask
from etude.studies.darts.search_task import SearchTask
from etude.studies.darts.study import Batch, CellAugmentConfig, DartsConfig, ModelConfig, RetrainConfig, SearchConfig
from side_by_side import ETUDE, Bar, Block, Side, interleave, lead, timed

PLAIN = "plain form"
BAR = 1.5
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Options:
    json: Path | None = None
    """Where to write every measurement."""
    quick: bool = False
    """Seconds, at small shapes: shows that both sides run and agree; its speeds mean nothing."""
    threads: int = torch.get_num_threads()
    """Threads of both sides."""
    repeats: int | None = None
    """Blocks of each side; 5, or 1 when quick."""


def settings(quick: bool) -> dict[str, DartsConfig]:
    """By title, what is measured."""
    layers, channels, size, batch = (3, 4, 8, 4) if quick else (5, 16, 32, 32)
    search = DartsConfig(
        model=ModelConfig(channels=channels, layers=layers, num_classes=4, nodes=2 if quick else 4),
        data=PictureConfig(source="generated", size=size),
        augment=CellAugmentConfig(pad=2),
        batch=Batch(size=batch),
        loop=LoopConfig(max_steps=10**9, device="cpu"),
    )
    about = f"{layers} cells of {channels} channels, {size} px, batch {batch}"
    retrain = replace(search, phase="retrain", retrain=RetrainConfig(auxiliary=0.0, drop_path=0.0))
    partial = SearchConfig(partial=2 if quick else 4, edge_norm=True)
    return {
        f"search step, first order: {about}": search,
        f"search step, second order: {about}": replace(search, search=SearchConfig(order=2)),
        f"search step, partial channels: {about}": replace(search, search=partial),
        f"retraining step, DARTS V2: {about}": retrain,
    }


def ordinary(model: nn.Module) -> None:
    """Let a network convolve as PyTorch does, in its default memory layout."""
    for module in model.modules():
        if isinstance(module, Depthwise):
            module.__class__ = nn.Conv2d  # pyright: ignore[reportAttributeAccessIssue]
    model.to(memory_format=torch.contiguous_format)


class PlainSearch(SearchTask):
    """A search whose network is the equation as it stands, and whose gradients are all that `backward` gives."""

    def __init__(self, config: DartsConfig) -> None:
        plain = replace(config, search=replace(config.search, mixture="plain"))
        super().__init__(plain, Runtime(config.loop, config.seed))
        ordinary(self.model)

    def gradient(self, half: Any, parameters: Any, step: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        x_NCHW, labels_N = self.batch(half, step, 0)
        with torch.enable_grad():
            loss = functional.cross_entropy(self.model(x_NCHW.contiguous())[0], labels_N)
            loss.backward()
        found = [parameter.grad for parameter in parameters]
        for parameter in self.model.parameters():
            parameter.grad = None
        return found, {"loss": loss.detach(), "accuracy": torch.zeros(())}


def tasks(config: DartsConfig) -> tuple[Any, Any]:
    """Ours and the plain form, from the same weights."""
    if config.phase == "search":
        return SearchTask(config, Runtime(config.loop, config.seed)), PlainSearch(config)
    ours, plain = (RetrainTask(config, Runtime(config.loop, config.seed)) for _ in range(2))
    ordinary(plain.model)
    return ours, plain


def apart(config: DartsConfig) -> float:
    """The largest difference of the losses of three steps in float64, relative to the loss.

    In float32 alpha's Adam makes steps of one size of gradients that are but rounding.
    """
    torch.set_default_dtype(torch.float64)
    try:
        ours, plain = tasks(config)
        names = ("loss", "alpha_loss") if config.phase == "search" else ("loss",)
        worst = 0.0
        for step in range(3):
            mine, theirs = ours.train_step(step), plain.train_step(step)
            worst = max([worst, *(abs(float(mine[name] - theirs[name]) / float(theirs[name])) for name in names)])
        return worst
    finally:
        torch.set_default_dtype(torch.float32)


def sides(config: DartsConfig, calls: int) -> Mapping[str, Side[Block]]:
    ours, plain = tasks(config)

    def side(task: Any) -> Side[Block]:
        return timed(lambda step: task.train_step(step)["loss"].item(), config.batch.size * calls, calls=calls)

    return {ETUDE: side(ours), PLAIN: side(plain)}


def main(options: Options) -> int:
    """Measure, print, and return 1 if the forms do not agree."""
    repeats, console, about = side_by_side.begun(options)
    console.print(f"{side_by_side.machine(about)}, etude at {about['commit']}; interleaved repeats: {repeats}")
    tables: dict[str, Mapping[str, Sequence[Block]]] = {}
    bars: dict[str, Bar] = {}
    differences: dict[str, float] = {}
    for title, config in settings(options.quick).items():
        name = title.partition(":")[0]
        differences[name] = apart(config)
        tables[name] = interleave(sides(config, 1), repeats, warm_up=not options.quick)
        console.print(side_by_side.speed_table(title, "pictures", tables[name]))
        bars[name] = Bar(lead(tables[name][ETUDE], tables[name][PLAIN]), BAR)
    worst = max(differences.values())
    agree = worst <= TOLERANCE
    console.print(f"{'agree' if agree else 'DISAGREE'}: largest difference of losses {worst:.1e}")
    side_by_side.tell_bars(console, bars, judged=not options.quick)
    if options.json is not None:
        written: dict[str, Any] = side_by_side.report(
            "darts", tables, "pictures", bars, about=about, repeats=repeats, quick=options.quick
        )
        write_json(options.json, written | {"agreement": {"difference": worst, "by": differences, "holds": agree}})
    return 0 if agree else 1


if __name__ == "__main__":
    side_by_side.run(main, Options, __doc__, "darts")
