"""The runs that every tab of the page shares, their networks in memory, and one line for each fault."""

import functools
import html
import inspect
import logging
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import gradio as gr
import numpy as np
from gradio.context import Context

from etude import registry
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder
from etude.data.images import Mode, read_image
from etude.draw.metrics import read_metrics
from etude.serve.kit import markup

SHIPPED = "shipped with etude"
MAX_UPLOAD = 20 * 2**20
"""Bytes of one file."""
_KEPT = 8
_DRAWING = threading.Lock()

_SAMPLES = """
.samples { display: flex; flex-wrap: wrap; gap: 6px; }
.samples button { padding: 0; margin: 0; line-height: 0; border: 1px solid #8a8a94; border-radius: 4px;
  overflow: hidden; cursor: pointer; }
.samples img { width: 56px; height: 56px; object-fit: cover; display: block; margin: 0 !important; }
"""
_CHOOSE = """
element.querySelectorAll('button').forEach(button => button.addEventListener('click', () =>
  trigger('click', {number: Number(button.dataset.number)})));
"""

_metrics: dict[Path, tuple[tuple[int, int], list[dict[str, Any]]]] = {}

_log = logging.getLogger(__name__)


@dataclass
class Site:
    """The runs that the page offers, and the networks of those that somebody asked for."""

    runs: Path
    """The folder of run folders, ``STUDY/NAME``; it need not exist. Nothing outside it is read for a visitor."""
    choosers: dict[str, list[gr.Dropdown]] = field(default_factory=dict[str, list[gr.Dropdown]])
    """The menus of runs by study: `etude.serve.app.build` fills them anew whenever the page is opened."""
    fits: dict[str, Callable[[Mapping[str, Any]], bool]] = field(
        default_factory=dict[str, Callable[[Mapping[str, Any]], bool]]
    )
    """A test of configurations by study, where its tab has a use for some alone."""
    _models: OrderedDict[Any, tuple[Any, threading.Lock]] = field(
        default_factory=OrderedDict[Any, tuple[Any, threading.Lock]]
    )
    _lock: Any = field(default_factory=threading.RLock)

    def folders(self, study: str) -> dict[str, Path]:
        """The runs of a study by name, finished or not; a link that leads out of the runs folder is left out."""
        root = self.runs.resolve()
        found = ((path.parent.name, path.parent.resolve()) for path in sorted((root / study).glob("*/config.yaml")))
        return {name: path for name, path in found if path.is_relative_to(root)}

    def finished(self, study: str) -> dict[str, Path]:
        """The ones of `folders` that have ended."""
        return {name: path for name, path in self.folders(study).items() if (path / "summary.json").is_file()}

    def choices(self, study: str) -> list[str]:
        """The choices that a visitor has of a study: the network that comes with the package, then finished runs."""
        shipped = [SHIPPED] if registry.load(study).shipped_weights else []
        runs = [name for name, path in self.finished(study).items() if name != SHIPPED and self._fits(study, path)]
        return [*shipped, *runs]

    def _fits(self, study: str, path: Path) -> bool:
        try:
            return study not in self.fits or self.fits[study](RunFolder.open(path).record.config)
        except UserError:
            # Its fault is shown when it is chosen.
            return True

    def weights(self, study: str, choice: str) -> tuple[Path, Mapping[str, Any] | None]:
        """The weights file of a choice, and what the run's summary adds (None for the shipped one).

        Raises:
            UserError: a name that `choices` does not list, whatever it leads to, or a run without weights.
        """
        from etude.core.summary import chosen_weights, summary_of

        shipped = registry.load(study).shipped_weights
        if choice == SHIPPED and shipped is not None:
            return shipped, None
        path = self.finished(study).get(choice)
        if path is None:
            raise UserError(f"no finished run '{choice}' of {study}: choose one of the menu")
        run = RunFolder.open(path)
        weights = chosen_weights(run).resolve()
        if not weights.is_relative_to(self.runs.resolve()):
            raise UserError(f"the weights of '{choice}' lie outside the runs folder: copy them into it")
        return weights, (summary_of(run) or {}).get("extra")

    def loaded(self, study: str, choice: str, load: Callable[[Path, Any], Any] | None = None) -> Any:
        """The network that ``load(weights, extra)``, or that of the study's predict.py, gives for a choice; the last
        few are kept until their file changes.

        Visitors share it, each in a thread of its own: it must only be read. `using` is for what is not.
        """
        return self._entry(study, choice, load)[0]

    @contextmanager
    def using(self, study: str, choice: str, load: Callable[[Path, Any], Any] | None = None) -> Iterator[Any]:
        """The network of `loaded` for one visitor at a time: the next one waits until the block ends."""
        model, lock = self._entry(study, choice, load)
        with lock:
            yield model

    def _entry(self, study: str, choice: str, load: Callable[[Path, Any], Any] | None) -> tuple[Any, threading.Lock]:
        load = load or registry.load(study).module("predict").load
        assert load is not None
        weights, extra = self.weights(study, choice)
        key = (study, choice, weights, weights.stat().st_mtime_ns, load)
        with self._lock:
            if key not in self._models:
                self._models[key] = load(weights, extra), threading.Lock()
            self._models.move_to_end(key)
            while len(self._models) > _KEPT:
                self._models.popitem(last=False)
            return self._models[key]

    def chooser(self, study: str, label: str = "Network") -> gr.Dropdown:
        """A menu of `choices`."""
        names = self.choices(study)
        menu = gr.Dropdown(names, value=names[0] if names else None, label=label)
        self.choosers.setdefault(study, []).append(menu)
        return menu


