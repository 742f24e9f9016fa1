"""``etude predict RUN ...``: use a trained model on your own files.

RUN is a run folder, a weights file, a folder that `etude export` wrote, or a study's name for the weights that come
with the package.
"""

import os
from pathlib import Path

from etude import registry
from etude.core.errors import UserError
from etude.runs import hub
from etude.runs.flags import parse, switch
from etude.runs.table import show_answers
from etude.runs.weights import find_weights, refuse_bloated

HELP = """usage: etude predict [STUDY] RUN [INPUT ...] [--flags] [--json]

RUN is a run folder, a weights file (.safetensors), a folder that `etude export` wrote, or a study's name for the
weights that come with it: `etude predict protonet --support characters/ query.png`. `etude predict STUDY --help` lists
a study's flags. An input that cannot be read is named, the others are answered, and the exit status is 1."""


def _holds_weights(word: str, study: str) -> bool:
    """True if a word after a study's name is a run folder or weights file; `UserError` where it is another study's."""
    path = Path(word)
    file = path.suffix == ".safetensors" and os.path.isfile(path)
    if not file and not os.path.isfile(path / "config.yaml") and not hub.is_folder(path):
        return False
    found, _, _ = find_weights(word)
    if found.name != study:
        raise UserError(f"{word} is of the study '{found.name}', not of '{study}': `etude predict {word}` alone does")
    return True


def main(args: list[str]) -> int:
    name = args.pop(0)
    as_json = switch(args, "--json")
    if "--help" in args and name in registry.NAMES:
        parse(registry.load(name).module("predict").Options, args, prog=f"etude predict {name}")
    # `predict STUDY RUN INPUT...` says what `predict RUN INPUT...` says.
    if name in registry.NAMES and args and _holds_weights(args[0], name):
        name = args.pop(0)
    study, weights, extra = find_weights(name)
    module = study.module("predict")
    options = parse(module.Options, args, prog=f"etude predict {name}", description=module.__doc__ or "")
    if name not in registry.NAMES:
        refuse_bloated(study, weights)
    return show_answers(module, module.predict(weights, extra, options), as_json=as_json)
