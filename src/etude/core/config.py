"""Configurations: nested frozen dataclasses, to YAML and back."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import pydantic
import yaml

from etude.core.bounds import check_bounds, require
from etude.core.errors import UserError, nearest

C = TypeVar("C")
LENGTHS = ("loop.max_steps", "loop.epochs")

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["fp32", "bf16", "fp16"]
Scale = Literal["full", "laptop", "smoke"]
Tracker = Literal["tensorboard", "trackio"]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """The length of a run, and when it logs, evaluates and saves. Counts are optimiser steps."""

    max_steps: int = 0
    """Optimiser steps in all; 0: as many as `epochs` says."""
    epochs: float = 0.0
    """Times that the training data that is read is seen; 0: `max_steps` says it. Of both, the shorter one holds."""
    log_every: int = 50
    """Steps between two lines of training metrics."""
    eval_every: int = 500
    """Steps between two evaluations on the validation split; 0: only at the end."""
    save_every: int = 500
    """Steps between two checkpoints; 0: only at the end."""
    save_minutes: float = 10.0
    """Minutes after which a checkpoint is due in any case; 0: never for this reason."""
    patience: int = 0
    """Evaluations without a better validation metric before the run stops early; 0: never."""
    keep: int = 2
    """Newest checkpoints that stay on disk beside the best one."""
    device: Device = "auto"
    """The device to compute on; auto: an accelerator if there is one."""
    precision: Precision = "fp32"
    """Automatic mixed precision of the forward pass."""
    compile: bool = False
    """Compile the networks (torch.compile)."""
    trackers: tuple[Tracker, ...] = ()
    """Trackers fed beside metrics.jsonl (extra `track`)."""

    def __post_init__(self) -> None:
        for name in ("log_every", "keep"):
            require(getattr(self, name) >= 1, f"loop.{name}", "at least 1", getattr(self, name))
        for name in ("max_steps", "epochs", "eval_every", "save_every", "save_minutes", "patience"):
            require(getattr(self, name) >= 0, f"loop.{name}", "0 or more", getattr(self, name))
        require(self.max_steps + self.epochs > 0, "loop.max_steps", "at least 1 where loop.epochs is 0", self.max_steps)

    def steps(self, epoch: int) -> int:
        """The optimiser steps of a run, of which ``epoch`` see the training data once."""
        return min(n for n in (self.max_steps, max(1, round(self.epochs * epoch)) if self.epochs else 0) if n)


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """The number of items at a time; a study says what they are, and what is usual."""

    size: int
    """Items of one optimiser step, over all processes."""
    parts: int = 1
    """Equal parts whose gradients are added up, each normalised on its own; at least as many as processes."""
    evaluation: int
    """Items at a time where nothing is learned."""

    def __post_init__(self) -> None:
        for name in ("size", "parts", "evaluation"):
            require(getattr(self, name) >= 1, f"batch.{name}", "at least 1", getattr(self, name))
        require(self.size % self.parts == 0, "batch.size", f"a multiple of batch.parts ({self.parts})", self.size)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The settings that every study has; a study adds its own parts."""

    loop: LoopConfig
    """Length, logging, evaluation, checkpoints, device."""
    seed: int = 0
    """Every draw of the run is keyed by it."""
    init: str = ""
    """Weights to begin with: a weights file, a run folder, an exported folder, or the study's name for those that come
    with it. A last layer of other classes begins anew."""

    def __post_init__(self) -> None:
        check_bounds(self)


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested dicts, lists and plain values, as JSON and YAML hold them."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(values: dict[str, Any]) -> str:
    """YAML in the order of the fields, in ASCII: PyYAML writes U+0085 as it is, and reads it as a space."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=False, width=100)


def from_dict(kind: type[C], values: Any, *, origin: str = "the configuration") -> C:
    """Build and check a configuration from nested dicts, as `to_dict` makes them.

    Raises:
        UserError: an unknown key or a wrong value, in one line that calls the source ``origin``.
    """
    _refuse_unknown(kind, values, "", origin)
    try:
        return pydantic.TypeAdapter(kind).validate_python(values)
    except pydantic.ValidationError as error:
        raise UserError(f"{origin}: {first_fault(error)}") from error


def first_fault(error: pydantic.ValidationError) -> str:
    """The first fault of a validation in one line, after its place."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}"


