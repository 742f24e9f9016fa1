"""SlotDiffusion: the training step of slots and U-Net, what is measured, pictures of slots.

Shape suffixes as in model.py; F: two, a picture and its mirror image.
"""

import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from etude.core import randomness
from etude.core.errors import UserError
from etude.core.loop import progress_bar
from etude.core.runtime import Runtime
from etude.core.study import Task
from etude.data.cache import decoded, digest
from etude.data.clevrtex import Scenes
from etude.data.render.driver import Split
from etude.metrics.segmentation import squared_error
from etude.nn.mean_weights import average_
from etude.nn.pixels import prepare, to_bytes
from etude.scenes.encoder import noise_scale
from etude.scenes.task import Decomposed, Evaluation, SlotTask, first, mirrored
from etude.studies.slotdiffusion.diffusion import epsilon_loss
from etude.studies.slotdiffusion.model import Painter, SlotDiffusion, attention_masks, schedule_of
from etude.studies.slotdiffusion.samplers import halving, make_sampler
from etude.studies.slotdiffusion.study import SampleConfig, SlotDiffusionConfig
from etude.studies.slotdiffusion.vae_files import build_vae, read_vae
from etude.studies.slotdiffusion.vae_task import VAETask

_LATENTS = 1
"""Version of the cached latents."""


