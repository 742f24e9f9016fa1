"""The pictures of a run: curves, attention over the words, lengths, accuracy by steps, confused operators."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etude.draw.figures import PALETTE, curves, figure
from etude.draw.metrics import rows_of
from etude.studies.text2math import scores
from etude.studies.text2math.model import attention_over
from etude.studies.text2math.problems import Problem
from etude.studies.text2math.program import ProgramError, parse
from etude.studies.text2math.task import Text2MathTask
from etude.studies.text2math.tokens import END, words_of

_SHOWN = 4
_CONFUSED = 20


def draw(task: Text2MathTask, folder: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Draw all pictures of a run into ``folder``."""
    learning_curves(folder / "curves.png", metrics)
    programs, verdicts = task.verdicts("dev", task.config.beam)
    problems = task.problems["dev"]
    lengths(folder / "lengths.png", programs, problems)
    steps(folder / "steps.png", verdicts, problems)
    confused(folder / "operators.png", programs, problems)
    if task.config.model.attention:
        attention(folder / "attention.png", task, programs, verdicts)


def learning_curves(path: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Loss of training and dev, and the shares of dev."""

    def lines(*names: str) -> dict[str, tuple[list[int], list[float]]]:
        return {name: rows_of(metrics, name) for name in names}

    curves(
        path,
        [
            ("Loss", "cross-entropy", lines("train/loss", "val/loss")),
            ("Dev, beam of one", "%", lines("val/exact", "val/execution", "val/gold_value", "val/token_match")),
        ],
    )


def lengths(path: Path, programs: Sequence[str], problems: Sequence[Problem]) -> None:
    """How many steps the programs of dev have, known and predicted."""
    known = [len(parse(problem.program)) for problem in problems]
    found = [_length(program) for program in programs]
    most = min(20, max([*known, *found, 1]))
    with figure(path, 6.0, 3.4) as drawn:
        ax = drawn.subplots()
        edges = np.arange(0, most + 2) - 0.5
        kept = [np.minimum(known, most), np.minimum(found, most)]
        ax.hist(kept, bins=list(edges), label=["known", "predicted"], color=[PALETTE[0], PALETTE[1]])
        ax.set(xlabel="steps", ylabel="programs", title=f"Dev programs (the last bar: {most} or more)")
        ax.legend()


def _length(program: str) -> int:
    try:
        return len(parse(program))
    except ProgramError:
        return 0


def steps(path: Path, verdicts: Sequence[scores.Verdict], problems: Sequence[Problem]) -> None:
    """Execution accuracy of dev by the number of steps of the known program."""
    table = scores.by_steps(verdicts, problems)
    with figure(path, 6.0, 3.4) as drawn:
        ax = drawn.subplots()
        shares = [100 * right / count for count, right in table.values()]
        ax.bar(range(len(table)), shares, color=PALETTE[0])
        for place, (count, _) in enumerate(table.values()):
            ax.text(place, shares[place] + 1, str(count), ha="center", fontsize=7)
        ax.set_xticks(range(len(table)), [str(number) for number in table], fontsize=7)
        ax.set(
            xlabel="steps of the known program (above each bar: how many)",
            ylabel="execution accuracy, %",
            ylim=(0, 108),
        )


def confused(path: Path, programs: Sequence[str], problems: Sequence[Problem]) -> None:
    """The operators most often written in another's place, step by step, in dev."""
    pairs: Counter[tuple[str, str]] = Counter()
    for program, problem in zip(programs, problems, strict=True):
        try:
            mine = parse(program)
        except ProgramError:
            continue
        for written, known in zip(mine, parse(problem.program), strict=False):
            if written.operator != known.operator:
                pairs[known.operator, written.operator] += 1
    rows = pairs.most_common(_CONFUSED)
    with figure(path, 6.4, 0.6 + 0.26 * max(1, len(rows))) as drawn:
        ax = drawn.subplots()
        ax.barh(range(len(rows)), [count for _, count in rows], color=PALETTE[1])
        ax.set_yticks(range(len(rows)), [f"{known} → {written}" for (known, written), _ in rows], fontsize=7)
        ax.invert_yaxis()
        ax.set(xlabel="times", title="Operators written in another's place, same step (dev)")


def attention(path: Path, task: Text2MathTask, programs: Sequence[str], verdicts: Sequence[scores.Verdict]) -> None:
    """The weights of the words at every token of some dev programs, of right ones where there are any."""
    encoded, problems = task.encoded["dev"], task.problems["dev"]
    short = [
        row for row, verdict in enumerate(verdicts)
        if verdict.execution and len(words_of(problems[row].text)[0]) <= 40
    ]  # fmt: skip
    chosen = sorted(short or range(len(problems)), key=lambda row: -len(parse(problems[row].program)))[: 4 * _SHOWN : 4]
    # Where none came out right, what was written may be no program.
    written = [(task.tokens.encode(programs[row]) if _length(programs[row]) else None) or [END] for row in chosen]
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
