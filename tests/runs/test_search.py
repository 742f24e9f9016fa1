"""The language of a search and the record of its trials."""

import json
from pathlib import Path

import pytest

from etude import registry
from etude.core.errors import UserError
from etude.runs.search import Ledger, Range, Trial, best_so_far, read_search, size_of

RESNET = registry.load("resnet")


def test_the_language_of_a_search() -> None:
    words = ["optim.lr=log:1e-4:1e-1", "model.norm=bn,in,ln", "augment.flip=true,false", "batch.size=int:16:128"]
    assert read_search(RESNET, "smoke", words, {}) == [
        Range("optim.lr", "log", (1e-4, 1e-1), words[0]),
        Range("model.norm", "choice", ("bn", "in", "ln"), words[1]),
        Range("augment.flip", "choice", (True, False), words[2]),
        Range("batch.size", "int", (16, 128), words[3]),
    ]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("optim.lr", "--search takes NAME=log:LOW:HIGH"),
        ("optim.lrr=log:1e-4:1", "no flag --optim.lrr; did you mean '--optim.lr'?"),
        ("optim.lr=log:0:1", "must be above 0"),
        ("optim.lr=log:1:0.1", "the first end must be below the second"),
        ("optim.lr=log:1e-3", "log takes two ends"),
        ("optim.lr=float:a:b", "the ends of float are numbers"),
        ("optim.lr=float:nan:1", "the first end must be below"),
        ("optim.lr=-1,0.1", "optim.lr must be above 0, not -1.0"),
        ("batch.size=log:16:128", "batch.size is a whole number: int:LOW:HIGH"),
        ("batch.size=int:1.5:3", "the ends of int are whole numbers"),
        ("model.norm=bn", "two different values or more"),
        ("model.norm=bn,bn,in", "two different values or more"),
        ("optim.schedule=cosine,nosuch", "nosuch"),
        ("seed=1,2", "--search seed"),
        ("model.n=2,3", "--set gives model.n a value already"),
    ],
)
def test_what_is_no_search_is_one_line(word: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        read_search(RESNET, "smoke", [word], {"model.n": 1})
    assert says in str(caught.value)


def test_a_search_of_nothing_or_twice() -> None:
    with pytest.raises(UserError, match="names no setting"):
        read_search(RESNET, "smoke", [], {})
    with pytest.raises(UserError, match=r"names optim\.lr twice"):
        read_search(RESNET, "smoke", ["optim.lr=0.1,0.2", "optim.lr=log:0.1:1"], {})


def test_numbers_are_readable_and_stay_within_their_range() -> None:
    range_ = Range("x", "float", (0.123456, 0.654321), "")
    assert range_.value(0.2345678) == 0.2346
    assert range_.value(0.123457) == 0.1235
    assert range_.value(0.6543209) == 0.6543
    assert Range("x", "log", (0.12355, 1.0), "").value(0.12345601) == 0.12355
    assert Range("x", "int", (10000, 99999), "").value(12345) == 12345
    assert Range("x", "choice", ("a", "b"), "").value(1) == "b"


def test_how_many_trials_there_are() -> None:
    choice, whole = Range("a", "choice", ("x", "y", "z"), ""), Range("b", "int", (2, 5), "")
    assert size_of([choice, whole]) == 12
    assert size_of([choice, Range("c", "log", (0.1, 1.0), "")]) == float("inf")


def test_the_best_so_far() -> None:
    rows = [
        {"step": 1, "train/loss": 3.0}, {"step": 2, "val/loss": float("nan")}, {"step": 4, "val/loss": 2.0},
        {"step": 6, "val/loss": 2.5}, {"step": 8, "val/loss": 1.0},
    ]  # fmt: skip
    least = [(step, best and (best.value, best.step)) for step, best in best_so_far(rows, ("loss", "min"))]
    assert least == [(2, None), (4, (2.0, 4)), (6, (2.0, 4)), (8, (1.0, 8))]
    most = [best and (best.value, best.step) for _, best in best_so_far(rows, ("loss", "max"))]
    assert most == [None, (2.0, 4), (2.5, 6), (2.5, 6)]


def test_a_record_is_of_one_search(tmp_path: Path) -> None:
    path, about = tmp_path / "x.tune.json", {"study": "resnet", "search": ["a=1,2"]}
    ledger = Ledger.open(path, about)
    ledger.monitor = ("accuracy", "max")
    ledger.trials.append(Trial(1, {"a": 1}, "done"))
    ledger.write()
    assert Ledger.open(path, about) == ledger
    assert ledger.item(ledger.trials[0]).path == tmp_path / "x-001"
    with pytest.raises(UserError, match="another search \\(it differs in search\\): give another --name"):
        Ledger.open(path, about | {"search": ["a=1,3"]})
    with ledger.alone(), pytest.raises(UserError, match="in use by another"), Ledger.open(path, about).alone():
        pass
    path.write_text(json.dumps({"format": 1}))
    with pytest.raises(UserError, match="no record of a search"):
        Ledger.open(path, about)
