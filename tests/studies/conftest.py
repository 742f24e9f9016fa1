"""What the tests of several studies share: the command line, in this process, and the figures that were drawn."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from matplotlib.figure import Figure

from etude import cli
from etude.draw import figures


class Answer(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def etude(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """The command line."""

    def call(*words: object) -> Answer:
        capsys.readouterr()
        status = cli.main([str(word) for word in words])
        return Answer(status, *capsys.readouterr())

    return call


@pytest.fixture
def refused(etude: Callable[..., Answer]) -> Callable[..., str]:
    """The one line that a wrong call prints; nothing else is printed, and the exit status is 2."""

    def call(*words: object, says: tuple[str, ...]) -> str:
        answer = etude(*words)
        assert answer.status == 2, answer
        assert answer.out == ""
        assert answer.err.endswith("\n")
        assert answer.err.count("\n") == 1, answer.err
        assert answer.err.startswith("etude: ")
        for part in says:
            assert part in answer.err, answer.err
        return answer.err

    return call


@pytest.fixture
def rows(etude: Callable[..., Any]) -> Callable[..., list[dict[str, Any]]]:
    """The rows of a prediction that works."""

    def call(*words: object) -> list[dict[str, Any]]:
        answer = etude("predict", *words, "--json")
        assert (answer.status, answer.err) == (0, "")
        return json.loads(answer.out)

    return call


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, in their order."""
    seen: list[Figure] = []
    figure = figures.figure

    @contextlib.contextmanager
    def noted(path: Path, width: float, height: float) -> Iterator[Figure]:
        with figure(path, width, height) as made:
            yield made
        seen.append(made)

    holders = [module for name, module in sys.modules.items() if name.startswith("etude.")]
    for module in (module for module in holders if getattr(module, "figure", None) is figure):
        monkeypatch.setattr(module, "figure", noted)
    return seen
