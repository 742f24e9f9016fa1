"""The tab of the runs: what it reads of folders in any state, and a run that goes on while somebody looks."""

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from etude.core.run_folder import RunFolder
from etude.serve import runs as tab

ROWS = [{"step": 10 * n, "seconds": float(n), "train/loss": 1 / n, "gates/a/0": 0.5} for n in range(1, 5)]
ROWS[-1] |= {"val/loss": 0.5, "val/accuracy": float("nan")}


def old(path: Path) -> None:
    """As if nothing had been written for an hour."""
    for file in (path, *path.rglob("*")):
        os.utime(file, (time.time() - 3600,) * 2)


def test_states(tmp_path: Path, make_run: Any):
    going = make_run(tmp_path, "resnet", "going", rows=ROWS)
    make_run(tmp_path, "resnet", "begun")
    for name in ("ended", "killed", "held"):
        old(make_run(tmp_path, "resnet", name, rows=ROWS, ended=name == "ended"))
    held = RunFolder(tmp_path / "resnet" / "held")
    held.lock()
    found = {run.name: run for run in tab.find(tmp_path)}
    states = {name.removeprefix("resnet/"): run.state for name, run in found.items()}
    expected = {"going": "going", "begun": "just begun", "ended": "ended", "killed": "interrupted", "held": "going"}
    assert states == expected
    held.unlock()
    assert tab.find(tmp_path)[0].state == "going"
    run = found["resnet/going"]
    assert (run.step, run.preset, run.seconds) == (40, "smoke", 4.0)
    assert tab.overview([run])[0][:3] == ["resnet/going", "smoke", "going"]
    assert tab.metric_names([run]) == ["val/loss", "train/loss"]
    assert tab.last_numbers(run) == [["val/loss", "0.5", "40"], ["train/loss", "0.25", "40"]]
    # A line that is being written.
    with (going / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "train/lo')
    assert tab.find(tmp_path)[0].step == 40


def test_strange_folders_are_no_fault(tmp_path: Path, make_run: Any):
    strange = tmp_path / "no-such-study" / "<b>x"
    strange.mkdir(parents=True)
    rows = ["7", "null", "[]", '{"step": "x"}', '{"step": 3, "loss": "high"}', "{" * 5000]
    rows += ['{"step": 4, "loss": 1e999}', ""]
    (strange / "metrics.jsonl").write_bytes("\n".join(rows).encode() + b"\xff\xfe\n")
    broken = make_run(tmp_path, "resnet", "broken", rows=ROWS)
    (broken / "config.yaml").write_text("[: broken")
    (broken / "summary.json").write_text("{")
    (tmp_path / "resnet" / "file").write_text("x")
    link = tmp_path / "resnet" / "out"
    link.symlink_to(make_run(tmp_path.parent / "elsewhere", "resnet", "x", rows=ROWS))
    found = {run.name: run for run in tab.find(tmp_path)}
    assert set(found) == {"no-such-study/<b>x", "resnet/broken"}
    assert found["no-such-study/<b>x"].step == 4
    assert found["resnet/broken"].state == "ended"
    for run in found.values():
        assert tab.results_of(run) == []
        assert "<b>" not in tab.numbers_of(run) + tab.panels(run) + tab.beside([run], "train/loss")
    assert tab.find(tmp_path / "absent") == []


def test_curves_of_one_run_and_of_several(tmp_path: Path, make_run: Any):
    make_run(tmp_path, "resnet", "a", rows=ROWS)
    make_run(tmp_path, "resnet", "b", rows=[{"step": 1, "seconds": 1.0, "train/loss": 2.0}])
    runs = sorted(tab.find(tmp_path), key=lambda run: run.name)
    assert tab.panels(runs[0]).count("<svg") == 1
    html = tab.beside(runs, "train/loss")
    assert html.count("<svg") == 1
    assert "resnet/a" in html
    assert "resnet/b (has none)" in tab.beside(runs, "val/loss")
    assert tab.beside(runs, None) == ""


def test_pictures(tmp_path: Path, make_run: Any):
    path = make_run(tmp_path, "resnet", "a", rows=ROWS)
    [run] = tab.find(tmp_path)
    assert tab.pictures_of(run, tmp_path) == ""
    (path / "figures").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path / "figures" / "curves.png")
    (path / "figures" / "broken.png").write_text("x")
    (path / "figures" / "link.png").symlink_to("/etc/passwd")
    html = tab.pictures_of(run, tmp_path)
    assert html.count("<img") == 1
    assert "alt='curves of resnet/a'" in html


@pytest.mark.parametrize("width", [1280])
def test_a_run_that_goes_on(visit: Any, expect: Any, runs: Path, make_run: Any, width: int):
    path = make_run(runs, "resnet", "live", rows=ROWS)
    (path / "figures").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path / "figures" / "curves.png")
    page = visit("runs", width=width)
    row = page.get_by_role("row", name="resnet/live")
    expect(row).to_contain_text("going")
    page.get_by_role("combobox", name="Run", exact=True).click()
    page.get_by_role("option", name="resnet/live").click()
    expect(page.get_by_role("img", name="Curve of loss")).to_be_visible()
    expect(page.get_by_role("img", name="curves of resnet/live")).to_be_visible()
    # The next look sees what has been written since.
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 77, "seconds": 9.0, "train/loss": 0.125}) + "\n")
    expect(row).to_contain_text("77", timeout=30_000)
    expect(page.get_by_role("row", name="train/loss")).to_contain_text("0.125")
