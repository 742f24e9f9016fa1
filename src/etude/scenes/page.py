"""The tab of a study of scenes: one picture or two, what each slot holds, and changes of slots."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from etude.core.errors import UserError
from etude.data.images import read_image
from etude.scenes.source import SAMPLE
from etude.serve.kit.markup import Tile, box, percent, tiles
from etude.serve.kit.site import SHIPPED, Site, answering, current_tab, first_look, picture, read, samples

if TYPE_CHECKING:
    from torch import Tensor

    from etude.scenes.prediction import ScenePainter

SAMPLES = SAMPLE.parent
_EXAMPLES = ((3, 0, 7, 1, 4), (5, 8, 2, 6, 9))
_KINDS = [
    ("Take it out", "delete"),
    ("Move it to the second picture", "move"),
    ("Exchange it for one of the second", "swap"),
]
ORDER = ("first", "second")


@dataclass(frozen=True)
class Scene:
    """A picture with what a network finds in it."""

    image_HWC: np.ndarray
    """The picture as the network got it."""
    again_HWC: np.ndarray | None
    """The picture rebuilt of its slots; None where that takes long."""
    colours_HWC: np.ndarray
    """A colour a slot."""
    parts: Mapping[int, np.ndarray]
    """The contents of the slots that have some of the picture, by number, the largest first."""
    shares: Mapping[int, float]
    """Their share of the picture."""
    slots: "Sequence[Tensor]"
    """All slots, ``[S]`` each."""


Look = Callable[[Site, str, str | None], Scene]
"""A study's `scene_of`, given a choice of the menu and an uploaded picture."""


def scene_of(painter: "ScenePainter", path: str | None) -> Scene:
    """An uploaded picture, cut as the training pictures were, with what a network finds in it."""
    from etude.data.clevrtex import fitted_picture, least_side
    from etude.draw.figures import coloured
    from etude.nn.pixels import to_bytes
    from etude.scenes.edits import shares_of
    from etude.scenes.scores import segments

    size = painter.config.size
    image_HWC = fitted_picture(read(path, min_side=least_side(size)), Path(Path(str(path)).name), size)
    found = painter.find([image_HWC])
    segments_HW = segments(found.masks_NKHW)[0]
    shares = {int(slot): share for slot, share in shares_of(segments_HW, painter.config.num_slots).items()}
    again_HWC = None if found.made_NCHW is None else to_bytes(found.made_NCHW)[0].numpy()
    parts = {slot: found.parts_NKHWC[0, slot] for slot in shares}
    return Scene(image_HWC, again_HWC, coloured(segments_HW + 1), parts, shares, list(found.slots_NKS[0]))


def warm(site: Site, study: str, look: Look) -> None:
    """Import and load what the first answer needs."""
    if SHIPPED in site.choices(study):
        look(site, SHIPPED, str(sample(_EXAMPLES[0][0])))


def looked(look: Look, site: Site, choice: str, first: str | None, second: str | None) -> list[Scene]:
    """The first picture, and the second if there is one, with what the network finds in them."""
    return [look(site, choice, path) for path in (first, second)[: 2 if second else 1]]


def changed(words: Sequence[str], scenes: Sequence[Scene]) -> "list[list[Tensor]]":
    """The slots of each picture after changes, given as the words of `etude.scenes.edits`."""
    from etude.scenes.edits import edited, parse_edit

    if len(scenes) == 1 and any(not word.startswith("delete") for word in words):
        raise UserError("this needs a second picture: drop one beside the first")
    edits = [parse_edit(word, len(scenes[0].slots), two=len(scenes) == 2) for word in words]
    return edited([scene.slots for scene in scenes], edits)


# --- what is shown ---


def scenes_html(scenes: Sequence[Scene]) -> str:
    """The pictures, and what each slot holds."""
    html = ""
    for order, scene in zip(ORDER, scenes, strict=False):
        shown = [Tile(scene.image_HWC, "picture", f"the {order} picture as the network gets it")]
        if scene.again_HWC is not None:
            shown.append(Tile(scene.again_HWC, "rebuilt of its slots", f"the {order} picture rebuilt of its slots"))
        shown.append(Tile(scene.colours_HWC, "a colour a slot", f"which slot each pixel of the {order} picture is of"))
        for slot, part in scene.parts.items():
            told = f"slot {slot}: {percent(scene.shares[slot])}"
            shown.append(
                Tile(part, told, f"what slot {slot} holds, {percent(scene.shares[slot])} of the {order} picture")
            )
        html += f"<h3>{order.capitalize()} picture: {len(scene.parts)} slots hold something</h3>{tiles(shown, 112)}"
    return html


