"""``etude export RUN``: write a finished run's weights as one small file, with what `etude predict` needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from etude.cli.flags import parse
from etude.cli.training import load_trained, say
from etude.core.checkpoint import WeightsHeader, save_weights
from etude.core.errors import UserError


@dataclass(frozen=True)
class Options:
    run: Annotated[Path, tyro.conf.Positional]
    """The run's folder."""
    out: Path | None = None
    """The file; STUDY-RUN.safetensors here where none is named."""
    fp32: bool = False
    """Keep single precision; half precision otherwise."""
    force: bool = False
    """Write over a file that is there."""


def main(args: list[str]) -> int:
    options = parse(Options, args, prog="etude export", description=__doc__ or "")
    study, run, summary, task = load_trained(options.run)
    out = options.out or Path(f"{study.name}-{run.path.resolve().name}.safetensors")
    if out.exists() and not options.force:
        raise UserError(f"{out} exists: choose another --out, or --force to write over it")
    save_weights(
        out, task.exported, WeightsHeader(study.name, run.record.config, summary["extra"]), half=not options.fp32
    )
    say(f"{out}: {out.stat().st_size:,} bytes")
    return 0
