"""``etude load FOLDER``: make a run of a folder that `etude export` wrote, here or elsewhere.

FOLDER is in the layout of the Hugging Face hub (model.safetensors, config.json). The run is for `etude predict`, `etude
eval` and `etude serve`; it has the weights alone, so that it cannot be trained further. Its published numbers are not
taken over: `etude eval` measures them here.
"""

import dataclasses
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from etude.core.config import StudyConfig, differences, from_dict, override, to_dict
from etude.core.errors import UserError
from etude.core.files import one_line_faults, umask, write_atomic
from etude.core.run_folder import RunFolder, RunRecord
from etude.runs import hub
from etude.runs.training import say

# Of the machine that trained; this one may have no accelerator.
_HERE = {"device": "auto", "compile": False, "trackers": ()}
_MOST_CARD = 1 << 20


@dataclass(frozen=True)
class Options:
    folder: Annotated[Path, tyro.conf.Positional]
    """The folder."""
    name: str = ""
    """The run's name; the folder's where none is given."""
    runs: Path = Path("runs")
    """The folder of runs: it becomes RUNS/STUDY/NAME."""
    trust_code: bool = False
    """Let its configuration name Python files, which are run when its networks are built."""


def main(options: Options) -> None:
    folder = options.folder
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is no folder: name one that `etude export RUN --out FOLDER` wrote")
    if (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is a run already: `etude predict {folder}`, `etude eval {folder}`")
    given = hub.read_folder(folder, trust_code=options.trust_code)
    hub.require_fit(given, folder / hub.WEIGHTS)
    name = options.name or folder.resolve().name
    if name.startswith(".") or not name.isprintable() or any(sign in name for sign in "/\\"):
        raise UserError(f"the run's name {name!r:.80} is no plain name of a folder: give another as --name")
    run = write_run(given, folder, options.runs / given.study.name / name)
    say(f"{run}: `etude predict {run} ...`, `etude eval {run}`")


def write_run(given: hub.Exported, folder: Path, path: Path) -> Path:
    """Write a run's folder ``path`` with the weights of an exported ``folder`` alone, whole or not at all."""
    study = given.study
    if path.exists():
        raise UserError(f"{path} is there already: choose another --name")
    loop = dataclasses.replace(given.config.loop, **_HERE)
    config: StudyConfig = from_dict(study.config, to_dict(given.config) | {"loop": to_dict(loop)})
    config = override(config, getattr(study.module("export"), "ALONE", {}))
    code = {
        str(folder / name): str(path / name) for name in hub.own_files(given.header.config) if (folder / name).is_file()
    }
    # The run's own copies are there once it is.
    record_config = hub.renamed(to_dict(config), code)
    preset = study.preset(given.preset)
    record = RunRecord(study.name, given.preset, preset.scale, differences(preset.build(), config), record_config)
    with one_line_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".load.", suffix=".tmp", dir=path.parent))
        try:
            run = RunFolder.create(temporary, record)
            checkpoints = run.checkpoints()
            place = checkpoints.path(given.step) / "weights.safetensors"
            write_atomic(place, (folder / hub.WEIGHTS).read_bytes())
            checkpoints.mark_best(given.step, "as exported", 0.0)
            card = folder / hub.CARD
            if card.is_file() and card.stat().st_size <= _MOST_CARD:
                write_atomic(temporary / "model_card.md", card.read_bytes())
            for name in [*hub.companions(study, folder / hub.WEIGHTS), *hub.own_files(given.header.config)]:
                if (folder / name).is_file():
                    write_atomic(temporary / name, (folder / name).read_bytes())
            run.write_summary(_summary(given, record, config))
            temporary.chmod(0o777 & ~umask())
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return path


def _summary(given: hub.Exported, record: RunRecord, config: StudyConfig) -> dict[str, Any]:
    """A run's summary without results: what others measured is in the model card."""
    parameters: dict[str, int] = {}
    for name, tensor in given.tensors.items():
        parameters[name.partition(".")[0]] = parameters.get(name.partition(".")[0], 0) + tensor.numel()
    return {
        "format": 1, "study": record.study, "preset": record.preset, "scale": record.scale, "seed": config.seed,
        "overrides": record.overrides, "command": record.command, "step": given.step, "steps_trained": given.step,
        "stopped_early": False, "validation": None, "results": [], "parameters": parameters, "train_seconds": 0.0,
        "peak_memory_mb": 0, "extra": given.header.extra, "loaded": True,
    }  # fmt: skip
