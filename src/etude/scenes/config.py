"""Settings that studies of scenes share; loads no PyTorch."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from etude.core.bounds import Count, NotNegative, Positive, Whole, at_least, require
from etude.core.config import BatchConfig


@dataclass(frozen=True, kw_only=True)
class SlotEncoderConfig:
    """See `etude.scenes.encoder.build_encoder`."""

    size: int = 128
    """Height and width of the pictures: a multiple of 8."""
    num_slots: Annotated[int, at_least(2, " (one slot has nothing to share)")] = 11
    """K: CLEVRTex has up to ten objects, and a background."""
    slot_size: Count = 64
    """Numbers of a slot."""
    iterations: Count = 3
    """T in training."""
    eval_iterations: Count = 3
    """T in use."""
    init: Literal["gaussian", "learned", "bilevel"] = "gaussian"
    """The start of the slots: drawn from one learned normal distribution, a learned vector each, or such vectors with
    noise that fades (BO-QSA)."""
    implicit: bool = False
    """True lets the last iteration alone have a gradient."""
    form: Literal["fast", "plain"] = "fast"
    """fast: the slots' side is projected in place of the inputs'; plain: Slot Attention as algorithm 1 reads. Both have
    the same weights and, up to rounding, the same losses."""
    encoder: str = "conv"
    """conv: four 5x5 convolutions; resnet18: with group norms, to a quarter of the size; or path/to/file.py:Name of a
    module that is made with a number of channels and maps [B, 3, H, W] to [B, channels, h, w]."""
    strides: tuple[int, int, int, int] = (1, 1, 1, 1)
    """Strides of the layers of conv."""
    encoder_width: Count = 64
    """Filters of resnet18's first stage."""
    encoder_stages: Literal[3, 4] = 4
    """Stages of resnet18; the last one keeps the size of the map."""
    encoder_projection: bool = True
    """A 1x1 convolution to `features` ends resnet18; else its channels go to the position code as they are."""
    features: Count = 64
    """Channels of the encoder's result."""
    hidden: Count = 128
    """Units of the slots' residual network."""

    @property
    def cell(self) -> str:
        """The place in a table: encoder, number of slots, start."""
        strides = "".join(map(str, self.strides))
        encoder = f"conv-{strides}" if self.encoder == "conv" and strides != "1111" else self.encoder
        return f"{encoder}-k{self.num_slots}-{self.init}"

    def __post_init__(self) -> None:
        require(8 <= self.size <= 512 and self.size % 8 == 0, "model.size", "a multiple of 8 up to 512", self.size)
        require(all(stride in (1, 2) for stride in self.strides), "model.strides", "of 1 and 2", self.strides)


@dataclass(frozen=True, kw_only=True)
class SceneBatch(BatchConfig):
    size: int = 64
    """Pictures of one step, over all processes."""
    evaluation: int = 32
    """Pictures at a time where nothing is learned."""


@dataclass(frozen=True, kw_only=True)
class SceneMetricConfig:
    watched: Whole = 500
    """Validation scenes of each evaluation in training; 0: all. The final numbers are of whole splits."""
    library: Whole = 0
    """Training scenes whose slots make the library; 0: all."""
    inception: str = ""
    """A local file with the Inception weights; else clean-fid's own home. `none`: no FID."""


@dataclass(frozen=True, kw_only=True)
class SceneOptim:
    lr: Positive
    """Adam's learning rate after the warm-up."""
    warmup: Whole = 0
    """Steps over which the rate rises from zero."""
    schedule: str = "constant"
    """cosine: down to zero."""
    clip: NotNegative = 0.0
    """Largest norm of the gradient; 0: any."""
    noise_steps: Whole = 30_000
    """Steps over which the noise of bilevel slots fades."""

    def factor(self, step: int, max_steps: int) -> float:
        """The share of their largest value that the rates of a step, from 0, have."""
        return self.shape(step, max_steps) * min(1.0, (step + 1) / self.warmup if self.warmup else 1.0)

    def shape(self, step: int, max_steps: int) -> float:
        """The course of the rates without the warm-up."""
        return (1 + math.cos(math.pi * step / max_steps)) / 2 if self.schedule == "cosine" else 1.0


STARTS: dict[str, dict[str, Any]] = {
    "gaussian": {"model.init": "gaussian", "model.implicit": False},
    "learned": {"model.init": "learned", "model.implicit": False},
    "bilevel": {"model.init": "bilevel", "model.implicit": True},
}
"""The settings of each way in which slots begin, by its name."""
