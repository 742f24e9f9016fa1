"""The ranges that `etude tune` searches over, in the language that its help describes, and the record of its trials.

Both do without Optuna.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from etude.core.config import as_flags, flat, to_dict
from etude.core.errors import UserError, refuse_newer
from etude.core.files import locked, read_json, write_json
from etude.core.study import Study
from etude.runs.flags import parse
from etude.runs.grid import Item

Kind = Literal["choice", "float", "log", "int", "logint"]
State = Literal["begun", "done", "stopped", "failed"]
_RANGES = ("float", "log", "int", "logint")
FORMAT = 1


@dataclass(frozen=True)
class Range:
    """The values that one setting may have."""

    name: str
    """Dotted, as in the configuration."""
    kind: Kind
    values: tuple[Any, ...]
    """The choices, or both ends."""
    word: str
    """The words that it was given in."""

    @property
    def all(self) -> Sequence[Any]:
        """The values that there are; both ends where a number is continuous."""
        return range(self.values[0], self.values[1] + 1) if self.kind in ("int", "logint") else self.values

    def value(self, drawn: Any) -> Any:
        """Returns the value of a drawn number: the choice that it counts, or itself, to four digits in the range."""
        if self.kind in ("float", "log"):
            low, high = self.values
            return min(max(float(f"{drawn:.4g}"), low), high)
        return self.values[drawn] if self.kind == "choice" else drawn


def read_search(study: Study, preset: str, words: Sequence[str], fixed: Mapping[str, Any]) -> list[Range]:
    """``NAME=SPEC`` words, each name and value held to the study's configuration with its ``fixed`` settings.

    Raises:
        UserError: no such setting, a value of the wrong kind, ends the wrong way round, or nothing to choose from.
    """

    def value_of(name: str, text: str) -> Any:
        """A setting's value as the configuration holds it, read as a flag is."""
        flags = as_flags({**fixed, name: text == "true" if text in ("true", "false") else text})
        prog, before = f"etude run {study.name} {preset}", study.preset(preset).build()
        return flat(to_dict(parse(study.config, flags, prog=prog, default=before)))[name]

    ranges: dict[str, Range] = {}
    for word in words:
        name, _, spec = word.partition("=")
        if not name or not spec:
            raise UserError(
                f"--search takes NAME=log:LOW:HIGH, float:LOW:HIGH, int:LOW:HIGH, logint:LOW:HIGH or A,B, not '{word}'"
            )
        name = name.replace("-", "_")
        if name == "seed":
            raise UserError(
                "--search seed: seeds are no setting to choose by validation; --seed gives that of all trials"
            )
        if name in fixed:
            raise UserError(f"--search {word}: --set gives {name} a value already")
        if name in ranges:
            raise UserError(f"--search names {name} twice")
        kind, colon, ends = spec.partition(":")
        if colon and kind in _RANGES:
            values = _ends(word, kind, ends)
            for end in values:
                found = value_of(name, str(int(end) if end == int(end) else end))
                if isinstance(found, bool) or not isinstance(found, int | float):
                    raise UserError(f"--search {word}: {name} is no number; give its values as {name}=A,B,C")
                if isinstance(found, int) and kind in ("float", "log"):
                    raise UserError(f"--search {word}: {name} is a whole number: int:LOW:HIGH or logint:LOW:HIGH")
        else:
            kind, values = "choice", tuple(value_of(name, text) for text in spec.split(","))
            if len(set(map(str, values))) < max(2, len(values)):
                raise UserError(f"--search {word}: two different values or more; one is given with --set")
        ranges[name] = Range(name, cast(Kind, kind), values, word)
    if not ranges:
        raise UserError("--search names no setting: give one or more, such as --search optim.lr=log:1e-4:1e-1")
    return list(ranges.values())


