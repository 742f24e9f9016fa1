"""The loop: exact resume, early stopping, faults that stop a run, signals, saves."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.core import toy
from tests.core.test_checkpoint import reseal

from etude.core import randomness
from etude.core.checkpoint import read_weights
from etude.core.errors import Interrupted, UserError
from etude.core.loop import Loop
from etude.core.runtime import Runtime
from etude.draw.metrics import rows_of


class Crash(Exception):  # noqa: N818 - it is a stop, no fault
    """Ends a run as a power cut would: nothing is saved after it."""


def crash() -> None:
    raise Crash


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def assert_same_end(one: Loop, other: Loop) -> None:
    """Equal to the last bit: weights, optimiser, loop state, the best checkpoint, the metrics."""
    assert one.state.step == other.state.step
    ours, theirs = dataclasses.asdict(one.state), dataclasses.asdict(other.state)
    assert ours.pop("seconds") > 0
    assert theirs.pop("seconds") > 0
    assert ours == theirs
    assert one.checkpoints.best_step == other.checkpoints.best_step
    best = one.checkpoints.best_step
    assert best is not None
    for step in (one.state.step, best):
        tensors, header = read_weights(one.checkpoints.path(step) / "weights.safetensors")
        again, header_again = read_weights(other.checkpoints.path(step) / "weights.safetensors")
        assert toy.same(tensors, again)
        assert header == header_again
        assert toy.same(one.checkpoints.load_resume(step), other.checkpoints.load_resume(step))
    rows = toy.metrics(one.run.path)
    assert rows
    assert rows == toy.metrics(other.run.path)


@pytest.mark.parametrize("step", [1, 3, 4, 6, 7, 9, 10])
@pytest.mark.parametrize("stop", [crash, interrupt])
def test_a_run_in_two_parts_equals_one(tmp_path: Path, step: int, stop: object):
    settings = toy.config(12)
    whole = toy.train(tmp_path / "whole", settings)
    task, loop = toy.build(tmp_path / "parts", settings)
    task.before[step] = stop  # pyright: ignore[reportArgumentType]
    loop.resume()
    with pytest.raises((Crash, Interrupted)):
        loop.train()

    task, loop = toy.build(tmp_path / "parts", settings)
    begun = loop.resume()
    # A crash loses the steps since the last checkpoint, a polite stop none.
    assert begun == (step + 1 if stop is interrupt else max(step // 3 * 3, step // 4 * 4))
    loop.train()
    assert task.steps == list(range(begun, 12))
    assert_same_end(whole, loop)


def test_many_crashes_change_nothing(tmp_path: Path):
    settings = toy.config(20, save_every=2, patience=3, keep=1)
    whole = toy.train(tmp_path / "whole", settings)
    for step in (1, 2, 5, 5, 9, 10, 13, 19):
        with pytest.raises(Crash):
            toy.train(tmp_path / "parts", settings, {step: crash})
    assert_same_end(whole, toy.train(tmp_path / "parts", settings))


def test_the_toy_would_notice_a_lost_part(tmp_path: Path):
    """The comparison has teeth: without one part of the resume state the ends differ."""
    settings = toy.config(12, log_every=4)
    whole = toy.train(tmp_path / "whole", settings)
    for part in ("optimizers", "window", "buffers", "dropout"):
        path = tmp_path / part
        with pytest.raises(Crash):
            toy.train(path, settings, {7: crash})
        task, loop = toy.build(path, settings)
        loop.resume()
        if part == "optimizers":
            task.adam.state.clear()
        elif part == "window":
            loop.window.sums["loss"] += 1
            loop.window.count += 1
        elif part == "buffers":
            task.net[1].reset_running_stats()  # pyright: ignore[reportCallIssue]
        else:
            loop.runtime.seed = 1
        loop.train()
        with pytest.raises(AssertionError):
            assert_same_end(whole, loop)


def test_a_last_step_off_every_interval_is_logged_evaluated_and_saved(tmp_path: Path):
    loop = toy.train(tmp_path / "run", toy.config(7))
    rows = toy.metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [2, 4, 6, 7]
    assert "val/loss" in rows[-1]
    assert rows[-1]["train/loss"] > 0
    assert loop.checkpoints.steps()[-1] == 7


def test_a_logged_loss_is_the_mean_since_the_line_before(tmp_path: Path):
    toy.train(tmp_path / "each", toy.config(6, log_every=1))
    toy.train(tmp_path / "three", toy.config(6, log_every=3))
    each = [row["train/loss"] for row in toy.metrics(tmp_path / "each")]
    _, three = rows_of(toy.metrics(tmp_path / "three"), "train/loss")
    assert len(each) == 6
    # An evaluation at step 4 writes a line with no training loss in it.
    assert three == pytest.approx([sum(each[:3]) / 3, sum(each[3:]) / 3], rel=1e-12)


def test_evaluation_and_saves_only_at_the_end(tmp_path: Path):
    loop = toy.train(tmp_path / "run", toy.config(6, eval_every=0, save_every=0, save_minutes=0))
    assert [step for step, row in ((r["step"], r) for r in toy.metrics(tmp_path / "run")) if "val/loss" in row] == [6]
    assert loop.checkpoints.steps() == [6]


SCORES = (5.0, 3.0, 4.0, 3.5, 3.0, 9.0, 1.0)


def test_early_stopping_counts_evaluations_without_a_better_one(tmp_path: Path):
    # Best at the second evaluation; an equal score is no better; patience ends at the fifth, before the 1.0.
    settings = toy.config(28, scores=SCORES, patience=3, eval_every=2, log_every=2, save_every=0, save_minutes=0)
    loop = toy.train(tmp_path / "run", settings)
    assert loop.state.stopped_early
    assert loop.state.step == 10
    assert loop.state.best == 3.0
    assert loop.checkpoints.best_step == 4
    assert loop.checkpoints.steps() == [4, 10]

    patient = toy.train(tmp_path / "patient", dataclasses.replace(
        settings, loop=dataclasses.replace(settings.loop, patience=0, max_steps=14)
    ))  # fmt: skip
    assert not patient.state.stopped_early
    assert patient.checkpoints.best_step == 14


@pytest.mark.parametrize("step", [3, 4, 5, 6, 7, 9])
def test_early_stopping_survives_a_crash(tmp_path: Path, step: int):
    settings = toy.config(28, scores=SCORES, patience=3, eval_every=2, save_every=3)
    whole = toy.train(tmp_path / "whole", settings)
    assert whole.state.step == 10
    with pytest.raises(Crash):
        toy.train(tmp_path / "parts", settings, {step: crash})
    assert_same_end(whole, toy.train(tmp_path / "parts", settings))


def test_a_run_that_stopped_early_stays_stopped(tmp_path: Path):
    settings = toy.config(28, scores=SCORES, patience=3, eval_every=2)
    toy.train(tmp_path / "run", settings)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    task, loop = toy.build(tmp_path / "run", settings)
    assert loop.resume() == 10
    loop.train()
    assert task.steps == []
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def ending(path: Path, settings: toy.ToyConfig, at: int) -> tuple[toy.ToyTask, Loop]:
    """A run whose task has found what it looks for at the evaluation of a step."""
    task, loop = toy.build(path, settings)
    evaluate = task.evaluate

    def found() -> dict[str, float]:
        task.ended |= task.steps[-1] + 1 == at
        return evaluate()

    task.evaluate = found  # type: ignore[method-assign]
    return task, loop


@pytest.mark.parametrize("scores", [(), SCORES])
def test_a_task_that_has_found_what_it_looks_for_ends_the_run(tmp_path: Path, scores: tuple[float, ...]):
    """After that evaluation, logged and saved, whether its score was the best or not; and for good."""
    settings = toy.config(28, eval_every=4, save_every=0, save_minutes=0, scores=scores)
    task, loop = ending(tmp_path / "run", settings, 12)
    loop.train()
    assert task.steps == list(range(12))
    assert loop.state.stopped_early
    assert toy.metrics(tmp_path / "run")[-1]["step"] == 12
    assert "val/loss" in toy.metrics(tmp_path / "run")[-1]
    assert loop.checkpoints.newest() == 12
    again, loop = toy.build(tmp_path / "run", settings)
    assert loop.resume() == 12
    loop.train()
    assert again.steps == []
    assert loop.state.stopped_early


def test_a_task_that_never_ends_runs_to_the_last_step(tmp_path: Path):
    task, loop = ending(tmp_path / "run", toy.config(12), 5)
    loop.train()
    assert loop.state.step == 12, "at step 5 there is no evaluation"
    assert not loop.state.stopped_early
    assert not task.ended


def test_an_end_survives_a_crash(tmp_path: Path):
    settings = toy.config(28, eval_every=4, save_every=3)
    _, whole = ending(tmp_path / "whole", settings, 12)
    whole.train()
    task, loop = ending(tmp_path / "parts", settings, 12)
    task.before[11] = crash
    with pytest.raises(Crash):
        loop.train()
    _, loop = ending(tmp_path / "parts", settings, 12)
    loop.resume()
    loop.train()
    assert_same_end(whole, loop)


def test_a_validation_score_that_is_not_a_number_is_never_the_best(tmp_path: Path):
    settings = toy.config(8, eval_every=2, scores=(-1.0, 2.0, -1.0, 3.0))
    loop = toy.train(tmp_path / "run", settings)
    assert loop.state.best == 2.0
    assert loop.checkpoints.best_step == 4


@pytest.mark.parametrize(("log_every", "save_every"), [(2, 3), (50, 3), (50, 50)])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, log_every: int, save_every: int):
    settings = toy.config(12, nan_at=7, log_every=log_every, save_every=save_every, eval_every=0, seed=5)
    with pytest.raises(UserError) as caught:
        toy.train(tmp_path / "run", settings)
    message = str(caught.value)
    assert "\n" not in message
    assert "step 7 " in message
    assert f"batch seed {randomness.key(5, 'step', 7)})" in message
    _, loop = toy.build(tmp_path / "run", settings)
    if save_every == 3:
        assert f"the last good checkpoint is {loop.checkpoints.path(6)}" in message
        assert loop.checkpoints.steps() == [3, 6]
        tensors, _ = read_weights(loop.checkpoints.path(6) / "weights.safetensors")
        assert all(t.isfinite().all() for t in tensors.values())
    else:
        assert "none is saved yet" in message
        assert loop.checkpoints.steps() == []
    assert all(math.isfinite(row["train/loss"]) for row in toy.metrics(tmp_path / "run"))


def test_weights_that_a_finite_loss_spoiled_are_not_saved(tmp_path: Path):
    """An infinite gradient of a finite loss: the step's loss is fine, the weights after it are not."""
    task, loop = toy.build(tmp_path / "run", toy.config(12, save_every=1))

    def spoil() -> None:
        task.net[0].bias.register_hook(lambda grad: grad * math.inf)  # pyright: ignore[reportCallIssue, reportArgumentType]

    task.before[5] = spoil
    with pytest.raises(UserError, match=r"not finite .*step 5 "):
        loop.train()
    newest = loop.checkpoints.newest()
    assert newest == 5
    tensors, _ = read_weights(loop.checkpoints.path(newest) / "weights.safetensors")
    assert all(t.isfinite().all() for t in tensors.values())


