"""``etude resume RUN``: go on with a run that was stopped or killed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from etude.runs.training import run_to_end, say
from etude.runs.weights import open_run


@dataclass(frozen=True)
class Options:
    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""


def main(options: Options) -> None:
    study, run, config = open_run(options.run)
    ended = run.summary is not None
    run_to_end(study, run, config)
    say(f"{'ended already' if ended else 'done'}: {options.run}")
