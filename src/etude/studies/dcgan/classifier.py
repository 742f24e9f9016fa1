"""The judge of a conditional generator: a digit classifier that never saw a generated picture.

It comes with the package. ``python -m etude.studies.dcgan.classifier FILE`` trains it again on MNIST's training split
(about ten minutes on a CPU core), by a schedule fixed beforehand, and measures it on the test split once.

Shape suffixes: N pictures, H height, W width.
"""

import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from etude.core import randomness
from etude.core.checkpoint import WeightsHeader, load_weights, read_weights, save_weights

SIZE = 32
"""The pictures it was trained on: MNIST's, with two black pixels added on every side."""
WEIGHTS = Path(__file__).parent / "judge" / "classifier.safetensors"


class Classifier(nn.Module):
    """Digits to logits.

    Args:
        num_classes: of the logits.
        width: filters of the first layer.
    """

    def __init__(self, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()

        def block(before: int, after: int) -> list[nn.Module]:
            return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]

        self.layers = nn.Sequential(
            *block(1, width), nn.MaxPool2d(2),
            *block(width, 2 * width), *block(2 * width, 2 * width), nn.MaxPool2d(2),
            *block(2 * width, 4 * width), *block(4 * width, 4 * width), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(4 * width, num_classes),
        )  # fmt: skip

    def forward(self, images_N1HW: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of pictures in [-1, 1], 32 pixels high and wide."""
        return self.layers(images_N1HW)


@cache
def shipped() -> Classifier:
    """The trained one, on the CPU."""
    tensors, _ = read_weights(WEIGHTS, study="dcgan")
    network = Classifier()
    load_weights({"classifier": network}, tensors, WEIGHTS)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def classify(images_NHW: Tensor, network: Classifier | None = None, batch: int = 500) -> Tensor:
    """The digit that each picture is taken for, int64 ``[N]`` on the CPU.

    Args:
        images_NHW: bytes of 28 or 32 pixels; the smaller ones get a black border.
        network: the shipped one where none is given.
        batch: pictures at a time.
    """
    judge = network if network is not None else shipped()
    assert images_NHW.shape[1] in (28, SIZE)
    border = (SIZE - images_NHW.shape[1]) // 2
    padded = functional.pad(images_NHW.cpu(), (border,) * 4)
    parts = [judge(part[:, None].float() / 127.5 - 1).argmax(1) for part in padded.split(batch)]
    return torch.cat(parts)


def train(
    images_NHW: Tensor, labels_N: Tensor, epochs: int = 8, batch: int = 128, *, lr: float = 2e-3, shift: int = 2
) -> Classifier:
    """A classifier trained on bytes ``[N, 28, 28]`` and digits ``[N]``: Adam under a cosine, batches shifted by up to
    two pixels."""
    randomness.seed_globals(0, "classifier/init", 0)
    network = Classifier().to(memory_format=torch.channels_last)
    adam = torch.optim.Adam(network.parameters(), lr=lr, fused=True)
    per_epoch = len(images_NHW) // batch
    border = (SIZE - images_NHW.shape[1]) // 2
    padded = functional.pad(images_NHW, (border + shift,) * 4)
    network.train()
    for step in range(epochs * per_epoch):
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(padded), generator=randomness.generator(0, "classifier/order", epoch))
        randomness.seed_globals(0, "classifier/step", step)
        rows = order[place * batch : (place + 1) * batch]
        draw = randomness.generator(0, "classifier/shift", step)
        # One shift a batch is a slice, and over an epoch as good as one a picture.
        top, left = torch.randint(2 * shift + 1, (2,), generator=draw).tolist()
        part = padded[rows, top : top + SIZE, left : left + SIZE]
        logits = network((part[:, None].float() / 127.5 - 1).contiguous(memory_format=torch.channels_last))
        loss = functional.cross_entropy(logits, labels_N[rows], label_smoothing=0.05)
        adam.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / (epochs * per_epoch))) / 2
        adam.zero_grad()
        loss.backward()
        adam.step()
    return network.eval().requires_grad_(False)


def main(path: Path) -> None:
    """Train on MNIST, measure, write."""
    from etude.data import mnist

    torch.set_flush_denormal(True)
    # Measured as it will be read: in half precision.
    network = train(*mnist.load("train")).half().float()
    images_NHW, labels_N = mnist.load("test")
    accuracy = 100 * (classify(images_NHW, network) == labels_N).double().mean().item()
    header = WeightsHeader("dcgan", {}, {"test_accuracy": accuracy})
    save_weights(path, {"classifier": network}, header, half=True)
    print(f"{accuracy:.2f} % of the {len(labels_N):,} test digits: {path}")


if __name__ == "__main__":
    import sys

    main(Path(sys.argv[1]) if len(sys.argv) > 1 else WEIGHTS)
