"""What the command line gives in one checkout, held against what it gives in another.

    uv run python benchmarks/same.py OLD NEW [--only words smoke ...] [--keep FOLDER] [--most N]

The same commands run in both trees, from fresh folders, on one thread and without a network. Exit status, both streams
and all files that are left are compared: numbers and weights bit for bit, pictures by their pixels, drawn figures by
their names. Times, memory, versions and dates are masked. Of a `--help` the flags, what they take and their defaults
are compared, and the wording is free. Both sides read the samples and the committed results of OLD, and `eval`,
`predict`, `export` and `report` the runs that OLD trained.

`--keep` is a folder for OLD's answers: what is there is not asked again. A difference is a line, `command | where | -`
with what OLD gave or `+` with what NEW gives; the exit status is 1 where there is one.
"""

import argparse
import difflib
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

MEANT: dict[str, str] = {}
"""By a pattern that a difference's line has: why it is meant."""

GROUPS = ("words", "refusals", "smoke", "study", "eval", "predict", "export", "report")
USES_RUNS = ("refusals", "eval", "predict", "export", "report")
VERBS = "demo list show check run study tune resume eval predict compare report serve data export load"
TRAINED = {("darts", "retrain-smoke"): "retrain", ("slotdiffusion", "vae-smoke"): "vae"}
"""What is trained beside every study's `smoke`, and its run's name."""
GRIDS = ("protonet fewshot", "slotdiffusion init", "darts search --set loop.max-steps=4")
SCENE = "samples/clevrtex/0/CLEVRTEX_render_000003.png"
SHOTS = "--support samples/omniglot/support samples/omniglot/queries"
PREDICTED = {
    "resnet": ("samples/cifar10 --output {}.txt --cam {}-maps", "samples/cifar10/cat.png"),
    "text2math": ("samples/mathqa/test.json --output {}.json", "'a car runs 120 km in 3 hours. What is its speed?'"),
    "slots": (SCENE + " --output {}", SCENE + " --edit --output {}-edit", "--compose 8 --output {}-new"),
    "slotdiffusion": (SCENE + " --output {}", "--compose 4 --output {}-new"),
    "dcgan": ("--count 20 --output {}.npy", "--count 30 --output {}.png"),
    "protonet": (SHOTS, SHOTS + " samples/omniglot/strangers --unknown --save-prototypes {}.safetensors"),
    "pix2pix": (SCENE + " samples/cifar10 --output {}",),
    "darts": ("samples/cifar10",),
}
"""What `predict` is given; {} is a name for the output."""
REFUSED = """
lst|show resnett|show resnet laptopp|show darts no-cell|run|run dcgan smok|run dcgan smoke extra
run dcgan smoke --model.filter 3|run dcgan smoke --loop.max-steps many|run dcgan smoke --loop.max-steps 0
run resnet smoke --model.norm nein|run slots smoke --data.source folder|run darts retrain-smoke --genotype no-such
run protonet smoke --name|study protonet fewshots|study protonet fewshot --jobs 0|study protonet fewshot --cpus 2
study protonet fewshot --set loop.max-step=3|tune protonet smoke --search optim.lr=log:1|resume nowhere|resume samples
eval nowhere|eval protonet samples/mathqa/test.json|eval text2math none.json|predict|predict nowhere|predict resnet
predict resnet none.png|predict resnet samples/omniglot/LICENSE|predict dcgan --digit 12|predict slots --compose 0
predict protonet samples/omniglot/queries|predict darts runs/protonet/smoke samples/cifar10|export nowhere
predict slotdiffusion --edit swap:2:5|export protonet --fp32|export protonet --out samples|load nowhere|load samples
load runs/protonet/smoke|compare resnett|compare --runs nowhere|compare --format yaml|report nothing
report --out samples|data lst|data list cifar11|data verify omniglot|data render clevrtexx
check resnet --memory little|serve --port high
"""


class Given(NamedTuple):
    """What one side gave: by command the exit status and both streams, and a folder with the files that were left."""

    answers: list[tuple[int, str, str]]
    files: Path