def changed_html(scenes: Sequence[Scene], made: Sequence[np.ndarray], what: str) -> str:
    """Each picture beside what became of it."""
    shown: list[Tile] = []
    for order, scene, image in zip(ORDER, scenes, made, strict=False):
        before = scene.image_HWC if scene.again_HWC is None else scene.again_HWC
        shown.append(Tile(before, f"{order} picture before", f"the {order} picture before the changes"))
        shown.append(Tile(image, f"{order} picture {what}", f"the {order} picture {what} after the changes"))
    return tiles(shown, 240)


def told(words: Sequence[str]) -> str:
    """The changes in words, as a numbered list."""
    lines: list[str] = []
    for place, word in enumerate(words, 1):
        kind, slot, *other = word.split(":")
        after = {"delete": "is taken out", "move": "moves to the second picture"}.get(
            kind, f"is exchanged for slot {''.join(other)} of the second"
        )
        lines.append(f"{place}. Slot {slot} of the first picture {after}.")
    return "\n".join(lines) or "No change yet."


def _menu(scene: Scene | None) -> Any:
    """The choices of a menu of slots: objects first, for the largest slot is the ground."""
    rows = [] if scene is None else [(f"slot {slot}: {percent(share)}", slot) for slot, share in scene.shares.items()]
    rows = [*rows[1:], *rows[:1]]
    return gr.update(choices=rows, value=rows[0][1] if rows else None)


# --- the tab ---


def sample(number: int) -> Path:
    """A scene that comes with the package."""
    return SAMPLES / f"CLEVRTEX_render_{number:06d}.png"


@dataclass(frozen=True)
class Desk:
    """The parts of a tab that a study's own work needs."""

    choice: gr.Dropdown
    first: gr.Image
    second: gr.Image
    edits: gr.State
    """Words of the changes, such as ``swap:2:5``."""
    settled: list[Any]
    """Events after each of which ``edits`` is as the visitor wants it."""
    emptied: Any
    """The event after which the pictures, and with them the changes, are others."""


def desk(site: Site, study: str, look: Look, **chooser: Any) -> Desk:
    """Two pictures, what is found in them, and a list of changes to make."""
    here = current_tab()
    boxes: list[gr.Image] = []
    with gr.Row():
        for label, numbers in zip(("First picture", "Second picture, if slots are to move"), _EXAMPLES, strict=True):
            with gr.Column(min_width=260):
                boxes.append(picture(label, height=220))
                samples([sample(number) for number in numbers], boxes[-1])
    first, second = boxes
    choice = site.chooser(study, **chooser)
    found = box(f"{study}-found")
    gr.Markdown("### Change the pictures by their slots")
    edits = gr.State([])
    with gr.Row(equal_height=True):
        kind = gr.Radio(_KINDS, value="delete", label="What happens to the slot of the first picture", scale=3)
        slot = gr.Dropdown([], label="Slot of the first picture", interactive=True, scale=1, min_width=140)
        other = gr.Dropdown([], label="Slot of the second", interactive=True, scale=1, min_width=140, visible=False)
    with gr.Row():
        add = gr.Button("Make this change", variant="primary", min_width=140)
        undo = gr.Button("Undo the last", min_width=140)
        clear = gr.Button("Undo all", min_width=140)
    listed = gr.Markdown(told([]), elem_id=f"{study}-edits")

    @answering
    def opened(choice: str, one: str | None, two: str | None) -> Any:
        scenes = looked(look, site, choice, one, two) if one else []
        menus = [_menu(scene) for scene in (*scenes, None, None)[:2]]
        return scenes_html(scenes), *menus, [], told([])

    @answering
    def added(choice: str, one: str | None, two: str | None, words: list[str], *now: Any) -> Any:
        kind, slot, other = now
        if slot is None or (kind == "swap" and two and other is None):
            raise UserError("no slot to change: drop a picture first, or choose an example")
        more = [*words, ":".join([kind, str(slot), *([str(other)] if kind == "swap" and two else [])])]
        changed(more, looked(look, site, choice, one, two))
        return more, told(more)

    pictures = [choice, first, second]
    emptied = gr.on([first.change, second.change, choice.change], opened, pictures,
                    [found, slot, other, edits, listed], concurrency_id=study)  # fmt: skip
    kind.change(lambda kind: gr.update(visible=kind == "swap"), kind, other, show_progress="hidden")
    settled = [
        add.click(added, [*pictures, edits, kind, slot, other], [edits, listed], concurrency_id=study),
        undo.click(lambda words: (words[:-1], told(words[:-1])), edits, [edits, listed], show_progress="hidden"),
        clear.click(lambda: ([], told([])), None, [edits, listed], show_progress="hidden"),
    ]
    if site.choices(study):
        first_look(here, lambda: read_image(sample(_EXAMPLES[0][0]), "RGB"), [], [first])
    return Desk(choice, first, second, edits, settled, emptied)
