"""Cuts without a network on the scenes of the committed runs; see `etude.scenes.baseline`."""

from collections.abc import Callable

from etude.metrics.baseline import Baseline
from etude.scenes import baseline

FOLDERS = {"rendered-5000": (64,), "clevrtex-render-128.zip": (64,)}
"""The sizes in pixels at which the scenes of each folder are read."""


def measure(say: Callable[[str], None]) -> list[Baseline]:
    """Cuts by place and by the ring; FID of training scenes and of a Gaussian."""
    return baseline.scene_baselines(FOLDERS, say)


def checksums() -> dict[str, str]:
    return baseline.checksums(FOLDERS)
