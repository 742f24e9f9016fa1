"""The training step, the user's own parts, the thresholds for unknown classes, and settings that make no sense."""

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.core.checkpoint import WeightsHeader
from etude.core.config import from_dict, override, to_dict
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder, RunRecord
from etude.core.runtime import Runtime
from etude.data.omniglot import generated
from etude.studies.protonet.episodes import draw_episode, nearest_distances, score_pool
from etude.studies.protonet.model import Conv4, cosine, episode_loss, prototypes, squared_euclidean
from etude.studies.protonet.study import ModelConfig, OptimConfig, ProtonetConfig, smoke
from etude.studies.protonet.task import KNOWN_SHARE, ProtonetTask, build_distance, build_encoder, embed

FUZZ = settings(max_examples=40, deadline=None, derandomize=True)

VALIDATED = {"accuracy_5way", "accuracy_20way", "loss_5way", "loss_20way"}


def make(**changes: Any) -> ProtonetTask:
    """A task of the smoke preset; ``episodes__way=3`` sets ``episodes.way``."""
    config = override(smoke(), {name.replace("__", "."): value for name, value in changes.items()})
    return ProtonetTask(config, Runtime(config.loop, config.seed))


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- properties of the loss ---


@FUZZ
@given(st.integers(0, 9999), st.integers(2, 6), st.integers(1, 5), st.integers(1, 4))
def test_the_order_of_the_support_changes_nothing(seed: int, way: int, shot: int, query: int) -> None:
    support, queries = normal(way, shot, 5, seed=seed), normal(way, query, 5, seed=seed + 1)
    order = torch.randperm(shot, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(prototypes(support), prototypes(support[:, order]))
    for distance in (squared_euclidean, cosine):
        torch.testing.assert_close(
            episode_loss(support, queries, distance), episode_loss(support[:, order], queries, distance)
        )


@FUZZ
@given(st.integers(0, 9999), st.integers(2, 6))
def test_the_order_of_the_classes_permutes_the_probabilities(seed: int, way: int) -> None:
    support, queries = normal(way, 3, 5, seed=seed), normal(7, 5, seed=seed + 1)
    order = torch.randperm(way, generator=torch.Generator().manual_seed(seed))
    for distance in (squared_euclidean, cosine):
        probability = (-distance(queries, prototypes(support))).softmax(-1)
        permuted = (-distance(queries, prototypes(support[order]))).softmax(-1)
        torch.testing.assert_close(permuted, probability[:, order])
    one_each = queries[:way, None]
    torch.testing.assert_close(
        episode_loss(support[order], one_each[order], squared_euclidean),
        episode_loss(support, one_each, squared_euclidean),
    )


def test_a_higher_temperature_makes_answers_less_sure() -> None:
    support, queries = normal(5, 2, 8, seed=0), normal(5, 4, 8, seed=0)
    distances = squared_euclidean(queries.flatten(0, 1), prototypes(support))
    last = math.inf
    for temperature in (0.1, 0.5, 1.0, 2.0, 10.0, 100.0):
        surest = (-distances / temperature).softmax(-1).amax(-1).mean().item()
        assert surest < last
        last = surest
        # No answer changes.
        _, accuracy = episode_loss(support, queries, squared_euclidean, temperature)
        assert accuracy == episode_loss(support, queries, squared_euclidean)[1]
    loss, _ = episode_loss(support, queries, squared_euclidean, 1e6)
    assert loss.item() == pytest.approx(math.log(5), abs=1e-3)


def test_euclidean_loss_ignores_a_shift_and_a_turn() -> None:
    support, queries = normal(4, 3, 6, seed=1).double(), normal(4, 2, 6, seed=2).double()
    turn, _ = torch.linalg.qr(normal(6, 6, seed=3).double())
    shift = normal(6, seed=4).double()
    moved = episode_loss(support @ turn + shift, queries @ turn + shift, squared_euclidean)
    torch.testing.assert_close(moved, episode_loss(support, queries, squared_euclidean))


# --- the learning rate ---


def test_the_learning_rate_is_halved_as_published() -> None:
    optim = OptimConfig(lr=1e-3, halve_every=2000)
    rates = [optim.rate(step, 10_000) for step in (0, 1999, 2000, 3999, 4000, 9999)]
    assert rates == [1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4, 6.25e-5]


def test_the_learning_rate_falls_in_a_line() -> None:
    optim = OptimConfig(lr=2e-3, schedule="linear")
    assert [optim.rate(step, 4) for step in range(4)] == pytest.approx([2e-3, 1.5e-3, 1e-3, 5e-4])


def test_the_optimiser_follows_the_schedule() -> None:
    task = make(optim__halve_every=1, optim__lr=0.004)
    for step in range(3):
        task.train_step(step)
        assert task.adam.param_groups[0]["lr"] == pytest.approx(0.004 / 2**step)


# --- the training step ---


def test_a_step_is_determined_by_seed_and_step() -> None:
    one, two, other = make(), make(), make(seed=1)
    for step in (0, 1):
        losses = [task.train_step(step)["loss"].item() for task in (one, two, other)]
        assert losses[0] == losses[1] != losses[2]
    for name, value in one.encoder.state_dict().items():
        assert torch.equal(value, two.encoder.state_dict()[name])


def test_a_step_is_adam_on_the_gradient_of_the_mean_episode() -> None:
    task, twin = make(episodes__per_step=2, episodes__way=4), make(episodes__per_step=2, episodes__way=4)
    metrics = task.train_step(5)
    config, losses = twin.config.episodes, []
    twin.encoder.train()
    pool = twin.pool("train")
    for part in range(2):
        draw = twin.runtime.generator("train/episode", 5, part)
        classes, drawings = draw_episode(len(pool), 20, 4, config.shot + config.query, draw)
        z, _ = twin.encoder((pool.images_CNHW[classes, drawings].flatten(0, 1).float() / 255)[:, None])
        z = z.unflatten(0, (4, -1))
        losses.append(episode_loss(z[:, : config.shot], z[:, config.shot :], squared_euclidean)[0])
    loss = torch.stack(losses).mean()
    assert metrics["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    adam = torch.optim.Adam(twin.encoder.parameters(), lr=twin.config.optim.lr)
    loss.backward()
    adam.step()
    for name, value in task.encoder.named_parameters():
        torch.testing.assert_close(value, dict(twin.encoder.named_parameters())[name], rtol=1e-3, atol=2e-5)


class Training(NamedTuple):
    task: ProtonetTask
    losses: list[float]
    before: dict[str, float]


@pytest.fixture(scope="module")
def training() -> Training:
    task = make()
    before = task.evaluate()
    losses = [task.train_step(step)["loss"].item() for step in range(task.config.loop.max_steps)]
    return Training(task, losses, before)


@pytest.fixture
def trained(training: Training) -> ProtonetTask:
    return training.task


def test_training_beats_the_untrained_network(training: Training) -> None:
    after = training.task.evaluate()
    assert sum(training.losses[-10:]) < 0.85 * sum(training.losses[:10])
    assert set(training.before) == set(after) == VALIDATED
    for name, chance in (("accuracy_5way", 20), ("accuracy_20way", 5)):
        assert training.before[name] > chance
        assert after[name] > training.before[name] + 3
    assert after["loss_20way"] < training.before["loss_20way"]
    assert training.task.evaluate() == after, "the same weights score the same"
    assert training.task.monitor == ("accuracy_20way", "max")


def test_results_name_their_split_and_protocol() -> None:
    task = make(evaluation__ways=(5, 20), evaluation__episodes=20, evaluation__pool_episodes=30, episodes__shot=1)
    rows = task.results(task.finish())
    assert {row.split for row in rows} == {"test"}
    assert {row.variant for row in rows} == {"train"}
    # 32 made-up characters in two alphabets: 16 a group, so 20 ways within one do not exist.
    cells = [(row.experiment, row.cell) for row in rows if row.metric == "accuracy"]
    assert [cell for cell in cells if cell[0] == "crossed"] == [("crossed", "w5s5"), ("crossed", "w20s5")]
    own = [("fewshot", "w5s1"), ("pool", "w5s1"), ("within", "w5s1"), ("fewshot", "w20s1"), ("pool", "w20s1")]
    assert [cell for cell in cells if cell[0] != "crossed"] == own
    for row in rows:
        assert 0 <= row.value <= 100
        assert row.unit == "%"
    for row in rows[:3]:
        assert "15 queries a class, trained on train with 1 shot(s)" in row.protocol
        assert row.half_width > 0
    assert rows[0].protocol.startswith("20 random test episodes")
    assert rows[1].protocol.startswith("30 random test episodes")


def test_validation_is_on_val_and_results_are_on_test() -> None:
    task = make(evaluation__ways=(5,), evaluation__episodes=50, evaluation__val_episodes=40)

    def expected(split: str, stream: str, num_episodes: int) -> float:
        pool = generated(split)
        z_CPD = embed(task.encoder, pool.images_CNHW.flatten(0, 1)).unflatten(0, (-1, 20))
        draw = task.runtime.generator(f"{split}/{stream}", 5)
        sizes = {"way": 5, "shot": 1, "query": 15, "num_episodes": num_episodes}
        return score_pool(z_CPD, pool.groups_C, squared_euclidean, draw, **sizes).mean

    assert task.evaluate()["accuracy_5way"] == pytest.approx(expected("val", "episodes", 40), abs=1e-3)
    assert task.results({})[0].value == pytest.approx(expected("test", "fewshot", 50), abs=1e-3)


def test_shots_leave_fewer_queries() -> None:
    task = make(episodes__shot=12, episodes__query=2, evaluation__ways=(2,), evaluation__episodes=10)
    assert "8 queries a class" in task.results({})[0].protocol


# --- unknown classes ---


def test_thresholds_keep_the_known_and_find_the_strange(trained: ProtonetTask) -> None:
    extra = trained.finish()
    table = extra["unknown"]
    assert set(table) == {"1", "2", "3", "4", "5", "10"}
    for row in table.values():
        assert row["known_kept"] == KNOWN_SHARE == 0.95
        # By chance, 5 % are beyond it.
        assert row["unknown_found"] > 0.08
    assert table["10"]["unknown_found"] > table["1"]["unknown_found"]
    # With more shots a prototype lies nearer to its queries.
    assert table["10"]["distance"] < table["1"]["distance"]
    shares = {row.metric: row.value for row in trained.results(extra) if row.experiment == "unknown"}
    assert shares["known_kept"] == pytest.approx(95, abs=4)
    assert shares["unknown_found"] > 8


def test_the_threshold_keeps_its_share_of_validation(trained: ProtonetTask) -> None:
    for shot, row in trained.finish()["unknown"].items():
        draw = torch.Generator().manual_seed(99)
        z_CPD = trained.embed_pool("val")
        known, strange = nearest_distances(z_CPD, trained.distance, draw, way=5, shot=int(shot), num_episodes=400)
        assert (known <= row["distance"]).float().mean().item() == pytest.approx(0.95, abs=0.015)
        assert (strange > row["distance"]).float().mean().item() == pytest.approx(row["unknown_found"], abs=0.05)


TABLE = {"1": {"distance": 1.25, "known_kept": 0.95, "unknown_found": 0.5}}


@pytest.fixture
def selected(tmp_path: Path, trained: ProtonetTask) -> RunFolder:
    """A run that chose its length and ended, with thresholds of its own."""
    record = RunRecord("protonet", "smoke", "smoke", {}, to_dict(trained.config))
    run = RunFolder.create(tmp_path / "selected", record)
    run.write_summary({"extra": {"unknown": TABLE}})
    return run


def test_a_retraining_takes_the_thresholds_of_the_selected_run(selected: RunFolder) -> None:
    task = make(data__train_split="trainval", selected_run=str(selected.path), evaluation__episodes=10)
    task.train_step(0)
    assert task.finish() == {"unknown": TABLE}
    assert task.evaluate() == {}
    assert task.monitor is None
    rows = task.results(task.finish())
    assert [row.metric for row in rows if row.experiment == "unknown"] == ["known_kept", "unknown_found"]
    assert {row.variant for row in rows} == {"trainval"}


def test_a_retraining_without_a_selected_run_has_no_thresholds() -> None:
    task = make(data__train_split="trainval", evaluation__episodes=10)
    assert task.finish() == {"unknown": {}}
    assert not [row for row in task.results(task.finish()) if row.experiment == "unknown"]


def one_line(caught: pytest.ExceptionInfo[UserError], *parts: str) -> None:
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_faults_of_the_selected_run_come_before_the_first_step(selected: RunFolder, tmp_path: Path) -> None:
    (selected.path / "summary.json").unlink()
    cases = [
        ({"selected_run": str(selected.path)}, "has not ended"),
        ({"selected_run": str(tmp_path / "none")}, "is not a run folder"),
        ({"warm_start": True}, "warm_start needs --selected-run"),
    ]
    for changes, fault in cases:
        with pytest.raises(UserError) as caught:
            make(data__train_split="trainval", **changes).train_step(0)
        one_line(caught, fault)
    selected.write_summary({"extra": {"unknown": TABLE}})
    with pytest.raises(UserError) as caught:
        make(data__train_split="trainval", warm_start=True, selected_run=str(selected.path)).train_step(0)
    one_line(caught, "has no best checkpoint")


def test_a_warm_start_goes_on_from_the_best_weights(selected: RunFolder, trained: ProtonetTask) -> None:
    header = WeightsHeader("protonet", to_dict(trained.config), {})
    selected.checkpoints().save(40, trained.modules, header, {})
    selected.checkpoints().mark_best(40, "accuracy_20way", 50.0)
    settings_ = {"data__train_split": "trainval", "selected_run": str(selected.path), "optim__lr": 1e-9}
    warm, cold = make(**settings_, warm_start=True), make(**settings_)
    for task in (warm, cold):
        task.train_step(0)
    weights = dict(trained.encoder.named_parameters())
    assert all(torch.allclose(value, weights[name], atol=1e-6) for name, value in warm.encoder.named_parameters())
    assert not all(torch.allclose(value, weights[name], atol=1e-6) for name, value in cold.encoder.named_parameters())


# --- a user's own parts ---

PARTS = """
import torch
from torch import nn

class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.LazyLinear(9), nn.BatchNorm1d(9)
        self.layer(torch.zeros(1, 784))
    def forward(self, x):
        z = self.norm(self.layer(x.flatten(1)))
        return z, {"flat": z}

class Bare(Linear):
    def forward(self, x):
        return super().forward(x)[0]

class Square(Linear):
    def forward(self, x):
        return x, {}

class Short(Linear):
    def forward(self, x):
        z, named = super().forward(x)
        return z[:1], named

class Listed(Linear):
    def forward(self, x):
        return super().forward(x)[0], ["flat"]

class Silent(Linear):
    def forward(self, x):
        pass

class Colour(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 3)

class Faulty(Linear):
    def forward(self, x):
        return {}["no such\\nkey"]

class Frozen(nn.Module):
    def forward(self, x):
        return x.flatten(1), {}

class Wants(Linear):
    def __init__(self, width):
        super().__init__()

number = 3

def manhattan(query, proto):
    return (query[:, None] - proto[None]).abs().sum(-1)

def turned(query, proto):
    return manhattan(query, proto).T

def scalar(query, proto):
    return 0.0

def broken(query, proto):
    return query @ proto

def indexing(query, proto):
    return query[0, 99]
"""


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    path = tmp_path / "parts.py"
    path.write_text(PARTS)
    return path


def test_a_user_s_encoder_and_distance_train_and_score(parts: Path) -> None:
    changes = {"model__encoder": f"{parts}:Linear", "model__distance": f"{parts}:manhattan", "data__size": 28}
    task = make(**changes, evaluation__episodes=20, evaluation__pool_episodes=20)
    losses = [task.train_step(step)["loss"].item() for step in range(5)]
    assert all(math.isfinite(loss) for loss in losses)
    assert len(task.results(task.finish())) == 9
    assert set(task.evaluate()) == VALIDATED


def test_a_user_s_distance_of_matrices_serves_many_episodes(parts: Path) -> None:
    distance = build_distance(ModelConfig(distance=f"{parts}:manhattan"))
    query, proto = normal(6, 7, 4, seed=0), normal(6, 3, 4, seed=1)
    torch.testing.assert_close(distance(query, proto), torch.cdist(query, proto, p=1))
    torch.testing.assert_close(distance(query[0], proto[0]), torch.cdist(query[0], proto[0], p=1))


def test_the_check_leaves_running_statistics_alone(parts: Path) -> None:
    encoder = build_encoder(ModelConfig(encoder=f"{parts}:Linear"), 28)
    assert encoder.training
    assert encoder.norm.num_batches_tracked == 0
    assert (encoder.norm.running_mean == 0).all()
    assert all(p.grad is None for p in encoder.parameters())


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("Bare", "must map [2, 1, 28, 28] to ([2, D], dict), not [2, 9]"),
        ("Square", "must map [2, 1, 28, 28] to ([2, D], dict), not ([2, 1, 28, 28], dict)"),
        ("Short", "not ([1, 9], dict)"),
        ("Listed", "not ([2, 9], list)"),
        ("Silent", "not NoneType"),
        ("Colour", "failed on [2, 1, 28, 28]: RuntimeError: "),
        ("Faulty", "failed on [2, 1, 28, 28]: KeyError: "),
        ("Frozen", "has no parameters to train"),
        ("Wants", "failed on [2, 1, 28, 28]: TypeError: "),
        ("number", "failed on [2, 1, 28, 28]: TypeError: "),
        ("Nothing", "has no 'Nothing'"),
    ],
)
def test_a_wrong_encoder_is_one_line(parts: Path, name: str, fault: str) -> None:
    with pytest.raises(UserError) as caught:
        build_encoder(ModelConfig(encoder=f"{parts}:{name}"), 28)
    one_line(caught, fault, str(parts))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("turned", "must map [3, 4], [2, 4] to [3, 2], not [2, 3]"),
        ("scalar", "must map [3, 4], [2, 4] to [3, 2], not float"),
        ("broken", "failed on [3, 4], [2, 4]: RuntimeError: "),
        ("indexing", "failed on [3, 4], [2, 4]: IndexError: "),
        ("number", "failed on [3, 4], [2, 4]: TypeError: "),
    ],
)
def test_a_wrong_distance_is_one_line(parts: Path, name: str, fault: str) -> None:
    with pytest.raises(UserError) as caught:
        build_distance(ModelConfig(distance=f"{parts}:{name}"))
    one_line(caught, fault, str(parts))


