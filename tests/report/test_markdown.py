"""The tables of the README files: one line a cell, mean and deviation over seeds."""

import statistics
from pathlib import Path
from typing import Any

import pytest

from etude import registry
from etude.report import markdown

STUDY = registry.load("resnet")
Summaries = dict[str, dict[str, Any]]


def row(cell: str, metric: str, value: float, split: str = "test", variant: str = "birds", table: str = "norms") -> Any:
    return {
        "experiment": table, "cell": cell, "metric": metric, "split": split, "value": value, "variant": variant,
        "protocol": "", "half_width": None, "unit": "%",
    }  # fmt: skip


def run(seed: int, *rows: Any) -> dict[str, Any]:
    return {"seed": seed, "preset": "laptop", "scale": "laptop", "overrides": {}, "results": list(rows)}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Summaries:
    """The committed runs, to be filled in."""
    runs: Summaries = {}
    monkeypatch.setattr(markdown, "summaries", lambda study, folders: runs)
    return runs


def lines(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_a_run_is_a_line(found: Summaries) -> None:
    found["a"] = run(
        0, row("bn", "loss", 1.234, "train"), row("bn", "accuracy", 61.5, "test"), row("bn", "macro_f1", 60.0, "test")
    )
    assert markdown.pivot(STUDY, "norms") == (
        "| cell | data | preset | seeds | train loss | test accuracy | test macro f1 |\n"
        "|---|---|---|---|---|---|---|\n"
        "| bn | birds | laptop | 0 | 1.23 | 61.50 | 60.00 |\n"
    )


def test_seeds_are_a_mean_with_its_deviation(found: Summaries) -> None:
    values = {2: 61.0, 0: 64.5, 1: 60.25}
    for seed, value in values.items():
        found[f"bn-{seed}"] = run(seed, row("bn", "accuracy", value))
    found["gn-0"] = run(0, row("gn", "accuracy", 50.0))
    mean, deviation = statistics.fmean(values.values()), statistics.stdev(values.values())
    assert lines(markdown.pivot(STUDY, "norms"))[2:] == [
        ["bn", "birds", "laptop", "0, 1, 2", f"{mean:.2f} (s {deviation:.2f})"],
        ["gn", "birds", "laptop", "0", "50.00"],
    ]


def test_two_seeds_by_hand(found: Summaries) -> None:
    found["a"], found["b"] = (run(seed, row("bn", "accuracy", value)) for seed, value in ((0, 60.0), (1, 64.0)))
    # The deviation of a sample: 4 / sqrt(2).
    assert lines(markdown.pivot(STUDY, "norms"))[2] == ["bn", "birds", "laptop", "0, 1", "62.00 (s 2.83)"]


def test_data_sets_are_not_mixed(found: Summaries) -> None:
    found["a"] = run(0, row("bn", "accuracy", 60.0))
    found["b"] = run(0, row("bn", "accuracy", 90.0, variant="CIFAR-10 as JPEG"))
    found["c"] = run(1, row("bn", "accuracy", 92.0, variant="CIFAR-10 as JPEG"))
    assert lines(markdown.pivot(STUDY, "norms"))[2:] == [
        ["bn", "birds", "laptop", "0", "60.00"],
        ["bn", "CIFAR-10 as JPEG", "laptop", "0, 1", "91.00 (s 1.41)"],
    ]
    assert lines(markdown.pivot(STUDY, "norms", "birds"))[2:] == [["bn", "birds", "laptop", "0", "60.00"]]
    assert lines(markdown.pivot(STUDY, "norms", "CIFAR-10 as JPEG"))[2:] == [
        ["bn", "CIFAR-10 as JPEG", "laptop", "0, 1", "91.00 (s 1.41)"]
    ]


def test_what_is_not_of_the_table_is_left_out(found: Summaries) -> None:
    found["a"] = run(0, row("bn", "accuracy", 60.0), row("bn", "error", 40.0))
    found["b"] = run(0, row("l20", "accuracy", 90.0, table="depth"))
    found["c"] = run(0)
    assert lines(markdown.pivot(STUDY, "norms"))[2:] == [["bn", "birds", "laptop", "0", "60.00"]]
    assert lines(markdown.pivot(STUDY, "depth"))[2:] == [["l20", "birds", "laptop", "0", "90.00"]]


def test_a_metric_that_a_run_lacks_is_blank(found: Summaries) -> None:
    found["a"] = run(0, row("bn", "accuracy", 60.0, "val"))
    found["b"] = run(0, row("gn", "accuracy", 50.0, "test"), row("gn", "accuracy", 55.0, "val"))
    assert lines(markdown.pivot(STUDY, "norms")) == [
        ["cell", "data", "preset", "seeds", "val accuracy", "test accuracy"],
        ["---"] * 6,
        ["bn", "birds", "laptop", "0", "60.00", ""],
        ["gn", "birds", "laptop", "0", "55.00", "50.00"],
    ]


def test_a_table_of_nothing(found: Summaries) -> None:
    assert lines(markdown.pivot(STUDY, "norms")) == [["cell", "data", "preset", "seeds"], ["---"] * 4]


def test_tables_are_written_into_their_places(found: Summaries, tmp_path: Path) -> None:
    found["a"] = run(0, row("bn", "accuracy", 60.0), row("bn", "accuracy", 90.0, variant="CIFAR-10 as JPEG (lossy)"))
    text = (
        "before\n<!-- table resnet norms -->\nold\n<!-- end -->\nbetween\n"
        "<!-- table resnet norms CIFAR-10 as JPEG (lossy) -->\n<!-- end -->\nafter\n"
    )
    new = markdown.rewritten(text)
    assert markdown.rewritten(new) == new
    whole, part = markdown.pivot(STUDY, "norms"), markdown.pivot(STUDY, "norms", "CIFAR-10 as JPEG (lossy)")
    assert whole.count("\n| bn") == 2
    assert part.count("\n| bn") == 1
    assert new == (
        f"before\n<!-- table resnet norms -->\n\n{whole}\n<!-- end -->\nbetween\n"
        f"<!-- table resnet norms CIFAR-10 as JPEG (lossy) -->\n\n{part}\n<!-- end -->\nafter\n"
    )
    path = tmp_path / "README.md"
    path.write_text(text)
    assert markdown.main(["--check", str(path)]) == 1
    assert path.read_text() == text
    assert markdown.main([str(path)]) == 0
    assert path.read_text() == new
    assert markdown.main(["--check", str(path)]) == 0
