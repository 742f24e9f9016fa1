"""Slot-conditioned latent diffusion on CLEVRTex: presets and experiments."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from etude.core.bounds import Bound, Count, Fraction, NotNegative, Positive, Whole, at_least, require
from etude.core.config import LoopConfig, StudyConfig
from etude.core.run_folder import RunFolder
from etude.core.study import Experiment, Job, Preset, Study
from etude.scenes.config import STARTS, SceneBatch, SceneMetricConfig, SceneOptim, SlotEncoderConfig
from etude.scenes.source import SceneConfig

UNTRAINED = "untrained"
"""The word for an autoencoder's first weights, in place of its file."""
Multipliers = Annotated[
    tuple[int, ...], Bound("one number or more, all at least 1", lambda value: bool(value) and min(value) >= 1)
]


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    kind: Literal["kl", "vq"] = "kl"
    """Bound of the latents: a divergence from the normal distribution, or a codebook."""
    width: Count = 64
    """Channels of the first level."""
    multipliers: Multipliers = (1, 2, 4)
    """Channels of each level as a multiple of the width; each further level has half the side."""
    channels: Count = 3
    """Channels of the latents."""
    blocks: Count = 2
    """Residual blocks of a level of the encoder; the decoder has one more."""
    codes: Annotated[int, at_least(2)] = 8192
    """Codes of the codebook of vq."""
    weights: str = ""
    """The trained autoencoder that the diffusion stands on: a run of phase vae, a file in the layout of latent
    diffusion, or a folder of diffusers. `untrained`: none."""
    kl_weight: NotNegative = 1e-6
    """Weight of a latent's divergence in the loss of kl, beside the absolute error of a pixel."""

    scale: NotNegative = 0.0
    """Factor of the latents that the diffusion sees; 0: that which gives the training latents a variance of one."""

    @property
    def stride(self) -> int:
        """Pixels of a place of the latents' map, each way."""
        return 1 << len(self.multipliers) - 1


@dataclass(frozen=True, kw_only=True)
class ModelConfig(SlotEncoderConfig):
    slot_size: Count = 192
    """Numbers of a slot."""
    width: Count = 128
    """Channels of the U-Net's first level."""
    multipliers: Multipliers = (1, 2, 3, 4)
    """Channels of each of its levels as a multiple of the width; each further level has half the side."""
    heads: Count = 8
    """Heads of its attention."""
    head_size: Whole = 0
    """Channels of a head, in place of a number of heads; 0: that number holds."""
    blocks: Literal["course", "latent"] = "course"
    """course: the seed's residual and transformer blocks; latent: those of latent diffusion."""
    depth: Count = 2
    """Its residual blocks of a level on the way down; one more on the way up."""
    dropout: Fraction = 0.1
    """Dropout in its residual blocks."""
    target: Literal["noise", "velocity"] = "noise"
    """Answer that the loss is of: the noise (Ho et al. 2020), or the velocity (Salimans and Ho 2022), in
    which an error is not magnified where a latent is nearly all noise."""


@dataclass(frozen=True, kw_only=True)
class ChainConfig:
    steps: Count = 1000
    """T."""
    first: float = 0.0015
    """The first step's beta."""
    last: float = 0.0195
    """The last step's."""
    spacing: Literal["linear", "root"] = "linear"
    """Evenly spaced value: beta, as the assignment has it, or its root, as latent diffusion's code has it."""

    def __post_init__(self) -> None:
        met = f"{self.first} and {self.last}"
        require(0 < self.first <= self.last < 1, "chain.first and chain.last", "rising within 0 and 1", met)


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    sampler: str = "dpm-solver++"
    """ancestral, ddim, dpm-solver++, or path/to/file.py:Name, see samplers.py."""
    steps: int = 20
    """The number of times that the network is asked for a picture."""
    ancestral: int = 1000
    """Steps of the ancestral sampler that the final compositions are drawn with as well; 0: not."""
    guidance: NotNegative = 1.0
    """Weight of the slots against no slots; 1: none. Others want a model that was trained with optim.drop."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig(SceneOptim):
    lr: Positive = 2e-4
    """Adam's learning rate of the U-Net, or of the autoencoder."""
    encoder_lr: Positive = 1e-4
    """Adam's learning rate of the slots' encoder."""
    schedule: Literal["constant", "cosine"] = "constant"
    """cosine: down to zero."""
    clip: NotNegative = 1.0
    """Largest norm of the gradient; 0: any."""
    ema: Fraction = 0.9999
    """Memory of the mean weights that are used after training; 0: the last weights are."""
    drop: Fraction = 0.0
    """Share of the pictures whose slots are left out, so that sampling can be guided."""

    def set_rates(self, groups: Sequence[dict[str, Any]], step: int, max_steps: int) -> float:
        """Set the rates of an optimiser's groups for a step, from 0, by their ``initial_lr``; returns the first's."""
        for group in groups:
            group["lr"] = group["initial_lr"] * self.factor(step, max_steps)
        return groups[0]["lr"]


