"""Published numbers beside ours: which runs count, the interval, the verdict."""

import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from etude.core.errors import UserError
from etude.core.summary import read_summaries, read_summary
from etude.report.reference import Comparison, Proxy, Published, Reference, compare, read_reference

NUMBER = Published("fewshot", "w5s1", "accuracy", "test", 98.0, "Snell 2017", "600 episodes", "%")


def summary(
    value: float, *, seed: int = 0, scale: str = "full", width: float | None = None, overrides: Any = None, **row: Any
) -> dict[str, Any]:
    preset = {"full": "paper", "laptop": "laptop", "smoke": "smoke"}[scale]
    result = {
        "experiment": "fewshot", "cell": "w5s1", "metric": "accuracy", "split": "test", "value": value,
        "protocol": "1,000 episodes", "half_width": width, "unit": "%", "variant": "train",
    }  # fmt: skip
    seeded = {"seed": seed} if seed else {}
    about = {"preset": preset, "scale": scale, "seed": seed, "overrides": (overrides or {}) | seeded}
    return about | {"results": [result | row]}


def against(number: Published, *summaries: dict[str, Any], proxy: Proxy | None = None) -> Comparison:
    reference = Reference([number], {"accuracy": 0.5}, [proxy] if proxy else [])
    (row,) = compare("protonet", reference, {f"run{i}": s for i, s in enumerate(summaries)})
    return row


@pytest.mark.parametrize(
    ("value", "better", "place"),
    [(98.0, "higher", "within"), (97.6, "higher", "within"), (97.4, "higher", "below"), (98.6, "higher", "above"),
     (98.6, "lower", "below"), (97.4, "lower", "above"), (98.4, "lower", "within")],
)  # fmt: skip
def test_one_run_gives_no_verdict_but_says_where_it_lies(value: float, better: Any, place: str):
    """However narrow its own interval is: 95.9 +- .05 and 95.8 +- .3 say the same of a published 96."""
    for width in (None, 0.01, 5.0):
        row = against(dataclasses.replace(NUMBER, better=better), summary(value, width=width))
        assert (row.verdict, row.place, row.told) == ("one seed", place, f"one seed, {place}")
        assert row.interval == (None if width is None else (value - width, value + width))
        assert (row.published, row.scale, row.seeds, row.runs, row.margin) == (98.0, "full", (0,), ("run0",), 0.5)
        assert (row.protocol, row.published_protocol) == ("1,000 episodes", "600 episodes")


def test_two_seeds_give_no_verdict():
    assert against(NUMBER, summary(98.0), summary(98.0, seed=1)).verdict == "one seed"


def test_three_seeds_give_a_verdict():
    def three(value: float, spread: float) -> Comparison:
        return against(NUMBER, *(summary(value + spread * (seed - 1), seed=seed) for seed in range(3)))

    assert three(98.0, 0.1).verdict == "matches"
    assert three(99.0, 0.1).verdict == "exceeds"
    assert three(97.0, 0.1).verdict == "below"
    assert three(98.0, 0.1).told == "matches"
    assert three(98.0, 1.0).told == "below (too wide an interval)"


def test_other_data_is_a_proxy_whatever_it_reaches():
    """A number of another variant does not stand beside it, unless the reference says what it stands for."""
    number = dataclasses.replace(NUMBER, variant="birds")
    runs = [summary(99.0 + seed, seed=seed, variant="copies") for seed in range(3)]
    assert against(number, *runs).verdict == "not run"
    row = against(number, *runs, proxy=Proxy("copies for birds", "copies"))
    assert (row.verdict, row.place, row.proxy, row.ours) == ("proxy", "above", "copies for birds", 100.0)
    real = [summary(98.0, seed=seed, variant="birds") for seed in range(3)]
    row = against(number, *runs, *real, proxy=Proxy("copies for birds", "copies"))
    assert (row.verdict, row.proxy, row.ours) == ("matches", "", 98.0)


def test_a_proxy_names_the_cells_that_stand_for_others():
    runs = [summary(98.0, seed=seed, cell="small", variant="train") for seed in range(3)]
    row = against(NUMBER, *runs, proxy=Proxy("a small network", "train", cells={"w5s1": "small"}))
    assert (row.verdict, row.ours) == ("proxy", 98.0)
    for elsewhere in (Proxy("small", "train", cells={"w20s1": "small"}), Proxy("small", "train", experiment="other")):
        assert against(NUMBER, *runs, proxy=elsewhere).verdict == "not run"
    # Another encoder on the source's own data: the same cell and variant, and no match.
    own = [summary(98.0, seed=seed, variant="train") for seed in range(3)]
    assert against(NUMBER, *own, proxy=Proxy("MiniLM for BERT", "train", cells={"w5s1": "w5s1"})).verdict == "proxy"
    assert against(NUMBER, *own, proxy=Proxy("MiniLM for BERT", "train", cells={"w20s1": "w20s1"})).verdict == "matches"


