"""Slot Attention on CLEVRTex: presets and experiments."""

from dataclasses import dataclass, field, replace
from typing import Literal

from etude.core.bounds import Count, NotNegative, Positive, Whole, require
from etude.core.config import LoopConfig, StudyConfig
from etude.core.study import Experiment, Job, Preset, Study
from etude.scenes.config import STARTS, SceneBatch, SceneMetricConfig, SceneOptim, SlotEncoderConfig
from etude.scenes.source import SceneConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig(SlotEncoderConfig):
    decoder: str = "broadcast"
    """broadcast, or path/to/file.py:Name of a module that is made with the slots' and the pictures' size and maps
    [M, S] to [M, 4, H, W]: three colours, and the mask before the softmax."""
    broadcast: int = 8
    """Side of the map that slots are put on; the pictures' size: every layer works at full resolution."""
    decoder_width: Count = 64
    """Channels of the decoder's layers."""
    decoder_layers: int = 1
    """Its 5x5 convolutions at the pictures' size, before the last one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sides = [self.size >> halvings for halvings in range(10) if self.size % (1 << halvings) == 0]
        choices = ", ".join(map(str, sides))
        require(self.broadcast in sides, "model.broadcast", f"one of {choices} for {self.size} px", self.broadcast)
        least = 1 if self.broadcast == self.size else 0
        require(self.decoder_layers >= least, "model.decoder_layers", f"at least {least}", self.decoder_layers)


@dataclass(frozen=True, kw_only=True)
class OptimConfig(SceneOptim):
    lr: Positive = 4e-4
    """Adam's learning rate after the warm-up."""
    warmup: Whole = 10_000
    """Steps over which the rate rises from zero."""
    schedule: Literal["halving", "cosine", "constant"] = "halving"
    """halving: falls smoothly by half every `halve_every` steps; cosine: down to zero."""
    halve_every: Count = 100_000
    """Steps in which the rate of `halving` falls by half."""
    sparsity: NotNegative = 0.0
    """Weight of a penalty on how many slots share a picture, see task.py; 0: none, as published."""
    coarse_steps: Whole = 0
    """Steps in which interpolation stands in place of the broadcast decoder's last doubling, at a fifth of the cost."""

    def shape(self, step: int, max_steps: int) -> float:
        return 0.5 ** (step / self.halve_every) if self.schedule == "halving" else super().shape(step, max_steps)


