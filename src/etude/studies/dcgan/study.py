"""DCGAN and its conditional form: presets and experiments."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from etude.core.bounds import Bound, Count, Fraction, NotNegative, Positive, at_least, require
from etude.core.config import BatchConfig, LoopConfig, StudyConfig
from etude.core.study import Experiment, Job, Preset, Study

_SIZE = Bound("28 or 32", lambda value: value in (28, 32))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    noise: Count = 100
    """Numbers of a noise vector."""
    size: Annotated[int, _SIZE] = 32
    """Height and width of the pictures: 28, or 32 with two black pixels on every side."""
    width: Count = 64
    """Filters of the layers nearest to the picture; each layer further in has twice as many."""
    conditional: bool = False
    """Both networks are told the class."""
    norm: Literal["batch", "spectral", "none"] = "batch"
    """The discriminator's norm."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: Literal["mnist", "sample"] = "mnist"
    """mnist: all of it; sample: 300 digits that come with etude."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    lr: Positive = 2e-4
    """Adam's learning rate, of both networks."""
    beta1: Fraction = 0.5
    """Adam's first beta."""
    loss: Literal["vanilla", "lsgan"] = "vanilla"
    """vanilla: cross-entropy, non-saturating."""
    smoothing: Fraction = 0.0
    """The discriminator's target for real pictures is 1 less this."""
    r1: NotNegative = 0.0
    """Weight gamma of the gradient penalty on real pictures, gamma / 2 |grad|^2; 0: none."""
    ema: Fraction = 0.0
    """Decay of the mean of the generator's weights, which then draws in its place; 0: none."""


@dataclass(frozen=True, kw_only=True)
class Batch(BatchConfig):
    size: int = 64
    """Pictures of one step, over all processes."""
    evaluation: int = 250
    """Pictures at a time where nothing is learned."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Batch norm over one picture alone would take away what sets it apart.
        require(self.size // self.parts >= 2, "batch.size / batch.parts", "at least 2", self.size // self.parts)


@dataclass(frozen=True, kw_only=True)
class MetricConfig:
    # Every digit is scored, and an interval needs four groups.
    samples: Annotated[int, at_least(10)] = 10_000
    """Generated pictures of the final FID and KID, against the whole test split."""
    watched: Annotated[int, at_least(2)] = 500
    """Pictures whose diversity each evaluation compares with that of real ones."""
    inception: str = ""
    """A local file with the Inception weights; else clean-fid's own home. `none`: no FID."""


@dataclass(frozen=True, kw_only=True)
class DCGANConfig(StudyConfig):
    model: ModelConfig = field(default_factory=ModelConfig)
    """The two networks."""
    data: DataConfig = field(default_factory=DataConfig)
    """The pictures."""
    batch: Batch = field(default_factory=Batch)
    """The number of pictures at a time."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The losses and the optimisers."""
    metric: MetricConfig = field(default_factory=MetricConfig)
    """The measurements."""
    table: Literal["run", "mnist", "conditional", "options", "sizes"] = "run"
    """The table that the run's numbers belong to; run: none."""


_EPOCH = 60_000 // 64
"""Steps in which every training digit but a rest is seen."""


def _loop(epochs: int, every: int = 1) -> LoopConfig:
    return LoopConfig(
        epochs=float(epochs), log_every=_EPOCH // 10, eval_every=every * _EPOCH, save_every=every * _EPOCH
    )


def paper() -> DCGANConfig:
    """Radford et al. 2016's networks and optimiser on MNIST at 32 pixels: 64 filters, noise of 100, batch 128.

    They trained on larger photographs; of MNIST they report no FID. 150 epochs, as the best public FID has them.

    Command: ``etude run dcgan paper``.
    Cost: 70,200 steps of 128 digits; an accelerator, or a day on two CPU cores.
    Expected: FID 5.2 in the best public figure, 8 +- 4 over its five runs.
    """
    steps = 60_000 // 128
    return DCGANConfig(
        batch=Batch(size=128),
        loop=LoopConfig(epochs=150.0, log_every=100, eval_every=5 * steps, save_every=5 * steps),
        table="mnist",
    )


