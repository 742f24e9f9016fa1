"""Differentiable architecture search: presets and experiments."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from etude.core.bounds import Bound, Count, Fraction, NotNegative, Positive, Whole, at_least, require
from etude.core.config import BatchConfig, LoopConfig, StudyConfig, differences
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder
from etude.core.study import Experiment, Job, Preset, Study, best_of
from etude.data.nasbench201 import FILE
from etude.data.picture_config import AugmentConfig, PictureConfig
from etude.studies.darts.genotype import as_text, from_text, is_random, known_cells

_EVEN = Bound("even and at least 2", lambda value: value >= 2 and value % 2 == 0)
_SHARE = Bound("above 0 and below 1: both halves need pictures", lambda value: 0 < value < 1)
_RULE = Bound(
    "none, skips, eigenvalue or path/to/file.py:Name",
    lambda value: value in ("none", "skips", "eigenvalue") or ".py:" in value,
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    channels: Annotated[int, _EVEN] = 16
    """Channels of each node of the first cells; doubled at each of the two reductions."""
    layers: Annotated[int, at_least(2, ", for there are two reductions")] = 8
    """Number of cells; the reductions stand at a third and two thirds of them."""
    num_classes: Annotated[int, at_least(2)] = 10
    """Classes of the data."""
    nodes: Count = 4
    """Intermediate nodes of the cells that are searched."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    order: Literal[1, 2] = 1
    """1: alpha is judged at the weights as they are; 2: at the weights one step on."""
    lr: Positive = 3e-4
    """Adam's rate for alpha."""
    weight_decay: NotNegative = 1e-3
    """Weight decay of alpha, added to its gradient by Adam."""
    share: Annotated[float, _SHARE] = 0.5
    """Share of the training pictures that alpha learns from; the weights learn from the others."""
    wait: Whole = 0
    """Steps before alpha begins to learn."""
    partial: Count = 1
    """K: one of K channels goes through the operations, the others round them (PC-DARTS); 1: all go through."""
    edge_norm: bool = False
    """Weigh the edges into a node against each other (PC-DARTS)."""
    auxiliary_skip: bool = False
    """A skip beside every mixture, whose weight falls from 1 to 0 over the search (DARTS-)."""
    stop: Annotated[str, _RULE] = "none"
    """none; skips: when the normal cell has `most_skips` of them (DARTS+); eigenvalue: when the largest eigenvalue of
    the Hessian by alpha has risen, and then the cell from before (Zela et al. 2020); or path/to/file.py:Name of a
    function of the evaluations so far, a list of dicts, that returns None, or how many evaluations to go back to the
    cell that is kept."""
    most_skips: Count = 2
    """Skips in the normal cell at which the rule skips of `stop` ends the search."""
    mixture: Literal["shared", "plain"] = "shared"
    """shared: the edges that leave a node share their work; plain: equation 2 as it reads, edge by edge, whose losses
    are the same and whose steps take longer."""
    beta: NotNegative = 0.0
    """The weight of beta decay at the end, to which it rises from 0 (Ye et al. 2022); 0: none."""
    perturb: NotNegative = 0.0
    """The largest noise on the operations' weights at the end while the weights learn, to which it rises from 0 (Chen
    and Hsieh 2020, SDARTS-RS); 0: none."""
    eigenvalue: bool = False
    """Measure that eigenvalue at each evaluation; `stop` eigenvalue does so in any case."""


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    auxiliary: NotNegative = 0.4
    """The weight of the auxiliary head's loss; 0: there is no such head."""
    drop_path: Fraction = 0.2
    """The share of the images that leave an edge out, at the end of training; it rises from zero."""


