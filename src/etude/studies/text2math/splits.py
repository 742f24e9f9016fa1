"""The problems of a configuration: training, dev and test, and the parts of dev and test that training has seen."""

import hashlib
import json
import lzma
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from etude.core.errors import UserError
from etude.core.files import sha256
from etude.data import mathqa
from etude.studies.text2math import scores
from etude.studies.text2math.course_split import course_split
from etude.studies.text2math.problems import Problem, Split, read_learnable, sample
from etude.studies.text2math.retrieval import Index
from etude.studies.text2math.study import DataConfig

SPLITS: tuple[Split, ...] = ("train", "dev", "test")


def load(config: DataConfig) -> dict[Split, list[Problem]]:
    """Return the problems of the three splits; `UserError` where a split cannot be read or has none."""
    folder = Path(config.folder)
    if config.source == "templates":
        return template_split()
    found: dict[Split, list[Problem]] = sample() if config.source == "sample" else {
        split: read_learnable(folder / f"{split}.json") if config.source == "folder" else course_split(split)
        for split in SPLITS
    }  # fmt: skip
    for split, problems in found.items():
        if not problems:
            raise UserError(f"the {split} split has no problem: at least one is wanted")
    return found


def template_split() -> dict[Split, list[Problem]]:
    """Return the course's problems divided so that no two splits share a template: 80, 12 and 8 % of the templates.

    A template is a text without its numbers, signs and cases. Its digest says where its problems go: nothing is drawn,
    and what another copy of the data has more or less moves no other problem.
    """
    found: dict[Split, list[Problem]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for problem in course_split(split):
            found[split_of(problem.text)].append(problem)
    return found


def split_of(text: str) -> Split:
    """Return the part of the template-disjoint split that a text belongs to."""
    template = " ".join(re.findall("[a-z]+", mathqa.masked(text).lower()))
    share = int.from_bytes(hashlib.sha256(template.encode()).digest()[:8]) / 2**64
    return "test" if share < 0.08 else "dev" if share < 0.2 else "train"


def named(config: DataConfig) -> str:
    """Return the name of a configuration's problems, which sets results on them apart."""
    names = {"mathqa": "the course's split of MathQA", "templates": "the template-disjoint split of MathQA"}
    return names.get(config.source, config.source)


TRAINING = Path(__file__).parent / "weights" / "mathqa-train.json.xz"
"""Text and program of the course's training problems, which come with etude (MathQA, Apache-2.0)."""


@lru_cache(1)
def shipped_index() -> Index:
    """Return the training problems that come with etude."""
    return Index([Problem(text, program) for text, program in json.loads(lzma.decompress(TRAINING.read_bytes()))])


def index_of(config: DataConfig) -> Index:
    """Return the training problems of a configuration; those of MathQA come with etude."""
    return shipped_index() if config.source == "mathqa" else Index(load(config)["train"])


def known_and_new(train: Sequence[Problem], problems: Sequence[Problem], split: str) -> dict[str, list[int]]:
    """Return the rows of a split, and of its parts that training has seen and has not.

    A program is seen where a training problem has it; a text where one has it but for its numbers. Three of four texts
    of the course's test split are. A part without a problem is left out.
    """
    parts = {split: list(range(len(problems)))}
    of = {"programs": lambda one: scores.canonical(one.program), "texts": lambda one: mathqa.masked(one.text)}
    for what, key in of.items():
        known = {key(problem) for problem in train}
        for name, wanted in ((f"{split}, {what} seen in training", True), (f"{split}, {what} not seen", False)):
            if rows := [row for row, problem in enumerate(problems) if (key(problem) in known) == wanted]:
                parts[name] = rows
    return parts


def checksums(config: DataConfig) -> dict[str, str]:
    """Return the digests of the files that `load` reads."""
    if config.source == "folder":
        return {f"{split}.json": sha256(Path(config.folder) / f"{split}.json") for split in SPLITS}
    if config.source == "sample":
        return {}
    copies = mathqa.filtered_copies()
    if copies is None:
        return {mathqa.ARCHIVE.filename: mathqa.ARCHIVE.sha256}
    return {f"{split}.json": mathqa.FILTERED[split].sha256 for split in copies}