def test_names_that_are_not_there_are_one_line(tmp_path: Path) -> None:
    for build, kind in (
        (lambda name: build_encoder(ModelConfig(encoder=name), 28), "encoder"),
        (lambda name: build_distance(ModelConfig(distance=name)), "distance"),
    ):
        for name in ("conv5", "euclidian", f"{tmp_path}/none.py:Name", "x.py", ":"):
            with pytest.raises(UserError) as caught:
                build(name)
            one_line(caught, kind)
    with pytest.raises(UserError, match="did you mean 'conv4'"):
        build_encoder(ModelConfig(encoder="conv5"), 28)


# --- settings that make no sense ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("episodes.way", 0),
        ("episodes.shot", 0),
        ("episodes.query", -1),
        ("episodes.per_step", 0),
        ("model.width", 0),
        ("model.temperature", 0.0),
        ("model.temperature", -1.0),
        ("model.temperature", math.nan),
        ("data.size", 0),
        ("data.size", 15),
        ("optim.lr", 0.0),
        ("optim.lr", math.nan),
        ("optim.halve_every", 0),
        ("evaluation.ways", []),
        ("evaluation.ways", [5, 0]),
        ("evaluation.query", 0),
        ("evaluation.episodes", 0),
        ("evaluation.pool_episodes", 0),
        ("evaluation.val_episodes", 0),
    ],
)
def test_senseless_settings_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UserError) as caught:
        override(smoke(), {name: value})
    one_line(caught, name, "must be")


