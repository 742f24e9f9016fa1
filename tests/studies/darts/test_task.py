"""Both phases by hand: what learns from which pictures, what is watched, when a search ends, exact resumes."""

import copy
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from tests.core import toy
from tests.studies.darts.common import SMALL, make, make_retrain, one_line, retrain_settings, settings
from torch import Tensor, nn
from torch.nn import functional

from etude.core import randomness
from etude.core.errors import UserError
from etude.data import pictures
from etude.studies.darts import operations, search
from etude.studies.darts.choice import chosen
from etude.studies.darts.genotype import OPERATIONS, as_text, from_text, parse, read, write
from etude.studies.darts.mixed import MixedCell
from etude.studies.darts.retrain_task import RetrainTask
from etude.studies.darts.search_task import SearchTask
from etude.studies.darts.study import DartsConfig
from etude.studies.darts.task import make_task

LR, LAST, STEPS = 0.025, 0.0, 30


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same_state(one: dict[str, Tensor], other: dict[str, Tensor], prefix: str = "") -> bool:
    names = [name for name in one if name.startswith(prefix)]
    assert names
    return all(torch.equal(one[name], other[name]) for name in names)


def moved(before: dict[str, Tensor], after: dict[str, Tensor], kind: str) -> bool:
    """Whether any of alpha, of all other parameters, or of the running statistics is another."""
    buffers = ("running_mean", "running_var", "num_batches_tracked")

    def of(name: str) -> str:
        return "alpha" if name.startswith("alpha.") else "buffers" if name.endswith(buffers) else "weights"

    names = [name for name in before if of(name) == kind and name not in ("mean", "std")]
    assert names
    return any(not torch.equal(before[name], after[name]) for name in names)


# --- the halves ---


@pytest.mark.parametrize(("share", "counts"), [(0.5, (30, 30)), (0.25, (45, 15)), (0.9, (6, 54))])
def test_the_halves_are_disjoint_and_have_all_classes(share: float, counts: tuple[int, int]) -> None:
    task = make(search__share=share, batch__size=4)
    train, val = task.halves["train"], task.halves["val"]
    for part, count in zip((train, val), counts, strict=True):
        assert part.labels_N.bincount().tolist() == [count] * 4
    assert not set(train.names) & set(val.names)
    assert {*train.names, *val.names} == set(task.pictures.splits["train"].names)


