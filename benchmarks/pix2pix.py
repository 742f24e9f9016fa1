"""pix2pix's training step: etude beside the plain form of the same networks.

Command: ``uv run --extra bench python benchmarks/pix2pix.py``. The protocol is in benchmarks/README.md.
"""

import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import side_by_side
from etude.core.config import LoopConfig
from etude.core.runtime import Runtime
from etude.nn.pixels import prepare
from etude.studies.pix2pix import study
from etude.studies.pix2pix.model import crop_and_mirror
from etude.studies.pix2pix.study import Pix2PixConfig
from etude.studies.pix2pix.task import Pix2PixTask, build_discriminator, build_generator
from side_by_side import ETUDE, Bar, Block, Side, interleave, lead, median_rate, timed

try:
    from torchvision import transforms
    from torchvision.transforms import functional as pictures
except ImportError:
    sys.exit("torchvision is not installed: `uv run --extra bench python benchmarks/pix2pix.py`")

PLAIN = "plain form"
COMPILED = f"{ETUDE} --loop.compile"
BAR = 1.3
# Largest difference of a loss of the first step, both sides from the same weights, pictures and dropout.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Options:
    preset: Literal["laptop", "colour", "paper"] = "laptop"
    """Whose networks and batch: laptop, one pair of 128 px and 16 filters; colour, four of them; paper, one of 256 px
    and 64 filters."""
    json: Path | None = None
    """Where to write every measurement."""
    quick: bool = False
    """Seconds, on made-up pairs: shows that all sides run and agree; its speeds mean nothing."""
    threads: int = torch.get_num_threads()
    """Threads of all sides."""
    compile: bool = True
    """Also measure etude compiled; wants a C++ compiler."""
    steps: int | None = None
    """Steps of a block; 76, or 8 with the paper's networks."""
    repeats: int | None = None
    """Blocks of each side; 5, or 1 when quick."""


