"""What faults do to a run of each study: killed, stopped, no room, a byte changed, the clock moved, data read-only.

    uv run python benchmarks/faults.py [STUDY...] [--kills 20] [--bytes 100] [--json FILE]

Every study trains its smoke preset with small networks, once undisturbed; then again and again with one fault each,
taken up by `etude resume`. What it leaves must be what the undisturbed run left, bit for bit: weights, optimisers,
metrics, results, file names. The exit status is 1 where anything differs. Seconds a study on a quiet core: see
benchmarks/README.md. Needs Linux (it limits and counts what other processes may do).
"""

import argparse
import contextlib
import ctypes
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

# Imported once, here: the processes that are killed are forks of this one, and begin at once.
from etude import cli, registry
from etude.core.checkpoint import Checkpoints, read_resume, read_weights
from etude.core.errors import UserError
from etude.core.files import write_json
from etude.core.run_folder import RunFolder
from etude.runs.environment import environment

STEPS, SAVE, PATIENCE = 80, 2, 300.0
_LOOP = {
    "loop.max-steps": STEPS, "loop.save-every": SAVE, "loop.log-every": 2, "loop.eval-every": 20, "loop.device": "cpu",
}  # fmt: skip
_SCENES = {
    "model.size": 16, "model.num-slots": 3, "model.slot-size": 8, "model.features": 8, "model.hidden": 8,
    "data.most": 20, "batch.size": 4,
}  # fmt: skip
_LATENT = _SCENES | {
    "vae.width": 4, "vae.multipliers": "1 2", "model.width": 4, "optim.drop": 0.3, "sample.steps": 2,
    "sample.ancestral": 3, "metric.reconstructed": 5,
}  # fmt: skip
_CELLS = {"model.channels": 4, "data.size": 8, "batch.size": 8}
TARGETS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "resnet": ("resnet", "smoke", {"model.width": 4, "model.norm": "bin", "data.size": 16, "batch.size": 16}),
    "text2math": ("text2math", "smoke", {}),
    "slots": ("slots", "smoke", _SCENES | {"model.broadcast": 4, "model.decoder-width": 4, "optim.coarse-steps": 18}),
    "slotdiffusion, autoencoder": ("slotdiffusion", "vae-smoke", _LATENT),
    "slotdiffusion": ("slotdiffusion", "smoke", _LATENT),
    "dcgan": ("dcgan", "smoke", {}),
    "protonet": (
        "protonet", "smoke",
        {
            "model.width": 4, "data.size": 16, "episodes.way": 5, "episodes.per-step": 2, "evaluation.ways": 5,
            "evaluation.episodes": 20, "evaluation.pool-episodes": 20, "evaluation.val-episodes": 20,
        },
    ),
    "pix2pix": ("pix2pix", "smoke", {}),
    "darts, search": ("darts", "smoke", _CELLS | {"search.order": 2}),
    "darts, retraining": ("darts", "retrain-smoke", _CELLS | {"retrain.drop-path": 0.3}),
}  # fmt: skip
"""By name: the study, its preset and what makes it small."""


@dataclass
class Life:
    """One process of etude, forked from this one."""

    pid: int
    log: Path
    status: int | None = None
    """Its exit status, negative for the signal that ended it; None while it lives."""

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def wait(self) -> int:
        until(lambda: self.poll() is not None, "it does not end")
        assert self.status is not None
        return self.status

    def until(self, due: Callable[[], bool]) -> None:
        """Wait for something, or for the end of the process."""
        until(lambda: due() or self.poll() is not None, "the run does not get on")

    def kill(self, number: int = signal.SIGKILL) -> int:
        if self.poll() is None:
            os.kill(self.pid, number)
        return self.wait()

    @property
    def said(self) -> list[str]:
        """What it said to the person at the terminal."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()


def until(due: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not due():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{otherwise} within {PATIENCE:.0f} s")
        time.sleep(0.001)


def begin(
    words: Sequence[str], log: Path, first: Callable[[], object] | None = None, names: Path | None = None
) -> Life:
    """`etude` with these words in a process of its own, after ``first`` was called there.

    At its end it writes the names of the modules that it imported to the file ``names``.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Life(pid, log)
    status = 70
    try:
        to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(to, 1)
        os.dup2(to, 2)
        if first is not None:
            first()
        status = cli.main(list(words))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if names is not None:
            names.write_text("\n".join(sys.modules))
        os._exit(status)


class Wrong(Exception):  # noqa: N818
    """A fault that was not borne."""


def demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Wrong(otherwise)