def test_each_step_reads_its_half_alone() -> None:
    """And over an epoch all of it, in an order of its own."""
    task = make(augment__pad=0, augment__flip=False, batch__size=40, augment__cutout=0)
    task.model.set_statistics(task.halves["train"].images_NHWC)
    wanted, orders = {}, {}
    for half in ("train", "val"):
        wanted[half] = task.model.prepare(task.halves[half].images_NHWC)
        seen = []
        for step in range(3):
            x_NCHW, labels_N = task.batch(half, step, 0)
            rows = (x_NCHW[:, None] == wanted[half][None]).flatten(2).all(2).int().argmax(1)
            assert torch.equal(x_NCHW, wanted[half][rows])
            assert torch.equal(labels_N, task.halves[half].labels_N[rows])
            seen += rows.tolist()
        assert sorted(seen) == list(range(120))
        orders[half] = seen
    assert orders["train"] != orders["val"]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"batch__size": 121}, ("a batch of 121 is larger than the 120", "for the weights", "--batch.size")),
        ({"search__share": 0.01}, ("a batch of 8 is larger than the 4 training pictures for alpha", "--search.share")),
        ({"search__share": 0.99}, ("larger than the 4 training pictures for the weights",)),
        ({"model__num_classes": 26}, ("up to 25 classes", "--model.num-classes")),
    ],
)
def test_halves_that_are_too_small_come_before_the_first_step(changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        _ = make(**changes).halves
    one_line(caught, *parts)


@pytest.mark.parametrize("count", [120, 240, 500])
def test_fewer_training_pictures(count: int) -> None:
    task = make(train_images=count)
    train = task.pictures.splits["train"]
    assert train.labels_N.bincount().tolist() == [min(count, 240) // 4] * 4
    assert len(task.pictures.splits["val"]) == 100
    assert len(task.halves["train"]) == len(task.halves["val"]) == min(count, 240) // 2
    assert ("120 of 240 training pictures" in task.pictures.about) == (count == 120)


def test_fewer_training_pictures_than_a_batch_are_one_line() -> None:
    for task in (make(train_images=12), make_retrain(train_images=4)):
        with pytest.raises(UserError) as caught:
            task.train_step(0)
        one_line(caught, "a batch of 8 is larger than the", "--batch.size")


# --- a step of the search by hand ---


def after_two_steps_by_hand(task: SearchTask) -> tuple[Any, list[dict[str, float]]]:
    """A copy of the network, taken on by plain optimisers of PyTorch: alpha on its half, then the weights on theirs."""
    task.model.set_statistics(task.halves["train"].images_NHWC)
    model = copy.deepcopy(task.model)
    alpha = [*model.alpha.values()]
    weights = [p for p in model.parameters() if all(p is not one for one in alpha)]
    adam = torch.optim.Adam(alpha, task.config.search.lr, (0.5, 0.999), weight_decay=1e-3)
    sgd = torch.optim.SGD(weights, LR, momentum=0.9, weight_decay=3e-4)
    told: list[dict[str, float]] = []
    for step in range(2):
        rows: dict[str, float] = {}
        for half, optimizer in (("val", adam), ("train", sgd)):
            buffers = [buffer.clone() for buffer in model.buffers()]
            x_NCHW, labels_N = task.batch(half, step, 0)  # type: ignore[arg-type]
            logits_NR = model.train()(x_NCHW)[0]
            loss = functional.cross_entropy(logits_NR, labels_N)
            optimizer.zero_grad()
            loss.backward()
            if half == "val":
                rows["alpha_loss"] = loss.item()
                for buffer, kept in zip(model.buffers(), buffers, strict=True):
                    buffer.copy_(kept)
            else:
                rate = LR / 2 * (1 + math.cos(math.pi * step / STEPS))
                sgd.param_groups[0]["lr"] = rows["rate"] = rate
                rows["loss"] = loss.item()
                rows["accuracy"] = 100 * (logits_NR.argmax(1) == labels_N).float().mean().item()
                rows["gradient"] = nn.utils.clip_grad_norm_(weights, 5.0).item()
            optimizer.step()
        told.append(rows)
    return model, told


def test_two_steps_of_the_search_by_hand() -> None:
    task = make(model__layers=3)
    expected, told = after_two_steps_by_hand(task)
    before = state(task.model)
    for step, rows in enumerate(told):
        found = {name: value.item() for name, value in task.train_step(step).items()}
        assert found == pytest.approx(rows, rel=1e-4)
    after = state(task.model)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-5)
    assert all(moved(before, after, kind) for kind in ("alpha", "weights", "buffers"))


def test_a_clip_of_zero_is_none() -> None:
    clipped, free, loose = (make(optim__clip=clip, optim__lr=0.5) for clip in (0.01, 0.0, 1e9))
    for task in (clipped, free, loose):
        for step in range(2):
            task.train_step(step)
    assert same_state(state(free.model), state(loose.model))
    assert not same_state(state(free.model), state(clipped.model))


@pytest.mark.parametrize("order", [1, 2])
def test_alpha_waits(order: int) -> None:
    task = make(search__wait=2, search__order=order)
    before = state(task.model)
    for step in range(3):
        found = task.train_step(step)
        after = state(task.model)
        assert moved(before, after, "weights")
        assert moved(before, after, "alpha") == (step == 2)
        assert (found["alpha_loss"].item() > 0) == (step == 2)
        assert len(task.adam.state) == 2 * (step == 2)
        before = after


def test_weights_do_not_move_for_alphas_step() -> None:
    """Nor are their gradients computed: the only kernel written here that could is not asked to."""
    task = make(model__layers=3)
    task.model.set_statistics(task.halves["train"].images_NHWC)
    asked: list[tuple[bool, ...]] = []
    backward = operations._Wide.backward

    def noted(ctx: Any, *outputs: Tensor) -> Any:
        asked.append(tuple(ctx.needs_input_grad))
        return backward(ctx, *outputs)

    before = state(task.model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operations._Wide, "backward", staticmethod(noted))
        (of_alpha, _), _ = task.alpha_gradient(0, LR)
        assert {weight for _, weight in asked} == {False}
        assert all(parameter.grad is None for parameter in task.model.parameters())
        asked.clear()
        task.gradient("train", task.weights, 0)
        assert {weight for _, weight in asked} == {True}
    assert of_alpha.any()
    after = state(task.model)
    assert not moved(before, after, "weights")
    assert not moved(before, after, "alpha")
    assert all(parameter.requires_grad for parameter in task.model.parameters())


def test_second_order_by_hand() -> None:
    """Equations 7 and 8 on copies of the network, after two steps, so that there is momentum."""
    task, xi = make(search__order=2, model__layers=3), 0.02
    for step in range(2):
        task.train_step(step)
    before = state(task.model)
    found, alpha_loss = task.alpha_gradient(2, xi)
    assert not moved(before, state(task.model), "weights")
    task.model.load_state_dict(before)

    def at(weights: list[Tensor], half: Any) -> tuple[float, list[Tensor], list[Tensor]]:
        """Loss of a half, and its gradient by alpha and by the weights, at these weights."""
        net = copy.deepcopy(task.model)
        alpha = [*net.alpha.values()]
        mine = [p for p in net.parameters() if all(p is not one for one in alpha)]
        for parameter, value in zip(mine, weights, strict=True):
            parameter.data = value.clone()
        x_NCHW, labels_N = task.batch(half, 2, 0)
        loss = functional.cross_entropy(net(x_NCHW)[0], labels_N)
        loss.backward()
        grads = [p.grad for p in (*alpha, *mine) if p.grad is not None]
        return loss.item(), grads[:2], grads[2:]

    start = [weight.detach() for weight in task.weights]
    buffers = [task.sgd.state[weight]["momentum_buffer"] for weight in task.weights]
    steps = at(start, "train")[2]
    there = [w - xi * (0.9 * m + g + 3e-4 * w) for w, m, g in zip(start, buffers, steps, strict=True)]
    loss, of_alpha, direction = at(there, "val")
    epsilon = 0.01 / torch.cat([part.flatten() for part in direction]).norm()
    plus, minus = (
        at([w + e * d for w, d in zip(start, direction, strict=True)], "train")[1] for e in (epsilon, -epsilon)
    )
    assert alpha_loss.item() == pytest.approx(loss, rel=1e-5)
    for mine, here, one, other in zip(found, of_alpha, plus, minus, strict=True):
        second = xi * (one - other) / (2 * epsilon)
        assert second.norm() > 0.01 * here.norm()
        torch.testing.assert_close(mine, here - second, rtol=1e-2, atol=1e-4)


def test_parts_of_a_batch_are_a_batch() -> None:
    """Where norms take the statistics of running means, the gradient of two parts is that of one."""
    one, two = make(augment__pad=0, augment__flip=False), make(
        augment__pad=0, augment__flip=False, batch__parts=2
    )  # fmt: skip
    found = []
    for task in (one, two):
        task.model.set_statistics(task.halves["train"].images_NHWC)
        task.model.eval()
        found.append(task.gradient("val", task.architecture, 0))
    for mine, theirs in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1])


