"""Claims of the sources: the contrasts that decide them, the file, the verb."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from etude import registry
from etude.cli import main
from etude.core.errors import UserError
from etude.report.claims import Cell, Claim, judge_claim, read_claims
from etude.report.results import summaries


def run(cell: str, value: float, seed: int, *, scale: str = "laptop", overrides: Any = None) -> Any:
    result = {
        "experiment": "norms", "cell": cell, "metric": "accuracy", "split": "test", "value": value, "variant": "birds",
    }  # fmt: skip
    about = {"preset": "laptop", "scale": scale, "seed": seed, "overrides": {"model.norm": cell} | (overrides or {})}
    return about | {"results": [result]}


def runs(*of: Any) -> dict[str, dict[str, Any]]:
    return {"resnet": {f"run{number}": one for number, one in enumerate(of)}}


def claim(*contrasts: dict[str, float], low: float = 0.0, **more: Any) -> Claim:
    sums = [{name: float(factor) for name, factor in contrast.items()} for contrast in contrasts]
    return Claim("A claim.", "A source.", "norms", "accuracy", "test", sums, low, **more)


BETTER = [run("bn", 90.0 + seed, seed) for seed in range(3)] + [run("in", 80.0 + 1.5 * seed, seed) for seed in range(3)]


def test_a_difference_is_paired_over_seeds():
    """10, 9.5, 9: mean 9.5, deviation .5, t = 4.303; unpaired it would be wider."""
    found = judge_claim("resnet", claim({"bn": 1, "in": -1}), runs(*BETTER))
    width = 4.3027 * 0.5 / math.sqrt(3)
    assert found.verdict == "upheld"
    assert f"9.5 ({9.5 - width:.4g} to {9.5 + width:.4g}, 3 seeds paired)" in found.evidence
    assert judge_claim("resnet", claim({"in": 1, "bn": -1}), runs(*BETTER)).verdict == "contradicted"
    assert judge_claim("resnet", claim({"bn": 1, "in": -1}, low=9.0), runs(*BETTER)).verdict == "not upheld"


def test_other_seeds_are_compared_unpaired():
    """Welch's interval, against SciPy's."""
    other = [run("in", value, 10 + seed) for seed, value in enumerate((80.0, 81.5, 83.0, 82.0))]
    found = judge_claim("resnet", claim({"bn": 1, "in": -1}), runs(*BETTER[:3], *other))
    bounds: Any = stats.ttest_ind([90, 91, 92], [80, 81.5, 83, 82], equal_var=False).confidence_interval(0.95)
    assert f"({bounds.low:.4g} to {bounds.high:.4g}, seeds not paired)" in found.evidence


def test_fewer_than_three_seeds_decide_nothing():
    found = judge_claim("resnet", claim({"bn": 1, "in": -1}), runs(*BETTER[:2], *BETTER[3:]))
    assert (found.verdict, "2 of 3 seeds" in found.evidence) == ("not tested", True)
    found = judge_claim("resnet", claim({"bn": 1, "gn": -1}), runs(*BETTER))
    assert (found.verdict, "not run in gn" in found.evidence) == ("not tested", True)


def test_a_smoke_run_and_a_run_with_other_settings_are_no_evidence():
    smoke = [run("in", 80.0, seed, scale="smoke") for seed in range(3)]
    assert judge_claim("resnet", claim({"bn": 1, "in": -1}), runs(*BETTER[:3], *smoke)).verdict == "not tested"
    mixed = [run("in", 80.0, seed, overrides={"optim.lr": seed}) for seed in range(3)]
    assert judge_claim("resnet", claim({"bn": 1, "in": -1}), runs(*BETTER[:3], *mixed)).verdict == "not tested"
    found = claim({"bn": 1, "in": -1}, found=["optim.lr"])
    assert judge_claim("resnet", found, runs(*BETTER[:3], *mixed)).verdict == "upheld"


def test_runs_are_told_apart_by_a_setting():
    """Two distances fill one cell, each with a setting of its own or with the preset's."""
    plain = [run("bn", 90.0, seed) for seed in range(3)]
    other = [run("bn", 80.0, seed, overrides={"model.distance": "cosine"}) for seed in range(3)]
    cells = {
        "euclidean": Cell(cell="bn", settings={"model.distance": ""}),
        "cosine": Cell(cell="bn", settings={"model.distance": "cosine"}),
    }
    found = judge_claim("resnet", claim({"euclidean": 1, "cosine": -1}, cells=cells), runs(*plain, *other))
    assert (found.verdict, "10 (10 to 10" in found.evidence) == ("upheld", True)