@dataclass
class Trial:
    """A study under faults."""

    study: str
    preset: str
    settings: Mapping[str, Any]
    folder: Path
    draw: random.Random
    tail: float = 0.0
    """Seconds from the last step to the end of the undisturbed run."""
    count: int = field(default=0)

    def words(self, path: Path) -> list[str]:
        """`etude run` or, where the run was begun, `etude resume`."""
        if (path / "config.yaml").exists():
            return ["resume", str(path)]
        flags = [w for name, value in (_LOOP | self.settings).items() for w in (f"--{name}", *str(value).split())]
        return ["run", self.study, self.preset, "--name", path.name, "--runs", str(path.parents[1]), *flags]

    def life(self, path: Path, first: Callable[[], object] | None = None) -> Life:
        self.count += 1
        names = self.folder / "modules" if path == self.whole else None
        return begin(self.words(path), self.folder / f"{self.count}.log", first, names)

    def run(self, name: str) -> Path:
        return self.folder / "runs" / self.study / name

    @property
    def whole(self) -> Path:
        return self.run("whole")

    def undisturbed(self) -> float:
        """Make the run that the others are held against. Returns its seconds."""
        started = time.monotonic()
        life = self.life(self.whole)
        life.until(lambda: newest(self.whole) == STEPS)
        trained = time.monotonic()
        demand(life.wait() == 0, f"the undisturbed run ended with {life.status}: {life.said[-1:]}")
        self.tail = time.monotonic() - trained
        # Seconds of importing a life, were it not done here.
        for name in (self.folder / "modules").read_text().splitlines():
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        return time.monotonic() - started

    def finish(self, path: Path, first: Callable[[], object] | None = None) -> list[str]:
        """Take a run up, let it end, and hold it against the undisturbed one. Returns what it said."""
        life = self.life(path, first)
        demand(life.wait() == 0, f"it ended with {life.status}: {life.said[-1:]}")
        wrong = difference(path, self.whole)
        demand(not wrong, wrong)
        return life.said


def newest(path: Path) -> int:
    """The newest checkpoint's step; 0 where there is none."""
    return max((int(p.name[5:]) for p in (path / "checkpoints").glob("step-*")), default=0)


