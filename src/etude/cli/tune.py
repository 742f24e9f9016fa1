"""``etude tune STUDY [PRESET] --search NAME=RANGE ...``: search over a study's own settings.

Optuna (extra `tune`) suggests settings; each trial is an ordinary run, on this machine or on a Ray cluster (extra
`ray`). A trial is judged by the task's validation metric, never by the test split. One that falls behind is stopped,
saved, and can be resumed. The same command goes on; with more --trials it searches further.

What --search takes: NAME=A,B,C is a choice; NAME=log:LOW:HIGH and NAME=float:LOW:HIGH are numbers, drawn evenly in
their logarithm or as they are; NAME=int:LOW:HIGH and NAME=logint:LOW:HIGH are whole numbers, both ends included. For
example: --search optim.lr=log:1e-4:1e-1 model.norm=bn,in,ln data.augment=true,false batch.size=int:16:128
"""

import contextlib
import shlex
import sys
from dataclasses import dataclass, replace
from typing import Annotated, Any

import tyro

from etude import registry
from etude.cluster.engine import Where
from etude.cluster.storage import Storage
from etude.core.config import LoopConfig, override
from etude.core.errors import Interrupted, UserError
from etude.core.run_folder import RunFolder
from etude.runs.experiment import settings as read_settings
from etude.runs.grid import Item
from etude.runs.search import Ledger, Range, Trial, best_so_far, read_search
from etude.runs.table import show
from etude.runs.training import say


@dataclass(frozen=True, kw_only=True)
class Options(Where):
    study: Annotated[str, tyro.conf.Positional]
    """The study's name."""
    preset: Annotated[str, tyro.conf.Positional] = "laptop"
    """The preset of every trial."""
    search: tuple[str, ...] = ()
    """The settings to search over, NAME=RANGE each; see above."""
    trials: int = 20
    """Trials in all, those of earlier calls among them."""
    set: tuple[str, ...] = ()
    """Settings of every trial, such as loop.max-steps=2000."""
    seed: int = 0
    """The seed of every trial, and of the search."""
    name: str = ""
    """The beginning of its runs' names; tune-PRESET where none is given."""
    early_stop: bool = True
    """Stop trials that fall behind (ASHA: asynchronous successive halving)."""
    grace: int = 0
    """Steps before a trial may be stopped; 0: a ninth of a run, and at least up to its first evaluation."""
    reduction: int = 3
    """At each rung, grace times a power of this, the best one in so many goes on."""


def main(options: Options) -> int:
    options.check()
    for name, least in (("trials", 1), ("grace", 0), ("reduction", 2)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} must be {least} or more, not {getattr(options, name)}")
    study = registry.load(options.study)
    fixed = read_settings(study, options.preset, options.set, "the seed of all trials is given with --seed")
    ranges = read_search(study, options.preset, options.search, fixed)
    # Of the run as a whole: what is searched over may change how long it is.
    config = override(study.preset(options.preset).build(), fixed)
    loop = config.loop
    if loop.epochs:
        from etude.core.runtime import Runtime

        loop = replace(loop, max_steps=study.task(config, Runtime(loop, config.seed)).num_steps, epochs=0)
    if any(sign in options.name for sign in "/\\") or options.name.startswith("."):
        raise UserError(f"--name {options.name} is no plain name of a folder")
    about = {
        "study": study.name, "preset": options.preset, "set": fixed, "search": sorted(r.word for r in ranges),
        "seed": options.seed,
    }  # fmt: skip
    path = options.runs / study.name / f"{options.name or f'tune-{options.preset}'}.tune.json"
    with Ledger(path, about).alone():
        return _search(options, Ledger.open(path, about), ranges, loop)


def _search(options: Options, ledger: Ledger, ranges: list[Range], loop: LoopConfig) -> int:
    grace = options.grace or max(loop.max_steps // 9, loop.eval_every, 1)
    if not options.early_stop:
        grace = 0
    elif not loop.eval_every or grace >= loop.max_steps:
        say("etude: trials are evaluated too late to be stopped early: lower --set loop.eval-every=STEPS or --grace")
        grace = 0
    storage = Storage(options.storage) if options.storage else None
    # What an earlier call could not: the searcher and the table read runs here.
    _gather(storage, ledger, ledger.ended)
    stopped = False
    if ledger.monitor is None or len(ledger.ended) < options.trials:
        # With Optuna, which wrong words do without.
        from etude.runs.tuner import Search

        # Ray tells of nodes that died on standard output, where the answer goes.
        with contextlib.redirect_stdout(sys.stderr), contextlib.closing(options.engine(say)) as engine:
            search = Search(
                ledger, ranges, engine, say, last=loop.max_steps, grace=grace, reduction=options.reduction,
                metrics=storage.metrics if storage else lambda path: RunFolder(path).metrics(),
            )  # fmt: skip
            try:
                search.run(options.trials)
            except KeyboardInterrupt:
                stopped = True
        _gather(storage, ledger, ledger.trials)
    assert ledger.monitor is not None, "the search has read it"
    rows = [_row(trial, ledger.item(trial), ledger.monitor) for trial in ledger.trials]
    show(rows, f"validation {ledger.monitor[0]}, {ledger.monitor[1]}", as_json=options.json)
    begun = sum(trial.state == "begun" for trial in ledger.trials)
    if begun or stopped:
        raise Interrupted(f"stopped with {begun} trials begun and saved: the same command goes on with them")
    ended = [row for row in rows if row["best"] is not None and row["state"] == "done"]
    if ended:
        best = (max if ledger.monitor[1] == "max" else min)(ended, key=lambda row: row["best"])
        words = shlex.join(["etude", *ledger.command(ledger.trials[best["trial"] - 1].settings)])
        say(f"best on validation: trial {best['trial']}: {best['run']}: {words}")
    return 0 if ended else 1


def _gather(storage: Storage | None, ledger: Ledger, trials: list[Trial]) -> None:
    """Bring what the storage has of trials: logs, and runs, whole where they can be gone on with."""
    for trial in trials:
        path = ledger.item(trial).path
        if storage is not None and not (path / "summary.json").exists():
            storage.bring_log(path)
            storage.gather(path, say, chosen=trial.state == "done")


def _row(trial: Trial, item: Item, monitor: tuple[str, str]) -> dict[str, Any]:
    scores = list(best_so_far(RunFolder(item.path).metrics(), monitor))
    best, reason = scores[-1][1] if scores else None, trial.reason
    if trial.state == "failed":
        reason = reason or item.last_line
    elif trial.state == "stopped":
        reason = f"fell behind: `etude resume {item.path}` goes on"
    elif trial.state == "done" and not item.path.exists():
        reason = "its run is not here: give the --storage that it was made with"
    return {
        "trial": trial.number, **trial.settings, "best": best.value if best else None,
        "step": best.step if best else None, "trained": scores[-1][0] if scores else 0, "state": trial.state,
        "run": str(item.path), "reason": reason,
    }  # fmt: skip