def course() -> DCGANConfig:
    """The course's setting: 15 epochs of MNIST, batch 64, Adam 2e-4, noise of 256; here at 32 pixels, 64 filters.

    Command: ``etude run dcgan course``.
    Cost: 14,055 steps of 64 digits; about an hour and a quarter on one CPU core, and half an hour for FID.
    Reached: FID 12.0; with ``--optim.ema 0.999`` 7.8.
    Expected: the course shows pictures and no number.
    """
    return DCGANConfig(model=ModelConfig(noise=256), loop=_loop(15), table="mnist")


def conditional() -> DCGANConfig:
    """The course's setting told the digit: draws the one that it is asked for.

    Command: ``etude run dcgan conditional``.
    Cost: 14,055 steps of 64 digits; about 40 minutes on one CPU core, and half an hour for FID.
    Reached: FID 6.7, 99.5 % of the digits right.
    """
    return DCGANConfig(
        model=ModelConfig(noise=100, width=48, conditional=True),
        optim=OptimConfig(ema=0.999),
        loop=_loop(15),
        table="conditional",
    )


def laptop() -> DCGANConfig:
    """On two CPU cores: 32 filters and a mean of the generator's weights.

    Command: ``etude run dcgan laptop``.
    Cost: 9,370 steps of 64 digits; about 13 minutes on one CPU core, and half an hour for FID.
    """
    return DCGANConfig(model=ModelConfig(width=32), optim=OptimConfig(ema=0.999), loop=_loop(10), table="mnist")


def smoke() -> DCGANConfig:
    """Seconds, on 300 digits that come with etude. Its numbers say only that the parts work.

    Command: ``etude run dcgan smoke``.
    """
    return DCGANConfig(
        model=ModelConfig(noise=16, size=28, width=8, conditional=True),
        data=DataConfig(source="sample"),
        batch=Batch(size=32),
        optim=OptimConfig(lr=1e-3, ema=0.9),
        metric=MetricConfig(samples=64, watched=50, inception="none"),
        loop=LoopConfig(max_steps=60, log_every=10, eval_every=30, save_every=30, device="cpu"),
    )


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "spectral": {"model.norm": "spectral"},
    "ema": {"optim.ema": 0.999},
    "r1": {"optim.r1": 0.2},
    "smoothing": {"optim.smoothing": 0.1},
}


def _options(preset: str) -> tuple[Job, ...]:
    """Each remedy by itself, from the same start."""
    none = {"optim.ema": 0.0, "table": "options"}
    return tuple(Job(name, none | settings) for name, settings in OPTIONS.items())


def _sizes(preset: str) -> tuple[Job, ...]:
    """The sizes and the noises of the reports."""
    return tuple(
        Job(f"{size}px-z{noise}", {"model.size": size, "model.noise": noise, "table": "sizes"})
        for size in (28, 32) for noise in (100, 256)
    )  # fmt: skip


STUDY = Study(
    name="dcgan",
    title="DCGAN",
    about="DCGAN and its conditional form on MNIST (Radford et al. 2016)",
    config=DCGANConfig,
    presets={
        "paper": Preset(paper, "full"),
        "course": Preset(course, "laptop"),
        "conditional": Preset(conditional, "laptop"),
        "laptop": Preset(laptop, "laptop"),
        "smoke": Preset(smoke, "smoke"),
    },
    experiments={
        "options": Experiment("spectral norm, mean weights, R1 and label smoothing, one at a time", _options),
        "sizes": Experiment("28 and 32 pixels, noise of 100 and 256", _sizes),
    },
    reads_data=("mnist", "inception"),
    pictures={
        "curves": "training and validation over the steps",
        "samples": "what the same noise draws at several moments of the training",
        "digits": "real digits above, drawn ones below",
    },
)
