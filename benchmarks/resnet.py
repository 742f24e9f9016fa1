"""Residual networks: training beside torchvision's folder pipeline, Grad-CAM beside a loop over the grad-cam package.

Command: ``uv run --extra bench python benchmarks/resnet.py``. The protocol is in benchmarks/README.md.
"""

import dataclasses
import math
import os
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

import side_by_side
from etude.core.config import LoopConfig, override
from etude.core.files import write_json
from etude.core.runtime import Runtime
from etude.data import tree
from etude.data.picture_config import PictureConfig
from etude.data.shapes import shapes
from etude.studies.resnet.cam import LogitsOnly, batched_cam, package_cam, target_layers
from etude.studies.resnet.model import ResNet
from etude.studies.resnet.study import ResNetConfig, birds
from etude.studies.resnet.task import ResNetTask, build_model, build_optimizer
from side_by_side import ETUDE, Bar, Block, Side, interleave, lead, median_rate, timed

try:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from torchvision import datasets, transforms
except ImportError:
    sys.exit("torchvision or grad-cam is not installed: `uv run --extra bench python benchmarks/resnet.py`")

PIPELINE_BAR, CAM_BAR = 1.5, 2.0
# Where the maps of two ways of computing them differ by more, they are not the same maps.
CAM_TOLERANCE = 1e-3
COMPILED, USUAL, LOOP = f"{ETUDE} --loop.compile", "torchvision", "grad-cam, one picture at a time"


@dataclass(frozen=True)
class Options:
    folder: str = "birds6_224.zip"
    """A folder or zip file of photographs, one sub-folder a class."""
    size: int = 64
    """Height and width of the network's pictures."""
    json: Path | None = None
    """Where to write every measurement."""
    quick: bool = False
    """Seconds, on generated pictures: shows that all sides run and agree; its speeds mean nothing."""
    threads: int = torch.get_num_threads()
    """Threads of all sides."""
    compile: bool = True
    """Also measure both sides compiled; wants a C++ compiler."""
    repeats: int | None = None
    """Blocks of each side; 5, or 1 when quick."""


def unpacked(options: Options, to: Path) -> Path:
    """The photographs as a folder of class folders, which is what torchvision reads."""
    if options.quick:
        found = shapes(6, 24, size=options.size * 2, seed=0)
        for image_HWC, label, name in zip(found.images_NHWC, found.labels_N.tolist(), found.names, strict=True):
            path = to / found.classes[label] / f"{name.replace('/', '-')}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image_HWC.numpy()).save(path, quality=90)
        return to
    path = tree.find(options.folder)
    if path.is_dir():
        return path
    with zipfile.ZipFile(path) as archive:
        archive.extractall(to)
    # One folder around everything is passed over, as etude does.
    while len(below := [entry for entry in to.iterdir() if entry.is_dir()]) == 1:
        to = below[0]
    return to


# Training


def etude_side(task: ResNetTask, count: int) -> Side[Block]:
    """The training step as the loop calls it."""
    return timed(lambda step: task.train_step(step)["loss"].item(), count * task.config.batch.size, calls=count)


def torchvision_side(
    config: ResNetConfig, train_folder: Path, count: int, *, workers: int, channels_last: bool, compiled: bool
) -> Side[Block]:
    """The same network in a loop around ImageFolder and DataLoader."""
    size = config.data.size
    usual = transforms.Compose(
        [
            transforms.Resize(size),
            transforms.CenterCrop(size),
            transforms.RandomCrop(size, padding=config.augment.pad),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ]
    )
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = build_model(config.model).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    if compiled:
        model.compile()
    optimizer = build_optimizer(model, config.optim)
    loader = DataLoader(
        datasets.ImageFolder(train_folder, usual), config.batch.size, shuffle=True, drop_last=True,
        num_workers=workers, persistent_workers=workers > 0,
    )  # fmt: skip

    def run(repeat: int) -> Block:
        done, start = 0, time.perf_counter()
        while done < count:
            # Whole epochs, so that what workers have fetched ahead is used.
            for x_NCHW, labels_N in loader:
                logits, _ = model.train()(x_NCHW.contiguous(memory_format=layout))
                loss = functional.cross_entropy(logits, labels_N)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item()
                done += 1
        return Block(done * config.batch.size, time.perf_counter() - start)

    return run


def pipeline_sides(config: ResNetConfig, train_folder: Path, count: int, *, compiles: bool) -> dict[str, Side[Block]]:
    """etude, and torchvision in the usual form and with what etude does around it, step by step."""
    workers = os.cpu_count() or 1

    def etude(compiled: bool) -> Side[Block]:
        loop = dataclasses.replace(config.loop, compile=compiled)
        changed = dataclasses.replace(config, loop=loop)
        return etude_side(ResNetTask(changed, Runtime(loop, config.seed)), count)

    def peer(workers: int = workers, *, channels_last: bool = True, compiled: bool = False) -> Side[Block]:
        return torchvision_side(
            config, train_folder, count, workers=workers, channels_last=channels_last, compiled=compiled
        )

    sides = {
        ETUDE: etude(compiled=False),
        f"{USUAL}, {workers} workers": peer(channels_last=False),
        f"{USUAL}, no worker": peer(0, channels_last=False),
        "torchvision, channels last": peer(),
    }
    if compiles:
        sides |= {COMPILED: etude(compiled=True), "torchvision, channels last, compiled": peer(compiled=True)}
    return sides


