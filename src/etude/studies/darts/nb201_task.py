"""Search and scores on NAS-Bench-201, whose table says what each cell reaches.

Shape suffixes: N pictures or cells, S scores.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from etude.core import randomness
from etude.core.runtime import Runtime
from etude.core.study import Result
from etude.data import nasbench201
from etude.studies.darts.cell_task import CellTask, entropy_loss
from etude.studies.darts.nb201 import EDGES, BenchCell, BenchNetwork, all_cells
from etude.studies.darts.scores import SCORES
from etude.studies.darts.search_task import SearchTask
from etude.studies.darts.study import DartsConfig

MEASURED = ("cifar10", "cifar100", "imagenet16")
"""The metrics of the table: per cent right after 200 epochs."""
RESAMPLES = 2000


class BenchSearchTask(SearchTask):
    """A search whose finds are looked up."""

    @cached_property
    def table(self) -> nasbench201.Table:
        """What all cells reach."""
        return nasbench201.load(self.config.table_file)

    @property
    def edges(self) -> int:
        return len(EDGES)

    def looked_up(self, cells: BenchCell) -> dict[str, float]:
        return {f"table/{name}": self.table.of(cells.text)[name] for name in MEASURED}

    def data_checksums(self) -> dict[str, str]:
        return super().data_checksums() | {nasbench201.FILE: self.table.sha256}

    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        found = super().results(extra)
        cell = self.model.read(extra["genotype"]["cell"]) if "genotype" in extra else self.genotype
        reached = self.table.of(cell.text)
        protocol = f"the table's, after 200 epochs, mean over its seeds, of the cell {cell.text}; {found[0].protocol}"
        return [self.result(name, "test", reached[name], 0, protocol) for name in MEASURED] + found


class ScoreTask(CellTask):
    """Cells drawn at random, one a step, are scored without training; the scores are ranked against the table."""

    def __init__(self, config: DartsConfig, runtime: Runtime) -> None:
        super().__init__(config, runtime)
        draw = runtime.generator("cells", 0)
        chosen = torch.randperm(nasbench201.CELLS, generator=draw)[: self.num_steps].tolist()
        cells = all_cells()
        self.cells = [cells[number] for number in chosen]
        # A part of the weights, so that a run that is resumed or read again has them.
        self.scores_NS = nn.Parameter(
            torch.full((len(self.cells), len(SCORES)), float("nan"), dtype=torch.float64), requires_grad=False
        )
        self.modules = {"scores": nn.ParameterDict({"of_cells": self.scores_NS})}
        self.optimizers = {}
        self.model = self._network(self.cells[0])

    @cached_property
    def table(self) -> nasbench201.Table:
        """What all cells reach."""
        return nasbench201.load(self.config.table_file)

    def _network(self, cell: BenchCell) -> BenchNetwork:
        model = self.config.model
        return BenchNetwork(cell, model.channels, model.layers, model.num_classes)

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        train, cell = self.pictures.splits["train"], self.cells[step]
        if step == 0 or not self.model.mean.any():
            self.model.set_statistics(train.images_NHWC)
        draw = self.runtime.generator("pictures", step)
        rows = torch.randperm(len(train), generator=draw)[: self.config.batch.size]
        x_NCHW, labels_N = self.model.prepare(train.images_NHWC[rows]), train.labels_N[rows]
        randomness.seed_globals(self.config.seed, "cell", step)
        network = self._network(cell)
        loss = entropy_loss(network.train()(x_NCHW)[0].detach(), labels_N)
        for place, score in enumerate(SCORES.values()):
            self.scores_NS[step, place] = score(network, x_NCHW.to(next(network.parameters())), labels_N)
        return {"loss": loss}

    def ranks(self, metric: str = "cifar10") -> dict[str, tuple[float, float, float]]:
        """For each score, Spearman's rank correlation with a column of the table, and its 95 % interval by resampling
        the cells."""
        from scipy.stats import rankdata

        done = ~self.scores_NS[:, 0].isnan()
        scores_NS = self.scores_NS[done].numpy()
        reached_N = np.array(
            [self.table.of(cell.text)[metric] for cell in np.array(self.cells, dtype=object)[done.numpy()]]
        )
        draw = np.random.default_rng(0)
        draws = [draw.integers(len(reached_N), size=len(reached_N)) for _ in range(RESAMPLES)]
        found: dict[str, tuple[float, float, float]] = {}
        for place, name in enumerate(SCORES):

            def spearman(rows: Any, scores_N: np.ndarray = scores_NS[:, place]) -> float:
                return float(np.corrcoef(rankdata(scores_N[rows]), rankdata(reached_N[rows]))[0, 1])

            low, high = np.nanpercentile([spearman(rows) for rows in draws], [2.5, 97.5])
            found[name] = (spearman(slice(None)), float(low), float(high))
        return found

    def evaluate(self) -> dict[str, float]:
        if (~self.scores_NS[:, 0].isnan()).sum() < 3:
            return {}
        return {f"spearman/{name}": value for name, (value, _, _) in self.ranks().items()}

    def cell(self) -> str:
        return "scores"

    def data_checksums(self) -> dict[str, str]:
        return super().data_checksums() | {nasbench201.FILE: self.table.sha256}

    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        model = self.config.model
        about = (
            f"Spearman's, of {len(self.cells):,} cells of NAS-Bench-201, scored in networks of {model.layers} cells of "
            f"{model.channels} channels on {self.config.batch.size} pictures; {self.pictures.about}; interval by "
            f"{RESAMPLES:,} resamples"
        )
        return [
            Result(
                self.config.table, name, f"spearman_{metric}", "test", value, about, (high - low) / 2, "",
                self.pictures.about,
            )
            for metric in MEASURED for name, (value, low, high) in self.ranks(metric).items()
        ]  # fmt: skip