@dataclass(frozen=True, kw_only=True)
class CellAugmentConfig(AugmentConfig):
    cutout: Whole = 0
    """Side of a square that is blanked at a random place (DeVries and Taylor 2017); 0: none."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    lr: Positive = 0.025
    """Rate of SGD at the start."""
    last_lr: float = 0.0
    """At the end; a cosine in between."""
    momentum: Fraction = 0.9
    weight_decay: NotNegative = 3e-4
    """Added to the gradient."""
    clip: NotNegative = 5.0
    """The gradient is not longer than this; 0: it is as it is."""

    def rate(self, step: int, max_steps: int) -> float:
        """The learning rate of a step, from 0."""
        return self.last_lr + (self.lr - self.last_lr) * (1 + math.cos(math.pi * step / max_steps)) / 2


@dataclass(frozen=True, kw_only=True)
class Batch(BatchConfig):
    size: int = 64
    """Pictures of one optimiser step, over all processes; a search takes as many again for alpha."""
    evaluation: int = 250
    """Pictures at a time where nothing is learned."""


@dataclass(frozen=True, kw_only=True)
class DartsConfig(StudyConfig):
    phase: Literal["search", "retrain", "score"] = "search"
    """search: a cell is looked for; retrain: a network of a given one is trained from scratch; score: cells of
    NAS-Bench-201 drawn at random, one a step, are scored without training."""
    space: Literal["darts", "nb201"] = "darts"
    """The cells that are searched: those of Liu et al. 2019, or of NAS-Bench-201, whose table says what a found cell
    reaches."""
    table_file: str = FILE
    """The table of NAS-Bench-201: its path; looked for here and in ETUDE_MIRROR."""
    genotype: str = ""
    """The cell that is retrained, darts-v2 where none is named: darts-v1, darts-v2, pc-darts, found; random-N, the N-th
    that the seed draws; a JSON file; or the run folder of a search. A file's content is kept in the configuration."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network's size."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """The search of a cell."""
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    """The training of a found cell."""
    data: PictureConfig = field(default_factory=PictureConfig)
    """The pictures."""
    train_images: Whole = 0
    """Train with so many of the training pictures, of each class alike; 0: all."""
    watched: Whole = 0
    """Pictures of each split that an evaluation in a search scores; 0: all."""
    augment: CellAugmentConfig = field(default_factory=CellAugmentConfig)
    """The augmentation of training pictures."""
    batch: Batch = field(default_factory=Batch)
    """The batches."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser of the weights."""
    cell: str = ""
    """The name of what was searched or retrained in tables; empty: made of the settings."""
    table: str = "run"
    """The table that the numbers belong to: search, retrained; run: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        model, search, optim = self.model, self.search, self.optim
        require(0 <= optim.last_lr <= optim.lr, "optim.last_lr", "from 0 to optim.lr", optim.last_lr)
        # The maps are halved twice, and pixels are then taken apart in twos.
        require(self.data.size % 8 == 0, "data.size", "a multiple of 8", self.data.size)
        require(self.phase != "score" or self.space == "nb201", "space", "nb201 in the phase score", self.space)
        if self.space == "nb201":
            self._check_bench()
            return
        if self.phase == "search":
            least = "at least 3 in a search: of two cells both are reductions, and no normal one would learn"
            require(model.layers >= 3, "model.layers", least, model.layers)
            parts = f"a multiple of {2 * search.partial} (twice search.partial)"
            require(model.channels % (2 * search.partial) == 0, "model.channels", parts, model.channels)
            require(self.loop.precision != "fp16", "loop.precision", "fp32 or bf16 in a search", self.loop.precision)
            if self.genotype:
                raise ValueError(
                    f"genotype: a search finds one: leave out '{self.genotype}', or train it by the preset retrain"
                )
            return
        if self.retrain.auxiliary > 0:
            fits = "32 with the auxiliary head, which --retrain.auxiliary 0 leaves out"
            require(self.data.size == 32, "data.size", fits, self.data.size)
            # Its last map is one pixel.
            each = f"2 or more times batch.parts ({self.batch.parts}) with the auxiliary head"
            require(self.batch.size >= 2 * self.batch.parts, "batch.size", each, self.batch.size)
        cell = self.genotype or "darts-v2"
        if cell not in known_cells() and not is_random(cell):
            # So that the run does not hang on a file that may change.
            cell = as_text(from_text(cell))
        object.__setattr__(self, "genotype", cell)

    @staticmethod
    def recorded(values: Mapping[str, Any]) -> dict[str, Any]:
        """A recorded configuration: searches of earlier versions had a genotype, and made nothing of it."""
        return dict(values) | ({"genotype": ""} if values.get("phase") == "search" else {})

    def _check_bench(self) -> None:
        model, options = self.model, self.search
        require(
            self.phase != "retrain",
            "phase",
            "search or score in the space nb201, whose table has trained all",
            "retrain",
        )
        require(model.layers % 3 == 0, "model.layers", "a multiple of 3 in the space nb201", model.layers)
        require(model.nodes == 4, "model.nodes", "4 in the space nb201", model.nodes)
        require(options.partial == 1, "search.partial", "1 in the space nb201", options.partial)
        require(not options.edge_norm, "search.edge_norm", "off in the space nb201", options.edge_norm)
        require(not self.genotype, "genotype", "empty in the space nb201", self.genotype)


def paper() -> DartsConfig:
    """The first-order search of Liu et al. 2019, section 3.1, on CIFAR-10: 8 cells of 16 channels, 50 epochs of halves.

    Second order: ``--search.order 2``. Retrain what it finds with `retrain`. The paper's cells are the best of four
    searches by 100 epochs of training each (section 3.2): ``etude study darts best-of-four --preset paper``.

    Command: ``etude run darts paper``.
    Cost: 17,550 steps of 64 + 64 pictures, 1.93 million weights; 1.5 days on a GTX 1080 Ti in their account.
    Expected: a cell that retrains to 97.00 +- .14 % (first order), 97.24 +- .09 (second).
    """
    return DartsConfig(
        optim=OptimConfig(last_lr=0.001),
        loop=LoopConfig(epochs=50.0, log_every=50, eval_every=351, save_every=351),
        table="search",
    )


def course() -> DartsConfig:
    """The search of a course report: as `paper`, 20 epochs.

    Command: ``etude run darts course``.
    Cost: 7,020 steps of 64 + 64 pictures; an accelerator.
    Expected: 83.81 % of the pictures right that alpha learned from.
    """
    full = paper()
    return replace(full, loop=replace(full.loop, epochs=20.0))


def pc_darts() -> DartsConfig:
    """The search of PC-DARTS (Xu et al. 2020, section 4.2): a quarter of the channels, edge normalisation, batch 256.

    Command: ``etude run darts pc-darts``.
    Cost: 4,350 steps of 256 + 256 pictures; .1 days on a GTX 1080 Ti in their account.
    Expected: a cell that retrains to 97.43 +- .07 %.
    """
    full = paper()
    return replace(
        full,
        search=SearchConfig(lr=6e-4, partial=4, edge_norm=True, wait=15 * 87),
        batch=Batch(size=256),
        optim=OptimConfig(lr=0.1),
        loop=replace(full.loop, eval_every=87, save_every=87),
    )


def retrain() -> DartsConfig:
    """A network of found cells as Liu et al. 2019, section 3.2, train it: 20 cells of 36 channels, 600 epochs.

    Trained on 45,000 pictures, and the best of 5,000 kept aside chosen; they train on all 50,000.

    Command: ``etude run darts retrain --genotype RUN``, or ``--genotype darts-v2``.
    Cost: 280,800 steps of 96 pictures, 3.3 million weights; an accelerator for a day and a half.
    Expected: 97.24 +- .09 % for darts-v2, 97.00 +- .14 for darts-v1.
    """
    return DartsConfig(
        phase="retrain",
        model=ModelConfig(channels=36, layers=20),
        augment=CellAugmentConfig(cutout=16),
        batch=Batch(size=96),
        loop=LoopConfig(epochs=600.0, log_every=100, eval_every=2340, save_every=2340),
        table="retrained",
    )


def laptop() -> DartsConfig:
    """A small search on two CPU cores: 5 cells of 8 channels, pictures of 16 pixels, 500 steps of 64 + 64.

    Command: ``etude run darts laptop``.
    Cost: some 20 minutes on a core.
    """
    return DartsConfig(
        model=ModelConfig(channels=8, layers=5),
        data=PictureConfig(size=16),
        search=SearchConfig(lr=1e-2, wait=50, eigenvalue=True),
        watched=1000,
        batch=Batch(size=64, evaluation=500),
        optim=OptimConfig(last_lr=0.001),
        loop=LoopConfig(max_steps=500, log_every=10, eval_every=50, save_every=50),
        table="search",
    )


def retrain_laptop() -> DartsConfig:
    """A small network of found cells on a CPU core: 5 cells of 16 channels, pictures of 16 pixels, 3 epochs.

    Command: ``etude run darts retrain-laptop --genotype RUN``.
    Cost: 2,106 steps of 64 pictures; some ten minutes on a core.
    """
    full = retrain()
    return replace(
        full,
        model=ModelConfig(channels=16, layers=5),
        data=PictureConfig(size=16),
        retrain=RetrainConfig(auxiliary=0.0, drop_path=0.0),
        augment=CellAugmentConfig(pad=2),
        batch=Batch(size=64, evaluation=500),
        loop=LoopConfig(epochs=3.0, log_every=50, eval_every=351, save_every=351),
    )


def smoke() -> DartsConfig:
    """Seconds, on the embedded twin of the data. Its numbers say only that the parts work.

    Command: ``etude run darts smoke``.
    """
    return DartsConfig(
        model=ModelConfig(channels=4, layers=3, num_classes=4, nodes=2),
        data=PictureConfig(source="generated", size=16),
        search=SearchConfig(lr=0.01, eigenvalue=True),
        augment=CellAugmentConfig(pad=2),
        batch=Batch(size=16, evaluation=100),
        loop=LoopConfig(max_steps=20, log_every=5, eval_every=10, save_every=10, device="cpu"),
    )


def retrain_smoke() -> DartsConfig:
    """Seconds: a network of published cells on the embedded twin.

    Command: ``etude run darts retrain-smoke``.
    """
    small = smoke()
    return replace(
        small,
        phase="retrain",
        model=ModelConfig(channels=4, layers=3, num_classes=4),
        augment=CellAugmentConfig(pad=2, cutout=4),
        retrain=RetrainConfig(auxiliary=0.0),
        batch=Batch(size=32, evaluation=100),
    )


def nb201() -> DartsConfig:
    """The first-order search of NAS-Bench-201 (Dong and Yang 2020, section 5): 15 cells of 16 channels, 50 epochs.

    Second order: ``--search.order 2``. Their searches end in cells of skips alone, of 54.30 % on CIFAR-10.

    Command: ``etude run darts nb201``.
    Cost: 17,550 steps of 64 + 64 pictures; an accelerator for hours.
    """
    full = paper()
    return replace(
        full,
        space="nb201",
        model=ModelConfig(layers=15),
        table="nb201",
    )


def nb201_laptop() -> DartsConfig:
    """The search of `nb201` on a CPU core: 3 cells of 8 channels, pictures of 16 pixels, 6 epochs of halves.

    Command: ``etude run darts nb201-laptop``.
    """
    full = nb201()
    return replace(
        full,
        model=ModelConfig(channels=8, layers=3),
        data=PictureConfig(size=16),
        search=SearchConfig(lr=3e-3),
        augment=CellAugmentConfig(pad=2),
        watched=1000,
        batch=Batch(size=64, evaluation=500),
        loop=LoopConfig(max_steps=2100, log_every=20, eval_every=70, save_every=70),
    )


def nb201_scores() -> DartsConfig:
    """Scores without training of 1,000 cells of NAS-Bench-201, and how they rank with what the cells reach.

    Command: ``etude run darts nb201-scores``.
    Cost: seven minutes on a core.
    Reached: Spearman's .81 for NASWOT, .80 for synflow, .74 for the number of parameters, on CIFAR-10.
    """
    return DartsConfig(
        phase="score",
        space="nb201",
        model=ModelConfig(layers=3),
        batch=Batch(size=64),
        loop=LoopConfig(max_steps=1000, log_every=50, eval_every=250, save_every=50),
        table="nb201-scores",
    )


def _pc_retrain() -> DartsConfig:
    """`retrain` as Xu et al. 2020, section 4.2, have it: paths are dropped with a chance of up to .3."""
    full = retrain()
    return replace(full, retrain=replace(full.retrain, drop_path=0.3))


_RETRAIN = {
    "paper": retrain,
    "course": retrain,
    "pc-darts": _pc_retrain,
    "laptop": retrain_laptop,
    "smoke": retrain_smoke,
}
"""The preset that retrains what a preset's search finds."""
SEARCHES = 4
"""Searches of which the best is retrained."""
CANDIDATES = 4
"""Cells of a random search."""
SEARCH_COST = 7
"""Steps of retraining that take as long as one of a search, at laptop scale."""
REMEDIES: dict[str, dict[str, Any]] = {
    "first": {},
    "second": {"search.order": 2},
    "partial": {"search.partial": 4, "search.edge_norm": True},
    "skips": {"search.stop": "skips"},
    "eigenvalue": {"search.stop": "eigenvalue"},
    "auxiliary": {"search.auxiliary_skip": True},
}


