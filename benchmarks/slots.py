"""Slot Attention beside the package `slot-attention`, and a training step beside its plain form.

    uv run --extra bench python benchmarks/slots.py

The module: forward and backward at the same shapes, from the same weights and noise; the package's projections have
biases, which are zero here. The training step: a decoder at full resolution in both. The plain form puts every slot on
a map of the picture's size and convolves that, keeps PyTorch's default memory layout, makes maps of keys and values,
and reads pictures as floats. Needs slot-attention (extra `bench`).
"""

import sys
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
from etude.nn.pixels import prepare
from etude.scenes.config import SceneBatch
from etude.scenes.slot_attention import EPSILON, SlotAttention
from etude.scenes.source import SceneConfig
from etude.studies.slots.model import BroadcastDecoder, SlotAutoencoder
from etude.studies.slots.study import ModelConfig, OptimConfig, SlotsConfig
from etude.studies.slots.task import SlotsTask
from side_by_side import ETUDE, Bar, Block, Side, interleave, lead, timed

try:
    from slot_attention import SlotAttention as PackageAttention
except ImportError:
    sys.exit("benchmarks/slots.py: slot-attention is missing: `uv sync --extra bench`")

PACKAGE, PLAIN, COMPILED = "slot-attention", "plain form", f"{ETUDE} --loop.compile"
MODULE_BAR, STEP_BAR = 1.3, 1.5
TOLERANCE = 1e-4
SHAPES = {"32 x 32 inputs": (16, 1024, 11, 64), "64 x 64 inputs": (8, 4096, 11, 64)}
"""Images, inputs, slots, size."""


@dataclass(frozen=True)
class Options:
    json: Path | None = None
    """Where to write every measurement."""
    quick: bool = False
    """Seconds, at small shapes: shows that all sides run and agree; its speeds mean nothing."""
    compile: bool = True
    """Also measure the training step compiled; wants a C++ compiler."""
    threads: int = torch.get_num_threads()
    """Threads of all sides."""
    repeats: int | None = None
    """Blocks of each side; 5, or 1 when quick."""


# --- the module ---


def pair(slots: int, size: int) -> tuple[SlotAttention, nn.Module]:
    """Both modules with the same weights."""
    ours, theirs = SlotAttention(slots, size, size, hidden=2 * size), PackageAttention(slots, size, hidden_dim=2 * size)
    keys, values = ours.to_keys_and_values.weight.chunk(2)
    same: dict[str, Tensor] = {
        "slots_mu": ours.mean, "slots_logsigma": ours.log_deviation, "to_q.weight": ours.to_queries.weight,
        "to_k.weight": keys, "to_v.weight": values,
        **{f"to_{name}.bias": torch.zeros(size) for name in "qkv"},
        **{f"gru.{name}": value for name, value in ours.gru.state_dict().items()},
        **{f"mlp.{name}": value for name, value in ours.mlp.state_dict().items()},
        **{f"norm_input.{name}": value for name, value in ours.norm_inputs.state_dict().items()},
        **{f"norm_slots.{name}": value for name, value in ours.norm_slots.state_dict().items()},
        **{f"norm_pre_ff.{name}": value for name, value in ours.norm_mlp.state_dict().items()},
    }  # fmt: skip
    theirs.load_state_dict(same)
    return ours, theirs


