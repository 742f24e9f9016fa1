"""The search: alpha and the weights learn in turn; what is measured, what is watched (Liu et al. 2019, section 2.3).

Shape suffixes: N pictures, C channels, H W pixels, R classes, E edges of a cell, O operations.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from etude.core.errors import UserError
from etude.core.runtime import Runtime
from etude.core.study import Result
from etude.data.epochs import Epochs
from etude.data.labelled import LabelledImages, stratified
from etude.studies.darts import nb201, search
from etude.studies.darts.cell_task import CellTask, entropy_loss
from etude.studies.darts.genotype import Genotype
from etude.studies.darts.nb201 import BenchCell, BenchSuperNetwork
from etude.studies.darts.study import DartsConfig
from etude.studies.darts.supernet import SuperNetwork

Half = Literal["train", "val"]
COLLAPSED = 0.5
"""The share of a normal cell's edges that are skips from which on the search is said to collapse."""

_log = logging.getLogger("etude")


def build_supernet(config: DartsConfig) -> SuperNetwork | BenchSuperNetwork:
    """The network of a search's configuration."""
    model, options = config.model, config.search
    if config.space == "nb201":
        return BenchSuperNetwork(model.channels, model.layers, model.num_classes)
    return SuperNetwork(
        model.channels, model.layers, model.num_classes, model.nodes, partial=options.partial,
        edge_norm=options.edge_norm, auxiliary=options.auxiliary_skip, shared=options.mixture == "shared",
    )  # fmt: skip


def _follow(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor], gradients: Sequence[Tensor], clip: float = 0.0
) -> Tensor:
    """One optimiser step along gradients, cut to the length ``clip`` if above 0; returns the length before."""
    for parameter, found in zip(parameters, gradients, strict=True):
        parameter.grad = found
    norm = nn.utils.clip_grad_norm_(parameters, clip or float("inf"))
    optimizer.step()
    optimizer.zero_grad()
    return norm


