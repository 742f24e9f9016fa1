"""Prototypical Networks: the training step and the evaluation.

Shape suffixes as in model.py and episodes.py.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from etude.core import randomness
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder
from etude.core.runtime import Runtime
from etude.core.study import Result, Task
from etude.data import omniglot
from etude.data.omniglot import CharacterPool
from etude.nn.plugin import resolve
from etude.nn.user_part import beside, tried, tried_module
from etude.studies.protonet.episodes import Accuracy, draw_episode, nearest_distances, score_pool
from etude.studies.protonet.model import DISTANCES, Conv4, Distance, episode_loss
from etude.studies.protonet.study import ModelConfig, ProtonetConfig

# A threshold for unknown classes keeps this share of the known queries of the validation split.
CROSSED = (1, 5)
"""Shots of the test that a network of other shots is scored at, too (Snell et al. 2017, section 2.6)."""
KNOWN_SHARE = 0.95


def build_encoder(config: ModelConfig, size: int) -> nn.Module:
    """The embedding network of a configuration; a user's own is called once to check its interface."""
    if config.encoder == "conv4":
        return Conv4(width=config.width)
    kind = resolve(config.encoder, {"conv4": Conv4}, "encoder")
    encoder, _ = tried_module(f"encoder {config.encoder}", kind, [torch.zeros(2, 1, size, size)], ([2, "D"], dict))
    if not any(p.requires_grad for p in encoder.parameters()):
        raise UserError(f"the encoder {config.encoder} has no parameters to train: give it a layer that has some")
    return encoder


def build_distance(config: ModelConfig) -> Distance:
    """The distance of a configuration; a user's own is called once to check its interface."""
    distance = resolve(config.distance, DISTANCES, "distance")
    if config.distance in DISTANCES:
        return distance
    zeros, ones = torch.zeros(3, 4), torch.ones(2, 4)
    tried(f"distance {config.distance}", "[3, 4], [2, 4]", lambda: distance(zeros, ones), [3, 2])

    def of_every_episode(query: Tensor, proto: Tensor) -> Tensor:
        # A user's own need not know of a dimension of episodes.
        if query.ndim == 2:
            return distance(query, proto)
        return torch.stack([of_every_episode(q, p) for q, p in zip(query, proto, strict=True)])

    return of_every_episode


@torch.no_grad()
def embed(encoder: nn.Module, images_NHW: Tensor, batch: int = 512) -> Tensor:
    """Embed uint8 pictures ``[N, H, W]``, ink bright, in evaluation mode: float32 ``[N, D]``."""
    was_training = encoder.training
    encoder.eval()
    rows = [encoder(to_input(part))[0].float() for part in images_NHW.split(batch)]
    encoder.train(was_training)
    return torch.cat(rows)


def to_input(images_NHW: Tensor) -> Tensor:
    """uint8 pictures ``[N, H, W]`` as the network's input: float32 ``[N, 1, H, W]`` in [0, 1], channels last."""
    # With one channel both layouts have the same strides in memory; say which one is meant.
    x_NHWC = images_NHW.float().div_(255)[..., None]
    return x_NHWC.permute(0, 3, 1, 2)


