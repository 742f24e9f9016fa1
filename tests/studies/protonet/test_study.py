"""What the experiments of prototypical networks run."""

from pathlib import Path
from typing import Any

import pytest
from tests.experiments import Finished

from etude.core.config import to_dict
from etude.studies.protonet.study import STUDY


def retrained(preset: str, best: int) -> dict[str, Any]:
    selected = Finished(Path("selected"), to_dict(STUDY.preset(preset).build()), best_step=best)
    by = {job.name: job for job in STUDY.experiment("fewshot").jobs(preset)}
    overrides = by["s1"].overrides
    assert callable(overrides)
    return overrides([selected])


@pytest.mark.parametrize(("preset", "length"), [("paper", 7400 + 200 * 100), ("course", 7400), ("laptop", 6000)])
def test_a_retraining_is_as_long_as_its_source_has_it(preset: str, length: int) -> None:
    """The authors' code: the best epoch and as many more as the patience, of a hundred episodes each."""
    found = retrained(preset, 7400)
    assert found["loop.max_steps"] == length
    assert (found["data.train_split"], found["selected_run"]) == ("trainval", "selected")
