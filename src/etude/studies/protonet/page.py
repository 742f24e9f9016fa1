"""The tab of `protonet`: draw a few characters, and see which of them another one is nearest to."""

import base64
import binascii
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from etude.core.errors import UserError
from etude.data import SAMPLES
from etude.data.images import read_image
from etude.serve.kit.site import Site, answering, current_tab, first_look

TITLE = "protonet"
CLASSES = 5
_SAMPLES = SAMPLES / "omniglot"
_PREFIX = "data:image/png;base64,"
_LONGEST = 400_000
"""Characters of one drawing as text; 105 x 105 pixels take at most some 60,000."""
_NAMES = (*(f"class {number + 1}" for number in range(CLASSES)), "query")

_BOARDS = "".join(
    f"""<figure class="board{" query" if name == "query" else ""}">
<figcaption>{name.capitalize()}</figcaption>
<canvas width="105" height="105" role="img" aria-label="The drawing of {name}"></canvas>
<span><button type="button" class="clear" aria-label="Clear {name}">Clear</button>
<label class="upload">Upload<input type="file" accept="image/*" aria-label="Upload a picture of {name}"></label></span>
</figure>"""
    for name in _NAMES
)
CSS = """
.distances, .distances * { border: none !important; }
.distances { width: 100%; border-collapse: collapse; }
.distances caption { text-align: left; padding: 0.3rem 0; }
.distances th, .distances td { padding: 0.2rem 0.5rem 0.2rem 0; text-align: left; white-space: nowrap; width: 1%; }
.distances .bar { width: 96%; }
.distances .bar div { height: 14px; border-radius: 3px; background: #9aa0a6; transition: width 0.2s; }
.distances .bar div.near { background: #0072B2; }
"""
_LOOK = """
.boards { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: 14px; }
.board { margin: 0; max-width: 160px; }
.board figcaption { font-weight: 600; font-size: 0.9rem; }
.board canvas { width: 100%; aspect-ratio: 1; background: #fff; border: 1px solid #8a8a94; border-radius: 4px;
  touch-action: none; cursor: crosshair; display: block; }
.board.query canvas { border: 3px solid #0072B2; }
.board span { display: flex; gap: 6px; margin-top: 4px; }
.board button, .board .upload { font-size: 0.8rem; padding: 2px 8px; border: 1px solid #8a8a94; border-radius: 4px;
  background: transparent; color: inherit; cursor: pointer; position: relative; overflow: hidden; }
.board .upload input { position: absolute; inset: 0; opacity: 0; cursor: pointer; width: 100%; }
.board .upload:focus-within { outline: 2px solid #0072B2; outline-offset: 2px; }
.wrong { color: #b00020; margin: 4px 0 0; font-size: 0.9rem; }
"""
_DRAWING = Path(__file__).with_name("boards.js").read_text(encoding="utf-8")


def examples(query: int = 0) -> str:
    """Five characters of one alphabet, and one of their other drawings as the query, as `drawings` reads them."""
    support = [min(folder.glob("*.png")) for folder in sorted((_SAMPLES / "support").iterdir())][:CLASSES]
    asked = [*sorted((_SAMPLES / "queries").glob("*.png")), *sorted((_SAMPLES / "strangers").glob("*.png"))]
    # Each time another character.
    chosen = asked[(query * 5 + 2) % len(asked)]
    return json.dumps([_PREFIX + base64.b64encode(path.read_bytes()).decode() for path in [*support, chosen]])


