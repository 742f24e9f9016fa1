"""Slot Attention: the training step, what is measured, what is watched.

Shape suffixes as in model.py.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from etude.core import randomness
from etude.core.runtime import Runtime
from etude.core.study import Result, Task
from etude.data.clevrtex import Scenes, SceneSet
from etude.data.epochs import Epochs
from etude.data.render.driver import Split
from etude.metrics import fid
from etude.nn.pixels import prepare, to_bytes
from etude.scenes import slot_library
from etude.scenes.encoder import fading
from etude.scenes.scores import ABOUT, Scores, Watch, dead, gathered, largest, sameness, score, segments
from etude.scenes.slot_library import Library
from etude.scenes.source import load_scenes
from etude.studies.slots.model import BroadcastDecoder, SlotAutoencoder, card
from etude.studies.slots.study import SlotsConfig

_log = logging.getLogger("etude")


@dataclass(frozen=True)
class Batch:
    """What a model makes of some scenes; see `SlotAutoencoder`."""

    rows: slice
    images_BCHW: Tensor
    made_BCHW: Tensor
    named: dict[str, Tensor]


class SlotsTask(Task):
    """An autoencoder of slots, trained on its reconstructions alone."""

    def __init__(self, config: SlotsConfig, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        randomness.seed_globals(config.seed, "init", 0)
        self.model = SlotAutoencoder(config.model, coarse=config.optim.coarse_steps > 0)
        self.modules: dict[str, nn.Module] = {"model": self.model}
        self.shared_model = runtime.prepare(self.model, channels_last=True)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.optim.lr, fused=True)
        self.shared_optimizer = runtime.prepare_optimizer(self.optimizer)
        self.optimizers = {"adam": self.optimizer}
        self.monitor = ("mse", "min")
        self._scenes: SceneSet | None = None
        self._epochs = Epochs(runtime)
        self._library: Library | None = None
        self._watch = Watch(config.model.num_slots)

    # --- data ---

    @property
    def scenes(self) -> SceneSet:
        """The data set, read once, on the device."""
        if self._scenes is None:
            config = self.config
            read = load_scenes(config.data, config.model.size, batch=config.batch.size, device=self.runtime.device)
            if config.metric.inception != "none":
                # Before the training, not after it.
                fid.weights_of(config.metric.inception)
            most = max(objects(part.masks_NHW) for part in read.splits.values())
            if most + 1 > config.model.num_slots and self.runtime.is_main:
                _log.warning(
                    "up to %d objects and the ground in a scene, and %d slots: some will share one; "
                    "--model.num-slots %d has room",
                    most, config.model.num_slots, most + 1,
                )  # fmt: skip
            self._scenes = read
        return self._scenes

    def batch_rows(self, step: int) -> Tensor:
        """Which training scenes a step takes: every epoch in an order of its own, a rest that fills no batch left."""
        return self._epochs.rows(step, len(self.scenes.splits["train"]), self.config.batch.size)

    def noise(self, count: int, stream: str, step: int, index: int = 0) -> Tensor:
        """Standard normal ``[count, K, S]`` on the device."""
        model = self.config.model
        draw = self.runtime.generator(stream, step, index)
        return randomness.upload(
            torch.randn(count, model.num_slots, model.slot_size, generator=draw), self.runtime.device
        )

    # --- training ---

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        config, train = self.config, self.scenes.splits["train"]
        self.model.train()
        rate = config.optim.rate(step, config.loop.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        decoder = self.model.decoder
        if isinstance(decoder, BroadcastDecoder) and decoder.coarse and step >= config.optim.coarse_steps:
            decoder.coarse = False
            # Adam has seen zeros as this layer's gradients, and would take them for their size.
            for parameter in decoder.ups[-1].parameters():
                self.optimizer.state.pop(parameter, None)
        rows, parts = self.batch_rows(step), config.batch.parts
        spread = fading(step, config.optim.noise_steps)

        def reconstruction(part: int) -> dict[str, Tensor]:
            images_BCHW = prepare(train.images_NHWC[rows[part::parts]])
            if config.data.flip:
                coin = torch.rand(len(images_BCHW), generator=self.runtime.generator("train/flip", step, part)) < 0.5
                flipped = images_BCHW.flip(3)
                flip_B = randomness.upload(coin, images_BCHW.device)
                images_BCHW = torch.where(flip_B[:, None, None, None], flipped, images_BCHW)
            noise_BKS = self.noise(len(images_BCHW), "train/slots", step, part)
            made_BCHW, named = self.shared_model(images_BCHW, noise_BKS, spread=spread)
            # As the assignment has it: summed over the colours, the mean over pixels and pictures.
            error = (made_BCHW - images_BCHW).square().sum(1).mean()
            loss = error + config.optim.sparsity * crowd(named["masks"]) if config.optim.sparsity else error
            return {"loss": loss, "reconstruction": error}

        means = self.runtime.descend(
            self.shared_optimizer, reconstruction, parts, self.shared_model, clip=config.optim.clip
        )
        return means | {"rate": torch.full_like(means["loss"], rate)}

    # --- evaluation ---

    def reconstruct(self, images_NHWC: Tensor, noise_NKS: Tensor, *, size: int = 0) -> Iterator[Batch]:
        """What the model makes of scenes, some at a time, in evaluation mode.

        Args:
            images_NHWC: bytes.
            noise_NKS: of each scene.
            size: of a batch; 0: the evaluation's.
        """
        self.model.eval()
        size, iterations = size or self.config.batch.evaluation, self.config.model.eval_iterations
        for start in range(0, len(images_NHWC), size):
            rows = slice(start, min(start + size, len(images_NHWC)))
            images_BCHW = prepare(images_NHWC[rows])
            # Around the generator it would not hold where that is wrapped, nor should it hold for who takes a batch.
            with torch.no_grad():
                made_BCHW, named = self.model(images_BCHW, noise_NKS[rows], spread=0.0, iterations=iterations)
            yield Batch(rows, images_BCHW, made_BCHW.float(), named)

    def score(self, scenes: Scenes, stream: str) -> tuple[Scores, float]:
        """Scores of scenes, the work shared by the processes, and how much the slots of an image are the same."""
        share = self.runtime.share(len(scenes))
        images_NHWC, masks_NHW = scenes.images_NHWC[share], scenes.masks_NHW[share]
        noise_NKS = self.noise(len(scenes), stream, 0)[share]
        num_slots = self.config.model.num_slots
        parts: list[Scores] = []
        same: list[Tensor] = []
        for batch in self.reconstruct(images_NHWC, noise_NKS):
            made, images = ((x + 1) / 2 for x in (batch.made_BCHW, batch.images_BCHW))
            found = segments(batch.named["masks"])
            parts.append(score(found, masks_NHW[batch.rows], made, images, num_slots))
            same.append(sameness(batch.named["slots"]))
        together = gathered(self.runtime, parts, len(scenes), num_slots)
        empty = torch.zeros(0, device=self.runtime.device)
        return together, self.runtime.gather(torch.cat(same) if same else empty, len(scenes)).mean().item()

    def evaluate(self) -> dict[str, float]:
        scenes = self.scenes.splits["val"]
        count = min(self.config.metric.watched or len(scenes), len(scenes))
        watched = Scenes(scenes.images_NHWC[:count], scenes.masks_NHW[:count], scenes.names[:count])
        found, same = self.score(watched, "val/slots")
        rows = found.means()
        # The training loss counts [-1, 1], and pixels once.
        rows["reconstruction"] = 4 * rows["mse"] / self.config.model.size**2
        rows |= {"dead": float(dead(found.pixels_BK)), "largest": largest(found.pixels_BK)}
        rows |= {"sameness": same, "spread": self.model.encoder.attention.spread()}
        self._watch.tell(rows, aloud=self.runtime.is_main)
        return {name: value for name, value in rows.items() if value == value}

    # --- the library ---

    @property
    def library(self) -> Library:
        """Slots of the training scenes in clusters, made once of the weights as they are."""
        if self._library is None:
            train, most = self.scenes.splits["train"], self.config.metric.library
            images_NHWC = train.images_NHWC[: most or None]
            share = self.runtime.share(len(images_NHWC))
            noise_NKS = self.noise(len(images_NHWC), "library/slots", 0)[share]
            model, size = self.config.model, self.config.batch.evaluation
            found: list[Tensor] = []
            self.model.eval()
            with torch.no_grad():
                # Without the decoder, which costs most.
                for images, noise in zip(images_NHWC[share].split(size), noise_NKS.split(size), strict=True):
                    if len(images):
                        slots = self.model.encoder(prepare(images), noise, spread=0.0, iterations=model.eval_iterations)
                        found.append(slots.slots_BKS.flatten(1))
            empty = torch.zeros(0, model.num_slots * model.slot_size, device=self.runtime.device)
            together = self.runtime.gather(torch.cat(found) if found else empty, len(images_NHWC))
            slots_NS = together.float().cpu().reshape(-1, model.slot_size)
            self._library = slot_library.build(slots_NS, model.num_slots, self.config.seed, partial(card, self.model))
        return self._library

    @torch.no_grad()
    def compose(self, count: int, stream: str) -> Tensor:
        """New pictures of the library's slots: bytes ``[count, H, W, 3]``, the work shared by the processes."""
        self.model.eval()
        slots_BKS = self.library.draw(count, self.runtime.generator(stream, 0))
        mine = slots_BKS[self.runtime.share(count)].to(self.runtime.device)
        made = [to_bytes(self.model.decode(part)[0]) for part in mine.split(self.config.batch.evaluation) if len(part)]
        size = self.config.model.size
        empty = torch.zeros(0, size, size, 3, dtype=torch.uint8, device=self.runtime.device)
        return self.runtime.gather(torch.cat(made) if made else empty, count)

    # --- the end ---

    def finish(self) -> dict[str, Any]:
        return {"scenes": self.scenes.about}

    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        config, model, scenes = self.config, self.config.model, self.scenes
        # Other weights may have been loaded since.
        self._library = None
        num_train, watched = len(scenes.splits["train"]), config.metric.watched
        epochs = config.loop.max_steps * config.batch.size / num_train
        encoder = f"resnet18 of width {model.encoder_width}" if model.encoder == "resnet18" else model.encoder
        protocol = (
            f"{scenes.about}, {model.size} px; {encoder}, K = {model.num_slots}, {model.init} slots, "
            f"{model.eval_iterations} iterations in use; up to {epochs:.3g} epochs of {num_train:,}, batch "
            f"{config.batch.size}, chosen by validation MSE{f' of {watched:,} scenes' if watched else ''}"
        )
        variant = f"{scenes.about}, {model.size} px"
        rows: list[Result] = []
        measured: tuple[Split, ...] = ("val", "test")
        for split in measured:
            found, _ = self.score(scenes.splits[split], f"{split}/slots")
            for name, value in found.means().items():
                if value == value:
                    told = f"mean over {len(scenes.splits[split]):,} scenes, {ABOUT[name]}; {protocol}"
                    width = found.half_width(name)
                    rows.append(Result(config.table, model.cell, name, split, value, told, width, "", variant))
        # By all processes together; the pictures are drawn by one.
        assert self.library
        if config.metric.inception != "none":
            rows += self._distances(protocol, variant)
        return rows

    def _distances(self, protocol: str, variant: str) -> list[Result]:
        """FID and KID of as many compositions as there are validation scenes, as the assignment asks."""
        real_NHWC = self.scenes.splits["val"].images_NHWC
        count = len(real_NHWC)
        composed_NHWC = self.compose(count, "val/compose")
        setting, title = self.config.metric.inception, "features of compositions"
        found = fid.measure(setting, real_NHWC, composed_NHWC, self.runtime, "val/kid", title)
        about = (
            f"clean-fid, {count:,} compositions of one slot a cluster (K-means over "
            f"{len(self.library.slots_NS):,} training slots) against the {count:,} validation scenes; {protocol}"
        )
        cell, table = self.config.model.cell, self.config.table
        return [
            Result(table, cell, "fid", "val", found.fid, about, found.half_width, "", variant),
            Result(table, cell, "kid", "val", 1000 * found.kid, f"times 1,000; {about}", None, "", variant),
        ]

    def data_checksums(self) -> dict[str, str]:
        return dict(self.scenes.checksums)


def crowd(masks_BKHW: Tensor) -> Tensor:
    """How many slots share a picture, in the mean over pictures: 1 where one has all of it, the root of K where all
    have the same.

    The sum over the slots of the square root of a slot's share of the pixels. The root is concave, so that one large
    slot costs less than many: it costs nothing to cut a ground of one colour in pieces, and this makes it cost.
    """
    return masks_BKHW.mean((2, 3)).clamp(min=1e-6).sqrt().sum(1).mean()


def objects(masks_NHW: Tensor) -> int:
    """The most objects of a scene."""
    most = 0
    for part in masks_NHW.split(256):
        found = torch.zeros(len(part), 256, dtype=torch.bool, device=part.device)
        found.scatter_(
            1,
            part.flatten(1).long(),
            torch.ones((), dtype=torch.bool, device=part.device).expand(part.flatten(1).shape),
        )
        most = max(most, int(found[:, 1:].sum(1).max())) if len(part) else most
    return most


make_task = SlotsTask
