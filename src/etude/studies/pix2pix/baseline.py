"""Translations without a network: the training pictures' mean, a regression of colours, the nearest training pair."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from etude.data.pairs import PairSet
from etude.metrics import pairs as measures
from etude.metrics.baseline import Baseline
from etude.studies.pix2pix.study import DataConfig, laptop
from etude.studies.pix2pix.task import load_pairs

SIDE = 16
"""Pixels a side at which inputs are compared."""
CELLS: dict[Literal["AtoB", "BtoA"], tuple[str, ...]] = {
    "AtoB": ("l1", "gan", "l1-gan", "aerial2map"),
    "BtoA": ("map2aerial",),
}
"""The cells of each direction."""


def training_mean(given_NHWC: Tensor, made_NHWC: Tensor, asked_MHWC: Tensor) -> Tensor:
    """The mean of the training outputs, whatever is asked; all arguments and results of these methods are bytes."""
    mean_HWC = made_NHWC.float().mean(0)
    return _bytes(mean_HWC.expand(len(asked_MHWC), -1, -1, -1))


def colour_regression(given_NHWC: Tensor, made_NHWC: Tensor, asked_MHWC: Tensor) -> Tensor:
    """The output's colour by least squares of the polynomials of degree three in the input's, pixel by pixel."""
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures

    model = make_pipeline(PolynomialFeatures(3), LinearRegression())
    model.fit(given_NHWC.reshape(-1, 3).numpy() / 255, made_NHWC.reshape(-1, 3).numpy())
    found = torch.from_numpy(model.predict(asked_MHWC.reshape(-1, 3).numpy() / 255))
    return _bytes(found.view(asked_MHWC.shape))


def nearest_pair(given_NHWC: Tensor, made_NHWC: Tensor, asked_MHWC: Tensor) -> Tensor:
    """The output of the training pair whose input, averaged down, is the nearest."""
    return made_NHWC[torch.cdist(_small(asked_MHWC), _small(given_NHWC)).argmin(1)]


METHODS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "the mean of the training outputs": training_mean,
    "a regression of colours, pixel by pixel": colour_regression,
    "the output of the nearest training pair": nearest_pair,
}


def _small(images_NHWC: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(images_NHWC.movedim(-1, 1).float(), SIDE).flatten(1)


def _bytes(images_NHWC: Tensor) -> Tensor:
    return images_NHWC.clamp(0, 255).round().to(torch.uint8)


def data() -> DataConfig:
    """The pairs of the committed runs."""
    return laptop().data


def measure(say: Callable[[str], None]) -> list[Baseline]:
    """All methods in both directions on validation and test."""
    # Without jitter: training pictures are read at the size that is measured.
    read = load_pairs(data(), laptop().model.size, 0)
    rows: list[Baseline] = []
    for direction in CELLS:
        say(f"{read.about}, {direction}")
        rows += translated(read, replace(data(), direction=direction))
    return rows


def translated(read: PairSet, config: DataConfig) -> list[Baseline]:
    """All methods in one direction."""
    from scipy.stats import t

    source, back = config.source, config.direction == "BtoA"
    sides = {name: part.pairs_N2HWC.flip(1) if back else part.pairs_N2HWC for name, part in read.splits.items()}
    train = sides["train"]
    rows: list[Baseline] = []
    for name, method in METHODS.items():
        for split in ("val", "test"):
            truth = sides[split][:, 1]
            made = method(train[:, 0], train[:, 1], sides[split][:, 0])
            for metric, (unit, values_N) in _scores(made, truth, maps=not back).items():
                count = len(values_N)
                quantile: Any = t.ppf(0.975, count - 1) if count > 1 else math.nan
                width = float(quantile) * values_N.std().item() / math.sqrt(count) if count > 1 else None
                size = truth.shape[1]
                protocol = (
                    f"{read.about}, {config.direction}, {size} px; fitted to {len(train)} pairs; {count} pictures"
                )
                rows.append(
                    Baseline(
                        name, metric, split, values_N.mean().item(), protocol, unit, width, CELLS[config.direction],
                        source, better="lower" if metric in ("l1", "rmse") else "higher",
                    )
                )  # fmt: skip
    return rows


def _scores(made_NHWC: Tensor, truth_NHWC: Tensor, *, maps: bool) -> dict[str, tuple[str, Tensor]]:
    found = {
        "l1": ("of 255", measures.l1(made_NHWC, truth_NHWC)),
        "psnr": ("dB", measures.psnr(made_NHWC, truth_NHWC)),
        "ssim": ("", measures.ssim(made_NHWC, truth_NHWC)),
    }
    if maps:
        found["rmse"] = "of 255", measures.rmse(made_NHWC, truth_NHWC)
        for tolerance in measures.TOLERANCES:
            found[f"accuracy_{tolerance}"] = "%", measures.pixel_accuracy(made_NHWC, truth_NHWC, tolerance)
    return found


def checksums() -> dict[str, str]:
    return dict(load_pairs(data(), laptop().model.size, 0).checksums)
