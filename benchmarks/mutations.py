"""Sixty mistakes that a person would make, one at a time in a copy of the source, and whether the tests see them.

    uv run python benchmarks/mutations.py CHECKOUT [--only N..M] [--json FILE] [--list]

Each mistake names its place by content, a string that the source has once, so that it is found wherever the file has
moved. Its tests run in one process; a test that fails is run again without the mistake, and counts only if it then
passes. `--json` is written after each one and read at the start: what is done there is left. The data mirror that
ETUDE_MIRROR names is used as in any test run.

The exit status is 1 where a mistake survives or does not apply.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 300
"""For the tests of one mistake."""


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


MUTATIONS = (
    # core
    Mutation(
        "core: patience counts one evaluation too many",
        "0 < self.config.patience <= state.stale",
        "0 < self.config.patience < state.stale",
        ("core/test_loop.py",),
    ),
    Mutation(
        "core: the worst checkpoint is the best",
        'value > state.best if direction == "max" else value < state.best',
        'value < state.best if direction == "max" else value > state.best',
        ("core/test_loop.py",),
    ),
    Mutation(
        "core: logged means go on counting", "self.sums, self.count = {}, 0", "self.sums = {}", ("core/test_loop.py",)
    ),
    Mutation(
        "core: a resume drops the metrics of its own step",
        'if row["step"] <= step]',
        'if row["step"] < step]',
        ("core/test_run_folder.py", "core/test_loop.py"),
    ),
    Mutation(
        "core: one checkpoint more is kept",
        "if step <= newest][: -self.keep]",
        "if step <= newest][: -self.keep - 1]",
        ("core/test_checkpoint.py",),
    ),
    Mutation(
        "core: a checkpoint's digests are not compared",
        'if sha256(path / name) != manifest["sha256"][name]:',
        'if not manifest["sha256"][name]:',
        ("core/test_checkpoint.py",),
    ),
    Mutation(
        "core: gradients of parts are summed, not averaged",
        "self.accelerator.backward(loss * (self.world / total))",
        "self.accelerator.backward(loss)",
        ("core/test_runtime.py", "core/test_loop.py", "studies/protonet/test_task.py"),
    ),
    Mutation(
        "core: parts of a step draw the same numbers",
        'f"{seed}/{stream}/{step}/{index}"',
        'f"{seed}/{stream}/{step}"',
        ("core/test_randomness.py",),
    ),
    Mutation(
        "core: a setting that differs is no difference",
        "if old.get(name) != value}",
        "if name not in old}",
        ("core/test_config.py",),
    ),
    Mutation(
        "core: one failed predecessor stops a run",
        'all(outcomes[name].state in ("failed", "waits")',
        'any(outcomes[name].state in ("failed", "waits")',
        ("core/test_grid.py",),
    ),
    # nn
    Mutation(
        "nn: the running variance is biased",
        "(variance_C * (count / (count - 1)))",
        "(variance_C * ((count - 1) / count))",
        ("nn/test_norms.py",),
    ),
    Mutation(
        "nn: the gate's gradient has the wrong sign",
        "d_gate = (batch_NC - instance_NC).sum(0)",
        "d_gate = (instance_NC - batch_NC).sum(0)",
        ("nn/test_norms.py",),
    ),
    Mutation(
        "nn: groups of one channel",
        "most = max(1, min(wished, num_channels // 2))",
        "most = max(1, min(wished, num_channels))",
        ("nn/test_norms.py",),
    ),
    Mutation(
        "nn: attention is normalised over the inputs",
        "_exact(logits_BKN).softmax(1)",
        "_exact(logits_BKN).softmax(2)",
        ("nn/test_slot_attention.py",),
    ),
    Mutation(
        "nn: an implicit start has no gradient",
        "slots_BKS.detach() + first_BKS - first_BKS.detach()",
        "slots_BKS.detach()",
        ("nn/test_slot_attention.py",),
    ),
    Mutation(
        "nn: R1 is a mean over pixels",
        "gradient.square().sum((1, 2, 3)).mean()",
        "gradient.square().mean()",
        ("nn/test_adversarial.py",),
    ),
    Mutation(
        "nn: crops never move as far down as up",
        "torch.randint(-pad, pad + 1, (2, num)",
        "torch.randint(-pad, pad, (2, num)",
        ("nn/test_augment.py",),
    ),
    Mutation(
        "nn: the mean forgets what it should remember",
        "_foreach_lerp_(means, current, 1 - memory)",
        "_foreach_lerp_(means, current, memory)",
        ("nn/test_mean_weights.py",),
    ),
    # data
    Mutation(
        "data: an epoch has a last batch that is short",
        "divmod(step, count // size)",
        "divmod(step, -(-count // size))",
        ("data/test_epochs.py",),
    ),
    Mutation(
        "data: the smallest remainder is rounded up",
        "round(counts[part] - quotas[part], 6)",
        "round(quotas[part] - counts[part], 6)",
        ("data/test_labelled.py",),
    ),
    Mutation(
        "data: rows and columns are exchanged",
        "reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1)",
        "reshape(-1, 3, SIZE, SIZE).transpose(0, 3, 2, 1)",
        ("data/test_cifar10.py",),
    ),
    Mutation(
        "data: input and output are exchanged",
        "(image[:, :middle], image[:, middle:])",
        "(image[:, middle:], image[:, :middle])",
        ("data/test_pairs.py",),
    ),
    Mutation(
        "data: validation pictures are trained on",
        'torch.tensor([row for row, part in enumerate(parts) if part in ("", "train")]',
        'torch.tensor([row for row, part in enumerate(parts) if part in ("", "train", "val")]',
        ("data/test_folders.py",),
    ),
    Mutation(
        "data: any file passes for the published one",
        "return sha256 in accepted or not source.sha256",
        "return True",
        ("data/test_fetch.py",),
    ),
    # metrics
    Mutation(
        "metrics: a picture's distance to itself counts",
        "total / (count * (count - 1)), torch.cat(nearest)",
        "total / count**2, torch.cat(nearest)",
        ("metrics/test_diversity.py",),
    ),
    Mutation(
        "metrics: FID takes the root once",
        "np.trace(covariance_FF) - 2 * cross",
        "np.trace(covariance_FF) - cross",
        ("metrics/test_fid.py",),
    ),
    Mutation(
        "metrics: Wilson's interval is too wide",
        "weight / (4 * count)",
        "weight / count",
        ("metrics/test_proportion.py",),
    ),
    Mutation(
        "metrics: ARI counts a pixel with itself",
        "neither = total * total - both",
        "neither = total * (total - 1) - both",
        ("metrics/test_segmentation.py",),
    ),
    Mutation(
        "metrics: PSNR of the root of the peak",
        "20 * math.log10(255) - 10 * square.log10()",
        "10 * math.log10(255) - 10 * square.log10()",
        ("metrics/test_pairs.py",),
    ),
    Mutation(
        "metrics: a slot that is empty once is dead",
        "pixels_BK.sum(1, keepdim=True)).all(0).sum()",
        "pixels_BK.sum(1, keepdim=True)).any(0).sum()",
        ("metrics/test_slots.py",),
    ),
    # resnet
    Mutation(
        "resnet: new channels come before the old ones",
        "(0, 0, 0, 0, 0, channels - x_NCHW.shape[1])",
        "(0, 0, 0, 0, channels - x_NCHW.shape[1], 0)",
        ("studies/resnet/test_model.py",),
    ),
    Mutation(
        "resnet: a ReLU before the shortcut is added",
        "y_NCHW = self.norm2(self.conv2(y_NCHW))",
        "y_NCHW = functional.relu(self.norm2(self.conv2(y_NCHW)))",
        ("studies/resnet/test_model.py",),
    ),
    Mutation(
        "resnet: gates leave their bounds",
        "            norm.clamp_gate()",
        "            pass",
        ("studies/resnet/test_task.py",),
    ),
    Mutation(
        "resnet: Grad-CAM shows what speaks against a class",
        "(gradient.mean((2, 3), keepdim=True) * layer).sum(1).relu()",
        "(gradient.mean((2, 3), keepdim=True) * layer).sum(1)",
        ("studies/resnet/test_cam.py",),
    ),
    # protonet
    Mutation(
        "protonet: half of the product in the distance",
        "squares_Q1 - 2 * product_QN + squares_1N",
        "squares_Q1 - product_QN + squares_1N",
        ("studies/protonet/test_episodes.py", "parity/test_protonet.py"),
    ),
    Mutation(
        "protonet: the support is asked for as a query",
        "queries = z_ENKD[:, :, shot:]",
        "queries = z_ENKD[:, :, :query]",
        ("studies/protonet/test_episodes.py",),
    ),
    Mutation(
        "protonet: strangers and known ones exchanged",
        "(slice(None, way), slice(way, None))",
        "(slice(way, None), slice(None, way))",
        ("studies/protonet/test_episodes.py",),
    ),
    Mutation(
        "protonet: a threshold that keeps few",
        "int(KNOWN_SHARE * len(known))",
        "int((1 - KNOWN_SHARE) * len(known))",
        ("studies/protonet/test_task.py",),
    ),
    # dcgan
    Mutation(
        "dcgan: the discriminator's loss reaches the generator",
        "self.shared_discriminator(fake.detach(), labels(part))",
        "self.shared_discriminator(fake, labels(part))",
        ("studies/dcgan/test_task.py",),
    ),
    Mutation(
        "dcgan: the first layer is normalised too",
        'normed = norm == "batch" and place > 0',
        'normed = norm == "batch"',
        ("studies/dcgan/test_model.py",),
    ),
    Mutation(
        "dcgan: R1 without its half",
        "r1_penalty(on_real, real) * config.optim.r1 / 2",
        "r1_penalty(on_real, real) * config.optim.r1",
        ("studies/dcgan/test_task.py",),
    ),
    # pix2pix
    Mutation(
        "pix2pix: dropout does not make up for what it drops",
        "(torch.rand(shape, generator=draw) < kept).float() / kept",
        "(torch.rand(shape, generator=draw) < kept).float()",
        ("studies/pix2pix/test_model.py",),
    ),
    Mutation(
        "pix2pix: the discriminator learns at full speed",
        "discriminator_loss(optim.loss, on_real, on_fake) / 2",
        "discriminator_loss(optim.loss, on_real, on_fake)",
        ("studies/pix2pix/test_task.py",),
    ),
    Mutation(
        "pix2pix: a test picture sees its batch",
        "torch.var_mean(x_NCHW, (2, 3), correction=0, keepdim=True)",
        "torch.var_mean(x_NCHW, (0, 2, 3), correction=0, keepdim=True)",
        ("studies/pix2pix/test_model.py",),
    ),
    Mutation(
        "pix2pix: outputs are held against the inputs",
        'held[:, 0 if self.config.data.direction == "BtoA" else 1]',
        'held[:, 1 if self.config.data.direction == "BtoA" else 0]',
        ("studies/pix2pix/test_task.py",),
    ),
    # darts
    Mutation(
        "darts: the second order is added",
        "here - rate * (plus - minus)",
        "here + rate * (plus - minus)",
        ("studies/darts/test_search.py",),
    ),
    Mutation(
        "darts: a search stops where the eigenvalue falls",
        "then / now < RISE",
        "now / then < RISE",
        ("studies/darts/test_search.py",),
    ),
    Mutation(
        "darts: dropped paths are not made up for",
        "((coin_B < keep).to(x_BCHW.dtype) / keep)",
        "((coin_B < keep).to(x_BCHW.dtype))",
        ("studies/darts/test_operations.py", "studies/darts/test_network.py"),
    ),
    Mutation(
        "darts: both halves of a reduction see the same pixels",
        "self.second(x[:, :, 1:, 1:])",
        "self.second(x[:, :, :-1, :-1])",
        ("studies/darts/test_operations.py", "studies/darts/test_network.py"),
    ),
    Mutation(
        "darts: an edge of none can be chosen",
        'weights_EO[:, OPERATIONS.index("none")] = -1',
        'weights_EO[:, OPERATIONS.index("none")] *= 1',
        ("studies/darts/test_genotype.py", "studies/darts/test_search.py"),
    ),
    # text2math
    Mutation(
        "text2math: the end is no token of the length",
        "length = max(1, written.shape[1] + whole)",
        "length = max(1, written.shape[1])",
        ("studies/text2math/test_beam.py",),
    ),
    Mutation(
        "text2math: padding is attended to",
        '.masked_fill(~memory.mask_NT[:, None], float("-inf")).softmax(-1)',
        ".softmax(-1)",
        ("studies/text2math/test_model.py",),
    ),
    Mutation(
        "text2math: a short program is all right",
        "tokens=max(len(mine), len(known))",
        "tokens=min(len(mine), len(known))",
        ("studies/text2math/test_scores.py",),
    ),
    Mutation(
        "text2math: a step may use its own result",
        "(self.steps_NK - wants_NK1[..., 0].long())[..., None]",
        "self.steps_NK[..., None]",
        ("studies/text2math/test_tokens.py", "studies/text2math/test_beam.py"),
    ),
    # slots
    Mutation(
        "slots: masks share a column, not the slots",
        "functional.softmax(logits_BKHW, 1)",
        "functional.softmax(logits_BKHW, 2)",
        ("studies/slots/test_model.py",),
    ),
    Mutation(
        "slots: the error is a mean over colours",
        "(made_BCHW - images_BCHW).square().sum(1).mean()",
        "(made_BCHW - images_BCHW).square().mean()",
        ("studies/slots/test_task.py",),
    ),
    # slotdiffusion
    Mutation(
        "slotdiffusion: the posterior has the chain's variance",
        "now.signal / then.signal * left, left * beta)",
        "now.signal / then.signal * left, beta)",
        ("studies/slotdiffusion/test_diffusion.py",),
    ),
    Mutation(
        "slotdiffusion: the second order upside down",
        "1 + h / (2 * h_before)",
        "1 + h_before / (2 * h)",
        ("studies/slotdiffusion/test_samplers.py",),
    ),
    Mutation(
        "slotdiffusion: guidance away from the condition",
        "torch.lerp(null_BX, given_BX, weight)",
        "torch.lerp(given_BX, null_BX, weight)",
        ("studies/slotdiffusion/test_samplers.py",),
    ),
    Mutation(
        "slotdiffusion: latents are spread twice",
        "self.model.scale.fill_(1 / deviation)",
        "self.model.scale.fill_(deviation)",
        ("studies/slotdiffusion/test_task.py",),
    ),
)


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


def run_tests(copy: Path, words: Sequence[str], seconds: float) -> tuple[str, str]:
    """``passed``, ``failed``, ``timeout`` or ``broken``, and the first test or file that failed."""
    own = {"PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1", "CI": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-n",
        "0",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
        *words,
    ]
    child = subprocess.Popen(
        command, cwd=copy, env=os.environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        return "timeout", ""
    if child.returncode == 0:
        return "passed", ""
    first = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", said, re.MULTILINE)
    return ("failed", first[1]) if first and child.returncode in (1, 2) else ("broken", said[-500:])


def judge(mutation: Mutation, copy: Path, seconds: float) -> dict[str, Any]:
    """What the tests make of a mistake; the copy is as before afterwards.

    Returns:
        ``state``: killed, survived, not applicable, timeout, or untested: no test ran, or one fails without the
        mistake too. With the file, the test that saw it, and how many seconds it took.
    """
    began = time.monotonic()
    try:
        path, text = place_of(mutation, copy / "src")
    except LookupError as error:
        return {"state": "not applicable", "about": str(error)}
    before, words = path.read_bytes(), tests_of(mutation, copy / "tests")
    path.write_text(text, encoding="utf-8")
    try:
        state, first = run_tests(copy, words, seconds) if words else ("broken", "its tests are nowhere")
    finally:
        path.write_bytes(before)
    found = {"file": str(path.relative_to(copy)), "tests": words, "about": first}
    if state == "failed" and run_tests(copy, [first], seconds)[0] != "passed":
        state = "broken"
    named = {"passed": "survived", "failed": "killed", "timeout": "timeout", "broken": "untested"}
    return {"state": named[state], "seconds": round(time.monotonic() - began, 1), **found}


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


def main(argv: Sequence[str] | None = None, mutations: Sequence[Mutation] = MUTATIONS) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--only", type=lambda text: chosen(text, len(mutations)), default=range(len(mutations)))
    parser.add_argument("--json", type=Path, help="a file for what was found, and of what was found before")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for the tests of one mistake")
    parser.add_argument("--list", action="store_true", help="say where each mistake applies, and run nothing")
    options = parser.parse_args(argv)
    kept: dict[str, Any] = {}
    if options.json is not None and options.json.exists():
        kept = json.loads(options.json.read_text())
    found: dict[str, Mapping[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        copy = options.checkout if options.list else copied(options.checkout, Path(folder))
        for number in options.only:
            mutation = mutations[number]
            key = json.dumps([mutation.name, mutation.old, mutation.new, mutation.or_old, mutation.or_new])
            if options.list:
                try:
                    path, _ = place_of(mutation, copy / "src")
                    row = {
                        "state": "applies",
                        "about": f"{path.relative_to(copy)} {tests_of(mutation, copy / 'tests')}",
                    }
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
    counts = Counter(row["state"] for row in found.values())
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return int(bool(counts.keys() - {"killed", "applies"}))


if __name__ == "__main__":
    sys.exit(main())
