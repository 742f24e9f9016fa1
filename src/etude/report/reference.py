"""Published numbers beside ours."""

import statistics
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from etude.core.config import Scale, from_dict, substance
from etude.core.errors import UserError
from etude.report.verdict import Place, Verdict, half_width, judge, place

T = TypeVar("T")
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
    """The variant that our runs must share to stand beside it, such as the split they trained on."""
    better: Literal["higher", "lower"] = "higher"


@dataclass(frozen=True)
class Proxy:
    """Runs that stand in for a source's own: on other data, with another encoder, of another size."""

    why: str
    """The pair of stand-in and original, as "JPEG copies for CIFAR-10"."""
    variant: str
    """The variant of our runs."""
    experiment: str = ""
    """The published experiment; any where it is empty."""
    cells: dict[str, str] = field(default_factory=dict)
    """The published cells it is about, each with the cell of ours; all, under their own names, where it is empty."""

    def cell(self, number: Published) -> str | None:
        """The cell of ours that stands for a published one, if any does."""
        if self.experiment not in ("", number.experiment):
            return None
        return self.cells.get(number.cell) if self.cells else number.cell


@dataclass(frozen=True)
class Reference:
    """The published numbers of a study's ``reference.toml``."""

    number: list[Published] = field(default_factory=list)
    margin: dict[str, float] = field(default_factory=dict)
    """The difference of each metric that counts as none, in the metric's unit."""
    proxy: list[Proxy] = field(default_factory=list)
    """The first that fits a published number counts."""


@dataclass(frozen=True)
class Headline:
    """The one number by which a study is known, as ``reference.toml`` names it."""

    about: str
    """The quantity that is measured, on which data."""
    experiment: str
    cell: str
    metric: str
    split: str
    published: str
    baseline: str
    """The number of a method that learns nothing, and which."""
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
    margin: float
    """The difference that counts as none."""
    unit: str = ""
    published_protocol: str = ""
    protocol: str = ""
    runs: tuple[str, ...] = ()
    uncertainty: float | None = None
    """The uncertainty of the published number, as its source states it."""
    better: Literal["higher", "lower"] = "higher"
    place: Place | Literal[""] = ""
    """The place of our mean: better by more than the margin, within it, or worse."""
    variant: str = ""
    """The data of our runs."""
    proxy: str = ""
    """The stand-in and its original, where the runs are not of the source's kind."""
    baseline: float | None = None
    """The number of the best simple method on the same split."""
    baseline_name: str = ""

    @property
    def told(self) -> str:
        """The verdict, with where the mean lies where the verdict does not say it, as "one seed, above"."""
        if self.verdict in ("one seed", "proxy"):
            return f"{self.verdict}, {self.place}"
        return f"{self.verdict} (too wide an interval)" if self.verdict == "below" != self.place else self.verdict

    @property
    def claim(self) -> str:
        """The published number in words, as "8 +- 4, lower is better"."""
        spread = "" if self.uncertainty is None else f" +- {self.uncertainty:g}"
        return f"{self.published:g}{spread}" + (", lower is better" if self.better == "lower" else "")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_reference(path: Path) -> Reference:
    """The published numbers of a study; none where it has no such file yet."""
    if not path.exists():
        return Reference()

    def pick(body: dict[str, Any]) -> Reference:
        if unknown := sorted(body.keys() - {"headline", "margin", "number", "proxy"}):
            raise UserError(f"no table '{unknown[0]}'")
        reference = Reference(
            [from_dict(Published, row, origin="[[number]]") for row in body["number"]],
            {metric: float(margin) for metric, margin in body.get("margin", {}).items()},
            [from_dict(Proxy, row, origin="[[proxy]]") for row in body.get("proxy", [])],
        )
        for number in reference.number:
            if number.metric not in reference.margin:
                raise UserError(f"[margin] states none for the metric '{number.metric}'")
        return reference

    return _read(path, pick)


def read_headline(path: Path) -> Headline:
    """The number by which a study is known."""
    return _read(path, lambda body: from_dict(Headline, body["headline"], origin="[headline]"))


