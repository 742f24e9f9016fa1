"""A search over a study's settings: Optuna suggests and says what falls behind, an engine runs the trials."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etude.core.errors import UserError, extra
from etude.runs.grid import STOPPED, Engine, Item
from etude.runs.search import Ledger, Range, Score, Trial, best_so_far, size_of

try:
    import optuna
except ImportError as error:
    raise UserError(f"optuna is not installed ({error}): {extra('tune')}") from error

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

_REPEATS = 20
"""Suggestions that are known already, after which the next combination is simply the first that is new."""
_POLL = 1.0
"""Seconds between two looks at what the trials have reached."""


@dataclass
class _Live:
    """A trial in Optuna's hands."""

    trial: Trial
    item: Item
    asked: optuna.Trial
    seen: int = 0
    """The step of the last evaluation that Optuna knows of."""
    stopping: bool = False


class Search:
    """Optuna's view of a ledger: what earlier calls have tried, how far it came and what it reached.

    Args:
        ledger: the trials; each change is written.
        ranges: what is searched over.
        engine: runs the trials.
        metrics: the lines of ``metrics.jsonl`` of a run, which may train now.
        last: the step at which a run ends.
        grace: steps before a trial may be stopped; 0: none is.
        reduction: of the trials that come as far as a rung, one in so many goes on.

    Raises:
        UserError: no trial can begin, or the study chooses nothing by validation.
    """

    def __init__(
        self, ledger: Ledger, ranges: Sequence[Range], engine: Engine, say: Callable[[str], None], *,
        metrics: Callable[[Path], Iterable[Mapping[str, Any]]], last: int, grace: int, reduction: int,
    ) -> None:  # fmt: skip
        self.ledger, self.ranges, self.engine, self.say = ledger, ranges, engine, say
        self.metrics, self.last = metrics, last
        if ledger.monitor is None:
            found = engine.monitor(ledger.command({})[1:])
            if "fault" in found:
                raise UserError(f"no trial could begin: {found['fault']}")
            if not found:
                raise UserError(
                    f"the study '{ledger.about['study']}' chooses nothing by validation with these settings, so that "
                    "there is nothing to search by"
                )
            ledger.monitor = (found["metric"], found["direction"])
            ledger.write()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        pruners = optuna.pruners
        self.study = optuna.create_study(
            direction="maximize" if ledger.monitor[1] == "max" else "minimize",
            sampler=optuna.samplers.TPESampler(seed=ledger.about["seed"] + len(ledger.trials)),
            pruner=pruners.SuccessiveHalvingPruner(grace, reduction) if grace else pruners.NopPruner(),
        )
        self.distributions = {range_.name: _distribution(range_) for range_ in ranges}
        for trial in ledger.ended:
            self._tell(self._live(trial))

    def run(self, number: int) -> None:
        """Make trials until so many have ended, those of earlier calls among them.

        One that something else stops, or of which the engine cannot tell how it ended, stays begun.
        """
        trials = itertools.islice(self._trials(), max(0, number - len(self.ledger.ended)))
        running: dict[Future[int], _Live] = {}
        while True:
            while len(running) < self.engine.slots and (live := next(trials, None)) is not None:
                settings = " ".join(f"{name}={value}" for name, value in live.trial.settings.items())
                self.say(f"trial {live.trial.number}: {settings} (run: {live.item.path})")
                running[self.engine.submit(live.item.command(), live.item.log)] = live
            if not running:
                return
            ended = wait(running, timeout=_POLL, return_when=FIRST_COMPLETED).done
            for future, live in list(running.items()):
                if future in ended:
                    self._end(running.pop(future), future)
                elif self._report(live)[0] and not live.stopping:
                    live.stopping = True
                    self.engine.stop(live.item.log)

    def _trials(self) -> Iterator[_Live]:
        """Trials that were begun, and then new ones while there are any."""
        for trial in [trial for trial in self.ledger.trials if trial.state == "begun"]:
            yield self._live(trial)
        while (asked := self._new()) is not None:
            trial = Trial(len(self.ledger.trials) + 1, self._settings(asked.params))
            self.ledger.trials.append(trial)
            self.ledger.write()
            yield _Live(trial, self.ledger.item(trial), asked)

    def _new(self) -> optuna.Trial | None:
        """A suggestion that no trial has had; None where there is none left."""
        tried = [trial.settings for trial in self.ledger.trials]
        if len(tried) >= size_of(self.ranges):
            return None
        for _ in range(_REPEATS):
            asked = self.study.ask(self.distributions)
            if self._settings(asked.params) not in tried:
                return asked
            self.study.tell(asked, state=TrialState.FAIL)
        for values in itertools.product(*(range_.all for range_ in self.ranges)):
            settings = dict(zip(self.distributions, values, strict=True))
            if settings not in tried:
                return self._ask(settings)
        return None

    def _ask(self, settings: Mapping[str, Any]) -> optuna.Trial:
        """Optuna's trial of given settings."""
        choices = {range_.name: range_.values for range_ in self.ranges if range_.kind == "choice"}
        self.study.enqueue_trial({n: choices[n].index(v) if n in choices else v for n, v in settings.items()})
        return self.study.ask(self.distributions)

    def _settings(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        return {range_.name: range_.value(drawn[range_.name]) for range_ in self.ranges}

    def _live(self, trial: Trial) -> _Live:
        return _Live(trial, self.ledger.item(trial), self._ask(trial.settings))

    def _report(self, live: _Live) -> tuple[bool, Score | None]:
        """Report new evaluations. Returns whether one falls behind those that came as far (ASHA), and the best score.

        The last one falls behind none: the run is about to end by itself.
        """
        assert self.ledger.monitor is not None
        behind, best = False, None
        for step, best in best_so_far(self.metrics(live.item.path), self.ledger.monitor):
            if live.seen < step < self.last and best is not None:
                live.seen = step
                live.asked.report(best.value, step)
                behind |= live.asked.should_prune()
        return behind, best

    def _end(self, live: _Live, future: Future[int]) -> None:
        trial, fault = live.trial, future.exception()
        status = STOPPED if fault is not None else future.result()
        if status == 0:
            trial.state = "done"
        elif status > 0 and status != STOPPED:
            trial.state = "failed"
        elif live.stopping:
            trial.state = "stopped"
        self.ledger.write()
        self.say(f"trial {trial.number}: {trial.state}{f' ({fault})' if fault is not None else ''}")
        self._tell(live)

    def _tell(self, live: _Live) -> None:
        """Tell Optuna how a trial has ended."""
        _, best = self._report(live)
        if live.trial.state == "done" and best is not None:
            self.study.tell(live.asked, best.value)
        else:
            stopped = live.trial.state == "stopped"
            self.study.tell(live.asked, state=TrialState.PRUNED if stopped else TrialState.FAIL)


def _distribution(range_: Range) -> BaseDistribution:
    if range_.kind == "choice":
        # By number: a value may be of a kind that Optuna does not hold.
        return CategoricalDistribution(range(len(range_.values)))
    log = range_.kind in ("log", "logint")
    if range_.kind in ("int", "logint"):
        return IntDistribution(*range_.values, log=log)
    return FloatDistribution(*range_.values, log=log)
