"""Sixty mistakes that a person would make, one at a time in a copy of the source, and whether the tests see them.

    uv run python benchmarks/mutations.py CHECKOUT [--only N..M] [--json FILE] [--list]

Each mistake of mutations.toml names its place by content, a string that the source has once, so that it is found
wherever the file has moved. Its tests run in one process until one fails. In the end those that did are run without
the mistakes, and count only if they then pass. `--json` is written after each one and read at the start: what is done
there is left. The data mirror that ETUDE_MIRROR names is used as in any test run.

The exit status is 1 where a mistake survives or does not apply.
"""

import argparse
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 300
"""Of the processor, for the tests of one mistake."""


@dataclass(frozen=True)
class Mutation:
    """A mistake.

    Attributes:
        name: where it is, and what.
        old: text that the source has exactly once.
        new: what stands in its place.
        tests: files or folders below `tests`; a file that is elsewhere is found by its name, and one that is nowhere is
            its folder.
        or_old: a second spelling of ``old``, where the code was rewritten.
        or_new: what stands in its place.
    """

    name: str
    old: str
    new: str
    tests: tuple[str, ...]
    or_old: str = ""
    or_new: str = ""


def read() -> list[Mutation]:
    """The mistakes of mutations.toml."""
    rows = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["mutation"]
    return [Mutation(**row | {"tests": tuple(row["tests"])}) for row in rows]


def place_of(mutation: Mutation, source: Path) -> tuple[Path, str]:
    """The file that a mistake is in, and its text with the mistake.

    Raises:
        LookupError: neither spelling is there exactly once.
    """
    files = {path: path.read_text(encoding="utf-8") for path in sorted(source.rglob("*.py"))}
    for old, new in ((mutation.old, mutation.new), (mutation.or_old, mutation.or_new)):
        holders = [path for path, text in files.items() if old and old in text]
        if len(holders) == 1 and files[holders[0]].count(old) == 1:
            return holders[0], files[holders[0]].replace(old, new)
    count = sum(text.count(mutation.old) for text in files.values())
    raise LookupError(f"its text is there {count} times: give the new spelling as or_old and or_new")


def tests_of(mutation: Mutation, tests: Path) -> list[str]:
    """The paths of a mistake's tests in a checkout, from the folder of the checkout."""
    found: list[Path] = []
    for name in mutation.tests:
        named = tests / name
        # Every study has a test_model.py.
        elsewhere = [] if name.startswith("studies/") else sorted(tests.rglob(named.name))
        found += [named] if named.exists() else elsewhere or [named.parent]
    return [str(path.relative_to(tests.parent)) for path in dict.fromkeys(found) if path.exists()]


