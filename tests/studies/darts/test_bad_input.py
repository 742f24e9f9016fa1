"""What a user may do wrong with a search: one line that names the fault and the fix, and nothing lost or left."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.studies.darts.common import SMALL, TINY, cell_file
from tests.studies.resnet.common import picture

from etude.core.errors import UserError
from etude.studies.darts.genotype import OPERATIONS, Genotype, from_text, parse


def search(*words: str) -> tuple[str, ...]:
    return ("run", "darts", "smoke", *TINY, *words)


def retrain(*words: str) -> tuple[str, ...]:
    return ("run", "darts", "retrain-smoke", *TINY, *words)


def nothing_left() -> None:
    assert list(Path("runs").glob("*/*")) == []


# --- cells ---

CYCLE = {"normal": [[["sep_conv_3x3", 0], ["skip_connect", 1]], [["skip_connect", 3], ["skip_connect", 0]]]}
MISSING = {"reduction": [[["sep_conv_3x3", 0]], [["skip_connect", 1], ["skip_connect", 0]]]}
UNKNOWN = {"normal": [[["sep_conv_7x7", 0], ["skip_connect", 1]]]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (UNKNOWN, ("normal cell, node 2 has no operation 'sep_conv_7x7'", "did you mean 'sep_conv_")),
        (MISSING, ("reduction cell, node 2 has 1 edge, not 2",)),
        (CYCLE, ("normal cell, node 3 takes node 3, which does not come before it: a cycle",)),
    ],
)
def test_a_wrong_cell_is_refused_by_all_that_read_cells(
    changes: dict[str, Any], says: tuple[str, ...], here: Path, refused: Any
) -> None:
    path = cell_file(here / "mine.json", **changes)
    text = path.read_text()
    refused(*retrain("--genotype", "mine.json"), says=("mine.json: ", *says))
    refused(*retrain("--genotype", text), says=("genotype: ", *says))
    refused("show", "darts", "mine.json", says=("mine.json: ", *says))
    assert path.read_text() == text
    assert [file.name for file in here.iterdir()] == ["mine.json"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("darts-v3", ("no genotype darts-v3", "did you mean 'darts-v2'?", "as a JSON file")),
        ("none.json", ("no genotype none.json",)),
        ("random-", ("no genotype random-",)),
        ("random--1", ("no genotype random--1",)),
        ("random-x", ("no genotype random-x",)),
        ("n" * 300, ("no genotype nnn",)),
        (".", ("is no search that has ended",)),
        ("{", ("the JSON cannot be read",)),
        ("{}", ("genotype is no genotype: give a JSON object with normal and reduction",)),
        ('{"normal":' + "[" * 5000, ("cannot be read",)),
        ('{"a": ' * 3000 + "1" + "}" * 3000, ("genotype",)),
    ],
)
def test_words_that_are_no_cell(word: str, says: tuple[str, ...], here: Path, refused: Any) -> None:
    refused(*retrain(f"--genotype={word}"), says=says)
    nothing_left()


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"[" * 20_000, b"[]", b"null", b'"normal"', b"1e999", b"\x00"])
def test_files_that_are_no_cell(body: bytes, here: Path, refused: Any) -> None:
    (here / "mine.json").write_bytes(body)
    refused(*retrain("--genotype", "mine.json"), says=("mine.json",))
    nothing_left()


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([*OPERATIONS, "normal"]) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["normal", "reduction"]), inner),
    max_leaves=20,
)
_EDGE = st.tuples(st.sampled_from(OPERATIONS) | _ANY, st.integers(-1, 5) | _ANY)
_CELL = st.lists(st.lists(_EDGE, max_size=3) | _ANY, max_size=4)


@given(_ANY | st.fixed_dictionaries({"normal": _CELL, "reduction": _CELL}))
def test_any_json_is_a_cell_or_one_line(raw: object) -> None:
    fault, found = "", None
    try:
        found = parse(raw, "mine.json")
    except UserError as error:
        fault = str(error)
    if fault:
        assert "\n" not in fault
        assert fault.startswith("mine.json")
        return
    assert isinstance(found, Genotype)
    for cell in (found.normal, found.reduction):
        for node, of_node in enumerate(cell):
            assert len(of_node) == 2
            assert all(0 <= edge.source < node + 2 and edge.operation in OPERATIONS[1:] for edge in of_node)
    assert parse(json.loads(json.dumps(found.to_dict())), "again") == found


@given(st.text(alphabet='{}[]":,0 enormalduct'))
def test_any_text_in_braces_is_one_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        from_text("{" + text)
    assert "\n" not in str(caught.value)


# --- settings ---


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--search.share", "0"), ("search.share must be above 0 and below 1: both halves need pictures, not 0.0",)),
        (("--search.share", "1"), ("search.share must be above 0 and below 1",)),
        (("--search.share", "nan"), ("search.share must be above 0 and below 1",)),
        (("--search.share", "0.01"), ("a batch of 8 is larger than the 4 training pictures for alpha",)),
        (("--model.layers", "1"), ("model.layers must be at least 2, for there are two reductions, not 1",)),
        (("--model.layers", "0"), ("model.layers must be at least 2",)),
        (("--model.nodes", "0"), ("model.nodes must be at least 1",)),
        (("--model.channels", "6", "--search.partial", "2"), ("model.channels must be a multiple of 4",)),
        (("--model.channels", "3"), ("model.channels must be even and at least 2, not 3",)),
        (("--data.size", "12"), ("data.size must be a multiple of 8, not 12",)),
        (("--search.order", "3"), ("--search.order", "3")),
        (("--search.stop", "skip"), ("search.stop must be none, skips, eigenvalue or path/to/file.py:Name",)),
        (("--search.stop", "mine.py:Rule"), ("no file mine.py for the rule to stop by",)),
        (("--batch.size", "121"), ("a batch of 121 is larger than the 120 training pictures for the weights",)),
        (("--batch.size", "9", "--batch.parts", "2"), ("batch.size must be a multiple of batch.parts (2), not 9",)),
        (("--train-images", "8"), ("a batch of 8 is larger than the 4 training pictures for the weights",)),
        (("--train-images", "-1"), ("train_images must be 0 or more, not -1",)),
        (("--search.lr", "0"), ("search.lr must be above 0",)),
        (("--optim.clip", "-1"), ("optim.clip must be 0 or more",)),
        (("--loop.precision", "fp16"), ("loop.precision must be fp32 or bf16 in a search, not fp16",)),
        (("--model.num-classes", "26"), ("up to 25 classes",)),
        (("--genotype", "darts-v1"), ("genotype: a search finds one", "the preset retrain")),
        (("--genotype", "darts-v2"), ("genotype: a search finds one", "the preset retrain")),
        (("--serach.lr", "1"), ("no flag --serach.lr; did you mean '--search.lr'?",)),
    ],
)
def test_searches_that_make_no_sense(words: tuple[str, ...], says: tuple[str, ...], here: Path, refused: Any) -> None:
    refused(*search(*words), says=says)
    nothing_left()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--model.layers", "1"), ("model.layers must be at least 2, for there are two reductions, not 1",)),
        (("--retrain.auxiliary", "0.4"), ("data.size must be 32 with the auxiliary head", "--retrain.auxiliary 0")),
        (("--retrain.auxiliary", "0.4", "--data.size", "64"), ("data.size must be 32 with the auxiliary head",)),
        (("--retrain.auxiliary", "-1"), ("retrain.auxiliary must be 0 or more",)),
        (("--retrain.drop-path", "1"), ("retrain.drop_path must be 0 or more and below 1",)),
        (("--augment.cutout", "-1"), ("augment.cutout must be 0 or more",)),
        (("--train-images", "4"), ("a batch of 8 is larger than the 4 training pictures", "--train-images")),
        (("--batch.size", "241"), ("a batch of 241 is larger than the 240 training pictures",)),
    ],
)
def test_retrainings_that_make_no_sense(
    words: tuple[str, ...], says: tuple[str, ...], here: Path, refused: Any
) -> None:
    refused(*retrain(*words), says=says)
    nothing_left()


def test_the_auxiliary_head_wants_more_than_one_picture(here: Path, refused: Any, etude: Any) -> None:
    """Its last map is one pixel: a norm over one picture has nothing to average over."""
    words = ("--retrain.auxiliary", "0.4", "--data.size", "32", "--batch.size")
    refused(*retrain(*words, "1"), says=("batch.size", "2 or more", "auxiliary head"))
    refused(*retrain(*words, "2", "--batch.parts", "2"), says=("batch.size", "auxiliary head"))
    nothing_left()
    assert etude(*retrain("--batch.size", "1")).status == 0


# --- the other phase ---


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_predictions_of_a_search_are_refused(searched: Path, here: Path, refused: Any, etude: Any) -> None:
    picture(1).save(here / "x.png")
    (here / "out.txt").write_text("older")
    before = contents(searched)
    for words in ((searched,), ("darts", searched)):
        refused("predict", *words, "x.png", "--output", "out.txt", says=("is of a search", "retrain its cell"))
    assert etude("export", searched, "--out", here / "s.safetensors").status == 0
    refused("predict", here / "s.safetensors", "x.png", says=("s.safetensors is of a search",))
    assert (here / "out.txt").read_text() == "older"
    assert contents(searched) == before


def test_a_cell_is_not_read_from_a_retraining(retrained: Path, here: Path, refused: Any) -> None:
    before = contents(retrained)
    for words in (retrain("--genotype", str(retrained)), ("show", "darts", str(retrained))):
        refused(*words, says=("is no search that has ended", "figures/genotype.json", "give the run folder of one"))
    weights = next((retrained / "checkpoints").glob("*/weights.safetensors"))
    refused(*retrain("--genotype", str(weights)), says=("weights.safetensors cannot be read as JSON",))
    assert contents(retrained) == before
    nothing_left()


@pytest.fixture
def edited(searched: Path, retrained: Path, tmp_path: Path) -> Any:
    """A copy of a run whose config.yaml says something else."""

    def call(of: str, **changes: Any) -> Path:
        path = shutil.copytree({"search": searched, "retrain": retrained}[of], tmp_path / of)
        config = yaml.safe_load((path / "config.yaml").read_text())
        for name, value in changes.items():
            part, _, key = name.rpartition("__")
            (config["config"][part] if part else config["config"])[key] = value
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        return path

    return call


@pytest.mark.parametrize(("of", "to"), [("search", "retrain"), ("retrain", "search")])
@pytest.mark.parametrize("verb", ["eval", "resume"])
def test_checkpoints_of_the_other_phase_are_refused(verb: str, of: str, to: str, edited: Any, refused: Any) -> None:
    path = edited(of, phase=to, genotype="" if to == "search" else "darts-v2", retrain__auxiliary=0.0)
    if verb == "resume":
        (path / "summary.json").unlink()
    before = contents(path / "checkpoints")
    mixed = "weights.safetensors does not fit the network 'model'"
    refused(verb, path, says=(f"phase is {of} there and {to} here" if verb == "resume" else mixed,))
    assert contents(path / "checkpoints") == before


def test_a_cell_of_other_nodes_than_the_weights(edited: Any, refused: Any) -> None:
    refused("eval", edited("retrain", genotype="darts-v2"), says=("does not fit the network 'model'",))
    refused("eval", edited("search", model__nodes=3), says=("was trained with model.nodes 2, and config.yaml says 3",))


def test_both_phases_are_evaluated_again(searched: Path, retrained: Path, etude: Any) -> None:
    for path, count in ((searched, 5), (retrained, 6)):
        answer = etude("eval", path, "--json")
        assert (answer.status, answer.err) == (0, "")
        rows = json.loads(answer.out)
        assert len(rows) == count
        assert all(row["value"] == row["in_summary"] for row in rows)
    assert json.loads((searched / "figures" / "genotype.json").read_text()).keys() == SMALL.keys()


def test_a_search_of_an_earlier_version_is_read(searched: Path, tmp_path: Path, etude: Any) -> None:
    """It recorded a genotype, of which a search makes nothing."""
    run = shutil.copytree(searched, tmp_path / "darts" / "earlier")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["config"]["genotype"] = "darts-v2"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert etude("eval", run).status == 0
