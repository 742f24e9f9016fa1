"""``etude list``: the studies."""

from dataclasses import dataclass

from etude import registry
from etude.runs.flags import parse
from etude.runs.table import show


@dataclass(frozen=True)
class Options:
    json: bool = False
    """Print a JSON list."""


def main(args: list[str]) -> int:
    options = parse(Options, args, prog="etude list", description=__doc__ or "")
    rows = [
        {
            "study": study.name,
            "title": study.title,
            "about": study.about,
            "data": study.reads_data,
            "presets": list(study.presets),
            "experiments": list(study.experiments),
        }
        for study in map(registry.load, registry.NAMES)
    ]
    show(rows, as_json=options.json)
    return 0