def test_timed_saves(tmp_path: Path):
    settings = toy.config(6, save_every=0, eval_every=0, save_minutes=1e-9, keep=10)
    loop = toy.train(tmp_path / "often", settings)
    assert loop.checkpoints.steps() == [1, 2, 3, 4, 5, 6]
    settings = toy.config(6, save_every=0, eval_every=0, save_minutes=5.0, keep=10)
    loop = toy.train(tmp_path / "rarely", settings)
    assert loop.checkpoints.steps() == [6]


def both(*numbers: signal.Signals) -> Callable[[], None]:
    """Signals of this process, one after the other."""

    def send() -> None:
        for number in numbers:
            os.kill(os.getpid(), number)

    return send


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path):
    task, loop = toy.build(tmp_path / "run", toy.config(12))
    task.before[5] = both(signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        loop.train()
    assert loop.checkpoints.steps() == [3, 4]


@pytest.mark.parametrize(
    ("numbers", "world"),
    [
        ((signal.SIGTERM, signal.SIGTERM, signal.SIGTERM), 1),
        ((signal.SIGTERM, signal.SIGINT), 1),
        # A launcher of several hands the terminal's Ctrl-C on to processes that had it already.
        ((signal.SIGINT, signal.SIGINT), 2),
    ],
)
def test_a_stop_that_comes_again_is_one_stop(tmp_path: Path, numbers: tuple[signal.Signals, ...], world: int):
    """SLURM sends SIGTERM to every process, and torchrun sends it to its own again."""
    task, loop = toy.build(tmp_path / "run", toy.config(12))

    def send() -> None:
        task.runtime.__class__ = type("Several", (Runtime,), {"world": world})
        both(*numbers)()
        task.runtime.__class__ = Runtime

    task.before[5] = send
    with pytest.raises(Interrupted, match="stopped at step 6, saved"):
        loop.train()
    assert loop.checkpoints.newest() == 6


def test_a_stop_in_the_last_step_is_heard(tmp_path: Path):
    """What comes after training may take long."""
    task, loop = toy.build(tmp_path / "run", toy.config(12))
    task.before[11] = interrupt
    with pytest.raises(Interrupted, match="stopped at step 12, saved"):
        loop.train()
    assert loop.checkpoints.newest() == 12


def test_a_stop_in_the_last_save_is_heard(tmp_path: Path):
    task, loop = toy.build(tmp_path / "run", toy.config(12))
    task.extra_state = lambda: interrupt() or {} if loop.state.step == 12 else {}  # type: ignore[func-returns-value, method-assign]
    with pytest.raises(KeyboardInterrupt):
        loop.train()
    assert loop.checkpoints.newest() == 12


def test_signal_handlers_are_put_back(tmp_path: Path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted):
        toy.train(tmp_path / "run", toy.config(12), {5: interrupt})
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_process_saves_and_the_resume_is_exact(tmp_path: Path, number: signal.Signals):
    changes = {"log_every": 1, "save_every": 0, "eval_every": 20, "sleep": 0.02}
    child = toy.start(tmp_path / "run", max_steps=400, **changes)
    lines = tmp_path / "run" / "metrics.jsonl"
    while not (lines.exists() and len(lines.read_text().splitlines()) >= 5):
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.02)
    child.send_signal(number)
    _, printed = child.communicate(timeout=300)
    assert child.returncode == 130, printed
    stopped = re.fullmatch(r"stopped at step (\d+), saved: `etude resume (.+)` goes on\n", printed)
    assert stopped is not None, printed
    step = int(stopped[1])
    assert stopped[2] == str(tmp_path / "run")

    # To a length of its own: the rest of 400 steps would only cost time.
    end = step + 20
    settings = toy.config(end, **changes | {"sleep": 0.0})
    task, loop = toy.build(tmp_path / "run", settings)
    assert loop.resume() == step
    loop.train()
    assert task.steps == list(range(step, end))
    whole = toy.train(tmp_path / "whole", settings)
    tensors, _ = read_weights(loop.checkpoints.path(end) / "weights.safetensors")
    again, _ = read_weights(whole.checkpoints.path(end) / "weights.safetensors")
    assert toy.same(tensors, again)
    assert toy.same(loop.checkpoints.load_resume(end), whole.checkpoints.load_resume(end))
    assert toy.metrics(tmp_path / "run") == toy.metrics(tmp_path / "whole")


