"""Training and predicting on the problems that come with etude."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.experiments import Finished

from etude.cli.app import main
from etude.core import randomness
from etude.core.checkpoint import WeightsHeader, read_weights, save_weights
from etude.core.config import override, to_dict
from etude.core.errors import Refused, UserError
from etude.core.run_folder import RunFolder
from etude.core.runtime import Runtime
from etude.studies.text2math import batches, figures
from etude.studies.text2math.beam import Hypothesis
from etude.studies.text2math.evaluate import Options as Scored
from etude.studies.text2math.evaluate import evaluate
from etude.studies.text2math.model import loss
from etude.studies.text2math.predict import Options, Prediction, predict, tell
from etude.studies.text2math.problems import Problem
from etude.studies.text2math.program import GEOMETRY
from etude.studies.text2math.scores import judge
from etude.studies.text2math.study import STUDY, Text2MathConfig, smoke
from etude.studies.text2math.task import Text2MathTask, choose
from etude.studies.text2math.tokens import PAD, Tokens


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


def test_the_loss_of_a_step_in_parts_is_that_of_the_whole_batch() -> None:
    """Every token weighs alike, in whatever part it is."""
    built = task(batch__parts=2, teacher_forcing=1.0)
    rows, train_split = built.batch_rows(0), built.encoded["train"]
    batch = train_split.take(rows)
    counts = [(train_split.take(rows[part::2]).targets_NS != PAD).sum().item() for part in range(2)]
    assert counts[0] != counts[1], "the parts differ in tokens"
    forced = torch.ones(batch.targets_NS.shape[1], dtype=torch.bool)
    by_hand = loss(built.model(batch, batch.targets_NS, forced)[0], batch.targets_NS).item()
    assert built.train_step(0)["loss"].item() == pytest.approx(by_hand, rel=1e-5)


def test_a_last_batch_smaller_than_its_parts() -> None:
    built = task(batch__size=138, batch__parts=3)
    assert len(built.batch_rows(1)) == 2
    assert built.train_step(1)["loss"].isfinite()


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

    def started(**changes: Any) -> dict[str, torch.Tensor]:
        """The weights after a first step too small to move them."""
        built = task(start=str(run), optim__lr=1e-30, **changes)
        built.train_step(0)
        return built.model.state_dict()

    same = started()
    assert all(torch.equal(value, tensors[f"model.{name}"]) for name, value in same.items())
    # Without copying there is less to take, and nothing else moves.
    less = started(model__copies=False)
    assert set(less) < set(same)
    assert all(torch.equal(value, same[name]) for name, value in less.items())
    with pytest.raises(UserError, match="other vocabularies"):
        started(data__least=3)
    # A run that has begun is evaluated, exported and resumed without the other.
    gone = task(start=str(tmp_path / "absent"))
    gone.train_step(1)
    with pytest.raises(UserError, match="is not a run folder"):
        gone.train_step(0)


def test_a_program_with_an_unknown_token_has_no_targets() -> None:
    built = task()
    problems = [Problem("3 and 4", program) for program in ("surface_sphere(n0)|", "add(n0,n1)|", "")]
    encoded = batches.encode(problems, built.reader, built.tokens, torch.device("cpu"))
    assert (encoded.targets_NS != PAD).any(1).tolist() == [False, True, False]
    assert (built.encoded["train"].targets_NS != PAD).any(1).all()


def test_the_pictures(trained: Text2MathTask, tmp_path: Path) -> None:
    figures.draw(trained, tmp_path, [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.0, "val/loss": 1.5}])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "attention.png", "curves.png", "lengths.png", "operators.png", "steps.png",
    ]  # fmt: skip


def test_the_pictures_of_a_network_that_writes_no_programs(
    trained: Text2MathTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("", "(n0,n1)|", "add()|" * 160):
        programs = [program] * len(trained.problems["dev"])
        verdicts = [judge(program, problem) for problem in trained.problems["dev"]]
        monkeypatch.setattr(trained, "verdicts", lambda *_, both=(programs, verdicts): both)
        figures.draw(trained, tmp_path, [{"step": 1, "train/loss": 2.0}])
        assert (tmp_path / "attention.png").is_file()


@pytest.mark.parametrize(
    ("setting", "value", "fault"),
    [
        ("table", "nosuch", "table must be of run, architectures, teacher-forcing, beam, joined by \\+, not 'nosuch'"),
        ("table", "beam+", "not 'beam\\+'"),
        ("model.tuned", True, "model.encoder must be bert where model.tuned is set, not lstm"),
        ("data.folder", "mine", "data.source must be folder where data.folder is set, not sample"),
        ("teacher_forcing", 1.5, "teacher_forcing must be between 0 and 1"),
        ("beam.width", 0, "beam.width must be between 1 and 100"),
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


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("", "an empty program has no value"),
        ("add n0", "the step 'add n0' has no parenthesis"),
        ("plus(n0,n1)|", r"step 0 \(plus\(n0,n1\)\): there is no operator 'plus'"),
        ("add(n0)|", "1 argument"),
        ("add(n0,n7)|", "'n7' of a problem with 2 number"),
        ("add(n0,#0)|", "'#0' is not computed yet"),
        ("add(n0,xn1)|", "write 'xn1' as n0, #0 or const_1"),
        ("add(n0,n01)|", "write 'n01' as n0, #0 or const_1"),
        ("add(n0,n1)|" * 101, "a program of more than 100 steps"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_programs_of_a_folder_that_no_network_can_learn(tmp_path: Path, split: str, program: str, fault: str) -> None:
    row = {"Problem": "3 men and 4 boys . how many ?", "linear_formula": "add(n0,n1)|", "answer": 7}
    for name in ("train", "dev", "test"):
        rows = [row, row | {"linear_formula": program}] if name == split else [row]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows, indent=1))
    with pytest.raises(UserError, match=rf"{split}\.json, line 7: 'linear_formula' cannot be learned: .*{fault}"):
        task(data__source="folder", data__folder=str(tmp_path))


def test_programs_of_a_folder_up_to_the_last_number_with_an_index(tmp_path: Path) -> None:
    text = " ".join(map(str, range(30)))
    for name in ("train", "dev", "test"):
        row = {"Problem": text, "linear_formula": "divide(n23,n0)|", "answer": 0}
        (tmp_path / f"{name}.json").write_text(json.dumps([row]))
    assert task(data__source="folder", data__folder=str(tmp_path)).train_step(0)["loss"].isfinite()
    (tmp_path / "dev.json").write_text(json.dumps([{"Problem": text, "linear_formula": "add(n24,n0)", "answer": 0}]))
    with pytest.raises(UserError, match="n23 is the last number"):
        task(data__source="folder", data__folder=str(tmp_path))


OWN = """
import torch
from tests.experiments import Finished
from torch import nn


