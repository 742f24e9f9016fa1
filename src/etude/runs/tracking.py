"""Trackers that are fed beside metrics.jsonl: TensorBoard and trackio, as extras."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etude.core.config import Tracker
from etude.core.errors import UserError, extra
from etude.core.loop import Sink


class _TensorBoard:
    def __init__(self, board: Any, folder: Path, resumed_at: int) -> None:
        # What a killed run wrote of the steps that are repeated is hidden.
        self.writer = board.SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Trackio:
    def __init__(self, trackio: Any, folder: Path, resumed_at: int) -> None:
        name = f"{folder.parent.name}-{folder.name}"
        # A new run of a name that another folder had is no part of that one.
        resume = "allow" if resumed_at else "never"
        self.run = trackio.init(project="etude", name=name, resume=resume, embed=False)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


_KINDS = {"tensorboard": ("torch.utils.tensorboard", _TensorBoard), "trackio": ("trackio", _Trackio)}


def open_sinks(trackers: Sequence[Tracker], folder: Path, resumed_at: int) -> list[Sink]:
    """Open the trackers that a run asks for. ``resumed_at`` is the step of the checkpoint, 0 for a new run."""
    sinks: list[Sink] = []
    for tracker in trackers:
        module, kind = _KINDS[tracker]
        try:
            sinks.append(kind(importlib.import_module(module), folder, resumed_at))
        except ImportError as error:
            raise UserError(f"the tracker {tracker} is not installed: {extra('track')}, or drop it") from error
    return sinks