class SideBySide(Dataset[tuple[Tensor, Tensor]]):
    """Files with A left and B right: opened, cut, resized, cropped and mirrored one at a time."""

    def __init__(self, paths: list[Path], size: int, jitter: int) -> None:
        self.paths, self.size, self.larger = paths, size, size + jitter
        self.to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.paths[row]) as opened:
            both = opened.convert("RGB")
        width, height = both.size
        window = transforms.RandomCrop.get_params(torch.empty(3, self.larger, self.larger), (self.size, self.size))
        mirrored = bool(torch.rand(()) < 0.5)
        halves: list[Tensor] = []
        for left in (0, width // 2):
            half = both.crop((left, 0, left + width // 2, height))
            half = half.resize((self.larger, self.larger), Image.Resampling.BICUBIC)
            half = pictures.crop(half, *window)  # pyright: ignore[reportArgumentType]
            tensor = self.to_tensor(half)
            halves.append(tensor.flip(-1) if mirrored else tensor)
        return halves[0], halves[1]


class Plain:
    """The step as the widespread form has it, with the options that etude uses as switches."""

    def __init__(self, config: Pix2PixConfig, task: Pix2PixTask, *, channels_last: bool, fused: bool) -> None:
        self.config = config
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.generator, self.discriminator = build_generator(config.model), build_discriminator(config.model)
        for mine, theirs in ((self.generator, task.generator), (self.discriminator, task.discriminator)):
            mine.load_state_dict(theirs.state_dict())
            mine.to(memory_format=self.layout)  # pyright: ignore[reportCallIssue]
        self.criterion = nn.BCEWithLogitsLoss()
        options = {"lr": config.optim.lr, "betas": (config.optim.beta1, 0.999), "fused": fused}
        self.of_generator = torch.optim.Adam(self.generator.parameters(), **options)
        self.of_discriminator = torch.optim.Adam(self.discriminator.parameters(), **options)

    def loss(self, logits: Tensor, target: float) -> Tensor:
        """Cross-entropy of every patch."""
        return self.criterion(logits, torch.full_like(logits, target))

    def step(self, given: Tensor, truth: Tensor, noise: list[Tensor]) -> tuple[float, float, float]:
        """The discriminator's, the generator's adversarial and the L1 loss."""
        given, truth = (part.contiguous(memory_format=self.layout) for part in (given, truth))
        fake = self.generator(given, noise)
        self.discriminator.requires_grad_(True)
        self.of_discriminator.zero_grad()
        on_fake = self.loss(self.discriminator(given, fake.detach()), 0.0)
        on_real = self.loss(self.discriminator(given, truth), 1.0)
        discriminator = (on_real + on_fake) / 2
        discriminator.backward()
        self.of_discriminator.step()
        self.discriminator.requires_grad_(False)
        self.of_generator.zero_grad()
        adversarial = self.loss(self.discriminator(given, fake), 1.0)
        distance = functional.l1_loss(fake, truth)
        (adversarial + self.config.optim.l1 * distance).backward()
        self.of_generator.step()
        return discriminator.item(), adversarial.item(), distance.item()

    def noise(self, count: int) -> list[Tensor]:
        """Dropout as masks, which is how the network takes it."""
        shapes = [mask.shape for mask in self.generator.noise(1, torch.Generator())]
        return [functional.dropout(torch.ones(count, *shape[1:]), self.config.model.dropout) for shape in shapes]


def plain_side(plain: Plain, loader: "DataLoader[tuple[Tensor, Tensor]]", steps: int) -> Side[Block]:
    """Its loop: whole epochs until a block's steps are done."""

    def run(repeat: int) -> Block:
        done, start = 0, time.perf_counter()
        while done < steps:
            for given, truth in loader:
                plain.step(given, truth, plain.noise(len(given)))
                done += 1
        return Block(done * plain.config.batch.size, time.perf_counter() - start)

    return run


def write_pairs(task: Pix2PixTask, folder: Path) -> list[Path]:
    """The training pairs as side-by-side files of 256 pixels a half, as the published sets have them."""
    folder.mkdir()
    paths: list[Path] = []
    for row, pair_2HWC in enumerate(task.pairs.splits["train"].pairs_N2HWC):
        halves = [Image.fromarray(half.numpy()).resize((256, 256), Image.Resampling.BICUBIC) for half in pair_2HWC]
        both = Image.new("RGB", (512, 256))
        both.paste(halves[0], (0, 0))
        both.paste(halves[1], (256, 0))
        paths.append(folder / f"{row}.jpg")
        both.save(paths[-1], quality=95)
    return paths


def difference(config: Pix2PixConfig) -> float:
    """The largest difference between both forms' losses of a first step on the same pictures and dropout."""
    task = Pix2PixTask(config, Runtime(config.loop, config.seed))
    plain = Plain(config, task, channels_last=False, fused=False)
    draw = task.runtime.generator("train/augment", 0, 0)
    taken = task.take("train", task.batch_rows(0))
    cut = crop_and_mirror(taken, config.model.size, draw, mirror=config.augment.mirror)
    noise = task.generator.noise(len(cut), task.runtime.generator("train/noise", 0, 0))
    theirs = plain.step(prepare(cut[:, 0]), prepare(cut[:, 1]), noise)
    ours = task.train_step(0)
    names = ("discriminator", "generator", "l1")
    return max(abs(float(ours[name]) - loss) for name, loss in zip(names, theirs, strict=True))


def main(options: Options) -> int:
    """Measure, print, and return 1 if the two forms' losses are not the same."""
    repeats, console, about = side_by_side.begun(options, "torchvision")
    loop = LoopConfig(max_steps=10**9, device="cpu")
    config = replace(study.smoke() if options.quick else getattr(study, options.preset)(), loop=loop)
    if options.preset == "paper" and not options.quick:
        # The published archive is large, and its pairs are of the same size.
        config = replace(config, data=replace(config.data, source="maps-subset"))
    steps = options.steps or (2 if options.quick else 8 if options.preset == "paper" else 76)

    def etude(compiled: bool) -> Side[Block]:
        changed = replace(config, loop=replace(loop, compile=compiled))
        task = Pix2PixTask(changed, Runtime(changed.loop, changed.seed))
        # Read before the clock starts.
        task.take("train", slice(0, 1))
        return timed(lambda step: task.train_step(step)["loss"].item(), steps * config.batch.size, calls=steps)

    task = Pix2PixTask(config, Runtime(loop, config.seed))
    about_networks = f"{config.model.size} px, {config.model.width} filters, batch {config.batch.size}"
    console.print(
        f"{len(task.pairs.splits['train'])} pairs ({task.pairs.about}), {about_networks}; "
        f"{side_by_side.machine(about)}, torchvision {about['torchvision']}, etude at {about['commit']}; "
        f"interleaved repeats: {repeats}"
    )
    apart = difference(config)
    workers = 0 if options.quick else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as temporary:
        data = SideBySide(write_pairs(task, Path(temporary) / "pairs"), config.model.size, config.augment.jitter)

        def peer(workers: int, *, channels_last: bool = False, fused: bool = False) -> Side[Block]:
            loader = DataLoader(
                data, config.batch.size, shuffle=True, drop_last=True, num_workers=workers,
                persistent_workers=workers > 0,
            )  # fmt: skip
            return plain_side(Plain(config, task, channels_last=channels_last, fused=fused), loader, steps)

        sides = {ETUDE: etude(compiled=False), f"{PLAIN}, no worker": peer(0)}
        if not options.quick:
            sides |= {
                f"{PLAIN}, {workers} workers": peer(workers),
                "plain and fused Adam": peer(0, fused=True),
                "plain and channels last": peer(0, channels_last=True),
                "plain, channels last and fused Adam": peer(0, channels_last=True, fused=True),
            }
        if options.compile and not options.quick:
            sides[COMPILED] = etude(compiled=True)
        blocks = interleave(sides, repeats, warm_up=not options.quick)
    ours = [name for name in (ETUDE, COMPILED) if name in blocks]
    console.print(side_by_side.speed_table("Training: both networks, one step each", "pairs", blocks, ours))
    plain = max((row for name, row in blocks.items() if name.startswith(f"{PLAIN}, ")), key=median_rate)
    best = max(ours, key=lambda name: median_rate(blocks[name]))
    bars = {f"training, {best} against the plain form at its better": Bar(lead(blocks[best], plain), BAR)}
    return side_by_side.conclude(
        "pix2pix", blocks, "pairs", bars, apart=apart, tolerance=TOLERANCE, console=console, json=options.json,
        about=about, repeats=repeats, quick=options.quick,
    )  # fmt: skip


if __name__ == "__main__":
    side_by_side.run(main, Options, __doc__, "pix2pix")
