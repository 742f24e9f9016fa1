"""``etude predict RUN ...``: use a trained model on your own files.

RUN is a run folder, a weights file, a folder that `etude export` wrote, or a study's name for the weights that come
with the package.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

from etude import studies
from etude.cli.flags import parse, switch
from etude.cli.table import show
from etude.cli.training import chosen_weights, summary_of
from etude.core.config import from_dict
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder
from etude.core.study import Study
from etude.report import hub

HELP = """usage: etude predict [STUDY] RUN [INPUT ...] [--flags] [--json]

RUN is a run folder, a weights file (.safetensors), a folder that `etude export` wrote, or a study's name for the
weights that come with it: `etude predict protonet --support characters/ query.png`. `etude predict STUDY --help` lists
a study's flags."""


def find_weights(name: str) -> tuple[Study, Path, dict[str, Any] | None]:
    """The study, weights file and summary extras that the first word of `predict` means."""
    path = Path(name)
    if name in studies.NAMES:
        study = studies.load(name)
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
        return studies.load(run.record.study), chosen_weights(run), extra
    if os.path.isfile(path):
        from etude.core.checkpoint import read_weights

        _, header = read_weights(path)
        return studies.load(header.study), path, None
    raise UserError(f"'{name}' is no run folder, weights file or study (studies: {', '.join(studies.NAMES)})")


def refuse_bloated(study: Study, weights: Path) -> None:
    """Refuse weights whose configuration has a far larger network than they fill, before memory is taken for it."""
    from etude.core.checkpoint import read_weights

    tensors, header = read_weights(weights, study=study.name)
    if not header.config:
        return
    config = from_dict(study.config, header.config, origin=str(weights))
    hub.require_filled(hub.Exported(study, header, config, "", tensors), weights)


def _holds_weights(word: str, study: str) -> bool:
    """Whether a word after a study's name is a run folder or weights file; `UserError` where it is another study's."""
    path = Path(word)
    file = path.suffix == ".safetensors" and os.path.isfile(path)
    if not file and not os.path.isfile(path / "config.yaml") and not hub.is_folder(path):
        return False
    found, _, _ = find_weights(word)
    if found.name != study:
        raise UserError(f"{word} is of the study '{found.name}', not of '{study}': `etude predict {word}` alone does")
    return True


def main(args: list[str]) -> int:
    if not args or args[0] in {"-h", "--help"}:
        print(HELP)
        return 0 if args else 2
    name = args.pop(0)
    as_json = switch(args, "--json")
    if "--help" in args and name in studies.NAMES:
        parse(studies.load(name).load_predict().Options, args, prog=f"etude predict {name}")
    # `predict STUDY RUN INPUT...` says what `predict RUN INPUT...` says.
    if name in studies.NAMES and args and _holds_weights(args[0], name):
        name = args.pop(0)
    study, weights, extra = find_weights(name)
    module = study.load_predict()
    options = parse(module.Options, args, prog=f"etude predict {name}", description=module.__doc__ or "")
    if name not in studies.NAMES:
        refuse_bloated(study, weights)
    answers = module.predict(weights, extra, options)
    # A study's own way of writing its answers for people.
    if hasattr(module, "tell") and not as_json:
        print(module.tell(answers))
    else:
        show([dataclasses.asdict(row) for row in answers], as_json=as_json)
    return 0
