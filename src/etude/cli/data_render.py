"""``etude data render clevrtex --count N --out DIR``: CLEVRTex-like scenes by Blender, with masks.

The same command goes on after a stop; a larger --count adds scenes. Blender is an extra: `uv sync --extra render`.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from etude.data.render.driver import Options, render
from etude.runs.flags import parse


@dataclass(frozen=True, kw_only=True)
class Flags(Options):
    what: Annotated[Literal["clevrtex"], tyro.conf.Positional]
    """The kind of scenes."""


def main(args: list[str]) -> None:
    options = parse(Flags, args, prog="etude data render", description=__doc__ or "")
    done = render(options)
    kept = f", {done.kept:,} were there" if done.kept else ""
    print(f"{options.out}: {options.count:,} scenes, {done.rendered:,} rendered now{kept}")
