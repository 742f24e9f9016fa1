"""The space of NAS-Bench-201: its cells and networks, the remedies, scores without training, whole runs by a table."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from etude.cli import main
from etude.core.errors import UserError
from etude.data import nasbench201
from etude.studies.darts import nb201
from etude.studies.darts.baseline import of_table
from etude.studies.darts.evolution import evolve, mutated, random_search
from etude.studies.darts.nb201 import OPERATIONS, BenchCell, BenchNetwork, BenchSuperNetwork, all_cells, derive, parse
from etude.studies.darts.scores import gradient_norm, naswot, synflow
from etude.studies.darts.search_task import SearchTask

PUBLISHED = "|skip_connect~0|+|none~0|nor_conv_3x3~1|+|avg_pool_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table in which a cell is the better the more convolutions of 3 x 3 it has."""
    path = tmp_path_factory.mktemp("table") / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arch", *nasbench201.COLUMNS.values()])
        for cell in all_cells():
            value = 50 + 5 * cell.count("nor_conv_3x3") + cell.count("nor_conv_1x1")
            writer.writerow([cell.text, value, value - 10, value - 20, value - 5])
    return path


def test_the_published_count_of_parameters() -> None:
    """The benchmark's own .802426 million."""
    assert sum(weight.numel() for weight in BenchNetwork(parse(PUBLISHED)).parameters()) == 802_426


def test_a_name_and_its_cell() -> None:
    cell = parse(PUBLISHED)
    assert cell.text == PUBLISHED
    assert (cell.count("nor_conv_3x3"), cell.count("none")) == (3, 1)
    assert len({cell.text for cell in all_cells()}) == nasbench201.CELLS


@pytest.mark.parametrize("text", ["", "|none~0|", PUBLISHED.replace("~1", "~0"), PUBLISHED.replace("avg", "max"), "{}"])
def test_what_is_no_cell(text: str) -> None:
    with pytest.raises(UserError, match="NAS-Bench-201"):
        parse(text)


def test_a_mixture_of_one_operation_is_that_cell() -> None:
    torch.manual_seed(0)
    cell, mixed = parse(PUBLISHED), nb201.MixedCell(4)
    weights_EO = torch.zeros(len(nb201.EDGES), len(OPERATIONS))
    fixed = nb201.FixedCell(cell, 4)
    for edge, name in enumerate(cell.operations):
        which = OPERATIONS.index(name)
        weights_EO[edge, which] = 1
        of_mixture = dict(mixed.edges[edge][which].named_parameters())  # pyright: ignore[reportIndexIssue]
        for key, weight in fixed.edges[edge].named_parameters():
            if key in of_mixture:
                weight.data.copy_(of_mixture[key])
    assert derive(weights_EO) == cell
    x = torch.randn(3, 4, 8, 8)
    torch.testing.assert_close(mixed(x, weights_EO), fixed(x))


def test_alpha_and_weights_are_all_parameters() -> None:
    model = BenchSuperNetwork(4, 3, 5)
    assert len(model.architecture) + len(model.weights) == len(list(model.parameters()))
    logits, _ = model(torch.randn(2, 3, 16, 16), noise={nb201.KIND: torch.full((6, 5), 0.1)})
    assert logits.shape == (2, 5)
    assert not torch.equal(logits, model(torch.randn(2, 3, 16, 16))[0])


def _search(**search: float) -> SimpleNamespace:
    """A search in its middle, as far as the remedies look at it."""
    torch.manual_seed(1)
    model = SimpleNamespace(alpha={"cell": torch.randn(6, 5, dtype=torch.float64, requires_grad=True)})
    config = SimpleNamespace(
        search=SimpleNamespace(**search),
    )
    draw = SimpleNamespace(generator=lambda name, step: torch.Generator().manual_seed(step))
    return SimpleNamespace(
        model=model,
        config=config,
        runtime=draw,
        step=50,
        num_steps=100,
        architecture=[*model.alpha.values(), torch.ones(3)],
    )


def test_beta_decay_is_the_gradient_of_the_log_of_summed_exponentials() -> None:
    task = _search(beta=8.0)
    given = [torch.ones(6, 5, dtype=torch.float64), torch.ones(3)]
    found = SearchTask.decayed(task, given)  # pyright: ignore[reportArgumentType]
    alpha = task.model.alpha["cell"]
    (expected,) = torch.autograd.grad(4.0 * alpha.logsumexp(1).mean(), alpha)
    torch.testing.assert_close(found[0], 1 + expected)
    assert found[1] is given[1]
    task.config.search.beta = 0.0
    assert SearchTask.decayed(task, given) is given  # pyright: ignore[reportArgumentType]


def test_noise_grows_and_stays_within_its_bound() -> None:
    task = _search(perturb=0.4)
    noise = SearchTask.noise(task)["cell"]  # pyright: ignore[reportArgumentType, reportOptionalSubscript]
    assert 0.1 < noise.abs().max() <= 0.4 * 51 / 100
    assert (noise > 0).any()
    assert (noise < 0).any()
    task.config.search.perturb = 0.0
    assert SearchTask.noise(task) is None  # pyright: ignore[reportArgumentType]


class _Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.last(self.act(self.first(x.flatten(1)))), None


