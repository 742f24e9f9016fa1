"""The U-Net of slotdiffusion beside that of diffusers; its step with and without a kept context; two samplers.

    uv run --extra bench python benchmarks/slotdiffusion.py

Forward and backward: the noise in latent pictures is predicted and its mean squared error differentiated. The peer is
diffusers' `UNet2DConditionModel` as its constructor makes it: the same levels, residual blocks a level, skips, places
and heads of attention, no dropout on either side. Its blocks are larger (halving, doubling, and the way in and out of
attention have weights, the feed-forward is gated), so its last level is narrower and the parameters come within 3 %.

A sampler's step: one evaluation without gradients, one time for all pictures. etude's slots are turned into keys and
values once, before the clock starts, or in every step; diffusers has no way but the second.

Whole pictures: latents by DPM-Solver++ in 20 steps and by the ancestral sampler in 1,000, both etude's. That they are
as good is for FID to say: `fid` and `fid_ancestral` of a run. Needs diffusers (extra `bench`).
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import side_by_side
from etude.core.config import LoopConfig
from etude.core.files import write_json
from etude.core.runtime import Runtime
from etude.studies.slotdiffusion.diffusion import Schedule
from etude.studies.slotdiffusion.samplers import ancestral, dpm_solver_pp, draw, image_generators
from etude.studies.slotdiffusion.unet import UNet
from side_by_side import ETUDE, Bar, Block, Side, interleave, lead, timed

try:
    from diffusers import UNet2DConditionModel
except ImportError:
    sys.exit("benchmarks/slotdiffusion.py: diffusers is missing: `uv sync --extra bench`")

PEER, COMPILED, ANEW = "diffusers", f"{ETUDE}, compiled", f"{ETUDE}, context in every step"
TRAINING_BAR, SAMPLING_BAR, SAMPLER_BAR = 1.0, 1.1, 20.0
NUM_SLOTS = 11
TOLERANCE = 1e-5
MOST_APART = 0.03
"""How far the numbers of parameters may lie apart, as a share of etude's."""


@dataclass(frozen=True)
class Options:
    json: Path | None = None
    """Where to write every measurement."""
    quick: bool = False
    """Seconds, with tiny networks: shows that all sides run; its speeds mean nothing."""
    compile: bool = False
    """Also measure etude's U-Net compiled, forward and backward; wants a C++ compiler and minutes."""
    threads: int = torch.get_num_threads()
    """Threads of all sides."""
    repeats: int | None = None
    """Blocks of each side; 5, or 1 when quick."""


@dataclass(frozen=True)
class Case:
    """A network of each side, and what they are given."""

    width: int
    multipliers: tuple[int, ...]
    slot_size: int
    heads: int
    peer_widths: tuple[int, ...]
    """Channels of each level of the peer's."""
    peer_groups: int
    """Of its norms; they divide the channels."""
    size: int
    """Of the latent picture."""
    batch: int


QUICK = {"8 wide": Case(8, (1, 2), 8, 2, (10, 14), 2, 4, 2)}
FULL = {
    "32 wide, 16 x 16": Case(32, (1, 2, 3), 64, 4, (32, 64, 88), 8, 16, 8),
    "64 wide, 32 x 32": Case(64, (1, 2, 3, 4), 192, 8, (64, 128, 192, 224), 32, 32, 4),
}


def ours(case: Case) -> UNet:
    net = UNet(
        3, case.width, case.multipliers, case.slot_size, heads=case.heads, dropout=0.0
    )  # fmt: skip
    return net.to(memory_format=torch.channels_last)


def theirs(case: Case) -> nn.Module:
    further = len(case.peer_widths) - 1
    made: Any = UNet2DConditionModel(
        sample_size=case.size, in_channels=3, out_channels=3, layers_per_block=2, dropout=0.0,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * further),
        up_block_types=(*["CrossAttnUpBlock2D"] * further, "UpBlock2D"),
        block_out_channels=case.peer_widths, norm_num_groups=case.peer_groups, cross_attention_dim=case.slot_size,
        # The number of heads, by its older name.
        attention_head_dim=case.heads,
    )  # fmt: skip
    return made


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def sizes_apart(case: Case) -> float:
    """The difference of the numbers of parameters, as a share of etude's."""
    with torch.device("meta"):
        mine, peers = parameters(ours(case)), parameters(theirs(case))
    return abs(peers - mine) / mine


