"""Words, tokens and the grammar of programs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etude.core.errors import UserError
from etude.studies.text2math.problems import sample
from etude.studies.text2math.program import OPERATORS, ProgramError, numbers_of, parse
from etude.studies.text2math.tokens import (
    END,
    NUMBER,
    UNKNOWN,
    Grammar,
    Tokens,
    Words,
    read_vocabularies,
    vocabularies,
    words_of,
)  # fmt: skip

PROGRAMS = [problem.program for part in sample().values() for problem in part]
TOKENS = Tokens.of(PROGRAMS)


def test_words_are_letters_numbers_and_single_signs() -> None:
    words, indices = words_of("A train at 120 km/hr costs $1,250.50 , -0.5 % !?")
    assert words == ["a", "train", "at", "120", "km", "/", "hr", "costs", "$", "1250.50", ",", "-0.5", "%", "!", "?"]
    assert [word for word, index in zip(words, indices, strict=True) if index >= 0] == ["120", "1250.50", "-0.5"]
    assert [index for index in indices if index >= 0] == [0, 1, 2]


@given(st.text(alphabet=st.sampled_from("ab 0123456789.,-+/%_²三\n"), max_size=40) | st.text(max_size=40))
def test_the_numbered_words_are_the_numbers_of_the_language(text: str) -> None:
    words, indices = words_of(text)
    numbers = numbers_of(text)
    assert sum(index >= 0 for index in indices) == len(numbers)
    assert [index for index in indices if index >= 0] == list(range(len(numbers)))
    assert all(words)


def test_rare_words_are_unknown_and_numbers_known_as_such() -> None:
    words = Words.of(["5 trains and 5 cars", "5 trains and 70 men"], least=2)
    assert words.words == ("<pad>", "<unknown>", "<number>", "5", "and", "trains")
    assert words.read("70 trains of 5") == ([NUMBER, 5, UNKNOWN, 3], [0, -1, -1, 1])


@pytest.mark.parametrize("program", PROGRAMS[:40])
def test_a_program_comes_back_as_it_was(program: str) -> None:
    ids = TOKENS.encode(program)
    assert ids is not None
    assert ids[-1] == END
    assert TOKENS.decode(ids).removesuffix("|") == program.removesuffix("|")


def test_tokens_are_operators_then_constants_then_numbers_then_results() -> None:
    found = Tokens.of(["divide(n2,const_100)|add(#0,const_0_25)|"])
    assert found.tokens == (
        "<pad>", "<start>", "<end>", "add", "divide", "const_0_25", "const_100", "n0", "n1", "n2", "#0",
    )  # fmt: skip
    assert found.indices("n") == [-1] * 7 + [0, 1, 2, -1]
    assert found.indices("#") == [-1] * 10 + [0]
    assert found.encode("sqrt(n0)|") is None


@given(st.lists(st.integers(0, len(TOKENS) - 1), max_size=12))
def test_any_tokens_spell_a_text(ids: list[int]) -> None:
    program = TOKENS.decode(ids)
    try:
        steps = parse(program)
    except ProgramError:
        return
    # What is well formed comes back.
    if all(step.operator for step in steps):
        again = TOKENS.encode(program)
        assert again is None or TOKENS.decode(again) == program


def test_vocabularies_lie_beside_the_weights() -> None:
    words = Words(("<pad>", "<unknown>", "<number>", "é", "²", "½"))
    assert read_vocabularies({"model.vocabularies": vocabularies(words, TOKENS)}, "it") == (words, TOKENS)
    with pytest.raises(UserError, match=r"it has no vocabularies .* export it again"):
        read_vocabularies({"model.vocabularies": torch.tensor([65, 66], dtype=torch.uint8)}, "it")


def walk(program: str, numbers: int) -> list[set[str]]:
    """What the grammar allows before each token of a program."""
    ids = TOKENS.encode(program)
    assert ids is not None
    grammar, allowed = Grammar(TOKENS, torch.tensor([numbers])), []
    for number in ids:
        mask = grammar.allowed()[0, 0]
        allowed.append({TOKENS.tokens[place] for place in mask.nonzero().flatten().tolist()})
        assert TOKENS.tokens[number] in allowed[-1]
        grammar.advance(torch.tensor([0]), torch.tensor([[0]]), torch.tensor([[number]]))
    return allowed


@pytest.mark.parametrize("problem", [p for part in sample().values() for p in part][:60], ids=lambda p: p.program)
def test_the_grammar_allows_every_known_program(problem: object) -> None:
    walk(problem.program, len(numbers_of(problem.text)))  # pyright: ignore[reportAttributeAccessIssue]


def test_the_grammar_step_by_step() -> None:
    before = walk("divide(n1,n0)|multiply(#0,const_100)|", 2)
    operators = set(TOKENS.tokens) & set(OPERATORS)
    constants = {token for token in TOKENS.tokens if token.startswith("const_")}
    assert before[0] == operators
    assert before[1] == before[2] == constants | {"n0", "n1"}
    assert before[3] == operators | {"<end>"}
    assert before[4] == before[5] == constants | {"n0", "n1", "#0"}
    assert before[6] == operators | {"<end>"}


def test_a_problem_without_numbers_has_constants_only() -> None:
    grammar = Grammar(TOKENS, torch.tensor([0]))
    add = TOKENS.tokens.index("add")
    grammar.advance(torch.tensor([0]), torch.tensor([[0]]), torch.tensor([[add]]))
    allowed = {TOKENS.tokens[place] for place in grammar.allowed()[0, 0].nonzero().flatten().tolist()}
    assert allowed == {token for token in TOKENS.tokens if token.startswith("const_")}