class SearchTask(CellTask):
    """Alpha and the weights in turn, each on its half of the training pictures (Liu et al. 2019, algorithm 1)."""

    def __init__(self, config: DartsConfig, runtime: Runtime) -> None:
        super().__init__(config, runtime)
        optim, options = config.optim, config.search
        self.model: SuperNetwork | BenchSuperNetwork = build_supernet(config)
        self.modules = {"model": self.model}
        # Its gradients are shared by `gradient`, for alpha and the weights take turns.
        runtime.prepare(self.model, channels_last=True)
        self.weights, self.architecture = self.model.weights, self.model.architecture
        self.sgd = torch.optim.SGD(
            self.weights, optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
        )
        self.adam = torch.optim.Adam(
            self.architecture, options.lr, betas=(0.5, 0.999), weight_decay=options.weight_decay, fused=True
        )
        self.optimizers = {"sgd": self.sgd, "adam": self.adam}
        self.rule = search.make_rule(options.stop, options.most_skips, eigenvalue=options.eigenvalue)
        self.history: dict[int, dict[str, Any]] = {}
        self.step = 0
        self._halves: Mapping[str, LabelledImages] | None = None
        self._alpha_epochs = Epochs(runtime, stream="alpha/order")
        self._warned = False

    # --- data ---

    @property
    def halves(self) -> Mapping[str, LabelledImages]:
        """The training pictures that the weights learn from, ``train``, and those that alpha does, ``val``."""
        if self._halves is None:
            train, share, size = self.pictures.splits["train"], self.config.search.share, self.config.batch.size
            weights, alpha = stratified(train.labels_N.cpu(), (1 - share, share), 0)
            for whose, rows in (("the weights", weights), ("alpha", alpha)):
                if len(rows) < size:
                    raise UserError(
                        f"a batch of {size} is larger than the {len(rows)} training pictures for {whose}: "
                        "give a smaller --batch.size, or another --search.share"
                    )
            device = self.runtime.device
            self._halves = {"train": train.take(weights.to(device)), "val": train.take(alpha.to(device))}
        return self._halves

    @property
    def epoch_steps(self) -> int:
        return len(self.halves["train"]) // self.config.batch.size

    def batch(self, half: Half, step: int, part: int) -> tuple[Tensor, Tensor]:
        """Inputs ``[N, C, H, W]`` and classes ``[N]`` of one part of a step's batch of a half."""
        images, epochs = self.halves[half], self._epochs if half == "train" else self._alpha_epochs
        rows = epochs.rows(step, len(images), self.config.batch.size)[part :: self.config.batch.parts]
        return self.inputs(images, rows, f"{half}/augment", step, part)

    # --- the step ---

    @property
    def skip(self) -> float:
        """The weight of the auxiliary skips: from 1 at the first step to 0 at the last."""
        return 1 - self.step / self.num_steps if self.config.search.auxiliary_skip else 0.0

    def answers(self, x_NCHW: Tensor) -> Tensor:
        """The logits ``[N, R]``, with the auxiliary skips under which the running statistics were gathered."""
        return self.model(x_NCHW, self.skip)[0]

    def gradient(
        self, half: Half, parameters: Sequence[Tensor], step: int, noise: Mapping[str, Tensor] | None = None
    ) -> tuple[list[Tensor], Mapping[str, Tensor]]:
        """The gradient of the loss of a step's batch of a half, over all parts and processes.

        Args:
            half: the half of the pictures.
            parameters: alpha, the weights or both; nothing is computed for the others.
            step: the step whose batch is taken.
            noise: by kind of cell, what is added to the operations' weights.

        Returns:
            The gradient by each parameter, and the means of `Runtime.accumulate`: ``loss`` and ``accuracy``, a share.
        """

        def entropy(part: int) -> dict[str, Tensor]:
            x_NCHW, labels_N = self.batch(half, step, part)
            logits_NR, _ = self.model(x_NCHW, self.skip, noise)
            accuracy = (logits_NR.argmax(1) == labels_N).float().mean()
            return {"loss": entropy_loss(logits_NR, labels_N), "accuracy": accuracy}

        # Added to, not taken over: a fused optimiser takes a gradient to lie in memory as its parameter does.
        found = [torch.zeros_like(parameter) for parameter in parameters]
        for parameter, total in zip(parameters, found, strict=True):
            parameter.grad = total
        with torch.enable_grad(), search.by_these(self.model, parameters):
            means = self.runtime.accumulate(entropy, self.config.batch.parts)
        for parameter in parameters:
            parameter.grad = None
        if self.runtime.world > 1:
            flat = self.runtime.sum(torch.cat([total.flatten() for total in found])) / self.runtime.world
            for total, mean in zip(found, flat.split([total.numel() for total in found]), strict=True):
                total.copy_(mean.view_as(total))
        return found, means

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        config, optim = self.config, self.config.optim
        if step == 0:
            self.model.set_statistics(self.halves["train"].images_NHWC)
        self.model.train()
        self.step, rate = step, optim.rate(step, self.num_steps)

        alpha_loss = torch.zeros((), device=self.runtime.device)
        if step >= config.search.wait:
            # Running statistics are of the weights' half alone.
            with search.kept_statistics(self.model):
                found, alpha_loss = self.alpha_gradient(step, rate)
            _follow(self.adam, self.architecture, self.decayed(found))

        found, means = self.gradient("train", self.weights, step, self.noise())
        self.sgd.param_groups[0]["lr"] = rate
        norm = _follow(self.sgd, self.weights, found, optim.clip)

        self.step = step + 1
        return {
            "loss": means["loss"], "accuracy": 100 * means["accuracy"], "alpha_loss": alpha_loss, "gradient": norm,
            "rate": torch.full_like(norm, rate),
        }  # fmt: skip

    def alpha_gradient(self, step: int, rate: float) -> tuple[Sequence[Tensor], Tensor]:
        """The gradient that alpha follows, of first or second order, and the loss on alpha's half."""
        optim, losses = self.config.optim, dict[str, Tensor]()

        def gradient(half: Half, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
            found, means = self.gradient(half, parameters, step)
            losses[half] = means["loss"]
            return found

        if self.config.search.order == 1:
            return search.first_order(gradient, self.architecture), losses["val"]
        found = search.second_order(
            gradient, self.architecture, self.weights, rate=rate, momentum=optim.momentum,
            momenta=[self.sgd.state[weight].get("momentum_buffer") for weight in self.weights],
            weight_decay=optim.weight_decay,
        )  # fmt: skip
        return found, losses["val"]

    def decayed(self, of_architecture: Sequence[Tensor]) -> Sequence[Tensor]:
        r"""The gradient of alpha with that of $\lambda$ times the mean over edges of $\log \sum_o \exp \alpha_o$ added,
        where $\lambda$ rises from 0 to ``search.beta`` (beta decay; Ye et al. 2022, eq. 11 and 13)."""
        rate = self.config.search.beta * self.step / self.num_steps
        if not rate:
            return of_architecture
        alphas = set(map(id, self.model.alpha.values()))
        return [
            found + rate * alpha.detach().softmax(1) / len(alpha) if id(alpha) in alphas else found
            for found, alpha in zip(of_architecture, self.architecture, strict=True)
        ]

    def noise(self) -> Mapping[str, Tensor] | None:
        """The noise on the operations' weights while the weights learn: uniform, its largest value rising to
        ``search.perturb`` (Chen and Hsieh 2020, SDARTS-RS, eq. 6)."""
        largest = self.config.search.perturb * (self.step + 1) / self.num_steps
        if not largest:
            return None
        draw = self.runtime.generator("perturb", self.step)
        return {
            kind: largest * (2 * torch.rand(alpha.shape, generator=draw) - 1).to(alpha)
            for kind, alpha in self.model.alpha.items()
        }

    # --- what is watched ---

    def eigenvalue(self) -> float:
        """The largest eigenvalue by alpha, on the same pictures each time; see `search.largest_eigenvalue`."""
        self.model.train()
        start = torch.randn(sum(p.numel() for p in self.architecture), generator=self.runtime.generator("eigen", 0))
        with search.kept_statistics(self.model):
            return search.largest_eigenvalue(
                lambda: self.gradient("val", self.architecture, 0)[0], self.architecture, start
            )

    def evaluate(self) -> dict[str, float]:
        rows = self.score(self._some(self.pictures.splits["val"]))
        rows |= {f"alpha/{name}": value for name, value in self.score(self._some(self.halves["val"])).items()}
        cells, kinds = self.model.genotype, self.model.kinds
        mixtures = {kind: self.model.mixture(kind)[0].detach() for kind in kinds}
        for kind, prefix in zip(kinds, ("", "reduction_"), strict=False):
            rows[f"{prefix}skips"] = float(cells.count("skip_connect", kind))
            rows[f"{prefix}entropy"] = search.entropy(mixtures[kind])
        if self.config.search.eigenvalue or self.config.search.stop == "eigenvalue":
            rows["eigenvalue"] = self.eigenvalue()
        rows |= self.looked_up(cells)
        self.history[self.step] = {"step": float(self.step)} | rows | {"genotype": cells.text}
        self._watch(rows["skips"], self.edges)
        for kind, weights_EO in mixtures.items():
            for edge, of_edge in enumerate(weights_EO.tolist()):
                names = zip(self.model.operations, of_edge, strict=True)
                rows |= {f"mixture/{kind}/{edge}/{name}": weight for name, weight in names}
        return rows

    @property
    def edges(self) -> int:
        """The number of edges of a (normal) cell that is found."""
        return 2 * self.config.model.nodes

    def looked_up(self, cells: Any) -> dict[str, float]:
        """The numbers that a table has of the cell that is chosen now; no table has those of the published space."""
        return {}

    def _some(self, images: LabelledImages) -> LabelledImages:
        """The pictures of a split that an evaluation scores, the same each time."""
        count = self.config.watched
        if not 0 < count < len(images):
            return images
        chosen_N = torch.randperm(len(images), generator=self.runtime.generator("watched", 0))[:count]
        return images.take(chosen_N.to(self.runtime.device))

    def _watch(self, skips: float, edges: int) -> None:
        """End the search where its rule says so, and warn where it begins to collapse."""
        measured = [{name: value for name, value in row.items() if name != "genotype"} for row in self.rows]
        back = self.rule(measured)
        if back is not None and not self.ended:
            self.ended, kept = True, self.rows[-1 - back]
            self.history[self.step]["kept"] = kept["genotype"]
            self._warn(
                f"the search stops by the rule '{self.config.search.stop}' at step {self.step}; "
                f"the cell of step {kept['step']:.0f} is kept"
            )
        collapsed = skips >= COLLAPSED * edges
        if collapsed and not self._warned:
            self._warn(f"the normal cell has {skips:.0f} skips of {edges} edges: the search collapses")
        self._warned = collapsed

    def _warn(self, line: str) -> None:
        if self.runtime.is_main:
            _log.warning("%s", line)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The evaluations so far."""
        return [self.history[step] for step in sorted(self.history)]

    @property
    def genotype(self) -> Genotype | BenchCell:
        """The found cells: those that the rule kept, or those that alpha chooses."""
        kept = next((row["kept"] for row in self.rows if "kept" in row), None)
        return self.model.genotype if kept is None else self.model.read(kept)

    def extra_state(self) -> dict[str, Any]:
        return {"history": self.history, "told": self._warned, "step": self.step}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.history = {int(step): dict(row) for step, row in state["history"].items()}
        self._warned, self.step = state["told"], state["step"]

    # --- the end ---

    def finish(self) -> dict[str, Any]:
        found = self.genotype
        return {
            "genotype": found.to_dict(), "skips": found.count("skip_connect"), "step": self.step,
            "pictures": self.pictures.about,
        }  # fmt: skip

    def cell(self) -> str:
        """The run's place in a table: the name given, or the order and the remedies."""
        options = self.config.search
        words = ["first" if options.order == 1 else "second"]
        words += [f"partial{options.partial}"] * (options.partial > 1) + ["edges"] * options.edge_norm
        words += [f"beta{options.beta:g}"] * (options.beta > 0) + [f"perturb{options.perturb:g}"] * (
            options.perturb > 0
        )
        words += ["auxiliary"] * options.auxiliary_skip + [f"stop-{options.stop}"] * (options.stop != "none")
        return self.config.cell or "-".join(words)

    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        halves = self.halves
        # Of which the auxiliary skips have their weight; weights alone do not say it.
        self.step = int(extra.get("step", self.step))
        protocol = (
            f"the mixture as it is, not a found cell; {self.setting(len(halves['train']))} pictures and "
            f"{len(halves['val']):,} for alpha, batch {self.config.batch.size}, last weights"
        )
        rows: list[Result] = []
        for split, images, note in (
            ("alpha", halves["val"], "of the pictures that alpha learned from; "),
            ("val", self.pictures.splits["val"], ""),
            ("test", self.pictures.splits["test"], ""),
        ):
            value = self.score(images)["accuracy"]
            rows.append(self.result("search_accuracy", split, value, len(images), note + protocol))
        cells = self.genotype
        if "genotype" in extra:
            cells = self.model.read(extra["genotype"].get(nb201.KIND) or json.dumps(extra["genotype"]))
        for kind in self.model.kinds:
            skips = float(cells.count("skip_connect", kind))
            about = f"of the found {kind} cell's edges; {protocol}"
            rows.append(self.result(f"{kind}_skips", "train", skips, 0, about))
        return rows