def given(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy pictures, times, slots, and the noise."""
    shape = (case.batch, 3, case.size, case.size)
    z_BCHW, noise_BCHW = torch.randn(shape), torch.randn(shape)
    return z_BCHW, torch.randint(1000, (case.batch,)), torch.randn(case.batch, NUM_SLOTS, case.slot_size), noise_BCHW


def training_sides(case: Case, calls: int, *, compiled: bool) -> dict[str, Side[Block]]:
    z_BCHW, t_B, slots_BKS, noise_BCHW = given(case)

    def side(net: nn.Module) -> Side[Block]:
        call: Any = net

        def work(_: int) -> float:
            net.zero_grad()
            made = call(z_BCHW, t_B, slots_BKS)
            predicted = made if isinstance(made, Tensor) else made.sample
            loss = functional.mse_loss(predicted, noise_BCHW)
            loss.backward()
            return loss.item()

        return timed(work, case.batch * calls, calls=calls)

    sides = {ETUDE: side(ours(case)), PEER: side(theirs(case))}
    if compiled:
        net: Any = ours(case)
        net.compile()
        sides[COMPILED] = side(net)
    return sides


def sampling_sides(case: Case, calls: int) -> tuple[dict[str, Side[Block]], float]:
    """The sides, and the largest difference of etude's predictions with a kept context and without."""
    z_BCHW, t_B, slots_BKS, _ = given(case)
    net, peer = ours(case).eval(), theirs(case).eval()
    # A fresh network predicts zero whatever its slots are.
    nn.init.normal_(net.conv2.weight)
    with torch.no_grad():
        context = net.context(slots_BKS)
        apart = float((net(z_BCHW, t_B, context=context) - net(z_BCHW, t_B, slots_BKS)).abs().max())

    @torch.no_grad()
    def kept(number: int) -> Tensor:
        return net(z_BCHW, torch.tensor([number % 1000]), context=context)

    @torch.no_grad()
    def anew(number: int) -> Tensor:
        return net(z_BCHW, torch.tensor([number % 1000]), slots_BKS)

    @torch.no_grad()
    def diffusers(number: int) -> Tensor:
        return peer(z_BCHW, number % 1000, slots_BKS).sample

    works = {ETUDE: kept, ANEW: anew, PEER: diffusers}
    return {name: timed(work, case.batch * calls, calls=calls) for name, work in works.items()}, apart


def sampler_sides(case: Case, *, fast: int, steps: int) -> dict[str, Side[Block]]:
    """Latents of pure noise by few steps of a solver and by all steps of the chain."""
    _, _, slots_BKS, _ = given(case)
    net, schedule = ours(case).eval(), Schedule(steps)
    with torch.no_grad():
        context = net.context(slots_BKS)

    def predict(z_BCHW: Tensor, t_B: Tensor) -> Tensor:
        return net(z_BCHW, t_B[:1], context=context)

    def side(sampler: Any, count: int) -> Side[Block]:
        def work(number: int) -> Tensor:
            generators = image_generators(number, "bench", slice(0, case.batch))
            z_BCHW = draw(generators, (3, case.size, case.size)).to(memory_format=torch.channels_last)
            return sampler(predict, schedule, z_BCHW, generators, steps=count)

        return timed(work, case.batch)

    sides = {f"dpm-solver++, {fast} steps": (dpm_solver_pp, fast), f"ancestral, {steps} steps": (ancestral, steps)}
    return {name: side(*of) for name, of in sides.items()}


def main(options: Options) -> int:
    """Measure, print, and return 1 if a kept context changes a prediction, or networks differ in size."""
    # Trainings keep freed memory; so does every side here.
    Runtime(LoopConfig(max_steps=1, device="cpu"), 0)
    torch.manual_seed(0)
    repeats, console, about = side_by_side.begun(options, "diffusers")
    console.print(
        f"{side_by_side.machine(about)}, diffusers {about['diffusers']}, etude at {about['commit']}; "
        f"interleaved repeats: {repeats}"
    )
    tables: dict[str, Mapping[str, Sequence[Block]]] = {}
    bars: dict[str, Bar] = {}
    apart: dict[str, float] = {}
    sizes: dict[str, float] = {}
    calls = 1 if options.quick else 5
    for name, case in (QUICK if options.quick else FULL).items():
        sizes[name] = sizes_apart(case)
        title = f"forward and backward, {name}, batch {case.batch}"
        sides = training_sides(case, calls, compiled=options.compile and not options.quick)
        blocks = interleave(sides, repeats, warm_up=not options.quick)
        mine = [side for side in (ETUDE, COMPILED) if side in blocks]
        console.print(side_by_side.speed_table(title.capitalize(), "images", blocks, mine))
        bars |= {f"{title}, {side}": Bar(lead(blocks[side], blocks[PEER]), TRAINING_BAR) for side in mine}
        tables[title] = blocks
        title = f"a sampler's step, {name}, batch {case.batch}"
        sides, apart[name] = sampling_sides(case, calls)
        blocks = interleave(sides, repeats, warm_up=not options.quick)
        console.print(side_by_side.speed_table(title.capitalize(), "images", blocks))
        bars |= {
            f"{title}, beside {peer}": Bar(lead(blocks[ETUDE], blocks[peer]), SAMPLING_BAR) for peer in (ANEW, PEER)
        }
        tables[title] = blocks
    name, case = next(iter((QUICK if options.quick else FULL).items()))
    sides = sampler_sides(case, fast=2, steps=40) if options.quick else sampler_sides(case, fast=20, steps=1000)
    blocks = interleave(sides, repeats, warm_up=False)
    fast, slow = sides
    title = f"latents, {name}, batch {case.batch}"
    console.print(side_by_side.speed_table(title.capitalize(), "images", blocks, [fast]))
    bars[f"{title}, beside {slow}"] = Bar(lead(blocks[fast], blocks[slow]), SAMPLER_BAR)
    tables[title] = blocks
    agree = max(apart.values()) <= TOLERANCE and max(sizes.values()) <= MOST_APART
    console.print(
        f"{'agree' if agree else 'DISAGREE'}: a kept context changes a prediction by {max(apart.values()):.1e}; "
        f"parameters {max(sizes.values()):.1%} apart"
    )
    side_by_side.tell_bars(console, bars, judged=not options.quick)
    if options.json is not None:
        written: dict[str, Any] = side_by_side.report(
            "slotdiffusion", tables, "images", bars, about=about, repeats=repeats, quick=options.quick
        )
        agreement = {"difference": max(apart.values()), "by": apart, "sizes": sizes, "holds": agree}
        write_json(options.json, written | {"agreement": agreement})
    return 0 if agree else 1


if __name__ == "__main__":
    side_by_side.run(main, Options, __doc__, "slotdiffusion")
