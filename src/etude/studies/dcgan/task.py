"""DCGAN: the training step, what is watched, what is measured.

Shape suffixes as in model.py.
"""

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from etude.core import randomness
from etude.core.runtime import Runtime
from etude.core.study import Result, Task
from etude.data import mnist
from etude.data.epochs import Epochs, refuse_larger_batch
from etude.metrics import diversity, fid
from etude.metrics.proportion import half_width
from etude.nn.adversarial import Adversaries, discriminator_loss, generator_loss, r1_penalty
from etude.nn.mean_weights import average_
from etude.studies.dcgan.classifier import classify
from etude.studies.dcgan.model import Discriminator, Generator
from etude.studies.dcgan.study import DCGANConfig, ModelConfig

NUM_CLASSES = 10
SNAPSHOT = 80
"""Pictures of a snapshot: eight rows of ten."""
REMEDIES = "try --optim.r1 0.2, --model.norm spectral or another seed"

_log = logging.getLogger("etude")


def build_generator(config: ModelConfig) -> Generator:
    """The generator of a configuration."""
    classes = NUM_CLASSES if config.conditional else 0
    return Generator(config.noise, config.size, width=config.width, num_classes=classes)


def build_discriminator(config: ModelConfig) -> Discriminator:
    """The discriminator of a configuration."""
    classes = NUM_CLASSES if config.conditional else 0
    return Discriminator(config.size, width=config.width, num_classes=classes, norm=config.norm)


def scaled(images_NHW: Tensor) -> Tensor:
    """Map bytes ``[N, H, W]`` to pictures ``[N, 1, H, W]`` in [-1, 1]."""
    return images_NHW[:, None].float() / 127.5 - 1