def test_a_user_s_encoder_may_see_small_pictures(parts: Path) -> None:
    override(smoke(), {"model.encoder": f"{parts}:Linear", "data.size": 8})


def test_a_configuration_survives_its_own_record() -> None:
    config = override(smoke(), {"evaluation.ways": [3], "optim.schedule": "linear"})
    assert from_dict(ProtonetConfig, to_dict(config)) == config
    assert dataclasses.is_dataclass(config)


def test_batches_that_cannot_be_drawn_are_one_line() -> None:
    for changes, fault in (
        ({"episodes__way": 1000}, "1000 ways were asked for, and there are 128 classes"),
        ({"episodes__shot": 19}, "shots and queries make 22, and a class has 20 drawings"),
    ):
        with pytest.raises(UserError) as caught:
            make(**changes).train_step(0)
        one_line(caught, fault)


def test_the_network_is_the_default_encoder() -> None:
    assert isinstance(build_encoder(ModelConfig(), 28), Conv4)
    assert list(inspect.signature(Conv4).parameters) == ["in_channels", "width"]


def test_a_network_of_one_shot_is_scored_at_five_and_back() -> None:
    """The reported cell is of the test's shots; the draws are those of another experiment than the table's."""
    for shot, other in ((1, 5), (5, 1)):
        task = make(episodes__shot=shot, evaluation__ways=(5,), evaluation__episodes=50, evaluation__query=19)
        [row] = [row for row in task.results({}) if row.experiment == "crossed"]
        assert (row.cell, f"of {other} shot(s), trained on train with {shot}" in row.protocol) == (f"w5s{other}", True)
        queries = min(task.num_queries, 20 - other)
        again = score_pool(
            task.embed_pool("test"), task.pool("test").groups_C, task.distance,
            task.runtime.generator(f"test/crossed-{other}", 5), way=5, shot=other, query=queries, num_episodes=50,
        )  # fmt: skip
        assert row.value == again.mean
