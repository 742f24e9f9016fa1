"""The tab of `slots`: a picture's objects, and pictures rebuilt of slots taken out, moved or exchanged."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from etude.scenes import page
from etude.scenes.page import Scene, changed, changed_html, desk, looked, scene_of
from etude.serve.kit.markup import box
from etude.serve.kit.site import Site, answering

if TYPE_CHECKING:
    from etude.studies.slots.predict import Painter

TITLE = "slots"


def _load(weights: Path, extra: Mapping[str, Any] | None) -> "Painter":
    from etude.studies.slots.predict import Painter, read_model

    return Painter(read_model(weights)[0], 0)


def look(site: Site, choice: str, path: str | None) -> Scene:
    """A picture with what the network of a choice finds in it."""
    return scene_of(site.loaded(TITLE, choice, _load), path)


def rebuilt(site: Site, choice: str, first: str | None, second: str | None, words: Sequence[str]) -> str:
    """The pictures rebuilt of their slots after some changes, as HTML."""
    import torch

    painter = site.loaded(TITLE, choice, _load)
    scenes = looked(look, site, choice, first, second)
    slots = [torch.stack(list(part))[None] for part in changed(words, scenes)]
    return changed_html(scenes, [painter.painted(part, [0], "rebuilding")[0].numpy() for part in slots], "rebuilt")


def tab(site: Site) -> None:
    gr.Markdown("Slot Attention finds the objects of a picture without being told of any. Each slot holds one, and the "
                "decoder paints a picture of any set of slots.")  # fmt: skip
    work = desk(site, TITLE, look)
    shown = box("slots-changed")

    @answering
    def rebuild(choice: str, first: str | None, second: str | None, words: list[str]) -> str:
        return rebuilt(site, choice, first, second, words) if first and words else ""

    for event in work.settled:
        event.success(rebuild, [work.choice, work.first, work.second, work.edits], shown, concurrency_id=TITLE)
    work.emptied.then(lambda: "", None, shown, show_progress="hidden")


def warm(site: Site) -> None:
    page.warm(site, TITLE, look)
