"""The retraining: a network of given cells from scratch (Liu et al. 2019, section 3.2).

Shape suffixes: N pictures, C channels, H W pixels, R classes, E edges of a cell.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from etude.core import randomness
from etude.core.runtime import Runtime
from etude.core.study import Result
from etude.studies.darts.cell_task import CellTask, entropy_loss
from etude.studies.darts.choice import chosen
from etude.studies.darts.genotype import Genotype, is_random
from etude.studies.darts.model import CellNetwork
from etude.studies.darts.study import DartsConfig


def build_network(config: DartsConfig, genotype: Genotype | None = None) -> CellNetwork:
    """The network of a retraining's configuration.

    Args:
        config: a configuration of phase retrain.
        genotype: the cells; None: those of the configuration.
    """
    genotype = genotype or chosen(config.genotype, config.seed)
    model, auxiliary = config.model, config.retrain.auxiliary > 0
    return CellNetwork(genotype, model.channels, model.layers, model.num_classes, auxiliary=auxiliary)


class RetrainTask(CellTask):
    """A network of given cells from scratch (Liu et al. 2019, section 3.2)."""

    def __init__(self, config: DartsConfig, runtime: Runtime) -> None:
        super().__init__(config, runtime)
        self.genotype = chosen(config.genotype, config.seed)
        self.model: CellNetwork = build_network(config, self.genotype)
        self.modules = {"model": self.model}
        self.shared_model = runtime.prepare(self.model, channels_last=True)
        optim = config.optim
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
        )
        self.shared_optimizer = runtime.prepare_optimizer(self.optimizer)
        self.optimizers = {"sgd": self.optimizer}
        self.monitor = ("accuracy", "max")

    @property
    def epoch_steps(self) -> int:
        return len(self.pictures.splits["train"]) // self.config.batch.size

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        config, optim, train = self.config, self.config.optim, self.pictures.splits["train"]
        if step == 0:
            self.model.set_statistics(train.images_NHWC)
        self.model.train()
        rate = optim.rate(step, self.num_steps)
        self.optimizer.param_groups[0]["lr"] = rate
        rows, parts = self._epochs.rows(step, len(train), config.batch.size), config.batch.parts
        keep = 1 - config.retrain.drop_path * step / self.num_steps

        def entropy(part: int) -> dict[str, Tensor]:
            x_NCHW, labels_N = self.inputs(train, rows[part::parts], "train/augment", step, part)
            coins = self.coins(len(x_NCHW), step, part) if config.retrain.drop_path else None
            logits_NR, named = self.shared_model(x_NCHW, keep, coins)
            loss = of_result = entropy_loss(logits_NR, labels_N)
            if "auxiliary" in named:
                loss = loss + config.retrain.auxiliary * entropy_loss(named["auxiliary"], labels_N)
            accuracy = (logits_NR.argmax(1) == labels_N).float().mean()
            return {"loss": loss, "of_result": of_result, "accuracy": accuracy}

        means = self.runtime.descend(self.shared_optimizer, entropy, parts, self.shared_model, clip=optim.clip)
        loss = means["of_result"]
        return {
            "loss": loss, "accuracy": 100 * means["accuracy"], "gradient": means["gradient"],
            "rate": torch.full_like(loss, rate),
        }  # fmt: skip

    def coins(self, count: int, step: int, part: int) -> list[list[Tensor]]:
        """Uniform numbers that decide which pictures leave an edge out: for each cell and each of its edges ``[N]``."""
        draw = self.runtime.generator("train/drop-path", step, part)
        halved, device = self.model.halved, self.runtime.device
        sizes = [
            sum(map(len, self.genotype.cell("reduction" if layer in halved else "normal")))
            for layer in range(self.config.model.layers)
        ]
        drawn_EN = randomness.upload(torch.rand(sum(sizes), count, generator=draw), device)
        return [list(of_cell) for of_cell in drawn_EN.split(sizes)]

    def evaluate(self) -> dict[str, float]:
        return self.score(self.pictures.splits["val"])

    def finish(self) -> dict[str, Any]:
        found = self.pictures
        return {"classes": list(found.classes), "pictures": found.about, "genotype": self.genotype.to_dict()}

    def cell(self) -> str:
        """The place in a table: the name given, a published cell's, or whether it was drawn or found."""
        text = self.config.genotype
        return self.config.cell or ("random" if is_random(text) else "found" if text.startswith("{") else text)

    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        config, splits = self.config, self.pictures.splits
        setting = self.setting(len(splits["train"]), f", {self.model.num_parameters:,} parameters")
        protocol = (
            f"retrained from scratch; {setting}, batch {config.batch.size}, cutout {config.augment.cutout}, "
            "chosen on validation"
        )
        rows: list[Result] = []
        for split in ("val", "test"):
            scores = self.score(splits[split])
            scores["error"] = 100 - scores["accuracy"]
            count = len(splits[split])
            rows += [self.result(name, split, value, count, protocol) for name, value in scores.items()]
        return rows
