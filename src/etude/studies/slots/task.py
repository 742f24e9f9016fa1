"""Slot Attention: the training step, and what is measured of the pictures that slots are decoded to.

Shape suffixes as in model.py.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from etude.core.runtime import Runtime
from etude.nn.pixels import prepare, to_bytes
from etude.scenes.encoder import noise_scale
from etude.scenes.task import Decomposed, Evaluation, SlotTask, mirrored
from etude.studies.slots.model import BroadcastDecoder, SlotAutoencoder
from etude.studies.slots.study import SlotsConfig


class SlotsTask(SlotTask):
    """An autoencoder of slots, trained on its reconstructions alone."""

    def __init__(self, config: SlotsConfig, runtime: Runtime) -> None:
        super().__init__(config, runtime)
        self.model = SlotAutoencoder(config.model, coarse=config.optim.coarse_steps > 0)
        self.modules = {"model": self.model}
        self.shared_model = runtime.prepare(self.model, channels_last=True)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.optim.lr, fused=True)
        self.shared_optimizer = runtime.prepare_optimizer(self.optimizer)
        self.optimizers = {"adam": self.optimizer}
        self.monitor = ("mse", "min")

    @property
    def network(self) -> SlotAutoencoder:
        return self.model

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        config, train = self.config, self.scenes.splits["train"]
        self.model.train()
        rate = config.optim.lr * config.optim.factor(step, self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        decoder = self.model.decoder
        if isinstance(decoder, BroadcastDecoder) and decoder.coarse and step >= config.optim.coarse_steps:
            decoder.coarse = False
            # Adam has seen zeros as this layer's gradients, and would take them for their size.
            for parameter in decoder.ups[-1].parameters():
                self.optimizer.state.pop(parameter, None)
        rows, parts = self.batch_rows(step), config.batch.parts
        scale = noise_scale(step, config.optim.noise_steps)

        def reconstruction(part: int) -> dict[str, Tensor]:
            images_BCHW = prepare(train.images_NHWC[rows[part::parts]])
            if config.data.flip:
                images_BCHW = mirrored(images_BCHW, self.flips(len(images_BCHW), step, part))
            noise_BKS = self.noise(len(images_BCHW), "train/slots", step, part)
            made_BCHW, named = self.shared_model(images_BCHW, noise_BKS, spread=scale)
            # As the assignment has it: summed over the colours, the mean over pixels and pictures.
            error = (made_BCHW - images_BCHW).square().sum(1).mean()
            loss = error + config.optim.sparsity * crowd(named["masks"]) if config.optim.sparsity else error
            return {"loss": loss, "reconstruction": error}

        means = self.runtime.descend(
            self.shared_optimizer, reconstruction, parts, self.shared_model, clip=config.optim.clip
        )
        return means | {"rate": torch.full_like(means["loss"], rate)}

    def decompose(self, images_NHWC: Tensor, noise_NKS: Tensor, *, size: int = 0) -> Iterator[Decomposed]:
        """See `SlotTask.decompose`; ``contents`` ``[B, K, 3, H, W]`` is named too, what each slot paints."""
        self.model.eval()
        iterations = self.config.model.eval_iterations
        for rows in self.batches(len(images_NHWC), size):
            images_BCHW = prepare(images_NHWC[rows])
            with torch.no_grad():
                made_BCHW, named = self.model(images_BCHW, noise_NKS[rows], spread=0.0, iterations=iterations)
            yield Decomposed(rows, named["slots"], named, images_BCHW, made_BCHW.float())

    def validation(self, found: Evaluation) -> dict[str, float]:
        # The training loss counts [-1, 1], and pixels once.
        return {"reconstruction": 4 * found.scores.means()["mse"] / self.config.model.size**2}

    @torch.no_grad()
    def paint(self, slots_NKS: Tensor, stream: str, title: str, **changes: Any) -> Tensor:
        self.model.eval()
        count, size = len(slots_NKS), self.config.model.size
        mine_NKS = slots_NKS[self.runtime.share(count)].to(self.runtime.device)
        empty = torch.zeros(0, size, size, 3, dtype=torch.uint8, device=self.runtime.device)
        made = [to_bytes(self.model.decode(mine_NKS[rows])[0]) for rows in self.batches(len(mine_NKS))]
        return self.runtime.gather(torch.cat([empty, *made]), count).cpu()

    @property
    def protocol(self) -> str:
        model, watched = self.config.model, self.config.metric.watched
        encoder = f"resnet18 of width {model.encoder_width}" if model.encoder == "resnet18" else model.encoder
        return (
            f"{self.variant}; {encoder}, K = {model.num_slots}, {model.init} slots, {model.eval_iterations} iterations "
            f"in use; {self.schooling}, chosen by validation MSE{f' of {watched:,} scenes' if watched else ''}"
        )


def crowd(masks_BKHW: Tensor) -> Tensor:
    """The number of slots that share a picture, in the mean over pictures: 1 where one has all of it, the root of K
    where all have the same.

    The sum over the slots of the square root of a slot's share of the pixels. The root is concave, so that one large
    slot costs less than many: it costs nothing to cut a ground of one colour in pieces, and this makes it cost.
    """
    return masks_BKHW.mean((2, 3)).clamp(min=1e-6).sqrt().sum(1).mean()


make_task = SlotsTask
