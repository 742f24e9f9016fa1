"""The tab of `slots`: a picture's objects, and pictures rebuilt of slots taken out, moved or exchanged."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from etude import registry
from etude.scenes.page import SAMPLES, Scene, changed, changed_html, desk, fitted, looked
from etude.serve.kit.markup import box
from etude.serve.kit.site import Site, answering

if TYPE_CHECKING:
    from etude.studies.slots.model import SlotAutoencoder

TITLE = "slots"


def _load(weights: Path, extra: Mapping[str, Any] | None) -> "SlotAutoencoder":
    from etude.studies.slots.predict import read_model

    return read_model(weights)[0]


def look(site: Site, choice: str, path: str | None) -> Scene:
    """What the network of a choice finds in a picture."""
    from etude.draw.figures import coloured
    from etude.nn.pixels import to_bytes
    from etude.scenes.edits import shares_of
    from etude.scenes.scores import segments
    from etude.studies.slots import figures
    from etude.studies.slots.predict import find

    model = site.loaded(TITLE, choice, _load)
    image_HWC = fitted(path, model.config.size)
    found = find(model, [image_HWC], 0)
    masks_KHW, contents_KCHW = found.named["masks"][0].cpu(), found.named["contents"][0].float().cpu()
    segments_HW = segments(masks_KHW[None])[0]
    shares = {int(slot): share for slot, share in shares_of(segments_HW, len(masks_KHW)).items()}
    parts_KHWC = to_bytes(figures.on_white(contents_KCHW, masks_KHW)).numpy()
    again_HWC = to_bytes(found.made_BCHW)[0].cpu().numpy()
    parts = {slot: parts_KHWC[slot] for slot in shares}
    return Scene(image_HWC, again_HWC, coloured(segments_HW + 1), parts, shares, list(found.named["slots"][0]))


def rebuilt(site: Site, choice: str, first: str | None, second: str | None, words: Sequence[str]) -> str:
    """The pictures rebuilt of their slots after some changes."""
    import torch

    from etude.studies.slots.predict import decoded

    model = site.loaded(TITLE, choice, _load)
    scenes = looked(look, site, choice, first, second)
    made = [decoded(model, torch.stack(list(slots))[None])[0].numpy() for slots in changed(words, scenes)]
    return changed_html(scenes, made, "rebuilt")


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
    """Import and load what the first answer needs."""
    if registry.load(TITLE).shipped_weights:
        look(site, site.choices(TITLE)[0], str(next(SAMPLES.glob("*[0-9].png"))))
