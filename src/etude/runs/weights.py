"""Trained weights by the words of a command line: a run, a file, an exported folder, or what comes with a study."""

import os
from pathlib import Path
from typing import Any

from etude import registry
from etude.core.config import StudyConfig, flat, from_dict, to_dict
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder
from etude.core.study import Study, Task
from etude.core.summary import chosen_weights, read_summary, summary_of
from etude.runs import hub


def open_run(path: Path) -> tuple[Study, RunFolder, StudyConfig]:
    """A run folder with its study and configuration."""
    if hub.is_folder(path):
        raise UserError(f"{path} was exported: `etude load {path}` makes a run of it")
    run = RunFolder.open(path)
    study = registry.load(run.record.study)
    return study, run, run.config(study.config)


def load_trained(path: Path) -> tuple[Study, RunFolder, dict[str, Any], Task]:
    """A finished run's summary, and its task with the chosen weights."""
    from etude.core.checkpoint import load_weights, read_weights, refuse_other_network
    from etude.core.runtime import Runtime

    study, run, config = open_run(path)
    summary = summary_of(run)
    if summary is None:
        raise UserError(f"{path} has not ended: `etude resume {path}` goes on")
    read_summary(run.path / "summary.json")
    task = study.task(config, Runtime(config.loop, config.seed))
    weights = chosen_weights(run)
    tensors, header = read_weights(weights, study=study.name)
    refuse_other_network(header, run.record.config, weights)
    # `etude load` brings what `etude export` wrote, which may lack the networks that only training needs.
    whole = {name.partition(".")[0] for name in tensors} >= task.modules.keys()
    load_weights(task.modules if whole else task.exported, tensors, weights)
    return study, run, summary, task


def find_weights(name: str) -> tuple[Study, Path, dict[str, Any] | None]:
    """The study, weights file and summary extras that the first word of `predict` means."""
    path = Path(name)
    if name in registry.NAMES:
        study = registry.load(name)
        weights = study.shipped_weights
        if weights is None:
            raise UserError(f"no weights come with '{name}': train it (`etude run {name}`) and name the run's folder")
        return study, weights, None
    if os.path.isdir(path):
        if hub.is_folder(path):
            return hub.read_folder(path).study, path / hub.WEIGHTS, None
        run = RunFolder.open(path)
        summary = summary_of(run)
        extra = summary["extra"] if summary else None
        return registry.load(run.record.study), chosen_weights(run), extra
    if os.path.isfile(path):
        from etude.core.checkpoint import read_weights

        _, header = read_weights(path)
        return registry.load(header.study), path, None
    raise UserError(f"'{name}' is no run folder, weights file or study (studies: {', '.join(registry.NAMES)})")


def begin_with(task: Task, study: Study, config: StudyConfig) -> str:
    """Copy the weights that ``config.init`` names into a task's networks, and say in a line what was taken.

    Tensors that have the same shape but for their first size, and so as many for another number of classes, stay as
    they are, and so does a network that the file does not hold.

    Raises:
        UserError: no such weights, another study's, or networks of other settings, which are named.
    """
    import torch

    from etude.core.checkpoint import read_weights

    found, path, _ = find_weights(config.init)
    if found.name != study.name:
        raise UserError(f"--init {config.init} is of the study '{found.name}', not of '{study.name}'")
    tensors, header = read_weights(path)
    taken, anew, absent = 0, list[str](), list[str]()
    for name, module in task.modules.items():
        state = module.state_dict()
        given = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        if not given:
            absent.append(name)
            continue
        # Words and the like, which say what a row of a table stands for.
        words = {key for key, held in module.named_buffers() if held.dtype == torch.uint8 and key in given}
        if other := sorted(key for key in words if not torch.equal(given[key], state[key].cpu())):
            fix = "begin with weights that were trained on the same data"
            raise UserError(f"--init {config.init} has other {', '.join(other)} than the data: {fix}")
        shapes = {key: (given[key].shape, state[key].shape) for key in state.keys() & given.keys()}
        heads = {key for key, (was, now) in shapes.items() if was != now}
        ends = all(0 < len(was) == len(now) <= 2 and was[1:] == now[1:] for was, now in (shapes[key] for key in heads))
        fits = state.keys() == given.keys() and ends
        if not fits or len(heads) > 2:
            was, now = flat(header.config.get("model", {})), flat(to_dict(config).get("model", {}))
            apart = [f"--model.{key} {was[key]}" for key in sorted(was.keys() & now.keys()) if was[key] != now[key]]
            fix = f"give {' '.join(apart)}" if apart else "begin with weights of the same network"
            raise UserError(f"--init {config.init} does not fit the network '{name}': {fix}")
        module.load_state_dict(state | {key: value for key, value in given.items() if key not in heads})
        taken += len(given) - len(heads)
        anew += [f"{name}.{key} {list(given[key].shape)} -> {list(state[key].shape)}" for key in sorted(heads)]
    if not taken:
        raise UserError(f"--init {config.init} holds none of the networks {', '.join(task.modules)}")
    more = f"; anew: {', '.join(anew)}" if anew else ""
    without = f"; not in it: {', '.join(absent)}" if absent else ""
    return f"begins with {taken} tensors of {path}{more}{without}"


def refuse_bloated(study: Study, weights: Path) -> None:
    """Refuse weights whose configuration has a far larger network than they fill, before memory is taken for it."""
    from etude.core.checkpoint import read_weights

    tensors, header = read_weights(weights, study=study.name)
    if header.config:
        config = from_dict(study.config, header.config, origin=str(weights))
        hub.require_filled(hub.Exported(study, header, config, "", tensors), weights)