def _ends(word: str, kind: str, text: str) -> tuple[Any, Any]:
    """Both ends of a range, in order."""
    texts, whole = text.split(":"), kind in ("int", "logint")
    if len(texts) != 2:
        raise UserError(f"--search {word}: {kind} takes two ends, {kind}:LOW:HIGH")
    try:
        low, high = (int(text) if whole else float(text) for text in texts)
    except ValueError:
        raise UserError(f"--search {word}: the ends of {kind} are {'whole ' if whole else ''}numbers") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"--search {word}: the first end must be below the second")
    if kind in ("log", "logint") and low <= 0:
        raise UserError(f"--search {word}: the ends of {kind} must be above 0")
    return low, high


def size_of(ranges: Sequence[Range]) -> float:
    """The number of different trials; infinity where a number is continuous."""
    return math.prod((math.inf if range_.kind in ("float", "log") else len(range_.all) for range_ in ranges), start=1.0)


@dataclass
class Trial:
    """One trial: an ordinary run."""

    number: int
    settings: dict[str, Any]
    """The values of what is searched over."""
    state: State = "begun"
    reason: str = ""


@dataclass
class Ledger:
    """The search's record, ``NAME.tune.json`` beside the run folders: what it is, and its trials."""

    path: Path
    about: dict[str, Any]
    """The identity of a search: study, preset, settings, ranges, seed."""
    monitor: tuple[str, str] | None = None
    """The validation metric, and whether it should be ``max`` or ``min``."""
    trials: list[Trial] = field(default_factory=list[Trial])

    @classmethod
    def open(cls, path: Path, about: dict[str, Any]) -> "Ledger":
        """Begin a search, or take it up: then it must be the same one."""
        if not path.exists():
            return cls(path, about)
        body = read_json(path)
        try:
            refuse_newer(path, body["format"], FORMAT)
            monitor = tuple(body["monitor"]) if body["monitor"] else None
            known, trials = dict(body["about"]), [Trial(**trial) for trial in body["trials"]]
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} is no record of a search ({error!r}): move it away") from error
        other = sorted(name for name in known.keys() | about.keys() if known.get(name) != about.get(name))
        if other:
            raise UserError(
                f"{path} is the record of another search (it differs in {', '.join(other)}): give another --name"
            )
        return cls(path, about, monitor, trials)

    def write(self) -> None:
        trials = [dataclasses.asdict(trial) for trial in self.trials]
        monitor = list(self.monitor) if self.monitor else None
        write_json(self.path, {"format": FORMAT, "about": self.about, "monitor": monitor, "trials": trials})

    @property
    def ended(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state != "begun"]

    def command(self, settings: Mapping[str, Any], *more: str) -> list[str]:
        """The words of ``etude`` that run the study with these settings and those of every trial."""
        about = self.about
        flags = as_flags({**about["set"], "seed": about["seed"], **settings})
        return ["run", about["study"], about["preset"], *more, *flags]

    def item(self, trial: Trial) -> Item:
        """A trial's run."""
        path = self.path.with_name(f"{self.path.name.removesuffix('.tune.json')}-{trial.number:03d}")
        where = ("--name", path.name, "--runs", str(path.parents[1]))
        return Item(path.name, path, lambda: self.command(trial.settings, *where))

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Hold the record for this process."""
        refusal = f"{self.path} is in use by another `etude tune`: wait for it, or give another --name"
        return locked(self.path.with_name(f".{self.path.name}.lock"), refusal)


@dataclass(frozen=True)
class Score:
    """The best score that a run has reached on validation so far."""

    value: float
    step: int


def best_so_far(rows: Iterable[Mapping[str, Any]], monitor: tuple[str, str]) -> Iterator[tuple[int, Score | None]]:
    """Each evaluation in the lines of metrics.jsonl: its step, and the best score up to there.

    None where no score was a finite number yet.
    """
    name, direction = monitor
    key, best = name if "/" in name else f"val/{name}", None
    for row in rows:
        if key in row:
            value = float(row[key])
            better = best is None or (value > best.value if direction == "max" else value < best.value)
            if math.isfinite(value) and better:
                best = Score(value, row["step"])
            yield row["step"], best
