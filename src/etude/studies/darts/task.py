"""Architecture search and retraining: the steps of both phases, what is measured, what is watched.

Shape suffixes: N pictures, C channels, H W pixels, R classes.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from etude.core import randomness
from etude.core.errors import UserError
from etude.core.runtime import Runtime
from etude.core.study import Result, Task
from etude.data import pictures
from etude.data.epochs import Epochs
from etude.data.labelled import LabelledImages, stratified
from etude.metrics.proportion import half_width
from etude.nn.augment import crop_and_flip, cutout
from etude.nn.pixels import StandardizedColours
from etude.studies.darts import search
from etude.studies.darts.choice import chosen
from etude.studies.darts.genotype import KINDS, OPERATIONS, Genotype, as_text, from_text, is_random, parse
from etude.studies.darts.network import CellNetwork
from etude.studies.darts.study import DartsConfig
from etude.studies.darts.supernet import SuperNetwork

COLLAPSED = 0.5
"""The share of a normal cell's edges that are skips from which on the search is said to collapse."""

_log = logging.getLogger("etude")


def make_task(config: DartsConfig, runtime: Runtime) -> Task:
    """The task of the configuration's phase."""
    return SearchTask(config, runtime) if config.phase == "search" else RetrainTask(config, runtime)


def build_network(config: DartsConfig, genotype: Genotype | None = None) -> CellNetwork:
    """The network of a retraining's configuration.

    Args:
        config: of phase retrain.
        genotype: its cells; None: those of the configuration.
    """
    genotype = genotype or chosen(config.genotype, config.seed)
    model, auxiliary = config.model, config.retrain.auxiliary > 0
    return CellNetwork(genotype, model.channels, model.layers, model.num_classes, auxiliary=auxiliary)


def entropy_loss(logits_NR: Tensor, labels_N: Tensor) -> Tensor:
    """Cross-entropy, in float32 at least."""
    return functional.cross_entropy(logits_NR.to(torch.promote_types(logits_NR.dtype, torch.float32)), labels_N)


