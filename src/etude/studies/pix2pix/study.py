"""pix2pix: presets and experiments."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from etude.core.bounds import Bound, Count, Fraction, NotNegative, Positive, at_least, require
from etude.core.config import BatchConfig, LoopConfig, StudyConfig
from etude.core.study import Experiment, Job, Preset, Study

Source = Literal[
    "maps", "facades", "edges2shoes",
    "maps-subset", "facades-subset", "edges2shoes-subset", "day2night-subset",
    "folder", "grey", "generated",
]  # fmt: skip


_SHARE = Bound("between 0 and 1", lambda value: 0 < value < 1)
_JITTER = Bound("0 to 256", lambda value: 0 <= value <= 256)
_DECAY = Bound("0 to 1", lambda value: 0 <= value <= 1)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    size: Literal[64, 128, 256] = 256
    """Height and width of the pictures; the generator halves them 6, 7 or 8 times."""
    width: Count = 64
    """Filters of the generator's first layer (ngf)."""
    widest: Count = 8
    """Filters of its inner layers, as a multiple of width."""
    dropout: Fraction = 0.5
    """Dropout of the decoder's first three layers, in training and in use: the generator's only noise; 0: none."""
    test_norm: Literal["batch", "running"] = "batch"
    """Statistics of the generator's batch norms in use: batch, each picture's own, as the paper has it; running, the
    means of training."""
    discriminator_width: Count = 64
    """Filters of the discriminator's first layer (ndf)."""
    patch: Literal[1, 16, 34, 70, 142, 286] = 70
    """Pixels that one logit of the discriminator sees."""

    def __post_init__(self) -> None:
        most = {64: 142, 128: 286, 256: 286}[self.size]
        require(self.patch <= most, "model.patch", f"at most {most} for {self.size} pixels", self.patch)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    source: Source = "maps"
    """maps, facades, edges2shoes: as published; -subset: 50 of their pairs (maps_subset_256x512.zip); folder: your own;
    grey: colour photos after their grey versions; generated: the embedded twin."""
    folder: str = ""
    """The pictures of source folder: a folder or zip file of side-by-side ones, flat or in train, val and test
    sub-folders; with grey: of colour photos. Looked for here and in ETUDE_MIRROR."""
    folder_b: str = ""
    """The second folder of source folder, with the B pictures under the names of the A pictures."""
    direction: Literal["AtoB", "BtoA"] = "AtoB"
    """The direction: from the left picture to the right one, or back."""
    val_share: Annotated[float, _SHARE] = 0.1
    """The share of the training pairs that validates, of a folder without val."""
    test_share: Annotated[float, _SHARE] = 0.1
    """The share that tests of a folder without test."""
    split_seed: int = 0
    """Draws these shares."""
    pairs: Annotated[int, at_least(4)] = 40
    """The number of generated pairs that train; a quarter as many validate, and test."""

    def __post_init__(self) -> None:
        require(self.val_share + self.test_share < 1, "data.val_share + data.test_share", "below 1", "more")
        own = self.source in ("folder", "grey")
        require(bool(self.folder) or not own, "data.folder", "a path (--data.folder)", "empty")
        require(own or not self.folder, "data.source", "folder or grey where --data.folder is given", self.source)
        both = self.source == "folder" or not self.folder_b
        require(both, "data.source", "folder where --data.folder-b is given", self.source)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    jitter: Annotated[int, _JITTER] = 30
    """Training pairs are resized to this many pixels more than the networks take, and a window is cut out."""
    mirror: bool = True
    """Mirror every second pair."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    lr: Positive = 2e-4
    """Adam's learning rate, of both networks."""
    beta1: Fraction = 0.5
    """Adam's first beta."""
    decay_from: Annotated[float, _DECAY] = 1.0
    """The share of the steps after which the rate falls linearly towards zero; 1: never."""
    loss: Literal["vanilla", "lsgan"] = "vanilla"
    """vanilla: cross-entropy, non-saturating."""
    gan: NotNegative = 1.0
    """Weight of the adversarial loss; 0: no discriminator is trained."""
    l1: NotNegative = 100.0
    """Weight lambda of the L1 loss."""

    def __post_init__(self) -> None:
        require(bool(self.gan or self.l1), "optim.gan + optim.l1", "above 0", 0)

    def rate(self, step: int, max_steps: int) -> float:
        """The learning rate of a step, from 0."""
        begin = self.decay_from * max_steps
        return self.lr if step < begin else self.lr * (max_steps - step) / max(1.0, max_steps - begin)


@dataclass(frozen=True, kw_only=True)
class Batch(BatchConfig):
    size: int = 1
    """Pairs of one step, over all processes."""
    evaluation: int = 8
    """Pairs at a time where nothing is learned."""


@dataclass(frozen=True, kw_only=True)
class MetricConfig:
    choose: Literal["last", "l1", "ssim"] = "last"
    """The checkpoint that is kept: the last, as published, or the best on the validation split by L1 or SSIM."""
    inception: str = ""
    """A local file with the Inception weights for FID and KID; else clean-fid's own home. `none`: neither."""


