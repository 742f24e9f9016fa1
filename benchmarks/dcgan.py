"""DCGAN's training step: etude beside the form that PyTorch's examples have.

    uv run --extra bench python benchmarks/dcgan.py
    uv run --extra bench python benchmarks/dcgan.py --preset laptop

The same networks, losses and optimiser settings on the same digits. The examples' form: a DataLoader over pictures with
torchvision's transforms, the default memory layout, three backward passes of which the last one also computes the
discriminator's gradients, plain Adam. Needs MNIST (`etude data get mnist`) and torchvision (extra `bench`).
"""

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import side_by_side
from etude.core.config import LoopConfig
from etude.core.runtime import Runtime
from etude.data import mnist
from etude.studies.dcgan import study
from etude.studies.dcgan.study import DCGANConfig, smoke
from etude.studies.dcgan.task import DCGANTask, build_discriminator, build_generator
from side_by_side import ETUDE, Bar, Block, Side, interleave, lead, median_rate, timed

try:
    from torchvision import transforms
except ImportError:
    sys.exit("benchmarks/dcgan.py: torchvision is missing: `uv sync --extra bench`")

USUAL = "PyTorch examples' form"
COMPILED = f"{ETUDE} --loop.compile"
BAR = 1.3
# Largest difference of a loss of the first step, both sides from the same weights, digits and noise.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Options:
    preset: Literal["course", "laptop"] = "course"
    """Whose networks: course, 64 filters; laptop, 32. Without the mean of the weights, which the examples lack."""
    json: Path | None = None
    """Where to write every measurement."""
    quick: bool = False
    """Seconds, on digits that come with etude: shows that all sides run and agree; its speeds mean nothing."""
    compile: bool = True
    """Also measure etude compiled; wants a C++ compiler."""
    threads: int = torch.get_num_threads()
    """Threads of all sides."""
    repeats: int | None = None
    """Blocks of each side; 5, or 1 when quick."""


