"""The pictures of a run: curves, attention over the words, lengths, accuracy by steps, confused operators."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etude.draw.figures import PALETTE, curves, figure
from etude.draw.metrics import rows_of
from etude.studies.text2math.model import attention_over
from etude.studies.text2math.program import ProgramError, Step, parse
from etude.studies.text2math.scores import Verdict
from etude.studies.text2math.task import Text2MathTask
from etude.studies.text2math.tokens import END, words_of
from etude.studies.text2math.vote import RetrievalTask

_SHOWN = 4
_CONFUSED = 20


def draw(task: Text2MathTask | RetrievalTask, folder: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw all pictures of a run into ``folder``; of a vote without a network, the curves alone."""
    learning_curves(folder / "curves.png", metrics)
    if isinstance(task, RetrievalTask):
        return
    programs, verdicts = task.answers("dev", {})
    known = [parse(problem.program) for problem in task.problems["dev"]]
    written = [_steps(program) for program in programs]
    lengths(folder / "lengths.png", known, written)
    steps(folder / "steps.png", known, verdicts)
    confused(folder / "operators.png", known, written)
    if task.config.model.attention:
        attention(folder / "attention.png", task, programs, verdicts)
    if task.config.rerank.neighbours:
        sure = [one.probability for one in task.chosen("dev", {})]
        sureness(folder / "sureness.png", sure, [verdict.execution for verdict in verdicts])


def _steps(program: str) -> tuple[Step, ...]:
    try:
        return parse(program)
    except ProgramError:
        return ()


def learning_curves(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw the loss of training and dev, and the shares of dev."""
    losses, shares = ("train/loss", "val/loss"), ("val/exact", "val/execution", "val/gold_value", "val/token_match")
    curves(
        path,
        [
            ("Loss", "cross-entropy", {name: rows_of(metrics, name) for name in losses}),
            ("Dev, beam of one", "%", {name: rows_of(metrics, name) for name in shares}),
        ],
    )


def lengths(path: Path, known: Sequence[Sequence[Step]], written: Sequence[Sequence[Step]]) -> None:
    """Draw how many steps the programs of dev have, known and predicted."""
    counts = [list(map(len, known)), list(map(len, written))]
    most = min(20, max(1, *counts[0], *counts[1]))
    with figure(path, 6.0, 3.4) as drawn:
        ax = drawn.subplots()
        edges = np.arange(0, most + 2) - 0.5
        kept = [np.minimum(some, most) for some in counts]
        ax.hist(kept, bins=list(edges), label=["known", "predicted"], color=[PALETTE[0], PALETTE[1]])
        ax.set(xlabel="steps", ylabel="programs", title=f"Dev programs (the last bar: {most} or more)")
        ax.legend()


def steps(path: Path, known: Sequence[Sequence[Step]], verdicts: Sequence[Verdict]) -> None:
    """Draw the execution accuracy of dev by the number of steps of the known program."""
    counts = sorted(Counter(map(len, known)).items())
    right = Counter(len(program) for program, verdict in zip(known, verdicts, strict=True) if verdict.execution)
    shares = [100 * right[number] / count for number, count in counts]
    with figure(path, 6.0, 3.4) as drawn:
        ax = drawn.subplots()
        bars = ax.bar([str(number) for number, _ in counts], shares, color=PALETTE[0])
        ax.bar_label(bars, [str(count) for _, count in counts], padding=1, fontsize=7)
        ax.tick_params(axis="x", labelsize=7)
        ax.set(
            xlabel="steps of the known program (above each bar: how many)",
            ylabel="execution accuracy, %",
            ylim=(0, 108),
        )


def confused(path: Path, known: Sequence[Sequence[Step]], written: Sequence[Sequence[Step]]) -> None:
    """Draw the operators most often written in another's place, step by step, in dev."""
    pairs = Counter(
        (right.operator, mine.operator)
        for both in zip(known, written, strict=True)
        for right, mine in zip(*both, strict=False)
        if right.operator != mine.operator
    )
    rows = pairs.most_common(_CONFUSED)
    with figure(path, 6.4, 0.6 + 0.26 * max(1, len(rows))) as drawn:
        ax = drawn.subplots()
        ax.barh(range(len(rows)), [count for _, count in rows], color=PALETTE[1])
        ax.set_yticks(range(len(rows)), [f"{right} → {mine}" for (right, mine), _ in rows], fontsize=7)
        ax.invert_yaxis()
        ax.set(xlabel="times", title="Operators written in another's place, same step (dev)")


def sureness(path: Path, sure: Sequence[float], right: Sequence[bool]) -> None:
    """Draw how often answers of dev are right by how sure they are said to be, and by how many are given."""
    sure_N, right_N = np.array(sure), np.array(right, dtype=float)
    order_N = np.argsort(-sure_N, kind="stable")
    with figure(path, 8.0, 3.6) as drawn:
        reliability, coverage = drawn.subplots(1, 2)
        place_N = np.minimum(9, (10 * sure_N).astype(int))
        kept = [place_N == place for place in range(10) if (place_N == place).any()]
        reliability.plot([0, 100], [0, 100], color="#999", linestyle="--", linewidth=1)
        shares = [(100 * sure_N[some].mean(), 100 * right_N[some].mean()) for some in kept]
        reliability.plot(*zip(*shares, strict=True), marker="o", color=PALETTE[0])
        reliability.set(xlabel="said to be right, %", ylabel="right, %", title="Dev, in tenths")
        counts_N = np.arange(1, len(order_N) + 1)
        coverage.plot(100 * counts_N / len(order_N), 100 * np.cumsum(right_N[order_N]) / counts_N, color=PALETTE[1])
        coverage.set(xlabel="the surest answers, % of dev", ylabel="right among them, %", title="Coverage and accuracy")


def attention(path: Path, task: Text2MathTask, programs: Sequence[str], verdicts: Sequence[Verdict]) -> None:
    """Draw the weights of the words at every token of some dev programs, of right ones where there are any."""
    encoded, problems = task.encoded["dev"], task.problems["dev"]
    short = [
        row for row, verdict in enumerate(verdicts)
        if verdict.execution and len(words_of(problems[row].text)[0]) <= 40
    ]  # fmt: skip
    chosen = sorted(short or range(len(problems)), key=lambda row: -len(parse(problems[row].program)))[: 4 * _SHOWN : 4]
    # Where none came out right, what was written may be no program.
    written = [(task.tokens.encode(programs[row]) if _steps(programs[row]) else None) or [END] for row in chosen]
    heights = [1.1 + 0.15 * len(ids) for ids in written]
    with figure(path, 13.0, sum(heights)) as drawn:
        axes = drawn.subplots(len(chosen), 1, squeeze=False, height_ratios=heights)[:, 0]
        for ax, row, ids in zip(axes, chosen, written, strict=True):
            batch = encoded.take(torch.tensor([row]))
            words = task.reader.spell(problems[row].text)
            weights = attention_over(task.model, batch, ids)[:, : len(words)].numpy()
            ax.imshow(weights, aspect="auto", cmap="Blues", vmin=0, vmax=1)
            ax.grid(visible=False)
            ax.set_xticks(range(len(words)), words, rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
            ax.set_yticks(range(len(ids)), [task.tokens.tokens[number] for number in ids], fontsize=7)
        drawn.suptitle("Attention over the words at every token (dev)", fontsize=10)
