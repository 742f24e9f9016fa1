"""`etude predict` in a test: called, asked for its answers, and refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from etude.cli.app import main


def call(where: Path, *words: str | Path | int) -> int:
    return main(["predict", str(where), *map(str, words)])


def answers(capsys: pytest.CaptureFixture[str], where: Path, *words: str | Path | int) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert call(where, *words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], where: Path, *words: str | Path | int, says: tuple[str, ...]) -> None:
    """One line, status 2, and no file more or less than before."""
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    capsys.readouterr()
    assert call(where, *words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    for part in says:
        assert part in said, said
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def six(folder: Path, images_NHWC: Tensor) -> Path:
    """Six pictures, as files of a folder whose names are not in their order."""
    folder.mkdir(exist_ok=True)
    for letter, image in zip("fedcba", images_NHWC.numpy(), strict=True):
        Image.fromarray(image).save(folder / f"{letter}.png")
    return folder


def files(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def photo(name: str, seed: int = 0, width: int = 16, height: int = 16) -> Path:
    """Blots of colour."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path = Path(name)
    Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(path)
    return path
