"""The reader of ``baseline.json``: which number stands beside a cell, and what a broken file says."""

import dataclasses
import json
from pathlib import Path

import pytest

from etude.metrics.baseline import Baseline
from etude.report import baselines
from etude.report.baselines import best_baseline, broken_baselines


def write(place: Path, *rows: Baseline) -> Path:
    (place / "resnet").mkdir(parents=True, exist_ok=True)
    body = {"study": "resnet", "rows": [dataclasses.asdict(row) for row in rows]}
    (place / "resnet" / "baseline.json").write_text(json.dumps(body))
    return place


def row(name: str, value: float, **changes: object) -> Baseline:
    blank = Baseline(name, "accuracy", "test", float(value), "p", variant="birds")
    return dataclasses.replace(blank, **changes)  # pyright: ignore[reportArgumentType]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(baselines, "committed", lambda: tmp_path / "results")
    return tmp_path


def name_of(*places: Path, cell: str = "bn", variant: str = "birds", metric: str = "accuracy", **rest: str) -> str:
    found = best_baseline("resnet", metric, "test", cell, variant, places, **rest)
    return found.name if found else ""


def test_the_best_counts_in_its_direction_and_a_bound_never(here: Path) -> None:
    rows = [row("a", 30), row("b", 40), row("all", 100, bound=True)]
    fid = [row("c", 5, metric="fid", better="lower"), row("d", 9, metric="fid", better="lower")]
    write(here / "results", *rows, *fid)
    assert name_of() == "b"
    assert name_of(metric="fid") == "c"
    assert name_of(metric="loss") == ""


def test_a_number_stands_beside_its_cells_its_data_and_its_table_only(here: Path) -> None:
    write(here / "results", row("gn's", 90, cells=("gn",)), row("others'", 30), row("deep", 50, experiment="depth"))
    assert name_of(cell="gn") == "gn's"
    assert name_of(cell="bn", experiment="norms") == "others'"
    assert name_of(cell="bn", experiment="depth") == "deep"
    assert name_of(variant="cifar") == ""
    assert name_of(cell="gn", variant="") == "gn's"


def test_committed_numbers_come_before_local_ones(here: Path) -> None:
    local = write(here / "runs", row("mine", 99), row("new", 10, variant="mine"))
    write(here / "results", row("theirs", 30))
    assert name_of(local) == "theirs"
    assert name_of(local, variant="mine") == "new"


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": 3}', '{"rows": [{"name": "x"}]}'])
def test_a_broken_file_is_left_out_and_said_in_one_line(here: Path, text: str) -> None:
    local = write(here / "runs", row("mine", 99))
    (local / "resnet" / "baseline.json").write_text(text)
    assert name_of(local) == ""
    (line,) = broken_baselines("resnet", [local])
    assert str(local / "resnet" / "baseline.json") in line
    assert "\n" not in line