def test_reload_takes_the_best_weights(tmp_path: Path):
    task, loop = toy.build(tmp_path / "run", toy.config(12, eval_every=2))
    task.before[8] = lambda: task.adam.param_groups[0].update(lr=50.0)
    loop.train()
    last = {name: tensor.clone() for name, tensor in loop.task.modules["net"].state_dict().items()}
    step = loop.reload()
    assert step == loop.checkpoints.best_step
    assert step == 8
    tensors, _ = read_weights(loop.checkpoints.path(step) / "weights.safetensors")
    assert toy.same(tensors, {f"net.{name}": t for name, t in loop.task.modules["net"].state_dict().items()})
    assert not toy.same(last, dict(loop.task.modules["net"].state_dict()))


def test_reload_without_a_monitor_takes_the_last(tmp_path: Path):
    task, loop = toy.build(tmp_path / "run", toy.config(6))
    task.monitor = None
    loop.train()
    assert loop.reload() == 6
    assert not (tmp_path / "run" / "checkpoints" / "best.json").exists()


@pytest.mark.parametrize("bits", [b"\x01\x00", b"\x00\x40", b"\xff\xff"])
def test_reload_refuses_weights_that_score_otherwise(tmp_path: Path, bits: bytes):
    """One value a hundredth off, one far off, one not a number."""
    loop = toy.train(tmp_path / "run", toy.config(8))
    best = loop.checkpoints.best_step
    assert best is not None
    path = loop.checkpoints.path(best) / "weights.safetensors"
    data = path.read_bytes()
    # The upper half of the last tensor's last value; the file stays a valid one.
    if bits == b"\xff\xff":
        data = data[:-2] + bits
    else:
        data = data[:-2] + bytes(a ^ b for a, b in zip(data[-2:], bits, strict=True))
    path.write_bytes(data)
    with pytest.raises(UserError, match="does not match its checksum"):
        loop.reload()
    # As if they had been saved so.
    reseal(loop.checkpoints, best)
    with pytest.raises(RuntimeError, match=f"loss of step {best} was .* after a reload"):
        loop.reload()