def run_tests(copy: Path, words: Sequence[str], seconds: int, *stop: str) -> tuple[str, list[str]]:
    """``passed``, ``failed``, ``timeout`` or ``broken``, and what failed; ``-x`` stops at the first."""
    own = {"PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1", "CI": "1"}
    bounded = ["sh", "-c", f'ulimit -t {seconds}; exec "$@"', "sh", sys.executable, "-m", "pytest", *stop]
    command = [*bounded, "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not slow", *words]
    child = subprocess.Popen(
        command, cwd=copy, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        # For what waits and takes no time of the processor; a busy machine gives little of it.
        said, _ = child.communicate(timeout=10 * seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return "timeout", []
    if child.returncode in (-signal.SIGKILL, -signal.SIGXCPU):
        return "timeout", []
    if child.returncode == 0:
        return "passed", []
    failed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", said, re.MULTILINE)
    return ("failed", failed) if failed and child.returncode in (1, 2) else ("broken", [said[-500:]])


def judge(mutation: Mutation, copy: Path, seconds: int) -> dict[str, Any]:
    """What the tests make of a mistake; the copy is as before afterwards.

    Returns:
        ``state``: killed, survived, not applicable, timeout, or untested, where no test ran. With the file, the test
        that saw it, and the processor's seconds.
    """
    before = _processor()
    try:
        path, text = place_of(mutation, copy / "src")
    except LookupError as error:
        return {"state": "not applicable", "about": str(error)}
    whole, words = path.read_bytes(), tests_of(mutation, copy / "tests")
    path.write_text(text, encoding="utf-8")
    try:
        state, failed = run_tests(copy, words, seconds, "-x") if words else ("broken", ["its tests are nowhere"])
    finally:
        path.write_bytes(whole)
    named = {"passed": "survived", "failed": "killed", "timeout": "timeout", "broken": "untested"}
    found = {"file": str(path.relative_to(copy)), "tests": words, "about": "".join(failed[:1])}
    return {"state": named[state], "seconds": round(_processor() - before, 1), **found}


def hold(found: Mapping[str, dict[str, Any]], copy: Path, seconds: int) -> None:
    """Run the tests that saw mistakes without them, all at once: one that fails all the same has seen nothing."""
    rows = [row for row in found.values() if row["state"] == "killed" and not row.get("held")]
    tests = sorted({row["about"] for row in rows})
    state, failed = run_tests(copy, tests, seconds * len(tests)) if tests else ("passed", [])
    if state not in ("passed", "failed"):
        # One that cannot be run, or does not end.
        failed = [test for test in tests if run_tests(copy, [test], seconds)[0] != "passed"]
    for row in rows:
        row["held"] = row["about"] not in failed
        row["state"] = "killed" if row["held"] else "untested"


def _processor() -> float:
    """The processor's seconds that ended child processes took."""
    taken = resource.getrusage(resource.RUSAGE_CHILDREN)
    return taken.ru_utime + taken.ru_stime


def chosen(text: str, count: int) -> range:
    """``N..M`` or ``N``, from 1."""
    first, _, last = text.partition("..")
    try:
        found = range(int(first) - 1, int(last or first))
    except ValueError:
        found = range(0)
    if not found or found.start < 0 or found.stop > count:
        raise argparse.ArgumentTypeError(f"'{text}' is no part of 1..{count}: give N..M, such as 1..10")
    return found


def copied(checkout: Path, to: Path) -> Path:
    """The files of a checkout that git does not ignore."""
    words = ["git", "-C", str(checkout), "ls-files", "-coz", "--exclude-standard"]
    for name in subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (checkout / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(checkout / name, to / name)
    return to


def main(argv: Sequence[str] | None = None, mutations: Sequence[Mutation] | None = None) -> int:
    mutations = read() if mutations is None else mutations
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", type=lambda text: chosen(text, len(mutations)), default=range(len(mutations)))
    parser.add_argument("--json", type=Path, help="a file for what was found, and of what was found before")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="of the processor, for the tests of one mistake")
    parser.add_argument("--list", action="store_true", help="say where each mistake applies, and run nothing")
    options = parser.parse_args(argv)
    kept: dict[str, Any] = {}
    if options.json is not None and options.json.exists():
        kept = json.loads(options.json.read_text())
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        copy = options.checkout if options.list else copied(options.checkout, Path(folder))
        for number in options.only:
            mutation = mutations[number]
            key = json.dumps([mutation.name, mutation.old, mutation.new, mutation.or_old, mutation.or_new])
            if options.list:
                try:
                    path, _ = place_of(mutation, copy / "src")
                    where = [str(path.relative_to(copy)), *tests_of(mutation, copy / "tests")]
                    row = {"state": "applies", "about": " ".join(where)}
                except LookupError as error:
                    row = {"state": "not applicable", "about": str(error)}
            else:
                done = kept.get(mutation.name, {})
                finished = done.get("key") == key and done["state"] in ("killed", "survived")
                row = done if finished else judge(mutation, copy, options.seconds) | {"key": key}
            found[mutation.name] = row
            seconds = f" {row['seconds']} s" if "seconds" in row else ""
            print(f"{number + 1} {mutation.name}: {row['state']}{seconds} {row.get('about', '')}", flush=True)
            if options.json is not None and not options.list:
                options.json.write_text(json.dumps(kept | found, indent=1) + "\n")
        if not options.list:
            hold(found, copy, options.seconds)
    if options.json is not None and not options.list:
        options.json.write_text(json.dumps(kept | found, indent=1) + "\n")
    counts = Counter(row["state"] for row in found.values())
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return int(bool(counts.keys() - {"killed", "applies"}))


if __name__ == "__main__":
    sys.exit(main())
