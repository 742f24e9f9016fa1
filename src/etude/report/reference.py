"""Published numbers beside ours."""

import math
import statistics
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from etude.core.config import Scale, from_dict, substance
from etude.core.errors import UserError

T = TypeVar("T")
Verdict = Literal["reproduced", "below", "not run at this scale"]
_SCALES: tuple[Scale, ...] = ("smoke", "laptop", "full")


@dataclass(frozen=True)
class Published:
    """One published number, as ``reference.toml`` holds it."""

    experiment: str
    cell: str
    metric: str
    split: str
    value: float
    source: str
    protocol: str
    unit: str = ""
    uncertainty: float | None = None
    variant: str = ""
    """What our runs must share with it to stand beside it, such as the split they trained on."""
    better: Literal["higher", "lower"] = "higher"


@dataclass(frozen=True)
class Headline:
    """The one number by which a study is known, as ``reference.toml`` names it."""

    about: str
    """What is measured, on which data."""
    experiment: str
    cell: str
    metric: str
    split: str
    published: str
    baseline: str
    """What a method that learns nothing gets, and which."""
    variant: str = ""


@dataclass(frozen=True)
class Comparison:
    """A published cell beside ours."""

    study: str
    experiment: str
    cell: str
    metric: str
    split: str
    published: float
    source: str
    ours: float | None
    interval: tuple[float, float] | None
    """95 %: over seeds where there are several, else of the one run's own measurement."""
    seeds: tuple[int, ...]
    scale: Scale | None
    verdict: Verdict
    unit: str = ""
    published_protocol: str = ""
    protocol: str = ""
    runs: tuple[str, ...] = ()
    uncertainty: float | None = None
    """Of the published number, as its source states it."""
    better: Literal["higher", "lower"] = "higher"

    @property
    def claim(self) -> str:
        """The published number in words, as "8 +- 4, lower is better"."""
        spread = "" if self.uncertainty is None else f" +- {self.uncertainty:g}"
        return f"{self.published:g}{spread}" + (", lower is better" if self.better == "lower" else "")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_reference(path: Path) -> list[Published]:
    """The published numbers of a study; none where it has no such file yet."""
    if not path.exists():
        return []
    return _read(path, lambda body: [from_dict(Published, row, origin="[[number]]") for row in body["number"]])


def read_headline(path: Path) -> Headline:
    """The number by which a study is known."""
    return _read(path, lambda body: from_dict(Headline, body["headline"], origin="[headline]"))


def _read(path: Path, pick: Callable[[dict[str, Any]], T]) -> T:
    try:
        return pick(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a table of published numbers ({error})") from error


def compare(study: str, published: Sequence[Published], summaries: Mapping[str, Mapping[str, Any]]) -> list[Comparison]:
    """Each published number beside the runs that measured it."""
    return [_compare(study, number, summaries) for number in published]


def measurement(summary: Mapping[str, Any]) -> str:
    """What runs that repeat one measurement share: the preset, and the settings that say what is learned."""
    rest = sorted((name, str(value)) for name, value in substance(summary["overrides"]).items())
    return f"{summary['preset']} {rest}"


def _compare(study: str, number: Published, summaries: Mapping[str, Mapping[str, Any]]) -> Comparison:
    groups: dict[str, list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]] = {}
    for name, summary in summaries.items():
        for row in summary["results"]:
            same = all(row[key] == getattr(number, key) for key in ("experiment", "cell", "metric", "split"))
            if same and number.variant in ("", row["variant"]):
                group = groups.setdefault(measurement(summary), [])
                # A seed that ran twice says nothing new, and would make the interval narrow.
                if all(summary["seed"] != other["seed"] for _, other, _ in group):
                    group.append((name, summary, row))
    blank = Comparison(
        study, number.experiment, number.cell, number.metric, number.split, number.value, number.source,
        None, None, (), None, "not run at this scale", number.unit, number.protocol,
        uncertainty=number.uncertainty, better=number.better,
    )  # fmt: skip
    if not groups:
        return blank
    chosen = max(sorted(groups.values(), key=lambda g: g[0][0]), key=_weight)
    values = [row["value"] for _, _, row in chosen]
    width = _half_width(values, cast("float | None", chosen[0][2]["half_width"]))
    mean = statistics.fmean(values)
    interval = None if width is None else (mean - width, mean + width)
    scale: Scale = chosen[0][1]["scale"]
    reach = mean if interval is None else interval[1] if number.better == "higher" else interval[0]
    good = reach >= number.value if number.better == "higher" else reach <= number.value
    verdict: Verdict = "not run at this scale" if scale == "smoke" else "reproduced" if good else "below"
    seeds = tuple(sorted(summary["seed"] for _, summary, _ in chosen))
    runs = tuple(name for name, _, _ in chosen)
    return Comparison(
        study, number.experiment, number.cell, number.metric, number.split, number.value, number.source,
        mean, interval, seeds, scale, verdict, number.unit, number.protocol, chosen[0][2]["protocol"], runs,
        number.uncertainty, number.better,
    )  # fmt: skip


def _weight(group: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> tuple[int, int, int]:
    """What makes one group of runs count before another: scale, nearness to the preset, seeds; never the score."""
    summary = group[0][1]
    return _SCALES.index(summary["scale"]), -len(substance(summary["overrides"])), len(group)


def _half_width(values: Sequence[float], own: float | None) -> float | None:
    if len(values) == 1:
        return own
    # Slow to import, and rarely wanted.
    from scipy.stats import t as student  # pyright: ignore[reportMissingTypeStubs]

    quantile = float(student.ppf(0.975, len(values) - 1))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return quantile * statistics.stdev(values) / math.sqrt(len(values))
