"""How many steps a picture is worth: FID and seconds of the samplers of a trained run, on the same slots.

    uv run python benchmarks/samplers.py runs/slotdiffusion/laptop-seed0 dpm-solver++:20 ddim:50 ancestral:1000

Every sampler draws as many compositions of the run's slot library as the run's own FID took, against the validation
scenes.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from etude.core.errors import UserError
from etude.runs.flags import parse
from etude.runs.weights import load_trained
from etude.studies.slotdiffusion.samplers import check_steps
from etude.studies.slotdiffusion.task import SlotDiffusionTask


@dataclass(frozen=True)
class Options:
    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    samplers: Annotated[tuple[str, ...], tyro.conf.Positional] = ("dpm-solver++:20", "dpm-solver++:50", "ddim:50")
    """NAME:STEPS each, as --sample.sampler and --sample.steps take them."""


def main(args: list[str]) -> int:
    options = parse(Options, args, prog="samplers.py", description=__doc__ or "")
    chosen: dict[str, tuple[str, int]] = {}
    for word in options.samplers:
        name, _, steps = word.rpartition(":")
        if not name or not steps.isdigit():
            raise UserError(f"'{word}' is no sampler with its steps: write ddim:50, say")
        chosen[f":{word}"] = (name, int(steps))
    _, _, _, task = load_trained(options.run)
    if not isinstance(task, SlotDiffusionTask) or task.config.metric.inception == "none":
        raise UserError(f"{options.run} has no compositions that were scored: give a run with --metric.inception")
    for _, steps in chosen.values():
        check_steps(steps, task.config.chain.steps)
    rows = {(row.metric.partition(":")[0], row.metric.partition(":")[2]): row for row in task.distances(chosen)}
    print("| sampler | steps | FID | 95 % | KID x 1,000 | seconds |\n|---|---|---|---|---|---|")
    for ending, (name, steps) in chosen.items():
        fid, kid, seconds = (rows[metric, ending[1:]] for metric in ("fid", "kid", "seconds"))
        width = f"+- {fid.half_width:.1f}" if fid.half_width else ""
        print(f"| {name} | {steps} | {fid.value:.1f} | {width} | {kid.value:.1f} | {seconds.value:.0f} |")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"samplers.py: {error}", file=sys.stderr)
        sys.exit(2)
