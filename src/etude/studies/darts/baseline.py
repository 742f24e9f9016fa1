"""The bar of a search: cells drawn at random, or evolved; and how much the count of weights foretells."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from etude.core.errors import UserError
from etude.core.summary import committed, read_summaries
from etude.data import nasbench201
from etude.metrics.baseline import Baseline
from etude.studies.darts.evolution import evolve, random_search

BUDGETS = (20, 100)
"""Trainings of 12 epochs: as many as a search of 50 epochs costs, whose mixture has all operations on all edges and so
five times the work of a mean cell; and five times as many."""
REPEATS = 500


def measure(say: Callable[[str], None]) -> list[Baseline]:
    """Baselines of the committed runs and of the table of NAS-Bench-201: no network is trained.

    Raises:
        UserError: there are no runs, or no table.
    """
    say(f"{REPEATS} searches by the table of NAS-Bench-201")
    return of_committed(say) + of_table(nasbench201.load())


def of_table(table: nasbench201.Table, repeats: int = REPEATS) -> list[Baseline]:
    """Searches that look cells up: chosen by accuracy after 12 epochs on validation, measured after 200 on test."""
    rows: list[Baseline] = []
    for name, search in (("random search", random_search), ("regularised evolution", evolve)):
        for budget in BUDGETS:
            draws = [torch.Generator().manual_seed(number) for number in range(repeats)]
            found = [table.of(search(lambda cell: table.of(cell.text)["val12"], budget, draw).text) for draw in draws]
            for metric in ("cifar10", "cifar100", "imagenet16"):
                values = [row[metric] for row in found]
                protocol = (
                    f"mean of {repeats} searches of {budget} cells, chosen after 12 epochs on CIFAR-10's validation "
                    f"half; deviation over searches {statistics.stdev(values):.2f}"
                )
                width = 1.96 * statistics.stdev(values) / math.sqrt(repeats)
                called = name if budget == BUDGETS[0] else f"{name}, {budget} cells"
                rows.append(
                    Baseline(called, metric, "test", statistics.fmean(values), protocol, "%", width, experiment="nb201")
                )
    return rows


def of_committed(say: Callable[[str], None]) -> list[Baseline]:
    """Baselines of the committed runs.

    Raises:
        UserError: there are none.
    """
    say("the cells of results/darts, random ones among them")
    rows = of_runs(list(read_summaries([committed()], "darts").values()))
    if not rows:
        raise UserError("no random cell among the committed results of darts: `etude study darts search` trains some")
    return rows


def of_runs(summaries: Sequence[Mapping[str, Any]]) -> list[Baseline]:
    """The baselines that finished runs hold.

    Args:
        summaries: of retrained cells; those of cell ``random`` are a random search's, each chosen on validation among
            the draws of its seed.
    """
    rows: list[Baseline] = []
    for table, name in (("retrained", "random search"), ("run", "a random cell")):
        runs = [(_values(summary, table, "random"), summary) for summary in summaries]
        runs = [(values, summary) for values, summary in runs if values]
        for metric in ("accuracy", "error"):
            for split in ("val", "test"):
                found = [values[metric, split] for values, _ in runs if (metric, split) in values]
                if found:
                    chosen = "each the best on validation of four random cells" if table == "retrained" else "all draws"
                    steps = runs[0][1]["steps_trained"]
                    protocol = f"mean of {len(found)} runs of {steps:,} steps, {chosen}; {found[0]['variant']}"
                    rows.append(_row(name, metric, split, found, protocol, table))
    trained = {
        table: [
            (sum(summary["parameters"].values()), row["value"], row["variant"])
            for summary in summaries for row in summary["results"]
            if (row["experiment"], row["metric"], row["split"]) == (table, "accuracy", "test")
        ]
        for table in ("retrained", "run")
    }  # fmt: skip
    for table, cells in trained.items():
        if len(cells) > 2:
            rows.append(_correlation(table, cells))
    return rows


def _values(summary: Mapping[str, Any], table: str, cell: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {
        (row["metric"], row["split"]): row
        for row in summary["results"]
        if (row["experiment"], row["cell"]) == (table, cell)
    }


def _row(
    name: str, metric: str, split: str, found: Sequence[Mapping[str, Any]], protocol: str, table: str
) -> Baseline:  # fmt: skip
    from scipy.stats import t

    values = [row["value"] for row in found]
    width = None
    if len(values) > 1:
        width = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Baseline(
        name, metric, split, statistics.fmean(values), protocol, "%", width, variant=found[0]["variant"],
        experiment=table, better="lower" if metric == "error" else "higher",
    )  # fmt: skip


def _correlation(table: str, cells: Sequence[tuple[int, float, str]]) -> Baseline:
    """The rank correlation of the number of weights with the accuracy on test: what a count alone foretells."""
    from scipy.stats import spearmanr

    weights, accuracies, variants = zip(*cells, strict=True)
    protocol = f"Spearman's, of {len(cells)} trained cells of table {table}; {variants[0]}"
    value = float(spearmanr(weights, accuracies)[0])  # pyright: ignore[reportArgumentType]
    return Baseline(
        "the number of weights", "rank_correlation", "test", value, protocol, variant=variants[0], experiment=table
    )


def checksums() -> dict[str, str]:
    return {}
