"""What stands around etude: another system, no home folder, missing extras, the versions of Python, the wheel."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from tests.cli.faults import fault

from etude.core.errors import UserError, extra
from etude.core.files import expanded

_ELSEWHERE = """
import importlib.abc, os, signal, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("fcntl", "resource", "pwd", "grp", "termios"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

import psutil, filelock, torch  # these have forms of their own there
sys.meta_path.insert(0, Absent())
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules.pop(name, None)
for module, names in ((os, ("getuid", "getpgrp", "killpg", "setsid", "fork", "sched_getaffinity", "getloadavg")),
                      (signal, ("SIGKILL", "SIGHUP", "SIGUSR1"))):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
from etude.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""A start of etude without what Windows lacks."""


def test_every_verb_of_a_run_works_without_posix(tmp_path: Path) -> None:
    def etude(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _ELSEWHERE, *words], cwd=tmp_path, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    etude("run", "protonet", "smoke", "--name", "here", "--loop.max-steps", "2")
    etude("eval", "runs/protonet/here")
    etude("study", "protonet", "distance", "--preset", "smoke", "--set", "loop.max_steps=1", "--runs", "grid")
    assert "here" in etude("compare", "protonet", "--json") or (tmp_path / "runs/protonet/here/summary.json").is_file()
    assert len(list((tmp_path / "grid/protonet").glob("*/summary.json"))) >= 2


@pytest.mark.parametrize("name", ["ETUDE_CACHE", "ETUDE_MIRROR"])
def test_a_home_folder_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv(name, "~nobody-of-this-name/x")
    said = fault(capsys, "data", "list")
    assert name in said
    assert "~nobody-of-this-name/x" in said


def test_no_home_folder_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the system's own function gives where nobody has a home folder.
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(UserError, match="ETUDE_CACHE"):
        expanded("~/.cache/etude", "ETUDE_CACHE")


def test_a_missing_extra_is_told_to_uv_and_to_pip() -> None:
    assert "uv sync --extra web" in extra("web")
    assert "pip install 'etude[web]'" in extra("web")


def test_the_versions_of_python_are_bounded(root: Path) -> None:
    """A newer one has no wheels of what is pinned, and uv would take it where no Python is installed."""
    about = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert "<" in about["requires-python"]
    assert (root / ".python-version").read_text().strip() == "3.11"


@pytest.mark.long
@pytest.mark.command
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv builds the wheel")
def test_the_wheel_holds_numbers_and_no_pictures_of_results(root: Path, tmp_path: Path) -> None:
    subprocess.run(["uv", "build", "--quiet", "--wheel", "--out-dir", tmp_path, root], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        results = [name for name in names if name.startswith("etude/_results/")]
        summary = json.loads(file.read(next(name for name in results if name.endswith("summary.json"))))
    assert summary["results"]
    assert "etude/__main__.py" in names
    assert not [name for name in results if name.endswith(".png")]
    assert wheel.stat().st_size < 25_000_000
