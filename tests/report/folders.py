"""Run folders for the tests of the report, written by hand: nothing is trained."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from etude import registry
from etude.core.config import to_dict
from etude.core.run_folder import RunFolder, RunRecord


def row(cell: str = "w5s1", value: float = 99.0, **more: Any) -> dict[str, Any]:
    return {
        "experiment": "fewshot", "cell": cell, "metric": "accuracy", "split": "test", "value": value,
        "protocol": "1,000 episodes", "half_width": 0.1, "unit": "%", "variant": "trainval",
    } | more  # fmt: skip


def summary(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "format": 1, "study": "protonet", "preset": "laptop", "scale": "laptop", "seed": 0, "overrides": {},
        "command": "etude run protonet laptop", "step": 300, "steps_trained": 300, "stopped_early": False,
        "validation": None, "results": list(rows), "parameters": {"encoder": 111936}, "train_seconds": 61.5,
        "peak_memory_mb": 700, "extra": {},
    } | more  # fmt: skip


def begin(path: Path, *, steps: int = 3, overrides: dict[str, Any] | None = None) -> RunFolder:
    """A run of protonet that has logged ``steps`` times and not ended."""
    config = to_dict(registry.load("protonet").preset("laptop").build())
    run = RunFolder.create(path, RunRecord("protonet", "laptop", "laptop", overrides or {}, config))
    for number in range(1, steps + 1):
        metrics = {"train/loss": 2.0 / number, "val/loss": 2.5 / number, "train/accuracy": 90.0 + number}
        run.append_metrics({"step": 100 * number, "seconds": 20.5 * number} | metrics)
    environment = {"python": "3.11", "processor": "one", "versions": {"torch": "2.15"}, "data": {"omniglot": "ab12"}}
    (path / "environment.json").write_text(json.dumps(environment))
    return run


def finish(path: Path, body: dict[str, Any] | None = None, **more: Any) -> RunFolder:
    """A finished run of protonet with a picture."""
    run = begin(path, **more)
    run.figures.mkdir()
    picture(run.figures / "episode.png")
    picture(run.figures / "curves.png")
    run.write_summary(body or summary(row()))
    return run


def picture(path: Path, width: int = 40, height: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).save(path, "png")