def commands(group: str, studies: dict[str, list[str]]) -> list[str]:
    """What is asked in a group, of studies with their presets."""
    runs = {(study, "smoke"): "smoke" for study in studies} | TRAINED
    trained = [f"runs/{study}/{name}" for (study, _), name in runs.items()]
    if group == "words":
        lines = ["", "--version", "list", "list --json", "data list", "data list --json", "data render --help"]
        lines += [f"{verb} --help" for verb in VERBS.split()]
        lines += [f"{verb} {study} --help" for study in studies for verb in ("run", "predict")]
        lines += [f"show {study}{end}" for study in studies for end in ("", " --json")]
        lines += [f"show {study} {preset}" for study, presets in studies.items() for preset in presets]
        lines += ["show protonet smoke --json", "show darts darts-v1 --out cell.png"]
        return lines + [f"run dcgan smoke --print-launch {form}" for form in ("torchrun", "slurm")]
    if group == "refusals":
        return re.split(r"[|\n]", REFUSED.strip())
    if group == "smoke":
        lines = [f"run {study} {preset} --name {name}" for (study, preset), name in runs.items()]
        return lines + [f"resume {run}" for run in trained]
    if group == "study":
        return [f"study {grid} --preset smoke{end}" for grid in GRIDS for end in (" --json", "")]
    if group == "eval":
        lines = [f"eval {run}{end}" for run in trained for end in (" --json", "")]
        return [*lines, "eval runs/text2math/smoke samples/mathqa/test.json --json"]
    if group == "predict":
        lines = [f"predict {study} {call.replace('{}', study)}" for study, calls in PREDICTED.items() for call in calls]
        lines = [f"{line}{end}" for line in lines for end in (" --json", " --force" if "--output" in line else "")]
        for study, calls in PREDICTED.items():
            run = f"runs/{study}/{TRAINED.get((study, 'retrain-smoke'), 'smoke')}"
            lines += [f"predict {run} {call.replace('{}', f'{study}-run')} --json" for call in calls]
        return [*lines, "eval text2math text2math.json --json", "eval text2math text2math-run.json"]
    if group == "export":
        lines = [f"export {study} --out {study}{end}" for study in studies for end in (".safetensors", "")]
        lines += [f"export {run} --out {run.replace('/', '-')}" for run in trained]
        lines += [f"load {study} --name back" for study in studies]
        return [*lines, "export runs/dcgan/smoke", "export runs/protonet/smoke --fp32 --onnx --out few.safetensors"]
    kinds = ("", " --json", " --format markdown")
    lines = [f"compare{of}{kind}" for of in ("", " --runs runs", " protonet") for kind in kinds]
    lines += ["report", "report --format markdown", "report --runs runs --out mine.html"]
    lines += [f"report {study} --out {study}.{ending}" for study in studies for ending in ("html", "md")]
    return lines + [f"report {run} --out {run.replace('/', '-')}.html" for run in trained]


