"""The surroundings in which a run is made: versions, hardware, the commit of the source."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from etude import __version__


def environment() -> dict[str, Any]:
    """Versions, hardware and commit of this process."""
    import torch

    # etude itself may run from source, uninstalled.
    versions = {name: metadata.version(name) for name in ("torch", "accelerate", "numpy", "safetensors", "pillow")}
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(terse=True),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {"etude": __version__} | versions,
        "commit": commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def commit() -> str | None:
    """The commit of the source tree, with ``+changes`` where files differ from it; None outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # An installed package below somebody else's checkout is not that checkout.
    if git("ls-files", "--error-unmatch", "environment.py") is None:
        return None
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{git('rev-parse', 'HEAD')}{'+changes' if changed else ''}"
