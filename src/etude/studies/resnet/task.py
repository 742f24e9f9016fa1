"""Residual networks: the training step, the evaluation, the pictures.

Shape suffixes as in model.py.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from etude.core import randomness
from etude.core.runtime import Runtime
from etude.core.study import Result, Task
from etude.data import pictures
from etude.data.epochs import Epochs
from etude.data.labelled import LabelledImages
from etude.metrics.proportion import half_width
from etude.nn.augment import crop_and_flip
from etude.nn.fast_norms import make_norm, norm_beside
from etude.studies.resnet.cam import sheet_classes
from etude.studies.resnet.model import ResNet, gates
from etude.studies.resnet.study import ModelConfig, ResNetConfig

GATE_BINS = 10


def build_model(config: ModelConfig) -> ResNet:
    """The network of a configuration."""
    options = {"num_groups": config.groups} if config.norm == "gn" else {}
    return ResNet(
        config.n, config.num_classes, partial(make_norm, config.norm, form=config.norm_form, **options),
        shortcut=config.shortcut, width=config.width,
    )  # fmt: skip


def build_optimizer(model: nn.Module, config: Any) -> torch.optim.Optimizer:
    """SGD or Adam; the gates of batch-instance norms in a group of their own, without decay (Nam and Kim 2018)."""
    own = [norm.gate for norm in gates(model).values()]
    known = set(own)
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if p not in known], "factor": 1.0}]
    if own:
        groups.append({"params": own, "factor": config.gate_lr, "weight_decay": 0.0})
    if config.algorithm == "adam":
        return torch.optim.Adam(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)


class ResNetTask(Task):
    """Classification of pictures as section 4.2 of He et al. 2016 trains it."""

    def __init__(self, config: ResNetConfig, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        randomness.seed_globals(config.seed, "init", 0)
        self.model = build_model(config.model)
        self.modules = {"model": self.model}
        self.shared_model = runtime.prepare(self.model, channels_last=True)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.shared_optimizer = runtime.prepare_optimizer(self.optimizer)
        self.optimizers = {config.optim.algorithm: self.optimizer}
        self.gates = gates(self.model)
        self.monitor = ("accuracy", "max")
        self._pictures: pictures.Pictures | None = None
        self._epochs = Epochs(runtime)

    @property
    def pictures(self) -> pictures.Pictures:
        """The data set, read once, on the device."""
        if self._pictures is None:
            config = self.config
            batch, device = config.batch.size, self.runtime.device
            read = pictures.load(config.data, config.model.num_classes, batch=batch, device=device)
            # A class that the sheets cannot show is said before training, not after it.
            sheet_classes(read.classes, config.cam_classes)
            self._pictures = read
        return self._pictures

    @property
    def epoch_steps(self) -> int:
        return len(self.pictures.splits["train"]) // self.config.batch.size

    def batch_rows(self, step: int) -> Tensor:
        """The training pictures that a step takes: each epoch has an order of its own, and leaves a rest."""
        return self._epochs.rows(step, len(self.pictures.splits["train"]), self.config.batch.size)

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        config, train = self.config, self.pictures.splits["train"]
        if step == 0:
            self.model.set_statistics(train.images_NHWC)
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = config.optim.rate(step, self.num_steps) * group["factor"]
        rows, parts = self.batch_rows(step), config.batch.parts
        fill = self.model.mean.round().to(torch.uint8)

        def entropy(part: int) -> dict[str, Tensor]:
            mine = rows[part::parts]
            draw = self.runtime.generator("train/augment", step, part)
            augment = config.augment
            images = crop_and_flip(train.images_NHWC[mine], fill, draw, pad=augment.pad, flip=augment.flip)
            logits, _ = self.shared_model(self.model.prepare(images))
            labels = train.labels_N[mine]
            loss = functional.cross_entropy(logits.float(), labels)
            return {"loss": loss, "accuracy": (logits.argmax(1) == labels).float().mean()}

        means = self.runtime.descend(self.shared_optimizer, entropy, parts, self.shared_model)
        for norm in self.gates.values():
            norm.clamp_gate()
        return means | {"accuracy": 100 * means["accuracy"]}

    @torch.no_grad()
    def logits(self, images: LabelledImages) -> Tensor:
        """Logits of whole splits in evaluation mode, the work shared by the processes: float32 ``[N, R]``."""
        self.model.eval()
        mine = images.images_NHWC[self.runtime.share(len(images))]
        size = self.config.batch.evaluation
        rows = [self.model.linear.weight.new_zeros(0, self.config.model.num_classes)]
        for part in mine.split(size) if len(mine) else ():
            # A last batch of another size would be compiled anew.
            short = size - len(part) if self.runtime.compile else 0
            padded = torch.cat([part, part[:1].expand(short, -1, -1, -1)]) if short else part
            rows.append(self.model(self.model.prepare(padded))[0].float()[: len(part)])
        return self.runtime.gather(torch.cat(rows), len(images))

    def score(self, images: LabelledImages) -> dict[str, float]:
        """Loss, and accuracy, micro and macro F1 in per cent."""
        from sklearn.metrics import f1_score

        logits = self.logits(images)
        truth, taken = images.labels_N.cpu().numpy(), logits.argmax(1).cpu().numpy()
        options: Any = {"labels": range(self.config.model.num_classes), "zero_division": 0}
        return {
            "loss": functional.cross_entropy(logits.double(), images.labels_N).item(),
            "accuracy": float((truth == taken).mean() * 100),
            # With one label a picture, micro F1 is the accuracy; the assignment asks for both.
            "micro_f1": float(f1_score(truth, taken, average="micro", **options) * 100),
            "macro_f1": float(f1_score(truth, taken, average="macro", **options) * 100),
        }

    def evaluate(self) -> dict[str, float]:
        train = self.pictures.splits["train"]
        chosen = torch.randperm(len(train), generator=self.runtime.generator("curve", 0))[: self.config.curve_images]
        on_train = self.score(train.take(chosen.to(self.runtime.device)))
        rows = self.score(self.pictures.splits["val"]) | {f"fit/{name}": value for name, value in on_train.items()}
        for name, norm in self.gates.items():
            share = norm.gate.detach().float().cpu().histc(GATE_BINS, 0, 1) / norm.num_channels
            rows |= {f"gates/{name}/{number}": value for number, value in enumerate(share.tolist())}
        return rows

    def finish(self) -> dict[str, Any]:
        return {"classes": list(self.pictures.classes), "pictures": self.pictures.about}

    def cell(self) -> str:
        """The place in the published table that the run belongs to."""
        norm, config = self.config.model.norm, self.config
        layers = f"l{self.model.num_layers}"
        cells = {"norms": norm, "norms-tuned": norm, "batch-size": f"{norm}_{config.batch.size}", "depth": layers}
        return (cells | {"best": "best"}).get(config.table, f"{layers}-{norm}")

    def own_parts(self) -> list[str]:
        """What a user's own norm computes beside the built-in ones."""
        name = self.config.model.norm
        return [norm_beside(name)] if ".py:" in name else []

    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        config, found, optim = self.config, self.pictures, self.config.optim
        num = len(found.splits["train"])
        protocol = (
            f"{found.about}; n = {config.model.n}, {config.model.norm}; {optim.algorithm.upper()} lr {optim.lr:g} "
            f"{optim.schedule}, batch {config.batch.size}, up to {self.num_steps * config.batch.size / num:.0f} "
            f"epochs of {num:,}, chosen on validation"
        )
        rows: list[Result] = []
        for split, images in found.splits.items():
            scores = self.score(images)
            width = half_width(scores["accuracy"], len(images))
            scores["error"] = 100 - scores["accuracy"]
            for metric, value in scores.items():
                half = width if metric in ("accuracy", "error", "micro_f1") else None
                unit = "" if metric == "loss" else "%"
                rows.append(Result(config.table, self.cell(), metric, split, value, protocol, half, unit, found.about))
        return rows

    def data_checksums(self) -> dict[str, str]:
        return dict(self.pictures.checksums)

    def inventory(self) -> Mapping[str, Any]:
        return self.pictures.inventory


make_task = ResNetTask
