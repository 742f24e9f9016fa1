"""Training and predicting on the problems that come with etude."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from etude.cli.app import main
from etude.core import randomness
from etude.core.checkpoint import WeightsHeader, read_weights, save_weights
from etude.core.config import override, to_dict
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder
from etude.core.runtime import Runtime
from etude.studies.text2math import batches, figures
from etude.studies.text2math.model import loss
from etude.studies.text2math.predict import Options, predict, tell
from etude.studies.text2math.study import Text2MathConfig, smoke
from etude.studies.text2math.task import Text2MathTask
from etude.studies.text2math.tokens import PAD


def task(**changes: Any) -> Text2MathTask:
    config = override(smoke(), {name.replace("__", "."): value for name, value in changes.items()})
    return Text2MathTask(config, Runtime(config.loop, config.seed))


def train(built: Text2MathTask, steps: range) -> list[float]:
    losses: list[float] = []
    for step in steps:
        randomness.seed_globals(0, "step", step)
        losses.append(built.train_step(step)["loss"].item())
    return losses


@pytest.fixture(scope="module")
def trained() -> Text2MathTask:
    """One that has learned the training problems by heart."""
    built = task(teacher_forcing=1.0, loop__max_steps=400, optim__schedule="constant")
    train(built, range(300))
    return built


@pytest.fixture(scope="module")
def weights(trained: Text2MathTask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_weights(path, trained.modules, WeightsHeader("text2math", to_dict(trained.config), {}), half=True)
    return path


def test_it_learns_its_training_problems(trained: Text2MathTask) -> None:
    _, verdicts = trained.verdicts("train", dataclasses.replace(trained.config.beam, width=1))
    assert sum(verdict.exact for verdict in verdicts) > 0.6 * len(verdicts)
    assert trained.mean_loss("train") < 0.5


def test_every_problem_is_in_one_batch_of_an_epoch() -> None:
    lengths = torch.randint(3, 60, (1000,), generator=torch.Generator().manual_seed(1))
    order = batches.epoch_order(lengths, 16, torch.Generator().manual_seed(2))
    assert sorted(torch.cat(order).tolist()) == list(range(1000))
    assert {len(rows) for rows in order} <= {16, 1000 % 16}
    spread = [int(lengths[rows].max() - lengths[rows].min()) for rows in order]
    assert sum(spread) / len(spread) < 10
    again = batches.epoch_order(lengths, 16, torch.Generator().manual_seed(2))
    assert all(torch.equal(a, b) for a, b in zip(order, again, strict=True))
    other = batches.epoch_order(lengths, 16, torch.Generator().manual_seed(3))
    assert not all(torch.equal(a, b) for a, b in zip(order, other, strict=True))


def test_a_step_depends_on_its_number_alone() -> None:
    """A resumed run repeats what an unbroken one does."""
    whole, half = task(model__dropout=0.2), task(model__dropout=0.2)
    losses = train(whole, range(6))
    train(half, range(3))
    resumed = task(model__dropout=0.2)
    resumed.model.load_state_dict(half.model.state_dict())
    resumed.optimizer.load_state_dict(half.optimizer.state_dict())
    assert train(resumed, range(3, 6)) == losses[3:]


def test_the_loss_of_a_step_is_the_mean_over_its_parts() -> None:
    built = task(batch__parts=2, teacher_forcing=1.0)
    rows, train_split = built.batch_rows(0), built.encoded["train"]
    by_hand = []
    for part in range(2):
        targets = train_split.targets(rows[part::2])
        forced = torch.ones(targets.shape[1], dtype=torch.bool)
        by_hand.append(loss(built.model(train_split.batch(rows[part::2]), targets, forced)[0], targets).item())
    assert built.train_step(0)["loss"].item() == pytest.approx(sum(by_hand) / 2, rel=1e-5)


def test_results_say_split_and_protocol(trained: Text2MathTask) -> None:
    rows = trained.results({})
    assert {row.metric for row in rows} == {"exact", "execution", "gold_value", "token_match"}
    assert {row.split for row in rows} >= {"dev", "test", "test, programs not seen", "test, programs seen in training"}
    assert all("beam 3 (nested, grammar)" in row.protocol for row in rows)
    by = {(row.metric, row.split): row.value for row in rows}
    assert all(0 <= value <= 100 for value in by.values())


def test_a_run_fills_all_tables_that_it_names(trained: Text2MathTask, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(trained.config, table="architectures+teacher-forcing+beam")
    monkeypatch.setattr(trained, "config", config)
    rows = trained.results({})
    cells = {(row.experiment, row.cell) for row in rows}
    assert {("architectures", "lstm_attn_copy"), ("teacher-forcing", "tf10")} < cells
    beams = {cell: row for row in rows for cell in [row.cell] if row.experiment == "beam" and row.split == "test"}
    assert len(beams) == 7
    assert "beam 20 (nested)" in beams["lstm_attn_copy, beam20"].protocol
    assert "beam 10 (standard)" in beams["lstm_attn_copy, beam10, standard"].protocol
    assert "grammar, first that executes" in beams["lstm_attn_copy, beam10, grammar, executes"].protocol


def test_a_warm_start_takes_what_both_networks_have(tmp_path: Path) -> None:
    words = ["--loop.max-steps", "4", "--loop.eval-every", "2", "--loop.save-every", "2", "--beam.width", "1"]
    assert main(["run", "text2math", "smoke", "--name", "first", "--runs", str(tmp_path), *words]) == 0
    run = tmp_path / "text2math" / "first"
    best = RunFolder.open(run).checkpoints()
    assert best.best_step is not None
    tensors, _ = read_weights(best.path(best.best_step) / "weights.safetensors")
    same = task(start=str(run)).model.state_dict()
    assert all(torch.equal(value, tensors[f"model.{name}"]) for name, value in same.items())
    # Without copying there is less to take, and nothing else moves.
    less = task(start=str(run), model__copies=False).model.state_dict()
    assert set(less) < set(same)
    assert all(torch.equal(value, same[name]) for name, value in less.items())
    with pytest.raises(UserError, match="other vocabularies"):
        task(start=str(run), data__least=3)
    with pytest.raises(UserError, match="is not a run folder"):
        task(start=str(tmp_path / "absent"))


def test_padding_targets_of_unknown_tokens() -> None:
    built = task()
    unknown = built.tokens.encode("surface_sphere(n0)|")
    assert unknown is None
    assert (built.encoded["train"].targets_NS != PAD).any(1).all()


def test_the_pictures(trained: Text2MathTask, tmp_path: Path) -> None:
    figures.draw(trained, tmp_path, [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.0, "val/loss": 1.5}])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "attention.png", "curves.png", "lengths.png", "operators.png", "steps.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("setting", "value", "fault"),
    [
        ("teacher_forcing", 1.5, "teacher_forcing must be between 0 and 1"),
        ("beam.width", 0, "beam.width must be at least 1"),
        ("model.dropout", 1.0, "model.dropout must be 0 or more and below 1"),
        ("batch.parts", 3, "a multiple of batch.parts"),
        ("data.source", "folder", "data.folder must be a path"),
    ],
)
def test_settings_that_cannot_be(setting: str, value: Any, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        override(smoke(), {setting: value})


def test_a_folder_in_the_courses_form(tmp_path: Path) -> None:
    row = {"Problem": "3 men and 4 boys . how many ?", "linear_formula": "add(n0,n1)|", "answer": 7}
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps([row]))
    built = task(data__source="folder", data__folder=str(tmp_path))
    assert train(built, range(2))[0] > 0
    (tmp_path / "dev.json").write_text("[]")
    with pytest.raises(UserError, match="the dev split has no problem"):
        task(data__source="folder", data__folder=str(tmp_path))
    (tmp_path / "dev.json").write_text(json.dumps([{"Problem": "3"}], indent=1))
    with pytest.raises(UserError, match=r"dev\.json, line 2: the object has no field 'linear_formula'"):
        task(data__source="folder", data__folder=str(tmp_path))


# Predictions


def test_a_prediction_shows_its_work(trained: Text2MathTask, weights: Path) -> None:
    problem = trained.problems["train"][0]
    (answer,) = predict(weights, None, Options(problems=(problem.text,)))
    assert answer.steps
    assert len(answer.runners_up) <= 3
    said = tell([answer])
    assert f"program    {answer.program}" in said
    assert answer.program.count("(") == len(answer.steps)


def test_plain_typing_is_read(weights: Path) -> None:
    (answer,) = predict(weights, None, Options(problems=("A train at 120 km/hr crosses a pole in 18 seconds.",)))
    assert answer.note == ""
    (answer,) = predict(weights, None, Options(problems=("a train at ninety km crosses in eighteen seconds",)))
    assert answer.note == "read 'ninety' as 90, 'eighteen' as 18"
    (answer,) = predict(weights, None, Options(problems=("ninety of 20",), words=False))
    assert answer.note == ""


def test_files_of_problems(weights: Path, tmp_path: Path) -> None:
    rows = [{"Problem": "what is 20 % of 50 ?", "id": 7}, {"Problem": "3 men and 4 boys"}]
    given, out = tmp_path / "mine.json", tmp_path / "out.json"
    given.write_text(json.dumps(rows))
    answers = predict(weights, None, Options(problems=(str(given),), output=out))
    written = json.loads(out.read_text())
    assert [row["Problem"] for row in written] == [row["Problem"] for row in rows]
    assert written[0]["id"] == 7
    assert [row["predicted"] for row in written] == [answer.program for answer in answers]
    assert [row["predicted_answer"] for row in written] == [answer.value for answer in answers]
    lines = tmp_path / "mine.txt"
    lines.write_text("what is 20 % of 50 ?\n\n3 men and 4 boys\n")
    assert [a.program for a in predict(weights, None, Options(problems=(str(lines),)))] == [a.program for a in answers]


@pytest.mark.parametrize(
    ("problem", "fault"),
    [
        ("", "it is empty"),
        ("🚂🚂🚂", "it has no number"),
        ("how are you", "it has no number"),
        (" ".join("7" * 60), "it has 60 numbers: at most 24 are read"),
        ("word " * 5000 + "3", "it has 5,001 words: at most 1000 are read"),
        ("x" * 200_000, "too long"),
        ("nowhere.json", "nowhere.json cannot be read"),
        ("nowhere.txt", "nowhere.txt cannot be read"),
    ],
)
def test_problems_that_cannot_be_solved(weights: Path, tmp_path: Path, problem: str, fault: str) -> None:
    out = tmp_path / "out.json"
    with pytest.raises(UserError, match=fault) as error:
        predict(weights, None, Options(problems=("what is 20 % of 50 ?", problem), output=out))
    assert "\n" not in str(error.value)
    assert not out.exists()


def test_emoji_and_unknown_words_are_no_fault(weights: Path) -> None:
    (answer,) = predict(weights, None, Options(problems=("a 🚂 runs 120 zorks in 3 blims",)))
    assert answer.program


def test_no_problem_at_all(weights: Path) -> None:
    with pytest.raises(UserError, match="no problem to solve"):
        predict(weights, None, Options())


def test_the_configuration_round_trips() -> None:
    assert override(smoke(), {}) == smoke()
    assert isinstance(smoke(), Text2MathConfig)
