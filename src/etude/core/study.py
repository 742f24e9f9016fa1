"""What a study is to the rest of etude: presets, experiments, a task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from etude.core.config import Scale, StudyConfig
from etude.core.errors import UserError, nearest

if TYPE_CHECKING:
    # PyTorch takes seconds to import, and `etude list` does without it.
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from etude.core.runtime import Runtime


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
    """How it was measured, in a few words."""
    half_width: float | None = None
    """Half the 95 % interval of this run's own measurement, in the unit of ``value``."""
    unit: str = ""
    variant: str = ""
    """What sets runs of one cell apart, such as the split they trained on; see `Published.variant`."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Task(ABC):
    """A study's networks, optimisers and algorithm. The loop counts, logs, evaluates, saves and resumes.

    ``__init__(config, runtime)`` builds everything; a task whose networks are only read (prediction,
    evaluation) is built the same way.
    """

    modules: "dict[str, nn.Module]"
    """The networks whose weights make a checkpoint, by name."""
    optimizers: "dict[str, Optimizer]"
    monitor: tuple[str, Literal["max", "min"]] | None = None
    """The validation metric that chooses the best checkpoint; None: the last one is kept."""
    ended: bool = False
    """Whether the task has found what it was looking for: the run ends after the evaluation that sets this."""

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
        """What the weights carry beside the configuration, such as a threshold set on the validation split."""
        return {}

    @abstractmethod
    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        """The final numbers on the test split. ``extra`` is what `finish` gave at the end of training."""

    def figures(self, folder: Path, metrics: Sequence[Mapping[str, Any]]) -> None:  # noqa: B027
        """Draw the study's pictures into ``folder``; ``metrics`` are the lines of metrics.jsonl."""

    def data_checksums(self) -> dict[str, str]:
        """The data sets in use, with the digest of each."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """State beside modules and optimisers that an exact resume needs: tensors and plain values."""
        return {}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take back what `extra_state` gave."""


@dataclass(frozen=True)
class Job:
    """One run of an experiment: a preset with dotted settings replaced."""

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict[str, Any])
    after: tuple[str, ...] = ()
    """Jobs of the experiment that must end first. ``{after}`` in a setting is the run folder of the one that validated
    best, ``{after.optim.lr}`` its setting of that name, ``{after.best_step}`` its chosen step."""
    seed: int | None = None
    """A seed of its own: it runs once, whatever seeds are asked for."""


@dataclass(frozen=True)
class Experiment:
    """The runs that a published table needs."""

    about: str
    jobs: Callable[[str], tuple[Job, ...]]
    """The runs for a preset's name."""
    preset: str = "laptop"
    """The preset where the caller names no other."""
    picture: Callable[[Path, str, Mapping[str, Sequence[Mapping[str, Any]]]], None] | None = None
    """Draws the runs beside each other: the file, a title, and by job the lines of metrics.jsonl."""


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
    load_task: Callable[[], type[Any]]
    """Imports and returns the `Task` class."""
    load_predict: Callable[[], Any]
    """Imports and returns the module with ``Options`` (flags) and ``predict(options)``."""
    load_export: Callable[[], Any]
    """Imports and returns the module with ``networks(config, tensors)``, which builds what an exported file holds, and,
    where ONNX can say it, ``graphs(config, networks)``; else ``NO_GRAPHS`` says why."""
    folder: Path
    """Where ``reference.toml``, ``README.md`` and shipped weights lie."""
    reads_data: tuple[str, ...] = ()
    """The data sets it uses, as `etude data` names them."""
    load_evaluate: Callable[[], Any] | None = None
    """Imports and returns the module with ``Options`` (flags) and ``evaluate(weights, options)``, for `etude eval` of
    files."""
    load_show: Callable[[], Any] | None = None
    """Imports and returns the module with ``show(word, out)``, for `etude show STUDY WORD` of what is no preset."""
    example: Callable[[Path], Sequence[str]] | None = None
    """The words of an `etude predict` on what comes with the package; it writes into the folder that it is given."""

    def preset(self, name: str) -> Preset:
        if name not in self.presets:
            raise UserError(f"the study '{self.name}' has no preset '{name}'{nearest(name, self.presets)}")
        return self.presets[name]

    def experiment(self, name: str) -> Experiment:
        if name not in self.experiments:
            raise UserError(f"the study '{self.name}' has no experiment '{name}'{nearest(name, self.experiments)}")
        return self.experiments[name]

    def task(self, config: StudyConfig, runtime: "Runtime") -> Task:
        return self.load_task()(config, runtime)

    @property
    def shipped_weights(self) -> Path | None:
        """The trained weights that come with the package, if any do."""
        return next(iter(sorted(self.folder.glob("weights/*.safetensors"))), None)