@pytest.mark.parametrize("changes", [{}, {"search__order": 2, "search__partial": 2, "search__edge_norm": True}])
def test_the_plain_form_trains_to_the_same_losses(changes: dict[str, Any]) -> None:
    """In float64, for Adam makes steps of one size of gradients that are but rounding."""
    rows: list[list[float]] = []
    for mixture in ("shared", "plain"):
        task = make(search__mixture=mixture, **changes)
        task.model.double()
        steps = [task.train_step(step) for step in range(4)]
        rows.append([found[name].item() for found in steps for name in ("loss", "alpha_loss", "gradient")])
    assert rows[1] == pytest.approx(rows[0], rel=1e-6)
    assert isinstance(task.model.cells[0], MixedCell)


# --- the extra skip ---


def test_the_extra_skip_falls_from_one_to_zero() -> None:
    task = make(search__auxiliary_skip=True, loop__max_steps=4)
    seen: list[float] = []
    task.model.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    for step in range(4):
        task.train_step(step)
    # Of each step the pass for alpha and that for the weights.
    assert seen == [1.0, 1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]
    assert task.skip == 0.0
    assert make().skip == 0.0


def test_an_evaluation_has_the_extra_skips_of_its_step() -> None:
    """Its norms' statistics are of maps with them. Of weights read back, the summary says which step they are of."""
    changes: dict[str, Any] = {"search__auxiliary_skip": True, "loop__max_steps": 4}
    task = make(**changes)
    task.train_step(0)
    val = task.pictures.splits["val"]
    x_NCHW = task.model.eval()(task.model.prepare(val.images_NHWC), 0.75)[0].detach()
    torch.testing.assert_close(task.logits(val), x_NCHW, rtol=1e-4, atol=1e-5)
    expected = [row.value for row in task.results(task.finish())]
    again = make(**changes)
    again.model.load_state_dict(task.model.state_dict())
    assert [row.value for row in again.results(task.finish())] == expected
    assert again.skip == 0.75


# --- evaluation ---


