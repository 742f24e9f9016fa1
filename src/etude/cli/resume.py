"""``etude resume RUN``: go on with a run that was stopped or killed, or make one that has ended longer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from etude.runs.training import lengthen, run_to_end, say
from etude.runs.weights import open_run


@dataclass(frozen=True)
class Options:
    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    max_steps: Annotated[int | None, tyro.conf.arg(name="loop.max-steps")] = None
    """Train up to so many steps instead: a run that has ended goes on. What follows the length of a run, such as a rate
    that falls, follows the new length from there on, and is not what a run of that length from its start would have."""


def main(options: Options) -> None:
    study, run, config = open_run(options.run)
    if options.max_steps is not None:
        lengthen(run, options.max_steps)
        config = run.config(study.config)
        said = "what follows the length of a run follows the new one from here"
        say(f"{options.run} goes on to step {options.max_steps:,}; {said}")
    ended = run.summary is not None
    run_to_end(study, run, config)
    say(f"{'ended already' if ended else 'done'}: {options.run}")
