"""A search over a study's settings: Optuna suggests, Ray Tune starts and stops trials, each trial is a run."""

import dataclasses
import itertools
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from etude.cluster.connect import load, source, surroundings
from etude.cluster.engine import RETRIES, portable
from etude.cluster.search import Ledger, Range, Score, Trial, best_so_far, rounded, size_of
from etude.cluster.storage import Storage
from etude.cluster.worker import Work
from etude.core.errors import UserError
from etude.core.files import write_atomic
from etude.core.run_folder import RunFolder

_REPEATS = 20
"""Suggestions that are known already, after which the next combination is simply the first that is new."""


@dataclass(frozen=True)
class Plan:
    """What is the same for all trials."""

    study: str
    preset: str
    flags: tuple[str, ...]
    """Of every trial."""
    ranges: tuple[Range, ...]
    words: Callable[[dict[str, Any]], Sequence[str]]
    """Settings as words of the command line."""
    runs: Path
    seed: int
    last: int
    """The step at which a run ends."""
    trials: int
    cpus: int
    gpus: float
    jobs: int
    storage: Storage | None
    grace: int
    """Steps before a trial may be stopped; 0: none is."""
    reduction: int
    """Of the trials that come as far as a rung, one in so many goes on."""

    def work(self, name: str, settings: dict[str, Any]) -> Work:
        words = ("run", self.study, self.preset, "--name", name, "--runs", str(self.runs), *self.flags)
        return Work(
            self.study, name, (*words, *self.words(settings)), str(self.runs), str(Path.cwd()),
            str(self.runs / self.study / f"{name}.log"), self.cpus, self.storage.url if self.storage else "", (),
            tuple(surroundings().items()), source(),
        )  # fmt: skip


def read_monitor(ray: Any, plan: Plan) -> tuple[str, str]:
    """The validation metric of the study's task and its direction, asked on a node; one line where it has none."""
    task = ray.remote(num_cpus=plan.cpus, num_gpus=plan.gpus)(portable("ask_monitor", source()))
    work = dataclasses.replace(plan.work("monitor", {}), words=(plan.study, plan.preset, *plan.flags))
    found = ray.get(task.remote(dataclasses.asdict(work)))
    if "fault" in found:
        raise UserError(f"no trial could begin: {found['fault']}")
    if not found:
        raise UserError(
            f"the study '{plan.study}' chooses nothing by validation with these settings, so that there is nothing to "
            "search by"
        )
    return found["metric"], found["direction"]


