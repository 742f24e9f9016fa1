"""The tab of `slotdiffusion`: the objects of a picture, and a diffusion that draws it again, changed, step by step."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from etude.core.errors import UserError
from etude.scenes import page
from etude.scenes.page import ORDER, Scene, changed, desk, looked, scene_of
from etude.serve.kit.markup import Tile, box, tiles
from etude.serve.kit.site import Site, answering
from etude.serve.kit.stream import Line, streamed

if TYPE_CHECKING:
    from torch import Tensor

    from etude.studies.slotdiffusion.model import Painter
    from etude.studies.slotdiffusion.predict import Networks

TITLE = "slotdiffusion"
SAMPLERS = ("dpm-solver++", "ddim", "ancestral")
_STEPS = 20
_SHOWN = 10
"""Earlier moments that stay on the page, at most."""
_PAUSE = 0.1
"""Seconds between two pictures of the way: each costs a pass of the decoder."""
_LONGEST = 60.0
"""Seconds that a step may take before a visitor who cancels is told that it stopped."""
_NONE = (
    "No network of slotdiffusion is here yet: `etude run slotdiffusion smoke` trains a tiny one in a minute, and "
    "`etude run slotdiffusion vae-laptop`, then `etude run slotdiffusion laptop --vae.weights "
    "runs/slotdiffusion/vae-laptop`, one that draws scenes."
)


def _load(weights: Path, extra: Mapping[str, Any] | None) -> "Networks":
    from etude.studies.slotdiffusion.predict import read_networks

    return read_networks(weights)


def _networks(site: Site, choice: str | None) -> "Networks":
    if not choice:
        raise UserError(_NONE.replace("`", "'"))
    return site.loaded(TITLE, choice, _load)


def missing(site: Site) -> str:
    """The line that says what to run where there is nothing to draw with; else nothing."""
    return "" if site.choices(TITLE) else _NONE


def has_slots(config: Mapping[str, Any]) -> bool:
    """True of a run that has slots; an autoencoder's alone has none."""
    return config.get("phase") != "vae"


def look(site: Site, choice: str, path: str | None) -> Scene:
    """A picture with what the network of a choice finds in it."""
    from etude.studies.slotdiffusion.predict import Options, ScenePaintings

    return scene_of(ScenePaintings(_networks(site, choice).painter(Options())), path)


# --- drawing ---


@dataclass(frozen=True)
class Moment:
    """A picture on its way out of the noise."""

    picture: int
    """Its number, from 0."""
    step: int
    """The steps of it that are done, of ``steps``."""
    steps: int
    left: float
    """Seconds that the rest of all pictures will take."""
    noisy_HWC: np.ndarray
    """The latent, decoded."""
    guess_HWC: np.ndarray
    """The network's guess of it; after the last step both are the picture."""


def painter_of(networks: "Networks", sampler: str, steps: int, seed: int) -> "Painter":
    """The painter that draws with a sampler of `SAMPLERS`."""
    from etude.studies.slotdiffusion.predict import Options

    # A path would be a program to run.
    if sampler not in SAMPLERS:
        raise UserError(f"no sampler '{sampler}': there are {', '.join(SAMPLERS)}")
    if not 0 <= seed < 2**31:
        raise UserError(f"the seed must be from 0 to {2**31 - 1:,}, not {seed}")
    return networks.painter(Options(sampler=sampler, steps=steps, seed=seed))


def drawing(painter: "Painter", pictures: "Sequence[Sequence[Tensor]]", pause: float = _PAUSE) -> Iterator[Moment]:
    """The moments of pictures that are drawn of their slots, one after the other; closed, it draws no further step.

    Args:
        painter: draws them.
        pictures: the slots ``[S]`` of each.
        pause: seconds from one moment to the next at least; the first and the last of a picture always come.
    """
    import torch

    from etude.nn.pixels import to_bytes
    from etude.studies.slotdiffusion.predict import STREAM

    def work(line: Line[Moment]) -> None:
        began = last = time.monotonic()
        for number, slots in enumerate(pictures):

            def on_step(step: int, steps: int, z: "Tensor", z0: "Tensor", number: int = number) -> None:
                nonlocal last
                line.check()
                if time.monotonic() - last < pause and 1 < step < steps:
                    return
                noisy, guess = to_bytes(painter.decode(torch.cat([z, z0]))).cpu().numpy()
                done, last = number * steps + step, time.monotonic()
                left = (last - began) / done * (len(pictures) * steps - done)
                line.send(Moment(number, step, steps, left, noisy, guess))

            # One noise for all: what differs between pictures comes of their slots.
            painter.latents(torch.stack(list(slots))[None], [0], STREAM, on_step)

    return streamed(work)


