"""SlotDiffusion: the training steps of both phases, what is measured, what is watched.

Shape suffixes as in model.py; F: two, a picture and its mirror image.
"""

import copy
import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from etude.core import randomness
from etude.core.errors import UserError
from etude.core.loop import progress_bar
from etude.core.runtime import Runtime
from etude.core.study import Result, Task
from etude.data.cache import decoded, digest
from etude.data.clevrtex import Scenes, SceneSet
from etude.data.epochs import Epochs
from etude.data.render.driver import Split
from etude.metrics import fid
from etude.metrics.segmentation import squared_error
from etude.nn.mean_weights import average_
from etude.nn.pixels import prepare, to_bytes
from etude.scenes import slot_library
from etude.scenes.encoder import fading
from etude.scenes.scores import ABOUT, Scores, Watch, dead, gathered, largest, sameness, score, segments
from etude.scenes.slot_library import Library
from etude.scenes.source import load_scenes
from etude.studies.slotdiffusion.diffusion import epsilon_loss
from etude.studies.slotdiffusion.model import (
    Painter,
    SlotDiffusion,
    attention_masks,
    build_vae,
    card,
    read_vae,
    schedule_of,
)
from etude.studies.slotdiffusion.samplers import halving, make_sampler
from etude.studies.slotdiffusion.study import SampleConfig, SlotDiffusionConfig
from etude.studies.slotdiffusion.vae import kl_loss, vq_loss

_LATENTS = 1
"""Version of the cached latents."""

_log = logging.getLogger("etude")


class Looked(NamedTuple):
    """What was found in scenes: scores of all, how much the slots of one are the same, and the slots ``[N, K, S]`` of
    this process's share."""

    scores: Scores
    sameness: float
    slots_NKS: Tensor


