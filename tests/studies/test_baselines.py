"""The simple methods beside each study's networks: by hand on tiny cases, and on real data where it is at hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from etude import registry
from etude.core import randomness
from etude.core.errors import UserError
from etude.core.study import Study
from etude.core.summary import read_summaries
from etude.data import omniglot
from etude.data.labelled import LabelledImages
from etude.data.mathqa import masked
from etude.data.pictures import Pictures
from etude.metrics import gaussian
from etude.scenes import baseline as scenes
from etude.scenes import ring
from etude.scenes.scores import score
from etude.scenes.source import SceneConfig, load_scenes
from etude.studies.darts import baseline as darts
from etude.studies.pix2pix import baseline as pix2pix
from etude.studies.protonet import baseline as protonet
from etude.studies.protonet.episodes import score_pool
from etude.studies.protonet.model import squared_euclidean
from etude.studies.protonet.study import laptop
from etude.studies.resnet import baseline as resnet
from etude.studies.text2math import baseline as text2math
from etude.studies.text2math.problems import Problem


def silent(text: str) -> None:
    """Nobody listens."""


def test_a_study_without_the_part_says_so_in_one_line(
    refused: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Study, "has", lambda self, part: part != "baseline")
    refused("baseline", "resnet", says=("'resnet' has no baseline.py yet",))
    assert not (tmp_path / "runs").exists()


def test_the_verb_writes_what_it_prints(etude: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = registry.load("text2math").module("baseline")
    train, dev = [Problem("add 1 to 2", "add(n0,n1)|", 3.0)], [Problem("add 3 to 5", "add(n0,n1)|", 8.0)]
    monkeypatch.setattr(module, "load", lambda config: {"train": train, "dev": dev, "test": dev})
    monkeypatch.setattr(module, "checksums", lambda: {"train.json": "00"})
    answer = etude("baseline", "text2math", "--runs", tmp_path, "--json")
    assert answer.status == 0
    body = json.loads((tmp_path / "text2math" / "baseline.json").read_text())
    assert body["rows"] == json.loads(answer.out)
    assert body["command"] == "etude baseline text2math"
    assert body["data"] == {"train.json": "00"}
    assert {"commit", "seconds"} <= body.keys()
    assert "nearest" in etude("baseline", "text2math", "--runs", tmp_path).out


def test_a_problem_takes_the_program_of_its_template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text2math, "VOTERS", 2)
    train = [
        Problem("a train runs 60 km in 2 hours . what is its speed ?", "divide(n0,n1)|", 30.0),
        Problem("a train runs 60 km . how many meters is that ?", "multiply(n0,const_1000)|", 60_000.0),
        Problem("what is the sum of 3 and 4 ?", "add(n0,n1)", 7.0),
    ]
    asked = [
        Problem("a train runs 1,200.5 km in 7 hours . what is its speed ?", "divide(n0,n1)", 171.5),
        # The words of the second, and as many numbers as the others.
        Problem("a train runs 60 km . how many meters is that 5 times ?"),
    ]
    assert masked(asked[0].text) == masked(train[0].text)
    assert text2math.nearest_programs(train, asked) == ["divide(n0,n1)", "divide(n0,n1)"]
    rows = {(row.name.split(" ")[0], row.metric, row.split): row.value
            for row in text2math.compared(train, asked[:1], "test", "here", silent)}  # fmt: skip
    assert rows["nearest", "exact", "test, texts seen in training"] == 100
    assert rows["nearest", "execution", "test"] == 100
    assert rows["the", "exact", "test"] == 100


@pytest.mark.real_data
@pytest.mark.usefixtures("real_mathqa")
def test_the_nearest_training_problem_answers_real_ones() -> None:
    problems = text2math.load(text2math.DataConfig())
    known = {masked(problem.text) for problem in problems["train"]}
    assert sum(masked(problem.text) in known for problem in problems["test"]) == 1384
    rows = text2math.compared(problems["train"], problems["test"][:200], "test", "MathQA", silent)
    found = {row.metric: row.value for row in rows if row.split == "test" and row.name.startswith("nearest")}
    assert 75 < found["exact"] < found["execution"] < 92


# --- scenes ---


def discs(size: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """A drawn scene, a red and a blue disc on speckled grey: bytes ``[1, H, W, 3]`` and true segments ``[1, H, W]``."""
    draw = torch.Generator().manual_seed(0)
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    true = torch.zeros(size, size, dtype=torch.int64)
    image = 110 + 10 * torch.rand(size, size, 1, generator=draw).expand(-1, -1, 3)
    for number, (y, x, colour) in enumerate([(14, 14, (200.0, 30.0, 30.0)), (33, 32, (30.0, 30.0, 200.0))], 1):
        inside = (row - y) ** 2 + (column - x) ** 2 < 64
        true[inside] = number
        image = torch.where(inside[..., None], torch.tensor(colour), image)
    return image.to(torch.uint8)[None], true[None]


def test_the_ring_finds_two_discs() -> None:
    images, true = discs()
    config = ring.RingConfig(clusters=2, quantile=0.005)
    segments = ring.ring_segments(images, config)
    found = score(segments, true, None, None, 3).means()
    # Both whole and apart, with a seam of ground around them: a window that sees an edge has its spread.
    assert found["fg_ari"] == 1
    assert segments[true > 0].min() > 0
    assert found["ari"] > 0.4
    # The same whatever else is in the batch, and each time.
    both = ring.ring_segments(torch.cat([images, images.flip(2)]), config)
    assert torch.equal(both[:1], ring.ring_segments(images, config))


def test_a_gaussian_finds_its_own_points_likelier() -> None:
    points = torch.randn(1, 200, 2, generator=torch.Generator().manual_seed(1))
    far = torch.cat([points, points + 20], 1)
    likely = ring.log_likelihood(points, far, 1)
    assert likely[0, :200].min() > likely[0, 200:].max()
    # One Gaussian is the normal density of the points' own mean and covariance.
    normal = torch.distributions.MultivariateNormal(
        points[0].mean(0), points[0].T.cov(correction=0) + 1e-4 * torch.eye(2)
    )
    torch.testing.assert_close(likely[0], normal.log_prob(far[0]), rtol=1e-3, atol=1e-3)


def test_clusters_are_the_groups_and_what_is_not_kept_has_no_say() -> None:
    points = torch.tensor([[[0.0], [0.1], [5.0], [5.1], [100.0]]])
    kept = torch.tensor([[True, True, True, True, False]])
    found = ring.clusters(points, kept, 2)[0].tolist()
    assert found[0] == found[1] != found[2] == found[3] == found[4]


def test_segments_are_painted_in_their_mean_colour() -> None:
    images = torch.tensor([[[[0, 0, 0], [102, 0, 0]], [[255, 255, 255], [255, 255, 255]]]], dtype=torch.uint8)
    made = scenes.painted(images, torch.tensor([[[0, 0], [1, 1]]]), 3)
    torch.testing.assert_close(made[0, 0], torch.tensor([[0.2, 0.2], [1.0, 1.0]]))


@pytest.mark.usefixtures("real_scenes")
@pytest.mark.real_data
def test_the_ring_on_rendered_scenes() -> None:
    read = load_scenes(SceneConfig(source="folder", folder="clevrtex-render-128.zip", most=200), 32)
    rows = list(scenes.segmented(read.splits["test"], "test", "some"))
    found = {(row.name.split(" ")[0], row.metric): row.value for row in rows}
    assert found["ring", "ari"] > 0.3 > found["11", "ari"]
    assert found["ring", "miou"] > found["11", "miou"]
    assert {row.better for row in rows if row.metric == "mse"} == {"lower"}


# --- pictures ---


def test_classes_by_pixels() -> None:
    """Dark and bright pictures: every method but the largest class tells them apart."""
    draw = torch.Generator().manual_seed(0)

    def pictures_of(count: int, dark: int) -> LabelledImages:
        labels = torch.tensor([0] * dark + [1] * (count - dark))
        images = torch.randint(0, 40, (count, 32, 32, 3), generator=draw) + 150 * labels[:, None, None, None]
        names = tuple(map(str, range(count)))
        return LabelledImages(images.to(torch.uint8), labels, ("dark", "bright"), names)

    splits = {"train": pictures_of(30, 20), "val": pictures_of(10, 5), "test": pictures_of(10, 4)}
    found = resnet.measured(Pictures(splits, ("dark", "bright"), "made up", {}), silent)
    rows = {(row.name, row.metric, row.split): row.value for row in found}
    assert rows["the largest class", "accuracy", "test"] == 40
    assert rows["the largest class", "error", "test"] == 60
    assert rows["nearest class mean on pixels", "accuracy", "test"] == 100
    assert rows["logistic regression on pixels", "macro_f1", "test"] == 100


@pytest.mark.real_data
def test_pixels_tell_birds_apart(real_birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnet, "SETS", resnet.SETS[1:])
    monkeypatch.setattr(resnet, "STRENGTHS", (1e-2,))
    rows = {
        (row.name.split(" ")[0], row.split): row.value for row in resnet.measure(silent) if row.metric == "accuracy"
    }
    assert rows["the", "test"] < 20 < 45 < rows["nearest", "test"] < rows["logistic", "test"] < 85


def test_episodes_by_pixels_are_those_of_the_study() -> None:
    z = torch.randn(12, 20, 64, generator=torch.Generator().manual_seed(0)) + 0.7 * torch.randn(12, 1, 64)
    groups = torch.zeros(12, dtype=torch.int64)

    def draw() -> torch.Generator:
        return randomness.generator(0, "test/fewshot", 5)

    mine = protonet.accuracy(z, groups, draw(), 5, 5, 15, 40, nearest=False, within=False)
    theirs = score_pool(z, groups, squared_euclidean, draw(), way=5, shot=5, query=15, num_episodes=40)
    assert mine == pytest.approx((theirs.mean, theirs.half_width))
    one = protonet.accuracy(z, groups, draw(), 5, 1, 15, 40, nearest=True, within=False)
    assert one == pytest.approx(protonet.accuracy(z, groups, draw(), 5, 1, 15, 40, nearest=False, within=False))


def test_a_nearest_neighbour_by_hand() -> None:
    """Two classes on a line: class 0 lies at 0 and 10, class 1 at 4; a neighbour answers where a mean fails."""
    z = torch.zeros(2, 20, 1)
    z[0, ::2], z[0, 1::2], z[1] = 0.0, 10.0, 4.0
    near, _ = protonet.accuracy(z, torch.zeros(2, dtype=torch.int64), torch.Generator().manual_seed(0), 2, 10, 10, 50,
                                nearest=True, within=False)  # fmt: skip
    mean, _ = protonet.accuracy(z, torch.zeros(2, dtype=torch.int64), torch.Generator().manual_seed(0), 2, 10, 10, 50,
                                nearest=False, within=False)  # fmt: skip
    assert near == 100 > mean


@pytest.mark.usefixtures("real_omniglot")
@pytest.mark.real_data
def test_pixels_tell_characters_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protonet, "BLURS", (1.0,))
    config = replace(laptop().evaluation, episodes=100, val_episodes=100, ways=(5,))
    rows = protonet.compared(omniglot.load("val"), omniglot.load("test"), config, silent)
    found = {
        row.cells[0]: row.value for row in rows if row.experiment == "fewshot" and row.name.startswith("nearest n")
    }
    assert 50 < found["w5s1"] < found["w5s5"] < 95


# --- pairs ---


def test_translations_without_a_network() -> None:
    """A dark and a bright pair; the output is the negative."""
    given = torch.tensor([10, 200], dtype=torch.uint8)[:, None, None, None].expand(2, 32, 32, 3)
    made = 255 - given
    asked = torch.full((1, 32, 32, 3), 190, dtype=torch.uint8)
    assert pix2pix.training_mean(given, made, asked).unique().tolist() == [150]
    assert torch.equal(pix2pix.nearest_pair(given, made, asked), made[1:])
    assert pix2pix.colour_regression(given, made, asked).unique().item() == pytest.approx(65, abs=12)


@pytest.mark.usefixtures("real_pairs")
@pytest.mark.real_data
def test_real_pairs_both_ways() -> None:
    rows = {(row.name, row.metric, row.split, row.cells): row.value for row in pix2pix.measure(silent)}
    colour = "a regression of colours, pixel by pixel"
    there, back = pix2pix.CELLS.values()
    assert rows[colour, "accuracy_5", "test", there] == pytest.approx(31.97, abs=0.5)
    assert rows[colour, "l1", "test", back] > rows[colour, "l1", "test", there]
    assert (colour, "accuracy_5", "test", back) not in rows


# --- cells ---


def test_random_cells_and_their_weights() -> None:
    def run(cell: str, accuracy: float, weights: int, experiment: str = "retrained") -> dict[str, Any]:
        row = {"experiment": experiment, "cell": cell, "metric": "accuracy", "split": "test", "value": accuracy,
               "variant": "some"}  # fmt: skip
        return {"results": [row], "parameters": {"model": weights}, "steps_trained": 7}

    runs = [run("random", 60.0, 10), run("random", 64.0, 20), run("found", 70.0, 30), run("random", 50.0, 5, "run")]
    rows = {(row.name, row.experiment): row for row in darts.of_runs(runs)}
    assert rows["random search", "retrained"].value == 62
    assert rows["a random cell", "run"].value == 50
    assert rows["the number of weights", "retrained"].value == pytest.approx(1)
    assert ("the number of weights", "run") not in rows


def test_the_committed_cells_hold_a_random_search() -> None:
    (found,) = [row for row in darts.of_committed(silent)
                if (row.name, row.metric, row.split) == ("random search", "accuracy", "test")]  # fmt: skip
    assert 60 < found.value < 70


# --- FID ---


def test_a_gaussian_has_the_mean_and_the_spread_of_its_pictures() -> None:
    draw = torch.Generator().manual_seed(0)
    amount = torch.randn(400, 1, 1, generator=draw) * 20
    train = (100 + amount * torch.linspace(0, 1, 8)).expand(400, 8, 8).round().to(torch.uint8)
    made = gaussian.gaussian_pictures(train, 500, components=3).float()
    torch.testing.assert_close(made.mean(0), train.float().mean(0), rtol=0, atol=3)
    torch.testing.assert_close(made.std(0), train.float().std(0), rtol=0.2, atol=1)


def test_without_the_inception_network_there_is_no_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(weights: Path | None, device: torch.device) -> None:
        raise UserError("it is not at hand")

    monkeypatch.setattr(gaussian.fid, "Inception", none)
    said: list[str] = []
    images = torch.zeros(4, 8, 8, dtype=torch.uint8)
    assert gaussian.distances(images, images, 2, "test", said.append, variant="v") == []
    assert "it is not at hand" in said[-1]


def test_the_floor_is_a_bound_and_the_gaussian_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Network:
        def __init__(self, weights: Path | None, device: torch.device) -> None:
            pass

        def cached_features(self, images: torch.Tensor, *, title: str = "") -> Any:
            return images.flatten(1)[:, :6].double().numpy()

    monkeypatch.setattr(gaussian.fid, "Inception", Network)
    images = torch.randint(0, 255, (60, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    rows = gaussian.distances(images[:40], images[40:], 30, "test", silent, variant="v", cells=("a",))
    assert [(row.metric, row.bound) for row in rows] == [("fid", True), ("kid", True), ("fid", False), ("kid", False)]
    assert {(row.better, row.split, row.cells) for row in rows} == {("lower", "test", ("a",))}


@pytest.mark.parametrize("name", registry.NAMES)
def test_every_study_has_its_baselines_committed(name: str, root: Path) -> None:
    """Each stands beside measured cells: of a metric, a split and data that the committed runs have."""
    study = registry.load(name)
    assert {"measure", "checksums"} <= vars(study.module("baseline")).keys()
    path = root / "results" / name / "baseline.json"
    body = json.loads(path.read_text())
    assert body["command"] == f"etude baseline {name}"
    ours = {(row["metric"], row["split"]) for summary in read_summaries([root / "results"], name).values()
            for row in summary["results"]}  # fmt: skip
    beside = [row for row in body["rows"] if (row["metric"], row["split"]) in ours]
    assert len(beside) > 1
    assert {row["metric"] for row in body["rows"]} - {metric for metric, _ in ours} <= {
        "rank_correlation",
        "cifar10",
        "cifar100",
        "imagenet16",
        "miou",
        "miou_fg",
        "rmse",
    }
