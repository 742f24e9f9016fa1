"""Trackers that are fed beside metrics.jsonl: TensorBoard and trackio, as extras."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etude.core.config import Tracker
from etude.core.errors import UserError
from etude.core.loop import Sink


class _TensorBoard:
    def __init__(self, folder: Path, resumed_at: int) -> None:
        board: Any = _load("torch.utils.tensorboard", "tensorboard")
        # What a killed run wrote of the steps that are repeated is hidden.
        self.writer = board.SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Trackio:
    def __init__(self, folder: Path, resumed_at: int) -> None:
        trackio: Any = _load("trackio", "trackio")
        name = f"{folder.parent.name}-{folder.name}"
        # A new run of a name that another folder had is no part of that one.
        resume = "allow" if resumed_at else "never"
        self.run = trackio.init(project="etude", name=name, resume=resume, embed=False)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


def _load(module: str, tracker: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"the tracker {tracker} is not installed: `uv sync --extra track`, or drop it") from error


def open_sinks(trackers: tuple[Tracker, ...], folder: Path, resumed_at: int) -> list[Sink]:
    """Open the trackers that a run asks for. ``resumed_at`` is the step of the checkpoint, 0 for a new run."""
    kinds: dict[Tracker, type[_TensorBoard] | type[_Trackio]] = {"tensorboard": _TensorBoard, "trackio": _Trackio}
    return [kinds[name](folder, resumed_at) for name in trackers]
