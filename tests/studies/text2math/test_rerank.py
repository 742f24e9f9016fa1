"""Retrieval, copying from neighbours' programs, and the choice among candidates."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from etude.core.checkpoint import WeightsHeader, save_weights
from etude.core.config import override, to_dict
from etude.core.runtime import Runtime
from etude.studies.text2math import rerank
from etude.studies.text2math.beam import Hypothesis
from etude.studies.text2math.predict import Options, Prediction, predict, tell
from etude.studies.text2math.problems import Problem, sample
from etude.studies.text2math.rerank import Candidate, Chooser, Features, Judged
from etude.studies.text2math.retrieval import Index
from etude.studies.text2math.splits import split_of
from etude.studies.text2math.study import STUDY, LoopConfig, RerankConfig, best, retrieval, smoke
from etude.studies.text2math.task import Text2MathTask, make_task, write_programs
from etude.studies.text2math.tokens import PAD

TRAIN = [
    Problem("a train runs 60 km in 2 hours . what is its speed ?", "divide(n0,n1)|", 30.0),
    Problem("a train runs 90 km in 3 hours . what is its speed ?", "divide(n0,n1)|", 30.0),
    Problem("a train runs 60 km . how many meters is that ?", "multiply(n0,const_1000)|", 60_000.0),
    Problem("what is the sum of 3 and 4 ?", "add(n0,n1)|", 7.0),
]


@pytest.fixture(scope="module")
def reading() -> Text2MathTask:
    """A network that reads two programs of neighbours, after a few steps."""
    config = smoke()
    config = replace(config, model=replace(config.model, reads=2), rerank=RerankConfig(neighbours=20))
    task = Text2MathTask(config, Runtime(config.loop, 0))
    for step in range(6):
        task.train_step(step)
    task.model.eval()
    return task


def test_no_training_problem_is_its_own_neighbour() -> None:
    index = Index(TRAIN)
    assert [one[0].row for one in index.nearest(TRAIN, 2)] == [0, 0, 2, 3]
    left_out = index.nearest(TRAIN, 3, leave_out=True)
    assert [one[0].row for one in left_out[:2]] == [1, 0]
    assert all(one.row != row for row, some in enumerate(left_out) for one in some)


def test_neighbours_with_as_many_numbers_come_first_and_vote() -> None:
    index = Index(TRAIN)
    (found,) = index.nearest([Problem("a train runs 5 km in 7 hours . what is its speed ?")], 4)
    assert [one.row for one in found] == [0, 1, 3, 2]
    assert [one.same for one in found] == [True, True, True, False]
    best, *rest = index.vote(found)
    assert (best.program, best.count, best.rank) == ("divide(n0,n1)", 2, 0)
    assert best.share > 0.9
    assert sum(one.share for one in (best, *rest)) == pytest.approx(1)


def test_what_is_written_and_what_is_copied_is_one_distribution(reading: Text2MathTask) -> None:
    batch = reading.encoded["dev"].take(torch.tensor([0, 1, 2]))
    model, reader = reading.model, reading.model.decoder.reader
    assert reader is not None
    with torch.no_grad():
        memory, state = model.encode(batch)
        assert memory.read is not None
        s_NSH, _ = model.decoder.run(torch.tensor([[1], [1], [1]]), state)
        u_NSH, _, copied_NSJ = model.decoder.attend(s_NSH, memory)
        assert copied_NSJ is not None
        mixed_NSV = model.decoder.project(u_NSH, memory, copied_NSJ).exp()
        written_NSV = model.decoder.project(u_NSH, memory).softmax(-1)
        gate_NS1 = reader.gate(u_NSH).sigmoid()
    wanted = (1 - gate_NS1) * written_NSV
    for row in range(3):
        for place, token in enumerate(memory.read.tokens_NJ[row].tolist()):
            assert token != PAD or copied_NSJ[row, 0, place] == 0
            wanted[row, 0, token] += gate_NS1[row, 0, 0] * copied_NSJ[row, 0, place]
    torch.testing.assert_close(mixed_NSV, wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mixed_NSV.sum(-1), torch.ones(3, 1), rtol=1e-4, atol=1e-6)


def test_a_training_problem_does_not_read_its_own_program(reading: Text2MathTask) -> None:
    """Of a program that no other training problem has, nothing is to be read."""
    programs = [reading.tokens.encode(problem.program) for problem in reading.problems["train"]]
    single = [row for row, ids in enumerate(programs) if programs.count(ids) == 1]
    neighbours = reading.encoded["train"].neighbours
    assert single
    assert neighbours is not None
    for row in single:
        read = [[token for token in ids if token != PAD] for ids in neighbours.tokens_NRL[row].tolist()]
        assert programs[row] not in read


def test_the_probability_of_a_program_is_that_of_its_tokens(reading: Text2MathTask) -> None:
    problems = reading.problems["dev"][:5]
    batch = reading.encoded["dev"].take(torch.arange(5))
    asked = [[problem.program, "add(n0,n0)|"] for problem in problems]
    found = rerank.log_probabilities(reading.model, batch, asked, reading.tokens, size=2)
    for row, programs in enumerate(asked):
        for program, log_p in zip(programs, found[row], strict=True):
            ids = torch.tensor([reading.tokens.encode(program)])
            one = batch.take(torch.tensor([row]))
            with torch.no_grad():
                logits_NSV, _ = reading.model(one, ids, torch.ones(ids.shape[1], dtype=torch.bool))
            wanted = logits_NSV.log_softmax(-1)[0].gather(1, ids[0, :, None]).sum().item()
            assert log_p == pytest.approx(wanted, abs=1e-3)


def test_a_program_of_beam_and_neighbour_is_one_candidate(reading: Text2MathTask) -> None:
    tokens, index = reading.tokens, Index(TRAIN)
    asked = Problem("a train runs 5 km in 7 hours . what is its speed ?")
    (near,) = index.nearest([asked], 2)
    beam = [Hypothesis(tuple((tokens.encode(text) or [])[:-1]), -1.0, -1.0, ended=True)
            for text in ("add(n0,n1)|", "divide(n0,n1)|")]  # fmt: skip
    found = rerank.candidates_of(beam, index.vote(near), asked, tokens)
    assert [(one.program, one.place, one.voted is not None) for one in found] == [
        ("add(n0,n1)", 0, False), ("divide(n0,n1)", 1, True)
    ]  # fmt: skip
    assert found[1].value == pytest.approx(5 / 7)


@pytest.mark.parametrize("value", [None, 0.0, -3.5, 1e308, 5e-324])
def test_all_values_have_features(value: float | None) -> None:
    """A hundred times the largest number is none."""
    features = Features(Index(TRAIN)).of([Candidate("add(n0,n1)", None, None, value)], [-1.0], [], TRAIN[3])
    assert features.shape == (1, len(Features.NAMES))
    assert np.isfinite(features).all()


def test_the_choice_is_learned_and_dev_is_judged_out_of_fold() -> None:
    """One feature tells which of three candidates is right; labels of a fold do not reach its own choices."""
    draw = np.random.default_rng(0)
    problems = [Problem(f"{'abcdefgh'[row % 8]} {'ijklm'[row // 8]} 3 4", "add(n0,n1)", 7.0) for row in range(40)]
    programs = ("multiply(n0,n1)", "add(n0,n1)", "divide(n0,n1)")
    judged: list[Judged] = []
    for _ in problems:
        order = draw.permutation(3)
        x_CF = draw.normal(size=(3, len(Features.NAMES)))
        x_CF[:, 0] = [3.0 * (programs[place] == "add(n0,n1)") + draw.normal() for place in order]
        judged.append(Judged([Candidate(programs[place], 0, None, float(place)) for place in order], x_CF, []))
    chooser, choices = rerank.fit(judged, problems)
    assert chooser.weight_F[0] == max(chooser.weight_F) > 0
    assert np.mean([choice.program == "add(n0,n1)" for choice in choices]) > 0.6
    assert Chooser.of(asdict(chooser)) == chooser
    assert all(sorted(choice.order) == [0, 1, 2] for choice in choices)
    assert chooser.choose(Judged([], np.zeros((0, len(Features.NAMES))), [])).program == ""


def test_the_threshold_is_the_least_that_is_right_often_enough() -> None:
    sure, right = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, False])
    assert rerank.threshold_of(sure, right, 1.0) == 0.8
    assert rerank.threshold_of(sure, right, 0.5) == 0.6
    assert rerank.threshold_of(sure, ~right, 1.0) == 1.1
    about = rerank.sureness(sure.tolist(), right.tolist(), 0.8)
    assert (about["right_at_80"], about["coverage_sure"], about["right_sure"]) == (50, 50, 100)
    assert about["brier"] == pytest.approx(100 * (0.01 + 0.04 + 0.49 + 0.36) / 4)


def test_a_reranked_network_says_how_sure_it_is_and_what_is_nearest(reading: Text2MathTask, tmp_path: Path) -> None:
    extra = reading.finish()
    rows = {(row.split, row.metric): row for row in reading.results(extra)}
    assert {"exact", "execution", "brier", "right_at_80"} <= {metric for split, metric in rows if split == "test"}
    assert "reranked with 20 neighbours" in rows["test", "execution"].protocol
    path = tmp_path / "model.safetensors"
    save_weights(path, reading.modules, WeightsHeader("text2math", to_dict(reading.config), extra))
    asked = reading.problems["train"][0].text
    (answer,) = predict(path, None, Options(problems=(asked,)))
    assert isinstance(answer, Prediction)
    assert answer.probability is not None
    assert 0 <= answer.probability <= 1
    assert answer.unsure == (answer.probability < extra["chooser"]["threshold"])
    extra["chooser"]["threshold"] = 1.1
    (unsure,) = predict(path, extra, Options(problems=(asked,)))
    assert isinstance(unsure, Prediction)
    assert "% (unsure)" in tell([unsure])
    assert answer.nearest.startswith(asked)
    assert "nearest    " in tell([answer])
    (plain,) = predict(path, None, Options(problems=(asked,), rerank=False))
    assert isinstance(plain, Prediction)
    assert plain.probability is None
    beam = replace(reading.config.beam, width=10, grammar=True)
    batch = reading.encoded["test"].take(torch.arange(4))
    assert len(write_programs(reading.model, batch, reading.tokens, beam, size=4)) == 4


def test_the_vote_is_learned_and_scored_on_known_and_new_texts() -> None:
    config = retrieval()
    config = replace(config, data=smoke().data, loop=LoopConfig(max_steps=20, device="cpu"))
    task = make_task(config, Runtime(config.loop, 0))
    before = [weight.item() for weight in task.modules["vote"].parameters()]
    losses = [task.train_step(step)["loss"].item() for step in range(20)]
    assert losses[-1] < losses[0]
    assert [weight.item() for weight in task.modules["vote"].parameters()] != before
    splits = {row.split for row in task.results({})}
    assert {"dev", "test", "test, texts not seen"} <= splits


def test_no_two_splits_share_a_template() -> None:
    """A text goes where it goes with other numbers, cases and signs; its digest says where."""
    texts = [problem.text for part in sample().values() for problem in part]
    found = [split_of(text) for text in texts]
    assert [split_of(text.upper().replace("7", "3,812").replace(" . ", " ! ")) for text in texts] == found
    assert 0.7 < found.count("train") / len(found) < 0.9
    assert split_of("add 3 and 4") == split_of("add 5 and 6 .") == "train"


def test_all_systems_are_trained_on_the_template_disjoint_split() -> None:
    jobs = {job.name: job.settings([]) if not job.after else {} for job in STUDY.experiment("templates").jobs("laptop")}
    assert jobs.keys() == {"lstm", "lstm_attn", "bert_frozen", "bert_tuned", "retrieval", "ours", "best", "reads"}
    assert all(settings["data.source"] == "templates" for name, settings in jobs.items() if name != "bert_tuned")
    assert override(STUDY.preset("laptop").build(), dict(jobs["best"])) == replace(
        best(), data=replace(best().data, source="templates")
    )
