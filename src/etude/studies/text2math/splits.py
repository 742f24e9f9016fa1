"""The problems of a configuration: training, dev and test, and the parts of dev and test that training has seen."""

import json
import lzma
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
    found: dict[Split, list[Problem]] = sample() if config.source == "sample" else {
        split: read_learnable(folder / f"{split}.json") if config.source == "folder" else course_split(split)
        for split in SPLITS
    }  # fmt: skip
    for split, problems in found.items():
        if not problems:
            raise UserError(f"the {split} split has no problem: at least one is wanted")
    return found


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
    of the course's test split are.
    """
    parts = {split: list(range(len(problems)))}
    of = {"programs": lambda one: scores.canonical(one.program), "texts": lambda one: mathqa.masked(one.text)}
    for what, key in of.items():
        known = {key(problem) for problem in train}
        for name, wanted in ((f"{split}, {what} seen in training", True), (f"{split}, {what} not seen", False)):
            parts[name] = [row for row, problem in enumerate(problems) if (key(problem) in known) == wanted]
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
