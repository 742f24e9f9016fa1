"""Architecture search and retraining: the task of either phase."""

from etude.core.runtime import Runtime
from etude.core.study import Task
from etude.studies.darts.nb201_task import BenchSearchTask, ScoreTask
from etude.studies.darts.retrain_task import RetrainTask
from etude.studies.darts.search_task import SearchTask
from etude.studies.darts.study import DartsConfig


def make_task(config: DartsConfig, runtime: Runtime) -> Task:
    """The task of the configuration's phase."""
    if config.space == "nb201":
        return BenchSearchTask(config, runtime) if config.phase == "search" else ScoreTask(config, runtime)
    return SearchTask(config, runtime) if config.phase == "search" else RetrainTask(config, runtime)