@pytest.mark.parametrize("remedies", [{}, {"search__partial": 2, "search__edge_norm": True}])
def test_an_evaluation_is_the_same_each_time_and_leaves_all_as_it_was(remedies: dict[str, Any]) -> None:
    task = make(search__eigenvalue=True, **remedies)
    for step in range(2):
        task.train_step(step)
    before, optimizers = state(task.model), copy.deepcopy([task.sgd.state_dict(), task.adam.state_dict()])
    first, second = task.evaluate(), task.evaluate()
    assert first == second
    assert same_state(before, state(task.model))
    assert toy.same(optimizers, [task.sgd.state_dict(), task.adam.state_dict()])
    assert all(p.requires_grad and p.grad is None for p in task.model.parameters())
    assert len(task.rows) == 1, "of one step there is one evaluation"


def test_what_an_evaluation_measures() -> None:
    task = make()
    task.train_step(0)
    with torch.no_grad():
        for kind, name in (("normal", "skip_connect"), ("reduction", "sep_conv_5x5")):
            task.model.alpha[kind].zero_()
            task.model.alpha[kind][:, OPERATIONS.index(name)] = math.log(9)
    rows = task.evaluate()
    for split, name in ((task.pictures.splits["val"], ""), (task.halves["val"], "alpha/")):
        logits_NR = task.model.eval()(task.model.prepare(split.images_NHWC))[0].detach()
        assert rows[f"{name}accuracy"] == pytest.approx(100 * (logits_NR.argmax(1) == split.labels_N).float().mean())
        loss = functional.cross_entropy(logits_NR, split.labels_N).item()
        assert rows[f"{name}loss"] == pytest.approx(loss, rel=1e-5)
    assert (rows["skips"], rows["reduction_skips"]) == (4, 0)
    # Of nine in sixteen and seven times one: 9/16 ln(16/9) + 7/16 ln 16.
    expected = 9 / 16 * math.log(16 / 9) + 7 / 16 * math.log(16)
    assert rows["entropy"] == pytest.approx(expected, rel=1e-5)
    assert rows["mixture/normal/4/skip_connect"] == pytest.approx(9 / 16)
    assert rows["mixture/reduction/0/none"] == pytest.approx(1 / 16)
    assert sum(name.startswith("mixture/") for name in rows) == 2 * 5 * 8
    assert "eigenvalue" not in rows
    assert task.rows[0]["genotype"] == as_text(task.genotype)
    assert task.rows[0]["step"] == 1.0


def test_some_pictures_are_watched_and_all_are_scored_at_the_end() -> None:
    task = make(watched=30)
    task.train_step(0)
    seen: list[tuple[str, ...]] = []
    score = task.score
    task.score = lambda images: (seen.append(images.names), score(images))[1]  # type: ignore[method-assign]
    task.evaluate()
    task.evaluate()
    assert [len(set(names)) for names in seen] == [30] * 4
    assert seen[:2] == seen[2:]
    assert set(seen[0]) <= set(task.pictures.splits["val"].names)
    assert set(seen[1]) <= set(task.halves["val"].names)
    seen.clear()
    task.results({})
    assert [len(names) for names in seen] == [120, 100, 200]
    seen.clear()
    task.config = settings(watched=0)
    task.evaluate()
    assert [len(names) for names in seen] == [100, 120]


def test_an_eigenvalue_is_of_the_same_pictures_each_time() -> None:
    task = make(search__stop="eigenvalue")
    for step in range(2):
        task.train_step(step)
    seen: list[Tensor] = []
    task.model.register_forward_pre_hook(lambda module, args: seen.append(args[0]) if module.training else None)
    assert task.evaluate()["eigenvalue"] != 0
    assert len(seen) == 20
    assert all(torch.equal(x, seen[0]) for x in seen)


# --- how a search ends ---


def towards(task: SearchTask, skips: int) -> None:
    """Alpha of a normal cell with so many skips; its other edges are convolutions."""
    with torch.no_grad():
        alpha = task.model.alpha["normal"].zero_()
        alpha[:, OPERATIONS.index("sep_conv_3x3")] = 1
        for row in range(skips):
            alpha[row, OPERATIONS.index("skip_connect")] = 2


def scripted(task: SearchTask, skips: list[int]) -> SearchTask:
    """A task whose alpha is set, after each step, to a cell of so many skips."""
    train_step = task.train_step

    def stepped(step: int) -> Any:
        found = train_step(step)
        towards(task, skips[step])
        return found

    task.train_step = stepped  # type: ignore[method-assign]
    return task


def test_a_collapse_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    task = make()
    task.train_step(0)
    for number, (skips, told) in enumerate([(1, 0), (2, 1), (2, 0), (1, 0), (2, 1)]):
        caplog.clear()
        towards(task, skips)
        task.step = number
        with caplog.at_level(logging.WARNING, "etude"):
            task.evaluate()
        assert len(caplog.messages) == told
        if told:
            assert caplog.messages[0] == "the normal cell has 2 skips of 4 edges: the search collapses"
    assert not task.ended


