"""etude's Prototypical Networks beside easyfsl's: episodes per second on the CPU.

Command: ``uv run --extra bench python benchmarks/protonet.py``. The protocol is in benchmarks/README.md.
"""

import contextlib
import dataclasses
import io
import math
import random
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Sampler

import side_by_side
from etude.core import randomness
from etude.core.config import LoopConfig
from etude.core.errors import UserError
from etude.core.files import write_json
from etude.core.runtime import Runtime
from etude.data.omniglot import NUM_DRAWINGS, CharacterPool
from etude.studies.protonet.episodes import Accuracy, draw_episode, score_pool
from etude.studies.protonet.model import Conv4, prototypes
from etude.studies.protonet.study import DataConfig, EpisodeConfig, ProtonetConfig
from etude.studies.protonet.task import ProtonetTask, embed, to_input
from side_by_side import ETUDE, Bar, Block, Side, interleave, lead, median_rate

try:
    from easyfsl.datasets import FeaturesDataset
    from easyfsl.methods import PrototypicalNetworks
    from easyfsl.samplers import TaskSampler
    from easyfsl.utils import evaluate, predict_embeddings
except ImportError:
    sys.exit("easyfsl is not installed: `uv run --extra bench python benchmarks/protonet.py`")

TRAINING_BAR, EVALUATION_BAR = 1.3, 20.0
NUM_PARAMETERS = 111_936
QUERY = 15
# The published number of test episodes, and that of etude's sharper estimate.
FEW, MANY = 1000, 20_000


@dataclass(frozen=True)
class Options:
    json: Path | None = None
    """Where to write every measurement."""
    quick: bool = False
    """Seconds, on the generated twin: shows that both sides run and agree; its speeds mean nothing."""
    threads: int = torch.get_num_threads()
    """Threads of both sides."""
    repeats: int | None = None
    """Blocks of each side; 5, or 1 when quick."""


@dataclass(frozen=True)
class Setting:
    """A kind of test episode, and how many of them a block has on each side."""

    way: int
    shot: int
    etude: int
    pictures: int
    """easyfsl's, from pictures."""
    embedded: int
    """easyfsl's, from embeddings that were extracted once."""

    @property
    def name(self) -> str:
        return f"{self.way}-way {self.shot}-shot"


@dataclass(frozen=True)
class Sizes:
    repeats: int
    train_episodes: int
    settings: tuple[Setting, ...]
    same_episodes: int


FULL = Sizes(5, 20, (Setting(5, 1, MANY, 100, 400), Setting(20, 5, MANY, 30, 100)), 20)
QUICK = Sizes(1, 1, (Setting(5, 1, 500, 8, 20), Setting(20, 5, 200, 2, 4)), 2)


@dataclass(frozen=True)
class Episodes(Block):
    """A block of test or training episodes."""

    one_off: float = 0.0
    """Seconds of work that does not grow with the number of episodes."""
    accuracy: float = math.nan

    def among(self, episodes: float) -> Block:
        """The block with its part of the one-off work where ``episodes`` of them share it."""
        return Block(self.count, self.seconds + self.one_off * self.count / episodes)

    def as_json(self, unit: str) -> dict[str, float]:
        return super().as_json(unit) | {"one_off_seconds": self.one_off}


def shared(blocks: Sequence[Episodes], episodes: float) -> list[Block]:
    """The blocks where ``episodes`` episodes share the one-off work."""
    return [block.among(episodes) for block in blocks]


# easyfsl's side


def admit_data_source() -> None:
    """easyfsl 1.5.0 gives its sampler's base class an argument that PyTorch has dropped; take it."""
    if Sampler.__init__ is object.__init__:
        Sampler.__init__ = lambda self, data_source=None: None


