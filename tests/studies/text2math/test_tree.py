"""The search as a tree: it holds what the beam held, and what ended are the hypotheses."""

import pytest
from tests.studies.text2math.test_beam import network, problems

from etude.studies.text2math.beam import ROOT, BeamTree, Rule, beam_search
from etude.studies.text2math.tokens import END


@pytest.mark.parametrize("rule", ["standard", "nested"])
@pytest.mark.parametrize("width", [1, 3, 6])
def test_ends_of_the_tree_are_the_hypotheses(rule: Rule, width: int) -> None:
    for seed in range(4):
        tree = BeamTree()
        batch = problems(1, seed)
        [found] = beam_search(network(seed), batch, width=width, max_tokens=9, rule=rule, tree=tree)
        ends = [n for n, node in enumerate(tree.nodes) if node.token == END or (n in tree.alive and node.depth == 8)]
        told = {tuple(tree.nodes[n].token for n in tree.path(end)): tree.nodes[end].log_probability for end in ends}
        wanted = {(*h.tokens, END) if h.ended else h.tokens: h.log_probability for h in found}
        assert told == pytest.approx(wanted)


def test_nodes_follow_their_parents_and_never_grow_likelier() -> None:
    tree = BeamTree()
    beam_search(network(1), problems(1, 1), width=5, max_tokens=9, tree=tree)
    assert max(sum(node.depth == depth for node in tree.nodes) for depth in range(9)) <= 5
    for number, node in enumerate(tree.nodes):
        assert node.parent < number
        if node.parent == ROOT:
            assert node.depth == 0
            continue
        parent = tree.nodes[node.parent]
        assert parent.depth == node.depth - 1
        assert parent.token != END
        assert node.log_probability <= parent.log_probability


def test_what_is_alive_leads_to_an_end_and_the_rest_to_none() -> None:
    tree = BeamTree()
    beam_search(network(2), problems(1, 2), width=6, max_tokens=12, tree=tree)
    last = max(node.depth for node in tree.nodes)
    ends = [n for n, node in enumerate(tree.nodes) if node.token == END or node.depth == last]
    assert tree.alive == {number for end in ends for number in tree.path(end)}


def test_a_search_is_the_same_with_its_tree() -> None:
    batch = problems(1, 3)
    assert beam_search(network(3), batch, width=4, max_tokens=9) == beam_search(
        network(3), batch, width=4, max_tokens=9, tree=BeamTree()
    )