def to_bytes(images_NCHW: Tensor) -> Tensor:
    """Pictures in [-1, 1] as bytes of the same shape."""
    return ((images_NCHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class DCGANTask(Task):
    """Two networks against each other (Goodfellow et al. 2014, algorithm 1, one step of each)."""

    def __init__(self, config: DCGANConfig, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        randomness.seed_globals(config.seed, "init", 0)
        self.generator, self.discriminator = build_generator(config.model), build_discriminator(config.model)
        optim = config.optim
        self.adversaries = Adversaries(runtime, self.generator, self.discriminator, lr=optim.lr, beta1=optim.beta1)
        self.optimizers = self.adversaries.optimizers
        self.modules = dict(self.adversaries.networks)
        self.mean_generator = self.generator
        if optim.ema:
            self.mean_generator = copy.deepcopy(self.generator).requires_grad_(False)
            self.modules["mean_generator"] = self.mean_generator
        self._splits: dict[mnist.Split, tuple[Tensor, Tensor]] = {}
        self._epochs = Epochs(runtime)
        self.snapshots: dict[int, Tensor] = {}
        """Bytes ``[80, H, W]`` drawn of the same noise after some steps; see `snapshot_steps`."""

    def split(self, name: mnist.Split) -> tuple[Tensor, Tensor]:
        """Bytes ``[N, H, W]`` in the networks' size, and digits ``[N]``; read once, on the device."""
        if name not in self._splits:
            read = mnist.sample(name) if self.config.data.source == "sample" else mnist.load(name)
            images, labels = mnist.to_size(read[0], self.config.model.size), read[1]
            if name == "train":
                refuse_larger_batch(self.config.batch.size, len(images), "pictures")
            if self.config.metric.inception != "none":
                # Before the training, not after it.
                fid.weights_of(self.config.metric.inception)
            self._splits[name] = images.to(self.runtime.device), labels.to(self.runtime.device)
        return self._splits[name]

    @property
    def epoch_steps(self) -> int:
        return len(self.split("train")[0]) // self.config.batch.size

    def batch_rows(self, step: int) -> Tensor:
        """The training pictures that a step takes: each epoch has an order of its own, and leaves a rest."""
        return self._epochs.rows(step, len(self.split("train")[0]), self.config.batch.size)

    def noise(self, count: int, stream: str, step: int, index: int = 0) -> Tensor:
        """Standard normal ``[count, Z]`` on the device."""
        draw = self.runtime.generator(stream, step, index)
        return randomness.upload(torch.randn(count, self.config.model.noise, generator=draw), self.runtime.device)

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        config, optim, parts = self.config, self.config.optim, self.config.batch.parts
        images_NHW, digits_N = self.split("train")
        rows = self.batch_rows(step)

        def labels(part: int) -> Tensor | None:
            return digits_N[rows[part::parts]] if config.model.conditional else None

        def fakes(part: int, generator: nn.Module) -> Tensor:
            return generator(self.noise(len(rows[part::parts]), "train/noise", step, part), labels(part))

        def judge(part: int, fake: Tensor) -> dict[str, Tensor]:
            real = scaled(images_NHW[rows[part::parts]]).contiguous(memory_format=torch.channels_last)
            real.requires_grad_(optim.r1 > 0)
            discriminator = self.adversaries.shared["discriminator"]
            on_real, on_fake = discriminator(real, labels(part)), discriminator(fake.detach(), labels(part))
            loss = discriminator_loss(optim.loss, on_real, on_fake, optim.smoothing)
            penalty = r1_penalty(on_real, real) * optim.r1 / 2 if optim.r1 else torch.zeros_like(loss)
            logits = {"logit_real": on_real.float().mean(), "logit_fake": on_fake.float().mean()}
            return {"loss": loss + penalty, "discriminator": loss} | logits

        def deceive(part: int, fake: Tensor) -> dict[str, Tensor]:
            loss = generator_loss(optim.loss, self.discriminator(fake, labels(part)))
            return {"loss": loss, "generator": loss}

        means = self.adversaries.step(parts, fakes, judge, deceive)
        logged = self.adversaries.end(means | {"loss": means["discriminator"] + means["generator"]})
        if optim.ema:
            average_(self.mean_generator, self.generator, optim.ema, step)
        if step + 1 in self.snapshot_steps():
            self.snapshots[step + 1] = self.draw(self.fixed_noise(), self.fixed_digits())[:, 0].cpu()
        return logged

    def snapshot_steps(self) -> tuple[int, ...]:
        """The ends of the first, the middle and the last epoch, as far as there are such."""
        steps, epoch = self.num_steps, self.epoch_steps
        middle = steps // epoch // 2 * epoch or steps // 2
        return tuple(sorted({min(epoch, steps), max(middle, 1), steps}))

    def fixed_noise(self) -> Tensor:
        """The noise ``[80, Z]`` of every snapshot."""
        return self.noise(SNAPSHOT, "snapshot/noise", 0)

    def fixed_digits(self) -> Tensor | None:
        """Digits of a conditional network's snapshot, one a column; None: it knows no digits."""
        if not self.config.model.conditional:
            return None
        return torch.arange(SNAPSHOT, device=self.runtime.device) % NUM_CLASSES

    @torch.no_grad()
    def draw(self, noise_NZ: Tensor, digits_N: Tensor | None = None) -> Tensor:
        """Pictures of the generator, or of its mean where there is one, in evaluation mode.

        Returns:
            bytes ``[N, 1, H, W]`` on the device.
        """
        network, size = self.mean_generator, self.config.batch.evaluation
        was_training = network.training
        network.eval()
        digits = digits_N.split(size) if digits_N is not None else [None] * -(-len(noise_NZ) // size)
        parts = [to_bytes(network(z, d)) for z, d in zip(noise_NZ.split(size), digits, strict=True)]
        network.train(was_training)
        return torch.cat(parts)

    def extra_state(self) -> dict[str, Any]:
        return {"snapshots": dict(self.snapshots), "steps": self.adversaries.state()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.snapshots = dict(state["snapshots"])
        self.adversaries.load_state(state["steps"])

    def samples(self, count: int, stream: str, split: mnist.Split) -> tuple[Tensor, Tensor]:
        """Drawn bytes ``[N, H, W]``, and the digits asked for ``[N]``: a split's own, over and over.

        A network that is not told the digit draws what it will. Several processes draw a share each.
        """
        mine = self.runtime.share(count)
        noise_NZ = self.noise(count, stream, 0)[mine]
        labels = self.split(split)[1]
        digits_N = labels.repeat(-(-count // len(labels)))[:count]
        drawn_NHW = self.draw(noise_NZ, digits_N[mine] if self.config.model.conditional else None)[:, 0]
        return self.runtime.gather(drawn_NHW, count), digits_N

    def evaluate(self) -> dict[str, float]:
        """Measure how varied the drawn digits are, and how many are those asked for. Nothing is chosen by it."""
        images_NHW, digits_N = self.samples(self.config.metric.watched, "val/noise", "train")
        found = self.variety(images_NHW, digits_N, "train")
        metrics = {"diversity": found.ratio, "duplicates": 100 * found.duplicates, "collapsed": float(found.collapsed)}
        if self.config.model.conditional:
            metrics["label_accuracy"] = 100 * (classify(images_NHW) == digits_N.cpu()).double().mean().item()
        if found.collapsed and self.runtime.is_main:
            _log.warning("the generator has collapsed, or knows little yet: %s; %s", ", ".join(found.faults), REMEDIES)
        return metrics

    def variety(self, images_NHW: Tensor, digits_N: Tensor, split: mnist.Split) -> diversity.Diversity:
        """The variety of drawn pictures beside as many real ones of a split; within the digits too where known."""
        images, labels = self.split(split)
        count = min(len(images_NHW), len(images))
        drawn_N1HW, real_N1HW = images_NHW[:count, None], images[:count, None]
        if not self.config.model.conditional:
            return diversity.measure(drawn_N1HW, real_N1HW)
        return diversity.measure(drawn_N1HW, real_N1HW, digits_N[:count], labels[:count])

    def finish(self) -> dict[str, Any]:
        return {"skipped": self.adversaries.skipped}

    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        config = self.config
        real_NHW, _ = self.split("test")
        images_NHW, digits_N = self.samples(config.metric.samples, "test/noise", "test")
        num_train = len(self.split("train")[0])
        epochs = self.num_steps / self.epoch_steps
        net = "told the test split's digits" if config.model.conditional else "unconditional"
        drawn = f"{len(images_NHW):,} drawn digits"
        protocol = (
            f"{drawn} of {config.model.size} px; {net}, {config.model.width} filters, noise of {config.model.noise}; "
            f"{epochs:.3g} epochs of {num_train:,}, batch {config.batch.size}"
            f"{f', mean weights (decay {config.optim.ema:g})' if config.optim.ema else ''}, last weights"
        )
        data = "MNIST" if config.data.source == "mnist" else "300 digits of MNIST"
        variant = f"{data}, {config.model.size} px"

        def row(metric: str, value: float, about: str, half: float | None = None, unit: str = "") -> Result:
            return Result(config.table, self.cell(), metric, "test", value, f"{about}; {protocol}", half, unit, variant)

        watched = min(config.metric.watched, len(images_NHW), len(real_NHW))
        found = self.variety(images_NHW[:watched], digits_N[:watched], "test")
        about = f"{watched:,} against as many test digits"
        about += f"; COLLAPSED: {', '.join(found.faults)}" if found.collapsed else ""
        rows = [row("diversity", found.ratio, about), row("duplicates", 100 * found.duplicates, about, unit="%")]
        if config.metric.inception != "none":
            found = fid.measure(
                config.metric.inception, real_NHW, images_NHW, self.runtime, "test/kid", "features of drawn digits"
            )
            about = f"clean-fid, against all {found.num_real:,} test digits"
            rows.append(row("fid", found.fid, about, found.half_width))
            rows.append(row("kid", 1000 * found.kid, f"{about}; times 1,000"))
        if config.model.conditional:
            wanted_N = digits_N.cpu()
            right_N = 100 * (classify(images_NHW) == wanted_N).double()
            parts = {"label_accuracy": right_N}
            parts |= {f"label_accuracy_{digit}": right_N[wanted_N == digit] for digit in range(NUM_CLASSES)}
            about = "taken for the digit asked for, by the classifier that comes with etude"
            for name, part_N in parts.items():
                share = part_N.mean().item()
                rows.append(row(name, share, about, half_width(share, len(part_N)), "%"))
        return rows

    def cell(self) -> str:
        """The place in a table that the run belongs to."""
        config, optim = self.config, self.config.optim
        if config.table == "options":
            remedies = {"spectral": config.model.norm == "spectral"}
            remedies |= {"ema": optim.ema > 0, "r1": optim.r1 > 0, "smoothing": optim.smoothing > 0}
            return "+".join(name for name, used in remedies.items() if used) or "plain"
        if config.table == "sizes":
            return f"{config.model.size}px-z{config.model.noise}"
        return "conditional" if config.model.conditional else "dcgan-ema" if optim.ema else "dcgan"

    @property
    def exported(self) -> dict[str, nn.Module]:
        """The network that draws, which `etude export` writes."""
        return {"generator": self.mean_generator}

    def data_checksums(self) -> dict[str, str]:
        if self.config.data.source == "sample":
            return {"mnist": "300 digits that come with etude"}
        return {f"mnist/{name}": digest for name, digest in mnist.checksums().items()}


make_task = DCGANTask