def _searched(preset: str) -> DartsConfig:
    """The configuration of a preset that searches."""
    if preset not in _RETRAIN:
        raise UserError(f"the preset '{preset}' is of no search: give --preset {', '.join(_RETRAIN)}")
    config = STUDY.preset(preset).build()
    assert isinstance(config, DartsConfig)
    return config


def _retrained(preset: str, name: str, after: Sequence[str], cell: str) -> Job:
    """The retraining of what a search found, or of the drawn cell that validated best."""
    changes = differences(_searched(preset), _RETRAIN[preset]()) | {"cell": cell}

    def overrides(finished: Sequence[RunFolder]) -> dict[str, Any]:
        best = best_of(finished)
        return changes | {"genotype": best.record.config["genotype"] if cell == "random" else str(best.path)}

    return Job(name, overrides, tuple(after))


def _search(preset: str) -> tuple[Job, ...]:
    """A search and the best of some cells drawn at random, both retrained; and published cells.

    The drawn cells are trained together as long as the search lasts.
    """
    searched = _searched(preset)
    changes = differences(searched, _RETRAIN[preset]())
    if searched.loop.epochs:
        # A search sees two batches a step, one of each half.
        size = changes.get("batch.size", searched.batch.size) / (2 * searched.batch.size)
        length = {"loop.max_steps": 0, "loop.epochs": searched.loop.epochs * size * SEARCH_COST / CANDIDATES}
    else:
        steps = searched.loop.max_steps * SEARCH_COST // CANDIDATES
        length = {"loop.max_steps": steps, "loop.epochs": 0.0, "loop.eval_every": max(1, steps // 4)}
    short = changes | length | {"table": "run"}
    drawn = [Job(f"draw-{n}", short | {"genotype": f"random-{n}"}) for n in range(CANDIDATES)]
    return (
        Job("search", {"cell": "first"}),
        _retrained(preset, "found", ["search"], "found"),
        *drawn,
        _retrained(preset, "random", [job.name for job in drawn], "random"),
        *(Job(name, changes | {"genotype": name}) for name in ("darts-v1", "darts-v2")),
    )


def _four(preset: str) -> tuple[Job, ...]:
    """Four searches, each find trained briefly, and the one that validates best retrained (Liu et al. 2019, 3.2).

    They train 100 epochs of 600 to choose: here it is a sixth of the retraining, whatever its length.
    """
    changes, loop = differences(_searched(preset), _RETRAIN[preset]()), _RETRAIN[preset]().loop
    brief = {"loop.max_steps": -(-loop.max_steps // 6), "loop.epochs": loop.epochs / 6, "table": "run"}
    jobs: list[Job] = []
    for n in range(SEARCHES):

        def found(finished: Sequence[RunFolder]) -> dict[str, Any]:
            return changes | brief | {"genotype": str(finished[0].path)}

        jobs.append(Job(f"search-{n}", {"table": "run"}, seed=n))
        jobs.append(Job(f"brief-{n}", found, after=(f"search-{n}",), seed=n))

    def best(finished: Sequence[RunFolder]) -> dict[str, Any]:
        return changes | {"genotype": best_of(finished).record.config["genotype"], "cell": "best-of-four"}

    return (*jobs, Job("best", best, after=tuple(f"brief-{n}" for n in range(SEARCHES))))


def _remedies(preset: str) -> tuple[Job, ...]:
    """The search as published and with each of what was proposed against its collapse, each find retrained."""
    channels, jobs = _searched(preset).model.channels, list[Job]()
    for name, settings in REMEDIES.items():
        if "search.partial" in settings and channels % (2 * settings["search.partial"]):
            # A quarter of four channels is less than the two that every operation takes.
            settings = settings | {"search.partial": 2}
        jobs.append(Job(f"search-{name}", settings | {"cell": name, "search.eigenvalue": True}))
        jobs.append(_retrained(preset, name, [f"search-{name}"], f"found-{name}"))
    return tuple(jobs)


BENCH: dict[str, dict[str, Any]] = {
    "first": {},
    "second": {"search.order": 2},
    "auxiliary": {"search.auxiliary_skip": True},
    "eigenvalue": {"search.stop": "eigenvalue"},
    "perturb": {"search.perturb": 0.3},
    "beta": {"search.beta": 50.0},
}
"""The search on NAS-Bench-201 and what was proposed against its collapse."""


def _bench(preset: str) -> tuple[Job, ...]:
    """The search as published and with each remedy; the table says what the finds reach."""
    return tuple(Job(name, settings | {"cell": name}) for name, settings in BENCH.items())


STUDY = Study(
    name="darts",
    title="Differentiable architecture search",
    about="cells found by gradient descent on CIFAR-10, and retrained (Liu et al. 2019)",
    config=DartsConfig,
    presets={
        "paper": Preset(paper, "full"),
        "course": Preset(course, "full"),
        "pc-darts": Preset(pc_darts, "full"),
        "retrain": Preset(retrain, "full"),
        "laptop": Preset(laptop, "laptop"),
        "retrain-laptop": Preset(retrain_laptop, "laptop"),
        "smoke": Preset(smoke, "smoke"),
        "retrain-smoke": Preset(retrain_smoke, "smoke"),
        "nb201": Preset(nb201, "full"),
        "nb201-laptop": Preset(nb201_laptop, "laptop"),
        "nb201-scores": Preset(nb201_scores, "laptop"),
    },
    experiments={
        "search": Experiment("a search against a random one of equal cost and against published cells", _search),
        "best-of-four": Experiment("the best of four searches by brief trainings, retrained", _four),
        "remedies": Experiment("what was proposed against collapse to skips, one at a time", _remedies),
        "nb201": Experiment("the collapse on NAS-Bench-201, and its remedies", _bench, preset="nb201-laptop"),
    },
    reads_data=("cifar10",),
    pictures={
        "cells": "the found cells as graphs of operations",
        "curves": "loss, accuracy and learning rate over the steps",
        "watch": "skips and entropy of the cells over the search, what they reach by the table, the largest eigenvalue",
        "mixtures": "what each operation weighs on each edge at the last evaluation",
        "ranks": "scores of untrained cells against what the cells reach trained",
        "growth": "the cells that the search would have chosen at some evaluations",
    },
)
