"""Small searches and retrainings, cells as text, and what reads their faults."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from etude.core.config import override
from etude.core.runtime import Runtime
from etude.studies.darts.retrain_task import RetrainTask
from etude.studies.darts.search_task import SearchTask
from etude.studies.darts.study import DartsConfig, retrain_smoke, smoke

_SEARCH: dict[str, Any] = {
    "model__channels": 4, "model__layers": 3, "model__nodes": 2, "data__size": 8, "batch__size": 8,
    "search__eigenvalue": False, "augment__pad": 1, "loop__max_steps": 30,
}  # fmt: skip
_RETRAIN: dict[str, Any] = {
    "model__channels": 4, "model__layers": 2, "data__size": 8, "batch__size": 8, "augment__pad": 1,
    "augment__cutout": 2, "loop__max_steps": 30,
}  # fmt: skip
TINY = [
    "--loop.max-steps", "4", "--loop.eval-every", "2", "--loop.log-every", "1", "--loop.save-every", "2",
    "--data.size", "8", "--batch.size", "8", "--model.layers", "3",
]  # fmt: skip
"""Flags that make a smoke preset one of a second."""
SMALL = {
    "normal": [[["sep_conv_3x3", 0], ["skip_connect", 1]], [["dil_conv_5x5", 2], ["max_pool_3x3", 0]]],
    "reduction": [[["avg_pool_3x3", 1], ["skip_connect", 0]], [["sep_conv_5x5", 2], ["dil_conv_3x3", 1]]],
}
"""A genotype of two nodes a cell, every operation but none among its edges."""


def _override(config: DartsConfig, changes: dict[str, Any]) -> DartsConfig:
    return override(config, {name.replace("__", "."): value for name, value in changes.items()})


def settings(**changes: Any) -> DartsConfig:
    """The smoke preset of a search, smaller; ``search__order=2`` sets ``search.order``."""
    return _override(smoke(), _SEARCH | changes)


def make(**changes: Any) -> SearchTask:
    config = settings(**changes)
    return SearchTask(config, Runtime(config.loop, config.seed))


def retrain_settings(**changes: Any) -> DartsConfig:
    """The smoke preset of a retraining, smaller, of `SMALL`."""
    return _override(retrain_smoke(), {"genotype": json.dumps(SMALL)} | _RETRAIN | changes)


def make_retrain(**changes: Any) -> RetrainTask:
    config = retrain_settings(**changes)
    return RetrainTask(config, Runtime(config.loop, config.seed))


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def one_line(caught: pytest.ExceptionInfo[ValueError], *parts: str) -> None:
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text, text


def cell_file(path: Path, **changes: Any) -> Path:
    """`SMALL` as a file, with another cell."""
    path.write_text(json.dumps(SMALL | changes))
    return path
