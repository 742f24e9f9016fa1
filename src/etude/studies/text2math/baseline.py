"""Programs without a network: the one that most problems have, and that of the nearest training problem."""

from collections import Counter
from collections.abc import Callable, Sequence

from etude.metrics.baseline import Baseline
from etude.studies.text2math import scores
from etude.studies.text2math.problems import Problem
from etude.studies.text2math.retrieval import VOTERS, Index
from etude.studies.text2math.splits import checksums as checksums_of
from etude.studies.text2math.splits import known_and_new, load, named
from etude.studies.text2math.study import DataConfig


def nearest_programs(train: Sequence[Problem], problems: Sequence[Problem]) -> list[str]:
    """Return the program that the nearest training problems vote for, for each of some problems."""
    index = Index(train)
    return [index.vote(found)[0].program for found in index.nearest(problems, VOTERS)]


def measure(say: Callable[[str], None]) -> list[Baseline]:
    """Return both methods on dev and test: on all problems, and on those with text or program in training or not."""
    rows: list[Baseline] = []
    for config in (DataConfig(), DataConfig(source="templates")):
        problems = load(config)
        for split in ("dev", "test"):
            rows += compared(problems["train"], problems[split], split, named(config), say)
    return rows


def compared(
    train: Sequence[Problem], problems: Sequence[Problem], split: str, variant: str, say: Callable[[str], None]
) -> list[Baseline]:
    """Return both methods on one split and its parts."""
    say(f"{split}: the nearest of {len(train):,} problems for each of {len(problems):,}")
    parts = known_and_new(train, problems, split)
    usual = Counter(map(_program, train)).most_common(1)[0][0]
    methods = {
        f"nearest training problem (TF-IDF, numbers masked, vote of {VOTERS})": nearest_programs(train, problems),
        f"the most frequent program, {usual}": [usual] * len(problems),
    }
    rows: list[Baseline] = []
    for name, found in methods.items():
        verdicts = [scores.judge(program, problem) for program, problem in zip(found, problems, strict=True)]
        for part, within in parts.items():
            mine = [verdicts[row] for row in within]
            protocol = f"{variant}; {len(mine):,} problems; words, pairs and triples, weighting and vote chosen on dev"
            rows += [
                Baseline(name, metric, part, share, protocol, "%", scores.interval(metric, share, len(mine)),
                         variant=variant)
                for metric, share in scores.summary(mine).items()
            ]  # fmt: skip
    return rows


def _program(problem: Problem) -> str:
    return scores.canonical(problem.program)


def checksums() -> dict[str, str]:
    return checksums_of(DataConfig())