def test_a_broken_checkpoint_is_passed_over_and_made_again(tmp_path: Path):
    settings = toy.config(12, save_every=3, keep=2)
    whole = toy.train(tmp_path / "whole", settings)
    path = tmp_path / "parts"
    with pytest.raises(Crash):
        toy.train(path, settings, {10: crash})
    _, loop = toy.build(path, settings)
    newest = loop.checkpoints.steps()[-1]
    (loop.checkpoints.path(newest) / "resume.pt").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match=r"resume\.pt does not match its checksum"):
        begun = loop.resume()
    assert 0 < begun < newest
    loop.train()
    assert_same_end(whole, loop)
    assert all(loop.checkpoints.fault(step) is None for step in loop.checkpoints.steps())


def test_the_last_checkpoint_broken(tmp_path: Path):
    """A run that ended but for its summary, and whose last checkpoint rotted, ends with the last weights again."""
    settings = toy.config(12, save_every=3)
    whole = toy.train(tmp_path / "whole", settings)
    loop = toy.train(tmp_path / "parts", settings)
    (loop.checkpoints.path(12) / "weights.safetensors").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="is not used"):
        assert_same_end(whole, toy.train(tmp_path / "parts", settings))


def spoil(loop: Loop, *steps: int) -> None:
    for step in steps:
        (loop.checkpoints.path(step) / "weights.safetensors").write_bytes(b"")


