"""The site is built with broken links as errors, asks nothing of a network, and what its pages say to run runs."""

import contextlib
import io
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from etude import registry
from etude.cli import VERBS, main
from etude.runs.flags import take
from etude.runs.training import choose

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
STUDIES = [DOCS / "studies" / f"{name}.md" for name in registry.NAMES]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    marks: frozenset[str]
    title: str
    text: str


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    lines = iter(path.read_text(encoding="utf-8").splitlines())
    for line in lines:
        indent, fence, about = line.partition("```")
        if not fence or indent.strip():
            continue
        body: list[str] = []
        for inner in lines:
            if inner.strip() == "```":
                break
            body.append(inner)
        words = about.strip("{} ").split(" ", 1)
        title = re.search(r'title="([^"]+)"', about)
        marks = frozenset(re.findall(r"\.(\w+)", about)) if about.startswith("{") else frozenset[str]()
        text = textwrap.dedent("\n".join(body)) + "\n"
        found.append(Block(words[0].strip(".{} "), marks, title[1] if title else "", text))
    return found


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that has what a checkout has for a reader of the pages."""
    monkeypatch.chdir(tmp_path)
    for name in ("src", "results"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


# --- the site ---


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site; mkdocs.yml makes an error of every warning, broken links and anchors among them."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    surroundings = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_no_page_asks_a_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        loaded = re.findall(r"<(?:script|img|iframe|source|link)\b[^>]*", page.read_text(encoding="utf-8"))
        assert loaded
        assert not [tag for tag in loaded if re.search(r"\b(src|srcset|href)=[\"']?(https?:)?//", tag)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_formulas_are_mathml(site: Path) -> None:
    for page in STUDIES:
        text = (site / "studies" / f"{page.stem}.html").read_text(encoding="utf-8")
        assert text.count("<math") >= 5
        assert 'class="arithmatex"' not in text
        assert 'mathvariant="script"' not in text, "browsers do not know it"


def test_walks_lead_to_the_lines(site: Path) -> None:
    # The hook fails the build where a name is gone; here: that what it wrote is the line.
    text = (site / "studies" / "protonet.html").read_text(encoding="utf-8")
    line = re.search(r'href="\.\./source/studies/protonet/model\.py\.html#L(\d+)"><code>episode_loss</code>', text)
    assert line
    source = (ROOT / "src/etude/studies/protonet/model.py").read_text(encoding="utf-8").splitlines()
    assert source[int(line[1]) - 1] == "def episode_loss("
    shown = (site / "source" / "studies" / "protonet" / "model.py.html").read_text(encoding="utf-8")
    assert f'id="L{line[1]}"' in shown


def test_every_public_module_has_a_page(site: Path) -> None:
    for module in (ROOT / "src" / "etude").rglob("*.py"):
        place = module.relative_to(ROOT / "src" / "etude")
        if not place.name.startswith("_") and place.parts[:2] not in (("data", "render"), ("data", "samples")):
            assert (site / "api" / place.with_suffix(".html")).is_file(), place


def test_every_verb_has_its_help(site: Path) -> None:
    text = (site / "command-line.html").read_text(encoding="utf-8")
    for verb in VERBS:
        assert f'id="etude-{verb}"' in text
        assert f"usage: etude {verb}" in text


def test_the_search_knows_the_pages(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert "studies/protonet.html#exercises" in index
    assert "api/core/loop.html" in index
    assert "source/core/loop" not in index


def test_each_study_has_its_parts() -> None:
    for page in STUDIES:
        text = page.read_text(encoding="utf-8")
        for heading in ("The idea", "The mathematics", "A walk through the code", "Results", "Deviations", "Exercises"):
            assert f"\n## {heading}\n" in text, (page.name, heading)
        questions = re.findall(r"^\*\*(\d+)\. ", text, re.MULTILINE)
        assert 4 <= len(questions) <= 6
        assert text.count('??? success "Solution"') == len(questions)


# --- what the pages say to run ---


def _commands(block: Block) -> list[list[str]]:
    lines = [line.split("  #")[0].strip() for line in block.text.splitlines()]
    return [shlex.split(line.removeprefix("uv run ")) for line in lines if line]


def _check_words(words: list[str]) -> None:
    """That a command that is too long for a test is one."""
    if "-m" in words and "etude" in words:
        assert words[0] in ("torchrun", "accelerate")
        words = words[words.index("etude") :]
    if words[0] == "python":
        return
    assert words[0] == "etude", words
    verb, *rest = words[1:]
    assert verb in VERBS
    if verb in ("run", "check"):
        for flag in ("--name", "--memory"):
            take(rest, flag, "")
        # Reads the flags.
        choose(rest, f"etude {verb}")
    if verb == "study":
        registry.load(rest[0]).experiment(rest[1])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands(page: Path, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if page.stem == "new-study":
        pytest.skip("it has a test of its own")
    listed = blocks(page)
    for block in listed:
        if block.language == "python" and block.title:
            (place / block.title).write_text(block.text, encoding="utf-8")
    for block, after in itertools.pairwise([*listed, Block("", frozenset(), "", "")]):
        if block.language != "sh":
            continue
        for number, words in enumerate(_commands(block)):
            if "long" in block.marks:
                _check_words(words)
            elif words[0] == "python":
                runpy.run_path(words[1], run_name="__main__")
            elif "fails" in block.marks:
                capfd.readouterr()
                assert main(words[1:]) == 2, words
                line = capfd.readouterr().err
                assert line.startswith("etude: ")
                assert len(line.splitlines()) == 1, line
                if number == 0 and after.language == "text":
                    assert line.startswith(after.text.strip())
            else:
                assert words[0] == "etude"
                assert main(words[1:]) == 0, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_prints_what_stands_below_it(page: Path, place: Path) -> None:
    listed = blocks(page)
    for block, after in itertools.pairwise(listed):
        if block.language != "python" or block.title or after.language != "text":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block.text, f"{page.name}", "exec"), {"__name__": "docs"})
        _same(printed.getvalue(), after.text)


def _same(printed: str, shown: str) -> None:
    """The same words, and numbers within what another machine's sums may change."""
    number = r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?"
    assert re.sub(number, "0", printed).split() == re.sub(number, "0", shown).split(), printed
    for mine, theirs in zip(re.findall(number, printed), re.findall(number, shown), strict=True):
        a, b = (float(text.replace(",", "")) for text in (mine, theirs))
        assert a == pytest.approx(b, rel=0.02, abs=0.011 if "." in theirs else 1.0), printed