def _read(path: Path, pick: Callable[[dict[str, Any]], T]) -> T:
    try:
        return pick(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a table of published numbers ({error})") from error


def measurement(summary: Mapping[str, Any], found: Sequence[str] = ()) -> str:
    """The key that runs that repeat one measurement share: the preset, and the settings that say what is learned.

    The settings that ``found`` names are left out: a step before finds them anew with each seed.
    """
    rest = sorted((name, str(value)) for name, value in substance(summary["overrides"]).items() if name not in found)
    return f"{summary['preset']} {rest}"


class _Found(NamedTuple):
    name: str
    summary: Mapping[str, Any]
    row: Mapping[str, Any]


def compare(study: str, reference: Reference, summaries: Mapping[str, Mapping[str, Any]]) -> list[Comparison]:
    """Each published number beside the runs that measured it, or that stand in for such runs."""
    return [_compare(study, number, reference, summaries) for number in reference.number]


def _compare(
    study: str, number: Published, reference: Reference, summaries: Mapping[str, Mapping[str, Any]]
) -> Comparison:
    proxies = [(proxy.variant, cell, proxy.why) for proxy in reference.proxy if (cell := proxy.cell(number))]
    taken = {(variant, cell) for variant, cell, _ in proxies}
    own = [
        found
        for found in _measured(number, number.cell, number.variant, summaries)
        if (found.row["variant"], number.cell) not in taken
    ]
    why, group = "", _chosen(own)
    for variant, cell, stands in proxies:
        if not group:
            why, group = stands, _chosen(_measured(number, cell, variant, summaries))
    about = {
        "study": study, "experiment": number.experiment, "cell": number.cell, "metric": number.metric,
        "split": number.split, "published": number.value, "source": number.source, "unit": number.unit,
        "margin": reference.margin[number.metric], "published_protocol": number.protocol,
        "uncertainty": number.uncertainty, "better": number.better, "variant": number.variant,
    }  # fmt: skip
    if not group:
        return Comparison(**about, ours=None, interval=None, seeds=(), scale=None, verdict="not run")
    values = [found.row["value"] for found in group]
    width = group[0].row["half_width"] if len(values) == 1 else half_width(values)
    mean = statistics.fmean(values)
    scale: Scale = group[0].summary["scale"]
    counted = () if scale == "smoke" else values
    return Comparison(
        **about | {"variant": group[0].row["variant"]}, ours=mean,
        interval=None if width is None else (mean - width, mean + width),
        seeds=tuple(sorted(found.summary["seed"] for found in group)), scale=scale,
        verdict=judge(counted, number.value, about["margin"], number.better, proxy=bool(why)),
        place=place(mean, number.value, about["margin"], number.better), proxy=why,
        protocol=group[0].row["protocol"], runs=tuple(found.name for found in group),
    )  # fmt: skip


def _measured(number: Published, cell: str, variant: str, summaries: Mapping[str, Mapping[str, Any]]) -> list[_Found]:
    """The rows of runs that measured a published quantity in a cell, of a variant or of any."""
    wanted = {"experiment": number.experiment, "cell": cell, "metric": number.metric, "split": number.split}
    return [
        _Found(name, summary, row)
        for name, summary in summaries.items()
        for row in summary["results"]
        if all(row[key] == value for key, value in wanted.items()) and variant in ("", row["variant"])
    ]


def _chosen(found: Sequence[_Found]) -> list[_Found]:
    """The runs of one measurement that count before others: by scale, nearness to the preset, seeds, never by score."""
    groups: dict[str, list[_Found]] = {}
    for one in found:
        group = groups.setdefault(measurement(one.summary), [])
        # A seed that ran twice says nothing new, and would make the interval narrow.
        if all(one.summary["seed"] != other.summary["seed"] for other in group):
            group.append(one)

    def weight(group: Sequence[_Found]) -> tuple[int, int, int]:
        summary = group[0].summary
        return _SCALES.index(summary["scale"]), -len(substance(summary["overrides"])), len(group)

    return max(sorted(groups.values(), key=lambda group: group[0].name), key=weight, default=[])