def test_no_run_is_no_number():
    row = against(NUMBER)
    assert (row.ours, row.interval, row.scale, row.seeds) == (None, None, None, ())
    assert row.verdict == "not run"
    assert row.published == 98.0


def test_a_claim_in_words():
    assert against(NUMBER).claim == "98"
    lower = dataclasses.replace(NUMBER, value=8.0, uncertainty=4.0, better="lower")
    for row in (against(lower), against(lower, summary(9.0))):
        assert row.claim == "8 +- 4, lower is better"


def test_a_smoke_run_reproduces_nothing():
    row = against(NUMBER, summary(100.0, scale="smoke"))
    assert row.verdict == "not run"
    assert row.scale == "smoke"


@pytest.mark.parametrize("field", ["experiment", "cell", "metric", "split"])
def test_another_measurement_does_not_count(field: str):
    row = against(NUMBER, summary(99.0, **{field: "other"}))
    assert row.ours is None


def test_the_validation_split_never_stands_beside_the_test_split():
    assert against(NUMBER, summary(99.9, split="val"), summary(90.0)).ours == 90.0


def test_the_largest_scale_counts_though_its_score_is_worse():
    runs = [summary(99.9, scale="smoke"), summary(99.5, scale="laptop"), summary(90.0, scale="full")]
    for order in (runs, runs[::-1]):
        row = against(NUMBER, *order)
        assert (row.ours, row.scale, row.verdict) == (90.0, "full", "one seed")
    row = against(NUMBER, *runs[:2])
    assert (row.ours, row.scale) == (99.5, "laptop")


def test_the_preset_itself_counts_before_a_changed_one():
    changed = summary(99.9, overrides={"optim.lr": 0.1})
    for order in ([changed, summary(90.0)], [summary(90.0), changed]):
        assert against(NUMBER, *order).ours == 90.0


def test_the_better_of_two_equals_is_not_chosen():
    """Among runs that nothing else sets apart the name decides, whatever they scored."""
    one, other = summary(90.0, overrides={"optim.lr": 0.1}), summary(99.0, overrides={"optim.lr": 0.2})
    assert against(NUMBER, one, other).ours == 90.0
    assert against(NUMBER, other, one).ours == 99.0


def test_more_seeds_count_before_fewer():
    lone = summary(99.0, overrides={"optim.lr": 0.1})
    pair = [summary(90.0, seed=1, overrides={"optim.lr": 0.2}), summary(92.0, seed=2, overrides={"optim.lr": 0.2})]
    row = against(NUMBER, lone, *pair)
    assert (row.ours, row.seeds) == (91.0, (1, 2))


def test_the_interval_over_three_seeds_by_hand():
    """97, 98, 99: standard deviation 1, two degrees of freedom, t = 4.303."""
    row = against(NUMBER, *(summary(97.0 + seed, seed=seed, width=0.01) for seed in range(3)))
    assert row.ours == 98.0
    assert row.interval is not None
    assert row.interval[1] - 98.0 == pytest.approx(4.303 / math.sqrt(3), rel=1e-4)
    assert 98.0 - row.interval[0] == pytest.approx(4.303 / math.sqrt(3), rel=1e-4)
    assert row.seeds == (0, 1, 2)
    assert row.runs == ("run0", "run1", "run2")


@pytest.mark.parametrize(
    ("seeds", "quantile"), [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (11, 2.228), (20, 2.093), (61, 2.000)]
)
def test_the_interval_is_students(seeds: int, quantile: float):
    """Against the printed table of its 97.5 % points."""
    values = [90 + math.sin(seed) for seed in range(seeds)]
    row = against(NUMBER, *(summary(value, seed=seed) for seed, value in enumerate(values)))
    want = quantile * statistics.stdev(values) / math.sqrt(seeds)
    assert row.interval is not None
    assert (row.interval[1] - row.interval[0]) / 2 == pytest.approx(want, rel=3e-4)


def test_a_seed_that_ran_twice_counts_once():
    """The same run under two names would halve the spread and claim a certainty that is not there."""
    row = against(NUMBER, summary(97.0, seed=1, width=0.3), summary(97.0, seed=1, width=0.3))
    assert (row.seeds, row.runs, row.interval) == ((1,), ("run0",), (96.7, 97.3))


