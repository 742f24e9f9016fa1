"""``etude show STUDY``: its presets, experiments and published numbers; ``etude show darts CELL`` draws a cell."""

import inspect
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from etude import registry
from etude.core.config import to_dict, to_yaml
from etude.report.reference import read_reference
from etude.runs.table import show


@dataclass(frozen=True)
class Options:
    study: Annotated[str, tyro.conf.Positional]
    """The study's name."""
    preset: Annotated[str, tyro.conf.Positional] = ""
    """A preset, to print its whole configuration as YAML; of darts also a cell, to draw and count it: a JSON file, a
    search's run folder, or a published cell's name."""
    out: Path | None = None
    """The file of a cell's picture (.png)."""
    json: bool = False
    """Print JSON: one list of presets, experiments and numbers, each object with its kind."""


def main(options: Options) -> None:
    study = registry.load(options.study)
    # A preset and a cell may have one name: a picture is of the cell.
    cell = options.preset not in study.presets or options.out is not None
    if options.preset and cell and study.has("show"):
        study.module("show").show(options.preset, options.out)
        return
    if options.preset:
        values = to_dict(study.preset(options.preset).build())
        if options.json:
            show([{"kind": "preset", "name": options.preset, "config": values}], as_json=True)
        else:
            print(to_yaml(values), end="")
        return
    presets = [
        {"name": name, "scale": preset.scale, "about": inspect.getdoc(preset.build) or ""}
        for name, preset in study.presets.items()
    ]
    experiments = [
        {"name": name, "about": experiment.about, "runs": [job.name for job in experiment.jobs(experiment.preset)]}
        for name, experiment in study.experiments.items()
    ]
    published = [asdict(number) for number in read_reference(study.folder / "reference.toml").number]
    if options.json:
        kinds = {"preset": presets, "experiment": experiments, "published": published}
        show([{"kind": kind, **row} for kind, rows in kinds.items() for row in rows], as_json=True)
        return
    print(f"{study.title}: {study.about}\n")
    for row in presets:
        print(f"preset {row['name']} (scale: {row['scale']})\n")
        print("\n".join(f"    {line}".rstrip() for line in row["about"].splitlines()), end="\n\n")
    show(experiments, "experiments: etude study " + study.name + " NAME [--preset PRESET]")
    print()
    columns = ("experiment", "cell", "metric", "split", "value", "unit", "protocol", "source")
    show([{name: number[name] for name in columns} for number in published], "published numbers")