class EmbeddingOnly(nn.Module):
    """etude's network as easyfsl wants it: pictures to embeddings."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.encoder(x_NCHW)[0]


def plain_network() -> nn.Sequential:
    """The same network as PyTorch's documentation would write it."""
    layers: list[nn.Module] = []
    for channels in (1, 64, 64, 64):
        layers += [nn.Conv2d(channels, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten())


def in_memory(tensors: Tensor, pool: CharacterPool) -> FeaturesDataset:
    """Rows of one tensor, class by class, as easyfsl's own in-memory data set."""
    labels = [number for number in range(len(pool)) for _ in range(NUM_DRAWINGS)]
    return FeaturesDataset(labels, tensors, list(pool.names))


def episodes_of(data: FeaturesDataset, way: int, shot: int, query: int, count: int) -> DataLoader:
    sampler = TaskSampler(data, n_way=way, n_shot=shot, n_query=query, n_tasks=count)
    return DataLoader(data, batch_sampler=sampler, num_workers=0, collate_fn=sampler.episodic_collate_fn)


def train_easyfsl(model: PrototypicalNetworks, adam: torch.optim.Optimizer, episodes: Iterable[Any]) -> None:
    model.train()
    for support, support_labels, query, query_labels, _ in episodes:
        adam.zero_grad()
        model.process_support_set(support, support_labels)
        loss = functional.cross_entropy(model(query), query_labels)
        loss.backward()
        adam.step()
        loss.item()


# Training


def training_sides(task: ProtonetTask, train: FeaturesDataset, count: int) -> dict[str, Side[Episodes]]:
    """etude, easyfsl as its tutorial trains, and what becomes of easyfsl when single things are changed."""
    episode = task.config.episodes

    def etude() -> Side[Episodes]:
        steps = iter(range(10**9))

        def run(repeat: int) -> Episodes:
            start = time.perf_counter()
            for step in (next(steps) for _ in range(count)):
                randomness.seed_globals(task.config.seed, "step", step)
                task.train_step(step)["loss"].item()
            return Episodes(count, time.perf_counter() - start)

        return run

    def easyfsl(network: nn.Module, *, fused: bool | None = None, loading: bool = True) -> Side[Episodes]:
        assert sum(p.numel() for p in network.parameters()) == NUM_PARAMETERS
        model = PrototypicalNetworks(network)
        adam = torch.optim.Adam(model.parameters(), lr=task.config.optim.lr, fused=fused)

        def run(repeat: int) -> Episodes:
            random.seed(repeat)
            loader: Iterable[Any] = episodes_of(train, episode.way, episode.shot, episode.query, count)
            if not loading:
                loader = list(loader)
            start = time.perf_counter()
            train_easyfsl(model, adam, loader)
            return Episodes(count, time.perf_counter() - start)

        return run

    return {
        ETUDE: etude(),
        "easyfsl": easyfsl(plain_network()),
        "easyfsl, loading not counted": easyfsl(plain_network(), loading=False),
        "easyfsl, etude's block order": easyfsl(EmbeddingOnly(Conv4())),
        "easyfsl, and channels last, fused Adam": easyfsl(
            EmbeddingOnly(Conv4()).to(memory_format=torch.channels_last), fused=True
        ),
    }


# Evaluation


def evaluation_sides(
    task: ProtonetTask, test: FeaturesDataset, setting: Setting, scores: list[Accuracy]
) -> dict[str, Side[Episodes]]:
    """etude; easyfsl's evaluate on pictures; easyfsl's evaluate on embeddings that it extracted once.

    All sides use the task's own network and weights, easyfsl through a wrapper.
    """
    pool = task.pool("test")
    network = EmbeddingOnly(task.encoder).eval()

    def etude(repeat: int) -> Episodes:
        start = time.perf_counter()
        z_CPD = task.embed_pool("test")
        embedded = time.perf_counter()
        draw = randomness.generator(task.config.seed, "benchmark/score", repeat)
        score = score_pool(
            z_CPD, pool.groups_C, task.distance, draw,
            way=setting.way, shot=setting.shot, query=QUERY, num_episodes=setting.etude,
        )  # fmt: skip
        end = time.perf_counter()
        scores.append(score)
        return Episodes(setting.etude, end - embedded, embedded - start, score.mean / 100)

    def from_pictures(repeat: int) -> Episodes:
        random.seed(repeat)
        model = PrototypicalNetworks(network)
        loader = episodes_of(test, setting.way, setting.shot, QUERY, setting.pictures)
        start = time.perf_counter()
        accuracy = evaluate(model, loader, device="cpu", use_tqdm=False)
        return Episodes(setting.pictures, time.perf_counter() - start, accuracy=accuracy)

    def from_embeddings(repeat: int) -> Episodes:
        random.seed(repeat)
        start = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            frame = predict_embeddings(DataLoader(test, batch_size=512), network)
        data = FeaturesDataset.from_dataframe(frame)
        loader = episodes_of(data, setting.way, setting.shot, QUERY, setting.embedded)
        ready = time.perf_counter()
        accuracy = evaluate(PrototypicalNetworks(nn.Identity()), loader, device="cpu", use_tqdm=False)
        return Episodes(setting.embedded, time.perf_counter() - ready, ready - start, accuracy)

    return {ETUDE: etude, "easyfsl, pictures": from_pictures, "easyfsl, embeddings": from_embeddings}


@torch.no_grad()
def same_predictions(task: ProtonetTask, setting: Setting, count: int) -> float:
    """The share of queries that both sides put in the same class, in the same episodes with the same weights."""
    pool = task.pool("test")
    model = PrototypicalNetworks(EmbeddingOnly(task.encoder)).eval()
    equal: list[Tensor] = []
    for number in range(count):
        draw = randomness.generator(task.config.seed, "benchmark/same", number)
        rows = draw_episode(len(pool), NUM_DRAWINGS, setting.way, setting.shot + QUERY, draw)
        support_NKHW, query_NQHW = pool.images_CNHW[rows].split([setting.shot, QUERY], dim=1)
        support, query = support_NKHW.flatten(0, 1), query_NQHW.flatten(0, 1)
        model.process_support_set(to_input(support), torch.arange(setting.way).repeat_interleave(setting.shot))
        theirs = model(to_input(query)).argmax(1)
        proto_ND = prototypes(embed(task.encoder, support).unflatten(0, (setting.way, -1)))
        equal.append(task.distance(embed(task.encoder, query), proto_ND).argmin(1) == theirs)
    return torch.cat(equal).float().mean().item()


@dataclass(frozen=True)
class Agreement:
    """Whether both sides measure the same thing."""

    setting: str
    side: str
    etude: float
    """Accuracy in per cent."""
    easyfsl: float
    tolerance: float
    """3.3 standard errors of the difference; chance exceeds it once in a thousand times."""
    same_predictions: float
    """Share of equal predictions in the same episodes."""

    @property
    def holds(self) -> bool:
        return abs(self.etude - self.easyfsl) <= self.tolerance and self.same_predictions >= 0.998


def agreement(setting: Setting, side: str, blocks: Sequence[Episodes], score: Accuracy, same: float) -> Agreement:
    episodes = sum(block.count for block in blocks)
    theirs = 100 * statistics.fmean(block.accuracy for block in blocks)
    deviation = score.half_width / 1.96 * math.sqrt(score.num_episodes)
    tolerance = 3.3 * deviation * math.sqrt(1 / score.num_episodes + 1 / episodes)
    return Agreement(setting.name, side, score.mean, theirs, tolerance, same)


# The report


def episodes_table(title: str, blocks: dict[str, list[Episodes]], counts: Sequence[float]) -> Table:
    """Episodes per second of each side, and etude's lead, where ``counts`` episodes share the one-off work."""
    table = side_by_side.new_table(title, ["episodes", "side"], ["median /s", "best /s", f"{ETUDE} is"])
    for count in counts:
        heading = "any" if math.isinf(count) else f"{count:,}"
        ours = shared(blocks[ETUDE], count)
        for name, episodes in blocks.items():
            row = shared(episodes, count)
            best = max(block.rate for block in row)
            ratio = "" if name == ETUDE else f"{lead(ours, row):.2f}x"
            table.add_row(heading, name, f"{median_rate(row):,.2f}", f"{best:,.2f}", ratio)
        table.add_section()
    return table


def build_task(quick: bool) -> ProtonetTask:
    """The published training episodes, on real Omniglot, or on its generated twin where it is not to be had.

    A third of the classes, on the twin, when quick.
    """
    for source in ("generated",) if quick else ("omniglot", "generated"):
        config = ProtonetConfig(
            data=DataConfig(source=source),
            episodes=EpisodeConfig(way=20 if quick else 60),
            loop=LoopConfig(max_steps=10**9, device="cpu"),
        )
        task = ProtonetTask(config, Runtime(config.loop, config.seed))
        try:
            task.pool("train"), task.pool("test")
        except UserError as error:
            print(f"the generated twin stands in for Omniglot: {error}", file=sys.stderr)
            continue
        return task
    raise AssertionError("the generated twin needs no file")


def main(options: Options) -> int:
    """Measure, print, and return 1 if the two sides do not agree on the accuracy."""
    sizes = QUICK if options.quick else FULL
    repeats = options.repeats or sizes.repeats
    torch.set_num_threads(options.threads)
    admit_data_source()
    task = build_task(options.quick)
    about = side_by_side.surroundings("easyfsl")
    console = Console(soft_wrap=True)

    def pictures(split: Any) -> FeaturesDataset:
        pool = task.pool(split)
        return in_memory(to_input(pool.images_CNHW.flatten(0, 1)), pool)

    data = "Omniglot" if task.config.data.source == "omniglot" else "generated twin of Omniglot"
    console.print(
        f"{data}; {side_by_side.machine(about)}, easyfsl {about['easyfsl']}, etude {about['versions']['etude']} "
        f"at {about['commit']}; interleaved repeats: {repeats}"
    )

    training = interleave(
        training_sides(task, pictures("train"), sizes.train_episodes), repeats, warm_up=not options.quick
    )
    episode = task.config.episodes
    title = f"Training: {episode.way}-way {episode.shot}-shot, {episode.query} queries, Adam"
    console.print(episodes_table(title, training, [math.inf]))

    evaluation: dict[str, dict[str, list[Episodes]]] = {}
    agreements: list[Agreement] = []
    test = pictures("test")
    for setting in sizes.settings:
        scores: list[Accuracy] = []
        blocks = evaluation[setting.name] = interleave(
            evaluation_sides(task, test, setting, scores), repeats, warm_up=not options.quick
        )
        title = f"Evaluation: {setting.name}, {QUERY} queries ('any': the one-off embedding not counted)"
        console.print(episodes_table(title, blocks, (MANY, FEW, math.inf)))
        same = same_predictions(task, setting, sizes.same_episodes)
        agreements += [agreement(setting, side, row, scores[-1], same) for side, row in blocks.items() if side != ETUDE]

    bars = {"training": Bar(lead(training[ETUDE], training["easyfsl"]), TRAINING_BAR)}
    for name, blocks in evaluation.items():
        ours, theirs = shared(blocks[ETUDE], MANY), shared(blocks["easyfsl, pictures"], MANY)
        bars[f"evaluation, {name}, {MANY:,} episodes"] = Bar(lead(ours, theirs), EVALUATION_BAR)
    for check in agreements:
        console.print(
            f"{'agree' if check.holds else 'DISAGREE'}: {check.setting}, {check.side}: {check.easyfsl:.2f} %, "
            f"etude {check.etude:.2f} % (tolerance {check.tolerance:.2f}); "
            f"{check.same_predictions:.2%} equal predictions in the same episodes"
        )
    side_by_side.tell_bars(console, bars, judged=not options.quick)

    if options.json is not None:
        tables = {"training": training} | evaluation
        written = side_by_side.report(
            "protonet", tables, "episodes", bars, about=about, repeats=repeats, quick=options.quick
        )
        own = {
            "data": data,
            "settings": [dataclasses.asdict(setting) for setting in sizes.settings],
            "agreements": [dataclasses.asdict(check) | {"holds": check.holds} for check in agreements],
        }
        write_json(options.json, written | own)
    return 0 if all(check.holds for check in agreements) else 1


if __name__ == "__main__":
    side_by_side.run(main, Options, __doc__, "protonet")
