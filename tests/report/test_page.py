"""The report: one file that holds everything, is readable by all, and obeys nothing that a run's files say."""

import fcntl
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.report.folders import begin, finish, picture, row, summary

from etude import registry
from etude.core.errors import UserError
from etude.report import page, results

STUDY = registry.load("protonet")
HOSTILE = "<script>alert(1)</script>"
_VOID = {"meta", "img", "br", "link", "input", "hr"}


@pytest.fixture(autouse=True)
def _no_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (page, results):
        monkeypatch.setattr(module, "committed", lambda: tmp_path / "committed")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


class Audit(HTMLParser):
    """Reads a page strictly and keeps what the checks ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], "every tag is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, *names: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag in names]


def audited(text: str) -> Audit:
    """The page, held to be self-contained and accessible."""
    seen = Audit(text)
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in seen.tags}
    for _, attributes in seen.tags:
        assert attributes.get("src", "data:image/").startswith("data:image/")
        assert re.match(r"#|https?://", attributes.get("href", "#"))
        assert not [name for name in attributes if name.startswith("on")]
    assert "@import" not in text
    assert "url(" not in text
    assert seen.all("html") == [{"lang": "en"}]
    ids = [attributes["id"] for _, attributes in seen.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in seen.all("a") if a["href"].startswith("#")} <= set(ids)
    assert seen.all("a")[0] == {"class": "skip", "href": "#content"}
    assert [tag for tag, _ in seen.tags if tag in ("header", "main", "footer")] == ["header", "main", "footer"]
    levels = [int(tag[1]) for tag, _ in seen.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False)), levels
    assert all(image["alt"].strip() and image["width"] and image["height"] for image in seen.all("img"))
    assert all(drawn["role"] == "img" and drawn["aria-label"] for drawn in seen.all("svg"))
    assert all(head["scope"] in ("row", "col") for head in seen.all("th"))
    regions = [place for place in seen.all("div") if place.get("class") == "wide"]
    assert len(regions) == len(seen.all("table"))
    assert all(place["tabindex"] == "0" and place["aria-label"] for place in regions)
    return seen


def of_run(run: Path, tmp_path: Path) -> Audit:
    return audited(page.of_run(run).write(tmp_path / "page.html").read_text())


def of_study(runs: Path, tmp_path: Path) -> Audit:
    return audited(page.write_report(tmp_path / "page.html", [STUDY], [runs]).read_text())


# --- one run ---


def test_a_finished_run(runs: Path, tmp_path: Path) -> None:
    overrides = {"optim.lr": 0.01, "warm_start": True}
    path = finish(runs / "protonet" / "a", summary(row()), overrides=overrides).path
    seen = of_run(path, tmp_path)
    for text in (
        "Prototypical Networks: a", "Finished", "etude run protonet laptop", "laptop of protonet", "Seed 0",
        "Steps 300", "of step 300, the last", "61.5 s", "700 MB", "encoder 111,936", "Energy not measured",
        "optim.lr 0.01", "warm_start true", "99.00 ± 0.10 %", "98.90 to 99.10", "Snell et al. 2017", "98.8",
        "one seed", "ours: 1,000 episodes", "torch 2.15", "omniglot ab12", "halve_every: 2000",
        "thin strokes stay", "Curves",
    ):  # fmt: skip
        assert text in seen.said, text
    assert "etude resume" not in seen.said
    assert [drawn["aria-label"].split(":")[0] for drawn in seen.all("svg")] == ["Curve of loss", "Curve of accuracy"]
    # The curves are drawn from metrics.jsonl; the other picture is inside.
    (image,) = seen.all("img")
    assert image["src"].startswith("data:image/")
    assert image["alt"].startswith("protonet, run a: an episode")


def test_without_metrics_the_picture_of_curves_is_shown(runs: Path, tmp_path: Path) -> None:
    path = finish(runs / "protonet" / "a").path
    (path / "metrics.jsonl").unlink()
    seen = of_run(path, tmp_path)
    assert len(seen.all("img")) == 2
    assert seen.all("svg") == []


def test_an_index_has_more_decimals_than_a_per_cent(runs: Path, tmp_path: Path) -> None:
    index = row("x", 0.03123, metric="ari", unit="", half_width=0.0021)
    seen = of_run(finish(runs / "protonet" / "a", summary(index, row("y", 0.5), row("z", 7.0, unit=""))).path, tmp_path)
    for text in ("0.0312 ± 0.0021", "0.50 ± 0.10 %", "7.00 ± 0.10"):
        assert text in seen.said


def test_a_verdict_is_said_in_words(runs: Path, tmp_path: Path) -> None:
    seen = of_run(finish(runs / "protonet" / "a", summary(row(value=90.0))).path, tmp_path)
    assert "◔ one seed, below" in seen.said
    assert "✓ matches" not in seen.said


def test_a_smoke_run_reproduces_nothing(runs: Path, tmp_path: Path) -> None:
    seen = of_run(finish(runs / "protonet" / "a", summary(row(), scale="smoke")).path, tmp_path)
    assert "○ not run" in seen.said
    assert "✓ matches" not in seen.said


def test_a_run_that_is_still_going(runs: Path, tmp_path: Path) -> None:
    path = begin(runs / "protonet" / "a").path
    with (path / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        seen = of_run(path, tmp_path)
    assert "Still going: step 300 of 8,000 so far" in seen.said
    assert f"Should it be stopped, go on with it: etude resume {path}" in seen.said
    assert len(seen.all("svg")) == 2
    assert "Final numbers" not in seen.said


def test_an_interrupted_run(runs: Path, tmp_path: Path) -> None:
    path = begin(runs / "protonet" / "a b").path
    (path / "checkpoints" / "step-00000200").mkdir(parents=True)
    seen = of_run(path, tmp_path)
    assert "Interrupted at step 300 of 8,000" in seen.said
    assert "newest checkpoint of step 200" in seen.said
    assert f"Go on with it: etude resume '{path}'" in seen.said
    assert "61.5 s" in seen.said


def test_a_run_that_has_not_logged(runs: Path, tmp_path: Path) -> None:
    seen = of_run(begin(runs / "protonet" / "a", steps=0).path, tmp_path)
    assert "Interrupted at step 0 of 8,000" in seen.said
    assert "no checkpoint yet" in seen.said


def test_what_is_broken_is_said(runs: Path, tmp_path: Path) -> None:
    path = finish(runs / "protonet" / "a").path
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 400, "train/lo')
    (path / "figures" / "episode.png").write_bytes(b"\x89PNG")
    (path / "environment.json").write_text("{")
    seen = of_run(path, tmp_path)
    assert "the last line of metrics.jsonl is cut short: left out" in seen.said
    assert "episode.png cannot be read as a picture" in seen.said
    assert "environment.json cannot be read as JSON" in seen.said
    assert "99.00 ± 0.10 %" in seen.said


def test_a_run_of_an_unknown_study_is_one_line(runs: Path) -> None:
    path = finish(runs / "gpt" / "a", summary(row(), study="gpt")).path
    (path / "config.yaml").write_text((path / "config.yaml").read_text().replace("study: protonet", "study: gpt"))
    with pytest.raises(UserError, match="no study 'gpt'") as caught:
        page.of_run(path)
    assert str(path) in str(caught.value)


# --- a study, the bench ---


def test_a_study(runs: Path, tmp_path: Path) -> None:
    finish(runs / "protonet" / "a")
    finish(runs / "protonet" / "b", summary(row(value=99.4), seed=1, overrides={"seed": 1}))
    begin(runs / "protonet" / "c")
    (begin(runs / "protonet" / "d").path / "summary.json").write_text("{")
    picture(runs / "protonet" / "fewshot.png")
    seen = of_study(runs, tmp_path)
    assert "99.20" in seen.said, "the mean over both seeds"
    assert "interrupted at step 300 of 8,000" in seen.said
    assert "summary.json cannot be read as JSON" in seen.said
    assert len([one for one in seen.all("details") if one.get("class") == "run"]) == 4
    assert re.search(r"\d+ published numbers that were not run", seen.said)
    assert "protonet: fewshot" in [image["alt"] for image in seen.all("img")]


def test_the_bench(runs: Path, tmp_path: Path) -> None:
    finish(runs / "protonet" / "a")
    finish(runs / "gpt" / "first")
    every = [registry.load(name) for name in registry.NAMES]
    seen = audited(page.write_report(tmp_path / "page.html", every, [runs]).read_text())
    assert [place.get("aria-label") for place in seen.all("nav")] == ["Studies"]
    assert {one["id"] for one in seen.all("section")} == set(registry.NAMES)
    assert "gpt/first is of the study 'gpt'" in seen.said
    assert "None yet: etude run slots" in seen.said
    assert seen.said.count("Deviations from the source") == len(registry.NAMES)


def test_nothing_at_all(tmp_path: Path) -> None:
    assert "None yet" in of_study(tmp_path / "nowhere", tmp_path).said


def test_the_committed_results_of_a_study(monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path) -> None:
    """Chosen pictures with the study, the others with their runs, none twice, all of them small."""
    for module in (page, results):
        monkeypatch.setattr(module, "committed", lambda: root / "results")
    seen = audited(page.write_report(tmp_path / "page.html", [STUDY], []).read_text())
    uris = [image["src"] for image in seen.all("img")]
    assert len(uris) == 8
    assert "Shown above, with the study: alphabets, episode." in seen.said
    assert all(int(image["width"]) <= 900 for image in seen.all("img"))
    assert (tmp_path / "page.html").stat().st_size < 1_000_000
    assert str(root) not in seen.said


# --- hostile files ---


def hostile(runs: Path) -> Path:
    """A run whose every text is a script, or would end its cell."""
    text = f"{HOSTILE} | ](https://example.org/x.png) ![x](https://example.org/x.png) ``` \" '"
    body = summary(
        row("w5s1", protocol=text), row(f"{text}", metric=text, split=text, experiment=text, unit=text),
        command=f"etude run {text}", parameters={text: 3}, validation={"metric": text, "best": 1.0},
    )  # fmt: skip
    path = finish(runs / "protonet" / "<script>alert(1)<", body, overrides={text: text}).path
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 400, f"train/x{text.replace('/', '')}": 1.0, f"{text.replace('/', '')}/y": 2}))
    (path / "environment.json").write_text(json.dumps({text: text, "versions": {text: text}, "data": {text: text}}))
    picture(path / "figures" / "<img onerror=x>.png")
    (path / "figures" / "<b>.png").write_bytes(b"")
    return path


def test_scripts_in_a_run_are_text(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hostile(runs)
    (tmp_path / "README.md").write_text(f"## Deviations\n\n{HOSTILE}\n<img src=x onerror=alert(1)>\n")
    read = page.Readme
    monkeypatch.setattr(page, "Readme", lambda _: read(tmp_path / "README.md"))
    for seen in (of_run(path, tmp_path), of_study(runs, tmp_path)):
        assert seen.said.count(HOSTILE) > 10
        assert "<img src=x onerror=alert(1)>" in seen.said


def test_scripts_in_a_run_are_text_in_markdown(runs: Path, tmp_path: Path) -> None:
    text = page.of_run(hostile(runs)).write(tmp_path / "page.md", "markdown").read_text()
    outside = re.sub(r"(`{4,})sh\n.*?\n\1", "", text, flags=re.DOTALL)
    outside = re.sub(r"(`+) .*? \1(?!`)", "", outside)
    assert "<script" not in outside
    assert "![x](" not in outside
    assert not re.search(r"(?<!\\)\]\(https://example", outside)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) >= 4
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


# --- Markdown ---


def test_markdown_says_the_same(runs: Path, tmp_path: Path) -> None:
    path = finish(runs / "protonet" / "a b=c", summary(row()), overrides={"optim.lr": 0.01}).path
    out = tmp_path / "deep" / "page.md"
    text = page.of_run(path).write(out, "markdown").read_text()
    for part in (
        "# Prototypical Networks: a b=c", "Finished.", "```sh\netude run protonet laptop\n```", "- Energy: not",
        "- `optim.lr`: `0.01`", "| 99.00 ± 0.10 % |", "| train/loss | 2 | 0.6667 | 0.6667 | 2 |", "one seed",
        "## Deviations from the source", "- Training time: 61.5 s", "torch 2.15",
    ):  # fmt: skip
        assert part in text, part
    (target,) = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)
    assert " " not in target
    assert (out.parent / target.replace("%20", " ").replace("%3D", "=")).is_file()


def test_markdown_of_a_study(runs: Path, tmp_path: Path) -> None:
    finish(runs / "protonet" / "a")
    begin(runs / "protonet" / "b")
    text = page.write_report(tmp_path / "page.md", [STUDY], [runs], "markdown").read_text()
    assert "#### `b`: interrupted at step 300 of 8,000" in text
    assert "<!--" not in text
    assert "\n\n\n\n" not in text


# --- looks ---


def luminance(colour: str) -> float:
    digits = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out(runs: Path, tmp_path: Path) -> None:
    """4.5 to 1 for text in light and dark, 3 to 1 for curves: WCAG 2.2, 1.4.3 and 1.4.11."""
    page.write_report(tmp_path / "page.html", [STUDY], [runs])
    schemes = re.findall(r":root \{(.*?)\}", (tmp_path / "page.html").read_text(), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): #(\w+);", scheme))
        assert len(colours) == 14
        for name, colour in colours.items():
            for ground in ("page", "sheet"):
                light, dark = sorted((luminance(colour), luminance(colours[ground])), reverse=True)
                least = 4.5 if name in ("ink", "quiet", "link", "good", "bad") else 3.0 if name[0] == "c" else 1.0
                assert (light + 0.05) / (dark + 0.05) >= least, (name, colour, ground)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.0 s"), (95.04, "95.0 s"), (2346.3, "39 min"), (3900.0, "65 min"), (8100.0, "2 h 15 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert page.duration(seconds) == text