def test_scores_against_slow_ones() -> None:
    torch.manual_seed(0)
    chain, x, labels = _Chain(), torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    codes = (chain.first(x).detach() > 0).numpy()
    kernel = np.array([[5 - (one != other).sum() for other in codes] for one in codes], float)
    assert naswot(chain, x, labels) == pytest.approx(np.linalg.slogdet(kernel)[1])
    functional.cross_entropy(chain(x)[0], labels).backward()
    lengths = [float(weight.grad.norm()) for weight in chain.parameters() if weight.grad is not None]
    assert gradient_norm(chain, x, labels) == pytest.approx(sum(lengths), rel=1e-5)
    before = {key: value.clone() for key, value in chain.state_dict().items()}
    # Through absolute weights and ones, each layer's sum of weight times gradient is the output's sum.
    total = (chain.last.weight.abs() @ (chain.first.weight.abs() @ torch.ones(6))).sum().item()
    assert synflow(chain, x, labels) == pytest.approx(math.log(2 * total), rel=1e-5)
    assert all(torch.equal(value, before[key].double()) for key, value in chain.state_dict().items())


_SMALL = [
    "--model.channels", "4", "--model.layers", "3", "--model.num-classes", "4", "--data.source", "generated",
    "--data.size", "16", "--loop.device", "cpu",
]  # fmt: skip


def test_a_search_gives_what_the_table_says(table: Path, tmp_path: Path) -> None:
    words = ["--loop.max-steps", "4", "--loop.eval-every", "2", "--batch.size", "16", "--search.perturb", "0.1"]
    run = ["run", "darts", "nb201-laptop", "--name", "s", "--runs", str(tmp_path), "--table-file", str(table)]
    assert main([*run, *_SMALL, *words, "--search.beta", "1", "--search.order", "2"]) == 0
    folder = tmp_path / "darts/s"
    summary = json.loads((folder / "summary.json").read_text())
    values = {row["metric"]: row["value"] for row in summary["results"]}
    cell = parse(json.loads((folder / "figures/genotype.json").read_text())["cell"])
    assert values["cifar10"] == 50 + 5 * cell.count("nor_conv_3x3") + cell.count("nor_conv_1x1")
    assert values["imagenet16"] == values["cifar10"] - 20
    assert "table/cifar10" in (folder / "metrics.jsonl").read_text()
    assert {path.stem for path in (folder / "figures").glob("*.png")} == {"curves", "watch", "mixtures"}


def test_scores_are_ranked_against_the_table(table: Path, tmp_path: Path) -> None:
    run = ["run", "darts", "nb201-scores", "--name", "s", "--runs", str(tmp_path), "--table-file", str(table)]
    assert main([*run, *_SMALL, "--loop.max-steps", "12", "--batch.size", "8"]) == 0
    summary = json.loads((tmp_path / "darts/s/summary.json").read_text())
    values = {row["cell"]: row["value"] for row in summary["results"] if row["metric"] == "spearman_cifar10"}
    # The table is made of the convolutions, and these are what most parameters are of.
    assert values["parameters"] > 0.9
    assert all(-1 <= value <= 1 for value in values.values())


@pytest.mark.parametrize("words", [("--phase", "retrain"), ("--model.layers", "4"), ("--search.partial", "2")])
def test_settings_that_the_space_has_not(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "darts", "nb201-laptop", *words]) == 2
    assert "nb201" in capsys.readouterr().err


def test_a_file_that_is_no_table(tmp_path: Path, table: Path) -> None:
    wrong = tmp_path / "wrong.csv"
    for text in ("a,b\n1,2\n", "", "\n".join(table.read_text().splitlines()[:9]), table.read_text().replace("50", "x")):
        wrong.write_text(text)
        with pytest.raises(UserError, match=r"wrong\.csv"):
            nasbench201.load(str(wrong))
    with pytest.raises(UserError, match="--table-file"):
        nasbench201.load("nowhere.csv")


@pytest.mark.real
@pytest.mark.long
def test_the_published_optimum_and_collapse(real_table: Path) -> None:
    table = nasbench201.load(str(real_table))
    assert max(row["cifar10"] for row in table.rows.values()) == 94.373
    assert table.of(BenchCell(("skip_connect",) * 6).text)["cifar10"] == 54.297


def test_searches_of_one_cell_after_another() -> None:
    """Evolution finds what chance does not: the cell that shares most edges with one that nobody has told it."""
    goal = parse(PUBLISHED).operations

    def alike(cell: BenchCell) -> float:
        return sum(one == other for one, other in zip(cell.operations, goal, strict=True))

    def found(search: Callable[..., BenchCell]) -> float:
        return sum(alike(search(alike, 80, torch.Generator().manual_seed(seed))) for seed in range(10)) / 10

    assert found(evolve) > found(random_search) + 0.5
    cell = parse(PUBLISHED)
    changed = mutated(cell, torch.Generator().manual_seed(0))
    assert sum(one != other for one, other in zip(cell.operations, changed.operations, strict=True)) == 1


def test_baselines_of_a_table(table: Path) -> None:
    rows = of_table(nasbench201.load(str(table)), repeats=20)
    values = {row.name: row.value for row in rows if row.metric == "cifar10"}
    assert values["random search"] < values["random search, 100 cells"] < 80
    assert values["regularised evolution, 100 cells"] > values["random search, 100 cells"]