def test_the_new_study_runs(tmp_path: Path) -> None:
    # The package as it is, every file a link, with the page's files in it.
    shutil.copytree(
        ROOT / "src", tmp_path / "src", copy_function=os.symlink, ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "pyproject.toml").touch()
    page = DOCS / "new-study.md"
    commands = [words for block in blocks(page) if block.language == "sh" for words in _commands(block)]
    surroundings = os.environ | {"PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"}
    script = "import json, sys; from etude.cli import main; [sys.exit(1) for w in json.loads(sys.argv[1]) if main(w)]"

    def run(commands: list[list[str]]) -> "subprocess.CompletedProcess[str]":
        """In one process, because each would import PyTorch anew."""
        return subprocess.run(
            [sys.executable, "-c", script, json.dumps([words[1:] for words in commands])],
            cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert commands[0] == ["etude", "new", "softmax"]
    laid = run(commands[:1])
    assert laid.returncode == 0, laid.stderr
    shown = {block.title: block.text for block in blocks(page) if block.title}
    assert shown.pop("src/etude/registry.py").strip() in (tmp_path / "src" / "etude" / "registry.py").read_text()
    assert {path.name for path in (tmp_path / "src" / "etude" / "studies" / "softmax").iterdir()} == {
        *(Path(title).name for title in shown), "__init__.py", "README.md",
    }  # fmt: skip
    for title, text in shown.items():
        assert (tmp_path / title).read_text() == text, f"{title}: the page shows what `etude new` writes"
    done = run(commands[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "softmax" / "first" / "model_card.md").is_file()
    claimed = next(block.text for block in blocks(page) if block.language == "text")
    _same(next(line for line in done.stdout.splitlines() + done.stderr.splitlines() if "shapes c4" in line), claimed)
    # The last command compares; numbers of smoke scale are never judged.
    comparison = done.stdout.split("published")[-1]
    assert "chance" in comparison
    assert "not run" in comparison


@pytest.mark.parametrize("form", ["torchrun", "slurm"])
def test_how_a_run_is_started_elsewhere_is_what_etude_prints(form: str, capsys: pytest.CaptureFixture[str]):
    found = blocks(DOCS / "many-machines.md")
    (command,) = [line for block in found for line in block.text.splitlines() if f"--print-launch {form}" in line]
    (shown,) = [block.text for block in found if block.title == form]
    assert main(shlex.split(command)[3:]) == 0
    assert capsys.readouterr().out == shown
