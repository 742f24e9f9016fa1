"""What starts without PyTorch: help, lists, the comparison, and wrong words."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from etude.cli import VERBS

# Seconds differ with what else a machine does; what is imported does not.
_SCRIPT = """
import contextlib, io, json, sys
from etude.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(words)
    if "torch" in sys.modules:
        print("etude", *words)
        break
"""


def first_with_torch(words: list[list[str]], folder: Path) -> str:
    """The first of some commands, in one process, after which PyTorch is imported; "" where it never is."""
    command = [sys.executable, "-c", _SCRIPT, json.dumps(words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, cwd=folder)
    return done.stdout.strip()


def test_the_check_sees_torch(tmp_path: Path) -> None:
    """Else the tests below would prove nothing."""
    (tmp_path / "x.safetensors").touch()
    assert first_with_torch([["list"], ["predict", "x.safetensors"]], tmp_path) == "etude predict x.safetensors"


@pytest.mark.parametrize(
    "words",
    [
        [["--help"], ["--version"], []],
        [["list"], ["list", "--json"]],
        [["show", "protonet"], ["show", "darts", "paper"], ["show", "slots", "--json"]],
        [["compare"], ["compare", "resnet", "--json"]],
        [[verb, "--help"] for verb in VERBS if verb != "data"],
        [["run", "protonet", "smoke", "--help"], ["run", "protonet", "smok"], ["resume", "nowhere"], ["rum"]],
        [["predict", "nowhere"], ["load", "nowhere"], ["export", "--nothing"]],
    ],
    ids=lambda words: " ".join(words[0]) or "none",
)
def test_what_needs_no_torch_does_not_import_it(words: list[list[str]], tmp_path: Path) -> None:
    assert first_with_torch(words, tmp_path) == ""