def test_the_best_checkpoint_broken_after_the_one_before_it_is_gone(tmp_path: Path):
    """Best at 4, then at 8 where 4 was pruned: from 6 on, 4 cannot be the best, and 8 is again."""
    settings = toy.config(12, save_every=2, keep=2, scores=(3.0, 2.0, 4.0))
    whole = toy.train(tmp_path / "whole", settings)
    path = tmp_path / "parts"
    with pytest.raises(Crash):
        toy.train(path, settings, {8: crash})
    _, loop = toy.build(path, settings)
    assert loop.checkpoints.steps() == [6, 8]
    assert loop.checkpoints.best_step == 8
    spoil(loop, 8)
    with pytest.warns(RuntimeWarning, match="is not used"):
        assert loop.resume() == 6
    assert loop.checkpoints.best_step is None
    assert (loop.state.best, loop.state.best_step) == (None, None)
    loop.train()
    assert_same_end(whole, loop)


@pytest.mark.parametrize("harm", [spoil, lambda loop, step: shutil.rmtree(loop.checkpoints.path(step))])
def test_a_run_that_has_trained_and_lost_its_best_takes_its_last(tmp_path: Path, harm: Callable[[Loop, int], None]):
    settings = toy.config(12, eval_every=2)
    task, loop = toy.build(tmp_path / "run", settings)
    task.before[6] = lambda: task.adam.param_groups[0].update(lr=50.0)
    loop.train()
    assert loop.checkpoints.best_step == 6
    harm(loop, 6)
    again, loop = toy.build(tmp_path / "run", settings)
    with pytest.warns(RuntimeWarning, match="step-00000006 is not used"):
        assert loop.resume() == 12
    loop.train()
    assert again.steps == []
    assert loop.reload() == loop.checkpoints.best_step == loop.state.best_step == 12
    _, scores = rows_of(toy.metrics(tmp_path / "run"), "val/loss")
    assert loop.state.best == scores[-1]


