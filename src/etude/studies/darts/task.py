"""Architecture search and retraining: the task of either phase."""

from etude.core.runtime import Runtime
from etude.core.study import Task
from etude.studies.darts.retrain_task import RetrainTask
from etude.studies.darts.search_task import SearchTask
from etude.studies.darts.study import DartsConfig


def make_task(config: DartsConfig, runtime: Runtime) -> Task:
    """The task of the configuration's phase."""
    return SearchTask(config, runtime) if config.phase == "search" else RetrainTask(config, runtime)