def tune(ray: Any, plan: Plan, ledger: Ledger, say: Callable[[str], None]) -> None:
    """Make trials until the ledger has as many as the plan asks for. The ledger says how each ended.

    Ctrl-C stops and saves those that run; they stay ``begun``.
    """
    assert ledger.monitor is not None, "it was read before"
    # Its own tables and files: ours are the run folders and the ledger.
    os.environ |= {
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
    }  # fmt: skip
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    library = load("ray.tune")
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    stopper = _stopper(plan, ledger) if plan.grace else None
    searcher = _searcher(plan, ledger, stopper, say)
    wanted = plan.trials - sum(trial.state != "begun" for trial in ledger.trials)
    if wanted <= 0:
        return
    with tempfile.TemporaryDirectory(prefix="etude-tune-") as scratch:
        kind = trainable(ledger.monitor, plan.last, source())
        library.Tuner(
            library.with_resources(kind, {"cpu": plan.cpus, "gpu": plan.gpus}),
            tune_config=library.TuneConfig(
                num_samples=wanted, search_alg=searcher, scheduler=stopper, max_concurrent_trials=plan.jobs or None,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=library.RunConfig(
                name="trials", storage_path=scratch, verbose=0,
                failure_config=library.FailureConfig(max_failures=RETRIES),
                checkpoint_config=library.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()  # fmt: skip


def trainable(monitor: tuple[str, str], last: int, place: str) -> type[Any]:
    """Ray Tune's view of a run: results are its evaluations. A class within a function travels as code."""
    library = load("ray.tune")

    class EtudeRun(library.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            import sys

            if place and place not in sys.path and (Path(place) / "etude").is_dir():
                sys.path.insert(0, place)
            from etude.cluster.storage import Away
            from etude.cluster.worker import Attempt, Work

            self.seen, self.fault, self.attempt = 0, "", None
            try:
                self.attempt = Attempt(Work(**config["work"]))
            except Away as error:
                # Ray Tune tries again, elsewhere if need be.
                raise RuntimeError(str(error)) from error
            except ValueError as error:
                self.fault = str(error)

        def step(self) -> dict[str, Any]:
            from etude.cluster.search import best_so_far
            from etude.cluster.storage import Away
            from etude.cluster.worker import ELSEWHERE
            from etude.core.run_folder import RunFolder

            if self.attempt is None:
                return {"ended": 2, "reason": self.fault, "done": True}
            try:
                # Not longer, for meanwhile nobody could stop it.
                status = self.attempt.poll(1.0)
            except Away as error:
                raise RuntimeError(str(error)) from error
            except ValueError as error:
                return {"ended": 2, "reason": str(error), "done": True}
            if status == ELSEWHERE:
                raise RuntimeError("it was killed or asked to stop")
            scores = list(best_so_far(list(RunFolder(self.attempt.path).metrics()), monitor))
            if status is not None:
                best = scores[-1][1] if scores else None
                about = {"score": best.value, "reached": scores[-1][0]} if best is not None else {}
                return {"ended": status, "done": True, **about}
            for step, best in scores:
                # After the last one it is about to end by itself.
                if self.seen < step < last and best is not None:
                    self.seen = step
                    return {"score": best.value, "reached": step}
            return {}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            """Nothing: the run folder is what a trial goes on from."""
            return {}

        def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
            pass

        def cleanup(self) -> None:
            if self.attempt is not None:
                try:
                    self.attempt.stop()
                finally:
                    self.attempt.close()

    return EtudeRun


def _stopper(plan: Plan, ledger: Ledger) -> Any:
    """ASHA, which knows of each rung what came there; that of earlier calls too."""
    schedulers = load("ray.tune.schedulers")

    class Stopper(schedulers.ASHAScheduler):
        stopped: set[str]

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            action = super().on_trial_result(tune_controller, trial, result)
            if action == schedulers.TrialScheduler.STOP:
                self.stopped.add(trial.trial_id)
            return action

    assert ledger.monitor is not None
    stopper = Stopper(
        time_attr="reached", metric="score", mode=ledger.monitor[1], max_t=max(plan.last, plan.grace),
        grace_period=plan.grace, reduction_factor=plan.reduction,
    )  # fmt: skip
    stopper.stopped = set()
    for trial in ledger.trials:
        if trial.state in ("done", "stopped"):
            known = SimpleNamespace(trial_id=f"known-{trial.number}")
            stopper.on_trial_add(None, known)
            for step, best in scores_of(plan, ledger, trial):
                if step < plan.last and best is not None:
                    stopper.on_trial_result(None, known, {"reached": step, "score": best.value})
            stopper.on_trial_remove(None, known)
    stopper.stopped.clear()
    return stopper


def scores_of(plan: Plan, ledger: Ledger, trial: Trial) -> list[tuple[int, Score | None]]:
    """The evaluations of a trial's run, and the best score up to each."""
    assert ledger.monitor is not None
    path = plan.runs / plan.study / ledger.run(trial)
    return list(best_so_far(list(RunFolder(path).metrics()), ledger.monitor))


def _searcher(plan: Plan, ledger: Ledger, stopper: Any, say: Callable[[str], None]) -> Any:
    """Optuna's TPE behind Ray Tune's interface, with the record of trials."""
    optuna = load("optuna")
    library = load("ray.tune.search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert ledger.monitor is not None
    distributions = {range_.name: _distribution(optuna, range_) for range_ in plan.ranges}
    states = optuna.trial.TrialState

    def settings_of(parameters: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for range_ in plan.ranges:
            value = parameters[range_.name]
            if range_.kind == "choice":
                value = range_.values[value]
            elif range_.kind in ("float", "log"):
                value = rounded(value, range_)
            found[range_.name] = value
        return found

    def parameters_of(settings: dict[str, Any]) -> dict[str, Any]:
        return {
            range_.name: range_.values.index(settings[range_.name])
            if range_.kind == "choice"
            else settings[range_.name]
            for range_ in plan.ranges
        }

    class Search(library.Searcher):
        def __init__(self) -> None:
            super().__init__(metric="score", mode=ledger.monitor[1] if ledger.monitor else "max")
            direction = "maximize" if self.mode == "max" else "minimize"
            sampler = optuna.samplers.TPESampler(seed=plan.seed + len(ledger.trials))
            self.study = optuna.create_study(direction=direction, sampler=sampler)
            self.asked: dict[str, tuple[Any, Trial]] = {}
            self.begun = [trial for trial in ledger.trials if trial.state == "begun"]
            for trial in ledger.trials:
                if trial.state != "begun":
                    self.study.add_trial(self.known(trial))

        def known(self, trial: Trial) -> Any:
            scores = scores_of(plan, ledger, trial)
            best = scores[-1][1] if scores and trial.state != "failed" else None
            state = states.COMPLETE if best else states.FAIL
            return optuna.trial.create_trial(
                state=state, params=parameters_of(trial.settings), distributions=distributions,
                value=best.value if best else None,
            )  # fmt: skip

        def suggest(self, trial_id: str) -> Any:
            if self.begun:
                trial = self.begun.pop(0)
                self.study.enqueue_trial(parameters_of(trial.settings))
                asked = self.study.ask(distributions)
            else:
                asked = self.new()
                if asked is None:
                    return library.Searcher.FINISHED
                trial = Trial(len(ledger.trials) + 1, settings_of(asked.params))
                ledger.trials.append(trial)
                ledger.write()
            self.asked[trial_id] = asked, trial
            name = ledger.run(trial)
            say(f"trial {trial.number}: {_told(trial.settings)} (run: {plan.runs / plan.study / name})")
            return {"work": dataclasses.asdict(plan.work(name, trial.settings))}

        def new(self) -> Any:
            """A suggestion that no trial has had; None where there is none left."""
            tried = [trial.settings for trial in ledger.trials]
            if len(tried) >= size_of(plan.ranges):
                return None
            for _ in range(_REPEATS):
                asked = self.study.ask(distributions)
                if settings_of(asked.params) not in tried:
                    return asked
                self.study.tell(asked, state=states.FAIL)
            choices = [_all(range_) for range_ in plan.ranges]
            for values in itertools.product(*choices):
                parameters = dict(zip(distributions, values, strict=True))
                if settings_of(parameters) not in tried:
                    self.study.enqueue_trial(parameters)
                    return self.study.ask(distributions)
            return None

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            asked, trial = self.asked[trial_id]
            about = result or {}
            if error:
                trial.state, trial.reason = "failed", f"it was lost {RETRIES + 1} times"
            elif "ended" in about:
                trial.state = "failed" if about["ended"] else "done"
                trial.reason = about.get("reason", "")
            elif stopper is not None and trial_id in stopper.stopped:
                trial.state = "stopped"
            ledger.write()
            say(f"trial {trial.number}: {trial.state}")
            if trial.state in ("done", "stopped") and "score" in about:
                self.study.tell(asked, about["score"])
            else:
                self.study.tell(asked, state=states.FAIL)

        def save(self, checkpoint_path: str) -> None:
            """The ledger is its state."""

        def restore(self, checkpoint_path: str) -> None:
            """The ledger is its state."""

    return Search()


def _all(range_: Range) -> Sequence[Any]:
    if range_.kind == "choice":
        return range(len(range_.values))
    if range_.kind in ("int", "logint"):
        return range(range_.values[0], range_.values[1] + 1)
    return range_.values


def _distribution(optuna: Any, range_: Range) -> Any:
    kinds = optuna.distributions
    if range_.kind == "choice":
        # By number: a value may be of a kind that Optuna does not hold.
        return kinds.CategoricalDistribution(tuple(range(len(range_.values))))
    log = range_.kind in ("log", "logint")
    make = kinds.IntDistribution if range_.kind in ("int", "logint") else kinds.FloatDistribution
    return make(*range_.values, log=log)


def _told(settings: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def gather(plan: Plan, ledger: Ledger, say: Callable[[str], None], *, begun: bool = False) -> None:
    """Bring what the storage has of trials: logs, and runs, whole where they can be gone on with.

    What this machine has trained further is left, and so is what trains here now.

    Args:
        plan: says where the storage is.
        ledger: the trials.
        say: told what is left.
        begun: bring those too that have not ended.
    """
    if plan.storage is None:
        return
    folder = plan.runs / plan.study
    for trial in ledger.trials:
        name = ledger.run(trial)
        run = RunFolder(folder / name)
        if (trial.state == "begun" and not begun) or (run.path / "summary.json").exists():
            continue
        with plan.storage.faults():
            if plan.storage.exists(f"{plan.study}/{name}.log"):
                write_atomic(folder / f"{name}.log", plan.storage.read(f"{plan.study}/{name}.log"))
            if not plan.storage.exists(f"{plan.study}/{name}/config.yaml"):
                continue
        here = run.path.exists()
        if here:
            try:
                run.lock()
            except UserError:
                say(f"left: {run.path} trains here now; what the storage has of it is not brought")
                continue
        try:
            if here and _further(plan.storage, f"{plan.study}/{name}", run.path):
                continue
            plan.storage.gather(
                f"{plan.study}/{name}", run.path, chosen=trial.state == "done", here=f"{folder}/",
                there=f"runs/{plan.study}/",
            )  # fmt: skip
        finally:
            run.unlock()


def _further(storage: Storage, name: str, path: Path) -> bool:
    """Whether the run here is as far as what the storage has of it, or further."""
    steps = [int(found.parent.name.removeprefix("step-")) for found in path.glob("checkpoints/step-*/manifest.json")]
    if not steps:
        return False
    with storage.faults():
        theirs = storage.newest(name)
        ended = storage.exists(f"{name}/summary.json")
    return theirs is None or max(steps) > theirs or (max(steps) == theirs and not ended)
