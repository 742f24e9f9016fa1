"""The first losses of every smoke preset, on the CPU: a refactor that was to change nothing changed nothing.

On one thread: PyTorch's channels-last batch normalisation sums each thread's share in single precision, and ten
steps make two per cent of that.

To write the file anew after a change that was meant: ``ETUDE_UPDATE_GOLDEN=1 uv run pytest tests/golden``.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from etude import registry
from etude.core import randomness
from etude.core.runtime import Runtime

HERE = Path(__file__).parent
STEPS = 10
# The rounding of another processor's convolutions grows tenfold in three steps.
RTOL = 1e-3 * (1 + np.arange(STEPS))


# The second phase of a study trains another network.
PRESETS = [*((study, "smoke") for study in registry.NAMES), ("darts", "retrain-smoke")]


def first_losses(name: str, preset: str) -> list[float]:
    study = registry.load(name)
    config = study.preset(preset).build()
    task = study.task(config, Runtime(config.loop, config.seed))
    losses = []
    for step in range(STEPS):
        randomness.seed_globals(config.seed, "step", step)
        losses.append(task.train_step(step)["loss"].item())
    return losses


@pytest.mark.parametrize(("study", "preset"), PRESETS)
def test_smoke_losses_are_what_they_were(study: str, preset: str) -> None:
    path, losses = HERE / f"{study}-{preset}-losses.json", first_losses(study, preset)
    if os.environ.get("ETUDE_UPDATE_GOLDEN"):
        path.write_text(json.dumps([round(loss, 6) for loss in losses], indent=1) + "\n")
    golden = np.array(json.loads(path.read_text()))
    np.testing.assert_array_less(np.abs(losses - golden), RTOL * golden)
    # One loss for all steps would pass where nothing is trained.
    assert np.ptp(losses) > 0.05 * losses[0]
