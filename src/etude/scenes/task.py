"""The task of a study of scenes: data, slots and their scores, a slot library, results.

Shape suffixes: B and N images, K slots, S a slot's size, T iterations, C colours, H W pixels.
"""

import logging
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from etude.core import randomness
from etude.core.runtime import Runtime
from etude.core.study import Result, Task
from etude.data.clevrtex import Scenes, SceneSet
from etude.data.epochs import Epochs
from etude.data.render.driver import Split
from etude.metrics import fid
from etude.nn.pixels import prepare
from etude.scenes import slot_library
from etude.scenes.scores import ABOUT, Scores, dead, faults, gathered, half_width, largest, sameness, score, segments
from etude.scenes.slot_library import Library
from etude.scenes.source import load_scenes

_log = logging.getLogger("etude")


class SceneTask(Task):
    """A task whose ``config`` has ``model.size``, ``data``, ``batch``, ``loop`` and ``metric.watched``."""

    measures_fid = True
    """Pictures are drawn at the end, and held against real ones."""

    def __init__(self, config: Any, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        randomness.seed_globals(config.seed, "init", 0)
        self._epochs = Epochs(runtime)

    @cached_property
    def scenes(self) -> SceneSet:
        """The data set, read once, on the device."""
        config = self.config
        read = load_scenes(config.data, config.model.size, batch=config.batch.size, device=self.runtime.device)
        if self.measures_fid and config.metric.inception != "none":
            # Before the training, not after it.
            fid.weights_of(config.metric.inception)
        return read

    @property
    def epoch_steps(self) -> int:
        return len(self.scenes.splits["train"]) // self.config.batch.size

    def batch_rows(self, step: int) -> Tensor:
        """The training scenes of a step: every epoch has an order of its own, a rest that fills no batch is left."""
        return self._epochs.rows(step, len(self.scenes.splits["train"]), self.config.batch.size)

    def flips(self, count: int, step: int, part: int) -> Tensor:
        """A coin for each picture of a batch, bool ``[count]`` on the device, by which it is mirrored."""
        if not self.config.data.flip:
            return torch.zeros(count, dtype=torch.bool, device=self.runtime.device)
        coin = torch.rand(count, generator=self.runtime.generator("train/flip", step, part)) < 0.5
        return randomness.upload(coin, self.runtime.device)

    def normal(self, stream: str, step: int, index: int, *shape: int) -> Tensor:
        """Standard normal numbers of a shape on the device, keyed by stream, step and index."""
        draw = self.runtime.generator(stream, step, index)
        return randomness.upload(torch.randn(shape, generator=draw), self.runtime.device)

    def batches(self, count: int, size: int = 0) -> Iterator[slice]:
        """The rows of ``count`` scenes, ``size`` at a time; 0: as many as an evaluation takes."""
        size = size or self.config.batch.evaluation
        for start in range(0, count, size):
            yield slice(start, min(start + size, count))

    def watched(self, split: Split = "val") -> Scenes:
        """The scenes of each evaluation in training."""
        return first(self.scenes.splits[split], self.config.metric.watched)

    @property
    def variant(self) -> str:
        """The data that a run's numbers are of."""
        return f"{self.scenes.about}, {self.config.model.size} px"

    @property
    def schooling(self) -> str:
        """The length of the training, for a result's protocol."""
        config, count = self.config, len(self.scenes.splits["train"])
        epochs = self.num_steps * config.batch.size / count
        return f"up to {epochs:.3g} epochs of {count:,}, batch {config.batch.size}"

    @property
    @abstractmethod
    def protocol(self) -> str:
        """The setting of the run, which every result tells."""

    @property
    @abstractmethod
    def cell(self) -> str:
        """The place of the run in a table."""

    @abstractmethod
    def measured(self, split: Split) -> Iterator[tuple[str, Tensor, str, str]]:
        """The numbers of a split: the name of each, its values ``[N]``, what it is of, its unit."""

    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        rows: list[Result] = []
        splits: tuple[Split, ...] = ("val", "test")
        for split in splits:
            for name, values, about, unit in self.measured(split):
                count = int((~values.isnan()).sum())
                if count:
                    about = f"mean over {count:,} scenes, {about}"
                    rows.append(self.row(name, split, values.nanmean().item(), about, half_width(values), unit))
        return rows

    def row(
        self, name: str, split: str, value: float, about: str, width: float | None = None, unit: str = ""
    ) -> Result:
        """One result of the run, with the half width of its interval."""
        about = f"{about}; {self.protocol}"
        return Result(self.config.table, self.cell, name, split, value, about, width, unit, self.variant)

    def finish(self) -> dict[str, Any]:
        return {"scenes": self.scenes.about}

    def data_checksums(self) -> dict[str, str]:
        return dict(self.scenes.checksums)

    def inventory(self) -> Mapping[str, Any]:
        return self.scenes.inventory


def first(scenes: Scenes, most: int) -> Scenes:
    """The first ``most`` scenes; 0: all."""
    count = most or len(scenes)
    return Scenes(scenes.images_NHWC[:count], scenes.masks_NHW[:count], scenes.names[:count])


def mirrored(images_BCHW: Tensor, flip_B: Tensor) -> Tensor:
    """The pictures, some of them mirrored left to right."""
    return torch.where(flip_B[:, None, None, None], images_BCHW.flip(3), images_BCHW)


# --- slots ---


@dataclass(frozen=True)
class Decomposed:
    """Some scenes, taken apart by a network."""

    rows: slice
    """Their places among the scenes that were given."""
    slots_BKS: Tensor
    named: dict[str, Tensor]
    """``attention`` ``[B, T, K, N]``; ``masks`` ``[B, K, H, W]``, each slot's share of a pixel; and further ones."""
    images_BCHW: Tensor | None = None
    """The pictures in [-1, 1]; None where none are made again."""
    made_BCHW: Tensor | None = None
    """The pictures made again of their slots, about [-1, 1]."""


class Evaluation(NamedTuple):
    """Scores of all scenes, the mean cosine of two slots of one, and the slots ``[N, K, S]`` of this process."""

    scores: Scores
    sameness: float
    slots_NKS: Tensor


class SlotTask(SceneTask):
    """A task whose network takes scenes apart into slots."""

    def __init__(self, config: Any, runtime: Runtime) -> None:
        super().__init__(config, runtime)
        self._library: Library | None = None
        self._told: set[str] = set()

    @property
    @abstractmethod
    def network(self) -> Any:
        """The network in use after training, with a `SlotEncoder` as ``encoder``, and a ``card``."""

    @property
    def cell(self) -> str:
        return self.config.model.cell

    @abstractmethod
    def decompose(self, images_NHWC: Tensor, noise_NKS: Tensor, *, size: int = 0) -> Iterator[Decomposed]:
        """Take scenes, given as bytes, apart in evaluation mode, ``size`` at a time, see `batches`.

        The slots of each scene begin with its noise.
        """

    @abstractmethod
    def validation(self, found: Evaluation) -> dict[str, float]:
        """Numbers of the watched scenes beside their scores."""

    @abstractmethod
    def paint(self, slots_NKS: Tensor, stream: str, title: str, **changes: Any) -> Tensor:
        """Draw pictures of slots: bytes ``[N, H, W, 3]`` on the CPU, the work shared by the processes.

        ``stream`` is that of the noise and ``changes`` are those of the sampler's settings, where there are such;
        ``title`` is that of the progress bar.
        """

    @cached_property
    def scenes(self) -> SceneSet:
        """The data set, read once, on the device; more objects than slots are warned of."""
        read, num_slots = super().scenes, self.config.model.num_slots
        most = max(objects(part.masks_NHW) for part in read.splits.values())
        if most + 1 > num_slots and self.runtime.is_main:
            _log.warning(
                "up to %d objects and the ground in a scene, and %d slots: some will share one; "
                "--model.num-slots %d has room",
                most, num_slots, most + 1,
            )  # fmt: skip
        return read

    def noise(self, count: int, stream: str, step: int, index: int = 0) -> Tensor:
        """Standard normal ``[count, K, S]`` on the device, which slots begin with."""
        return self.normal(stream, step, index, count, self.config.model.num_slots, self.config.model.slot_size)

    def slots(self, images_NHWC: Tensor, noise_NKS: Tensor, size: int = 0) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """The rows, slots ``[B, K, S]`` and attention ``[B, T, K, N]`` of scenes without a decoder, as `decompose`."""
        self.network.eval()
        iterations = self.config.model.eval_iterations
        for rows in self.batches(len(images_NHWC), size):
            images_BCHW = prepare(images_NHWC[rows])
            # Around the generator it would not hold where that is wrapped, nor should it hold for who takes a batch.
            with torch.no_grad():
                found = self.network.encoder(images_BCHW, noise_NKS[rows], spread=0.0, iterations=iterations)
            yield rows, found.slots_BKS.float(), found.attention_BTKN

    def score(self, scenes: Scenes, stream: str) -> Evaluation:
        """Score the slots of scenes, the work shared by the processes."""
        share, num_slots = self.runtime.share(len(scenes)), self.config.model.num_slots
        masks_NHW, noise_NKS = scenes.masks_NHW[share], self.noise(len(scenes), stream, 0)[share]
        parts: list[Scores] = []
        slots = [noise_NKS[:0]]
        for batch in self.decompose(scenes.images_NHWC[share], noise_NKS):
            made, images = (None if x is None else (x + 1) / 2 for x in (batch.made_BCHW, batch.images_BCHW))
            parts.append(score(segments(batch.named["masks"]), masks_NHW[batch.rows], made, images, num_slots))
            slots.append(batch.slots_BKS)
        slots_NKS = torch.cat(slots)
        alike = self.runtime.gather(sameness(slots_NKS), len(scenes)).mean().item()
        return Evaluation(gathered(self.runtime, parts, len(scenes), num_slots), alike, slots_NKS)

    def evaluate(self) -> dict[str, float]:
        found = self.score(self.watched(), "val/slots")
        pixels_BK = found.scores.pixels_BK
        rows = found.scores.means() | self.validation(found)
        rows |= {"dead": float(dead(pixels_BK)), "largest": largest(pixels_BK)}
        rows |= {"sameness": found.sameness, "spread": self.network.encoder.attention.spread()}
        wrong = faults(rows, self.config.model.num_slots)
        if self.runtime.is_main:
            for name in [name for name in wrong if name not in self._told]:
                _log.warning("%s", wrong[name])
        # Each is told once until it is over.
        self._told = set(wrong)
        return {name: value for name, value in rows.items() if value == value}

    # --- the library ---

    @property
    def library(self) -> Library:
        """The slots of the training scenes in clusters, made once of the weights as they are."""
        if self._library is None:
            train = first(self.scenes.splits["train"], self.config.metric.library)
            share, model = self.runtime.share(len(train)), self.config.model
            noise_NKS = self.noise(len(train), "library/slots", 0)[share]
            found = [slots.flatten(1) for _, slots, _ in self.slots(train.images_NHWC[share], noise_NKS)]
            empty = torch.zeros(0, model.num_slots * model.slot_size, device=self.runtime.device)
            together = self.runtime.gather(torch.cat([empty, *found]), len(train))
            slots_NS = together.float().cpu().reshape(-1, model.slot_size)
            self._library = slot_library.build(slots_NS, model.num_slots, self.config.seed, self.network.card)
        return self._library

    def compose(self, count: int, stream: str, **changes: Any) -> Tensor:
        """Draw new pictures of the library's slots: bytes ``[count, H, W, 3]``; ``changes`` are those of `paint`."""
        slots_NKS = self.library.draw(count, self.runtime.generator(stream, 0))
        return self.paint(slots_NKS, f"{stream}/paint", "compositions", **changes)

    # --- the end ---

    def measured(self, split: Split) -> Iterator[tuple[str, Tensor, str, str]]:
        found = self.score(self.scenes.splits[split], f"{split}/slots").scores
        for name, values in found.of_image.items():
            yield name, values, ABOUT[name], ""

    def samplers(self) -> Mapping[str, tuple[str, int] | None]:
        """The samplers and their steps by the endings of their numbers' names; None: the network decodes at once."""
        return {"": None}

    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        # Other weights may have been loaded since.
        self._library = None
        rows = super().results(extra)
        # By all processes together; the pictures are drawn by one.
        assert self.library
        if self.config.metric.inception != "none":
            rows += self.distances(self.samplers())
        return rows

    def distances(self, samplers: Mapping[str, tuple[str, int] | None]) -> list[Result]:
        """FID and KID of compositions of the same slots for each of `samplers` against validation scenes.

        The time is told too where a sampler is named.
        """
        config = self.config
        real_NHWC = first(self.scenes.splits["val"], getattr(config.metric, "composed", 0)).images_NHWC.cpu()
        count = len(real_NHWC)
        setting, title = config.metric.inception, "features of compositions"
        rows: list[Result] = []
        for ending, sampler in samplers.items():
            started = time.perf_counter()
            changes = {} if sampler is None else {"sampler": sampler[0], "steps": sampler[1]}
            composed_NHWC = self.compose(count, "val/compose", **changes)
            seconds = time.perf_counter() - started
            found = fid.measure(setting, real_NHWC, composed_NHWC, self.runtime, "val/kid", title)
            by = "" if sampler is None else f" by {sampler[0]} in {sampler[1]} steps"
            about = (
                f"clean-fid, {count:,} compositions of one slot a cluster (K-means over "
                f"{len(self.library.slots_NS):,} training slots){by} against {count:,} validation scenes"
            )
            rows.append(self.row(f"fid{ending}", "val", found.fid, about, found.half_width))
            rows.append(self.row(f"kid{ending}", "val", 1000 * found.kid, f"times 1,000; {about}"))
            if sampler is not None:
                timed = f"to draw them, on {self.runtime.device.type}; {about}"
                rows.append(self.row(f"seconds{ending}", "val", seconds, timed, unit="s"))
        return rows


def objects(masks_NHW: Tensor) -> int:
    """The most objects that a scene of ``[N, H, W]`` masks has; 0 is the ground."""
    most = 0
    for part_BHW in masks_NHW.split(256) if len(masks_NHW) else ():
        found_BI = torch.zeros(len(part_BHW), 256, dtype=torch.bool, device=part_BHW.device)
        found_BI.scatter_(1, part_BHW.flatten(1).long(), True)
        most = max(most, int(found_BI[:, 1:].sum(1).max()))
    return most