class ProtonetTask(Task):
    """Algorithm 1 of Snell et al. 2017 on Omniglot."""

    def __init__(self, config: ProtonetConfig, runtime: Runtime) -> None:
        self.config, self.runtime = config, runtime
        randomness.seed_globals(config.seed, "init", 0)
        self.encoder = build_encoder(config.model, config.data.size)
        self.distance = build_distance(config.model)
        self.modules = {"encoder": self.encoder}
        self.shared_encoder = runtime.prepare(self.encoder, channels_last=True)
        self.adam = torch.optim.Adam(self.encoder.parameters(), lr=config.optim.lr, fused=True)
        self.shared_adam = runtime.prepare_optimizer(self.adam)
        self.optimizers = {"adam": self.adam}
        # Classes that are trained on choose nothing.
        if config.data.train_split == "train":
            self.monitor = (f"accuracy_{config.evaluation.ways[-1]}way", "max")
        self._pools: dict[str, CharacterPool] = {}

    def _begin(self) -> None:
        """Before the first step: the weights to start from, and faults that hours of training should not find."""
        path = self.config.selected_run
        if path and RunFolder.open(Path(path)).summary is None:
            raise UserError(f"{path} has not ended: `etude resume {path}` first, then train on from it")
        if not self.config.warm_start:
            return
        if not path:
            raise UserError("warm_start needs --selected-run, the run to start from")
        checkpoints = RunFolder.open(Path(path)).checkpoints()
        step = checkpoints.best_step
        if step is None:
            raise UserError(f"{path} has no best checkpoint to start from: choose a run that validated")
        checkpoints.load_weights(step, self.modules, "protonet")

    def pool(self, split: omniglot.Split) -> CharacterPool:
        """A split's characters, read once, the drawings on the device."""
        if split not in self._pools:
            data = self.config.data
            if data.source == "generated":
                read = omniglot.generated(split, size=data.size)
            else:
                read = omniglot.load(split, size=data.size, resize=data.resize)
            self._pools[split] = replace(read, images_CNHW=read.images_CNHW.to(self.runtime.device))
        return self._pools[split]

    def train_step(self, step: int) -> Mapping[str, Tensor]:
        config = self.config.episodes
        if step == 0:
            self._begin()
        pool = self.pool(self.config.data.train_split)
        self.encoder.train()
        self.adam.param_groups[0]["lr"] = self.config.optim.rate(step, self.num_steps)

        def episode(part: int) -> dict[str, Tensor]:
            draw = self.runtime.generator("train/episode", step, part)
            drawn = draw_episode(len(pool), omniglot.NUM_DRAWINGS, config.way, config.shot + config.query, draw)
            classes_N1, drawings_NK = (randomness.upload(rows, self.runtime.device) for rows in drawn)
            z_ND, _ = self.shared_encoder(to_input(pool.images_CNHW[classes_N1, drawings_NK].flatten(0, 1)))
            z_NKD = z_ND.float().unflatten(0, (config.way, -1))
            support_NKD, query_NQD = z_NKD.split([config.shot, config.query], dim=1)
            loss, accuracy = episode_loss(support_NKD, query_NQD, self.distance, self.config.model.temperature)
            return {"loss": loss, "accuracy": accuracy}

        means = self.runtime.descend(self.shared_adam, episode, config.per_step, self.shared_encoder)
        return means | {"accuracy": 100 * means["accuracy"]}

    def embed_pool(self, split: omniglot.Split) -> Tensor:
        """The embedding of every drawing of a split, the work shared by the processes: ``[C, P, D]``."""
        images_NHW = self.pool(split).images_CNHW.flatten(0, 1)
        mine = embed(self.encoder, images_NHW[self.runtime.share(len(images_NHW))])
        return self.runtime.gather(mine, len(images_NHW)).unflatten(0, (-1, omniglot.NUM_DRAWINGS))

    def score(
        self,
        z_CPD: Tensor,
        split: omniglot.Split,
        stream: str,
        way: int,
        num_episodes: int,
        *,
        within: bool = False,
        shot: int = 0,
    ) -> Accuracy:
        """Accuracy over random episodes of an embedded split, at the configuration's queries, and at its shots if 0."""
        shot = shot or self.config.episodes.shot
        return score_pool(
            z_CPD, self.pool(split).groups_C, self.distance, self.runtime.generator(f"{split}/{stream}", way), way=way,
            shot=shot, query=min(self.num_queries, omniglot.NUM_DRAWINGS - shot), num_episodes=num_episodes,
            within=within,
            temperature=self.config.model.temperature,
        )  # fmt: skip

    @property
    def num_queries(self) -> int:
        """The queries of a class in an evaluation: no more than the shots leave."""
        return min(self.config.evaluation.query, omniglot.NUM_DRAWINGS - self.config.episodes.shot)

    def evaluate(self) -> dict[str, float]:
        if self.config.data.train_split == "trainval":
            return {}
        z_CPD = self.embed_pool("val")
        config = self.config.evaluation
        found = {way: self.score(z_CPD, "val", "episodes", way, config.val_episodes) for way in config.ways}
        return {f"accuracy_{way}way": score.mean for way, score in found.items()} | {
            f"loss_{way}way": score.loss for way, score in found.items()
        }

    def finish(self) -> dict[str, Any]:
        return {"unknown": self._thresholds()}

    def _thresholds(self) -> dict[str, Any]:
        """The distance, by count of shots, beyond which a query's class is called unknown."""
        if self.config.data.train_split == "trainval":
            if not self.config.selected_run:
                return {}
            summary = RunFolder.open(Path(self.config.selected_run)).summary
            assert summary is not None, "the selected run had ended when this one began"
            return summary["extra"]["unknown"]
        z_CPD = self.embed_pool("val")
        table: dict[str, Any] = {}
        for shot in (1, 2, 3, 4, 5, 10):
            known, unknown = self._nearest(z_CPD, "val", shot)
            # quantile() takes at most 16 million values.
            threshold = known.sort().values[int(KNOWN_SHARE * len(known))].item()
            found = (unknown > threshold).float().mean().item()
            table[str(shot)] = {"distance": threshold, "known_kept": KNOWN_SHARE, "unknown_found": found}
        return table

    def _nearest(self, z_CPD: Tensor, split: omniglot.Split, shot: int) -> tuple[Tensor, Tensor]:
        """The distances of known and unknown queries in a thousand episodes of five ways."""
        draw = self.runtime.generator(f"{split}/unknown", shot)
        return nearest_distances(z_CPD, self.distance, draw, way=5, shot=shot, num_episodes=1000)

    def own_parts(self) -> list[str]:
        """What a user's own distance computes beside the built-in ones."""
        name, draw = self.config.model.distance, torch.Generator().manual_seed(0)
        if name in DISTANCES:
            return []
        query_QD, proto_ND = torch.randn(7, 16, generator=draw), torch.randn(5, 16, generator=draw)
        others = {kind: lambda made=made: made(query_QD, proto_ND) for kind, made in DISTANCES.items()}
        return [beside(f"distance {name}", lambda: self.distance(query_QD, proto_ND), others)]

    def results(self, extra: Mapping[str, Any]) -> list[Result]:
        config, shot = self.config.evaluation, self.config.episodes.shot
        z_CPD = self.embed_pool("test")
        split = self.config.data.train_split
        rows: list[Result] = []
        for way in config.ways:
            for experiment, count, within, what in (
                ("fewshot", config.episodes, False, "random test episodes"),
                ("pool", config.pool_episodes, False, "random test episodes"),
                ("within", config.pool_episodes, True, "episodes of one alphabet at one rotation each"),
            ):
                if within and int(self.pool("test").groups_C.bincount().max()) < way:
                    continue
                score = self.score(z_CPD, "test", experiment, way, count, within=within)
                trained = f"{self.num_queries} queries a class, trained on {split} with {shot} shot(s)"
                rows.append(
                    Result(
                        experiment, f"w{way}s{shot}", "accuracy", "test", score.mean, f"{count:,} {what}, {trained}",
                        score.half_width, "%", split,
                    )
                )  # fmt: skip
            for other in CROSSED:
                if other == shot:
                    continue
                score = self.score(z_CPD, "test", f"crossed-{other}", way, config.episodes, shot=other)
                protocol = (
                    f"{config.episodes:,} random test episodes of {other} shot(s), trained on {split} with {shot}"
                )
                rows.append(
                    Result(
                        "crossed", f"w{way}s{other}", "accuracy", "test", score.mean, protocol, score.half_width, "%",
                        split,
                    )
                )  # fmt: skip
        rows += self._unknown_results(z_CPD, extra.get("unknown", {}))
        return rows

    def _unknown_results(self, z_CPD: Tensor, thresholds: Mapping[str, Any]) -> list[Result]:
        """The shares of test queries that the thresholds of validation keep and find unknown."""
        shot = self.config.episodes.shot
        if str(shot) not in thresholds:
            return []
        known, unknown = self._nearest(z_CPD, "test", shot)
        threshold = thresholds[str(shot)]["distance"]
        protocol = f"5 ways, threshold that keeps {KNOWN_SHARE:.0%} of the known queries of validation"
        shares = {"known_kept": known <= threshold, "unknown_found": unknown > threshold}
        split = self.config.data.train_split
        return [
            Result("unknown", f"w5s{shot}", name, "test", share.float().mean().item() * 100, protocol, None, "%", split)
            for name, share in shares.items()
        ]

    def data_checksums(self) -> dict[str, str]:
        if self.config.data.source == "generated":
            return {"generated": "strokes, seeds 0 to 3"}
        return {f"omniglot/{name}": digest for name, digest in omniglot.checksums().items()}


make_task = ProtonetTask
