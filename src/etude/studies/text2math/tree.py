"""A beam search as a tree: which hypotheses were continued, and which were pruned.

Shape suffixes: N problems, K places of the beam.
"""

from dataclasses import dataclass

from torch import Tensor

from etude.studies.text2math.tokens import END

ROOT = -1


@dataclass(frozen=True)
class Node:
    """A token that was written.

    Attributes:
        parent: the number of the node before it; `ROOT` for the first.
        token: the token; END ends a hypothesis.
        log_probability: the sum over the tokens up to it.
        depth: how many tokens stand before it.
    """

    parent: int
    token: int
    log_probability: float
    depth: int


class BeamTree:
    """The tokens that a beam search of one problem kept at each step; `add` is a `beam.Listener`.

    Attributes:
        nodes: the tokens, those of a step after those of the step before, the best first.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._depth = 0
        # The node at each place of the beam; before the first step there is one place.
        self._at: dict[int, int] = {0: ROOT}

    def add(self, problems_N: Tensor, from_NK: Tensor, last_NK: Tensor, scores_NK: Tensor) -> None:
        """Add a step."""
        [origins], [tokens], [scores] = from_NK.tolist(), last_NK.tolist(), scores_NK.tolist()
        at: dict[int, int] = {}
        for place, (origin, token, score) in enumerate(zip(origins, tokens, scores, strict=True)):
            # A place may be empty: its hypothesis has ended, or no extension was left for it.
            if score == float("-inf"):
                continue
            at[place] = len(self.nodes)
            self.nodes.append(Node(self._at[origin], token, score, self._depth))
        self._at, self._depth = at, self._depth + 1

    @property
    def ended(self) -> list[int]:
        """The nodes at which a hypothesis ended."""
        return [number for number, node in enumerate(self.nodes) if node.token == END]

    @property
    def alive(self) -> set[int]:
        """The nodes on the way to a hypothesis that ended, or that the longest length cut off; the rest was pruned."""
        cut = [number for number, node in enumerate(self.nodes) if node.depth == self._depth - 1]
        return {number for end in (*self.ended, *cut) for number in self.path(end)}

    def path(self, number: int) -> list[int]:
        """Return the nodes from the first token to one, both included."""
        found: list[int] = []
        while number != ROOT:
            found.append(number)
            number = self.nodes[number].parent
        return found[::-1]