def test_a_broken_checkpoint_takes_no_good_ones_place(tmp_path: Path):
    """The first good save after it must outlive the pruning."""
    path = tmp_path / "run"
    with pytest.raises(Crash):
        toy.train(path, toy.config(12, save_every=2, eval_every=0, keep=2), {6: crash})
    task, loop = toy.build(path, toy.config(12, save_every=2, eval_every=0, keep=1))
    spoil(loop, 6)
    with pytest.warns(RuntimeWarning, match="is not used"):
        assert loop.resume() == 4
    task.before[4] = interrupt
    with pytest.raises(Interrupted, match="at step 5, saved"):
        loop.train()
    assert loop.checkpoints.steps() == [5, 6]
    with pytest.warns(RuntimeWarning, match="is not used"):
        assert toy.train(path, toy.config(12, save_every=2, eval_every=0, keep=1)).checkpoints.steps() == [12]


def test_no_whole_checkpoint_is_one_line(tmp_path: Path):
    loop = toy.train(tmp_path / "run", toy.config(6))
    for step in loop.checkpoints.steps():
        (loop.checkpoints.path(step) / "manifest.json").unlink()
    _, loop = toy.build(tmp_path / "run", toy.config(6))
    with (
        pytest.warns(RuntimeWarning, match=r"manifest\.json is missing"),
        pytest.raises(UserError, match=r"no checkpoint in .* is whole: start a new run"),
    ):
        loop.resume()


def test_a_score_of_another_machine_is_held_to_a_tolerance(tmp_path: Path):
    """The best score may come from another number of threads, whose sums round otherwise."""
    settings = toy.config(8)
    toy.train(tmp_path / "run", settings)
    _, loop = toy.build(tmp_path / "run", settings)
    loop.resume()
    assert loop.state.best is not None
    loop.state.best = math.nextafter(loop.state.best, 0)
    loop.train()
    loop.reload()
    loop.state.best *= 1.01
    with pytest.raises(RuntimeError, match="after a reload"):
        loop.reload()


def test_metrics_are_plain_json_lines(tmp_path: Path):
    toy.train(tmp_path / "run", toy.config(4))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[-1])
    assert list(row)[:2] == ["step", "seconds"]
    assert {"train/loss", "val/loss"} <= row.keys()


def test_global_draws_depend_on_the_step_alone(tmp_path: Path):
    task, loop = toy.build(tmp_path / "run", toy.config(4))
    drawn: list[float] = []
    for step in range(4):
        task.before[step] = lambda: drawn.append(torch.rand(()).item())
    loop.train()
    expected: list[float] = []
    for step in range(4):
        randomness.seed_globals(0, "step", step)
        expected.append(torch.rand(()).item())
    assert drawn == expected
    assert len(set(drawn)) == 4
