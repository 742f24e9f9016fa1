"""Classification of pictures, which a search and a retraining share.

Shape suffixes: N pictures, C channels, H W pixels, R classes.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from etude.core import randomness
from etude.core.errors import UserError
from etude.core.runtime import Runtime
from etude.core.study import Result, Task
from etude.data import pictures
from etude.data.epochs import Epochs
from etude.data.labelled import LabelledImages, stratified
from etude.metrics.proportion import half_width
from etude.nn.augment import crop_and_flip, cutout
from etude.nn.pixels import StandardizedColours
from etude.studies.darts.study import DartsConfig


def entropy_loss(logits_NR: Tensor, labels_N: Tensor) -> Tensor:
    """Cross-entropy, in float32 at least."""
    return functional.cross_entropy(logits_NR.to(torch.promote_types(logits_NR.dtype, torch.float32)), labels_N)


class CellTask(Task):
    """Pictures, scores and rows of results, which a search and a retraining share."""

    config: DartsConfig
    runtime: Runtime
    model: StandardizedColours

    def __init__(self, config: DartsConfig, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        randomness.seed_globals(config.seed, "init", 0)
        self._pictures: pictures.Pictures | None = None
        self._epochs = Epochs(runtime)

    @property
    def pictures(self) -> pictures.Pictures:
        """The data set, read once, on the device."""
        if self._pictures is None:
            config = self.config
            batch = config.batch.size if config.phase == "retrain" else 0
            read = pictures.load(config.data, config.model.num_classes, batch=batch, device=self.runtime.device)
            if 0 < config.train_images < len(read.splits["train"]):
                train = read.splits["train"]
                share = config.train_images / len(train)
                rows = stratified(train.labels_N.cpu(), (share, 1 - share), 0)[0]
                if len(rows) < batch:
                    raise UserError(
                        f"a batch of {batch} is larger than the {len(rows)} training pictures that --train-images "
                        "leaves: raise it, or give a smaller --batch.size"
                    )
                fewer = dict(read.splits) | {"train": train.take(rows.to(self.runtime.device))}
                about = f"{read.about}, {len(rows):,} of {len(train):,} training pictures"
                read = replace(read, splits=fewer, about=about)
            self._pictures = read
        return self._pictures

    def inputs(self, images: LabelledImages, rows: Tensor, stream: str, step: int, part: int) -> tuple[Tensor, Tensor]:
        """Augmented and standardised pictures of some rows, and their classes."""
        augment, draw = self.config.augment, self.runtime.generator(stream, step, part)
        fill = self.model.mean.round().to(torch.uint8)
        cut = crop_and_flip(images.images_NHWC[rows], fill, draw, pad=augment.pad, flip=augment.flip)
        return cutout(self.model.prepare(cut), augment.cutout, draw), images.labels_N[rows]

    def answers(self, x_NCHW: Tensor) -> Tensor:
        """The network's logits ``[N, R]``, nothing dropped or added."""
        return self.model(x_NCHW)[0]

    @torch.no_grad()
    def logits(self, images: LabelledImages) -> Tensor:
        """Logits of whole splits in evaluation mode, the work shared by the processes: float32 ``[N, R]``."""
        self.model.eval()
        mine = images.images_NHWC[self.runtime.share(len(images))]
        found = [mine.new_zeros(0, self.config.model.num_classes, dtype=torch.float32)]
        for part in mine.split(self.config.batch.evaluation) if len(mine) else ():
            found.append(self.answers(self.model.prepare(part)).float())
        return self.runtime.gather(torch.cat(found), len(images))

    def score(self, images: LabelledImages) -> dict[str, float]:
        """Loss, and accuracy in per cent."""
        logits_NR = self.logits(images)
        right = (logits_NR.argmax(1) == images.labels_N).double().mean().item()
        loss = functional.cross_entropy(logits_NR.double(), images.labels_N).item()
        return {"loss": loss, "accuracy": 100 * right}

    def data_checksums(self) -> dict[str, str]:
        return dict(self.pictures.checksums)

    def inventory(self) -> Mapping[str, Any]:
        return self.pictures.inventory

    @abstractmethod
    def cell(self) -> str:
        """The run's place in a table."""

    def setting(self, num_train: int, size: str = "") -> str:
        """The part of a protocol that both phases state: pictures, network, epochs of so many pictures."""
        config, model = self.config, self.config.model
        epochs = self.num_steps * config.batch.size / num_train
        network = f"{model.layers} cells of {model.channels} channels{size}"
        return f"{self.pictures.about}; {network}, up to {epochs:.3g} epochs of {num_train:,}"

    def result(self, name: str, split: str, value: float, count: int, protocol: str) -> Result:
        """A row of results; a share of ``count`` pictures has an interval."""
        share = name.endswith(("accuracy", "error"))
        width, unit = (half_width(value, count), "%") if share else (None, "")
        return Result(self.config.table, self.cell(), name, split, value, protocol, width, unit, self.pictures.about)
