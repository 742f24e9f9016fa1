"""Cells as data: there and back, faults of files, what is read off alpha."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from etude.core.errors import UserError
from etude.studies.darts.choice import derive, random_cell
from etude.studies.darts.genotype import (
    OPERATIONS,
    Edge,
    Genotype,
    edges,
    parse,
    read,
    write,
)

NODES = 4


@pytest.mark.parametrize("name", ["darts-v1", "darts-v2", "pc-darts"])
def test_published_cells_there_and_back(tmp_path: Path, name: str) -> None:
    found = read(name)
    assert [len(node) for cell in (found.normal, found.reduction) for node in cell] == [2] * 8
    write(tmp_path / "mine.json", found)
    assert read(tmp_path / "mine.json") == found


def test_a_published_cell_by_its_edges() -> None:
    found = read("darts-v2")
    assert found.normal[3] == (Edge("skip_connect", 0), Edge("dil_conv_3x3", 2))
    assert found.count("skip_connect") == 2
    assert found.count("max_pool_3x3", "reduction") == 5


def cell(**changes: Any) -> dict[str, Any]:
    """A genotype of one node a cell, with another first edge or node."""
    edge = [changes.get("operation", "sep_conv_3x3"), changes.get("source", 0)]
    node = changes.get("node", [changes.get("edge", edge), ["skip_connect", 1]])
    return {"normal": changes.get("nodes", [node]), "reduction": [[["max_pool_3x3", 0], ["max_pool_3x3", 1]]]}


FAULTS: list[tuple[Any, str]] = [
    ([], "is no genotype: give a JSON object with normal and reduction"),
    ({"normal": []}, "is no genotype"),
    (cell(nodes=[]), "normal cell has no nodes"),
    (cell(nodes="sep"), "normal cell has no nodes"),
    (cell(node="sep"), "normal cell, node 2 is no list of edges"),
    (cell(node=[["sep_conv_3x3", 0]]), "normal cell, node 2 has 1 edge, not 2"),
    (cell(node=[["sep_conv_3x3", 0]] * 3), "normal cell, node 2 has 3 edges, not 2"),
    (cell(edge=["sep_conv_3x3"]), 'has the edge ["sep_conv_3x3"]: give [operation, source]'),
    (cell(operation="sep_conv_7x7"), "has no operation 'sep_conv_7x7'; did you mean 'sep_conv_"),
    (cell(operation=3), "has no operation 3"),
    (cell(operation=["a"]), "has no operation ['a']"),
    (cell(operation="none"), "has the operation none"),
    (cell(source=2), "takes node 2, which does not come before it: a cycle"),
    (cell(source=9), "takes node 9, which does not come before it: a cycle"),
    (cell(source=-1), "takes node -1: nodes are numbered from 0"),
    (cell(source=1.5), "takes 1.5: give a node's number"),
    (cell(source=True), "takes true: give a node's number"),
]


@pytest.mark.parametrize(("raw", "says"), FAULTS)
def test_a_fault_is_one_line(tmp_path: Path, raw: Any, says: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert says in str(caught.value)
    assert str(caught.value).startswith("mine.json")


@pytest.mark.parametrize(
    ("text", "says"), [(None, "did you mean 'darts-v2'"), ("{", "cannot be read as JSON"), ("\xff", "cannot be read")]
)
def test_files_that_are_none(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "mine.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read(path if text is not None else "darts-v3")
    assert says in str(caught.value)


def test_edges_are_in_the_order_of_alpha() -> None:
    assert edges(2) == [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    assert len(edges(NODES)) == 14


def test_the_cell_that_alpha_says() -> None:
    """Of each node the two edges that weigh most, by their best operation but none."""
    alpha = torch.zeros(5, len(OPERATIONS), dtype=torch.float64)
    at = OPERATIONS.index
    alpha[0, at("sep_conv_5x5")], alpha[1, at("skip_connect")] = 1.0, 2.0
    # Of node 3: none outweighs all on the first edge, and takes weight from the others by it.
    alpha[2, at("none")], alpha[2, at("max_pool_3x3")] = 5.0, 4.0
    alpha[3, at("dil_conv_3x3")], alpha[4, at("avg_pool_3x3")] = 3.0, 1.0
    # exp(4) / (exp(5) + exp(4) + 6) = .26 against exp(1) / (exp(1) + 7) = .28.
    assert derive(alpha.softmax(1)) == (
        (Edge("skip_connect", 1), Edge("sep_conv_5x5", 0)),
        (Edge("dil_conv_3x3", 1), Edge("avg_pool_3x3", 2)),
    )


def test_of_equal_edges_the_earlier() -> None:
    first = OPERATIONS[1]
    assert derive(torch.zeros(5, len(OPERATIONS))) == ((Edge(first, 0), Edge(first, 1)),) * 2


def test_random_cells() -> None:
    draw = torch.Generator().manual_seed(0)
    found = [random_cell(NODES, draw) for _ in range(300)]
    assert all(node[0].source != node[1].source for made in found for node in made)
    assert {edge.operation for made in found for node in made for edge in node} == set(OPERATIONS) - {"none"}
    assert {edge.source for made in found for edge in made[3]} == {0, 1, 2, 3, 4}
    assert random_cell(NODES, torch.Generator().manual_seed(0)) == found[0]
    for made in found[:20]:
        assert parse(Genotype(made, made).to_dict(), "drawn").normal == made
