"""Programs without a network: the one that most problems have, and that of the nearest training problem.

Problems of the data set repeat each other with other numbers. With its numbers masked, three of four problems of the
test split are a training problem letter for letter, and nearly all have that one's program.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from etude.data.mathqa import masked
from etude.metrics.baseline import Baseline
from etude.studies.text2math import scores
from etude.studies.text2math.problems import Problem
from etude.studies.text2math.program import numbers_of
from etude.studies.text2math.study import DataConfig
from etude.studies.text2math.task import checksums as checksums_of
from etude.studies.text2math.task import known_and_new, load

NEIGHBOURS = 10
SHARPNESS = 16
"""The power of the cosine that a vote weighs: of 1, 2, 4, 8, 16 and 32 it answers most of dev."""
_CHUNK = 250


def nearest_programs(train: Sequence[Problem], problems: Sequence[Problem]) -> list[str]:
    """Return the program that the nearest training problems vote for, for each of some problems.

    Texts are compared by the cosine of the TF-IDF of their words, pairs and triples of words, numbers masked. Training
    problems with as many numbers come before all others; a vote weighs a power of the cosine.

    Args:
        train: problems with programs.
        problems: likewise or without.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(preprocessor=masked, token_pattern=r"\S+", ngram_range=(1, 3), sublinear_tf=True)
    train_WP = words.fit_transform([problem.text for problem in train]).T.tocsr()
    programs = [scores.canonical(problem.program) for problem in train]
    counts_P = np.array([len(numbers_of(problem.text)) for problem in train])
    found: list[str] = []
    for start in range(0, len(problems), _CHUNK):
        part = problems[start : start + _CHUNK]
        cosine_NP = (words.transform([problem.text for problem in part]) @ train_WP).toarray()
        for cosine_P, problem in zip(cosine_NP, part, strict=True):
            same_P = counts_P == len(numbers_of(problem.text))
            votes: dict[str, float] = defaultdict(float)
            for row in np.argsort(-(cosine_P + same_P), kind="stable")[:NEIGHBOURS]:
                votes[programs[row]] += cosine_P[row] ** SHARPNESS
            found.append(max(votes, key=lambda program: votes[program]))
    return found


def measure(say: Callable[[str], None]) -> list[Baseline]:
    """Return both methods on dev and test: on all problems, and on those with text or program in training or not."""
    problems = load(DataConfig())
    return [
        row
        for split in ("dev", "test")
        for row in compared(problems["train"], problems[split], split, "the course's split of MathQA", say)
    ]


def compared(
    train: Sequence[Problem], problems: Sequence[Problem], split: str, variant: str, say: Callable[[str], None]
) -> list[Baseline]:
    """Return both methods on one split and its parts."""
    say(f"{split}: the nearest of {len(train):,} problems for each of {len(problems):,}")
    parts = known_and_new(train, problems, split)
    usual = Counter(map(_program, train)).most_common(1)[0][0]
    methods = {
        f"nearest training problem (TF-IDF, numbers masked, vote of {NEIGHBOURS})": nearest_programs(train, problems),
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
