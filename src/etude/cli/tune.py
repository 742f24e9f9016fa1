"""``etude tune STUDY [PRESET] --search NAME=RANGE ...``: search over a study's own settings.

Optuna suggests settings, Ray Tune (extra `ray`) starts and stops trials; each trial is an ordinary run, on this machine
or on a Ray cluster. A trial is judged by the task's validation metric, never by the test split. One that falls behind
is stopped, saved, and can be resumed. The same command goes on; with more --trials it searches further.

What --search takes: NAME=A,B,C is a choice; NAME=log:LOW:HIGH and NAME=float:LOW:HIGH are numbers, drawn evenly in
their logarithm or as they are; NAME=int:LOW:HIGH and NAME=logint:LOW:HIGH are whole numbers, both ends included. For
example: --search optim.lr=log:1e-4:1e-1 model.norm=bn,in,ln data.augment=true,false batch.size=int:16:128
"""

import contextlib
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from etude import registry
from etude.cluster.connect import connect, require_room, require_sizes
from etude.cluster.search import Ledger, read_search
from etude.core.config import as_flags, override
from etude.core.errors import Interrupted, UserError
from etude.runs.experiment import settings as read_settings
from etude.runs.flags import parse
from etude.runs.table import show
from etude.runs.training import say


@dataclass(frozen=True)
class Options:
    study: Annotated[str, tyro.conf.Positional]
    """The study's name."""
    preset: Annotated[str, tyro.conf.Positional] = "laptop"
    """The preset of every trial."""
    search: tuple[str, ...] = ()
    """What to search over, NAME=RANGE each; see above."""
    trials: int = 20
    """Trials in all, those of earlier calls among them."""
    set: tuple[str, ...] = ()
    """Settings of every trial, such as loop.max-steps=2000."""
    seed: int = 0
    """The seed of every trial, and of the search."""
    name: str = ""
    """What the names of its runs begin with; tune-PRESET where none is given."""
    early_stop: bool = True
    """Stop trials that fall behind (ASHA: asynchronous successive halving)."""
    grace: int = 0
    """Steps before a trial may be stopped; 0: a ninth of a run, and at least up to its first evaluation."""
    reduction: int = 3
    """At each rung, grace times a power of this, the best one in so many goes on."""
    ray: str = "local"
    """Where trials run: local (a cluster started here), auto (the one that runs on this machine), HOST:PORT."""
    jobs: int = 0
    """Trials at a time; 0: as many as have room."""
    cpus: int = 1
    """Cores of a trial, and its threads."""
    gpus: float = 0.0
    """GPUs of a trial, or a fraction of one."""
    storage: str = ""
    """For nodes that share no disk: a URL for run folders, such as s3://bucket/runs (what fsspec knows)."""
    runs: Path = Path("runs")
    """Where the run folders go."""
    json: bool = False
    """Print the trials as a JSON list."""


def main(args: list[str]) -> int:
    options = parse(Options, args, prog="etude tune", description=__doc__ or "")
    for name, least in (("trials", 1), ("jobs", 0), ("grace", 0), ("reduction", 2)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} must be {least} or more, not {getattr(options, name)}")
    require_sizes(options.cpus, options.gpus)
    study = registry.load(options.study)
    fixed = read_settings(study, options.preset, options.set, "the seed of all trials is given with --seed")
    ranges = read_search(study, options.preset, options.search, fixed)
    # Of the run as a whole: what is searched over may change how long it is.
    loop = override(study.preset(options.preset).build(), fixed).loop
    if any(sign in options.name for sign in "/\\") or options.name.startswith("."):
        raise UserError(f"--name {options.name} is no plain name of a folder")
    about = {
        "study": study.name, "preset": options.preset, "set": fixed, "search": sorted(r.word for r in ranges),
        "seed": options.seed,
    }  # fmt: skip
    path = options.runs / study.name / f"{options.name or f'tune-{options.preset}'}.tune.json"
    with Ledger(path, about).alone():
        return _search(options, Ledger.open(path, about), ranges, fixed, loop)


def _search(options: Options, ledger: Ledger, ranges: list[Any], fixed: dict[str, Any], loop: Any) -> int:
    # With Ray's pieces, which wrong words do without.
    from etude.cluster.storage import Storage
    from etude.cluster.tuner import Plan, gather, read_monitor, tune

    grace = options.grace or max(loop.max_steps // 9, loop.eval_every, 1)
    if not options.early_stop:
        grace = 0
    elif not loop.eval_every or grace >= loop.max_steps:
        say("etude: trials are evaluated too late to be stopped early: lower --set loop.eval-every=STEPS or --grace")
        grace = 0
    storage = Storage(options.storage) if options.storage else None
    plan = Plan(
        options.study, options.preset, tuple(as_flags({**fixed, "seed": options.seed})), tuple(ranges), as_flags,
        options.runs, options.seed, loop.max_steps, options.trials, options.cpus, options.gpus, options.jobs, storage,
        grace, options.reduction,
    )  # fmt: skip
    if ledger.monitor is not None:
        # What an earlier call could not: the searcher and the table read runs here.
        gather(plan, ledger, say)
    if ledger.monitor is None or sum(trial.state != "begun" for trial in ledger.trials) < options.trials:
        if storage is not None:
            storage.check()
        # Ray tells of nodes that died on standard output, where the answer goes.
        with contextlib.redirect_stdout(sys.stderr):
            ray = connect(options.ray)
            try:
                require_room(ray, options.cpus, options.gpus)
                if ledger.monitor is None:
                    ledger.monitor = read_monitor(ray, plan)
                    ledger.write()
                tune(ray, plan, ledger, say)
            finally:
                ray.shutdown()
        gather(plan, ledger, say, begun=True)
    rows = _rows(plan, ledger)
    show(rows, f"validation {ledger.monitor[0]}, {ledger.monitor[1]}", as_json=options.json)
    begun = [trial for trial in ledger.trials if trial.state == "begun"]
    if begun:
        raise Interrupted(f"stopped with {len(begun)} trials begun and saved: the same command goes on with them")
    ended = [row for row in rows if row["best"] is not None and row["state"] == "done"]
    if ended:
        best = (max if ledger.monitor[1] == "max" else min)(ended, key=lambda row: row["best"])
        trial = next(trial for trial in ledger.trials if trial.number == best["trial"])
        flags = as_flags({**fixed, **trial.settings, "seed": options.seed})
        words = shlex.join(["etude", "run", options.study, options.preset, *flags])
        say(f"best on validation: trial {best['trial']}: {best['run']}: {words}")
    return 0 if ended else 1


def _rows(plan: Any, ledger: Ledger) -> list[dict[str, Any]]:
    from etude.cluster.tuner import scores_of

    rows: list[dict[str, Any]] = []
    for trial in ledger.trials:
        scores = scores_of(plan, ledger, trial)
        best, folder = scores[-1][1] if scores else None, plan.runs / plan.study / ledger.run(trial)
        reason = trial.reason
        if trial.state == "failed" and not reason:
            lines = _lines(folder.parent / f"{folder.name}.log")
            reason = lines[-1] if lines else "it printed nothing"
        elif trial.state == "stopped":
            reason = f"fell behind: `etude resume {folder}` goes on"
        elif trial.state == "done" and not folder.exists():
            reason = "its run is not here: give the --storage that it was made with"
        rows.append(
            {
                "trial": trial.number, **trial.settings, "best": best.value if best else None,
                "step": best.step if best else None, "trained": scores[-1][0] if scores else 0, "state": trial.state,
                "run": str(folder), "reason": reason,
            }
        )  # fmt: skip
    return rows


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").strip().splitlines() if path.exists() else []
