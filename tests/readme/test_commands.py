"""The commands of the README files run; those that take long are read only."""

import re
import shlex
from pathlib import Path

import pytest

from etude import registry
from etude.cli import VERBS, main
from etude.report import markdown

ROOT = Path(__file__).parents[2]
READMES = [ROOT / "README.md", *sorted((ROOT / "src" / "etude" / "studies").glob("*/README.md"))]
# Too long for a test, without an end, or in need of a network: their words are checked.
LONG = ("demo", "serve", "study", "data get", "run protonet laptop", "check protonet laptop")
LONG += ("run dcgan course", "run dcgan conditional")
LONG += ("run pix2pix laptop", "run pix2pix paper", "predict pix2pix")
LONG += ("predict protonet --support characters/", "predict protonet --prototypes")
LONG += ("run text2math laptop", "run text2math ours", "run text2math retrieval", "run text2math best")
LONG += ("run slots laptop", "predict slots photo.png", "predict slots a.png", "predict runs/slots/laptop")
LONG += ("run slotdiffusion laptop", "run slotdiffusion vae-laptop", "predict runs/slotdiffusion/laptop")
LONG += ("predict slotdiffusion photo.png", "predict slotdiffusion a.png", "predict slotdiffusion --compose")
LONG += ("run darts laptop", "run darts retrain-laptop", "predict runs/darts/retrain-laptop")
LONG += ("run resnet laptop", "run resnet birds", "predict resnet photograph.jpg", "predict resnet runs/")


def commands(path: Path) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_commands(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").symlink_to(ROOT / "src")
    for study in registry.NAMES:
        (tmp_path / "runs" / study).mkdir(parents=True)
    found = [line.removeprefix("uv run etude ") for line in commands(path) if line.startswith("uv run etude ")]
    assert found
    # The run comes before what uses it, whatever the order on the page.
    for line in sorted(found, key=lambda line: not line.startswith("run ")):
        words = shlex.split(line)
        assert words[0] in VERBS
        if line.startswith(LONG):
            if words[0] == "study":
                registry.load(words[1]).experiment(words[2])
            continue
        assert main(words) == 0, line


def test_ci_runs_the_readmes_test_command() -> None:
    assert "uv run pytest" in commands(ROOT / "README.md")
    assert "uv run pytest" in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("path", [*READMES, ROOT / "docs" / "results.md"], ids=lambda path: path.parent.name)
def test_results_tables_are_those_of_the_committed_runs(path: Path) -> None:
    text = path.read_text()
    assert ("<!-- board" if path.parent == ROOT else "<!-- results") in text
    assert markdown.rewritten(text) == text


def test_the_front_door_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert len(text.encode()) <= 9000


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []
