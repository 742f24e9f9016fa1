"""Residual networks: presets and experiments."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from etude.core.bounds import Count, Fraction, NotNegative, Positive, Whole, at_least
from etude.core.config import BatchConfig, LoopConfig, StudyConfig
from etude.core.run_folder import RunFolder
from etude.core.study import Experiment, Job, Preset, Study, best_of
from etude.data.picture_config import AugmentConfig, PictureConfig

# In the order of the published table.
NORMS = ("bn-torch", "bn", "in", "bin", "ln", "gn", "none")
BATCH_NORMS = ("bn-torch", "bn", "bin")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    n: Count = 3
    """Blocks a stage: the network has 6n + 2 layers."""
    num_classes: Annotated[int, at_least(2)] = 10
    """r, the classes of the data."""
    norm: str = "bn"
    """bn-torch (PyTorch's own batch norm), bn, in, bin, ln, gn, none, or path/to/file.py:Name of a module that is made
    with a number of channels and maps [N, C, H, W] to the same shape."""
    norm_form: Literal["fast", "plain"] = "fast"
    """The form of our norms: fast, with backward passes derived by hand (nn/fast_norms.py); plain, the papers' formulas
    (nn/norms.py). They compute the same."""
    groups: Count = 8
    """Groups of gn."""
    shortcut: Literal["pad", "projection"] = "pad"
    """Shortcuts where the shape changes: pad has no parameters, as published; projection is a 1x1 convolution."""
    width: Count = 16
    """Filters of the first stage."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    algorithm: Literal["sgd", "adam"] = "sgd"
    lr: Positive = 0.1
    """Learning rate at the start."""
    momentum: Fraction = 0.9
    """The momentum of sgd."""
    weight_decay: NotNegative = 1e-4
    """Added to the gradient; gates have none."""
    gate_lr: Positive = 10.0
    """The learning rate of bin's gates, as a multiple."""
    schedule: Literal["constant", "step", "linear", "cosine"] = "step"
    """step: a tenth after one half and again after three quarters of the steps; linear and cosine: down to zero."""
    warmup: Whole = 0
    """Steps over which the rate rises from zero."""

    def rate(self, step: int, max_steps: int) -> float:
        """The learning rate of a step, from 0."""
        done = step / max_steps
        shape = {
            "constant": 1.0,
            "step": 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01,
            "linear": 1 - done,
            "cosine": (1 + math.cos(math.pi * done)) / 2,
        }[self.schedule]
        return self.lr * shape * min(1.0, (step + 1) / self.warmup if self.warmup else 1.0)


@dataclass(frozen=True, kw_only=True)
class Batch(BatchConfig):
    size: int = 128
    """Pictures of one optimiser step, over all processes."""
    evaluation: int = 500
    """Pictures at a time where nothing is learned."""


@dataclass(frozen=True, kw_only=True)
class ResNetConfig(StudyConfig):
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    data: PictureConfig = field(default_factory=PictureConfig)
    """The pictures."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """The augmentation of training pictures."""
    batch: Batch = field(default_factory=Batch)
    """The number of pictures at a time."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser and its schedule."""
    curve_images: Count = 2000
    """Training pictures, always the same, that each evaluation scores beside the validation split."""
    cam_classes: tuple[str, ...] = ()
    """The classes of the Grad-CAM sheets; where none is named, the assignment's seven species or the first seven."""
    table: str = "run"
    """The published table that the run's numbers belong to: norms, batch-size, best, depth, norms-tuned; run: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        each = self.batch.size // self.batch.parts
        if self.model.norm in BATCH_NORMS and each < 2:
            raise ValueError(
                f"{self.model.norm} over a batch of {each} has nothing to average over: raise --batch.size, "
                "or take --model.norm gn"
            )


def paper() -> ResNetConfig:
    """He et al. 2016, section 4.2: CIFAR-10, 20 layers, 64,000 steps of 128, a tenth of the rate at 32,000 and 48,000.

    Trained on 45,000 pictures, chosen on 5,000, as the paper's own schedule was. The other depths:
    ``etude study resnet depth``.

    Command: ``etude run resnet paper``.
    Cost: 164 epochs; three hours on two idle CPU cores, minutes on an accelerator.
    Expected: 8.75 % error in the paper, 8.27 in the best-known reproduction.
    """
    return ResNetConfig(
        loop=LoopConfig(max_steps=64_000, log_every=100, eval_every=1000, save_every=1000),
        table="depth",
    )


def course() -> ResNetConfig:
    """The assignment's setting: 25 Indian bird species at 256x256, n = 2, SGD at 1e-4, batch 32, 50 epochs of 30,000.

    The set is had with a (free) account only: give its folder with ``--data.folder``. Where it has no test folder,
    a fifth of the training pictures tests, and an epoch is as much shorter. No augmentation is reported.

    Command: ``etude run resnet course --data.folder Birds_25``, or ``etude study resnet norms --preset course``.
    Cost: 46,850 steps of 32 pictures of 256x256, 37,450 without a test folder; an accelerator.
    Expected: 62.87 % of the test pictures right with our batch norm, as a course report has it.
    """
    return ResNetConfig(
        model=ModelConfig(n=2, num_classes=25),
        data=PictureConfig(source="folder", folder="Birds_25", size=256),
        augment=AugmentConfig(pad=0, flip=False),
        batch=Batch(size=32, evaluation=64),
        optim=OptimConfig(lr=1e-4, momentum=0.9, weight_decay=0.0, schedule="constant"),
        loop=LoopConfig(epochs=50.0, log_every=100, eval_every=937, save_every=937),
        table="norms",
    )


def laptop() -> ResNetConfig:
    """CIFAR-10 on two CPU cores: the paper's network, batch and rate, 60 epochs with more decay and a cosine schedule.

    Command: ``etude run resnet laptop``.
    Cost: 21,060 steps of 128 pictures of 32x32; about an hour on two idle CPU cores.
    Expected: 87.9 % of the test pictures right (one seed), of the lossy JPEG copies; the original was not at hand.
    """
    return ResNetConfig(
        optim=OptimConfig(weight_decay=5e-4, schedule="cosine", warmup=351),
        loop=LoopConfig(epochs=60.0, log_every=100, eval_every=702, save_every=702),
        table="depth",
    )


def birds() -> ResNetConfig:
    """Real photographs on two CPU cores: six species, 811 photographs at 64x64, n = 2, batch 32, 50 epochs.

    The folder is any of yours with one sub-folder a class; give its number of classes with ``--model.num-classes``.

    Command: ``etude run resnet birds``; all norms: ``etude study resnet norms``.
    Cost: 750 steps of 32 pictures of 64x64; about two minutes on two idle CPU cores.
    """
    return ResNetConfig(
        model=ModelConfig(n=2, num_classes=6),
        data=PictureConfig(source="folder", folder="birds6_224.zip", size=64),
        augment=AugmentConfig(pad=8),
        batch=Batch(size=32, evaluation=100),
        optim=OptimConfig(lr=0.05, schedule="cosine", weight_decay=5e-4),
        loop=LoopConfig(epochs=50.0, log_every=15, eval_every=30, save_every=150),
        curve_images=160,
        table="norms",
    )


def mini() -> ResNetConfig:
    """CIFAR-10 in minutes on two CPU cores, for comparisons of many runs: n = 1 (8 layers), 3 epochs, cosine schedule.

    Command: ``etude run resnet mini``; norms with tuned rates: ``etude study resnet norms-tuned --seeds 0 1 2``.
    Cost: 1,053 steps of 128 pictures of 32x32; about a minute and a half on two idle CPU cores.
    """
    return ResNetConfig(
        model=ModelConfig(n=1),
        optim=OptimConfig(schedule="cosine"),
        loop=LoopConfig(epochs=3.0, log_every=39, eval_every=351, save_every=351),
        table="norms",
    )


def smoke() -> ResNetConfig:
    """Seconds, on the embedded twin of the data. Its numbers say only that the parts work.

    Command: ``etude run resnet smoke``.
    """
    return ResNetConfig(
        model=ModelConfig(n=1, num_classes=4, norm="bin", width=8),
        data=PictureConfig(source="generated", size=32),
        augment=AugmentConfig(pad=2),
        batch=Batch(size=32, evaluation=100),
        optim=OptimConfig(schedule="linear"),
        loop=LoopConfig(max_steps=100, log_every=10, eval_every=25, save_every=25, device="cpu"),
        curve_images=100,
    )


# Pictures that the presets train on: so often is an experiment evaluated, whatever the batch.
_TRAINED_ON = {"course": 30_000, "birds": 486, "mini": 45_000, "laptop": 45_000, "paper": 45_000, "smoke": 240}


def _norms(preset: str) -> tuple[Job, ...]:
    return tuple(Job(norm, {"model.norm": norm, "table": "norms"}) for norm in NORMS)


def _batch_size(preset: str) -> tuple[Job, ...]:
    """Batches of 8 and 128 for the same number of epochs, stopped early on validation (Wu and He 2018, section 4.1).

    The learning rate stays, as in the assignment.
    """
    jobs: list[Job] = []
    for norm in ("bn", "gn"):
        for size in (8, 128):
            epoch = max(1, _TRAINED_ON.get(preset, 45_000) // size)
            settings: dict[str, Any] = {
                "model.norm": norm, "batch.size": size, "table": "batch-size", "loop.epochs": 50,
                "loop.eval_every": epoch, "loop.save_every": 10 * epoch, "loop.patience": 10, "loop.log_every": epoch,
            }  # fmt: skip
            jobs.append(Job(f"{norm}-{size}", settings))
    return tuple(jobs)


def _best(preset: str) -> tuple[Job, ...]:
    """The best network of the course report: layer norm, Adam at 1e-4, batch 16, 110 epochs."""
    epoch = max(1, _TRAINED_ON.get(preset, 45_000) // 16)
    settings: dict[str, Any] = {
        "model.norm": "ln", "optim.algorithm": "adam", "optim.lr": 1e-4, "optim.schedule": "constant", "batch.size": 16,
        "loop.epochs": 110, "loop.eval_every": 2 * epoch, "table": "best",
    }  # fmt: skip
    return (Job("ln", settings),)


def _depth(preset: str) -> tuple[Job, ...]:
    return tuple(Job(f"n{n}", {"model.n": n, "table": "depth"}) for n in (3, 5, 7, 9))


TUNED_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)


def _tuned(preset: str) -> tuple[Job, ...]:
    """Runs of each norm, one a learning rate, and then the rate that validated best with the seeds asked for.

    The runs that choose have a seed of their own, so that the reported ones had no part in the choice.
    """
    jobs: list[Job] = []
    for norm in NORMS:
        rates = [
            Job(f"{norm}-lr{lr:g}", {"model.norm": norm, "optim.lr": lr, "table": "run"}, seed=100)
            for lr in TUNED_RATES
        ]

        def at_best(finished: Sequence[RunFolder], norm: str = norm) -> dict[str, Any]:
            rate = best_of(finished).record.config["optim"]["lr"]
            return {"model.norm": norm, "table": "norms-tuned", "optim.lr": rate}

        jobs += [*rates, Job(norm, at_best, after=tuple(job.name for job in rates))]
    return tuple(jobs)


STUDY = Study(
    name="resnet",
    title="Residual networks and six normalisations",
    about="residual networks of 6n + 2 layers with six normalisations, and what they look at (He et al. 2016)",
    config=ResNetConfig,
    presets={
        "paper": Preset(paper, "full"),
        "course": Preset(course, "full"),
        "laptop": Preset(laptop, "laptop"),
        "birds": Preset(birds, "laptop"),
        "mini": Preset(mini, "laptop"),
        "smoke": Preset(smoke, "smoke"),
    },
    experiments={
        "norms": Experiment("PyTorch's batch norm, ours, and the five other norms", _norms, "birds", compared=True),
        "batch-size": Experiment("batch and group norm at batches of 8 and 128", _batch_size, "birds", compared=True),
        "best": Experiment("the best network of the course report", _best, "course"),
        "depth": Experiment("20, 32, 44 and 56 layers on CIFAR-10", _depth, "laptop", compared=True),
        "norms-tuned": Experiment(
            "the norms, each at the learning rate that validation chooses", _tuned, "mini", compared=True
        ),
    },
    reads_data=("cifar10",),
    pictures={
        "curves": "training and validation over the steps",
        "confusion": "confusion matrix of the test split: true classes down, predicted ones across",
        "gates": "histograms of the gates over time for each norm: 1 is batch, 0 is instance normalisation",
        "grad-cam": "photographs of each class with the regions that decided for it marked by Grad-CAM",
        "grad-cam-means": "mean Grad-CAM map of each class over its recognised test pictures",
    },
)