class _Scenes(Task):
    """What both phases do with scenes."""

    config: SlotDiffusionConfig
    runtime: Runtime

    def _begin(self, config: SlotDiffusionConfig, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        randomness.seed_globals(config.seed, "init", 0)
        self._scenes: SceneSet | None = None
        self._epochs = Epochs(runtime)

    @property
    def scenes(self) -> SceneSet:
        """The data set, read once, on the device."""
        if self._scenes is None:
            config = self.config
            read = load_scenes(config.data, config.model.size, batch=config.batch.size, device=self.runtime.device)
            if config.phase == "diffusion" and config.metric.inception != "none":
                # Before the training, not after it.
                fid.weights_of(config.metric.inception)
            self._scenes = read
        return self._scenes

    def batch_rows(self, step: int) -> Tensor:
        """Which training scenes a step takes: every epoch in an order of its own, a rest that fills no batch left."""
        return self._epochs.rows(step, len(self.scenes.splits["train"]), self.config.batch.size)

    def flips(self, count: int, step: int, part: int) -> Tensor:
        """Which pictures of a batch are mirrored, bool ``[count]`` on the device."""
        if not self.config.data.flip:
            return torch.zeros(count, dtype=torch.bool, device=self.runtime.device)
        coin = torch.rand(count, generator=self.runtime.generator("train/flip", step, part)) < 0.5
        return randomness.upload(coin, self.runtime.device)

    def set_rates(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """The rates of a step; returns the first group's."""
        factor = self.config.optim.factor(step, self.config.loop.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        return optimizer.param_groups[0]["lr"]

    def watched(self, split: Split = "val") -> Scenes:
        """The scenes of each evaluation in training."""
        scenes = self.scenes.splits[split]
        return _first(scenes, self.config.metric.watched)

    def finish(self) -> dict[str, Any]:
        return {"scenes": self.scenes.about}

    def data_checksums(self) -> dict[str, str]:
        return dict(self.scenes.checksums)


def _first(scenes: Scenes, most: int) -> Scenes:
    count = min(most or len(scenes), len(scenes))
    return Scenes(scenes.images_NHWC[:count], scenes.masks_NHW[:count], scenes.names[:count])


def mirrored(images_BCHW: Tensor, flip_B: Tensor) -> Tensor:
    """The pictures, some of them mirrored left to right."""
    return torch.where(flip_B[:, None, None, None], images_BCHW.flip(3), images_BCHW)


def make_task(config: SlotDiffusionConfig, runtime: Runtime) -> Task:
    """The task of the configuration's phase."""
    return VAETask(config, runtime) if config.phase == "vae" else SlotDiffusionTask(config, runtime)


# --- the autoencoder ---


class VAETask(_Scenes):
    """The autoencoder, trained on pixels alone: absolute error, and what keeps the latents in bounds."""

    measures_fid = False
    """For `etude check`: nothing is drawn."""

    def __init__(self, config: SlotDiffusionConfig, runtime: Runtime) -> None:
        self._begin(config, runtime)
        self.vae = build_vae(config.vae)
        self.shared = runtime.prepare(self.vae, channels_last=True)
        self.mean = self.vae
        self.modules: dict[str, nn.Module] = {"last": self.vae} if config.optim.ema else {"vae": self.vae}
        if config.optim.ema:
            # What the diffusion reads.
            self.mean = copy.deepcopy(self.vae).requires_grad_(False)
            self.modules["vae"] = self.mean
        rate = config.optim.lr
        groups = [{"params": list(self.vae.parameters()), "initial_lr": rate}]
        self.optimizer = torch.optim.Adam(groups, rate, fused=True)
        self.shared_optimizer = runtime.prepare_optimizer(self.optimizer)
        self.optimizers = {"adam": self.optimizer}
        self.monitor = ("error", "min")

    @property
    def exported(self) -> Mapping[str, nn.Module]:
        return {"vae": self.mean}

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        config, train = self.config, self.scenes.splits["train"]
        self.vae.train()
        rate = self.set_rates(self.optimizer, step)
        rows, parts = self.batch_rows(step), config.batch.parts

        def reconstruction(part: int) -> dict[str, Tensor]:
            images_BCHW = prepare(train.images_NHWC[rows[part::parts]])
            images_BCHW = mirrored(images_BCHW, self.flips(len(images_BCHW), step, part))
            if self.vae.kind == "vq":
                made_BCHW, named = self.shared(images_BCHW)
                error = functional.l1_loss(made_BCHW.float(), images_BCHW)
                codebook = vq_loss(named["codebook"], named["commitment"])
                return {"loss": error + codebook, "error": error, "codebook": codebook}
            made_BCHW, named = self.shared(images_BCHW, self.latent_noise(len(images_BCHW), step, part))
            error = functional.l1_loss(made_BCHW.float(), images_BCHW)
            divergence = kl_loss(named["mean"].float(), named["log_variance"].float())
            # Latent diffusion sums both over a picture.
            loss = error + config.vae.kl_weight * divergence / images_BCHW[0].numel()
            return {"loss": loss, "error": error, "divergence": divergence}

        means = self.runtime.descend(self.shared_optimizer, reconstruction, parts, self.shared, clip=config.optim.clip)
        if config.optim.ema:
            average_(self.mean, self.vae, config.optim.ema, step)
        return means | {"rate": torch.full_like(means["loss"], rate)}

    def latent_noise(self, count: int, step: int, part: int) -> Tensor:
        """Standard normal ``[count, D, h, w]`` on the device, by which latents are drawn."""
        side = self.config.model.size // self.vae.stride
        draw = self.runtime.generator("train/latent", step, part)
        return randomness.upload(
            torch.randn(count, self.vae.latent_channels, side, side, generator=draw), self.runtime.device
        )

    @torch.no_grad()
    def reconstruct(self, images_NHWC: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Rows, pictures, reconstructions and latents, some scenes at a time."""
        self.mean.eval()
        size = self.config.batch.evaluation
        for start in range(0, len(images_NHWC), size):
            rows = slice(start, min(start + size, len(images_NHWC)))
            images_BCHW = prepare(images_NHWC[rows])
            z_BDhw = self.mean.encode(images_BCHW)
            yield rows, images_BCHW, self.mean.decode(z_BDhw).float(), z_BDhw

    def measure(self, scenes: Scenes) -> dict[str, Tensor]:
        """Of each scene: absolute error, squared error as published, PSNR, and the latent's mean square."""
        share = self.runtime.share(len(scenes))
        found: dict[str, list[Tensor]] = {"error": [], "mse": [], "psnr": [], "power": []}
        for _, images, made, z in self.reconstruct(scenes.images_NHWC[share]):
            found["error"].append((made - images).abs().mean((1, 2, 3)))
            square_B = squared_error((made.clamp(-1, 1) + 1) / 2, (images + 1) / 2).float()
            found["mse"].append(square_B)
            found["psnr"].append(-10 * (square_B / images[0].numel()).clamp(min=1e-10).log10())
            found["power"].append(z.float().square().mean((1, 2, 3)))
        empty = torch.zeros(0, device=self.runtime.device)
        return {
            name: self.runtime.gather(torch.cat(rows) if rows else empty, len(scenes)).cpu()
            for name, rows in found.items()
        }

    def evaluate(self) -> dict[str, float]:
        return {name: values.double().mean().item() for name, values in self.measure(self.watched()).items()}

    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        config, scenes = self.config, self.scenes
        vae, size = config.vae, config.model.size
        side = size // vae.stride
        epochs = config.loop.max_steps * config.batch.size / len(scenes.splits["train"])
        protocol = (
            f"{scenes.about}, {size} px; {vae.kind}, width {vae.width}, {vae.channels} x {side} x {side} numbers; "
            f"absolute error alone, up to {epochs:.3g} epochs of {len(scenes.splits['train']):,}, batch "
            f"{config.batch.size}, chosen by validation error"
        )
        rows: list[Result] = []
        measured: tuple[Split, ...] = ("val", "test")
        for split in measured:
            found = self.measure(scenes.splits[split])
            for name, told, unit in (
                ("psnr", "peak signal-to-noise ratio of a scene", "dB"),
                ("mse", "squared error, summed over pixels and colours of [0, 1]", ""),
            ):
                values = found[name].double()
                width = 1.96 * values.std().item() / len(values) ** 0.5 if len(values) > 1 else None
                about = f"mean over {len(values):,} scenes, {told}; {protocol}"
                variant = f"{scenes.about}, {size} px"
                cell = f"vae-{vae.kind}-{vae.width}"
                rows.append(Result(config.table, cell, name, split, values.mean().item(), about, width, unit, variant))
        return rows


# --- the diffusion ---


class SlotDiffusionTask(_Scenes):
    """Slots and U-Net, trained together on the noise in latents; the autoencoder stays as it is."""

    def __init__(self, config: SlotDiffusionConfig, runtime: Runtime) -> None:
        self._begin(config, runtime)
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
        self._library: Library | None = None
        self._watch = Watch(config.model.num_slots)

    @property
    def exported(self) -> Mapping[str, nn.Module]:
        return {"model": self.mean, "vae": self.vae}

    # --- data ---

    @property
    def latents(self) -> Tensor:
        """Of every training scene and its mirror image, float16 ``[N, F, C, h, w]`` on the device; made once."""
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
        size = self.config.batch.evaluation
        with progress_bar(enabled=self.runtime.is_main) as bar:
            shown = bar.add_task("latents", total=len(train), note="")
            for start in range(0, len(train), size):
                images_BCHW = prepare(train.images_NHWC[start : start + size])
                for view in range(to.shape[1]):
                    z_BChw = self.vae.encode(images_BCHW.flip(3) if view else images_BCHW).float()
                    if not z_BChw.isfinite().all() or z_BChw.abs().max() > 6e4:
                        raise UserError(
                            f"the latents of scenes {start} to {start + len(images_BCHW) - 1} are not finite or beyond "
                            "half precision: give another autoencoder, --vae.weights"
                        )
                    to[start : start + len(z_BChw), view] = z_BChw.cpu().numpy()
                bar.advance(shown, len(images_BCHW))

    def _start(self) -> None:
        """Before the first step: the trained autoencoder, and the scale of its latents."""
        read_vae(self.vae, self.config.vae.weights)
        self._latents = self._watched_latents = None
        deviation = self.latents.float().std()
        if not deviation > 0:
            raise UserError("the autoencoder gives all scenes one latent: train it first, see --vae.weights")
        self.model.scale.fill_(1 / deviation)
        self.mean.scale.copy_(self.model.scale)

    def noise(self, count: int, stream: str, step: int, index: int = 0) -> Tensor:
        """Standard normal ``[count, K, S]`` on the device, which slots begin with."""
        model = self.config.model
        draw = self.runtime.generator(stream, step, index)
        return randomness.upload(
            torch.randn(count, model.num_slots, model.slot_size, generator=draw), self.runtime.device
        )

    # --- training ---

    def wanted(self, z0_BChw: Tensor, t_B: Tensor, noise_BChw: Tensor) -> Tensor:
        """What the U-Net is to answer with."""
        velocity = self.config.model.target == "velocity"
        return self.schedule.velocity(z0_BChw, t_B, noise_BChw) if velocity else noise_BChw

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        config, train = self.config, self.scenes.splits["train"]
        if step == 0:
            self._start()
        self.model.train()
        rate = self.set_rates(self.optimizer, step)
        rows, parts = self.batch_rows(step), config.batch.parts
        spread = fading(step, config.optim.noise_steps)

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
            found_BChw, _ = self.shared_model(images_BCHW, z_BChw, t_B, start_BKS, drop_B, spread=spread)
            return {"loss": epsilon_loss(found_BChw, self.wanted(z0_BChw, t_B, noise_BChw))}

        means = self.runtime.descend(
            self.shared_optimizer, noise_error, parts, self.shared_model, clip=config.optim.clip
        )
        if config.optim.ema:
            average_(self.mean, self.model, config.optim.ema, step)
        return means | {"rate": torch.full_like(means["loss"], rate)}

    # --- evaluation ---

    @torch.no_grad()
    def slots(self, images_NHWC: Tensor, noise_NKS: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows, slots ``[B, K, S]`` and attention ``[B, T, K, N]`` of scenes, some at a time."""
        self.mean.eval()
        size, iterations = self.config.batch.evaluation, self.config.model.eval_iterations
        for start in range(0, len(images_NHWC), size):
            rows = slice(start, min(start + size, len(images_NHWC)))
            images_BCHW = prepare(images_NHWC[rows])
            found = self.mean.encoder(images_BCHW, noise_NKS[rows], spread=0.0, iterations=iterations)
            yield rows, found.slots_BKS.float(), found.attention_BTKN

    def masks(self, attention_BTKN: Tensor) -> Tensor:
        """See `attention_masks`."""
        return attention_masks(attention_BTKN, self.mean.encoder.places, self.config.model.size)

    def look(self, scenes: Scenes, stream: str) -> Looked:
        """Slots of scenes and their scores, the work shared by the processes."""
        share, num_slots = self.runtime.share(len(scenes)), self.config.model.num_slots
        masks_NHW, noise_NKS = scenes.masks_NHW[share], self.noise(len(scenes), stream, 0)[share]
        parts: list[Scores] = []
        slots = [noise_NKS[:0]]
        for rows, slots_BKS, attention_BTKN in self.slots(scenes.images_NHWC[share], noise_NKS):
            parts.append(score(segments(self.masks(attention_BTKN)), masks_NHW[rows], None, None, num_slots))
            slots.append(slots_BKS)
        slots_NKS = torch.cat(slots)
        alike = self.runtime.gather(sameness(slots_NKS), len(scenes)).mean().item()
        return Looked(gathered(self.runtime, parts, len(scenes), num_slots), alike, slots_NKS)

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
        for start in range(0, len(slots_NKS), size):
            rows = slice(start, start + size)
            noise_BChw, t_B = (x[rows].to(self.runtime.device) for x in (noise_NChw, t_N))
            z0_BChw = self._watched_latents[rows] * self.mean.scale
            z_BChw = self.schedule.q_sample(z0_BChw, t_B, noise_BChw)
            found_BChw = self.mean.unet(z_BChw, t_B, slots_NKS[rows]).float()
            error_BChw = found_BChw - self.wanted(z0_BChw, t_B, noise_BChw)
            losses.append(error_BChw.square().mean((1, 2, 3)))
        return self.runtime.gather(torch.cat(losses), count).double().mean().item()

    def evaluate(self) -> dict[str, float]:
        found, same, slots_NKS = self.look(self.watched(), "val/slots")
        rows = found.means() | {"loss": self.validation_loss(slots_NKS)}
        rows |= {"dead": float(dead(found.pixels_BK)), "largest": largest(found.pixels_BK)}
        rows |= {"sameness": same, "spread": self.mean.encoder.attention.spread()}
        self._watch.tell(rows, aloud=self.runtime.is_main)
        return {name: value for name, value in rows.items() if value == value}

    # --- pictures of slots ---

    def painter(self, **changes: Any) -> Painter:
        """Draws with the chosen weights; ``changes`` are of the sampler's settings."""
        config: SampleConfig = replace(self.config.sample, **changes)
        self.mean.eval()
        return Painter(self.mean, self.vae, self.schedule, config, self.config.seed)

    def paint(self, slots_NKS: Tensor, stream: str, title: str, **changes: Any) -> Tensor:
        """Bytes ``[N, H, W, 3]`` of slots on the CPU, the work shared by the processes.

        Args:
            slots_NKS: of all pictures.
            stream: of the noise, which is keyed by the picture.
            title: of the progress bar.
            changes: of the sampler's settings.
        """
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

    @property
    def library(self) -> Library:
        """Slots of the training scenes in clusters, made once of the weights as they are."""
        if self._library is None:
            train = _first(self.scenes.splits["train"], self.config.metric.library)
            share, model = self.runtime.share(len(train)), self.config.model
            noise_NKS = self.noise(len(train), "library/slots", 0)[share]
            found = [slots.flatten(1) for _, slots, _ in self.slots(train.images_NHWC[share], noise_NKS)]
            empty = torch.zeros(0, model.num_slots * model.slot_size, device=self.runtime.device)
            together = self.runtime.gather(torch.cat(found) if found else empty, len(train))
            slots_NS = together.float().cpu().reshape(-1, model.slot_size)
            self._library = slot_library.build(slots_NS, model.num_slots, self.config.seed, partial(card, self.mean))
        return self._library

    # --- the end ---

    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        config, scenes = self.config, self.scenes
        # Other weights may have been loaded since.
        self._library = None
        model, num_train = config.model, len(scenes.splits["train"])
        epochs = config.loop.max_steps * config.batch.size / num_train
        protocol = (
            f"{scenes.about}, {model.size} px; U-Net of width {model.width}, K = {model.num_slots}, {model.init} slots "
            f"of {model.slot_size}; up to {epochs:.3g} epochs of {num_train:,}, batch {config.batch.size}, chosen by "
            f"validation loss{f' of {config.metric.watched:,} scenes' if config.metric.watched else ''}"
        )
        variant = f"{scenes.about}, {model.size} px"
        rows: list[Result] = []

        def row(found: Scores, name: str, split: str, told: str) -> None:
            value, count = found.means()[name], int((~found.of_image[name].isnan()).sum())
            if count:
                told = f"mean over {count:,} scenes, {told}; {protocol}"
                rows.append(
                    Result(config.table, model.cell, name, split, value, told, found.half_width(name), "", variant)
                )

        measured: tuple[Split, ...] = ("val", "test")
        for split in measured:
            found = self.look(scenes.splits[split], f"{split}/slots").scores
            for name in found.of_image:
                row(found, name, split, f"attention as masks, {ABOUT[name]}")
            some = _first(scenes.splits[split], config.metric.reconstructed)
            made_NHWC = self.reconstruct(some, split)
            made, real = (x.cpu().permute(0, 3, 1, 2) / 255.0 for x in (made_NHWC, some.images_NHWC))
            told = f"{config.sample.sampler}, {config.sample.steps} steps, summed over pixels and colours of [0, 1]"
            drawn = Scores({"mse": squared_error(made, real).double()}, found.pixels_BK[:0])
            row(drawn, "mse", split, f"from noise and slots by {told}")
        # By all processes together; the pictures are drawn by one.
        assert self.library
        if config.metric.inception != "none":
            samplers = {"": (config.sample.sampler, config.sample.steps)}
            if config.sample.ancestral:
                samplers["_ancestral"] = ("ancestral", config.sample.ancestral)
            rows += self.distances(samplers, protocol, variant)
        return rows

    def reconstruct(self, scenes: Scenes, split: str) -> Tensor:
        """Scenes again from noise and their slots: bytes ``[N, H, W, 3]``."""
        noise_NKS = self.noise(len(scenes), f"{split}/slots", 0)
        slots_NKS = torch.cat([slots for _, slots, _ in self.slots(scenes.images_NHWC, noise_NKS)])
        return self.paint(slots_NKS, f"{split}/paint", f"{split} scenes from slots")

    def compose(self, count: int, stream: str, **changes: Any) -> Tensor:
        """New pictures of the library's slots: bytes ``[count, H, W, 3]``."""
        slots_NKS = self.library.draw(count, self.runtime.generator(stream, 0))
        return self.paint(slots_NKS, f"{stream}/paint", "compositions", **changes)

    def distances(self, samplers: Mapping[str, tuple[str, int]], protocol: str, variant: str) -> list[Result]:
        """FID and KID of compositions by some samplers, the same slots for each, with the time of each.

        Args:
            samplers: a sampler and its steps by what their numbers' names end with.
            protocol: of the run.
            variant: likewise.
        """
        config = self.config
        real_NHWC = _first(self.scenes.splits["val"], config.metric.composed).images_NHWC.cpu()
        count = len(real_NHWC)
        network = fid.Inception(fid.weights_of(config.metric.inception), self.runtime.device)
        real_NF = network.cached_features(real_NHWC)
        table, cell = config.table, config.model.cell
        rows: list[Result] = []
        for ending, (sampler, steps) in samplers.items():
            started = time.perf_counter()
            composed_NHWC = self.compose(count, "val/compose", sampler=sampler, steps=steps)
            seconds = time.perf_counter() - started
            mine = network.features(composed_NHWC[self.runtime.share(count)], title="features of compositions")
            made_NF = self.runtime.gather(torch.from_numpy(mine).to(self.runtime.device), count).cpu().numpy()
            found = fid.score(real_NF, made_NF, self.runtime.generator("val/kid", 0))
            about = (
                f"clean-fid, {count:,} compositions of one slot a cluster (K-means over "
                f"{len(self.library.slots_NS):,} training slots) by {sampler} in {steps} steps against {count:,} "
                f"validation scenes; {protocol}"
            )
            timed = f"to draw them, on {self.runtime.device.type}; {about}"
            rows += [
                Result(table, cell, f"{name}{ending}", "val", value, told, width, unit, variant)
                for name, value, told, width, unit in (
                    ("fid", found.fid, about, found.half_width, ""),
                    ("kid", 1000 * found.kid, f"times 1,000; {about}", None, ""),
                    ("seconds", seconds, timed, None, "s"),
                )
            ]
        return rows