def current_tab() -> Any:
    """The `gr.Tab` that is being built: its ``select`` tells when a visitor turns to it."""
    assert Context.block is not None, "tabs are built inside a page"
    return Context.block


def first_look(tab: Any, handler: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Call a handler when a visitor first turns to a `current_tab`, so that it shows something before any click."""

    def once(seen: bool, *values: Any) -> Any:
        if seen:
            return tuple(gr.skip() for _ in range(len(outputs) + 1))
        found = answering(handler)(*values)
        return (True, found) if len(outputs) == 1 else (True, *found)

    seen = gr.State(False)
    tab.select(once, [seen, *inputs], [seen, *outputs], show_progress="hidden")


def picture(label: str, **more: Any) -> gr.Image:
    """A place to drop a picture; a handler gets the path of the uploaded file, unread, for `read`."""
    image = gr.Image(type="filepath", format="png", sources=["upload", "clipboard"], label=label, buttons=[],
                     elem_classes="drop", alt_text=label, **more)  # fmt: skip
    # Gradio's own reader decodes whatever Pillow knows, and says no word of what is wrong with a file.
    image.preprocess = lambda payload: payload.path if payload else None
    return image


def shown(alt: str, *buttons: Literal["download", "fullscreen"], **more: Any) -> gr.Image:
    """A place for a picture of ours, with words for those who do not see it."""
    return gr.Image(show_label=False, format="png", interactive=False, alt_text=alt, buttons=list(buttons), **more)


def samples(paths: Sequence[Path], into: gr.Image) -> None:
    """A row of pictures, files named for what they show, as buttons; a click puts one into ``into`` as it is."""
    buttons = "".join(
        f"<button type='button' data-number='{number}' title='{html.escape(path.stem)}'>"
        f"<img src='{markup.png(read_image(path, 'RGB'))}' alt='{html.escape(path.stem)}'></button>"
        for number, path in enumerate(paths)
    )
    row = gr.HTML(
        html_template=f"<div class='samples' role='group' aria-label='Examples'>{buttons}</div>",
        css_template=_SAMPLES, js_on_load=_CHOOSE,
    )  # fmt: skip

    def chosen(event: gr.EventData) -> np.ndarray:
        number = getattr(event, "number", None)
        if not isinstance(number, int) or not 0 <= number < len(paths):
            raise UserError("no such example: choose one of the row")
        return read_image(paths[number], "RGB")

    row.click(answering(chosen), outputs=into, show_progress="hidden")


def read(path: str | None, mode: Mode = "RGB", min_side: int | None = None) -> np.ndarray:
    """An uploaded picture's pixels, uint8 ``[H, W]`` or ``[H, W, 3]``; see `etude.data.images.read_image`.

    Raises:
        UserError: no picture, or one that cannot be read, in one line that names the file as the visitor does.
    """
    if not path:
        raise UserError("no picture yet: drop one, or choose an example")
    file = Path(path)
    try:
        with file.open("rb") as opened:
            body = opened.read(MAX_UPLOAD + 1)
    except OSError as error:
        # Uploads are removed after an hour.
        raise UserError(f"{file.name} is no longer on the server: drop it again") from error
    if len(body) > MAX_UPLOAD:
        raise UserError(f"{file.name} is larger than {MAX_UPLOAD // 2**20} MB: make it smaller")
    return read_image((file.name, body), mode, min_side=min_side)


def drawn(draw: Callable[[Path], None]) -> np.ndarray:
    """The picture that ``draw`` writes to a file: uint8 ``[H, W, 3]``."""
    # Matplotlib's style belongs to the whole process.
    with _DRAWING, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drawn.png"
        draw(path)
        return read_image(path, "RGB")


def answering(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler (plain, or a generator that streams) whose faults the visitor reads as one line, never a traceback.

    A `UserError` is shown as it is. Anything else is a fault of ours: the terminal gets the traceback.
    """
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(*args: Any) -> Iterator[Any]:
            with _shown(handler):
                yield from handler(*args)

        return stream

    @functools.wraps(handler)
    def answer(*args: Any) -> Any:
        with _shown(handler):
            return handler(*args)

    return answer


@contextmanager
def _shown(handler: Callable[..., Any]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        # The line may name a visitor's file, and the page reads it as HTML.
        line = html.escape(" ".join(str(error).split()))
        raise gr.Error(line, title="Not so", print_exception=False) from None
    except gr.Error:
        raise
    except Exception as error:
        _log.exception("the page's %s failed", handler.__qualname__)
        line = "something broke here, and the terminal of `etude serve` says what"
        raise gr.Error(line, title="A fault of etude", print_exception=False) from error


def metrics_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that can be read. It is read again only when it changed."""
    file = path / "metrics.jsonl"
    try:
        about = file.stat()
    except OSError:
        return []
    stamp = (about.st_mtime_ns, about.st_size)
    if path not in _metrics or _metrics[path][0] != stamp:
        _metrics[path] = stamp, read_metrics(file)[0]
    return _metrics[path][1]