class Own(nn.Module):
    width = 8

    def __init__(self, num_words):
        super().__init__()
        self.vectors = nn.Embedding(num_words, 8)

    def forward(self, batch):
        states = self.vectors(batch.words_NT)
        return states, states.mean(1)


class States(Own):
    def forward(self, batch):
        return self.vectors(batch.words_NT)


class Narrow(Own):
    width = 7


class Unknown(Own):
    width = "8"


class Nothing(nn.Module):
    width = 8

    def __init__(self):
        super().__init__()


class Function:
    width = 8

    def __init__(self, num_words):
        pass


number = 3
"""


def test_an_encoder_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    built = task(model__encoder=f"{file}:Own")
    losses = train(built, range(6))
    assert losses[-1] < losses[0]
    assert built.cell("run") == "own_copy"


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("States", r"must map 2 problems of 4 words to \(\[2, 4, 8\], \[2, 8\]\), not \[2, 4, 8\]"),
        ("Narrow", r"of width 7 must map .* not \(\[2, 4, 8\], \[2, 8\]\)"),
        ("Unknown", "has no whole number `width`"),
        ("Nothing", "failed on 2 problems of 4 words: TypeError"),
        ("Function", "is no torch.nn.Module"),
        ("number", "failed on 2 problems of 4 words: TypeError"),
        ("absent", "has no 'absent'"),
    ],
)
def test_an_encoder_that_does_not_fit(tmp_path: Path, name: str, fault: str) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    with pytest.raises(UserError, match=fault) as error:
        task(model__encoder=f"{file}:{name}")
    assert "\n" not in str(error.value)


# Predictions


def test_the_heaviest_step_has_the_most_words() -> None:
    built = task(batch__size=8, loop__max_steps=7)
    train = built.encoded["train"]
    words = [train.take(rows).words_NT.numel() for rows in map(built.batch_rows, range(7))]
    assert len(set(words)) > 1
    assert words[built.heaviest_step()] == max(words)


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
    assert answer.note == "left as words: ninety"
    (answer,) = predict(weights, None, Options(problems=("twice as many as 20",)))
    assert answer.note == "left as words: twice"


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


def test_a_network_scores_a_file(trained: Text2MathTask, weights: Path, tmp_path: Path) -> None:
    given, out = tmp_path / "mine.json", tmp_path / "out.json"
    chosen = trained.problems["train"][:12]
    rows = [{"Problem": p.text, "linear_formula": p.program, "answer": p.answer, "predicted": "?"} for p in chosen]
    given.write_text(json.dumps(rows))
    found = {score.metric: score.value for score in evaluate(weights, Scored(given, output=out, beam=3))}
    written = json.loads(out.read_text())
    right = sum(row["predicted"].removesuffix("|") == row["linear_formula"].removesuffix("|") for row in written)
    assert found["exact"] == pytest.approx(100 * right / 12)
    assert right > 0
    assert "predicted_answer" not in found
    # The file's own predictions now are the network's.
    again = {score.metric: score.value for score in evaluate(None, Scored(out))}
    assert again.pop("predicted_answer") == again["execution"]
    assert again == found


def test_a_file_whose_name_has_spaces(weights: Path, tmp_path: Path) -> None:
    given, out = tmp_path / "my problems.json", tmp_path / "out.json"
    given.write_text(json.dumps([{"Problem": "what is 20 % of 50 ?"}]))
    (answer,) = predict(weights, None, Options(problems=(str(given),)))
    assert answer.problem == "what is 20 % of 50 ?"
    (answer,) = predict(weights, None, Options(problems=("what is 3 + 4 of a.json",), output=out))
    assert json.loads(out.read_text())[0]["Problem"] == answer.problem == "what is 3 + 4 of a.json"


def test_what_is_there_is_no_problem(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("3 and 4")
    for given in (tmp_path / "mine.csv", tmp_path):
        with pytest.raises(UserError, match=r"is no \.json or \.txt file"):
            predict(weights, None, Options(problems=(str(given),)))
    (tmp_path / "MINE.TXT").write_text("3 and 4\n", encoding="utf-8-sig")
    (answer,) = predict(weights, None, Options(problems=(str(tmp_path / "MINE.TXT"),)))
    assert isinstance(answer, Prediction)
    assert answer.problem == "3 and 4"


def test_a_long_text_of_few_words_at_first(weights: Path, tmp_path: Path) -> None:
    lines = tmp_path / "mine.txt"
    lines.write_text("what is 20 % of 50 ?\n" + "x" * 100_000 + " 3" * 2000)
    first, second = predict(weights, None, Options(problems=(str(lines),)))
    assert isinstance(first, Prediction)
    assert isinstance(second, Refused)
    assert second.error.startswith(f"problem 2 ({lines}, line 2): 104,000 characters are too long")


def test_a_bert_for_a_network_without_one(weights: Path) -> None:
    with pytest.raises(UserError, match="was made without a BERT"):
        predict(weights, None, Options(problems=("3 and 4",), bert="bert-base-cased"))


def test_the_best_that_has_a_value_by_the_formulas_asked_for() -> None:
    programs = ("original_price_before_loss(n0,n1)|", "add(n0,n1)|")
    tokens = Tokens.of(programs)
    ids = [tokens.encode(program) or [] for program in programs]
    found = [Hypothesis(tuple(part[:-1]), -1.0, -1.0, ended=True) for part in ids]
    problem = Problem("a loss of 100 % on 5 .")
    assert choose(found, problem, tokens, True) == programs[0]
    assert choose(found, problem, tokens, True, GEOMETRY) == programs[1]
    assert choose(found, problem, tokens, False, GEOMETRY) == programs[0]


@pytest.mark.parametrize(
    ("problem", "fault"),
    [
        ("", "it is empty"),
        (" ".join("7" * 60), "it has 60 numbers: at most 24 are read"),
        ("word " * 5000 + "3", "it has 5,001 words: at most 1000 are read"),
        ("x" * 200_000, "200,000 characters are too long"),
        ("3 caf\udce9s and 4", "it is no text in UTF-8"),
        ("nowhere.json", "nowhere.json cannot be read"),
        ("nowhere.txt", "nowhere.txt cannot be read"),
    ],
)
def test_problems_that_cannot_be_solved(weights: Path, tmp_path: Path, problem: str, fault: str) -> None:
    out = tmp_path / "out.json"
    with pytest.raises(UserError, match=fault) as error:
        predict(weights, None, Options(problems=(problem,), output=out))
    assert "\n" not in str(error.value)
    assert not out.exists()


@pytest.mark.parametrize("problem", ["🚂🚂🚂", "how many seconds are there in an hour ?"])
def test_a_problem_without_a_number_is_answered(weights: Path, problem: str) -> None:
    (answer,) = predict(weights, None, Options(problems=(problem,)))
    assert isinstance(answer, Prediction)
    assert answer.program
    assert "it has no number" in answer.note


def test_one_bad_problem_of_a_file_takes_no_other_with_it(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, out = tmp_path / "mine.json", tmp_path / "out.json"
    rows: list[Any] = [{"Problem": "3 and 4"}, {"problem": "5"}, 7, {"Problem": ""}, {"Problem": "5 and 6"}]
    given.write_text(json.dumps(rows, indent=1))
    words = ["predict", str(weights), str(given), "--output", str(out)]
    assert main(words) == 1
    said = capsys.readouterr()
    assert [line.partition(" (")[0] for line in said.err.splitlines()] == [f"etude: problem {n}" for n in (2, 3, 4)]
    assert "'Problem'" in said.err
    assert said.out.count("program ") == 2
    kept = json.loads(out.read_text())
    assert kept[1:4] == rows[1:4]
    assert [sorted(row) for row in (kept[0], kept[4])] == [["Problem", "predicted", "predicted_answer"]] * 2
    assert main([*words, "--json"]) == 1
    answers = json.loads(capsys.readouterr().out)
    assert [next(iter(row)) for row in answers] == ["problem", "input", "input", "input", "problem"]
    assert "it is empty" in answers[3]["error"]


def test_emoji_and_unknown_words_are_no_fault(weights: Path) -> None:
    (answer,) = predict(weights, None, Options(problems=("a 🚂 runs 120 zorks in 3 blims",)))
    assert answer.program


@pytest.mark.parametrize("beam", [0, 101, 10**9])
def test_a_beam_that_cannot_be(weights: Path, tmp_path: Path, beam: int) -> None:
    with pytest.raises(UserError, match=f"--beam must be between 1 and 100, not {beam}"):
        predict(weights, None, Options(problems=("3 and 4",), beam=beam))
    with pytest.raises(ValueError, match=r"beam\.width must be between 1 and 100"):
        override(smoke(), {"beam.width": beam})


def test_a_file_with_a_problem_too_long_to_score(weights: Path, tmp_path: Path) -> None:
    given, row = tmp_path / "mine.json", {"linear_formula": "add(n0,n1)|", "answer": 7}
    given.write_text(json.dumps([row | {"Problem": "3 and 4"}, row | {"Problem": "3 and 4 " + "word " * 2000}]))
    with pytest.raises(UserError, match="problem 2 has 2,003 words: at most 1000 are read"):
        evaluate(weights, Scored(given, output=tmp_path / "out.json"))
    assert not (tmp_path / "out.json").exists()


def test_no_program_has_no_score(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even then the answer is JSON, which has no infinity."""
    monkeypatch.setattr("etude.studies.text2math.predict.write_programs", lambda *_, **__: [[]])
    (answer,) = predict(weights, None, Options(problems=("3 and 4",)))
    assert answer.score is None
    assert answer.program == ""
    assert "score      none" in tell([answer])
    assert json.loads(json.dumps(dataclasses.asdict(answer), allow_nan=False))["score"] is None


def test_no_problem_at_all(weights: Path) -> None:
    with pytest.raises(UserError, match="no problem to solve"):
        predict(weights, None, Options())


def test_the_configuration_round_trips() -> None:
    assert override(smoke(), {}) == smoke()
    assert isinstance(smoke(), Text2MathConfig)


def test_the_architectures_share_their_teacher_forcing() -> None:
    """The assignment's .6 in all four cells, whatever the preset."""
    for preset in ("course", "laptop"):
        for job in STUDY.experiment("architectures").jobs(preset):
            found = job.overrides([Finished(Path("frozen"), {})]) if callable(job.overrides) else job.overrides
            config: Any = override(STUDY.preset(preset).build(), dict(found))
            assert config.teacher_forcing == 0.6, (preset, job.name)
