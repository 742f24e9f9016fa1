"""What the tests of experiments share: runs that have finished, from which a job takes settings."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from etude.core.run_folder import RunFolder, RunRecord


class Finished(RunFolder):
    """A run that is not on disk, for jobs that follow it."""

    def __init__(self, path: Path, config: dict[str, Any], best: float = 0.0, best_step: int = 1) -> None:
        super().__init__(path)
        self.own, self.best, self.best_step = config, best, best_step

    @property
    def record(self) -> RunRecord:
        return RunRecord("toy", "smoke", "smoke", {}, self.own)

    @property
    def summary(self) -> dict[str, Any]:
        return {"validation": {"metric": "m", "best": self.best, "direction": "max"}}

    def checkpoints(self, keep: int = 2) -> Any:
        return SimpleNamespace(best_step=self.best_step)
