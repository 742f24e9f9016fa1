"""Presets, what each experiment runs, and settings that are refused by name."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.experiments import Finished
from tests.studies.darts.common import one_line, retrain_settings, settings

from etude.core.config import from_dict, override, to_dict
from etude.core.errors import UserError
from etude.core.study import Job
from etude.report.reference import read_reference
from etude.studies.darts.choice import chosen
from etude.studies.darts.genotype import as_text
from etude.studies.darts.study import STUDY, DartsConfig, OptimConfig

SEARCHES = ["paper", "course", "pc-darts", "laptop", "smoke"]
FOUND = as_text(chosen("random-0", 0))


def built(name: str) -> DartsConfig:
    config = STUDY.preset(name).build()
    assert isinstance(config, DartsConfig)
    return config


# --- presets ---


def test_presets_are_the_papers() -> None:
    paper, pc, retrain = built("paper"), built("pc-darts"), built("retrain")
    model, search, optim = paper.model, paper.search, paper.optim
    assert (model.channels, model.layers, model.nodes, paper.batch.size) == (16, 8, 4, 64)
    assert (search.order, search.lr, search.weight_decay, search.share, search.wait) == (1, 3e-4, 1e-3, 0.5, 0)
    assert (optim.lr, optim.last_lr, optim.momentum, optim.weight_decay, optim.clip) == (0.025, 0.001, 0.9, 3e-4, 5)
    # Epochs of half of 45,000 pictures.
    assert paper.loop.epochs == 50
    assert built("course").loop.epochs == 20
    assert (pc.search.partial, pc.search.edge_norm, pc.search.lr, pc.batch.size, pc.optim.lr) == (
        4,
        True,
        6e-4,
        256,
        0.1,
    )
    assert (pc.loop.epochs, pc.search.wait) == (50, 15 * (22_500 // 256))
    assert (retrain.model.channels, retrain.model.layers, retrain.batch.size) == (36, 20, 96)
    assert (retrain.retrain.auxiliary, retrain.retrain.drop_path, retrain.augment.cutout) == (0.4, 0.2, 16)
    assert retrain.loop.epochs == 600
    assert (retrain.optim.lr, retrain.optim.last_lr, retrain.optim.weight_decay) == (0.025, 0.0, 3e-4)


def test_presets_name_their_phase() -> None:
    phases = dict.fromkeys(SEARCHES, "search") | {"nb201": "search", "nb201-laptop": "search", "nb201-scores": "score"}
    for name in STUDY.presets:
        assert built(name).phase == phases.get(name, "retrain")


def test_a_cosine_by_hand() -> None:
    optim = OptimConfig(lr=0.1, last_lr=0.02)
    found = [optim.rate(step, 4) for step in (0, 1, 2, 4)]
    assert found == pytest.approx([0.1, 0.02 + 0.08 * (1 + 2**-0.5) / 2, 0.06, 0.02])


def test_a_configuration_survives_its_own_record() -> None:
    for config in (settings(search__order=2, search__stop="skips"), retrain_settings()):
        assert from_dict(DartsConfig, to_dict(config)) == config


# --- experiments ---


def jobs(experiment: str) -> Iterator[tuple[str, Job]]:
    found = STUDY.experiment(experiment)
    for preset in dict.fromkeys([*SEARCHES, found.preset]) if experiment != "nb201" else [found.preset]:
        for job in found.jobs(preset):
            yield preset, job


def configured(preset: str, job: Job) -> DartsConfig:
    before = [Finished(Path(FOUND), {"genotype": "random-1"}, 0.1), Finished(Path("b"), {"genotype": "random-2"}, 0.2)]
    config = override(built(preset), dict(job.settings(before[: len(job.after)])))
    assert isinstance(config, DartsConfig)
    return config


def length(config: DartsConfig) -> int:
    """The steps of a run on 45,000 pictures."""
    return config.loop.steps((22_500 if config.phase == "search" else 45_000) // config.batch.size)


@pytest.mark.parametrize("experiment", ["search", "remedies"])
def test_every_job_is_settings_of_every_search(experiment: str) -> None:
    for preset, job in jobs(experiment):
        config = configured(preset, job)
        assert (config.phase == "search") == (job.name == "search" or job.name.startswith("search-"))
        assert config.loop.eval_every <= length(config)
        if config.phase == "search":
            assert config.genotype == built(preset).genotype
        names = {other.name for other in STUDY.experiment(experiment).jobs(preset)}
        assert set(job.after) <= names
        assert bool(job.after) == callable(job.overrides)


@pytest.mark.parametrize("preset", ["retrain", "retrain-laptop", "retrain-smoke"])
@pytest.mark.parametrize("experiment", ["search", "remedies"])
def test_an_experiment_wants_a_preset_of_a_search(experiment: str, preset: str) -> None:
    with pytest.raises(UserError) as caught:
        STUDY.experiment(experiment).jobs(preset)
    one_line(caught, f"the preset '{preset}' is of no search", "laptop")


def test_a_find_is_trained_as_the_preset_for_it_says() -> None:
    """All settings but the cell and its name; so are the cells that it is held against."""
    twins = {"paper": "retrain", "course": "retrain", "pc-darts": "retrain", "laptop": "retrain-laptop"}
    for preset, trained in (twins | {"smoke": "retrain-smoke"}).items():
        plain = to_dict(built(trained))
        plain["retrain"]["drop_path"] = 0.3 if preset == "pc-darts" else plain["retrain"]["drop_path"]
        by = {job.name: job for job in STUDY.experiment("search").jobs(preset)}
        assert list(by) == ["search", "found", *(f"draw-{n}" for n in range(4)), "random", "darts-v1", "darts-v2"]
        for name in ("found", "random", "darts-v1", "darts-v2"):
            config = to_dict(configured(preset, by[name]))
            assert {key for key in plain if config[key] != plain[key]} <= {"genotype", "cell"}
        for job in STUDY.experiment("remedies").jobs(preset):
            if not job.name.startswith("search-"):
                config = to_dict(configured(preset, job))
                assert {key for key in plain if config[key] != plain[key]} <= {"genotype", "cell"}


def test_pc_darts_drops_more_paths_as_it_retrains() -> None:
    """.3 in the authors' code, .2 in DARTS'."""
    for experiment, name in (("search", "found"), ("search", "darts-v2"), ("remedies", "partial")):
        for preset, share in (("pc-darts", 0.3), ("paper", 0.2)):
            by = {job.name: job for job in STUDY.experiment(experiment).jobs(preset)}
            assert configured(preset, by[name]).retrain.drop_path == share


def test_a_random_search_costs_what_the_search_does() -> None:
    """Four cells, each a quarter of it, where a step of a search costs seven of a retraining."""
    for preset in SEARCHES:
        by = {job.name: configured(preset, job) for job in STUDY.experiment("search").jobs(preset)}
        drawn = [by[f"draw-{n}"] for n in range(4)]
        assert [config.genotype for config in drawn] == [f"random-{n}" for n in range(4)]
        assert {config.table for config in drawn} == {"run"}, "they are no rows of the table"
        whole = 7 * length(by["search"])
        assert whole - 4 < sum(map(length, drawn)) <= whole * 1.01


def test_the_best_of_four_searches_by_brief_trainings_is_retrained() -> None:
    for preset in SEARCHES:
        jobs = {job.name: job for job in STUDY.experiment("best-of-four").jobs(preset)}
        assert [jobs[f"search-{n}"].seed for n in range(4)] == [0, 1, 2, 3]
        assert jobs["best"].after == ("brief-0", "brief-1", "brief-2", "brief-3")
        brief, whole = configured(preset, jobs["brief-2"]), configured(preset, jobs["best"])
        four = [
            Finished(Path(str(n)), {"genotype": f"random-{n}"}, best=score)
            for n, score in enumerate((1.0, 4.0, 3.0, 2.0))
        ]
        assert jobs["best"].settings(four)["genotype"] == "random-1"
        assert length(brief) == pytest.approx(length(whole) / 6, abs=1)
        assert (brief.phase, whole.phase, brief.table) == ("retrain", "retrain", "run")


def test_each_remedy_is_one_change() -> None:
    by = {job.name: configured("laptop", job) for job in STUDY.experiment("remedies").jobs("laptop")}
    plain = to_dict(by["search-first"])
    changed = {
        "second": {"order": 2},
        "partial": {"partial": 4, "edge_norm": True},
        "skips": {"stop": "skips"},
        "eigenvalue": {"stop": "eigenvalue"},
        "auxiliary": {"auxiliary_skip": True},
    }
    for name, changes in changed.items():
        config = to_dict(by[f"search-{name}"])
        assert {key for key in plain if config[key] != plain[key]} == {"search", "cell"}
        assert {key: value for key, value in config["search"].items() if plain["search"][key] != value} == changes
        assert by[f"search-{name}"].search.eigenvalue, "all are watched alike"
        assert (by[f"search-{name}"].cell, by[name].cell) == (name, f"found-{name}")
    assert len(by) == 2 * (len(changed) + 1)


def test_every_published_cell_is_one_that_is_filled() -> None:
    published = {(n.experiment, n.cell) for n in read_reference(STUDY.folder / "reference.toml").number}
    filled = {
        (config.table, config.cell or config.genotype)
        for experiment in STUDY.experiments
        for preset, job in jobs(experiment)
        for config in [configured(preset, job)]
        if preset != "smoke"
    }
    # The third published cell is asked for by --genotype.
    assert published - filled == {("retrained", "pc-darts")}
    metrics = {(n.experiment, n.metric) for n in read_reference(STUDY.folder / "reference.toml").number}
    expected = {("search", "search_accuracy"), ("retrained", "error"), ("nb201", "cifar10")}
    assert metrics == expected, "the accuracy of a mixture and of a cell are never in one column"


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("phase", "train", "'search', 'retrain' or 'score'"),
        ("model.channels", 0, "even and at least 2"),
        ("model.channels", 7, "even and at least 2"),
        ("model.layers", 1, "at least 2, for there are two reductions"),
        ("model.num_classes", 1, "at least 2"),
        ("model.nodes", 0, "at least 1"),
        ("search.order", 0, "1 or 2"),
        ("search.lr", 0.0, "above 0"),
        ("search.lr", math.nan, "above 0"),
        ("search.weight_decay", -1.0, "0 or more"),
        ("search.share", 0.0, "above 0 and below 1"),
        ("search.share", 1.0, "above 0 and below 1"),
        ("search.share", math.nan, "above 0 and below 1"),
        ("search.wait", -1, "0 or more"),
        ("search.partial", 0, "at least 1"),
        ("search.partial", 4, "model.channels must be a multiple of 8"),
        ("search.most_skips", 0, "at least 1"),
        ("search.stop", "skip", "none, skips, eigenvalue or path/to/file.py:Name"),
        ("data.size", 12, "a multiple of 8"),
        ("train_images", -1, "0 or more"),
        ("watched", -1, "0 or more"),
        ("augment.cutout", -1, "0 or more"),
        ("augment.pad", -1, "0 or more"),
        ("optim.lr", 0.0, "above 0"),
        ("optim.last_lr", 1.0, "from 0 to optim.lr"),
        ("optim.last_lr", -1.0, "from 0 to optim.lr"),
        ("optim.momentum", 1.0, "0 or more and below 1"),
        ("optim.weight_decay", -1.0, "0 or more"),
        ("optim.clip", -1.0, "0 or more"),
        ("batch.size", 0, "at least 1"),
        ("batch.parts", 3, "batch.size must be a multiple of batch.parts (3), not 8"),
        ("batch.evaluation", 0, "at least 1"),
        ("retrain.auxiliary", -1.0, "0 or more"),
        ("retrain.drop_path", 1.0, "0 or more and below 1"),
        ("loop.precision", "fp16", "fp32 or bf16 in a search"),
    ],
)
def test_senseless_settings_are_refused_by_name(name: str, value: Any, wanted: str) -> None:
    with pytest.raises(UserError) as caught:
        override(settings(), {name: value})
    one_line(caught, wanted if "must be" in wanted else name, wanted)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"retrain__auxiliary": 0.4}, ("data.size must be 32 with the auxiliary head", "--retrain.auxiliary 0")),
        (
            {"retrain__auxiliary": 0.4, "data__size": 32, "batch__size": 2, "batch__parts": 2},
            ("batch.size must be 2 or more times batch.parts (2) with the auxiliary head, not 2",),
        ),
        ({"genotype": "darts-v9"}, ("no genotype darts-v9", "did you mean 'darts-v")),
    ],
)
def test_senseless_retrainings_are_refused_by_name(changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        retrain_settings(**changes)
    one_line(caught, *parts)


def test_what_is_of_the_other_phase_is_not_asked() -> None:
    assert settings(retrain__auxiliary=0.4).phase == "search"
    assert retrain_settings(search__partial=8, model__channels=6).search.partial == 8
