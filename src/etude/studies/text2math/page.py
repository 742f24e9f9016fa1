"""The tab of `text2math`: a word problem's program, its steps, what the network looked at and what it searched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from etude import registry
from etude.serve.kit.markup import box, note, percent, scrolled, table
from etude.serve.kit.site import Site, answering, current_tab, first_look

if TYPE_CHECKING:
    from etude.studies.text2math.predict import Solver, Workings
    from etude.studies.text2math.tree import BeamTree, Node

TITLE = "text2math"
EXAMPLES = (
    "A train running at 120 km/hr crosses a pole in 18 seconds. What is its length in metres?",
    "A can do a piece of work in 10 days and B in 15 days. In how many days will they do it together?",
    "By selling 100 pens, a trader gains the cost of 30 pens. Find his gain percentage.",
    "A man buys a book for 40 dollars and sells it for 50 dollars. What is his gain percent?",
    "Three workers paint a house in twelve days. In how many days do nine workers paint it?",
)
_MOST = 20
"""The widest beam of the page: a tree of more cannot be read."""
_LEAST = 0.05
"""The share of attention from which on a number stands in its cell."""
CSS = """
.et-answer { font-size: 1.5rem; font-weight: 600; margin: .1rem 0; }
.et-program { font-family: var(--font-mono); overflow-wrap: anywhere; margin: .1rem 0; }
.et-heat { border-collapse: collapse; font-size: .78rem; color: #111; }
.et-heat thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; font-weight: 400;
  padding: .2rem 0; vertical-align: bottom; color: #111; }
.et-heat tbody th { position: sticky; left: -.5rem; background: #fff; text-align: right; padding: 0 .5rem 0 .2rem;
  font-weight: 400; font-family: var(--font-mono); color: #111; }
.et-heat td { width: 1.7rem; min-width: 1.7rem; height: 1.5rem; text-align: center; padding: 0; color: #111; }
.et-heat th, .et-heat td { border: 1px solid #ddd !important; }
.et-tree text { font: 12px var(--font-mono), monospace; }
"""


def _load(weights: Path, extra: Mapping[str, Any] | None) -> "Solver":
    from etude.studies.text2math.predict import Options, Solver

    return Solver(weights, Options())


def solve(site: Site, choice: str, text: str, beam: int) -> "tuple[Solver, Workings]":
    """Return the network of a choice and how it solves a problem with a beam of so many hypotheses."""
    from etude.studies.text2math.predict import Options

    solver = site.loaded(TITLE, choice, _load).searching(Options(beam=int(beam)))
    return solver, solver.explain(text)


# --- what is shown ---


def answer_html(workings: "Workings") -> str:
    """Return the answer, the program, and each step with its value, as HTML."""
    answer = workings.answer
    if answer.score is None:
        return '<p class="et-answer" role="status">No program</p>' + note(
            "the search ended without one: try a wider beam"
        )
    value = "no value" if answer.value is None else f"Answer: {answer.answer}"
    reading = f" {answer.note[0].upper()}{answer.note[1:]}." if answer.note else ""
    written = [step for step in answer.program.split("|") if step]
    # A program that fails at a step has its fault in place of the steps.
    whole = len(written) == len(answer.steps)
    rows = [(f"#{place}", *step) for place, step in enumerate(zip(written, answer.steps, strict=False))]
    steps = table("Steps", ["", "program", "with its values"], rows) if whole else note(" ".join(answer.steps))
    return (
        f'<p class="et-answer" role="status">{escape(value)}</p>'
        f'<p class="et-program">{escape(answer.program)}</p>{steps}'
        + note(f"Mean probability of a token: {percent(exp(answer.score))}.{reading}")
    )


def attention_html(workings: "Workings") -> str:
    """Return a heat map as a table: tokens of the program down, words of the problem across."""
    if workings.attention is None:
        return note(
            "This network has no attention: it writes from one summary of the problem, and there is no map of where it "
            "looks." if workings.tokens else "No program, so there is nothing to look from."
        )  # fmt: skip
    words = "".join(f'<th scope="col">{escape(word)}</th>' for word in workings.words)
    rows = ""
    for token, shares in zip(workings.tokens, workings.attention.tolist(), strict=True):
        cells = "".join(_cell(token, word, share) for word, share in zip(workings.words, shares, strict=True))
        rows += f'<tr><th scope="row">{escape(_plain(token))}</th>{cells}</tr>'
    title = "Attention: per cent of its look that each token gives each word"
    html = (
        f'<table class="et-heat" aria-label="{title}"><thead><tr><td></td>{words}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    return f"<p><strong>{title}</strong></p>{scrolled(html, title)}"


def _cell(token: str, word: str, share: float) -> str:
    number = f"{100 * share:.0f}" if share >= _LEAST else ""
    ink = "#fff" if share > 0.5 else "#111"
    title = escape(f"{_plain(token)} looks at {word}: {percent(share)}")
    return f'<td style="background:rgba(0,82,155,{share:.3f});color:{ink}" title="{title}">{number}</td>'


def _plain(token: str) -> str:
    return "end" if token == "<end>" else token


@dataclass(frozen=True)
class Drawn:
    """A node of the tree as it is drawn: its column's left edge and its row's middle, in pixels."""

    x: float
    y: float
    width: float
    label: str


_ROW, _GAP, _LETTER = 24, 26, 7.3


def layout(labels: Sequence[str], parents: Sequence[int], ranks: Sequence[int]) -> list[Drawn]:
    """Return where the nodes of a tree are drawn: a column a depth, children below each other, parents at their first.

    Args:
        labels: the nodes' labels, whose lengths make the columns.
        parents: each node's parent, which stands before it; -1 in the first column.
        ranks: the child of the lower rank is drawn above the other.
    """
    depths, widths = [0] * len(labels), [_LETTER * len(label) + 12 for label in labels]
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        depths[node] = depths[parent] + 1 if parent >= 0 else 0
        children.setdefault(parent, []).append(node)
    lefts = [10.0]
    for depth in range(max(depths, default=-1) + 1):
        lefts.append(lefts[-1] + max(w for w, d in zip(widths, depths, strict=True) if d == depth) + _GAP)
    rows: dict[int, int] = {}
    free, waiting = 0, [-1]
    while waiting:
        node = waiting.pop()
        rows[node] = free
        below = sorted(children.get(node, []), key=lambda child: ranks[child], reverse=True)
        free += not below
        waiting += below
    return [
        Drawn(lefts[depths[node]], 16.0 + _ROW * rows[node], widths[node], label) for node, label in enumerate(labels)
    ]


def tree_html(solver: "Solver", workings: "Workings") -> str:
    """Return the beam search as a picture of its tree, and the programs that ended as a table."""
    tree = workings.tree
    ended = _ended(solver, tree)
    programs = {number: solver.tokens.decode(tree.nodes[node].token for node in tree.path(number)) for number in ended}
    chosen = next((number for number in ended if programs[number] == workings.answer.program), None)
    pruned = len(tree.nodes) - len(tree.alive)
    count = f"{len(ended)} program{'' if len(ended) == 1 else 's'}"
    title = f"Beam search, {solver.beam.width} wide: {count} ended, {pruned} tokens were pruned"
    rows = [
        (str(place), programs[number], solver.value_of(programs[number], workings.read),
         percent(exp(_score(solver, tree.nodes[number]))))
        for place, number in enumerate(ended, 1)
    ]  # fmt: skip
    return (
        f"<p><strong>{title}</strong></p>"
        + note(
            "Thick orange: the answer. Blue: programs that ended. Grey, dashed: pruned. Point at a token for its "
            "probability."
        )
        + scrolled(_drawing(solver, tree, ended, chosen, title), title)
        + table(
            "The programs that ended, the likeliest first",
            ["", "program", "value", "mean probability of a token"],
            rows,
        )
    )


def _ended(solver: "Solver", tree: "BeamTree") -> list[int]:
    """The nodes at which a hypothesis ended, the best first."""
    from etude.studies.text2math.tokens import END

    found = (number for number, node in enumerate(tree.nodes) if node.token == END)
    return sorted(found, key=lambda number: -_score(solver, tree.nodes[number]))


def _score(solver: "Solver", end: "Node") -> float:
    return end.log_probability / (end.depth + 1) ** solver.beam.alpha


def _drawing(solver: "Solver", tree: "BeamTree", ended: Sequence[int], chosen: int | None, name: str) -> str:
    alive, best = tree.alive, set(tree.path(chosen)) if chosen is not None else set[int]()
    # The answer above, then what went on by its best end, what was pruned last.
    rank = {number: place for place, end in reversed(list(enumerate(ended))) for number in tree.path(end)}
    ranks = [-1 if n in best else rank.get(n, len(ended) + n) for n in range(len(tree.nodes))]
    labels = [_plain(solver.tokens.tokens[node.token]) for node in tree.nodes]
    drawn = layout(labels, [node.parent for node in tree.nodes], ranks)
    lines, boxes = [], []
    # What matters most is drawn last, over the others.
    for number in sorted(range(len(drawn)), key=lambda number: (number in best, number in alive)):
        node, at = tree.nodes[number], drawn[number]
        kind = _KINDS["answer" if number in best else "ended" if number in alive else "pruned"]
        before = 0.0
        if node.parent >= 0:
            lines.append(_edge(drawn[node.parent], at, kind))
            before = tree.nodes[node.parent].log_probability
        title = f"{at.label}: {exp(node.log_probability - before):.1%} here, {exp(node.log_probability):.2g} in all"
        boxes.append(_box(at, kind, title if number in alive else f"{title}, pruned"))
    width = max((at.x + at.width for at in drawn), default=0) + 10
    height = max((at.y for at in drawn), default=0) + 20
    return (
        f'<svg class="et-tree" role="img" aria-label="{escape(name)}. The table below has the programs." '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">'
        f"{''.join(lines)}{''.join(boxes)}</svg>"
    )


_KINDS = {
    "answer": ('stroke="#D55E00" stroke-width="3"', 'fill="#FFF1E6" stroke="#D55E00" stroke-width="2"', "#111"),
    "ended": ('stroke="#0072B2" stroke-width="1.5"', 'fill="#EAF4FB" stroke="#0072B2"', "#111"),
    "pruned": (
        'stroke="#999" stroke-dasharray="3 3"', 'fill="#f6f6f6" stroke="#999" stroke-dasharray="3 3"', "#666",
    ),
}  # fmt: skip


def _edge(start: Drawn, end: Drawn, kind: tuple[str, str, str]) -> str:
    x, bend = start.x + start.width, end.x - _GAP / 2
    path = f"M{x:.1f} {start.y} H{bend - _GAP / 2:.1f} C{bend:.1f} {start.y} {bend - 4:.1f} {end.y} {end.x:.1f} {end.y}"
    return f'<path d="{path}" fill="none" {kind[0]}/>'


def _box(at: Drawn, kind: tuple[str, str, str], title: str) -> str:
    return (
        f"<g><title>{escape(title)}</title>"
        f'<rect x="{at.x:.1f}" y="{at.y - 9}" width="{at.width:.1f}" height="18" rx="4" {kind[1]}/>'
        f'<text x="{at.x + 6:.1f}" y="{at.y + 4}" fill="{kind[2]}">{escape(at.label)}</text></g>'
    )


def tab(site: Site) -> None:
    gr.Markdown(
        "A word problem becomes a program over its numbers (`n0` is the first, `#0` the first step's value), found by "
        "beam search, and the program is run. The network that comes with etude knows the kinds of problems that "
        "MathQA has, and takes others for one of them."
    )
    here = current_tab()
    with gr.Row():
        with gr.Column(scale=3):
            problem = gr.Textbox(label="Word problem", lines=3, max_lines=8, value=EXAMPLES[0])
        with gr.Column(scale=2):
            choice = site.chooser(TITLE)
            beam = gr.Slider(1, _MOST, value=4, step=1, label="Beam: hypotheses kept at each step")
    ask = gr.Button("Solve", variant="primary")
    examples = gr.Examples([[text] for text in EXAMPLES], [problem], label="Or one of these", cache_examples=False)
    answer = box("t2m-answer")
    attention = box("t2m-attention")
    tree = box("t2m-tree")
    shown = [answer, attention, tree]

    @answering
    def answered(choice: str, text: str | None, beam: int) -> Any:
        solver, workings = solve(site, choice, text or "", beam)
        return answer_html(workings), attention_html(workings), tree_html(solver, workings)

    @answering
    def again(choice: str, text: str | None, beam: int) -> Any:
        return answered(choice, text, beam) if (text or "").strip() else ("", "", "")

    given = [choice, problem, beam]
    first_look(here, again, given, shown)
    gr.on([ask.click, problem.submit], answered, given, shown, concurrency_id=TITLE)
    examples.load_input_event.then(answered, given, shown, concurrency_id=TITLE)
    gr.on([choice.change, beam.release], again, given, shown, concurrency_id=TITLE)


def warm(site: Site) -> None:
    """Import and load what the first answer needs."""
    if registry.load(TITLE).shipped_weights:
        solve(site, site.choices(TITLE)[0], EXAMPLES[0], 4)
