"""``etude data render clevrtex --count N --out DIR``: CLEVRTex-like scenes by Blender, with masks.

The same command goes on after a stop; a larger --count adds scenes. Blender is an extra: `uv sync --extra render`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from etude.data.render.driver import render
from etude.data.render.scene import PUBLISHED, Shape
from etude.runs.flags import parse


@dataclass(frozen=True)
class Options:
    what: Annotated[Literal["clevrtex"], tyro.conf.Positional]
    """What is rendered."""
    count: int
    """Scenes in all; those that are there already stay."""
    out: Path
    """The folder they go to."""
    textures: Path | None = None
    """A folder of pictures, at any depth, for the surfaces; made-up patterns without one."""
    size: int = 128
    """Pixels a side, from 32 to 512."""
    shapes: tuple[Shape, ...] = PUBLISHED
    """To choose from; cone, torus and icosahedron are for tests out of distribution."""
    jobs: int = 1
    """Processes, each with its own Blender, one core and half a gigabyte of memory."""
    samples: int = 12
    """Paths of light a pixel, before the denoiser."""
    seed: int = 0
    """Of all draws."""


def main(args: list[str]) -> int:
    options = parse(Options, args, prog="etude data render", description=__doc__ or "")
    done = render(
        options.out,
        options.count,
        textures=options.textures,
        size=options.size,
        shapes=options.shapes,
        samples=options.samples,
        seed=options.seed,
        jobs=options.jobs,
    )
    kept = f", {done.kept:,} were there" if done.kept else ""
    print(f"{options.out}: {options.count:,} scenes, {done.rendered:,} rendered now{kept}")
    return 0
