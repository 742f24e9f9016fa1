"""The sources' sentences, judged by our runs: ``claims.toml`` of each study."""

import math
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from etude import registry
from etude.core.config import Scale, from_dict
from etude.core.errors import UserError
from etude.core.study import Study
from etude.report.reference import measurement
from etude.report.results import summaries
from etude.report.verdict import SEEDS, ClaimVerdict, Interval, decide, interval_of

Runs = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""The summaries of each study, by name."""
_Measured = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Cell:
    """The settings of a measured cell that differ from what its claim says of all of them."""

    cell: str = ""
    study: str = ""
    experiment: str = ""
    metric: str = ""
    split: str = ""
    variant: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    """Settings by which its runs differ from their preset, as text; empty: as the preset has it."""


@dataclass(frozen=True)
class Claim:
    """A sentence of a source, and the differences of our measurements that decide it."""

    claim: str
    """The sentence, in our words."""
    source: str
    experiment: str
    metric: str
    split: str
    contrasts: list[dict[str, float]]
    """Sums of cells with their factors, as ``{bn = 1, in = -1}``: each must lie between the bounds."""
    low: float | None = None
    high: float | None = None
    variant: str = ""
    """The data of our runs; any where it is empty."""
    found: list[str] = field(default_factory=list)
    """The settings that a step before finds anew with each seed, such as the genotype of a search."""
    cells: dict[str, Cell] = field(default_factory=dict)
    """The cells that are called otherwise, or lie in another experiment or study."""

    def __post_init__(self) -> None:
        if not self.contrasts or not all(self.contrasts):
            raise ValueError("contrasts: empty: name the cells that are compared, as {bn = 1, in = -1}")
        if self.low is None and self.high is None:
            raise ValueError("low, high: neither is given: the claim would hold whatever was measured")


@dataclass(frozen=True)
class Judgement:
    """A claim with its verdict."""

    study: str
    claim: str
    source: str
    verdict: ClaimVerdict
    evidence: str
    """Each difference with its interval and seeds, and what they must be."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_claims(path: Path) -> list[Claim]:
    """The claims about a study; none where it has no such file yet.

    Raises:
        UserError: the file is no table of claims; the message names the place.
    """
    if not path.exists():
        return []
    try:
        body = tomllib.loads(path.read_text(encoding="utf-8"))
        return [from_dict(Claim, row, origin=f"[[claim]] {n}") for n, row in enumerate(body["claim"], 1)]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a table of claims ({error})") from error


def judgements(studies: Sequence[Study], runs: Sequence[Path]) -> list[Judgement]:
    """The verdict on each claim about some studies, from the committed and local runs."""
    known = {name: summaries(registry.load(name), runs) for name in registry.NAMES}
    claims = [(study.name, claim) for study in studies for claim in read_claims(study.folder / "claims.toml")]
    return [judge_claim(study, claim, known) for study, claim in claims]


def judge_claim(study: str, claim: Claim, runs: Runs) -> Judgement:
    """The verdict on one claim."""
    low, high = -math.inf if claim.low is None else claim.low, math.inf if claim.high is None else claim.high
    intervals: list[Interval] = []
    evidence: list[str] = []
    whole = True
    for contrast in claim.contrasts:
        values = {name: _values(study, claim, name, runs) for name in contrast}
        interval, told = _difference(contrast, values)
        evidence.append(told)
        if interval is None:
            whole = False
        else:
            intervals.append(interval)
    verdict = decide(intervals, low, high)
    # A claim about several cells falls by one of them, and stands by all.
    if not whole and verdict != "contradicted":
        verdict = "not tested"
    place = f"; {claim.variant}" if claim.variant else ""
    return Judgement(study, claim.claim, claim.source, verdict, "; ".join([*evidence, _wanted(claim)]) + place)


def _wanted(claim: Claim) -> str:
    if claim.low is None:
        return f"wanted: at most {claim.high:g}"
    return f"wanted: at least {claim.low:g}" + ("" if claim.high is None else f", at most {claim.high:g}")


def _values(study: str, claim: Claim, name: str, runs: Runs) -> dict[int, float]:
    """The values of one measurement in a cell, by seed: the runs of most seeds, of laptop size or more."""
    about = claim.cells.get(name, Cell())
    wanted = {
        "experiment": about.experiment or claim.experiment, "cell": about.cell or name,
        "metric": about.metric or claim.metric, "split": about.split or claim.split,
    }  # fmt: skip
    variant = about.variant or claim.variant
    groups: dict[tuple[str, str], dict[int, float]] = {}
    for _, summary in sorted(runs.get(about.study or study, {}).items()):
        scale: Scale = summary["scale"]
        if any(str(summary["overrides"].get(name, "")) != value for name, value in about.settings.items()):
            continue
        for row in summary["results"]:
            if scale != "smoke" and variant in ("", row["variant"]) and wanted.items() <= row.items():
                group = groups.setdefault((row["variant"], measurement(summary, claim.found)), {})
                group.setdefault(summary["seed"], row["value"])
    return max(groups.values(), key=len, default={})


def _difference(contrast: Mapping[str, float], values: _Measured) -> tuple[Interval | None, str]:
    """The interval of a contrast, None from fewer than three seeds, and the words for it."""
    words = " ".join(f"{'-' if factor < 0 else '+'} {_times(factor)}{name}" for name, factor in contrast.items())
    words = words.removeprefix("+ ")
    paired = sorted(set.intersection(*(set(seeds) for seeds in values.values())))
    sums = [sum(factor * values[name][seed] for name, factor in contrast.items()) for seed in paired]
    if len(paired) >= SEEDS:
        interval, seeds = interval_of(sums), f"{len(paired)} seeds paired"
    elif all(len(by_seed) >= SEEDS for by_seed in values.values()):
        interval, seeds = _welch(contrast, values), "seeds not paired"
    elif paired:
        return None, f"{words}: {statistics.fmean(sums):.4g} ({len(paired)} of {SEEDS} seeds)"
    else:
        return None, f"{words}: not run in {', '.join(name for name, by_seed in values.items() if not by_seed)}"
    return interval, f"{words}: {sum(interval) / 2:.4g} ({interval[0]:.4g} to {interval[1]:.4g}, {seeds})"


def _times(factor: float) -> str:
    return "" if abs(factor) == 1 else f"{abs(factor):g} "


def _welch(contrast: Mapping[str, float], values: _Measured) -> Interval:
    """The 95 % interval of a contrast of independent means (Welch 1947, the degrees of freedom of Satterthwaite)."""
    from scipy.stats import t as student  # pyright: ignore[reportMissingTypeStubs]

    runs = [(factor, list(values[name].values())) for name, factor in contrast.items()]
    mean = sum(factor * statistics.fmean(seeds) for factor, seeds in runs)
    parts = [(factor**2 * statistics.variance(seeds) / len(seeds), len(seeds) - 1) for factor, seeds in runs]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return mean, mean
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    width = float(student.ppf(0.975, freedom)) * math.sqrt(variance)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return mean - width, mean + width