# A fork a command, of a process that has imported PyTorch and listed the studies.
ASK = """
import contextlib, importlib, io, json, os, runpy, shlex, sys
lines, said, outside = json.load(sys.stdin)
def etude(line):
    sys.argv = ["etude", *shlex.split(line)]
    runpy.run_module("etude", run_name="__main__", alter_sys=True)
for name in outside:
    importlib.import_module(name)
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    etude("list")
for number, line in enumerate(lines):
    child = os.fork()
    if not child:
        for stream in (1, 2):
            os.dup2(os.open(f"{said}/{number}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
        etude(line)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
OUTSIDE = ("torch", "tyro", "pydantic", "rich.console", "matplotlib.figure", "sklearn.cluster", "accelerate")
TEXTS = (".json", ".jsonl", ".html", ".md", ".yaml", ".txt", ".log")


def ask(
    tree: Path, lines: list[str], left: Path, given: dict[str, Path], results: Path, outside: Sequence[str] = OUTSIDE
) -> Given:
    """Run command lines of a checkout in one fresh folder.

    Args:
        tree: the checkout.
        lines: what comes after `etude`.
        left: where the files go that they leave.
        given: folders that lie there before, by name.
        results: the committed results that the checkout reads.
        outside: modules that are imported once for all.
    """
    # The path is masked; its length, which sets the width of tables, is always the same.
    with tempfile.TemporaryDirectory(prefix="same-") as root:
        home, work, said = (Path(root, name) for name in ("tree", "work", "said"))
        for folder in (home, work, said):
            folder.mkdir()
        for name, place in {"src": tree / "src", "pyproject.toml": tree / "pyproject.toml", "results": results}.items():
            (home / name).symlink_to(place.resolve())
        for name, folder in given.items():
            shutil.copytree(folder, work / name)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ETUDE_", "PYTHON"))}
        own = {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        own |= {"PYTHONPATH": f"{home}/src", "PYTHONDONTWRITEBYTECODE": "1", "ETUDE_CACHE": f"{root}/cache"}
        words, asked = [sys.executable, "-c", ASK], json.dumps([lines, str(said), list(outside)])
        child = subprocess.run(
            words, input=asked, cwd=work, env=kept | own, text=True, capture_output=True, check=False
        )
        if child.returncode:
            raise SystemExit(f"same.py: {tree} cannot be asked: {child.stderr[-500:]}")
        for name in given:
            shutil.rmtree(work / name)
        shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(work, left)

        def read(path: Path) -> str:
            text = path.read_text(errors="replace").replace(root, "FOLDER")
            return text.replace(str(tree.resolve()), "FOLDER/tree")

        for path in left.rglob("*"):
            if path.suffix in TEXTS and path.is_file():
                path.write_text(read(path))
        streams = [(read(said / f"{number}.1"), read(said / f"{number}.2")) for number in range(len(lines))]
    return Given([(int(status), *both) for status, both in zip(child.stdout.split(), streams, strict=True)], left)


# --- what is compared ---

TIMED = re.compile(r"\b(train_seconds|seconds|peak_memory_mb): ")
MASKS = {
    r"data:[\w/+.-]+;base64,[\w+/=]+": "DATA",
    r"training time: [\d.]+ minutes; peak memory [\d,]+ MB": "TIME",
    r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?": "DATE",
    r"\b[0-9a-f]{40}\b(\+changes)?": "COMMIT",
}


def flat(value: Any, path: str = "") -> Iterator[str]:
    """A line `path: value` for each leaf. Items have no numbers, so that one row more is that row's lines more."""
    if isinstance(value, dict) and value:
        for name in sorted(value):
            yield from flat(value[name], f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and value:
        for part in value:
            yield from flat(part, f"{path}[]")
    else:
        line = f"{path}: {json.dumps(value, ensure_ascii=False)}"
        yield f"{path}: TIME" if TIMED.search(line) else line


def told(text: str) -> list[str]:
    """The leaves of JSON, or else the lines of a text, with what differs from run to run masked."""
    try:
        return list(flat(json.loads(text)))
    except ValueError:
        for pattern, word in MASKS.items():
            text = re.sub(pattern, word, text)
        return text.replace("><", ">\n<").splitlines()


def flags(text: str) -> list[str]:
    """Of a `--help` the usage, and each flag with what it takes and its default."""
    lines = [" ".join(re.split(r"\n\s*\n", text)[0].split())]
    for block in re.split(r"\n(?=  --?\w)", text)[1:]:
        head, default = re.split(r"  +|\n", block.strip())[0], re.findall(r"\(default: .*?\)", " ".join(block.split()))
        lines.append(" ".join([head, *default[-1:]]))
    return lines


def content(path: Path) -> list[str]:
    """What is compared of a file; of a drawn figure, and of what resumes a run, which holds times, nothing."""
    if path.name == "environment.json":
        return list(flat(json.loads(path.read_text())["data"]))
    if path.suffix == ".jsonl":
        return [line for row in path.read_text().splitlines() for line in told(row)]
    if path.suffix in TEXTS:
        return told(path.read_text())
    if path.suffix == ".safetensors":
        return list(tensors(path.read_bytes()))
    if path.suffix == ".png" and "figures" not in path.parts:
        from PIL import Image

        with Image.open(path) as image:
            return [f"{image.mode} {image.size} {digest(image.tobytes())}"]
    return [digest(path.read_bytes())] if path.suffix in (".npy", ".onnx") else []


def tensors(data: bytes) -> Iterator[str]:
    """The tensors and the header of a safetensors file, and the digest of the whole."""
    size = int.from_bytes(data[:8], "little")
    for name, about in sorted(json.loads(data[8 : 8 + size]).items()):
        if name == "__metadata__":
            yield from (f"{key}: {line}" for key, value in about.items() for line in told(value))
        else:
            first, last = (8 + size + place for place in about["data_offsets"])
            yield f"{name}: {about['dtype']} {about['shape']} {digest(data[first:last])}"
    yield f"bytes: {digest(data)}"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def differences(place: str, old: list[str], new: list[str]) -> Iterator[str]:
    """The lines that only one of two lists has."""
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if old != new else ():
        if kind != "equal":
            yield from (f"{place} | - {line}" for line in old[a:b])
            yield from (f"{place} | + {line}" for line in new[c:d])


def compared(group: str, lines: Sequence[str], old: Given, new: Given) -> Iterator[str]:
    """All differences of a group: of its answers, then of the files that it left."""
    for line, (status, *before), (status_now, *now) in zip(lines, old.answers, new.answers, strict=True):
        yield from differences(f"etude {line} | status", [str(status)], [str(status_now)])
        read = flags if "--help" in line.split() and not status else told
        for name, text, text_now in zip(("out", "err"), before, now, strict=True):
            yield from differences(f"etude {line} | {name}", read(text), read(text_now))
    # But for locks.
    found = [[p for p in side.files.rglob("*") if p.is_file() and p.name[0] != "."] for side in (old, new)]
    files = [{str(p.relative_to(side.files)): p for p in part} for side, part in zip((old, new), found, strict=True)]
    yield from differences(f"{group} | files", *map(sorted, files))
    for name in sorted(files[0].keys() & files[1].keys()):
        yield from differences(f"{group} | {name}", *(content(side[name]) for side in files))


def judge(old: Path, new: Path | None, kept: Path, fresh: Path, only: Sequence[str]) -> Iterator[str]:
    """The differences of some groups; of OLD alone there are none, and its answers are made."""
    given = {"samples": old / "src" / "etude" / "data" / "samples"}

    def gave(tree: Path, folder: Path, group: str, lines: list[str]) -> Given:
        before, files = folder / f"{group}.json", folder / group
        if before.is_file() and (read := json.loads(before.read_text()))["lines"] == lines:
            return Given(read["answers"], files)
        began = time.monotonic()
        runs = {"runs": kept / "smoke" / "runs"} if group in USES_RUNS else {}
        answers, _ = ask(tree, lines, files, given | runs, old / "results")
        before.write_text(json.dumps({"lines": lines, "answers": answers}))
        print(
            f"{group}: {len(lines)} commands in {tree}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True
        )
        return Given(answers, files)

    for folder in (kept, fresh):
        folder.mkdir(parents=True, exist_ok=True)
    listed = gave(old, kept, "list", ["list --json"]).answers[0][1]
    studies = {row["study"]: row["presets"] for row in json.loads(listed)}
    for group in (group for group in GROUPS if group in only):
        if group in USES_RUNS:
            gave(old, kept, "smoke", commands("smoke", studies))
        lines = commands(group, studies)
        before = gave(old, kept, group, lines)
        if new is not None:
            yield from compared(group, lines, before, gave(new, fresh, group, lines))


def tell(found: Sequence[str], most: int) -> int:
    """Print differences, some of each file and stream. Returns the exit status."""
    for place, lines in itertools.groupby(found, lambda line: line.split(" | ")[:2]):
        each = list(lines)
        print(*(line[:400] for line in each[:most]), sep="\n")
        if len(each) > most:
            print(f"{' | '.join(place)} | and {len(each) - most} lines more")
    print(f"{len(found)} differences" if found else "the same")
    return int(bool(found))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="a checkout")
    parser.add_argument("new", type=Path, nargs="?", help="another; without one, OLD's answers are made and kept")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="which groups of commands")
    parser.add_argument("--keep", type=Path, help="where OLD's answers are, or go")
    parser.add_argument("--most", type=int, default=5, help="lines that are printed of one file or stream")
    options = parser.parse_args(argv)
    if options.new is None and options.keep is None:
        parser.error("name NEW, or a folder for OLD's answers as --keep")
    for tree in filter(None, (options.old, options.new)):
        if not (tree / "src" / "etude" / "__main__.py").is_file():
            parser.error(f"{tree} is no checkout of etude: it has no src/etude/__main__.py")
    with tempfile.TemporaryDirectory() as folder:
        kept, fresh = options.keep or Path(folder, "old"), Path(folder, "new")
        found = judge(options.old, options.new, kept, fresh, options.only)
        return tell([line for line in found if not any(re.search(pattern, line) for pattern in MEANT)], options.most)


if __name__ == "__main__":
    sys.exit(main())