class _Classifies(Task):
    """What both phases do with pictures."""

    config: DartsConfig
    runtime: Runtime
    model: StandardizedColours

    def _begin(self, config: DartsConfig, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        randomness.seed_globals(config.seed, "init", 0)
        self._pictures: pictures.Pictures | None = None
        self._epochs = Epochs(runtime)

    @property
    def pictures(self) -> pictures.Pictures:
        """The data set, read once, on the device."""
        if self._pictures is None:
            config = self.config
            batch = config.batch.size if config.phase == "retrain" else 0
            read = pictures.load(config.data, config.model.num_classes, batch=batch, device=self.runtime.device)
            if 0 < config.train_images < len(read.splits["train"]):
                train = read.splits["train"]
                share = config.train_images / len(train)
                rows = stratified(train.labels_N.cpu(), (share, 1 - share), 0)[0]
                if len(rows) < batch:
                    raise UserError(
                        f"a batch of {batch} is larger than the {len(rows)} training pictures that --train-images "
                        "leaves: raise it, or give a smaller --batch.size"
                    )
                about = f"{read.about}, {len(rows):,} of {len(train):,} training pictures"
                fewer = dict(read.splits) | {"train": train.take(rows.to(self.runtime.device))}
                read = pictures.Pictures(fewer, read.classes, about, read.checksums)
            self._pictures = read
        return self._pictures

    def inputs(self, images: LabelledImages, rows: Tensor, stream: str, step: int, part: int) -> tuple[Tensor, Tensor]:
        """Augmented and standardised pictures of some rows, and their classes."""
        augment, draw = self.config.augment, self.runtime.generator(stream, step, part)
        fill = self.model.mean.round().to(torch.uint8)
        cut = crop_and_flip(images.images_NHWC[rows], fill, draw, pad=augment.pad, flip=augment.flip)
        return cutout(self.model.prepare(cut), augment.cutout, draw), images.labels_N[rows]

    def answers(self, x_NCHW: Tensor) -> Tensor:
        """The network's logits ``[N, R]``, nothing dropped or added."""
        return self.model(x_NCHW)[0]

    @torch.no_grad()
    def logits(self, images: LabelledImages) -> Tensor:
        """Logits of whole splits in evaluation mode, the work shared by the processes: float32 ``[N, R]``."""
        self.model.eval()
        mine = images.images_NHWC[self.runtime.share(len(images))]
        found = [mine.new_zeros(0, self.config.model.num_classes, dtype=torch.float32)]
        for part in mine.split(self.config.batch.evaluation) if len(mine) else ():
            found.append(self.answers(self.model.prepare(part)).float())
        return self.runtime.gather(torch.cat(found), len(images))

    def score(self, images: LabelledImages) -> dict[str, float]:
        """Loss, and accuracy in per cent."""
        logits_NR = self.logits(images)
        right = (logits_NR.argmax(1) == images.labels_N).double().mean().item()
        loss = functional.cross_entropy(logits_NR.double(), images.labels_N).item()
        return {"loss": loss, "accuracy": 100 * right}

    def data_checksums(self) -> dict[str, str]:
        return dict(self.pictures.checksums)

    def _row(self, cell: str, name: str, split: str, value: float, count: int, protocol: str) -> Result:
        share = name.endswith(("accuracy", "error"))
        width = half_width(value, count) if share else None
        about = self.pictures.about
        return Result(self.config.table, cell, name, split, value, protocol, width, "%" if share else "", about)


# --- the search ---


class SearchTask(_Classifies):
    """Alpha and the weights in turn, each on its half of the training pictures (Liu et al. 2019, algorithm 1)."""

    def __init__(self, config: DartsConfig, runtime: Runtime) -> None:
        self._begin(config, runtime)
        model, options = config.model, config.search
        self.model: SuperNetwork = SuperNetwork(
            model.channels, model.layers, model.num_classes, model.nodes, partial=options.partial,
            edge_norm=options.edge_norm, auxiliary=options.auxiliary_skip,
        )  # fmt: skip
        self.modules = {"model": self.model}
        # Its gradients are shared by `gradient`, for alpha and the weights take turns.
        runtime.prepare(self.model, channels_last=True)
        optim = config.optim
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
        self._told = False

    # --- data ---

    @property
    def halves(self) -> Mapping[str, LabelledImages]:
        """The training pictures that the weights learn from, ``train``, and those that alpha does, ``val``."""
        if self._halves is None:
            train, share, size = self.pictures.splits["train"], self.config.search.share, self.config.batch.size
            parts = stratified(train.labels_N.cpu(), (1 - share, share), 0)
            device = self.runtime.device
            found = {name: train.take(rows.to(device)) for name, rows in zip(("train", "val"), parts, strict=True)}
            for name, part in found.items():
                if len(part) < size:
                    whose = "for the weights" if name == "train" else "for alpha"
                    raise UserError(
                        f"a batch of {size} is larger than the {len(part)} training pictures {whose}: "
                        "give a smaller --batch.size, or another --search.share"
                    )
            self._halves = found
        return self._halves

    def batch(self, half: Literal["train", "val"], step: int, part: int) -> tuple[Tensor, Tensor]:
        """One part of a step's batch of a half."""
        images, epochs = self.halves[half], self._epochs if half == "train" else self._alpha_epochs
        rows = epochs.rows(step, len(images), self.config.batch.size)[part :: self.config.batch.parts]
        return self.inputs(images, rows, f"{half}/augment", step, part)

    # --- the step ---

    @property
    def skip(self) -> float:
        """The weight of the auxiliary skips: from 1 at the first step to 0 at the last."""
        return 1 - self.step / self.config.loop.max_steps if self.config.search.auxiliary_skip else 0.0

    def answers(self, x_NCHW: Tensor) -> Tensor:
        """With the auxiliary skips that the running statistics are of."""
        return self.model(x_NCHW, self.skip)[0]

    def gradient(
        self, half: Literal["train", "val"], parameters: Sequence[Tensor], step: int, told: Tensor | None = None
    ) -> list[Tensor]:
        """The gradient of the loss of a step's batch of a half, over all parts and processes.

        Args:
            half: which pictures.
            parameters: by which. Nothing is computed for the others.
            step: whose batch.
            told: ``[2]``, to which loss and share of right answers are added.
        """
        parts = self.config.batch.parts
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        for part in self.runtime.parts(parts):
            x_NCHW, labels_N = self.batch(half, step, part)
            with torch.enable_grad(), search.by_these(self.model, parameters):
                logits_NR, _ = self.model(x_NCHW, self.skip)
                loss = entropy_loss(logits_NR, labels_N)
                found = torch.autograd.grad(loss / parts, parameters, materialize_grads=True)
            for total, part_of_it in zip(totals, found, strict=True):
                total += part_of_it
            if told is not None:
                right = (logits_NR.detach().argmax(1) == labels_N).float().mean()
                told += torch.stack([loss.detach(), right])
        if self.runtime.world > 1:
            flat = self.runtime.sum(torch.cat([total.flatten() for total in totals]))
            sizes = [total.numel() for total in totals]
            # Into their own memory, for a fused optimiser takes a gradient to lie as its parameter does.
            for total, part in zip(totals, flat.split(sizes), strict=True):
                total.copy_(part.view_as(total))
        return totals

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        config, optim = self.config, self.config.optim
        if step == 0:
            self.model.set_statistics(self.halves["train"].images_NHWC)
        self.model.train()
        self.step = step
        rate = optim.rate(step, config.loop.max_steps)
        of_alpha, of_weights = (torch.zeros(2, device=self.runtime.device) for _ in range(2))

        if step >= config.search.wait:
            # Running statistics are of the weights' half alone.
            with search.kept_statistics(self.model):
                for parameter, found in zip(self.architecture, self.alpha_gradient(step, rate, of_alpha), strict=True):
                    parameter.grad = found
            self.adam.step()
            self.adam.zero_grad()

        for weight, found in zip(self.weights, self.gradient("train", self.weights, step, of_weights), strict=True):
            weight.grad = found
        norm = torch.zeros((), device=self.runtime.device)
        if optim.clip:
            norm = nn.utils.clip_grad_norm_(self.weights, optim.clip)
        self.sgd.param_groups[0]["lr"] = rate
        self.sgd.step()
        self.sgd.zero_grad()

        self.step = step + 1
        # The mean over the parts of all processes, once the loop has taken the mean over processes.
        share = self.runtime.world / config.batch.parts
        return {
            "loss": of_weights[0] * share, "accuracy": 100 * of_weights[1] * share, "alpha_loss": of_alpha[0] * share,
            "gradient": norm, "rate": torch.full_like(norm, rate),
        }  # fmt: skip

    def alpha_gradient(self, step: int, rate: float, told: Tensor) -> Sequence[Tensor]:
        """The gradient that alpha follows, of first or second order."""
        options, optim = self.config.search, self.config.optim

        def gradient(half: Literal["train", "val"], parameters: Sequence[Tensor]) -> Sequence[Tensor]:
            return self.gradient(half, parameters, step, told if half == "val" else None)

        if options.order == 1:
            return search.first_order(gradient, self.architecture)
        momenta = [self.sgd.state[weight].get("momentum_buffer") for weight in self.weights]
        return search.second_order(
            gradient, self.architecture, self.weights, rate=rate, momenta=momenta, momentum=optim.momentum,
            weight_decay=optim.weight_decay,
        )  # fmt: skip

    # --- what is watched ---

    def eigenvalue(self) -> float:
        """See `etude.studies.darts.search.largest_eigenvalue`; of the same pictures each time."""
        self.model.train()
        start = torch.randn(sum(p.numel() for p in self.architecture), generator=self.runtime.generator("eigen", 0))
        with search.kept_statistics(self.model):
            gradient = partial(self.gradient, "val", self.architecture, 0)
            return search.largest_eigenvalue(gradient, self.architecture, start)

    def evaluate(self) -> dict[str, float]:
        rows = self.score(self._some(self.pictures.splits["val"]))
        rows |= {f"alpha/{name}": value for name, value in self.score(self._some(self.halves["val"])).items()}
        cells = self.model.genotype
        mixtures = {kind: self.model.mixture(kind)[0].detach() for kind in KINDS}
        rows |= {
            "skips": float(cells.count("skip_connect")),
            "reduction_skips": float(cells.count("skip_connect", "reduction")),
            "entropy": search.entropy(mixtures["normal"]),
            "reduction_entropy": search.entropy(mixtures["reduction"]),
        }
        if self.config.search.eigenvalue or self.config.search.stop == "eigenvalue":
            rows["eigenvalue"] = self.eigenvalue()
        self.history[self.step] = {"step": float(self.step)} | rows | {"genotype": as_text(cells)}
        self._watch(rows["skips"], sum(len(node) for node in cells.normal))
        for kind, weights_EO in mixtures.items():
            for edge, of_edge in enumerate(weights_EO.tolist()):
                rows |= {f"mixture/{kind}/{edge}/{name}": w for name, w in zip(OPERATIONS, of_edge, strict=True)}
        return rows

    def _some(self, images: LabelledImages) -> LabelledImages:
        """The pictures of a split that an evaluation scores, the same each time."""
        count = self.config.watched
        if not 0 < count < len(images):
            return images
        chosen_N = torch.randperm(len(images), generator=self.runtime.generator("watched", 0))[:count]
        return images.take(chosen_N.to(self.runtime.device))

    def _watch(self, skips: float, edges: int) -> None:
        kept = [{name: value for name, value in row.items() if name != "genotype"} for row in self.rows]
        back = self.rule(kept)
        if back is not None and not self.ended:
            self.ended = True
            found = self.rows[len(self.rows) - 1 - back]
            self.history[self.step]["kept"] = found["genotype"]
            if self.runtime.is_main:
                _log.warning(
                    "the search stops by the rule '%s' at step %d; the cell of step %d is kept",
                    self.config.search.stop, self.step, found["step"],
                )  # fmt: skip
        collapsed = skips >= COLLAPSED * edges
        if collapsed and not self._told and self.runtime.is_main:
            _log.warning("the normal cell has %d skips of %d edges: the search collapses", skips, edges)
        self._told = collapsed

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The evaluations so far."""
        return [self.history[step] for step in sorted(self.history)]

    @property
    def genotype(self) -> Genotype:
        """What was found: the cell that the rule kept, or what alpha says."""
        kept = next((row["kept"] for row in self.rows if "kept" in row), None)
        if kept is None:
            return self.model.genotype
        return from_text(kept)

    def extra_state(self) -> dict[str, Any]:
        return {"history": self.history, "told": self._told, "step": self.step}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.history = {int(step): dict(row) for step, row in state["history"].items()}
        self._told, self.step = state["told"], state["step"]

    # --- the end ---

    def finish(self) -> dict[str, Any]:
        found = self.genotype
        return {
            "genotype": found.to_dict(), "skips": found.count("skip_connect"), "step": self.step,
            "pictures": self.pictures.about,
        }  # fmt: skip

    def cell(self) -> str:
        """The place in a table: the name given, or the order and the remedies."""
        options = self.config.search
        words = ["first" if options.order == 1 else "second"]
        words += [f"partial{options.partial}"] * (options.partial > 1) + ["edges"] * options.edge_norm
        words += ["auxiliary"] * options.auxiliary_skip + [f"stop-{options.stop}"] * (options.stop != "none")
        return self.config.cell or "-".join(words)

    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        config, halves = self.config, self.halves
        # Of which the auxiliary skips have their weight; weights alone do not say it.
        self.step = int(extra.get("step", self.step))
        model, num = config.model, len(halves["train"])
        epochs = config.loop.max_steps * config.batch.size / num
        protocol = (
            f"the mixture as it is, not a found cell; {self.pictures.about}; {model.layers} cells of {model.channels} "
            f"channels, up to {epochs:.3g} epochs of {num:,} pictures and {len(halves['val']):,} for alpha, batch "
            f"{config.batch.size}, last weights"
        )
        rows: list[Result] = []
        learned = self.score(halves["val"])["accuracy"]
        told = f"of the pictures that alpha learned from; {protocol}"
        rows.append(self._row(self.cell(), "search_accuracy", "alpha", learned, len(halves["val"]), told))
        measured: tuple[Literal["val", "test"], ...] = ("val", "test")
        for split in measured:
            images = self.pictures.splits[split]
            value = self.score(images)["accuracy"]
            rows.append(self._row(self.cell(), "search_accuracy", split, value, len(images), protocol))
        found = extra.get("genotype")
        cells = self.genotype if found is None else parse(found, "summary.json")
        for kind in KINDS:
            skips = float(cells.count("skip_connect", kind))
            told = f"of the found {kind} cell's edges; {protocol}"
            rows.append(self._row(self.cell(), f"{kind}_skips", "train", skips, 0, told))
        return rows


# --- the retraining ---


class RetrainTask(_Classifies):
    """A network of given cells from scratch (Liu et al. 2019, section 3.2)."""

    def __init__(self, config: DartsConfig, runtime: Runtime) -> None:
        self._begin(config, runtime)
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

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        config, optim, train = self.config, self.config.optim, self.pictures.splits["train"]
        if step == 0:
            self.model.set_statistics(train.images_NHWC)
        self.model.train()
        rate = optim.rate(step, config.loop.max_steps)
        self.optimizer.param_groups[0]["lr"] = rate
        rows, parts = self._epochs.rows(step, len(train), config.batch.size), config.batch.parts
        keep = 1 - config.retrain.drop_path * step / config.loop.max_steps
        totals = torch.zeros(2, device=self.runtime.device)
        for part in self.runtime.parts(parts, self.shared_model):
            x_NCHW, labels_N = self.inputs(train, rows[part::parts], "train/augment", step, part)
            coins = self.coins(len(x_NCHW), step, part) if config.retrain.drop_path else None
            logits_NR, named = self.shared_model(x_NCHW, keep, coins)
            loss = entropy_loss(logits_NR, labels_N)
            totals += torch.stack([loss.detach(), (logits_NR.argmax(1) == labels_N).float().mean()])
            if "auxiliary" in named:
                extra = entropy_loss(named["auxiliary"], labels_N)
                loss = loss + config.retrain.auxiliary * extra
            self.runtime.backward(loss, parts)
        norm = torch.zeros((), device=self.runtime.device)
        if optim.clip:
            norm = self.runtime.accelerator.clip_grad_norm_(self.model.parameters(), optim.clip)
        self.shared_optimizer.step()
        self.optimizer.zero_grad()
        loss, accuracy = totals * self.runtime.world / parts
        return {"loss": loss, "accuracy": 100 * accuracy, "gradient": norm, "rate": torch.full_like(loss, rate)}

    def coins(self, count: int, step: int, part: int) -> list[list[Tensor]]:
        """Of each cell, of each edge, a uniform number a picture."""
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
        config, found = self.config, self.pictures
        model, num = config.model, len(found.splits["train"])
        epochs = config.loop.max_steps * config.batch.size / num
        protocol = (
            f"retrained from scratch; {found.about}; {model.layers} cells of {model.channels} channels, "
            f"{self.model.num_parameters:,} parameters, up to {epochs:.3g} epochs of {num:,}, batch "
            f"{config.batch.size}, cutout {config.augment.cutout}, chosen on validation"
        )
        rows: list[Result] = []
        measured: tuple[Literal["val", "test"], ...] = ("val", "test")
        for split in measured:
            scores = self.score(found.splits[split])
            scores["error"] = 100 - scores["accuracy"]
            count = len(found.splits[split])
            rows += [self._row(self.cell(), name, split, value, count, protocol) for name, value in scores.items()]
        return rows
