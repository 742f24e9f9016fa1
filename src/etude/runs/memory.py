"""The memory that a preset takes, and the parts that its batch is cut into so that it takes less."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etude.core.config import StudyConfig
from etude.core.errors import UserError
from etude.runs.launch import parts as parts_of

if TYPE_CHECKING:
    from etude.core.study import Task

_KILLED = -9
_GAIN = 0.98
"""Twice the parts must take less than this much of the memory, or it is not the batch that takes it."""


def reset_peak() -> None:
    """Let `etude.runs.training.peak_memory_mb` count from here; where the system cannot, it counts from the start."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    # proc(5): 5 puts the high-water mark back to what is held now.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def rehearse(task: "Task", config: StudyConfig) -> None:
    """Do a little of what the final results will do beside evaluation, for what it takes of memory.

    That is FID's network, a batch of pictures and a distance, unless the task's ``measures_fid`` says no; and the
    task's own ``rehearse``, where it has one.
    """
    import numpy as np

    metric = getattr(config, "metric", None)
    if getattr(metric, "inception", "none") != "none" and getattr(task, "measures_fid", True):
        from etude.metrics import fid

        untyped: Any = metric
        device = next(parameter.device for network in task.modules.values() for parameter in network.parameters())
        fid.Inception(fid.weights_of(untyped.inception), device).features(np.zeros((256, 8, 8), np.uint8))
        # The root of a product of covariances takes as much as the network.
        real, fake = np.random.default_rng(0).normal(size=(2, 256, fid.NUM_FEATURES)).astype(np.float32)
        fid.frechet_distance(real, fake)
    getattr(task, "rehearse", lambda: None)()


def about_parts(task: "Task") -> str:
    """The words on whether a batch in parts is the same mathematics as the batch in one.

    It is not where layers take statistics over the pictures of a batch, which the running mean that they keep tells.
    """
    layers = [
        f"{name}.{inner}" if inner else name
        for name, network in task.modules.items()
        for inner, module in network.named_modules()
        if hasattr(module, "running_mean")
    ]
    if not layers:
        return "the same mathematics as in one part, but for draws, which every part has of its own"
    more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
    return f"other mathematics than in one part: {layers[0]}{more} normalise each part on its own"


def fit(words: Sequence[str], config: StudyConfig, limit_mb: int) -> tuple[int, int]:
    """The fewest parts with which training stays within a limit: twice as many until it does, then what lies between.

    Args:
        words: the study, its preset and its flags.
        config: what they say.
        limit_mb: of the whole process on the CPU, of what PyTorch holds on an accelerator.

    Returns:
        The parts, and the megabytes that a training step then took.

    Raises:
        UserError: no number of parts is enough, or the study's steps cannot be cut.
    """
    untyped: Any = config
    flag, now = parts_of(config)
    if flag != "--batch.parts":
        raise UserError(f"--memory: a step of {words[0]} is whole episodes: fewer ways or queries take less memory")
    numbers = [number for number in range(now, untyped.batch.size + 1) if untyped.batch.size % number == 0]
    first, place, vain = 0, 0, 0
    took = _measure(words, numbers[0])
    while took is None or took > limit_mb:
        if vain == 2 or place == len(numbers) - 1:
            least = f"takes {took:,} MB, and smaller parts save nothing" if took else "takes more than there is"
            raise UserError(
                f"--memory {limit_mb}: a step in {numbers[place]} part(s) {least}: a smaller network, smaller pictures "
                "or fewer, or a higher limit"
            )
        twice = 2 * numbers[place]
        first = place + 1
        place = next((place for place, number in enumerate(numbers) if number >= twice), len(numbers) - 1)
        before, took = took, _measure(words, numbers[place])
        if took is not None and before is not None:
            vain = vain + 1 if took > _GAIN * before else 0
    found, between = (numbers[place], took), numbers[first:place]
    while between:
        middle = len(between) // 2
        took = _measure(words, between[middle])
        if took is not None and took <= limit_mb:
            found, between = (between[middle], took), between[:middle]
        else:
            between = between[middle + 1 :]
    return found


def _measure(words: Sequence[str], parts: int) -> int | None:
    """The megabytes that training in so many parts takes, in a process of its own; None where there was no room."""
    command = [sys.executable, "-m", "etude", "check", *words, "--batch.parts", str(parts), "--training-only", "--json"]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode == 0:
        return int(json.loads(child.stdout)[0]["memory_mb"]["training"])
    last = child.stderr.strip().rpartition("\n")[2]
    if child.returncode == 2:
        raise UserError(last.removeprefix("etude: "))
    if child.returncode == _KILLED or "memory" in last.lower():
        return None
    raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}: {last}")


def limit(word: str) -> int:
    """The megabytes that ``--memory`` names."""
    if not word.isdigit() or int(word) < 1:
        raise UserError(f"--memory takes megabytes, such as 2000, not '{word}'")
    return int(word)