@dataclass(frozen=True, kw_only=True)
class SlotsConfig(StudyConfig):
    model: ModelConfig = field(default_factory=ModelConfig)
    """The networks."""
    data: SceneConfig = field(default_factory=SceneConfig)
    """The scenes."""
    batch: SceneBatch = field(default_factory=SceneBatch)
    """The number of pictures at a time."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser and its schedule."""
    metric: SceneMetricConfig = field(default_factory=SceneMetricConfig)
    """The way it is measured."""
    table: Literal["run", "clevrtex"] = "run"
    """The table that the run's numbers belong to; run: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        model = self.model
        can = model.decoder == "broadcast" and 4 * model.broadcast <= model.size and model.decoder_layers == 0
        wanted = "0 unless a broadcast decoder doubles twice and has model.decoder_layers 0"
        require(self.optim.coarse_steps == 0 or can, "optim.coarse_steps", wanted, self.optim.coarse_steps)


def paper() -> SlotsConfig:
    """Slot Attention as published (Locatello et al. 2020) and as the CLEVRTex paper ran it (Karazija et al. 2021).

    Four 5x5 convolutions at full resolution, slots drawn from one normal distribution, a decoder that begins with 8 x 8
    places, Adam 4e-4 with 10,000 steps of warm-up and a half every 100,000.

    Command: ``etude run slots paper``.
    Cost: 500,000 steps of 64 scenes at 128 px; days on an accelerator.
    Expected: FG-ARI .624, mIoU .226, MSE 254 in the CLEVRTex paper.
    """
    return SlotsConfig(
        loop=LoopConfig(max_steps=500_000, log_every=100, eval_every=10_000, save_every=5_000), table="clevrtex"
    )


def course() -> SlotsConfig:
    """The course's setting as the report of seed 000 has it: ResNet-18, K = 11, batch 64, Adam 4e-4.

    It trained 400 epochs of a part of the set, of a size that it does not state, at a rate whose course it does not
    state either: here it is constant after the paper's warm-up, and the epochs are of all scenes.

    Command: ``etude run slots course``.
    Cost: 250,000 steps of 64 scenes at 128 px.
    Expected: ARI .2353 and clean-FID 212.12 on the validation split there.
    """
    return SlotsConfig(
        model=ModelConfig(encoder="resnet18"),
        optim=OptimConfig(schedule="constant"),
        loop=LoopConfig(epochs=400.0, log_every=100, eval_every=5_000, save_every=5_000),
        table="clevrtex",
    )


def best() -> SlotsConfig:
    """The best setting elsewhere: learned queries with noise that fades and the last iteration's gradient (BO-QSA).

    As the authors' script and its defaults have it: the first convolution halves the picture, 5,000 steps of warm-up,
    a half every 50,000, the gradient cut at 1.

    Command: ``etude run slots best``.
    Cost: 250,000 steps of 128 scenes at 128 px (Jia et al. 2023); several accelerator days.
    Wanted: FG-ARI .80, ARI above .56, FID below 161.
    """
    return SlotsConfig(
        model=ModelConfig(init="bilevel", implicit=True, strides=(2, 1, 1, 1)),
        batch=SceneBatch(size=128),
        optim=OptimConfig(warmup=5_000, halve_every=50_000, clip=1.0),
        loop=LoopConfig(max_steps=250_000, log_every=100, eval_every=5_000, save_every=5_000),
        table="clevrtex",
    )


def laptop() -> SlotsConfig:
    """64 px on a CPU, on scenes of your own rendering: a narrow network, whose decoder begins coarse.

    Command: ``etude data render clevrtex --count 5000 --out scenes``, then
    ``etude run slots laptop --data.folder scenes``.
    Cost: 12,000 steps of 16 scenes, the last 800 fine; an hour and a quarter on one CPU core.
    """
    return SlotsConfig(
        model=ModelConfig(
            size=64, strides=(1, 2, 1, 1), features=32, decoder_width=32, decoder_layers=0, eval_iterations=5
        ),
        data=SceneConfig(source="folder", folder="scenes", flip=True),
        batch=SceneBatch(size=16),
        optim=OptimConfig(lr=1e-3, warmup=500, schedule="cosine", clip=1.0, noise_steps=3000, coarse_steps=11_200),
        loop=LoopConfig(max_steps=12_000, log_every=100, eval_every=1000, save_every=500),
        table="clevrtex",
    )


def mini() -> SlotsConfig:
    """The same at 32 px, for experiments: 2,000 steps, coarse to the end.

    Command: ``etude study slots init --set data.folder=scenes``.
    Cost: about five minutes a run on one CPU core. Objects get slots of their own between 1,000 and 1,500 steps; at a
    rate that falls to zero over so few steps they never do.
    """
    long = laptop()
    return replace(
        long,
        model=replace(long.model, size=32),
        optim=replace(long.optim, schedule="constant", noise_steps=700, coarse_steps=2000),
        loop=LoopConfig(max_steps=2000, log_every=100, eval_every=500, save_every=500),
    )


def smoke() -> SlotsConfig:
    """Seconds, on made-up flat scenes. Its numbers say only that the parts work.

    Command: ``etude run slots smoke``.
    """
    return SlotsConfig(
        model=ModelConfig(
            size=32, num_slots=5, slot_size=16, strides=(1, 2, 1, 1), features=16, hidden=32, init="bilevel",
            implicit=True, decoder_width=8, decoder_layers=0,
        ),
        data=SceneConfig(source="generated", most=120),
        batch=SceneBatch(size=8),
        optim=OptimConfig(lr=2e-3, warmup=5, schedule="cosine", clip=1.0, noise_steps=20),
        metric=SceneMetricConfig(inception="none"),
        loop=LoopConfig(max_steps=60, log_every=10, eval_every=30, save_every=30, device="cpu"),
    )  # fmt: skip


def _init(preset: str) -> tuple[Job, ...]:
    """The ways in which slots begin."""
    return tuple(Job(name, settings) for name, settings in STARTS.items())


def _encoder(preset: str) -> tuple[Job, ...]:
    """The networks that slots see pictures through; at laptop scale a ResNet-18 of a quarter of the width."""
    narrow = {"model.encoder_width": 16} if preset in ("laptop", "mini", "smoke") else {}
    return (
        Job("conv", {"model.encoder": "conv"}),
        # The report of seed 003.
        Job("conv-1221", {"model.encoder": "conv", "model.strides": (1, 2, 2, 1), "model.features": 32}),
        Job("resnet18", {"model.encoder": "resnet18"} | narrow),
    )


def _slots(preset: str) -> tuple[Job, ...]:
    """The numbers of slots."""
    return tuple(Job(f"k{count}", {"model.num_slots": count}) for count in (7, 11, 15))


STUDY = Study(
    name="slots",
    title="Slot Attention",
    about="Slot Attention and a spatial broadcast decoder on CLEVRTex (Locatello et al. 2020)",
    config=SlotsConfig,
    presets={
        "paper": Preset(paper, "full"),
        "course": Preset(course, "full"),
        "best": Preset(best, "full"),
        "laptop": Preset(laptop, "laptop"),
        "mini": Preset(mini, "laptop"),
        "smoke": Preset(smoke, "smoke"),
    },
    experiments={
        "init": Experiment("Gaussian, learned and bi-level starts of the slots", _init, preset="mini"),
        "encoder": Experiment(
            "four convolutions, at full and at a quarter of the size, or ResNet-18", _encoder, preset="mini"
        ),
        "slots": Experiment("7, 11 and 15 slots", _slots, preset="mini"),
    },
    reads_data=("clevrtex", "inception"),
    pictures={
        "curves": "training and validation over the steps",
        "reconstructions": "one column a scene: the picture, its reconstruction, the true masks, the slots' masks",
        "slots": "one row a scene: the picture, its reconstruction, and what each slot adds to it",
        "parts": "one scene: each slot's mask, what it would paint everywhere, and where it does",
        "attention": "what share of a picture each slot takes, one row an iteration",
        "compositions": "validation scenes above, scenes composed from a library of slots below",
    },
)