def test_runs_with_other_settings_are_no_seeds():
    row = against(NUMBER, summary(97.0, seed=1), summary(90.0, seed=2, overrides={"optim.lr": 0.5}))
    assert (row.ours, row.seeds) == (97.0, (1,))


def test_the_run_that_a_retraining_follows_sets_nothing_apart():
    """Each seed names a run of its own there."""
    rows = [summary(97.0 + s, seed=s, overrides={"selected_run": f"runs/s{s}"}) for s in (1, 2)]
    assert against(NUMBER, *rows).seeds == (1, 2)


def test_a_variant_stands_beside_its_own():
    runs = [summary(99.0, variant="trainval"), summary(90.0, variant="train")]
    for variant, ours in (("trainval", 99.0), ("train", 90.0), ("other", None)):
        assert against(dataclasses.replace(NUMBER, variant=variant), *runs).ours == ours


def test_a_number_of_no_variant_takes_any():
    assert against(NUMBER, summary(90.0, variant="train")).ours == 90.0


def test_summaries_of_finished_runs(tmp_path: Path):
    for folder, name, value in (("results", "a", 1), ("runs", "a", 2), ("runs", "b", 3)):
        path = tmp_path / folder / "protonet" / name
        path.mkdir(parents=True)
        body = summary(value) | {"study": "protonet", "command": "", "step": 1, "steps_trained": 1}
        body |= {"parameters": {}, "train_seconds": 1.0, "peak_memory_mb": 1, "more": value}
        (path / "summary.json").write_text(json.dumps(body))
    (tmp_path / "runs" / "protonet" / "begun").mkdir()
    found = read_summaries([tmp_path / "results", tmp_path / "runs", tmp_path / "none"], "protonet")
    assert {name: body["more"] for name, body in found.items()} == {"a": 1, "b": 3}


def test_a_summary_is_read_whole_and_again_when_it_changed(tmp_path: Path):
    body = summary(97.0) | {"study": "protonet", "command": "", "step": 1, "steps_trained": 1}
    body |= {"parameters": {}, "train_seconds": 1.0, "peak_memory_mb": 1}
    for name in ("half_width", "unit", "variant"):
        del body["results"][0][name]
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(body))
    (row,) = read_summary(path)["results"]
    assert (row["value"], row["half_width"], row["unit"], row["variant"]) == (97.0, None, "", "")
    path.write_text(json.dumps(body | {"seed": 12}))
    assert read_summary(path)["seed"] == 12
    path.unlink()
    with pytest.raises(UserError, match=r"summary\.json cannot be read"):
        read_summary(path)


GOOD = """
[margin]
accuracy = 0.5
[[number]]
experiment = "fewshot"
cell = "w5s1"
metric = "accuracy"
split = "test"
value = 98
source = "Snell 2017"
protocol = "600 episodes"
"""


def test_a_table_of_published_numbers(tmp_path: Path):
    path = tmp_path / "reference.toml"
    more = GOOD.partition("0.5\n")[2].replace("w5s1", "w20s1") + 'better = "lower"\nuncertainty = 0.4\n'
    path.write_text(GOOD + 'unit = "%"\n' + more + '[[proxy]]\nwhy = "a for b"\nvariant = "a"\ncells = { x = "y" }\n')
    reference = read_reference(path)
    rows = reference.number
    assert reference.margin == {"accuracy": 0.5}
    assert reference.proxy == [Proxy("a for b", "a", cells={"x": "y"})]
    assert rows[0] == NUMBER
    assert isinstance(rows[0].value, float)
    assert (rows[1].cell, rows[1].better, rows[1].uncertainty) == ("w20s1", "lower", 0.4)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[[number]\n",
        "number = 3\n",
        "number = 'abc'\n",
        "[[number]]\ncell = 'x'\n",
        GOOD + "valeu = 3\n",
        GOOD.replace("98", "'high'"),
        GOOD + "better = 'upwards'\n",
        GOOD + "uncertainty = 'some'\n",
        GOOD.replace("accuracy = 0.5", "error = 0.5"),
        GOOD.replace("accuracy = 0.5", "accuracy = 'half'"),
        GOOD + "[[proxy]]\nwhy = 'no variant'\n",
        GOOD + "[margins]\naccuracy = 1\n",
        "number = 1\xff",
    ],
)
def test_a_malformed_table_is_one_line(tmp_path: Path, text: str):
    path = tmp_path / "reference.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"reference\.toml is not a table of published numbers") as caught:
        read_reference(path)
    assert "\n" not in str(caught.value)


def test_a_study_without_a_table_has_no_published_numbers(tmp_path: Path):
    assert read_reference(tmp_path / "none.toml") == Reference()
