"""Keyed randomness: every part counts, and every process draws the same."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.core import toy

from etude.core.randomness import generator, key, seed_globals

PARTS = (3, "train/episode", 7, 2)


@pytest.mark.parametrize("other", [(4, *PARTS[1:]), (3, "train/episodes", 7, 2), (3, PARTS[1], 8, 2), (*PARTS[:3], 3)])
def test_every_part_changes_the_key(other: tuple[int, str, int, int]):
    assert key(*PARTS) != key(*other)


PART = st.tuples(st.integers(-9, 99), st.text("a/1", max_size=4), st.integers(0, 99), st.integers(0, 99))


@given(PART, PART)
def test_keys_are_equal_only_for_equal_parts(left: tuple[int, str, int, int], right: tuple[int, str, int, int]):
    """Also where a stream ends as a number begins, such as ("a/1", 2) beside ("a", 12)."""
    assert (key(*left) == key(*right)) == (left == right)


def test_keys_are_63_bits_and_spread():
    keys = [key(0, "s", step) for step in range(4096)]
    assert all(0 <= k < 2**63 for k in keys)
    assert len({k >> 48 for k in keys}) > 3000


def test_a_fresh_process_makes_the_same_key_and_draws():
    """Nothing depends on the process, such as Python's own salted hash()."""
    code = (
        "from etude.core.randomness import *; import torch;"
        f"print(key(*{PARTS!r}), torch.rand(3, generator=generator(*{PARTS!r})).tolist())"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=toy.child_environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{key(*PARTS)} {torch.rand(3, generator=generator(*PARTS)).tolist()}"


def test_the_scheme_is_pinned():
    """Another scheme would change the numbers of every published run."""
    assert key(0, "train/episode", 0) == 5628660558818103403


def test_a_generator_repeats_and_leaves_the_global_state():
    state = torch.get_rng_state()
    first = torch.randn(5, generator=generator(*PARTS))
    assert torch.equal(first, torch.randn(5, generator=generator(*PARTS)))
    assert not torch.equal(first, torch.randn(5, generator=generator(4, *PARTS[1:])))
    assert torch.equal(state, torch.get_rng_state())


def test_global_generators_are_all_seeded():
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    seed_globals(*PARTS)
    first = draw()
    assert draw() != first
    seed_globals(*PARTS)
    assert draw() == first
    seed_globals(4, *PARTS[1:])
    assert all(a != b for a, b in zip(draw(), first, strict=True))
