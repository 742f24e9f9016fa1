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
    from etude.studies.text2math.beam import BeamTree
    from etude.studies.text2math.predict import Solver, Workings

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

    return Solver(weights, Options(), extra)


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
    sure = (
        ""
        if answer.probability is None
        else (
            f" In {percent(answer.probability)} of such cases it is right{': it is unsure' if answer.unsure else ''}."
        )
    )
    near = note(f"The nearest known problem: {answer.nearest}") if answer.nearest else ""
    written = [step for step in answer.program.split("|") if step]
    # A program that fails at a step has its fault in place of the steps.
    whole = len(written) == len(answer.steps)
    rows = [(f"#{place}", *step) for place, step in enumerate(zip(written, answer.steps, strict=False))]
    steps = table("Steps", ["", "program", "with its values"], rows) if whole else note(" ".join(answer.steps))
    return (
        f'<p class="et-answer" role="status">{escape(value)}</p>'
        f'<p class="et-program">{escape(answer.program)}</p>{steps}'
        + note(f"Mean probability of a token: {percent(exp(answer.score))}.{sure}{reading}")
        + near
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
    for token, shares in zip(map(_plain, workings.tokens), workings.attention.tolist(), strict=True):
        rows += f'<tr><th scope="row">{escape(token)}</th>'
        for word, share in zip(workings.words, shares, strict=True):
            style = f"background:rgba(0,82,155,{share:.3f});color:{'#fff' if share > 0.5 else '#111'}"
            title = escape(f"{token} looks at {word}: {percent(share)}")
            rows += f'<td style="{style}" title="{title}">{f"{100 * share:.0f}" if share >= _LEAST else ""}</td>'
        rows += "</tr>"
    title = "Attention: per cent of its look that each token gives each word"
    html = (
        f'<table class="et-heat" aria-label="{title}"><thead><tr><td></td>{words}</tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    return f"<p><strong>{title}</strong></p>{scrolled(html, title)}"


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
    # The ranks on the way to each node: in their order, the tree is gone through from above to below.
    ways: list[tuple[int, ...]] = []
    for rank, parent in zip(ranks, parents, strict=True):
        ways.append((*(ways[parent] if parent >= 0 else ()), rank))
    widths, lefts = [_LETTER * len(label) + 12 for label in labels], [10.0]
    for depth in range(1, max(map(len, ways), default=0) + 1):
        lefts.append(lefts[-1] + max(w for w, way in zip(widths, ways, strict=True) if len(way) == depth) + _GAP)
    rows, free = [0] * len(labels), 0
    for node in sorted(range(len(labels)), key=ways.__getitem__):
        rows[node] = free
        free += node not in parents
    return [
        Drawn(lefts[len(way) - 1], 16.0 + _ROW * row, width, label)
        for way, row, width, label in zip(ways, rows, widths, labels, strict=True)
    ]


def tree_html(solver: "Solver", workings: "Workings") -> str:
    """Return the beam search as a picture of its tree, and the programs that ended as a table."""
    tree = workings.tree
    scores = {number: tree.nodes[number].log_probability / (tree.nodes[number].depth + 1) ** solver.beam.alpha
              for number in tree.ended}  # fmt: skip
    ended = sorted(scores, key=lambda number: -scores[number])
    programs = {number: solver.tokens.decode(tree.nodes[node].token for node in tree.path(number)) for number in ended}
    chosen = next((number for number in ended if programs[number] == workings.answer.program), None)
    count = f"{len(ended)} program{'' if len(ended) == 1 else 's'}"
    pruned = len(tree.nodes) - len(tree.alive)
    title = f"Beam search, {solver.beam.width} wide: {count} ended, {pruned} tokens were pruned"
    rows = [
        (str(place), programs[number], solver.value_of(programs[number], workings.read), percent(exp(scores[number])))
        for place, number in enumerate(ended, 1)
    ]
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


# The lines and boxes of tokens, and the ink of their labels.
_ANSWER = ('stroke="#D55E00" stroke-width="3"', 'fill="#FFF1E6" stroke="#D55E00" stroke-width="2"', "#111")
_ENDED = ('stroke="#0072B2" stroke-width="1.5"', 'fill="#EAF4FB" stroke="#0072B2"', "#111")
_PRUNED = ('stroke="#999" stroke-dasharray="3 3"', 'fill="#f6f6f6" stroke="#999" stroke-dasharray="3 3"', "#666")


def _drawing(solver: "Solver", tree: "BeamTree", ended: Sequence[int], chosen: int | None, name: str) -> str:
    alive, best = tree.alive, set(tree.path(chosen)) if chosen is not None else set[int]()
    # The answer above, then what went on by its best end, what was pruned last.
    rank = {number: place for place, end in reversed(list(enumerate(ended))) for number in tree.path(end)}
    ranks = [-1 if n in best else rank.get(n, len(ended) + n) for n in range(len(tree.nodes))]
    labels = [_plain(solver.tokens.tokens[node.token]) for node in tree.nodes]
    drawn = layout(labels, [node.parent for node in tree.nodes], ranks)
    lines, boxes = "", ""
    # What matters most is drawn last, over the others.
    for number in sorted(range(len(drawn)), key=lambda number: (number in best, number in alive)):
        node, at = tree.nodes[number], drawn[number]
        line, box, ink = _ANSWER if number in best else _ENDED if number in alive else _PRUNED
        before = 0.0
        if node.parent >= 0:
            start, bend = drawn[node.parent], at.x - _GAP / 2
            path = (
                f"M{start.x + start.width:.1f} {start.y} H{bend - _GAP / 2:.1f} "
                f"C{bend:.1f} {start.y} {bend - 4:.1f} {at.y} {at.x:.1f} {at.y}"
            )
            lines += f'<path d="{path}" fill="none" {line}/>'
            before = tree.nodes[node.parent].log_probability
        title = f"{at.label}: {exp(node.log_probability - before):.1%} here, {exp(node.log_probability):.2g} in all"
        boxes += (
            f"<g><title>{escape(title if number in alive else f'{title}, pruned')}</title>"
            f'<rect x="{at.x:.1f}" y="{at.y - 9}" width="{at.width:.1f}" height="18" rx="4" {box}/>'
            f'<text x="{at.x + 6:.1f}" y="{at.y + 4}" fill="{ink}">{escape(at.label)}</text></g>'
        )
    width = max((at.x + at.width for at in drawn), default=0) + 10
    height = max((at.y for at in drawn), default=0) + 20
    return (
        f'<svg class="et-tree" role="img" aria-label="{escape(name)}. The table below has the programs." '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">{lines}{boxes}</svg>'
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
