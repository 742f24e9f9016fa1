"""``etude list``: the studies."""

from dataclasses import dataclass

from etude import registry
from etude.runs.table import show


@dataclass(frozen=True)
class Options:
    json: bool = False
    """Print a JSON list."""


def main(options: Options) -> None:
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