def same(left: Any, right: Any) -> bool:
    """Whether two nested values are equal bit for bit but for times."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        alike = left.dtype == right.dtype and left.shape == right.shape
        return alike and left.contiguous().numpy().tobytes() == right.contiguous().numpy().tobytes()
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        names = left.keys() - {"seconds", "train_seconds", "peak_memory_mb"}
        return names == right.keys() - {"seconds", "train_seconds", "peak_memory_mb"} and all(
            same(left[name], right[name]) for name in names
        )
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right) and type(left) is type(right)


def difference(path: Path, whole: Path) -> str:
    """What sets a run apart from the undisturbed one; empty where nothing does."""
    names = [sorted(str(p.relative_to(run)) for p in run.rglob("*")) for run in (path, whole)]
    if names[0] != names[1]:
        return f"other files: {sorted({*names[0]} ^ {*names[1]})[:3]}"
    if not same(*(list(RunFolder(run).metrics()) for run in (path, whole))):
        return "other metrics"
    if not same(*(json.loads((run / "summary.json").read_text()) for run in (path, whole))):
        return "another summary"
    for folder in sorted((whole / "checkpoints").glob("step-*")):
        ours = path / "checkpoints" / folder.name
        if not same(*(read_weights(f / "weights.safetensors")[0] for f in (ours, folder))):
            return f"other weights in {folder.name}"
        if not same(*(read_resume(f / "resume.pt") for f in (ours, folder))):
            return f"another state in {folder.name}"
    return ""


def kills(trial: Trial, count: int) -> str:
    """kill -9 at random moments: while it starts, between steps, in a save, and last while it evaluates and draws."""
    path, met = trial.run("killed"), 0
    for number in range(count):
        before = newest(path)
        life = trial.life(path)
        if number == count - 1:
            life.until(lambda: newest(path) == STEPS)
            time.sleep(trial.draw.uniform(0, 0.3 * trial.tail))
        elif trial.draw.random() < 0.1:
            time.sleep(trial.draw.uniform(0, 0.3))
        elif trial.draw.random() < 0.4:
            life.until(lambda: any((path / "checkpoints").glob(".step-*.tmp")))
        else:
            # Never so far that the room for all kills runs out.
            most = max(0, STEPS - before - SAVE * (count - number + 1))
            more = min(trial.draw.randint(0, 2) * SAVE, most)
            life.until(lambda before=before, more=more: newest(path) > before + more - SAVE)
            time.sleep(trial.draw.uniform(0, 0.05))
        met += life.kill() == -signal.SIGKILL
    demand(met == count, f"only {met} of {count} kills met a living process")
    demand(not (path / "summary.json").exists(), "it had ended before the last kill")
    trial.finish(path)
    return f"{met} of {count} equal"


def stopped(trial: Trial, _: int) -> str:
    """Ctrl-C at a random step, and again after the last: the command that it then names ends as if nothing had been."""
    path = trial.run("stopped")
    life = trial.life(path)
    at = trial.draw.randrange(SAVE, STEPS // 2, SAVE)
    life.until(lambda: newest(path) >= at)
    time.sleep(trial.draw.uniform(0, 0.05))
    demand(life.kill(signal.SIGINT) == 130, f"it ended with {life.status}: {life.said[-1:]}")
    line = life.said[-1]
    demand(line.endswith(f"saved: `etude resume {path}` goes on"), f"it said: {line}")
    demand(f"stopped at step {newest(path)}," in line, f"{line}: but the newest checkpoint is {newest(path)}")
    life = trial.life(path)
    life.until(lambda: newest(path) == STEPS)
    demand(life.kill(signal.SIGINT) == 130, f"after its last step it ended with {life.status}: {life.said[-1:]}")
    line = life.said[-1]
    demand(f"step {STEPS}" in line and line.endswith(f"`etude resume {path}` goes on"), f"after its last step: {line}")
    trial.finish(path)
    return "equal"


def no_room(trial: Trial, _: int) -> str:
    """No room for a checkpoint: one line, the ones before it are whole, and with room again the end is the same."""
    path = trial.run("full")
    life = trial.life(path)
    life.until(lambda: newest(path) >= STEPS // 4)
    size = (path / "checkpoints" / f"step-{newest(path):08d}" / "weights.safetensors").stat().st_size
    # A file that cannot grow is refused as on a full disk; tests/core fills real ones.
    resource.prlimit(life.pid, resource.RLIMIT_FSIZE, (size // 2, size // 2))
    demand(life.wait() == 2, f"it ended with {life.status}: {life.said[-1:]}")
    demand("no room to write" in life.said[-1], f"it said: {life.said[-1]}")
    there = Checkpoints(path / "checkpoints", 2)
    demand(all(there.fault(step) is None for step in there.steps()) and bool(there.steps()), "a checkpoint is broken")
    demand(not list(path.rglob("*.tmp")), "a part of a file was left")
    trial.finish(path)
    return "equal"


def any_byte(trial: Trial, count: int) -> str:
    """A byte of the newest checkpoint is another: that is found, and the one before is used."""
    path = trial.run("broken")
    life = trial.life(path)
    life.until(lambda: newest(path) >= STEPS // 4)
    life.kill()
    there = Checkpoints(path / "checkpoints", 2)
    step, before = there.steps()[-1], there.steps()[-2]
    files = sorted(p for p in there.path(step).iterdir() if p.is_file())
    found = 0
    for _ in range(count):
        place = trial.draw.randrange(sum(p.stat().st_size for p in files))
        for file in files:
            if place < file.stat().st_size:
                break
            place -= file.stat().st_size
        was = swap(file, place, trial.draw.randint(1, 255))
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            found += there.newest() == before
        swap(file, place, was)
        demand(there.fault(step) is None, "the byte was not put back")
    demand(found == count, f"{found} of {count} found")
    swap(files[-1], trial.draw.randrange(files[-1].stat().st_size), trial.draw.randint(1, 255))
    said = trial.finish(path)
    demand(any("is not used" in line for line in said), f"it said nothing of the broken one: {said}")
    return f"{found} of {count} found, equal"


def swap(file: Path, place: int, by: int) -> int:
    """Change a byte by exclusive or; the same call puts it back. Returns ``by``."""
    with file.open("r+b") as handle:
        handle.seek(place)
        old = handle.read(1)[0]
        handle.seek(place)
        handle.write(bytes([old ^ by]))
    return by


def clock(trial: Trial, _: int) -> str:
    """The clock a year ahead in one life and a year back in the next, and the files' times with it."""
    path, year = trial.run("clock"), 365 * 86400

    def moved(by: float) -> Callable[[], None]:
        def move() -> None:
            real, real_ns = time.time, time.time_ns
            time.time = lambda: real() + by
            time.time_ns = lambda: real_ns() + int(by * 1e9)

        return move

    life = trial.life(path, moved(year))
    life.until(lambda: newest(path) >= STEPS // 4)
    life.kill(signal.SIGTERM)
    for number, file in enumerate(sorted(path.rglob("*"))):
        then = time.time() + (year if number % 2 else -year)
        os.utime(file, (then, then))
    trial.finish(path, moved(-year))
    return "equal"


def read_only(trial: Trial, _: int) -> str:
    """Data on a disk that nobody may write to, without what etude would keep beside them, and with it."""
    cache = trial.folder / "cache"
    before = os.environ.get("ETUDE_CACHE")
    bare, kept = trial.folder / "bare", trial.folder / "kept"
    bare.mkdir()
    if cache.exists():
        shutil.copytree(cache, kept)
    else:
        kept.mkdir()
    answer: list[str] = []
    try:
        for name, folder in (("kept", kept), ("bare", bare)):
            for place in [folder, *folder.rglob("*")]:
                place.chmod(0o555 if place.is_dir() else 0o444)
            os.environ["ETUDE_CACHE"] = str(folder)
            path = trial.run(f"read-only-{name}")
            life = trial.life(path, without_leave)
            if name == "bare" and life.wait() == 2:
                demand(life.said[-1].startswith("etude: cannot write"), f"it said: {life.said[-1]}")
                answer.append("one line")
                continue
            demand(life.wait() == 0, f"it ended with {life.status}: {life.said[-1:]}")
            demand(not (wrong := difference(path, trial.whole)), wrong)
            answer.append("equal")
    finally:
        if before is not None:
            os.environ["ETUDE_CACHE"] = before
        for folder in (kept, bare):
            for place in [folder, *folder.rglob("*")]:
                place.chmod(0o755)
    return ", bare ".join(answer) if answer[1] != "equal" else "equal"


def without_leave() -> None:
    """Take from this process what lets root write where nobody may: then permissions hold for it too."""
    if os.geteuid() != 0:
        return
    # capset(2): a header of version and process, and two words each of effective, permitted, inheritable.
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    sets = (ctypes.c_uint32 * 6)()
    override = 1 << 1  # CAP_DAC_OVERRIDE
    if libc.capget(header, sets) == 0:
        sets[0] &= ~override
        if libc.capset(header, sets) == 0:
            return
    raise OSError(ctypes.get_errno(), "a capability cannot be given up")


def two_runs(trial: Trial, _: int) -> str:
    """A second process on a folder in use is refused in one line, and the first ends as if alone."""
    path = trial.run("shared")
    first = trial.life(path)
    first.until(lambda: newest(path) >= SAVE)
    second = trial.life(path)
    demand(second.wait() == 2, f"the second ended with {second.status}: {second.said[-1:]}")
    demand("is in use by another process" in second.said[-1], f"the second said: {second.said[-1]}")
    demand(len(second.said) == 1, f"the second said {len(second.said)} lines")
    demand(first.wait() == 0, f"the first ended with {first.status}: {first.said[-1:]}")
    demand(not (wrong := difference(path, trial.whole)), wrong)
    return "refused, equal"


FAULTS: dict[str, Callable[[Trial, int], str]] = {
    "kill -9": kills, "Ctrl-C": stopped, "no room": no_room, "a byte": any_byte, "clock": clock,
    "read-only data": read_only, "two runs": two_runs,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(registry.NAMES)}; all by default")
    parser.add_argument("--kills", type=int, default=20, help="a study")
    parser.add_argument("--bytes", type=int, default=100, help="changed a study")
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=list(FAULTS), metavar="FAULT")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="a file for the table")
    options = parser.parse_args()
    unknown = set(options.studies) - set(registry.NAMES)
    if unknown or not 1 <= options.kills <= STEPS // SAVE - 4 or options.bytes < 1:
        parser.error(
            f"no study {sorted(unknown)}" if unknown else f"--kills 1 to {STEPS // SAVE - 4}, --bytes 1 or more"
        )
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    rows: list[dict[str, Any]] = []
    for name, (study, preset, settings) in TARGETS.items():
        if options.studies and study not in options.studies:
            continue
        with tempfile.TemporaryDirectory() as folder:
            os.environ["ETUDE_CACHE"] = f"{folder}/cache"
            trial = Trial(study, preset, settings, Path(folder), random.Random(f"{options.seed} {name}"))
            started = time.monotonic()
            row: dict[str, Any] = {"study": name, "whole_s": round(trial.undisturbed(), 1)}
            for fault in options.faults:
                try:
                    row[fault] = FAULTS[fault](trial, options.kills if fault == "kill -9" else options.bytes)
                except (Wrong, TimeoutError, UserError) as error:
                    row[fault] = f"WRONG: {error}"
                    print(f"{name}: {fault}: {error}", file=sys.stderr, flush=True)
            row["processes"], row["seconds"] = trial.count, round(time.monotonic() - started)
            rows.append(row)
            print(f"{name}: {row['seconds']} s", file=sys.stderr, flush=True)
    table = Table("study", *options.faults, "processes", "s")
    for row in rows:
        table.add_row(
            row["study"], *(row[fault] for fault in options.faults), str(row["processes"]), str(row["seconds"])
        )
    Console(width=max(160, Console().width)).print(table)
    if options.json:
        write_json(
            options.json, {"environment": environment(), "kills": options.kills, "bytes": options.bytes, "rows": rows}
        )
    return int(any(str(row[fault]).startswith("WRONG") for row in rows for fault in options.faults))


if __name__ == "__main__":
    sys.exit(main())
