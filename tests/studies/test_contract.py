"""What a study must have, in one list: `uv run pytest tests/studies/test_contract.py -k NAME` prints what it lacks."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from etude import registry
from etude.core.study import Study
from etude.report.reference import read_headline, read_reference

FILES = (
    "study.py",
    "model.py",
    "task.py",
    "figures.py",
    "predict.py",
    "export.py",
    "baseline.py",
    "page.py",
    "reference.toml",
    "claims.toml",
    "README.md",
)
SECTIONS = ("Run it", "The metrics", "Predict", "Results", "Deviations")
PARTS = {
    "task": ("make_task",), "figures": ("draw",), "predict": ("Options", "predict"), "page": ("TITLE", "tab"),
    "export": ("HUB_TASK", "networks"),
}  # fmt: skip


def lacks(study: Study, root: Path) -> Iterator[str]:
    """What a study lacks, one line each."""
    name, folder = study.name, study.folder
    yield from (f"src/etude/studies/{name}/{file}" for file in FILES if not (folder / file).is_file())
    for part, names in PARTS.items():
        if study.has(part):
            module = study.module(part)
            yield from (f"{part}.py: {wanted}" for wanted in names if not hasattr(module, wanted))
    if study.has("export") and not any(hasattr(study.module("export"), way) for way in ("graphs", "NO_GRAPHS")):
        yield "export.py: graphs, or NO_GRAPHS that says why not"
    for wanted in (("smoke",), ("laptop",), ("paper", "course")):
        if not any(preset in study.presets for preset in wanted):
            yield f"study.py: a preset {' or '.join(wanted)}"
    for preset_name, preset in study.presets.items():
        about = inspect.getdoc(preset.build) or ""
        told = ("Command:", "Cost:") if preset.scale == "full" else ("Command:",)
        yield from (f"study.py: preset {preset_name} says no {part}" for part in told if part not in about)
        if not (root / "tests" / "golden" / f"{name}-{preset_name}.yaml").is_file():
            yield f"tests/golden/{name}-{preset_name}.yaml: `just golden`"
    if not study.experiments:
        yield "study.py: an experiment"
    if not (root / "tests" / "golden" / f"{name}-smoke-losses.json").is_file():
        yield f"tests/golden/{name}-smoke-losses.json: `just golden`"
    if not study.shows(Path("curves.png")):
        yield "study.py: pictures, with what each of figures.py shows"
    if (folder / "reference.toml").is_file():
        if not read_reference(folder / "reference.toml").number:
            yield "reference.toml: a published number"
        if not read_headline(folder / "reference.toml").baseline:
            yield "reference.toml: the baseline of its headline"
    if (folder / "README.md").is_file():
        text = (folder / "README.md").read_text()
        yield from (f"README.md: a section '{wanted}'" for wanted in SECTIONS
                    if not re.search(rf"^## {wanted}", text, re.MULTILINE))  # fmt: skip
    places = {
        f"tests/studies/{name}/": any((root / "tests" / "studies" / name).glob("test_*.py")),
        f"results/{name}/: a run of real data": any((root / "results" / name).glob("*/summary.json")),
        f"docs/studies/{name}.md": (root / "docs" / "studies" / f"{name}.md").is_file(),
        f"mkdocs.yml: studies/{name}.md": f"studies/{name}.md" in (root / "mkdocs.yml").read_text(),
        f"notebooks/{name}.ipynb": (root / "notebooks" / f"{name}.ipynb").is_file(),
        f"README.md: a line of {name}": f"studies/{name}/README.md" in (root / "README.md").read_text(),
    }
    yield from (place for place, there in places.items() if not there)


@pytest.mark.parametrize("name", registry.NAMES)
def test_a_study_lacks_nothing(name: str, root: Path) -> None:
    found = list(lacks(registry.load(name), root))
    assert not found, f"the study '{name}' still lacks:\n" + "\n".join(f"- {line}" for line in found)
