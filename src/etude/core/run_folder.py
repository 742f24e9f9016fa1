"""A run's folder: its record, its lock, its metrics, its summary."""

import contextlib
import json
import logging
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etude.core.config import Scale, StudyConfig, as_flags, from_dict, read_yaml, to_yaml
from etude.core.errors import UserError, refuse_newer
from etude.core.files import finite, locked, one_line_faults, read_json, sweep, write_atomic, write_json

if TYPE_CHECKING:
    from etude.core.checkpoint import Checkpoints

FORMAT = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """The identity of a run: enough to repeat it. It stands in ``config.yaml``."""

    study: str
    preset: str
    scale: Scale
    overrides: dict[str, Any]
    """The settings in which the run differs from its preset, dotted."""
    config: dict[str, Any]

    @property
    def command(self) -> str:
        """The command line that repeats the run."""
        return shlex.join(["etude", "run", self.study, self.preset, *as_flags(self.overrides)])


class RunFolder:
    """One run on disk. Open it with `create` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = contextlib.ExitStack()

    @classmethod
    def create(cls, path: Path, record: RunRecord) -> "RunFolder":
        """Make a new run's folder; one that holds a run already is refused, of two that begin at once the second."""
        if len(path.name.encode()) > 250:
            raise UserError(
                f"the run's name '{path.name[:40]}...' is too long for a folder: give a shorter one as --name"
            )
        body = {"format": FORMAT, "study": record.study, "preset": record.preset, "scale": record.scale}
        body |= {"overrides": record.overrides, "config": record.config}
        taken = f"{path} holds a run already: `etude resume {path}`, or choose another --name"
        with locked(path / ".lock", taken):
            if (path / "config.yaml").exists():
                raise UserError(taken)
            write_atomic(path / "config.yaml", to_yaml(body))
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open an existing run's folder."""
        if not os.path.exists(path / "config.yaml"):
            raise UserError(f"{path} is not a run folder (it has no config.yaml): `etude run` makes one below runs/")
        run = cls(path)
        _ = run.record
        return run

    @property
    def record(self) -> RunRecord:
        origin = self.path / "config.yaml"
        body = read_yaml(origin)
        number = body.get("format")
        if not isinstance(number, int):
            raise UserError(f"{origin} has no format number: it is not a run of etude")
        refuse_newer(self.path, number, FORMAT)
        del body["format"]
        return from_dict(RunRecord, body, origin=str(origin))

    def config(self, kind: type[StudyConfig]) -> StudyConfig:
        """The run's configuration as its study's dataclass, whose ``recorded`` reads that of an earlier version."""
        return from_dict(
            kind, getattr(kind, "recorded", dict)(self.record.config), origin=str(self.path / "config.yaml")
        )

    def checkpoints(self, keep: int = 2) -> "Checkpoints":
        # With PyTorch, which the records of runs are read without.
        from etude.core.checkpoint import Checkpoints

        return Checkpoints(self.path / "checkpoints", keep)

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def lock(self) -> None:
        """Hold the folder for this process; a second process is refused until this one ends."""
        refusal = f"{self.path} is in use by another process: wait for it, or choose another --name"
        self._lock.enter_context(locked(self.path / ".lock", refusal))
        sweep(self.path)

    def unlock(self) -> None:
        self._lock.close()

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``."""
        path = self.path / "metrics.jsonl"
        with one_line_faults(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row)) + "\n")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, null as NaN. One that cannot be read is passed over; a warning names it,
        unless it is the last, which a crash cuts short."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                # Fails where the step is no number, too.
                row = {name: math.nan if value is None else value for name, value in json.loads(line).items()}
                yield row | {"step": row["step"] + 0}
            except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
                if number < len(lines):
                    _log.warning("line %d of %s cannot be read: left out", number, path)

    def rewind_metrics(self, step: int) -> None:
        """Drop the lines of steps after ``step``: a resumed run writes them again."""
        kept = [row for row in self.metrics() if row["step"] <= step]
        write_atomic(self.path / "metrics.jsonl", "".join(json.dumps(finite(row)) + "\n" for row in kept))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_json(self.path / "summary.json", summary)

    @property
    def summary(self) -> dict[str, Any] | None:
        """The final numbers, or None for a run that has not ended."""
        path = self.path / "summary.json"
        found = read_json(path) if path.exists() else None
        if found is not None and not isinstance(found, dict):
            fix = f"delete it, and `etude resume {self.path}` writes it anew"
            raise UserError(f"{path} is no summary of a run: {fix}")
        return found  # pyright: ignore[reportUnknownVariableType]
