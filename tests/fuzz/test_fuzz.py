"""Files as strangers change them: each reader takes them or refuses them in one line, in bounded time and memory.

The short form, which CI runs, is `uv run pytest -m "fuzz and not slow"`. The long one is `uv run pytest -m slow
tests/fuzz`: ten minutes over all targets, or as many as ``ETUDE_FUZZ_MINUTES`` says. What it finds is kept in
test_found.py.
"""

import contextlib
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.fuzz.targets import TARGETS, Target

from etude.core.errors import UserError

pytest.importorskip("gradio", reason="the page is an extra: `uv sync --extra web`")

_MINUTES = float(os.environ.get("ETUDE_FUZZ_MINUTES", "10"))
_SECONDS = 60
"""Of the processor's time, whatever else runs there, that a file may take; most take some milliseconds."""
_MEMORY = 3 << 30
"""Bytes that the process may grow by on the way."""
_SLOW = ("predict slots", "weights ", "slot library", "run ", "cell", "exported config")
"""Targets whose one reading takes a good part of a second."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions that are given no name for their picture leave it where they run."""
    monkeypatch.chdir(tmp_path)


@contextlib.contextmanager
def bounds() -> Iterator[None]:
    """Fails what takes too long or too much memory."""

    def late(*_: Any) -> None:
        raise AssertionError(f"not done after {_SECONDS} seconds")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, _SECONDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + _MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def takes_or_refuses(target: Target, path: Path) -> None:
    """The property: a file is read, or refused in one line."""
    with warnings.catch_warnings():
        # Of networks whose numbers are no numbers, and of pictures with odd metadata.
        warnings.simplefilter("ignore")
        try:
            with bounds():
                target.read(path)
        except UserError as error:
            refusal = str(error)
        else:
            return
    assert len(refusal.splitlines()) == 1, refusal


def fuzz(target: Target, folder: Path, examples: int, *, derandomize: bool) -> int:
    """Try changed files; how many were tried."""
    path, tried = folder / f"file{target.suffix}", 0

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=derandomize,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate], report_multiple_bugs=False,
    )  # fmt: skip
    @given(st.data())
    def one(data: st.DataObject) -> None:
        nonlocal tried
        tried += 1

        def pick(count: int) -> int:
            return data.draw(st.integers(0, count - 1)) if count > 1 else 0

        seeds = target.seeds()
        path.write_bytes(target.mutate(pick, seeds[pick(len(seeds))]))
        takes_or_refuses(target, path)

    one()
    return tried


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_whole_is_taken(name: str, tmp_path: Path) -> None:
    """Else the fuzz would only see refusals. The one Omniglot archive of three pictures is none of the published."""
    target = TARGETS[name]
    for number, body in enumerate(target.seeds()):
        path = tmp_path / f"{number}{target.suffix}"
        path.write_bytes(body)
        if name == "omniglot zip":
            with pytest.raises(UserError, match="do not hold the published pictures"):
                target.read(path)
        else:
            target.read(path)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_taken_or_refused(name: str, tmp_path: Path) -> None:
    examples = 3 if name.startswith(_SLOW) else 15
    tried = fuzz(TARGETS[name], tmp_path, examples, derandomize=settings.default.derandomize)
    assert tried >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_taken_or_refused_for_long(name: str, tmp_path: Path) -> None:
    end, tried = time.monotonic() + 60 * _MINUTES / len(TARGETS), 0
    # In rounds: an end in the middle of one would look to hypothesis like a test that changes its mind.
    while time.monotonic() < end:
        tried += fuzz(TARGETS[name], tmp_path, 20, derandomize=False)
    print(f"{name}: {tried} files")
    assert tried >= 1
