"""A wrong call of the command line."""

import pytest

from etude.cli import main


def fault(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a wrong call prints."""
    capsys.readouterr()
    assert main(list(words)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("etude: ")
    return lines[0]
