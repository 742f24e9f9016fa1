"""Prototypical Networks: presets and experiments."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from etude.core.bounds import Count, Positive, require
from etude.core.config import LoopConfig, StudyConfig
from etude.core.run_folder import RunFolder
from etude.core.study import Experiment, Job, Preset, Study


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    encoder: str = "conv4"
    """The embedding network: conv4, or path/to/file.py:Name of a module that maps [N, 1, H, W] to
    ([N, D], named intermediates)."""
    width: Count = 64
    """Filters of each block."""
    distance: str = "euclidean"
    """Between queries and prototypes: euclidean (squared), cosine, or path/to/file.py:Name of a function
    that maps [Q, D] and [N, D] to [Q, N]."""
    temperature: Positive = 1.0
    """Distances are divided by it before the softmax; 1 in the paper."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: Literal["omniglot", "generated"] = "omniglot"
    """The real set, or its embedded twin."""
    train_split: Literal["train", "trainval"] = "train"
    """The classes to train on; trainval only after train chose the length of training."""
    size: Count = 28
    """Height and width in pixels."""
    resize: Literal["area", "nearest"] = "area"
    """The way that 105x105 becomes smaller: nearest is the paper's code, area averages pixels."""


@dataclass(frozen=True, kw_only=True)
class EpisodeConfig:
    way: Count = 60
    """Classes of a training episode."""
    shot: Count = 1
    """Support drawings a class, in training and in the test."""
    query: Count = 5
    """Query drawings a class, in training."""
    per_step: Count = 1
    """Episodes whose gradients make one step, over all processes."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    lr: Positive = 1e-3
    """Adam's learning rate at the start."""
    schedule: Literal["halve", "linear"] = "halve"
    """halve: every `halve_every` steps, as published; linear: down to zero at the last step."""
    halve_every: Count = 2000
    """Steps between two halvings."""

    def rate(self, step: int, max_steps: int) -> float:
        """The learning rate of a step, from 0."""
        if self.schedule == "linear":
            return self.lr * (1 - step / max_steps)
        return self.lr * 0.5 ** (step // self.halve_every)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    ways: tuple[int, ...] = (5, 20)
    """Classes of a test episode; the validation metric that chooses is that of the last one."""
    query: Count = 15
    """Query drawings a class."""
    episodes: Count = 1000
    """Random test episodes, as published."""
    pool_episodes: Count = 20_000
    """Random test episodes of the sharper estimate."""
    val_episodes: Count = 2000
    """Random validation episodes."""

    def __post_init__(self) -> None:
        require(len(self.ways) > 0, "evaluation.ways", "one number or more", "none")
        require(min(self.ways) >= 1, "evaluation.ways", "at least 1 each", min(self.ways))


@dataclass(frozen=True, kw_only=True)
class ProtonetConfig(StudyConfig):
    model: ModelConfig = field(default_factory=ModelConfig)
    """The embedding and the distance."""
    data: DataConfig = field(default_factory=DataConfig)
    """The characters."""
    episodes: EpisodeConfig = field(default_factory=EpisodeConfig)
    """Training episodes."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Adam and its schedule."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Validation and test."""
    selected_run: str = ""
    """The run on train alone that chose the length of a retraining on train + val. The thresholds for
    unknown classes are taken over from it, since this run has no unseen validation classes."""
    warm_start: bool = False
    """Start from the weights of `selected_run` instead of from scratch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Four poolings halve the side.
        require(self.model.encoder != "conv4" or self.data.size >= 16, "data.size", "at least 16", self.data.size)


def paper() -> ProtonetConfig:
    """Snell et al. 2017, section 3.1 and the authors' code, with matching shot.

    60-way episodes of 5 queries, Adam 1e-3 halved every 2,000 episodes, validation every 100 episodes with
    a patience of 200; then `etude study protonet fewshot --preset paper` retrains on train + val, for the
    best epoch and 200 more.

    Command: ``etude run protonet paper``.
    Cost: up to 40,000 episodes; made for an accelerator, not measured yet.
    Expected: 98.8 / 99.7 / 96.0 / 98.9 % (5w1s, 5w5s, 20w1s, 20w5s).
    """
    return ProtonetConfig(
        data=DataConfig(resize="nearest"),
        evaluation=EvaluationConfig(val_episodes=1000),
        loop=LoopConfig(max_steps=40_000, log_every=100, eval_every=100, save_every=1000, patience=200),
    )


def course() -> ProtonetConfig:
    """The setting of a course report: 100 epochs of 100 episodes, no retraining.

    Command: ``etude run protonet course``.
    Cost: 10,000 episodes.
    Expected: 97.06 / 99.31 / 91.47 / 97.61 % reported there.
    """
    return ProtonetConfig(
        data=DataConfig(resize="nearest"),
        loop=LoopConfig(max_steps=10_000, log_every=100, eval_every=500, save_every=500),
    )


def laptop() -> ProtonetConfig:
    """Real data on two CPU cores: area resizing, and a learning rate that falls linearly to zero.

    Command: ``etude run protonet laptop``; the table: ``etude study protonet fewshot``.
    Cost: 8,000 episodes; `etude check` estimates 22 minutes on two idle CPU cores for one shot.
    Expected: 98.8 / 95.6 % (5w1s, 20w1s), 98.9 / 96.0 % after the retraining.
    """
    return ProtonetConfig(
        optim=OptimConfig(schedule="linear"),
        loop=LoopConfig(max_steps=8000, log_every=100, eval_every=500, save_every=500),
    )


def smoke() -> ProtonetConfig:
    """Seconds, on the embedded twin of the data. Its numbers say only that the parts work.

    Command: ``etude run protonet smoke``.
    """
    return ProtonetConfig(
        data=DataConfig(source="generated"),
        model=ModelConfig(width=16),
        episodes=EpisodeConfig(way=16, shot=1, query=3),
        evaluation=EvaluationConfig(episodes=200, pool_episodes=1000, val_episodes=200),
        loop=LoopConfig(max_steps=60, log_every=5, eval_every=20, save_every=20, device="cpu"),
    )


def _fewshot(preset: str) -> tuple[Job, ...]:
    """Both training shots, each chosen on validation and retrained on train + val."""
    jobs: list[Job] = []
    for shot in (1, 5):
        select: dict[str, Any] = {"episodes.shot": shot}
        again = select | {"data.train_split": "trainval", "loop.eval_every": 0, "loop.patience": 0}
        if preset == "laptop":
            # An episode of five shots has 600 pictures, one of one shot 360. Retraining from scratch for the
            # whole length would double the cost: the chosen weights go on, at the full rate again.
            select |= {"loop.max_steps": 5000} if shot == 5 else {}
            again |= {"warm_start": True, "loop.max_steps": 3000 if shot == 5 else 6000}

        def retrained(finished: Sequence[RunFolder], again: dict[str, Any] = again) -> dict[str, Any]:
            [selected] = finished
            # As the authors' code: the chosen epoch and the patience more, where no length is named.
            loop = selected.record.config["loop"]
            more = loop["patience"] * loop["eval_every"]
            length = {"loop.max_steps": (selected.checkpoints().best_step or 0) + more}
            return length | again | {"selected_run": str(selected.path)}

        jobs.append(Job(f"s{shot}-select", select))
        jobs.append(Job(f"s{shot}", retrained, after=(f"s{shot}-select",)))
    return tuple(jobs)


def _distance(preset: str) -> tuple[Job, ...]:
    return (
        Job("euclidean"),
        Job("cosine", {"model.distance": "cosine"}),
        Job("cosine-t", {"model.distance": "cosine", "model.temperature": 0.05}),
    )


def _resize(preset: str) -> tuple[Job, ...]:
    return tuple(Job(name, {"data.resize": name}) for name in ("nearest", "area"))


STUDY = Study(
    name="protonet",
    title="Prototypical Networks",
    about="few-shot classification by the nearest class mean in a learned embedding (Snell et al. 2017)",
    config=ProtonetConfig,
    presets={
        "paper": Preset(paper, "full"),
        "course": Preset(course, "full"),
        "laptop": Preset(laptop, "laptop"),
        "smoke": Preset(smoke, "smoke"),
    },
    experiments={
        "fewshot": Experiment("the four settings: 5 and 20 ways, 1 and 5 shots", _fewshot),
        "distance": Experiment("squared Euclidean against cosine distance (section 2.7 of the paper)", _distance),
        "resize": Experiment("nearest-neighbour against area resizing", _resize),
    },
    reads_data=("omniglot",),
    pictures={
        "curves": "training and validation over the steps",
        "episode": (
            "an episode of unseen classes: examples on the left, queries framed by the class they were taken for"
        ),
        "alphabets": "the embeddings of unseen characters in the plane, one panel an alphabet, one colour a character",
    },
)
