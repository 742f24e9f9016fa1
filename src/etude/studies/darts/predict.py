"""Classify your own pictures with a trained network of cells.

The cells are read from the weights' configuration.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etude.core.errors import Refused, UserError
from etude.data import classify
from etude.data.classify import Network, Options, Prediction
from etude.studies.darts.model import CellNetwork
from etude.studies.darts.retrain_task import build_network
from etude.studies.darts.study import DartsConfig


def load(weights: Path, extra: Mapping[str, Any] | None) -> Network[CellNetwork, DartsConfig]:
    """The network of a weights file, see `classify.read_network`; weights of a search are refused."""

    def build(config: DartsConfig) -> CellNetwork:
        if config.phase == "search":
            raise UserError(
                f"{weights} is of a search, whose network is thrown away: retrain its cell, "
                "`etude run darts retrain-laptop --genotype RUN`"
            )
        return build_network(config)

    return classify.read_network("darts", DartsConfig, build, weights, extra)


def predict(weights: Path, extra: Mapping[str, Any] | None, options: Options) -> list[Prediction | Refused]:
    """Classify the inputs; the order of the answers is theirs. See `classify.read_network` for the arguments.

    Raises:
        UserError: no picture that can be read, or a missing or broken folder or weights file, or weights of a search.
    """
    paths = classify.inputs(options.inputs)
    answers = classify.classified(load(weights, extra), paths, options.max_pixels)
    classify.write(options.output, answers, indices=options.indices)
    return answers


def example(out: Path) -> list[str]:
    """The words of an `etude predict` on what comes with the package; what it writes goes into ``out``."""
    from etude.data.cifar10 import sample_folder

    return ["darts", str(sample_folder())]
