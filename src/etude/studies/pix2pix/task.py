"""pix2pix: the training step, what is watched, what is measured.

Shape suffixes as in model.py; the axis of 2 is A and B.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from etude.core import randomness
from etude.core.runtime import Runtime
from etude.core.study import Result, Task
from etude.data import pairs
from etude.data.epochs import Epochs, refuse_larger_batch
from etude.data.pairs import PairSet, Split
from etude.metrics import diversity, fid
from etude.metrics import pairs as measures
from etude.nn.adversarial import Adversaries, discriminator_loss, generator_loss
from etude.nn.pixels import prepare, to_bytes
from etude.studies.pix2pix.model import Discriminator, Generator, crop_and_mirror
from etude.studies.pix2pix.study import DataConfig, ModelConfig, Pix2PixConfig

_log = logging.getLogger("etude.pix2pix")
_WATCH = 0.99
"""Decay of the watched mean of the discriminator's loss."""
WINS = 0.05
"""Below this mean loss the discriminator wins outright; guessing has 0.69, or 0.25 with lsgan."""
WINS_STEPS = 500
"""Steps in a row after which that is said."""
_ON_DEVICE = 4 << 30
"""The bytes of a split up to which it is kept on the device; a larger one stays on disk and is read by batch."""
# What a run's translation is called, by source and direction.
_CELLS = {
    ("maps", "AtoB"): "aerial2map", ("maps", "BtoA"): "map2aerial",
    ("facades", "AtoB"): "photo2labels", ("facades", "BtoA"): "labels2photo",
    ("edges2shoes", "AtoB"): "edges2shoes", ("edges2shoes", "BtoA"): "shoes2edges",
    ("day2night", "AtoB"): "day2night", ("day2night", "BtoA"): "night2day",
    ("grey", "AtoB"): "grey2colour", ("grey", "BtoA"): "colour2grey",
    ("generated", "AtoB"): "aerial2map", ("generated", "BtoA"): "map2aerial",
    ("folder", "AtoB"): "folder", ("folder", "BtoA"): "folder-back",
}  # fmt: skip


def build_generator(config: ModelConfig) -> Generator:
    """The generator of a configuration."""
    return Generator(
        config.size, width=config.width, widest=config.widest, dropout=config.dropout, test_norm=config.test_norm
    )


def build_discriminator(config: ModelConfig) -> Discriminator:
    """The discriminator of a configuration."""
    return Discriminator(config.patch, width=config.discriminator_width)


