"""What a run says of its surroundings."""

import subprocess
from pathlib import Path

from etude.runs.environment import commit, environment


def test_the_environment_says_what_a_repeat_needs():
    found = environment()
    assert found.keys() == {
        "python", "platform", "processor", "cores", "threads", "accelerator", "versions", "commit"
    }  # fmt: skip
    assert {"etude", "torch", "numpy", "safetensors"} <= found["versions"].keys()
    assert all(isinstance(version, str) and version for version in found["versions"].values())
    assert found["processor"]


def test_the_commit_is_that_of_the_checkout(root: Path):
    try:
        git = ["git", "-C", str(root), "rev-parse", "HEAD"]
        head = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        assert commit() is None
    else:
        assert commit() in (head, f"{head}+changes")
