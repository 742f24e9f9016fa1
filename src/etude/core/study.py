"""A study as the rest of etude sees it: presets, experiments, a task."""

import importlib
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from etude.core.config import Scale, StudyConfig
from etude.core.errors import UserError, nearest
from etude.core.run_folder import RunFolder

if TYPE_CHECKING:
    # PyTorch takes seconds to import, and `etude list` does without it.
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from etude.core.runtime import Runtime

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """One final number, with what it means."""

    experiment: str
    """The published table it belongs to, such as ``"fewshot"``."""
    cell: str
    """Its place in that table, such as ``"w5s1"``."""
    metric: str
    split: str
    value: float
    protocol: str
    """The way it was measured, in a few words."""
    half_width: float | None = None
    """Half the 95 % interval of this run's own measurement, in the unit of ``value``."""
    unit: str = ""
    variant: str = ""
    """The mark that sets runs of one cell apart, such as the split they trained on; see `Published.variant`."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Task(ABC):
    """A study's networks, optimisers and algorithm. The loop counts, logs, evaluates, saves and resumes.

    ``__init__(config, runtime)`` builds everything; a task whose networks are only read (prediction,
    evaluation) is built the same way.
    """

    config: Any
    modules: "dict[str, nn.Module]"
    """The networks whose weights make a checkpoint, by name."""
    optimizers: "dict[str, Optimizer]"
    monitor: tuple[str, Literal["max", "min"]] | None = None
    """The validation metric that chooses the best checkpoint; None: the last one is kept."""
    ended: bool = False
    """True once the task has found what it was looking for: the run ends after the evaluation that sets this."""

    @property
    def epoch_steps(self) -> int:
        """Steps in which the training data that is read is seen once; 0: there are no epochs."""
        return 0

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run; a length in epochs is counted on the data that is read."""
        return self.config.loop.steps(self.epoch_steps if self.config.loop.epochs else 0)

    @property
    def exported(self) -> "Mapping[str, nn.Module]":
        """The networks that `etude export` writes."""
        return self.modules

    @abstractmethod
    def train_step(self, step: int) -> "Mapping[str, Tensor]":
        """One optimiser step, from 0. Returns scalars on the device, ``loss`` among them."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Metrics on the validation split, the same for the same weights; a name with a slash is logged as it is."""

    def finish(self) -> dict[str, Any]:
        """The values that weights carry beside the configuration, such as a threshold set on the validation split."""
        return {}

    @abstractmethod
    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        """The final numbers on the test split. ``extra`` is what `finish` gave at the end of training."""

    def data_checksums(self) -> dict[str, str]:
        """The data sets in use, with the digest of each."""
        return {}

    def inventory(self) -> Mapping[str, Any]:
        """The record of what was read of a user's own folder and what was not; its ``lines`` are for people."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """State beside modules and optimisers that an exact resume needs: tensors and plain values."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take back what `extra_state` gave."""


Overrides = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One run of an experiment: a preset with dotted settings replaced."""

    name: str
    overrides: Overrides | Callable[[Sequence[RunFolder]], Overrides] = field(default_factory=dict[str, Any])
    """The settings, or what makes them of the runs in ``after`` that have finished, in their order."""
    after: tuple[str, ...] = ()
    """Jobs of the experiment that must end first, at least one of them well."""
    seed: int | None = None
    """A seed of its own: it runs once, whatever seeds are asked for."""

    def settings(self, finished: Sequence[RunFolder]) -> Overrides:
        """The settings of the run, which those it follows may decide."""
        return self.overrides(finished) if callable(self.overrides) else self.overrides


def best_of(finished: Sequence[RunFolder]) -> RunFolder:
    """The run that validated best; a single one needs no validation."""

    def score(run: RunFolder) -> float:
        about = (run.summary or {})["validation"]
        return about["best"] if about["direction"] == "max" else -about["best"]

    return max(finished, key=score) if len(finished) > 1 else finished[0]


@dataclass(frozen=True)
class Experiment:
    """The runs that a published table needs."""

    about: str
    jobs: Callable[[str], tuple[Job, ...]]
    """The runs for a preset's name."""
    preset: str = "laptop"
    """The preset where the caller names no other."""
    compared: bool = False
    """True where ``compared`` of the study's figures.py draws its runs beside each other."""


@dataclass(frozen=True)
class Preset:
    build: Callable[[], StudyConfig]
    scale: Scale


@dataclass(frozen=True)
class Study:
    """A study as the command line and the report see it."""

    name: str
    title: str
    about: str
    config: type[StudyConfig]
    presets: Mapping[str, Preset]
    experiments: Mapping[str, Experiment]
    reads_data: tuple[str, ...] = ()
    """The data sets it uses, as `etude data` names them."""
    pictures: Mapping[str, str] = field(default_factory=dict[str, str])
    """The words on each picture of figures.py, by its file's name, for those who do not see it."""

    @property
    def folder(self) -> Path:
        """The folder that holds everything that knows the study's name."""
        return Path(str(sys.modules[self.config.__module__].__file__)).parent

    def has(self, part: str) -> bool:
        """True where the study has a file of that name."""
        return (self.folder / f"{part}.py").is_file()

    def module(self, part: str) -> Any:
        """One file of the study, imported: ``task``, ``figures``, ``predict``, ``export``, ``page``, ...

        Raises:
            UserError: the study has no such file.
        """
        if not self.has(part):
            raise UserError(self.lacks(f"{part}.py"))
        return importlib.import_module(f"{self.config.__module__.rpartition('.')[0]}.{part}")

    def lacks(self, file: str) -> str:
        """The line that says that a file of the study is not there."""
        return f"the study '{self.name}' has no {file} yet"

    def shows(self, picture: Path) -> str:
        """The words for what a picture of this study shows; empty where it is not known."""
        return self.pictures.get(re.sub(r"-\d+$", "", picture.stem), "")

    def preset(self, name: str) -> Preset:
        return self._named("preset", name, self.presets)

    def experiment(self, name: str) -> Experiment:
        return self._named("experiment", name, self.experiments)

    def _named(self, what: str, name: str, known: Mapping[str, T]) -> T:
        if name not in known:
            raise UserError(f"the study '{self.name}' has no {what} '{name}'{nearest(name, known)}")
        return known[name]

    def task(self, config: StudyConfig, runtime: "Runtime") -> Task:
        return self.module("task").make_task(config, runtime)

    @property
    def shipped_weights(self) -> Path | None:
        """The trained weights that come with the package, if any do."""
        return next(iter(sorted(self.folder.glob("weights/*.safetensors"))), None)
