"""Text of a run is text wherever it is shown as HTML: on the page, and in cards, which the hub shows as HTML.

The report's own tests are tests/report/test_page.py.
"""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from tests.fuzz.targets import command
from tests.report.folders import finish, picture, row, summary

from etude import registry
from etude.core.checkpoint import read_weights
from etude.core.config import to_yaml
from etude.core.run_folder import RunFolder
from etude.runs.card import write_card
from etude.serve.kit import markup

pytest.importorskip("gradio", reason="the page is an extra: `uv sync --extra web`")

HOSTILE = (
    '<script>alert(1)</script><img src=x onerror=alert(1)>\'" onload="alert(1) `</code>` | ![x](http://e.org/x.png)'
)
PLAIN = {
    "a", "br", "caption", "circle", "code", "desc", "div", "em", "figcaption", "figure", "g", "h1", "h2", "hr",
    "img", "li", "line", "ol", "p", "path", "polyline", "pre", "rect", "span", "strong", "svg", "table", "tbody",
    "td", "text", "th", "thead", "title", "tr", "ul", "wbr",
}  # fmt: skip


class Seen(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def harmless(text: str) -> Seen:
    """Nothing in it runs, and nothing is fetched."""
    seen = Seen(text)
    assert {tag for tag, _ in seen.tags} <= PLAIN
    for tag, attributes in seen.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert attributes.get("src", "data:image/png").startswith("data:image/")
        assert not attributes.get("href", "").lower().startswith(("javascript:", "data:"))
    return seen


def test_a_script_would_be_seen() -> None:
    for text in (HOSTILE, "<p onclick=x>", "<img src='http://e.org/x.png'>", "<a href='javascript:x'>x</a>"):
        with pytest.raises(AssertionError):
            harmless(text)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A run folder whose every text is a script, its own name among them."""
    text, short = HOSTILE, "<script>alert(1)<"
    name = f"{short}'\" onload=x"
    body = summary(
        row("w5s1", protocol=text), row(text, metric=text, split=text, experiment=text, unit=text),
        command=f"etude run {text}", parameters={text: 3},
        validation={"metric": text, "best": 1.0, "direction": "max"},
    )  # fmt: skip
    path = finish(tmp_path / "runs" / "protonet" / name, body, overrides={text: text}).path
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 400, f"train/{short}": 1.0, f"{short}{text.replace('/', '')}": 2.5}) + "\n")
    picture(path / "figures" / f"{short} onerror=x.png")
    record = {"format": 1, "study": "protonet", "preset": text, "scale": "laptop", "overrides": {}, "config": {}}
    (path / "config.yaml").write_text(to_yaml(record))
    return path


def test_the_page_shows_it_as_text(hostile: Path) -> None:
    from etude.serve import runs

    [run] = runs.find(hostile.parents[1])
    shown = [
        markup.table("Runs", ("run", "preset"), runs.overview([run])), runs.panels(run), runs.numbers_of(run),
        runs.pictures_of(run, hostile.parents[1]), *(runs.beside([run], name) for name in runs.metric_names([run])),
    ]  # fmt: skip
    texts = "".join(text for part in shown for text in harmless(part).texts)
    assert texts.count("<script>alert(1)") >= 6
    assert HOSTILE in texts


def test_a_fault_is_shown_as_text(hostile: Path) -> None:
    import gradio as gr

    from etude.core.errors import UserError
    from etude.serve.kit.site import answering

    def fails() -> None:
        raise UserError(HOSTILE)

    with pytest.raises(gr.Error) as caught:
        answering(fails)()
    assert harmless(str(caught.value.message)).tags == []


def test_the_model_card_shows_it_as_text(hostile: Path) -> None:
    study = registry.load("protonet")
    card = write_card(study, RunFolder(hostile), json.loads((hostile / "summary.json").read_text())).read_text()
    seen = harmless(MarkdownIt("commonmark", {"html": True}).enable("table").render(card))
    assert "".join(seen.texts).count("<script>alert(1)") >= 6


def test_the_card_of_the_hub_shows_it_as_text(hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run whose network is sound, and whose numbers have names of a stranger's."""
    weights = registry.load("protonet").shipped_weights
    assert weights is not None
    _, header = read_weights(weights)
    record = {"format": 1, "study": "protonet", "preset": "laptop", "scale": "laptop", "overrides": {}}
    (hostile / "config.yaml").write_text(
        to_yaml(record | {"config": header.config | {"data": {"source": "generated"}}})
    )
    run = RunFolder(hostile)
    place = run.checkpoints().path(300)
    place.mkdir(parents=True)
    shutil.copy(weights, place / "weights.safetensors")
    run.checkpoints().mark_best(300, "x", 1.0)
    command("export", hostile, "--out", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert "model-index" in front
    seen = harmless(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))
    assert "".join(seen.texts).count("<script>alert(1)") >= 5