@dataclass(frozen=True, kw_only=True)
class Pix2PixConfig(StudyConfig):
    model: ModelConfig = field(default_factory=ModelConfig)
    """The two networks."""
    data: DataConfig = field(default_factory=DataConfig)
    """The pairs."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """The augmentation of training pairs."""
    batch: Batch = field(default_factory=Batch)
    """The number of pairs at a time."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The losses and the optimisers."""
    metric: MetricConfig = field(default_factory=MetricConfig)
    """The measurements, and the checkpoint that is kept."""
    table: Literal["translation", "losses", "run"] = "run"
    """The published table that the run's numbers belong to; run: none."""


def paper() -> Pix2PixConfig:
    """Isola et al. 2017, appendix 6.2: aerial photo to map at 256x256, batch 1, jitter and mirror, 200 epochs.

    96 of the 1,096 training pairs are held out to watch the training; the set's own val is the test split, as in the
    paper. The other way: ``--data.direction BtoA``.

    Command: ``etude run pix2pix paper``.
    Cost: 200,000 steps of one pair; an accelerator. On one idle CPU core a step takes 1.1 seconds: two and a half days.
    Expected: FID 47.91 from map to aerial photo in gan-compression's rerun; the paper judged by people.
    """
    return Pix2PixConfig(
        loop=LoopConfig(epochs=200.0, log_every=200, eval_every=5_000, save_every=5_000), table="translation"
    )


def facades() -> Pix2PixConfig:
    """Appendix 6.2 too: labels to facade photo, 400 pairs, 200 epochs.

    Command: ``etude run pix2pix facades``.
    Cost: 80,000 steps of one pair; an accelerator.
    """
    return Pix2PixConfig(
        data=DataConfig(source="facades", direction="BtoA"),
        loop=LoopConfig(epochs=200.0, log_every=200, eval_every=4_000, save_every=4_000),
        table="translation",
    )


def laptop() -> Pix2PixConfig:
    """Real pairs on one CPU core: 38 pairs of maps at 128x128, 16 filters, 400 epochs.

    The rate falls over the second half. 6 pairs validate and 6 test.

    Command: ``etude run pix2pix laptop``; all losses: ``etude study pix2pix losses``.
    Cost: 15,200 steps of one pair; about 20 minutes on one idle CPU core.
    """
    return Pix2PixConfig(
        model=ModelConfig(size=128, width=16, widest=6, discriminator_width=32),
        data=DataConfig(source="maps-subset"),
        augment=AugmentConfig(jitter=15),
        optim=OptimConfig(decay_from=0.5),
        metric=MetricConfig(inception="none"),
        loop=LoopConfig(epochs=400.0, log_every=76, eval_every=760, save_every=760),
        table="translation",
    )


def colour() -> Pix2PixConfig:
    """Grey photos to colour: 2,101 photos of birds at 128x128, batch 4, 20 epochs.

    The folder is any of yours with colour photos.

    Command: ``etude run pix2pix colour``.
    Cost: 10,500 steps of four photos; about half an hour on one idle CPU core.
    """
    return Pix2PixConfig(
        model=ModelConfig(size=128, width=16, widest=6, discriminator_width=32),
        data=DataConfig(source="grey", folder="birds525_224.zip"),
        augment=AugmentConfig(jitter=15),
        batch=Batch(size=4),
        optim=OptimConfig(decay_from=0.5),
        metric=MetricConfig(inception="none"),
        loop=LoopConfig(epochs=20.0, log_every=50, eval_every=2_100, save_every=525),
        table="translation",
    )


def smoke() -> Pix2PixConfig:
    """Seconds, on made-up towns. Its numbers say only that the parts work.

    Command: ``etude run pix2pix smoke``.
    """
    return Pix2PixConfig(
        model=ModelConfig(size=64, width=8, widest=4, discriminator_width=8, patch=34),
        data=DataConfig(source="generated"),
        augment=AugmentConfig(jitter=7),
        batch=Batch(size=4),
        optim=OptimConfig(lr=1e-3, decay_from=0.5),
        metric=MetricConfig(inception="none"),
        loop=LoopConfig(max_steps=100, log_every=10, eval_every=50, save_every=50, device="cpu"),
    )


LOSSES: dict[str, dict[str, Any]] = {
    "l1": {"optim.gan": 0.0},
    "gan": {"optim.l1": 0.0},
    "l1-gan": {},
}
"""Section 4.1's comparison, the discriminator always told the input."""


def _losses(preset: str) -> tuple[Job, ...]:
    """Each loss by itself and both together, from the same start."""
    return tuple(Job(name, settings | {"table": "losses"}) for name, settings in LOSSES.items())


STUDY = Study(
    name="pix2pix",
    title="pix2pix",
    about="image-to-image translation with a conditional GAN: aerial photo to map and more (Isola et al. 2017)",
    config=Pix2PixConfig,
    presets={
        "paper": Preset(paper, "full"),
        "facades": Preset(facades, "full"),
        "laptop": Preset(laptop, "laptop"),
        "colour": Preset(colour, "laptop"),
        "smoke": Preset(smoke, "smoke"),
    },
    experiments={"losses": Experiment("L1, GAN, and both", _losses, "laptop", compared=True)},
    reads_data=("pairs", "inception"),
    pictures={
        "curves": "training and validation over the steps",
        "translations": "one row a pair: input, truth, output, and how far the output is off",
        "errors": "how far each pixel of the outputs is off",
    },
)