def load_pairs(data: DataConfig, size: int, jitter: int) -> PairSet:
    """The pairs that a configuration names; `UserError` where they cannot be had."""
    larger = size + jitter
    if data.source.endswith("-subset"):
        return pairs.subset(data.source.removesuffix("-subset"), larger, size)
    shares: Any = {"val_share": data.val_share, "test_share": data.test_share, "seed": data.split_seed}
    if data.source == "folder":
        return pairs.folder(data.folder, data.folder_b, larger, size, **shares)
    if data.source == "grey":
        return pairs.grey(data.folder, larger, size, **shares)
    if data.source == "generated":
        few = max(1, data.pairs // 4)
        return pairs.generated(larger, size, {"train": data.pairs, "val": few, "test": few})
    return pairs.archive(data.source, larger, size)  # pyright: ignore[reportArgumentType]


def _variety(made_NHWC: Tensor, truth_NHWC: Tensor) -> diversity.Diversity:
    return diversity.measure(made_NHWC.permute(0, 3, 1, 2), truth_NHWC.permute(0, 3, 1, 2))


class Pix2PixTask(Task):
    """A generator and a discriminator that both see the input (Isola et al. 2017, equations 1 to 4)."""

    def __init__(self, config: Pix2PixConfig, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        randomness.seed_globals(config.seed, "init", 0)
        self.generator, self.discriminator = build_generator(config.model), build_discriminator(config.model)
        optim = config.optim
        self.adversaries = Adversaries(runtime, self.generator, self.discriminator, lr=optim.lr, beta1=optim.beta1)
        self.modules, self.optimizers = self.adversaries.networks, self.adversaries.optimizers
        chosen = config.metric.choose
        self.monitor = None if chosen == "last" else (chosen, "min" if chosen == "l1" else "max")
        # The discriminator's watched mean loss, and the steps in a row that it won outright.
        self.watched = torch.tensor([math.log(2) if optim.loss == "vanilla" else 0.25, 0.0], device=runtime.device)
        self._set: PairSet | None = None
        self._on_device: dict[Split, Tensor] = {}
        self._epochs = Epochs(runtime, "cpu")

    @property
    def exported(self) -> Mapping[str, nn.Module]:
        # Prediction needs no discriminator.
        return {"generator": self.generator}

    # --- the pairs ---

    @property
    def pairs(self) -> PairSet:
        """The data set, read once."""
        if self._set is None:
            config = self.config
            read = load_pairs(config.data, config.model.size, config.augment.jitter)
            refuse_larger_batch(config.batch.size, len(read.splits["train"]), "pairs")
            if config.metric.inception != "none":
                # Before the training, not after it.
                fid.weights_of(config.metric.inception)
            self._set = read
        return self._set

    def take(self, split: Split, rows: Tensor | slice) -> Tensor:
        """Some pairs of a split in its order, uint8 ``[N, 2, H, W, 3]`` on the device, input first."""
        if split not in self._on_device:
            held = self.pairs.splits[split].pairs_N2HWC
            self._on_device[split] = held.to(self.runtime.device) if held.nbytes <= _ON_DEVICE else held
        held = self._on_device[split]
        mine = held[rows if isinstance(rows, slice) else randomness.upload(rows, held.device)]
        taken = randomness.upload(mine, self.runtime.device)
        return taken.flip(1) if self.config.data.direction == "BtoA" else taken

    @property
    def epoch_steps(self) -> int:
        return len(self.pairs.splits["train"]) // self.config.batch.size

    def batch_rows(self, step: int) -> Tensor:
        """The training pairs that a step takes: every epoch in an order of its own, a rest that fills no batch left."""
        return self._epochs.rows(step, len(self.pairs.splits["train"]), self.config.batch.size)

    # --- training ---

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        config, optim, parts, device = self.config, self.config.optim, self.config.batch.parts, self.runtime.device
        rows = self.batch_rows(step)
        for adam in self.optimizers.values():
            for group in adam.param_groups:
                group["lr"] = optim.rate(step, self.num_steps)

        def fakes(part: int, generator: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
            draw = self.runtime.generator("train/augment", step, part)
            taken = self.take("train", rows[part::parts])
            cut = crop_and_mirror(taken, config.model.size, draw, mirror=config.augment.mirror)
            given, truth = prepare(cut[:, 0]), prepare(cut[:, 1])
            draw = self.runtime.generator("train/noise", step, part)
            noise = self.generator.noise(len(given), draw) if config.model.dropout else []
            return given, truth, generator(given, [randomness.upload(mask, device) for mask in noise])

        def judge(part: int, made: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
            given, truth, fake = made
            on_real, on_fake = self.adversaries.shared["discriminator"](given, truth, fake.detach()).chunk(2)
            # Halved, so that it learns more slowly than the generator (appendix 6.2).
            loss = discriminator_loss(optim.loss, on_real, on_fake) / 2
            logits = {"logit_real": on_real.float().mean(), "logit_fake": on_fake.float().mean()}
            return {"loss": loss, "discriminator": loss} | logits

        def deceive(part: int, made: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
            given, truth, fake = made
            distance = functional.l1_loss(fake.float(), truth)
            if not optim.gan:
                return {"loss": optim.l1 * distance, "l1": distance}
            adversarial = generator_loss(optim.loss, self.discriminator(given, fake))
            return {"loss": optim.gan * adversarial + optim.l1 * distance, "l1": distance, "generator": adversarial}

        means = self.adversaries.step(parts, fakes, judge if optim.gan else None, deceive)
        if not optim.gan:
            return self.adversaries.end(means)
        both = means["discriminator"] + means["generator"]
        logged = self.adversaries.end(means | {"loss": optim.gan * both + optim.l1 * means["l1"]})
        self._watch(self.runtime.sum(logged["discriminator"]) / self.runtime.world)
        return logged

    def _watch(self, loss: Tensor) -> None:
        mean = self.watched[0].lerp(loss, 1 - _WATCH)
        watched = torch.stack([mean, torch.where(mean < WINS, self.watched[1] + 1, 0.0)])
        # A step that was left out has no loss to watch.
        self.watched = torch.where(self.adversaries.left_out, self.watched, watched)

    def extra_state(self) -> dict[str, Any]:
        return {"steps": self.adversaries.state(), "watched": self.watched.cpu()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.adversaries.load_state(state["steps"])
        self.watched = state["watched"].to(self.runtime.device)

    # --- evaluation ---

    @torch.no_grad()
    def translate(self, split: Split) -> Tensor:
        """Translate a split's inputs, dropout on, the work shared by the processes.

        Returns:
            uint8 ``[N, H, W, 3]`` on the CPU; the same for the same weights, whatever the batches.
        """
        self.generator.eval()
        count, size = len(self.pairs.splits[split]), self.config.batch.evaluation
        mine = range(count)[self.runtime.share(count)]
        made: list[Tensor] = []
        for start in range(mine.start, mine.stop, size):
            rows = range(start, min(start + size, mine.stop))
            given = prepare(self.take(split, slice(rows.start, rows.stop))[:, 0])
            made.append(to_bytes(self.generator(given, self._noise(f"{split}/noise", rows))))
        side = self.config.model.size
        empty = torch.zeros(0, side, side, 3, dtype=torch.uint8, device=self.runtime.device)
        return self.runtime.gather(torch.cat([empty, *made]), count).cpu()

    def _noise(self, stream: str, rows: Sequence[int]) -> list[Tensor]:
        if not self.config.model.dropout:
            return []
        each = [self.generator.noise(1, self.runtime.generator(stream, 0, row)) for row in rows]
        return [torch.cat(masks).to(self.runtime.device) for masks in zip(*each, strict=True)]

    def truth(self, split: Split) -> Tensor:
        """The true outputs of a split, uint8 ``[N, H, W, 3]`` on the CPU."""
        held = self.pairs.splits[split].pairs_N2HWC
        return held[:, 0 if self.config.data.direction == "BtoA" else 1]

    @property
    def makes_maps(self) -> bool:
        """True where the outputs are maps, which have few colours."""
        return self.config.data.direction == "AtoB" and self.config.data.source in ("maps", "maps-subset", "generated")

    def scores(self, made_NHWC: Tensor, truth_NHWC: Tensor) -> dict[str, Tensor]:
        """Each metric of each picture, float64 ``[N]``."""
        metrics: dict[str, Any] = {"l1": measures.l1, "psnr": measures.psnr, "ssim": measures.ssim}
        if self.makes_maps:
            metrics["rmse"] = measures.rmse
            metrics |= {f"accuracy_{t}": partial(measures.pixel_accuracy, tolerance=t) for t in measures.TOLERANCES}
        parts = list(zip(made_NHWC.split(64), truth_NHWC.split(64), strict=True))
        return {name: torch.cat([measure(*part) for part in parts]) for name, measure in metrics.items()}

    def evaluate(self) -> dict[str, float]:
        made, truth = self.translate("val"), self.truth("val")
        rows = {name: values.mean().item() for name, values in self.scores(made, truth).items()}
        if len(made) >= 2:
            varied = _variety(made, truth)
            rows["diversity"] = varied.ratio
            if varied.collapsed and self.runtime.is_main:
                _log.warning("the generator has collapsed, or knows little yet: %s", ", ".join(varied.faults))
        if self.config.optim.gan:
            mean, wins = self.watched.tolist()
            rows |= {"watch/discriminator": mean, "watch/steps_won": wins}
            if wins >= WINS_STEPS and self.runtime.is_main:
                _log.warning("%s", self._won())
        if self.adversaries.skipped and self.runtime.is_main:
            _log.warning("%d update(s) left out so far for gradients that were not finite", self.adversaries.skipped)
        return rows

    def _won(self) -> str:
        mean, wins = self.watched.tolist()
        return (
            f"the discriminator has won outright for {wins:.0f} steps (mean loss {mean:.3f}) and teaches little: "
            "a lower --model.discriminator-width or --optim.loss lsgan may help"
        )

    def finish(self) -> dict[str, Any]:
        config, skipped = self.config, self.adversaries.skipped
        notes = [self._won()] if config.optim.gan and self.watched[1] >= WINS_STEPS else []
        if skipped:
            notes.append(f"{skipped} update(s) were left out for gradients that were not finite")
        # How much smaller training saw its pictures than they are: `predict` shrinks a user's likewise.
        scale = config.model.size / self.pairs.side
        return {
            "pairs": self.pairs.about, "direction": config.data.direction, "scale": scale, "skipped": skipped,
            "notes": notes,
        }  # fmt: skip

    def cell(self) -> str:
        """The place in the table that the run belongs to."""
        optim = self.config.optim
        if self.config.table == "losses":
            return "l1-gan" if optim.gan and optim.l1 else "gan" if optim.gan else "l1"
        return _CELLS[self.config.data.source.removesuffix("-subset"), self.config.data.direction]

    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        config = self.config
        epochs = self.num_steps * config.batch.size / len(self.pairs.splits["train"])
        kept = "last checkpoint" if self.monitor is None else f"chosen by validation {self.monitor[0]}"
        protocol = (
            f"{self.pairs.about}, {config.data.direction}, {config.model.size} px, {config.model.width} filters, "
            f"L1 x {config.optim.l1:g} + GAN x {config.optim.gan:g} ({config.optim.loss}), batch {config.batch.size}, "
            f"{epochs:.0f} epochs, {kept}"
        )
        rows: list[Result] = []
        units = {"l1": "of 255", "rmse": "of 255", "psnr": "dB"} | {f"accuracy_{t}": "%" for t in measures.TOLERANCES}
        for split in ("val", "test"):
            made, truth = self.translate(split), self.truth(split)
            count, found = len(made), list[tuple[str, float, float | None, str]]()
            for metric, values in self.scores(made, truth).items():
                # Student's t: there may be six pictures.
                t = float(stats.t.ppf(0.975, count - 1))
                half = t * values.std().item() / math.sqrt(count) if count > 1 else None
                found.append((metric, values.mean().item(), half, ""))
            if count >= 2:
                varied = _variety(made, truth)
                note = f"; COLLAPSED: {', '.join(varied.faults)}" if varied.collapsed else ""
                found.append(("diversity", varied.ratio, None, note))
            # An interval needs four.
            if split == "test" and config.metric.inception != "none" and count >= 4:
                weights = config.metric.inception
                distance = fid.measure(weights, truth, made, self.runtime, "test/kid", "features of outputs")
                found += [("fid", distance.fid, distance.half_width, ""), ("kid", 1000 * distance.kid, None, "")]
            for metric, value, half, note in found:
                told, unit = f"{protocol}; {count:,} pictures{note}", units.get(metric, "")
                source = config.data.source
                rows.append(Result(config.table, self.cell(), metric, split, value, told, half, unit, source))
        return rows

    def data_checksums(self) -> dict[str, str]:
        return dict(self.pairs.checksums)

    def inventory(self) -> Mapping[str, Any]:
        return self.pairs.inventory


make_task = Pix2PixTask