def one_pass(module: nn.Module, inputs_BND: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Slots and the inputs' gradient; both modules draw the same noise."""
    module.zero_grad()
    inputs_BND = inputs_BND.clone().requires_grad_()
    torch.manual_seed(number)
    if isinstance(module, SlotAttention):
        noise_BKS = torch.randn(len(inputs_BND), module.num_slots, module.slot_size)
        slots_BKS = module(inputs_BND, noise_BKS).slots_BKS
    else:
        slots_BKS = module(inputs_BND)
    slots_BKS.square().mean().backward()
    assert inputs_BND.grad is not None
    return slots_BKS.detach(), inputs_BND.grad


def modules_apart(shape: Sequence[int]) -> float:
    """The largest difference of the slots, and of the inputs' gradients relative to the largest."""
    images, inputs, slots, size = shape
    ours, theirs = pair(slots, size)
    inputs_BND = torch.randn(images, inputs, size)
    (found, grad), (wanted, grad_wanted) = (one_pass(module, inputs_BND, 0) for module in (ours, theirs))
    return max(float((found - wanted).abs().max()), float((grad - grad_wanted).abs().max() / grad_wanted.abs().max()))


def module_sides(shape: Sequence[int], calls: int) -> Mapping[str, Side[Block]]:
    images, inputs, slots, size = shape
    ours, theirs = pair(slots, size)
    inputs_BND = torch.randn(images, inputs, size)
    return {
        name: timed(lambda number, module=module: one_pass(module, inputs_BND, number), images * calls, calls=calls)
        for name, module in ((ETUDE, ours), (PACKAGE, theirs))
    }


# --- the training step ---


class Plain(nn.Module):
    """The autoencoder written down as its formulas have it, with etude's parameters."""

    def __init__(self, model: SlotAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, images_BCHW: Tensor, noise_BKS: Tensor) -> Tensor:
        attention, decoder = self.model.encoder.attention, self.model.decoder
        assert isinstance(decoder, BroadcastDecoder)
        inputs_BND = attention.norm_inputs(self.model.encoder.features(images_BCHW))
        keys_BNS, values_BNS = attention.to_keys_and_values(inputs_BND).chunk(2, -1)
        slots_BKS = attention.first(len(images_BCHW), noise_BKS)
        for _ in range(attention.iterations):
            queries_BKS = attention.to_queries(attention.norm_slots(slots_BKS))
            share_BNK = (keys_BNS @ queries_BKS.mT * attention.slot_size**-0.5).softmax(-1) + EPSILON
            weights_BNK = share_BNK / share_BNK.sum(1, keepdim=True)
            updates_BKS = weights_BNK.mT @ values_BNS
            slots_BKS = attention.gru(updates_BKS.flatten(0, 1), slots_BKS.flatten(0, 1)).view_as(updates_BKS)
            slots_BKS = slots_BKS + attention.mlp(attention.norm_mlp(slots_BKS))
        side = decoder.first.side
        x = slots_BKS.flatten(0, 1)[:, :, None, None].expand(-1, -1, side, side) + decoder.positions()
        x = functional.relu(decoder.first.conv(x))
        for conv in decoder.further:
            x = functional.relu(conv(x))
        maps_BKCHW = decoder.last(x).unflatten(0, slots_BKS.shape[:2])
        return (maps_BKCHW[:, :, 3:].softmax(1) * maps_BKCHW[:, :, :3]).sum(1)


def settings(quick: bool) -> SlotsConfig:
    """Gaussian slots, a decoder at full resolution; 64 px and the published widths unless quick."""
    size, width = (16, 8) if quick else (64, 64)
    return SlotsConfig(
        model=ModelConfig(
            size=size, num_slots=11, strides=(1, 2, 1, 1), features=width, slot_size=width, hidden=2 * width,
            broadcast=size, decoder_width=width, decoder_layers=3,
        ),
        data=SceneConfig(source="generated", most=100),
        batch=SceneBatch(size=4),
        optim=OptimConfig(warmup=0, schedule="constant"),
        loop=LoopConfig(max_steps=10**9, device="cpu"),
    )  # fmt: skip


class PlainTraining:
    """Adam around `Plain`, on pictures that are floats already."""

    def __init__(self, config: SlotsConfig) -> None:
        self.task = SlotsTask(config, Runtime(config.loop, config.seed))
        self.network = Plain(self.task.model.to(memory_format=torch.contiguous_format))
        self.adam = torch.optim.Adam(self.network.parameters(), lr=config.optim.lr, fused=True)
        self.images_NCHW = prepare(self.task.scenes.splits["train"].images_NHWC).contiguous()

    def step(self, number: int) -> float:
        rows = self.task.batch_rows(number)
        images_BCHW = self.images_NCHW[rows]
        made_BCHW = self.network(images_BCHW, self.task.noise(len(rows), "train/slots", number))
        loss = (made_BCHW - images_BCHW).square().sum(1).mean()
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return loss.item()


def steps_apart(config: SlotsConfig) -> float:
    """The largest difference of the losses before and after a first update, relative to the loss."""
    plain, task = PlainTraining(config), SlotsTask(config, Runtime(config.loop, config.seed))
    pairs = [(plain.step(number), task.train_step(number)["loss"].item()) for number in range(2)]
    return max(abs(theirs - ours) / theirs for theirs, ours in pairs)


def step_sides(config: SlotsConfig, calls: int, *, compiled: bool) -> dict[str, Side[Block]]:
    def etude(compile_it: bool) -> Side[Block]:
        changed = replace(config, loop=replace(config.loop, compile=compile_it))
        task = SlotsTask(changed, Runtime(changed.loop, changed.seed))
        # Made before the clock starts.
        assert task.scenes
        return timed(lambda step: task.train_step(step)["loss"].item(), config.batch.size * calls, calls=calls)

    plain = PlainTraining(config)
    sides = {ETUDE: etude(False), PLAIN: timed(plain.step, config.batch.size * calls, calls=calls)}
    return sides | ({COMPILED: etude(True)} if compiled else {})


def main(options: Options) -> int:
    """Measure, print, and return 1 if the forms do not agree."""
    torch.manual_seed(0)
    repeats, console, about = side_by_side.begun(options, "slot-attention")
    console.print(
        f"{side_by_side.machine(about)}, slot-attention {about['slot-attention']}, etude at {about['commit']}; "
        f"interleaved repeats: {repeats}"
    )
    shapes = {"8 x 8 inputs": (2, 64, 3, 16)} if options.quick else SHAPES
    config = settings(options.quick)
    apart = {name: modules_apart(shape) for name, shape in shapes.items()} | {"training step": steps_apart(config)}
    tables: dict[str, Mapping[str, Sequence[Block]]] = {}
    bars: dict[str, Bar] = {}
    for name, shape in shapes.items():
        blocks = interleave(module_sides(shape, 1 if options.quick else 10), repeats, warm_up=not options.quick)
        title = f"Slot Attention, forward and backward, {name}: {shape[0]} images, {shape[2]} slots of {shape[3]}"
        console.print(side_by_side.speed_table(title, "images", blocks))
        bars[f"module, {name}"] = Bar(lead(blocks[ETUDE], blocks[PACKAGE]), MODULE_BAR)
        tables[name] = blocks
    compiled = options.compile and not options.quick
    blocks = interleave(step_sides(config, 1 if options.quick else 3, compiled=compiled), repeats, warm_up=True)
    ours = [name for name in (ETUDE, COMPILED) if name in blocks]
    title = f"Training step, {config.model.size} px, decoder at full resolution, batch {config.batch.size}"
    console.print(side_by_side.speed_table(title, "images", blocks, ours))
    bars.update({f"training step, {name}": Bar(lead(blocks[name], blocks[PLAIN]), STEP_BAR) for name in ours})
    tables["training step"] = blocks
    worst = max(apart.values())
    agree = worst <= TOLERANCE
    console.print(f"{'agree' if agree else 'DISAGREE'}: largest difference {worst:.1e}")
    side_by_side.tell_bars(console, bars, judged=not options.quick)
    if options.json is not None:
        written: dict[str, Any] = side_by_side.report(
            "slots", tables, "images", bars, about=about, repeats=repeats, quick=options.quick
        )
        write_json(options.json, written | {"agreement": {"difference": worst, "by": apart, "holds": agree}})
    return 0 if agree else 1


if __name__ == "__main__":
    side_by_side.run(main, Options, __doc__, "slots")