# Grad-CAM


def cam_sides(task: ResNetTask, count: int, batch: int) -> tuple[dict[str, Side[Block]], float]:
    """Maps of the true class by etude in batches, by the package in a loop, and by the package in batches.

    Returns the sides, and the largest difference between etude's maps and the package's.
    """
    images = task.pictures.splits["train"].take(list(range(min(count, len(task.pictures.splits["train"])))))
    model, num = task.model.eval(), len(images)

    def in_batches(cam: Callable[[ResNet, Tensor, Tensor], Any]) -> Side[Block]:
        def run(number: int) -> None:
            for part, labels in zip(images.images_NHWC.split(batch), images.labels_N.split(batch), strict=True):
                cam(model, model.prepare(part), labels)

        return timed(run, num)

    def loop(number: int) -> None:
        with GradCAM(LogitsOnly(model), target_layers(model)) as cam:
            for image_HWC, label in zip(images.images_NHWC, images.labels_N.tolist(), strict=True):
                cam(model.prepare(image_HWC[None]), [ClassifierOutputTarget(label)])

    some = images.take(list(range(min(16, num))))
    x_NCHW = model.prepare(some.images_NHWC)
    ours = batched_cam(model, x_NCHW, some.labels_N)
    theirs = torch.from_numpy(package_cam(model, x_NCHW, some.labels_N))
    difference = (ours - theirs).abs().max().item()
    sides = {
        ETUDE: in_batches(batched_cam),
        LOOP: timed(loop, num),
        f"grad-cam, batches of {batch}": in_batches(package_cam),
    }
    return sides, difference


def main(options: Options) -> int:
    """Measure, print, and return 1 if the two sides' maps are not the same."""
    # The package asks PyTorch's zip reader nothing; its imports warn of their own.
    warnings.filterwarnings("ignore", category=FutureWarning)
    repeats, console, about = side_by_side.begun(options, "torchvision", "grad-cam")
    with tempfile.TemporaryDirectory() as temporary:
        folder = unpacked(options, Path(temporary) / "photographs")
        classes = sum(entry.is_dir() for entry in folder.iterdir())
        preset = birds()
        config = dataclasses.replace(
            override(preset, {"model.num_classes": classes}),
            data=PictureConfig(source="folder", folder=str(folder), size=options.size),
            loop=LoopConfig(max_steps=10**9, device="cpu"),
        )
        task = ResNetTask(config, Runtime(config.loop, config.seed))
        train = task.pictures.splits["train"]
        train_folder = Path(temporary) / "train"
        # torchvision gets the very files that etude trains on.
        for name in train.names:
            place = train_folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to((folder / name).resolve())
        console.print(
            f"{'generated pictures' if options.quick else options.folder}: {len(train)} training photographs, "
            f"{classes} classes, {options.size} px, n = {config.model.n}, batch {config.batch.size}; "
            f"{side_by_side.machine(about)}, torchvision {about['torchvision']}, grad-cam {about['grad-cam']}, "
            f"etude at {about['commit']}; interleaved repeats: {repeats}"
        )
        steps = 2 if options.quick else len(train) // config.batch.size
        pipeline = interleave(
            pipeline_sides(config, train_folder, steps, compiles=options.compile and not options.quick),
            repeats,
            warm_up=not options.quick,
        )
        title = "Training: decoding, augmentation, forward, backward, step"
        console.print(side_by_side.speed_table(title, "images", pipeline, (ETUDE, COMPILED)))
        sides, difference = cam_sides(task, 8 if options.quick else 128, 32)
        cams = interleave(sides, repeats, warm_up=not options.quick)
        console.print(side_by_side.speed_table("Grad-CAM of the last 2n convolutions", "images", cams))

    usual = max(
        (row for name, row in pipeline.items() if name.startswith(f"{USUAL}, ") and "worker" in name), key=median_rate
    )
    best = COMPILED if COMPILED in pipeline else ETUDE
    bars = {
        f"training, {best} against torchvision's usual form": Bar(lead(pipeline[best], usual), PIPELINE_BAR),
        "Grad-CAM against the loop over the package": Bar(lead(cams[ETUDE], cams[LOOP]), CAM_BAR),
    }
    agree = difference <= CAM_TOLERANCE and math.isfinite(difference)
    console.print(f"{'agree' if agree else 'DISAGREE'}: largest difference of a map's value {difference:.1e}")
    side_by_side.tell_bars(console, bars, judged=not options.quick)
    if options.json is not None:
        tables = {"training": pipeline, "grad-cam": cams}
        written = side_by_side.report(
            "resnet", tables, "images", bars, about=about, repeats=repeats, quick=options.quick
        )
        write_json(options.json, written | {"agreement": {"difference": difference, "holds": agree}})
    return 0 if agree else 1


if __name__ == "__main__":
    side_by_side.run(main, Options, __doc__, "resnet")