def begin(path: Path, config: DartsConfig, skips: list[int]) -> tuple[SearchTask, Any]:
    return toy.begin(path, "darts", lambda *words: scripted(SearchTask(*words), skips), config)


def test_a_search_ends_by_its_rule(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = settings(
        search__stop="skips", search__most_skips=2, loop__max_steps=6, loop__eval_every=1, loop__save_every=5
    )
    task, loop = begin(tmp_path / "run", config, [0, 1, 2, 0, 0, 0])
    loop.resume()
    with caplog.at_level(logging.WARNING, "etude"):
        loop.train()
    assert (loop.state.step, loop.state.stopped_early) == (3, True)
    assert "the search stops by the rule 'skips' at step 3; the cell of step 3 is kept" in caplog.messages
    assert loop.checkpoints.steps() == [3], "what it stopped at is saved"
    assert task.genotype.count("skip_connect") == 2
    assert task.finish()["skips"] == 2
    # Taken up again it is at its end, and knows what it found.
    again, loop = begin(tmp_path / "run", config, [0] * 6)
    assert loop.resume() == 3
    loop.train()
    assert loop.state.step == 3
    assert again.genotype == task.genotype
    assert again.finish() == task.finish()


BACK = "def Rule(rows):\n    return 2 if rows[-1]['skips'] >= 2 else None\n"


def test_the_cell_that_is_kept_is_that_of_the_evaluation_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two evaluations before; also where the run is cut between them, and bit for bit."""
    (tmp_path / "mine.py").write_text(BACK)
    changes = {"loop__max_steps": 12, "loop__eval_every": 2, "loop__save_every": 3, "loop__log_every": 5}
    config = settings(search__stop=f"{tmp_path / 'mine.py'}:Rule", **changes)
    skips = [0, 0, 0, 1, 1, 0, 0, 2, 0, 0, 0, 0]

    def kind(*words: Any) -> SearchTask:
        return scripted(SearchTask(*words), skips)

    task, loop = toy.begin(tmp_path / "whole", "darts", kind, config)
    with caplog.at_level(logging.WARNING, "etude"):
        loop.train()
    assert loop.state.step == 8
    kept = {step: row.get("kept") for step, row in task.history.items()}
    assert list(kept) == [2, 4, 6, 8]
    assert [step for step, text in kept.items() if text] == [8]
    assert kept[8] == task.history[4]["genotype"] != task.history[8]["genotype"]
    assert any("at step 8; the cell of step 4 is kept" in said for said in caplog.messages)
    assert task.genotype == from_text(task.history[4]["genotype"]) != task.model.genotype
    assert task.finish()["skips"] == 1

    _, cut = toy.begin(tmp_path / "cut", "darts", kind, config)
    step_taken = cut.task.train_step

    def train_step(step: int) -> Any:
        if step == 7:
            raise toy.Cut
        return step_taken(step)

    cut.task.train_step = train_step  # type: ignore[method-assign]
    with pytest.raises(toy.Cut):
        cut.train()
    again, cut = toy.begin(tmp_path / "cut", "darts", kind, config)
    assert cut.resume() == 6
    cut.train()
    assert again.history == task.history
    assert toy.metrics(tmp_path / "cut") == toy.metrics(tmp_path / "whole")
    assert same_state(state(again.model), state(task.model))
    assert again.genotype == task.genotype


def test_a_rule_that_fails_ends_the_run_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def Rule(rows):\n    return None if len(rows) < 2 else {}['gone']\n")
    changes = {"loop__max_steps": 4, "loop__eval_every": 1, "loop__save_every": 1}
    config = settings(search__stop=f"{tmp_path / 'mine.py'}:Rule", **changes)
    _, loop = toy.begin(tmp_path / "run", "darts", SearchTask, config)
    with pytest.raises(UserError) as caught:
        loop.train()
    one_line(caught, "mine.py:Rule failed on 2 rows: KeyError")
    assert loop.checkpoints.steps() == [1], "what was learned before is kept"


# --- retraining ---


def test_a_step_of_retraining_by_hand() -> None:
    """With dropped paths, whose share rises from zero."""
    task = make_retrain(retrain__drop_path=0.5)
    train = task.pictures.splits["train"]
    task.model.set_statistics(train.images_NHWC)
    model = copy.deepcopy(task.model)
    sgd = torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=3e-4)
    for step in range(2):
        rows = task._epochs.rows(step, 240, 8)
        x_NCHW, labels_N = task.inputs(train, rows, "train/augment", step, 0)
        keep = 1 - 0.5 * step / STEPS
        logits_NR, _ = model.train()(x_NCHW, keep, task.coins(8, step, 0))
        loss = functional.cross_entropy(logits_NR, labels_N)
        sgd.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 5.0).item()
        rate = LR / 2 * (1 + math.cos(math.pi * step / STEPS))
        sgd.param_groups[0]["lr"] = rate
        sgd.step()
        found = {name: value.item() for name, value in task.train_step(step).items()}
        right = 100 * (logits_NR.argmax(1) == labels_N).float().mean().item()
        expected = {"loss": loss.item(), "accuracy": right, "gradient": norm, "rate": rate}
        assert found == pytest.approx(expected, rel=1e-4)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(task.model.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_coins_are_drawn_anew_for_every_edge_picture_step_and_part() -> None:
    task = make_retrain(retrain__drop_path=0.5)
    coins = task.coins(50, 3, 0)
    assert [len(of_cell) for of_cell in coins] == [4, 4], "two edges to each of two nodes, in two cells"
    drawn = torch.stack([coin for of_cell in coins for coin in of_cell])
    assert drawn.shape == (8, 50)
    assert 0 <= drawn.min() < 0.1
    assert 0.9 < drawn.max() < 1
    assert len(drawn.unique()) == 400
    again, later, other = task.coins(50, 3, 0), task.coins(50, 4, 0), task.coins(50, 3, 1)
    assert toy.same(coins, again)
    assert not torch.equal(coins[0][0], later[0][0])
    assert not torch.equal(coins[0][0], other[0][0])


def test_no_path_is_dropped_where_none_is_asked_for() -> None:
    task = make_retrain(retrain__drop_path=0.0)
    seen: list[Any] = []
    task.model.register_forward_pre_hook(lambda _, args: seen.append(args[1:]))
    task.train_step(20)
    assert seen == [(1.0, None)]


def test_the_auxiliary_head_adds_its_loss() -> None:
    """By its weight; it has no say in evaluation, nor in the loss that is told."""
    changes = {"data__size": 32, "batch__size": 4, "retrain__drop_path": 0.0}
    task = make_retrain(retrain__auxiliary=0.4, **changes)
    model = copy.deepcopy(task.model)
    model.set_statistics(task.pictures.splits["train"].images_NHWC)
    task.optimizer.step = lambda *_: None  # type: ignore[method-assign]
    held: list[list[Tensor]] = []
    task.shared_optimizer.step = lambda *_: held.append([p.grad.clone() for p in task.model.parameters()])  # type: ignore
    told = task.train_step(0)["loss"].item()
    x_NCHW, labels_N = task.inputs(
        task.pictures.splits["train"], task._epochs.rows(0, 240, 4), "train/augment", 0, 0
    )  # fmt: skip
    logits_NR, named = model.train()(x_NCHW)
    loss = functional.cross_entropy(logits_NR, labels_N)
    (loss + 0.4 * functional.cross_entropy(named["auxiliary"], labels_N)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    assert told == pytest.approx(loss.item(), rel=1e-5)
    for mine, theirs in zip(held[0], model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.grad, rtol=1e-3, atol=1e-5)
    assert make_retrain(**changes, retrain__auxiliary=0.0).model.auxiliary is None


def test_cutout_blanks_a_square_of_training_pictures_alone() -> None:
    task = make_retrain(augment__pad=0, augment__flip=False, augment__cutout=4)
    train = task.pictures.splits["train"]
    task.model.set_statistics(train.images_NHWC)
    plain = task.model.prepare(train.images_NHWC[:8])
    cut, labels = task.inputs(train, torch.arange(8), "train/augment", 0, 0)
    assert torch.equal(labels, train.labels_N[:8])
    blank = (cut == 0).all(1)
    assert torch.equal(cut, plain.masked_fill(blank[:, None], 0))
    assert all(4 <= count <= 16 for count in blank.sum((1, 2)).tolist())
    assert len({tuple(row) for row in blank.flatten(1).tolist()}) > 1
    expected = task.model.eval()(task.model.prepare(train.images_NHWC[:8]))[0]
    torch.testing.assert_close(task.logits(train.take(range(8))), expected.detach(), rtol=1e-4, atol=1e-5)


def test_two_layers_are_two_reductions() -> None:
    """Which can be trained, and leave no normal cell to look for."""
    looks, trains = make(model__layers=3), make_retrain(model__layers=2)
    assert (looks.model.halved, trains.model.halved) == ((1, 2), (0, 1))
    for task in (looks, trains):
        assert task.train_step(0)["loss"].isfinite()
        assert math.isfinite(task.evaluate()["loss"])
    with pytest.raises(UserError, match=r"model\.layers must be at least 3 in a search: of two cells both are"):
        make(model__layers=2)


def test_the_phase_is_the_task() -> None:
    for config, kind in ((settings(), SearchTask), (retrain_settings(), RetrainTask)):
        runtime = make().runtime
        assert type(make_task(config, runtime)) is kind


# --- the cell that is retrained ---


def test_every_way_to_name_a_cell(tmp_path: Path) -> None:
    small = parse(SMALL, "small")
    write(tmp_path / "mine.json", small)
    write(tmp_path / "run" / "figures" / "genotype.json", small)
    for text in (str(tmp_path / "mine.json"), str(tmp_path / "run"), json.dumps(SMALL)):
        config = retrain_settings(genotype=text)
        # The content is kept: the file may be gone tomorrow.
        assert config.genotype == as_text(small)
    (tmp_path / "mine.json").unlink()
    assert make_retrain(genotype=config.genotype).genotype == small
    assert retrain_settings(genotype="darts-v1").genotype == "darts-v1"
    assert make_retrain(genotype="darts-v1").genotype == read("darts-v1")
    assert retrain_settings(genotype="random-3").genotype == "random-3"


def test_random_cells_are_those_of_the_seed() -> None:
    assert make_retrain(genotype="random-3").genotype == chosen("random-3", 0)
    drawn = [chosen(f"random-{number}", seed) for number in range(3) for seed in range(3)]
    assert len({as_text(one) for one in drawn}) == 9
    assert make_retrain(genotype="random-1", seed=2).genotype == chosen("random-1", 2)


# --- results ---


def test_results_of_a_search_say_what_they_are() -> None:
    task = make(search__order=2, search__partial=2, search__edge_norm=True, loop__max_steps=30, table="search")
    task.train_step(0)
    rows = task.results({})
    assert [(row.split, row.metric) for row in rows] == [
        ("alpha", "search_accuracy"), ("val", "search_accuracy"), ("test", "search_accuracy"),
        ("train", "normal_skips"), ("train", "reduction_skips"),
    ]  # fmt: skip
    counts = {"alpha": 120, "val": 100, "test": 200}
    for row in rows:
        assert row.metric not in ("accuracy", "error"), "what a mixture scores stands in no column of found cells"
        assert (row.experiment, row.cell) == ("search", "second-partial2-edges")
        # 30 steps of 8 are two epochs of 120.
        for part in ("the mixture", "up to 2 epochs of 120 pictures and 120 for alpha", "3 cells of 4 channels"):
            assert part in row.protocol
        if row.metric == "search_accuracy":
            images = task.halves["val"] if row.split == "alpha" else task.pictures.splits[row.split]
            right = (task.logits(images).argmax(1) == images.labels_N).float().mean().item()
            assert row.value == pytest.approx(100 * right)
            ends = binomtest(round(right * len(images)), len(images)).proportion_ci(0.95, "wilson")
            assert row.half_width == pytest.approx(100 * max(right - ends.low, ends.high - right))
            assert len(images) == counts[row.split]
            assert ("alpha learned from" in row.protocol) == (row.split == "alpha")
        else:
            assert row.half_width is None
            assert row.value == task.genotype.count("skip_connect", row.metric.split("_")[0])  # type: ignore[arg-type]
            assert row.unit == ""


def test_skips_are_those_of_the_cell_that_was_found() -> None:
    """Not of the one that alpha says at the end, where a rule kept another."""
    rows = {row.metric: row.value for row in make().results({"genotype": SMALL})}
    assert (rows["normal_skips"], rows["reduction_skips"]) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "first"),
        ({"search__order": 2}, "second"),
        ({"search__auxiliary_skip": True}, "first-auxiliary"),
        ({"search__stop": "skips"}, "first-stop-skips"),
        ({"search__partial": 2}, "first-partial2"),
        ({"cell": "mine", "search__order": 2}, "mine"),
    ],
)
def test_the_place_of_a_search_in_a_table(changes: dict[str, Any], name: str) -> None:
    assert make(**changes).cell() == name


def test_results_of_a_retraining_say_what_they_are() -> None:
    task = make_retrain(table="retrained", loop__max_steps=60)
    rows = task.results({})
    metrics = ("loss", "accuracy", "error")
    assert [(row.split, row.metric) for row in rows] == [(s, m) for s in ("val", "test") for m in metrics]
    by = {(row.split, row.metric): row for row in rows}
    for row in rows:
        assert (row.experiment, row.cell) == ("retrained", "found")
        for part in ("retrained from scratch", "up to 2 epochs of 240", "cutout 2", "chosen on validation"):
            assert part in row.protocol
    for split, count in (("val", 100), ("test", 200)):
        accuracy, error = by[split, "accuracy"], by[split, "error"]
        assert accuracy.value == pytest.approx(task.score(task.pictures.splits[split])["accuracy"])
        assert error.value == pytest.approx(100 - accuracy.value)
        right = round(accuracy.value * count / 100)
        ends = binomtest(right, count).proportion_ci(0.95, "wilson")
        width = 100 * max(right / count - ends.low, ends.high - right / count)
        assert accuracy.half_width == error.half_width == pytest.approx(width)
        assert by[split, "loss"].half_width is None
    assert task.cell() == "found"
    for genotype, name in (("darts-v1", "darts-v1"), ("random-0", "random")):
        assert make_retrain(genotype=genotype).cell() == name


def test_what_the_weights_carry() -> None:
    looks, trains = make(), make_retrain()
    looks.train_step(0)
    assert looks.finish() == {
        "genotype": looks.genotype.to_dict(), "skips": looks.genotype.count("skip_connect"), "step": 1,
        "pictures": "generated shapes, 8 px",
    }  # fmt: skip
    assert trains.finish() == {
        "classes": ["disc", "square", "triangle", "cross"], "pictures": "generated shapes, 8 px", "genotype": SMALL,
    }  # fmt: skip
    assert looks.data_checksums() == {"generated": "shapes, seeds 0 to 2"}
    # The best of a retraining is chosen on validation; a search ends with its last.
    assert (looks.monitor, trains.monitor) == (None, ("accuracy", "max"))


def test_a_split_is_scored_in_parts_of_any_size() -> None:
    for task in (make(batch__evaluation=30), make_retrain(batch__evaluation=30)):
        task.train_step(0)
        val = task.pictures.splits["val"]
        whole = task.model.eval()(task.model.prepare(val.images_NHWC))[0].detach()
        torch.testing.assert_close(task.logits(val), whole, rtol=1e-4, atol=1e-4)
        assert task.logits(val.take([])).shape == (0, 4)


def test_half_precision_learns() -> None:
    for task in (make(loop__precision="bf16", search__order=2), make_retrain(loop__precision="bf16")):
        before = state(task.model)
        assert task.train_step(0)["loss"].isfinite()
        after = state(task.model)
        assert moved(before, after, "weights")
        assert all(value.dtype == before[name].dtype for name, value in after.items())


# --- exact resumes ---

LENGTHS = {"loop__max_steps": 8, "loop__eval_every": 3, "loop__save_every": 4, "loop__log_every": 5}


@pytest.mark.parametrize(
    "changes",
    [
        {"search__eigenvalue": True},
        {"search__order": 2, "search__wait": 2, "search__auxiliary_skip": True},
        {"search__partial": 2, "search__edge_norm": True, "batch__parts": 2, "search__stop": "eigenvalue"},
    ],
)
def test_a_search_resumes_exactly(tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """8 steps are 4 and 4, bit for bit, across the end of an epoch of 3."""
    monkeypatch.setattr(search, "EIGENVALUE_STEPS", 1)
    config = settings(batch__size=40, **LENGTHS, **changes)
    assert toy.resumes_exactly(tmp_path, "darts", SearchTask, config, cut_at=5) == 4


@pytest.mark.parametrize("parts", [1, 2])
def test_a_retraining_resumes_exactly(tmp_path: Path, parts: int) -> None:
    config = retrain_settings(batch__size=80, batch__parts=parts, retrain__drop_path=0.3, **LENGTHS)
    assert toy.resumes_exactly(tmp_path, "darts", RetrainTask, config, cut_at=5) == 4


def test_the_seed_is_the_run() -> None:
    found = []
    for seed in (0, 0, 1):
        task = make(seed=seed)
        randomness.seed_globals(7, "elsewhere", 0)
        found.append([task.train_step(step)["loss"].item() for step in range(2)])
    assert found[0] == found[1] != found[2]


def test_pictures_are_read_once_and_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    load, calls = pictures.load, []
    monkeypatch.setattr(pictures, "load", lambda *words, **named: (calls.append(named), load(*words, **named))[1])
    for task, batch in ((make(), 0), (make_retrain(), 8)):
        calls.clear()
        before = task.pictures.splits["train"].images_NHWC.clone()
        task.train_step(0)
        task.evaluate()
        assert [call["batch"] for call in calls] == [batch]
        assert torch.equal(task.pictures.splits["train"].images_NHWC, before)