def drawn_html(scenes: Sequence[Scene], done: Sequence[np.ndarray], moment: Moment, way: Sequence[np.ndarray]) -> str:
    """The pictures that are ready, the one that is drawn now, and how it came out of the noise."""
    shown: list[Tile] = []
    for order, scene, image in zip(ORDER, scenes, done, strict=False):
        shown.append(Tile(scene.image_HWC, f"{order} picture", f"the {order} picture"))
        told = f"the {order} picture drawn of noise and its slots"
        shown.append(Tile(image, "drawn of noise and slots", told))
    html = tiles(shown, 240) if shown else ""
    if moment.step < moment.steps:
        order = ORDER[moment.picture]
        html += tiles([
            Tile(scenes[moment.picture].image_HWC, f"{order} picture", f"the {order} picture"),
            Tile(moment.noisy_HWC, f"the latent after step {moment.step}", "the noisy latent, decoded"),
            Tile(moment.guess_HWC, "what the network takes it for", "what the network takes the latent for"),
        ], 240)  # fmt: skip
    if way:
        strip = tiles([Tile(image, "", f"moment {place} of the way") for place, image in enumerate(way, 1)], 96)
        html += f"<h3>Out of the noise: what the network took each moment for</h3>{strip}"
    return html


def progress_html(moment: Moment, pictures: int, painter: "Painter") -> str:
    """A progress bar with the step and the time left."""
    total, done = pictures * moment.steps, moment.picture * moment.steps + moment.step
    where = f" of picture {moment.picture + 1} of {pictures}" if pictures > 1 else ""
    left = f"{moment.left / 60:.0f} min" if moment.left >= 90 else f"{max(1, round(moment.left))} s"
    told, role = f"Step {moment.step} of {moment.steps}{where}, about {left} left", ""
    if done == total:
        # Only the end is read aloud.
        told, role = f"Drawn in {painter.config.steps} steps with {painter.config.sampler}.", ' role="status"'
    return (
        f'<progress class="et-bar" value="{done}" max="{total}" aria-label="steps done">{done} of {total}</progress>'
        f"<p{role}>{escape(told)}</p>"
    )


def thinned(way: list[np.ndarray], most: int = _SHOWN) -> list[np.ndarray]:
    """The moments, or every second of them from the last one back where they are more than ``most``."""
    return way if len(way) <= most else way[::-2][::-1]


def draw(
    site: Site, choice: str, first: str | None, second: str | None, words: Sequence[str], sampler: str, steps: int,
    seed: int,
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """The progress and the pictures, as HTML, while the pictures are drawn."""
    networks = _networks(site, choice)
    painter = painter_of(networks, sampler, int(steps), int(seed))
    scenes = looked(look, site, choice, first, second)
    pictures = changed(words, scenes)
    done: list[np.ndarray] = []
    way: list[np.ndarray] = []
    for moment in drawing(painter, pictures):
        if moment.step == moment.steps:
            done.append(moment.guess_HWC)
        if moment.picture == 0:
            way = thinned([*way, moment.guess_HWC])
        yield progress_html(moment, len(pictures), painter), drawn_html(scenes, done, moment, way)


# --- the tab ---


class _Drawing:
    """A drawing for a visitor: whether it is to stop, and whether it has ended."""

    def __init__(self) -> None:
        self.unwanted, self.over = threading.Event(), threading.Event()


def tab(site: Site) -> None:
    gr.Markdown("The same slots, but a diffusion draws: noise becomes a latent step by step, with the slots as its "
                "condition, and an autoencoder decodes it.")  # fmt: skip
    site.fits[TITLE] = has_slots
    if line := missing(site):
        gr.Markdown(line)
    work = desk(site, TITLE, look)
    gr.Markdown("### Draw it")
    with gr.Row(equal_height=True):
        sampler = gr.Dropdown(list(SAMPLERS), value=SAMPLERS[0], label="Sampler", min_width=140)
        steps = gr.Slider(1, 1000, value=_STEPS, step=1, label="Steps", min_width=200)
        seed = gr.Number(0, label="Seed of the noise", precision=0, minimum=0, min_width=120)
    with gr.Row():
        start = gr.Button("Draw", variant="primary", min_width=140)
        stop = gr.Button("Cancel", variant="stop", min_width=140)
    progress = box("slotdiffusion-progress")
    shown = box("slotdiffusion-drawn")

    drawings: dict[str | None, _Drawing] = {}

    @answering
    def drawn(request: gr.Request, *given: Any) -> Iterator[Any]:
        mine = drawings[request.session_hash] = _Drawing()
        try:
            for moment in draw(site, *given):
                if mine.unwanted.is_set():
                    return
                yield moment
        finally:
            mine.over.set()
            # A later one of the same visitor may stand there by now.
            if drawings.get(request.session_hash) is mine:
                del drawings[request.session_hash]

    @answering
    def stopped(request: gr.Request) -> str:
        drawing = drawings.pop(request.session_hash, None)
        if drawing is not None:
            drawing.unwanted.set()
            # What it told last may still be on its way, and would stand over this line.
            drawing.over.wait(_LONGEST)
        return '<p role="status">Stopped: nothing is being drawn.</p>'

    running = start.click(
        drawn, [work.choice, work.first, work.second, work.edits, sampler, steps, seed], [progress, shown],
        concurrency_id=f"{TITLE}-draw", show_progress="hidden",
    )  # fmt: skip
    # What runs ends by itself, between two steps: cut off by gradio, it may be shown as an error. What still waits for
    # its turn only gradio can drop.
    stop.click(stopped, None, progress, show_progress="hidden").then(None, cancels=running)
    work.emptied.then(lambda: ("", ""), None, [progress, shown], show_progress="hidden")


def warm(site: Site) -> None:
    page.warm(site, TITLE, look)