def test_a_claim_of_several_differences_falls_by_one():
    three = [run("gn", 95.0 + seed, seed) for seed in range(3)]
    best = claim({"bn": 1, "in": -1}, {"bn": 1, "gn": -1})
    assert judge_claim("resnet", best, runs(*BETTER, *three)).verdict == "contradicted"
    assert judge_claim("resnet", best, runs(*BETTER)).verdict == "not tested"
    untested = claim({"bn": 1, "ln": -1}, {"bn": 1, "gn": -1})
    assert judge_claim("resnet", untested, runs(*BETTER, *three)).verdict == "contradicted"


def test_an_interaction_and_a_cell_of_another_name():
    third = claim({"bn": 1, "in": -1, "other": -0.5}, cells={"other": Cell(cell="bn", metric="accuracy")})
    assert "bn - in - 0.5 other: -36 " in judge_claim("resnet", third, runs(*BETTER)).evidence
    away = claim({"bn": 1, "far": -1}, cells={"far": Cell(study="slots", cell="bn")})
    found = judge_claim("resnet", away, runs(*BETTER) | {"slots": runs(*BETTER)["resnet"]})
    assert (found.verdict, "0 (0 to 0" in found.evidence) == ("upheld", True)


GOOD = """
[[claim]]
claim = "A is better than b."
source = "A 2020"
experiment = "norms"
metric = "accuracy"
split = "test"
contrasts = [{ a = 1, "b, c" = -1 }]
low = 0
"""


def test_a_table_of_claims(tmp_path: Path):
    path = tmp_path / "claims.toml"
    assert read_claims(path) == []
    path.write_text(GOOD + 'cells.a = { metric = "error" }\n')
    (row,) = read_claims(path)
    assert row.contrasts == [{"a": 1, "b, c": -1}]
    assert row.cells == {"a": Cell(metric="error")}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[[claim]\n",
        "claim = 3\n",
        GOOD + "hihg = 3\n",
        GOOD.replace("low = 0\n", ""),
        GOOD.replace("= -1 }", "= 'x' }"),
        GOOD.replace('{ a = 1, "b, c" = -1 }', ""),
        GOOD.replace('{ a = 1, "b, c" = -1 }', "{}"),
    ],
)
def test_a_malformed_table_is_one_line(tmp_path: Path, text: str):
    path = tmp_path / "claims.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"claims\.toml is not a table of claims") as caught:
        read_claims(path)
    assert "\n" not in str(caught.value)


def test_every_claim_is_about_cells_that_are_measured(root: Path):
    """A cell that no run is called by could never be tested."""
    found = 0
    for study in map(registry.load, registry.NAMES):
        claims = read_claims(study.folder / "claims.toml")
        assert claims, f"{study.name} has no claims"
        found += len(claims)
        for row in claims:
            for name in {name for contrast in row.contrasts for name in contrast}:
                about = row.cells.get(name, Cell())
                other = registry.load(about.study) if about.study else study
                rows = [result for one in summaries(other, []).values() for result in one["results"]]
                assert (about.cell or name) in {result["cell"] for result in rows}, (row.claim, name)
    assert found >= 25


def test_the_verb(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert main(["compare", "resnet", "--claims", "--json", "--runs", str(tmp_path)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"study", "claim", "source", "verdict", "evidence"} == set(rows[0])
    assert {row["verdict"] for row in rows} <= {"upheld", "not upheld", "contradicted", "not tested"}
    assert main(["compare", "resnet", "--claims", "--runs", str(tmp_path)]) == 0
    assert "contradicted" in capsys.readouterr().out
    assert main(["compare", "resnet", "--claims", "--format", "markdown", "--runs", str(tmp_path)]) == 0
    assert "| claim | source | verdict | evidence |" in capsys.readouterr().out


def test_a_comparison_stands_beside_what_needs_no_network(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """MathQA's nearest training problem, as committed: better than every network of the table."""
    assert main(["compare", "text2math", "--json", "--runs", str(tmp_path)]) == 0
    rows = json.loads(capsys.readouterr().out)
    (row,) = (
        row for row in rows
        if (row["experiment"], row["cell"], row["metric"], row["split"], row["source"])
        == ("architectures", "lstm_attn", "execution", "test", "course report")
    )  # fmt: skip
    assert row["baseline"] == pytest.approx(83.53, abs=0.01)
    assert "nearest training problem" in row["baseline_name"]
    assert (row["margin"], row["proxy"]) == (1.5, "")
    assert {"study", "published", "ours", "interval", "seeds", "scale", "verdict", "protocol", "runs"} <= set(row)
    assert not any(row["verdict"] in ("matches", "exceeds") for row in rows if len(row["seeds"]) < 3)