class SlotDiffusionTask(SlotTask):
    """Slots and U-Net, trained together on the noise in latents; the autoencoder stays as it is."""

    def __init__(self, config: SlotDiffusionConfig, runtime: Runtime) -> None:
        super().__init__(config, runtime)
        # One that does not fit is told now, not after the training.
        make_sampler(config.sample.sampler)
        self.vae = build_vae(config.vae).requires_grad_(False).to(runtime.device).eval()
        self.model = SlotDiffusion(config.model, config.vae.channels)
        self.shared_model = runtime.prepare(self.model, channels_last=True)
        self.mean = self.model
        self.modules: dict[str, nn.Module] = {"last": self.model} if config.optim.ema else {"model": self.model}
        if config.optim.ema:
            self.mean = copy.deepcopy(self.model).requires_grad_(False)
            self.modules["model"] = self.mean
        self.modules["vae"] = self.vae
        optim = config.optim
        groups = [
            {"params": list(self.model.unet.parameters()), "initial_lr": optim.lr},
            {"params": list(self.model.encoder.parameters()), "initial_lr": optim.encoder_lr},
        ]
        self.optimizer = torch.optim.Adam(groups, optim.lr, fused=True)
        self.shared_optimizer = runtime.prepare_optimizer(self.optimizer)
        self.optimizers = {"adam": self.optimizer}
        self.monitor = ("loss", "min")
        self.schedule = schedule_of(config.chain)
        self._latents: Tensor | None = None
        self._watched_latents: Tensor | None = None

    @property
    def network(self) -> SlotDiffusion:
        return self.mean

    @property
    def exported(self) -> Mapping[str, nn.Module]:
        return {"model": self.mean, "vae": self.vae}

    # --- data ---

    @property
    def latents(self) -> Tensor:
        """The latents of all training scenes and their mirror images, float16 ``[N, F, C, h, w]`` on the device."""
        if self._latents is None:
            scenes, size = self.scenes, self.config.model.size
            train, side = scenes.splits["train"], size // self.config.vae.stride
            views = 2 if self.config.data.flip else 1
            shape = (len(train), views, self.config.vae.channels, side, side)
            weights = hashlib.sha256()
            for tensor in self.vae.state_dict().values():
                weights.update(tensor.cpu().contiguous().numpy().tobytes())
            about = [f"{name}={value}" for name, value in sorted(scenes.checksums.items())]
            key = digest(weights.hexdigest(), scenes.about, *about, str(shape))
            made = decoded("slotdiffusion", key, _LATENTS, shape, partial(self._encode, train), np.float16)
            self._latents = torch.from_numpy(np.array(made)).to(self.runtime.device)
        return self._latents

    @torch.no_grad()
    def _encode(self, train: Scenes, to: np.ndarray) -> None:
        with progress_bar(enabled=self.runtime.is_main) as bar:
            shown = bar.add_task("latents", total=len(train), note="")
            for rows in self.batches(len(train)):
                images_BCHW = prepare(train.images_NHWC[rows])
                for view in range(to.shape[1]):
                    z_BChw = self.vae.encode(images_BCHW.flip(3) if view else images_BCHW).float()
                    if not z_BChw.isfinite().all() or z_BChw.abs().max() > 6e4:
                        raise UserError(
                            f"the latents of scenes {rows.start} to {rows.stop - 1} are not finite or beyond "
                            "half precision: give another autoencoder, --vae.weights"
                        )
                    to[rows, view] = z_BChw.cpu().numpy()
                bar.advance(shown, len(images_BCHW))

    def _start(self) -> None:
        """Before the first step: the trained autoencoder, and the scale of its latents."""
        read_vae(self.vae, self.config.vae.weights)
        self._latents = self._watched_latents = None
        deviation = self.latents.float().std()
        if not deviation > 0:
            raise UserError("the autoencoder gives all scenes one latent: train it first, see --vae.weights")
        self.model.scale.fill_(self.config.vae.scale or 1 / deviation)
        self.mean.scale.copy_(self.model.scale)

    # --- training ---

    def target(self, z0_BChw: Tensor, t_B: Tensor, noise_BChw: Tensor) -> Tensor:
        """The U-Net's target: the noise or the velocity, ``[B, C, h, w]``."""
        velocity = self.config.model.target == "velocity"
        return self.schedule.velocity(z0_BChw, t_B, noise_BChw) if velocity else noise_BChw

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        config, train = self.config, self.scenes.splits["train"]
        if step == 0:
            self._start()
        self.model.train()
        rate = config.optim.set_rates(self.optimizer.param_groups, step, self.num_steps)
        rows, parts = self.batch_rows(step), config.batch.parts
        scale = noise_scale(step, config.optim.noise_steps)

        def noise_error(part: int) -> dict[str, Tensor]:
            mine = rows[part::parts]
            flip_B = self.flips(len(mine), step, part)
            images_BCHW = mirrored(prepare(train.images_NHWC[mine]), flip_B)
            z0_BChw = self.latents[mine, flip_B.long()].float() * self.model.scale
            draw = self.runtime.generator("train/diffusion", step, part)
            drawn = (
                torch.randint(config.chain.steps, (len(mine),), generator=draw),
                torch.rand(len(mine), generator=draw) < config.optim.drop,
                torch.randn(z0_BChw.shape, generator=draw),
            )
            t_B, drop_B, noise_BChw = (randomness.upload(values, self.runtime.device) for values in drawn)
            z_BChw = self.schedule.q_sample(z0_BChw, t_B, noise_BChw).contiguous(memory_format=torch.channels_last)
            start_BKS = self.noise(len(mine), "train/slots", step, part)
            found_BChw, _ = self.shared_model(images_BCHW, z_BChw, t_B, start_BKS, drop_B, spread=scale)
            return {"loss": epsilon_loss(found_BChw, self.target(z0_BChw, t_B, noise_BChw))}

        means = self.runtime.descend(
            self.shared_optimizer, noise_error, parts, self.shared_model, clip=config.optim.clip
        )
        if config.optim.ema:
            average_(self.mean, self.model, config.optim.ema, step)
        return means | {"rate": torch.full_like(means["loss"], rate)}

    # --- evaluation ---

    def decompose(self, images_NHWC: Tensor, noise_NKS: Tensor, *, size: int = 0) -> Iterator[Decomposed]:
        """See `SlotTask.decompose`; the attention stands for masks, and nothing is drawn."""
        for rows, slots_BKS, attention_BTKN in self.slots(images_NHWC, noise_NKS, size):
            masks_BKHW = attention_masks(attention_BTKN, self.mean.encoder.places, self.config.model.size)
            yield Decomposed(rows, slots_BKS, {"attention": attention_BTKN, "masks": masks_BKHW})

    def validation(self, found: Evaluation) -> dict[str, float]:
        return {"loss": self.validation_loss(found.slots_NKS)}

    @torch.no_grad()
    def validation_loss(self, slots_NKS: Tensor) -> float:
        """The mean loss of the watched scenes, each at a place of its own along the chain, the same every time.

        Args:
            slots_NKS: of this process's share of them.
        """
        watched, chain, size = self.watched(), self.config.chain, self.config.batch.evaluation
        count = len(watched)
        share = self.runtime.share(count)
        draw = self.runtime.generator("val/diffusion", 0)
        side = self.config.model.size // self.config.vae.stride
        noise_NChw = torch.randn(count, self.config.vae.channels, side, side, generator=draw)[share]
        t_N = ((torch.arange(count) + 0.5) * chain.steps / count).long()[torch.randperm(count, generator=draw)][share]
        if self._watched_latents is None:
            parts = [self.vae.encode(prepare(part)) for part in watched.images_NHWC[share].split(size) if len(part)]
            self._watched_latents = torch.cat([noise_NChw[:0].to(self.runtime.device), *parts]).float()
        losses = [torch.zeros(0, device=self.runtime.device)]
        self.mean.eval()
        for rows in self.batches(len(slots_NKS)):
            noise_BChw, t_B = (x[rows].to(self.runtime.device) for x in (noise_NChw, t_N))
            z0_BChw = self._watched_latents[rows] * self.mean.scale
            z_BChw = self.schedule.q_sample(z0_BChw, t_B, noise_BChw)
            found_BChw = self.mean.unet(z_BChw, t_B, slots_NKS[rows]).float()
            error_BChw = found_BChw - self.target(z0_BChw, t_B, noise_BChw)
            losses.append(error_BChw.square().mean((1, 2, 3)))
        return self.runtime.gather(torch.cat(losses), count).double().mean().item()

    # --- pictures of slots ---

    def painter(self, **changes: Any) -> Painter:
        """Draws with the chosen weights; ``changes`` are of the sampler's settings."""
        config: SampleConfig = replace(self.config.sample, **changes)
        self.mean.eval()
        return Painter(self.mean, self.vae, self.schedule, config, self.config.seed)

    def paint(self, slots_NKS: Tensor, stream: str, title: str, **changes: Any) -> Tensor:
        painter, count, size = self.painter(**changes), len(slots_NKS), self.config.model.size
        share = self.runtime.share(count)
        mine = share.stop - share.start
        with progress_bar(enabled=self.runtime.is_main) as bar:
            shown = bar.add_task(title, total=mine * painter.config.steps, note="")

            def part(rows: slice) -> Tensor:
                these = slice(share.start + rows.start, share.start + rows.stop)

                def tell(*_: Any) -> None:
                    bar.advance(shown, rows.stop - rows.start)

                return to_bytes(painter.paint(slots_NKS[these], these, stream, tell)).cpu()

            empty = torch.zeros(0, size, size, 3, dtype=torch.uint8)
            made = halving(part, mine, self.config.batch.evaluation) if mine else empty
        return self.runtime.gather(made.to(self.runtime.device), count).cpu()

    # --- the end ---

    @property
    def protocol(self) -> str:
        model, watched = self.config.model, self.config.metric.watched
        return (
            f"{self.variant}; U-Net of width {model.width}, K = {model.num_slots}, {model.init} slots of "
            f"{model.slot_size}; {self.schooling}, chosen by validation loss"
            f"{f' of {watched:,} scenes' if watched else ''}"
        )

    def measured(self, split: Split) -> Iterator[tuple[str, Tensor, str, str]]:
        for name, values, about, unit in super().measured(split):
            yield name, values, f"attention as masks, {about}", unit
        sample, some = self.config.sample, first(self.scenes.splits[split], self.config.metric.reconstructed)
        made, real = (x.cpu().permute(0, 3, 1, 2) / 255.0 for x in (self.reconstruct(some, split), some.images_NHWC))
        by = f"{sample.sampler}, {sample.steps} steps, summed over pixels and colours of [0, 1]"
        yield "mse", squared_error(made, real).double(), f"from noise and slots by {by}", ""

    def samplers(self) -> Mapping[str, tuple[str, int]]:
        sample: SampleConfig = self.config.sample
        slow = {"_ancestral": ("ancestral", sample.ancestral)} if sample.ancestral else {}
        return {"": (sample.sampler, sample.steps)} | slow

    def reconstruct(self, scenes: Scenes, split: str) -> Tensor:
        """Draw scenes again from noise and their slots: bytes ``[N, H, W, 3]``."""
        noise_NKS = self.noise(len(scenes), f"{split}/slots", 0)
        slots_NKS = torch.cat([slots for _, slots, _ in self.slots(scenes.images_NHWC, noise_NKS)])
        return self.paint(slots_NKS, f"{split}/paint", f"{split} scenes from slots")


def make_task(config: SlotDiffusionConfig, runtime: Runtime) -> Task:
    """The task of the configuration's phase."""
    return VAETask(config, runtime) if config.phase == "vae" else SlotDiffusionTask(config, runtime)
