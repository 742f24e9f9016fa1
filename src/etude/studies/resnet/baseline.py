"""Classes without a convolution: the largest class, the nearest class mean, logistic regression on pixels."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch.nn import functional

from etude.core.errors import UserError
from etude.data import pictures
from etude.data.labelled import LabelledImages
from etude.data.picture_config import PictureConfig
from etude.data.pictures import Pictures
from etude.metrics.baseline import Baseline
from etude.metrics.proportion import half_width
from etude.studies.resnet.study import birds

SIDES = (8, 16)
"""Pixels a side that pictures are averaged down to; validation chooses."""
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Inverse weights of the penalty (scikit-learn's C) on standardised pixels; validation chooses."""
SETS = ((PictureConfig(source="cifar10-jpeg"), 10), (birds().data, 6))
"""The pictures of the committed runs, and how many classes they have."""


def points(images: LabelledImages, side: int) -> np.ndarray:
    """Pictures averaged down to ``side`` pixels, as float32 ``[N, 3 side^2]`` in [0, 1]."""
    parts = images.images_NHWC.split(1024)
    small = [functional.adaptive_avg_pool2d(part.movedim(-1, 1).float() / 255, side).flatten(1) for part in parts]
    return np.concatenate([part.numpy() for part in small])


def measure(say: Callable[[str], None]) -> list[Baseline]:
    """All three on validation and test of CIFAR-10's JPEG copies and of the birds, those that are at hand."""
    rows: list[Baseline] = []
    missing: list[UserError] = []
    for found in _sets(say, missing):
        rows += measured(found, say)
    if not rows:
        raise missing[0]
    return rows


def _sets(say: Callable[[str], None], missing: list[UserError]) -> Iterator[Pictures]:
    for config, num_classes in SETS:
        try:
            yield pictures.load(config, num_classes)
        except UserError as error:
            missing.append(error)
            say(f"left out: {error}")


def measured(found: Pictures, say: Callable[[str], None]) -> list[Baseline]:
    """The rows of one set."""
    train, val = found.splits["train"], found.splits["val"]
    labels, wanted = train.labels_N.numpy(), val.labels_N.numpy()
    most = int(np.bincount(labels).argmax())
    rows = list(_rows(found, "the largest class", "", lambda images: np.full(len(images), most)))
    for name, fits in (("nearest class mean", _means), ("logistic regression", _regressions)):
        say(f"{found.about}: {name} on pixels")
        best: tuple[float, Any, str, int] | None = None
        for side in SIDES:
            mine = points(val, side)
            for setting, model in fits(points(train, side), labels):
                right = float((model.predict(mine) == wanted).mean())
                if best is None or right > best[0]:
                    best = right, model, f"pixels averaged to {side} x {side}{setting}; chosen on validation", side
        assert best is not None, "a side and a setting"
        _, model, about, side = best

        def predict(images: LabelledImages, model: Any = model, side: int = side) -> np.ndarray:
            return model.predict(points(images, side))

        rows += _rows(found, f"{name} on pixels", about, predict)
    return rows


def _means(x_ND: np.ndarray, labels_N: np.ndarray) -> Iterator[tuple[str, Any]]:
    from sklearn.neighbors import NearestCentroid

    yield "", NearestCentroid().fit(x_ND, labels_N)


def _regressions(x_ND: np.ndarray, labels_N: np.ndarray) -> Iterator[tuple[str, Any]]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    for strength in STRENGTHS:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=100, tol=1e-3))
        with warnings.catch_warnings():
            # A hundred rounds are enough for the digits that are told.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x_ND, labels_N)
        yield f", C = {strength:g}", model


def _rows(
    found: Pictures, name: str, about: str, predict: Callable[[LabelledImages], np.ndarray]
) -> Iterator[Baseline]:  # fmt: skip
    from sklearn.metrics import f1_score

    for split in ("val", "test"):
        images = found.splits[split]
        truth, taken = images.labels_N.numpy(), predict(images)
        accuracy = float((truth == taken).mean() * 100)
        scores = {"accuracy": accuracy, "micro_f1": accuracy, "error": 100 - accuracy}
        options: Any = {"labels": range(len(found.classes)), "zero_division": 0}
        scores["macro_f1"] = float(f1_score(truth, taken, average="macro", **options) * 100)
        for metric, value in scores.items():
            width = None if metric == "macro_f1" else half_width(accuracy, len(truth))
            yield Baseline(
                name, metric, split, value, "; ".join(filter(None, (found.about, about))), "%", width,
                variant=found.about, better="lower" if metric == "error" else "higher",
            )  # fmt: skip


def checksums() -> dict[str, str]:
    found: dict[str, str] = {}
    for read in _sets(lambda _: None, []):
        found |= read.checksums
    return found
