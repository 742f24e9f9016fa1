"""MathQA: 37,297 multiple-choice word problems with programs, and GloVe's vectors for their words.

Amini et al. 2019, "MathQA: Towards interpretable math word problem solving with operation-based formalisms". The
archive carries no licence; the authors' later copies of it say Apache 2.0. Pennington et al. 2014, "GloVe: global
vectors for word representation"; public domain (PDDL).
"""

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from etude.core.errors import UserError
from etude.data import SAMPLES, Dataset
from etude.data.cache import decoded, digest
from etude.data.fetch import Source, damage, fetch, status

Split = Literal["train", "dev", "test"]

SPLITS: tuple[Split, ...] = ("train", "dev", "test")
NUM_ROWS: Mapping[str, int] = {"train": 29_837, "dev": 4_475, "test": 2_985}
ARCHIVE = Source(
    "mathqa",
    "MathQA.zip",
    "https://math-qa.github.io/math-QA/data/MathQA.zip",
    sha256="7344f30456a7aef3176d4866cc953b35b41bec44eda6b00cdbcfde2876b2f07a",
)
_HOME = "https://math-qa.github.io/"
# Not to be downloaded: a mirror may have the split as it was handed out.
FILTERED = {
    split: Source("mathqa", f"{split}.json", _HOME, sha256=sha256)
    for split, sha256 in {
        "train": "113ea0f7acdf1499c4428a1d81c6acf8cc7198a403019f3c7b1e5de05390b13a",
        "dev": "08f654ed8e872ae91c22033bac4e3a06aa1f30cea97d75800e0800541846d706",
        "test": "80d90ab12a0adabd07f8fea34df96df04ee3d7b47b727838085af3e8933a1320",
    }.items()
}
GLOVE = Source(
    "glove",
    "glove.6B.zip",
    "https://nlp.stanford.edu/data/glove.6B.zip",
    sha256="617afb2fe6cbd085c235baf7a465b96f4112bd7f7ccb2b2cbd649fed9cbcf2fb",
    size=862_182_613,
)
# The same vectors in half precision, cut to MathQA's words; a mirror may have these in the archive's place.
GLOVE_CUT = {
    dim: Source("glove", f"glove.6B.{dim}d.mathqa.npz", "https://nlp.stanford.edu/projects/glove/", sha256=sha256)
    for dim, sha256 in {
        50: "576d214018420354f39e87be2bc539765a4fcf9a7a2ab56c37881fe428edf05b",
        100: "6c26a2512c175690355d26faeaf021550dd4812685ddadade5d8b5abf260979a",
    }.items()
}
DATASET = Dataset(
    name="mathqa",
    about="37,297 word problems with five options and a program each",
    licence="none in the archive; Apache-2.0 on the authors' data card (Amini et al. 2019)",
    home=_HOME,
    sources=(ARCHIVE,),
)

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def masked(text: str) -> str:
    """A problem with one sign in place of each number: what problems of one template share."""
    return _NUMBER.sub("N", text)


def filtered_copies() -> dict[str, Path] | None:
    """The course's three JSON files, where the cache or the mirror's folder has all of them unaltered; else None."""
    if all(_at_hand(source) for source in FILTERED.values()):
        return {split: fetch(source) for split, source in FILTERED.items()}
    return None


def _at_hand(source: Source) -> bool:
    """True where a file is there and is the right one, so that `fetch` asks no server for it."""
    return status(source) == "verified" or status(source, recheck=True) == "verified"


def sample_folder() -> Path:
    """200 problems that come with the package, in three files of the course's form."""
    return SAMPLES / "mathqa"


def official_rows(split: Split) -> list[dict[str, Any]]:
    """The rows of the official file: Problem, options, correct, linear_formula, and more.

    Raises:
        UserError: the archive is neither cached nor within reach, or is not as published.
    """
    path = fetch(ARCHIVE)
    with damage(path), zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.rpartition("/")[2] == f"{split}.json"]
        inside = [name for name in names if not name.startswith("__MACOSX")]
        if not inside:
            raise ValueError(f"no {split}.json")
        rows = json.loads(archive.read(inside[0]))
        fields = ("Problem", "options", "correct", "linear_formula")
        if not isinstance(rows, list) or not all(
            isinstance(row, dict) and all(isinstance(row.get(field), str) for field in fields) for row in rows
        ):
            raise ValueError(f"no list of problems in {split}.json")
    if len(rows) != NUM_ROWS[split]:
        raise UserError(
            f"{path} has {len(rows)} rows of {split} in place of {NUM_ROWS[split]}: remove it and run again"
        )
    return rows


def glove(words: Sequence[str], dim: int) -> tuple[np.ndarray, np.ndarray, str]:
    """GloVe 6B vectors of some words.

    The 862 MB archive is read once for a list of words; what is cut out of it is kept in the cache. A mirror's cut to
    MathQA's words is taken where it is at hand.

    Args:
        words: lower case.
        dim: 50, 100, 200 or 300.

    Returns:
        float32 ``[words, dim]``, zero where there is none; bool ``[words]``, whether there is one; and the name of the
        file that they came from.
    """
    cut = GLOVE_CUT.get(dim)
    if cut is not None and _at_hand(cut):
        words_K, vectors_KD = _cut_of(fetch(cut), dim)
        known = {str(word): row for row, word in enumerate(words_K)}
        found_W = np.array([word in known for word in words], dtype=bool)
        rows = [known.get(word, 0) for word in words]
        return vectors_KD.astype(np.float32)[rows] * found_W[:, None], found_W, cut.filename
    if dim not in (50, 100, 200, 300):
        raise UserError(f"GloVe 6B has vectors of 50, 100, 200 and 300 numbers, not of {dim}")
    # Behind each vector stands whether there is one; an array without rows cannot be mapped.
    shape = (max(1, len(words)), dim + 1)
    made = decoded("glove", digest(str(dim), *words), 1, shape, lambda to: _read(to, words, dim), np.float32)
    both = made[: len(words)]
    return both[:, :dim], both[:, dim] > 0, GLOVE.filename


def _cut_of(path: Path, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Words and vectors of a mirror's cut; objects, which only a pickle could hold, are refused."""
    # NumPy leaves a file open that it opened itself and could not read.
    with damage(path), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        words_K, vectors_KD = arrays["words"], arrays["vectors"]
        # Of a member that is no array NumPy gives the bytes.
        if words_K.dtype.kind != "U" or vectors_KD.dtype.kind != "f" or vectors_KD.shape != (len(words_K), dim):
            raise ValueError(f"words with vectors of {dim} numbers are wanted")
        return words_K, vectors_KD


def _read(to_WD: np.ndarray, words: Sequence[str], dim: int) -> None:
    wanted: dict[str, list[int]] = {}
    for row, word in enumerate(words):
        wanted.setdefault(word, []).append(row)
    path = fetch(GLOVE)
    with damage(path), zipfile.ZipFile(path) as archive, archive.open(f"glove.6B.{dim}d.txt") as lines:
        for line in io.TextIOWrapper(lines, encoding="utf-8"):
            word, _, numbers = line.partition(" ")
            if word in wanted:
                # Reshaped, so that a line of one number does not fill a row.
                to_WD[wanted[word], :dim] = np.array(numbers.split(), np.float32).reshape(dim)
                to_WD[wanted[word], dim] = 1
