"""Digits without a network: a Gaussian in principal components, and real training digits, the floor of FID."""

from collections.abc import Callable

from etude.data import mnist
from etude.metrics import diversity
from etude.metrics.baseline import Baseline
from etude.metrics.gaussian import COMPONENTS, distances, gaussian_pictures
from etude.studies.dcgan.study import MetricConfig

SIZE = 32
"""Pixels a side in the committed runs."""
COUNTS = {2000: ("ema", "plain", "r1", "smoothing", "spectral"), 10_000: ("conditional", "dcgan", "dcgan-ema")}
"""The number of digits that the networks of each cell draw."""


def measure(say: Callable[[str], None]) -> list[Baseline]:
    """The Gaussian's variety; FID and KID of both, at the count of each cell, against all test digits."""
    train, real = (mnist.to_size(mnist.load(split)[0], SIZE) for split in ("train", "test"))
    variant, watched = f"MNIST, {SIZE} px", MetricConfig().watched
    say(f"{variant}: {watched} digits of a Gaussian")
    drawn = gaussian_pictures(train, watched)
    found = diversity.measure(drawn[:, None], real[:watched, None])
    name, protocol = f"a Gaussian of {COMPONENTS} principal components", f"{watched} against as many test digits"
    rows = [
        Baseline(name, "diversity", "test", found.ratio, protocol, variant=variant),
        Baseline(name, "duplicates", "test", 100 * found.duplicates, protocol, "%", variant=variant, better="lower"),
    ]
    for count, cells in COUNTS.items():
        rows += distances(train, real, count, "test", say, variant=variant, cells=cells)
    return rows


def checksums() -> dict[str, str]:
    return {f"mnist/{name}": digest for name, digest in mnist.checksums().items()}