def _refuse_unknown(kind: Any, values: Any, prefix: str, origin: str) -> None:
    if not dataclasses.is_dataclass(kind) or not isinstance(values, dict):
        return
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, value in values.items():  # pyright: ignore[reportUnknownVariableType]
        if name not in fields:
            raise UserError(f"{origin}: no setting '{prefix}{' '.join(str(name).split())}'{nearest(str(name), fields)}")  # pyright: ignore[reportUnknownArgumentType]
        _refuse_unknown(fields[str(name)].type, value, f"{prefix}{name}.", origin)  # pyright: ignore[reportUnknownArgumentType]


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds one mapping; `UserError` where it is missing or broken."""
    try:
        text = path.read_text(encoding="utf-8")
        tokens: Any = cast(Any, yaml).scan(text, yaml.SafeLoader) if "*" in text else ()
        if len(text) > 1 << 20 or any(isinstance(token, yaml.AliasToken) for token in tokens):
            raise ValueError("it has aliases, which may outgrow memory, or more than a million characters")
        values = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except (OSError, ValueError, LookupError, AttributeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as YAML ({reason})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a YAML mapping")
    return values  # pyright: ignore[reportUnknownVariableType]


def override(config: C, changes: dict[str, Any]) -> C:
    """A copy with dotted settings replaced: ``override(c, {"loop.max_steps": 10})``."""
    values = to_dict(config)
    other_length = {name: 0 for name in LENGTHS if any(changes.get(length) for length in LENGTHS)}
    for dotted, value in (other_length | changes).items():
        *parents, leaf = dotted.split(".")
        place = values
        for parent in parents:
            if not isinstance(place.get(parent), dict):
                raise UserError(f"no setting '{dotted}'{nearest(parent, place)}")
            place = place[parent]
        if leaf not in place:
            raise UserError(f"no setting '{dotted}'{nearest(leaf, place)}")
        place[leaf] = value
    return from_dict(type(config), values)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted settings."""
    rows: dict[str, Any] = {}
    for name, value in values.items():
        rows |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}  # pyright: ignore[reportUnknownArgumentType]
    return rows


def differences(before: Any, after: Any) -> dict[str, Any]:
    """The dotted settings in which two configurations of one kind differ, with the later values."""
    old, new = flat(to_dict(before)), flat(to_dict(after))
    return {name: value for name, value in new.items() if old.get(name) != value}


_TECHNICAL = ("log_every", "save_every", "save_minutes", "keep", "device", "compile", "trackers")


def substance(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that say what a run learns: without its seed, and without how it is made and watched."""
    silent = {"seed", "selected_run", *(f"loop.{name}" for name in _TECHNICAL)}
    silent |= {name for name in LENGTHS if not overrides.get(name)}
    return {name: value for name, value in overrides.items() if name not in silent}


def run_name(first: Sequence[str], overrides: Mapping[str, Any], last: Sequence[str] = ()) -> str:
    """A folder's name with the settings that set a run apart: ``laptop-episodes.shot-5-seed0``.

    It needs no quoting in a shell.
    """
    apart = [f"{name}-{value}" for name, value in substance(overrides).items()]
    return re.sub(r"[^\w.+-]", "_", "-".join([*first, *apart, *last]).replace(" ", ""), flags=re.ASCII)


def as_flags(overrides: Mapping[str, object]) -> list[str]:
    """Dotted settings as words of the command line."""
    words: list[str] = []
    for name, value in overrides.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            parent, dot, leaf = flag.rpartition(".")
            words.append(f"--{flag}" if value else f"--{parent}{dot}no-{leaf}")
        elif isinstance(value, list | tuple):
            words += [f"--{flag}", *(str(v) for v in value)]  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        else:
            words += [f"--{flag}", str(value)]
    return words