@dataclass(frozen=True, kw_only=True)
class MetricConfig(SceneMetricConfig):
    watched: Whole = 500
    """Validation scenes of each evaluation in training; 0: all. The final masks are scored on whole splits."""
    reconstructed: Whole = 0
    """Scenes of each split that are rebuilt from their slots at the end; 0: all."""
    composed: Whole = 0
    """Compositions, and validation scenes that they are held against; 0: all."""


@dataclass(frozen=True, kw_only=True)
class SlotDiffusionConfig(StudyConfig):
    phase: Literal["vae", "diffusion"] = "diffusion"
    """vae: the autoencoder is trained; diffusion: it is frozen, and slots and U-Net are."""
    vae: VAEConfig = field(default_factory=VAEConfig)
    """The autoencoder."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The slots' encoder, and the U-Net that draws by them."""
    chain: ChainConfig = field(default_factory=ChainConfig)
    """The chain that turns latents into noise."""
    sample: SampleConfig = field(default_factory=SampleConfig)
    """The way pictures are drawn."""
    data: SceneConfig = field(default_factory=SceneConfig)
    """The scenes."""
    batch: SceneBatch = field(default_factory=SceneBatch)
    """The number of pictures at a time; sampling halves the number where memory does not suffice."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser and its schedule."""
    metric: MetricConfig = field(default_factory=MetricConfig)
    """The way it is measured."""
    table: Literal["run", "clevrtex", "autoencoder"] = "run"
    """The table that the run's numbers belong to; run: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        side, size = self.model.size // self.vae.stride, self.model.size
        halvings = len(self.model.multipliers) - 1
        fits = size % self.vae.stride == 0 and side % (1 << halvings) == 0
        wanted = f"a multiple of {self.vae.stride << halvings}, which autoencoder and U-Net halve it to"
        require(fits or self.phase == "vae", "model.size", wanted, size)
        require(size % self.vae.stride == 0, "model.size", f"a multiple of {self.vae.stride}", size)
        for name in ("steps", "ancestral"):
            value, least = getattr(self.sample, name), 0 if name == "ancestral" else 1
            wanted = f"from {least} to {self.chain.steps}, as many as the chain has"
            require(least <= value <= self.chain.steps, f"sample.{name}", wanted, value)
        guided = self.sample.guidance == 1 or self.optim.drop > 0
        require(guided, "sample.guidance", "1 where optim.drop is 0", self.sample.guidance)


def paper() -> SlotDiffusionConfig:
    """SlotDiffusion as its authors' configuration for CLEVRTex has it (Wu et al. 2023), on a VQ autoencoder.

    ResNet-18 without its last stage, a learned vector for each slot of 192, latent diffusion's U-Net of 128 x (1, 2, 3,
    4) channels with heads of 32, latents as they are, rates 1e-4 of the encoder and 2e-4 of the U-Net, warm-up over a
    twentieth of the steps, gradients cut at 1, dropout .1, no mean weights. Their code's noise is even in the root of
    beta. Their configuration has 400 epochs where the paper has 100; these are 100.

    Command: ``etude run slotdiffusion vae --vae.kind vq --vae.codes 4096``, then
    ``etude run slotdiffusion paper --vae.weights runs/slotdiffusion/vae``.
    Cost: 62,500 steps of 64 scenes at 128 px; about ten hours on two A100 in their account.
    """
    return SlotDiffusionConfig(
        vae=VAEConfig(kind="vq", codes=4096, scale=1.0),
        model=ModelConfig(
            encoder="resnet18", encoder_stages=3, encoder_projection=False, features=192, hidden=384, init="learned",
            blocks="latent", head_size=32,
        ),
        chain=ChainConfig(spacing="root"),
        optim=OptimConfig(schedule="cosine", warmup=3125, ema=0.0),
        loop=LoopConfig(epochs=100.0, log_every=100, eval_every=2500, save_every=2500),
        table="clevrtex",
    )  # fmt: skip


def course() -> SlotDiffusionConfig:
    """The course's setting as the report of seed 000 has it: 300 epochs, batch 64, one rate of 2e-4, slots of 192.

    It trained on a part of the set, of a size that it does not state: here the steps are 300 epochs of 10,000 scenes.

    Command: ``etude run slotdiffusion course --vae.weights vae_checkpoint.pth``.
    Cost: 46,800 steps of 64 scenes at 128 px.
    Expected: ARI .315 and clean-FID 129.5 on the validation split there.
    """
    return SlotDiffusionConfig(
        model=ModelConfig(encoder="resnet18"),
        optim=OptimConfig(encoder_lr=2e-4, clip=0.0, ema=0.0),
        loop=LoopConfig(max_steps=46_800, log_every=100, eval_every=2500, save_every=2500),
        table="clevrtex",
    )


def best() -> SlotDiffusionConfig:
    """The course's task with what helped elsewhere: bi-level slots, two rates, mean weights, guidance possible.

    Command: ``etude run slotdiffusion best --vae.weights runs/slotdiffusion/vae``.
    Cost: 125,000 steps of 64 scenes at 128 px.
    Wanted: ARI .55 without pretrained features, clean-FID below 129.5.
    """
    return SlotDiffusionConfig(
        model=ModelConfig(encoder="resnet18", init="bilevel", implicit=True),
        data=SceneConfig(flip=True),
        optim=OptimConfig(schedule="cosine", warmup=3000, drop=0.1),
        loop=LoopConfig(max_steps=125_000, log_every=100, eval_every=2500, save_every=2500),
        table="clevrtex",
    )


def vae() -> SlotDiffusionConfig:
    """The autoencoder at 128 px: 13.9 million weights, 3 x 32 x 32 numbers a picture, absolute error alone.

    Latent diffusion adds a perceptual and an adversarial loss, which this one does without.

    Command: ``etude run slotdiffusion vae``.
    Cost: 60,000 steps of 32 scenes at 128 px; an accelerator.
    """
    return SlotDiffusionConfig(
        phase="vae",
        data=SceneConfig(flip=True),
        batch=SceneBatch(size=32),
        optim=OptimConfig(schedule="cosine", warmup=500),
        loop=LoopConfig(max_steps=60_000, log_every=100, eval_every=2500, save_every=2500),
        table="autoencoder",
    )


def vae_laptop() -> SlotDiffusionConfig:
    """A narrow autoencoder at 64 px on a CPU, on scenes of your own rendering: 3 x 16 x 16 numbers a picture.

    Command: ``etude data render clevrtex --count 5000 --out scenes``, then
    ``etude run slotdiffusion vae-laptop --data.folder scenes``.
    Cost: 6,000 steps of 16 scenes.
    """
    full = vae()
    return replace(
        full,
        vae=VAEConfig(width=12, blocks=1),
        model=replace(full.model, size=64),
        data=SceneConfig(source="folder", folder="scenes", flip=True),
        batch=SceneBatch(size=16),
        optim=OptimConfig(lr=1e-3, schedule="cosine", warmup=200, ema=0.99),
        loop=LoopConfig(max_steps=6000, log_every=100, eval_every=500, save_every=500),
    )


def laptop() -> SlotDiffusionConfig:
    """Slots and a small U-Net at 64 px on a CPU, on the autoencoder of `vae_laptop`.

    Command: ``etude run slotdiffusion laptop --data.folder scenes --vae.weights runs/slotdiffusion/vae-laptop``.
    Cost: 12,000 steps of 16 scenes.
    """
    small = vae_laptop()
    return replace(
        small,
        phase="diffusion",
        model=ModelConfig(
            size=64, slot_size=64, strides=(1, 2, 2, 1), features=32, eval_iterations=5, width=24,
            multipliers=(1, 2, 3), heads=4, depth=1, dropout=0.0, target="velocity",
        ),
        optim=OptimConfig(
            lr=5e-4, encoder_lr=1e-3, schedule="cosine", warmup=500, ema=0.999, noise_steps=3000, drop=0.1
        ),
        loop=LoopConfig(max_steps=12_000, log_every=100, eval_every=1000, save_every=500),
        table="clevrtex",
    )  # fmt: skip


def smoke() -> SlotDiffusionConfig:
    """Seconds, on made-up flat scenes and an untrained autoencoder. Its numbers say only that the parts work.

    Command: ``etude run slotdiffusion smoke``.
    """
    return SlotDiffusionConfig(
        vae=VAEConfig(width=8, blocks=1, weights=UNTRAINED),
        model=ModelConfig(
            size=32, num_slots=4, slot_size=16, strides=(1, 2, 2, 1), features=16, hidden=32, width=16,
            multipliers=(1, 2), heads=2, depth=1, dropout=0.0,
        ),
        # So short a chain ends in noise only if its steps are large.
        chain=ChainConfig(steps=50, first=0.01, last=0.3),
        sample=SampleConfig(steps=5, ancestral=10),
        data=SceneConfig(source="generated", most=120),
        batch=SceneBatch(size=8),
        optim=OptimConfig(lr=1e-3, encoder_lr=1e-3, warmup=5, schedule="cosine", ema=0.9, noise_steps=20),
        metric=MetricConfig(inception="none", reconstructed=4, composed=4),
        loop=LoopConfig(max_steps=40, log_every=10, eval_every=20, save_every=20, device="cpu"),
    )  # fmt: skip


def vae_smoke() -> SlotDiffusionConfig:
    """Seconds: the autoencoder of `smoke` on made-up flat scenes.

    Command: ``etude run slotdiffusion vae-smoke``.
    """
    small = smoke()
    return replace(small, phase="vae", vae=replace(small.vae, weights=""))


def _init(preset: str) -> tuple[Job, ...]:
    """The autoencoder, then the ways in which slots begin on it."""
    first: dict[str, Any] = {"phase": "vae", "vae.weights": "", "table": "autoencoder"}
    if preset == "laptop":
        own = vae_laptop()
        first |= {"optim.lr": own.optim.lr, "optim.ema": own.optim.ema, "loop.max_steps": own.loop.max_steps}

    def on_it(start: str) -> Job:
        def settings(finished: Sequence[RunFolder]) -> dict[str, Any]:
            return {"phase": "diffusion", "vae.weights": str(finished[0].path)} | STARTS[start]

        return Job(start, settings, after=("vae",))

    return Job("vae", first), on_it("gaussian"), on_it("bilevel")


STUDY = Study(
    name="slotdiffusion",
    title="SlotDiffusion",
    about="Slots decoded by latent diffusion on CLEVRTex (Wu et al. 2023)",
    config=SlotDiffusionConfig,
    presets={
        "paper": Preset(paper, "full"),
        "course": Preset(course, "full"),
        "best": Preset(best, "full"),
        "vae": Preset(vae, "full"),
        "laptop": Preset(laptop, "laptop"),
        "vae-laptop": Preset(vae_laptop, "laptop"),
        "smoke": Preset(smoke, "smoke"),
        "vae-smoke": Preset(vae_smoke, "smoke"),
    },
    experiments={
        "init": Experiment("an autoencoder, and slots of Gaussian and of bi-level start on it", _init),
    },
    reads_data=("clevrtex", "inception"),
    pictures={
        "curves": "training and validation over the steps",
        "reconstructions": "pictures, and what comes back of them",
        "slots": "one row a scene: the picture, its reconstruction, and what each slot looks at",
        "attention": "what share of a picture each slot takes, one row an iteration",
        "denoising": "a picture on its way out of the noise, and what the network took it for at each moment",
        "denoising-ancestral": "a picture on its way out of the noise by ancestral sampling",
        "compositions": "validation scenes above, scenes composed from a library of slots below",
    },
)