class Digits(Dataset[Tensor]):
    """MNIST as torchvision has it: a picture at a time, through transforms."""

    def __init__(self, images_NHW: Tensor, size: int) -> None:
        self.images = images_NHW.numpy()
        border = (size - self.images.shape[1]) // 2
        self.transform = transforms.Compose(
            [transforms.Pad(border), transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Tensor:
        return self.transform(Image.fromarray(self.images[row]))


class Usual:
    """The examples' networks, optimisers and step."""

    def __init__(self, config: DCGANConfig, task: DCGANTask) -> None:
        self.noise = config.model.noise
        self.generator, self.discriminator = build_generator(config.model), build_discriminator(config.model)
        self.generator.load_state_dict(task.generator.state_dict())
        self.discriminator.load_state_dict(task.discriminator.state_dict())
        self.criterion = nn.BCEWithLogitsLoss()
        betas = (config.optim.beta1, 0.999)
        self.of_generator = torch.optim.Adam(self.generator.parameters(), lr=config.optim.lr, betas=betas)
        self.of_discriminator = torch.optim.Adam(self.discriminator.parameters(), lr=config.optim.lr, betas=betas)

    def step(self, real_NCHW: Tensor, noise_NZ: Tensor) -> tuple[float, float]:
        """Both losses of one batch."""
        ones, zeros = torch.ones(len(real_NCHW)), torch.zeros(len(real_NCHW))
        self.of_discriminator.zero_grad()
        on_real = self.criterion(self.discriminator(real_NCHW), ones)
        on_real.backward()
        fake_NCHW = self.generator(noise_NZ)
        on_fake = self.criterion(self.discriminator(fake_NCHW.detach()), zeros)
        on_fake.backward()
        self.of_discriminator.step()
        self.of_generator.zero_grad()
        loss = self.criterion(self.discriminator(fake_NCHW), ones)
        loss.backward()
        self.of_generator.step()
        return on_real.item() + on_fake.item(), loss.item()


def usual_side(config: DCGANConfig, task: DCGANTask, images_NHW: Tensor, count: int, workers: int) -> Side[Block]:
    """The examples' loop around a DataLoader."""
    usual = Usual(config, task)
    loader = DataLoader(
        Digits(images_NHW, config.model.size), config.batch.size, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip

    def run(repeat: int) -> Block:
        done, start = 0, time.perf_counter()
        while done < count:
            # Whole epochs, so that what workers have fetched ahead is used.
            for real_NCHW in loader:
                usual.step(real_NCHW, torch.randn(len(real_NCHW), usual.noise))
                done += 1
        return Block(done * config.batch.size, time.perf_counter() - start)

    return run


def difference(config: DCGANConfig) -> float:
    """The largest difference between both forms' losses of a first step on the same digits and noise."""
    task = DCGANTask(config, Runtime(config.loop, config.seed))
    usual = Usual(config, task)
    images_NHW = task.split("train")[0][task.batch_rows(0)]
    digits = Digits(images_NHW, config.model.size)
    real_NCHW = torch.stack([digits[row] for row in range(len(digits))])
    theirs = usual.step(real_NCHW, task.noise(len(real_NCHW), "train/noise", 0))
    ours = task.train_step(0)
    return max(abs(float(ours[name]) - loss) for name, loss in zip(("discriminator", "generator"), theirs, strict=True))


def main(options: Options) -> int:
    """Measure, print, and return 1 if the two forms' losses are not the same."""
    repeats, console, about = side_by_side.begun(options, "torchvision")
    loop = LoopConfig(max_steps=10**9, device="cpu")
    config = replace(smoke() if options.quick else getattr(study, options.preset)(), loop=loop)
    config = replace(config, model=replace(config.model, conditional=False), optim=replace(config.optim, ema=0.0))
    task = DCGANTask(config, Runtime(loop, config.seed))
    images_NHW = task.split("train")[0]
    # An epoch of the peer is a block; of ours as many steps.
    digits_NHW = mnist.sample("train")[0] if options.quick else mnist.load("train")[0][:6400]
    steps = len(digits_NHW) // config.batch.size
    console.print(
        f"{len(images_NHW):,} digits of {config.model.size} px, {config.model.width} filters, noise of "
        f"{config.model.noise}, batch {config.batch.size}; {side_by_side.machine(about)}, torchvision "
        f"{about['torchvision']}, etude at {about['commit']}; interleaved repeats: {repeats}"
    )
    apart = difference(config)
    workers = os.cpu_count() or 1

    def etude(compiled: bool) -> Side[Block]:
        changed = replace(config, loop=replace(loop, compile=compiled))
        mine = DCGANTask(changed, Runtime(changed.loop, changed.seed))
        # Read before the clock starts.
        mine.split("train")
        return timed(lambda step: mine.train_step(step)["loss"].item(), steps * config.batch.size, calls=steps)

    sides: dict[str, Side[Block]] = {
        ETUDE: etude(compiled=False),
        f"{USUAL}, no worker": usual_side(config, task, digits_NHW, steps, 0),
    }
    if not options.quick:
        sides[f"{USUAL}, {workers} workers"] = usual_side(config, task, digits_NHW, steps, workers)
    if options.compile and not options.quick:
        sides[COMPILED] = etude(compiled=True)
    blocks = interleave(sides, repeats, warm_up=not options.quick)
    ours = [name for name in (ETUDE, COMPILED) if name in blocks]
    console.print(side_by_side.speed_table("Training: both networks, one step each", "images", blocks, ours))
    peer = max((row for name, row in blocks.items() if name not in ours), key=median_rate)
    best = max(ours, key=lambda name: median_rate(blocks[name]))
    bars = {f"training, {best} against {USUAL} at its better": Bar(lead(blocks[best], peer), BAR)}
    return side_by_side.conclude(
        "dcgan", blocks, "images", bars, apart=apart, tolerance=TOLERANCE, console=console, json=options.json,
        about=about, repeats=repeats, quick=options.quick,
    )  # fmt: skip


if __name__ == "__main__":
    side_by_side.run(main, Options, __doc__, "dcgan")