def drawings(text: str | None) -> list[np.ndarray | None]:
    """The pictures of a request, uint8 ``[H, W]``, five classes and the query; None where nothing was drawn.

    Raises:
        UserError: anything but what the page's own script sends.
    """
    try:
        given = json.loads(text or "[]")
        if not isinstance(given, list) or len(given) > len(_NAMES):
            raise ValueError("a list of drawings")
        given += [""] * (len(_NAMES) - len(given))
        return [_decoded(one, name) if one else None for one, name in zip(given, _NAMES, strict=True)]
    except (ValueError, RecursionError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError("these are no drawings of the page: load it again") from error


def _decoded(text: str, name: str) -> np.ndarray | None:
    if not isinstance(text, str) or not text.startswith(_PREFIX) or len(text) > _LONGEST:
        raise ValueError("a PNG as text")
    try:
        body = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError("base64") from error
    return read_image((f"the drawing of {name}", body), "L", max_pixels=1_000_000)


def compare(site: Site, choice: str, pictures: Sequence[np.ndarray | None]) -> Any:
    """The `Prediction` of the query among the drawn classes, pictures as `drawings` gives them; None where there is no
    query or no class yet."""
    import torch

    from etude.studies.protonet.predict import Prototypes, answers

    *classes, query = pictures
    named = {name: image for name, image in zip(_NAMES, classes, strict=False) if image is not None}
    if query is None or not named:
        return None
    embedder = site.loaded(TITLE, choice)
    with torch.no_grad():
        z_ND = embedder.embed_images([*named.values(), query])
    # With one drawing of a class its prototype is that drawing's embedding.
    support = Prototypes(tuple(named), z_ND[:-1], (1,) * len(named))
    limit = embedder.threshold(1) if embedder.thresholds else None
    [found] = answers(["query"], z_ND[-1:], support, embedder, limit)
    return found


def prediction_html(found: Any) -> str:
    """Return a prediction as HTML: one line, and a bar for each distance."""
    if found is None:
        return "<p role='status'>Draw at least one class and the query, or take the examples.</p>"
    nearest = min(found.distances, key=found.distances.__getitem__)
    known = found.label != "unknown"
    line = f"The query is nearest to <b>{nearest}</b>" + (
        f": {100 * found.probability:.0f} %." if known else ", but so far that it is of none of them.")  # fmt: skip
    longest = max(*found.distances.values(), 1e-9)
    rows = "".join(
        f"<tr><th scope='row'>{html.escape(name)}</th><td class='bar'><div class='{'near' if name == nearest else ''}' "
        f"style='width:{max(1.0, 100 * distance / longest):.1f}%'></div></td><td>{distance:.2f}</td></tr>"
        for name, distance in found.distances.items()
    )
    return (f"<p role='status'>{line}</p><table class='distances'><caption>Distance to each prototype</caption>"
            f"<tbody>{rows}</tbody></table>")  # fmt: skip


def tab(site: Site) -> None:
    gr.Markdown("Draw a character in each of some squares, then one of them again as the query: the network, which "
                "never saw them, tells which it is by the nearest embedding.")  # fmt: skip
    boards = gr.HTML(
        examples(), html_template=f'<div class="boards">{_BOARDS}</div><p class="wrong" role="alert"></p>',
        css_template=_LOOK, js_on_load=_DRAWING, elem_id="boards",
    )  # fmt: skip
    with gr.Row():
        again = gr.Button("Another example", size="sm")
        empty = gr.Button("Clear all", size="sm")
    turn = gr.State(0)
    answer = gr.HTML(prediction_html(None), padding=True, container=True, min_height=150)
    choice = site.chooser(TITLE)

    @answering
    def answered(choice: str, text: str) -> Any:
        return prediction_html(compare(site, choice, drawings(text)))

    @answering
    def given(choice: str, turn: int) -> Any:
        text = examples(turn + 1)
        return text, turn + 1, prediction_html(compare(site, choice, drawings(text)))

    # What was drawn last counts, not each stroke before it.
    gr.on([boards.input, choice.change], answered, [choice, boards], answer, concurrency_id=TITLE,
          show_progress="hidden", trigger_mode="always_last")  # fmt: skip
    again.click(given, [choice, turn], [boards, turn, answer], concurrency_id=TITLE, show_progress="hidden")
    empty.click(lambda: ("[]", prediction_html(None)), outputs=[boards, answer], show_progress="hidden")
    first_look(current_tab(), answered, [choice, boards], [answer])


def warm(site: Site) -> None:
    """Import and load what the first answer needs."""
    compare(site, site.choices(TITLE)[0], drawings(examples()))
