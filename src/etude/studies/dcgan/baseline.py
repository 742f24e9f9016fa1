"""Digits without a network: FID of training digits, which is the floor, and of a Gaussian in principal components."""

from collections.abc import Callable

from etude.data import mnist
from etude.metrics.baseline import Baseline
from etude.metrics.gaussian import distances

SIZE = 32
"""Pixels a side in the committed runs."""
COUNTS = {2000: ("ema", "plain", "r1", "smoothing", "spectral"), 10_000: ("conditional", "dcgan", "dcgan-ema")}
"""How many digits the networks of each cell draw."""


def measure(say: Callable[[str], None]) -> list[Baseline]:
    """Both, at the count of each cell, against all test digits."""
    train, real = (mnist.to_size(mnist.load(split)[0], SIZE) for split in ("train", "test"))
    variant = f"MNIST, {SIZE} px"
    return [
        row
        for count, cells in COUNTS.items()
        for row in distances(train, real, count, "test", say, variant=variant, cells=cells)
    ]


def checksums() -> dict[str, str]:
    return {f"mnist/{name}": digest for name, digest in mnist.checksums().items()}
