"""The tab of text2math: what it shows of a problem, and a visitor without a mouse."""

import re
from dataclasses import replace
from typing import Any

import pytest

from etude.core.errors import UserError
from etude.serve.kit.site import SHIPPED, Site
from etude.studies.text2math.page import EXAMPLES, answer_html, attention_html, layout, solve, tree_html
from etude.studies.text2math.predict import Options, predict

TRAIN = EXAMPLES[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("none"))


@pytest.mark.parametrize("text", EXAMPLES)
def test_the_page_answers_as_the_command_line(site: Site, text: str):
    weights, extra = site.weights("text2math", SHIPPED)
    [wanted] = predict(weights, extra, Options((text,), beam=4))
    _, workings = solve(site, SHIPPED, text, 4)
    assert workings.answer.program == wanted.program
    assert (workings.answer.answer, workings.answer.note) == (wanted.answer, wanted.note)
    assert workings.answer.score == pytest.approx(wanted.score)


def test_attention_has_a_row_a_token_and_a_column_a_word(site: Site):
    _, workings = solve(site, SHIPPED, TRAIN, 2)
    assert workings.attention is not None
    assert workings.attention.shape == (len(workings.tokens), len(workings.words))
    assert workings.attention.sum(1).tolist() == pytest.approx([1.0] * len(workings.tokens), abs=1e-5)
    html = attention_html(workings)
    assert html.count('<th scope="row">') == len(workings.tokens) == len(re.findall(r"<tr><th", html))
    assert html.count('<th scope="col">') == len(workings.words)
    assert html.count(" looks at ") == workings.attention.numel()


def test_a_network_without_attention_says_so(site: Site):
    solver, _ = solve(site, SHIPPED, TRAIN, 2)
    plain = solver.searching(Options(beam=2))
    plain.config = replace(plain.config, model=replace(plain.config.model, attention=False))
    workings = plain.explain(TRAIN)
    assert workings.attention is None
    assert "has no attention" in attention_html(workings)


def test_the_tree_shows_every_token_and_marks_what_was_pruned(site: Site):
    solver, workings = solve(site, SHIPPED, TRAIN, 5)
    html = tree_html(solver, workings)
    nodes, alive = len(workings.tree.nodes), len(workings.tree.alive)
    assert html.count("<rect ") == nodes
    assert html.count(", pruned</title>") == nodes - alive > 0
    # The answer's path, end and all, is drawn in its own colour.
    assert html.count('fill="#FFF1E6"') == len(workings.tokens)
    assert 'role="img"' in html


def test_a_search_of_other_width_reads_no_weights_again(site: Site, monkeypatch: pytest.MonkeyPatch):
    solve(site, SHIPPED, TRAIN, 2)
    monkeypatch.setattr("etude.studies.text2math.predict.read_weights", None)
    assert solve(site, SHIPPED, TRAIN, 7)[0].beam.width == 7


def test_a_problem_is_no_html(site: Site):
    solver, workings = solve(site, SHIPPED, "<script>alert(1)</script> of 20 & 30 <b>", 2)
    for html in (answer_html(workings), attention_html(workings), tree_html(solver, workings)):
        assert "<script>" not in html
        assert "<b>" not in html


def test_a_fault_in_a_step_stands_in_place_of_values(site: Site):
    _, workings = solve(site, SHIPPED, TRAIN, 2)
    broken = replace(workings.answer, program="divide(n0,const_0)|", steps=("step 0: a division by zero",), value=None)
    html = answer_html(replace(workings, answer=broken))
    assert "no value" in html
    assert "a division by zero" in html


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "it is empty"), ("   \n", "it is empty"),
        ("7 " * 3000, "3,000 words"), ("9" * 200_000, "are too long"), ("7 \ud800", "UTF-8"),
    ],
)  # fmt: skip
def test_a_problem_that_cannot_be_read_gets_one_line(site: Site, text: str, line: str):
    with pytest.raises(UserError, match=line) as caught:
        solve(site, SHIPPED, text, 2)
    assert "\n" not in str(caught.value)


def test_columns_and_rows_of_a_tree():
    parents = [-1, -1, 0, 0, 1, 3]
    drawn = layout(["aa", "b", "c", "dddd", "e", "f"], parents, [0, 1, 1, 0, 0, 0])
    for number, parent in enumerate(parents):
        if parent >= 0:
            assert drawn[number].x > drawn[parent].x + drawn[parent].width
    assert len({(node.x, node.y) for node in drawn}) == len(drawn)
    assert drawn[3].y == drawn[0].y < drawn[2].y < drawn[1].y, "the child of the lower rank goes on in its parent's row"
    assert layout([], [], []) == []


def test_with_the_keyboard_alone(visit: Any, expect: Any):
    page = visit("text2math")
    page.get_by_role("tab", name="text2math", exact=True).focus()
    problem = page.get_by_label("Word problem")
    for _ in range(20):
        page.keyboard.press("Tab")
        if problem.evaluate("field => field === document.activeElement"):
            break
    page.keyboard.press("Control+A")
    page.keyboard.type("A car covers 240 km in 4 hours. What is its speed?")
    solve_it = page.get_by_role("button", name="Solve", exact=True)
    for _ in range(20):
        page.keyboard.press("Tab")
        if solve_it.evaluate("button => button === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#t2m-answer").get_by_role("status")).to_have_text("Answer: 60", timeout=30_000)
    expect(page.get_by_role("img", name="Beam search, 4 wide")).to_be_visible()
    # On through the examples to the first place that scrolls.
    steps = page.get_by_role("region", name="Steps")
    for _ in range(20):
        page.keyboard.press("Tab")
        if steps.evaluate("place => place === document.activeElement"):
            break
    expect(steps).to_be_focused()


def test_an_example_is_solved_by_a_click_and_nothing_gets_one_line(visit: Any, expect: Any):
    page = visit("text2math", width=390)
    expect(page.locator("#t2m-answer").get_by_role("status")).to_have_text("Answer: 600", timeout=30_000)
    page.get_by_label("Word problem").fill("")
    page.get_by_role("button", name="Solve", exact=True).click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("it is empty: write a word problem", timeout=30_000)
    page.get_by_role("button", name="Three workers paint").click()
    expect(page.locator("#t2m-answer").get_by_role("status")).to_have_text("Answer: 4", timeout=30_000)
    expect(page.locator("#t2m-answer")).to_contain_text("Read 'Three' as 3")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
