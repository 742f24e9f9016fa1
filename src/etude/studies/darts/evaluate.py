"""Score a network on pictures of yours whose classes are known."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etude.core.errors import Refused
from etude.data.classify import FolderOptions
from etude.metrics.classes import Score, score_folder
from etude.studies.darts.predict import load

Options = FolderOptions


def evaluate(weights: Path, options: Options, extra: Mapping[str, Any] | None = None) -> list[Score | Refused]:
    """See `etude.metrics.classes.score_folder`; ``weights`` and ``extra`` as in predict.py."""
    return score_folder(load(weights, extra), options)
