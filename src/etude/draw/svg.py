"""Curves as SVG inside the page: they take the page's colours, light or dark, and their text is text.

Matplotlib draws the pictures of runs. Of a panel it makes four times the bytes in a hundred times the time, which a
page that looks at fifteen panels every five seconds does not have.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

WIDTH, HEIGHT = 340, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 22, 42, 34
# More points than this on a line are not told apart at that width.
_POINTS = 160
# Values that far apart are drawn on a logarithmic axis.
_WIDE = 1000.0
# Colours and dashes of `STYLE`.
_LINES = 6
STYLE = """\
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); gap: 1rem; }
svg.plot { width: 100%; height: auto; max-width: 32rem; }
svg.plot text { font-size: 11px; fill: currentColor; }
svg.plot .head { font-size: 12px; font-weight: 600; }
svg.plot .grid { stroke: currentColor; stroke-opacity: 0.17; }
svg.plot .axis { stroke: currentColor; stroke-opacity: 0.65; fill: none; }
svg.plot .line { fill: none; stroke-width: 1.7; stroke-linejoin: round; }
svg.plot circle.line { stroke-width: 3; }
svg.plot .l0 { stroke: var(--c0); }
svg.plot .l1 { stroke: var(--c1); stroke-dasharray: 6 2; }
svg.plot .l2 { stroke: var(--c2); stroke-dasharray: 2 2; }
svg.plot .l3 { stroke: var(--c3); stroke-dasharray: 8 2 2 2; }
svg.plot .l4 { stroke: var(--c4); stroke-dasharray: 10 3; }
svg.plot .l5 { stroke: var(--c5); stroke-dasharray: 1 3; }
"""
"""The style sheet of the plots; a page gives the colours ``--c0`` to ``--c5``."""

Number = int | float
Curve = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Panel:
    """The curves of one quantity, such as the loss in training and in validation."""

    title: str
    lines: Mapping[str, Curve]
    """Steps and values by where they were measured: ``train``, ``val``, ..."""


def panels(metrics: Sequence[Mapping[str, Any]]) -> tuple[list[Panel], int]:
    """The panels of a run's metrics, the loss first, and how many quantities are in none.

    ``train/loss`` and ``val/loss`` share one. Names of more parts, such as the weights of every edge of a cell, are
    hundreds of curves, and the studies have pictures for them.
    """
    found: dict[str, dict[str, Curve]] = {}
    others: set[str] = set()
    for row in metrics:
        for name, value in row.items():
            where, slash, what = name.partition("/")
            if name in ("step", "seconds"):
                continue
            if not slash or "/" in what:
                others.add(name)
                continue
            steps, values = found.setdefault(what, {}).setdefault(where, ([], []))
            steps.append(row["step"])
            values.append(value)
    order = sorted(found, key=lambda what: (what != "loss", "val" not in found[what]))
    return [Panel(what, found[what]) for what in order], len(others)


def draw(panel: Panel) -> Markup:
    """One panel as an ``<svg>`` with axes, ticks and a legend; a screen reader hears its ends in words."""
    steps = [step for xs, _ in panel.lines.values() for step in xs]
    values = [value for _, ys in panel.lines.values() for value in ys]
    low, high = min(values), max(values)
    logarithmic = low > 0 and high / low >= _WIDE
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    across = _axis(min(steps), max(steps), _LEFT, right)
    up = _axis(low, high, bottom, _TOP, math.log10 if logarithmic else float)
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(in_words(panel))}">',
        f'<text class="head" x="4" y="14">{escape(_words(panel.title))}{" (log scale)" if logarithmic else ""}</text>',
    ]
    for value in _decades(low, high) if logarithmic else _round(low, high):
        y = up(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{short(value)}</text>')
    for value in _round(min(steps), max(steps)):
        x = across(value)
        parts.append(f'<path class="axis" d="M{x} {bottom}v4"/>')
        parts.append(f'<text x="{x}" y="{bottom + 15}" text-anchor="middle">{value:,.0f}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 4}" text-anchor="middle">step</text>')
    legend = float(_LEFT)
    for number, (name, (xs, ys)) in enumerate(panel.lines.items()):
        kind = f"line l{number % _LINES}"
        points = [(across(x), up(y)) for x, y in _thinned(xs, ys)]
        if len(points) == 1:
            parts.append(f'<circle class="{kind}" cx="{points[0][0]}" cy="{points[0][1]}" r="2.5"/>')
        else:
            parts.append(f'<path class="{kind}" d="M{"L".join(f"{x} {y}" for x, y in points)}"/>')
        parts.append(f'<path class="{kind}" d="M{legend:.0f} 28h18"/>')
        parts.append(f'<text x="{legend + 22:.0f}" y="31.5">{escape(name)}</text>')
        legend += 34 + 6.2 * len(name)
    return Markup("".join([*parts, "</svg>"]))


def in_words(panel: Panel) -> str:
    """The words of what a panel shows, for those who do not see it."""
    ends = [
        f"{name} {short(ys[0])} at step {xs[0]:,}"
        + (f" to {short(ys[-1])} at step {xs[-1]:,}, lowest {short(min(ys))}, highest {short(max(ys))}" * (len(xs) > 1))
        for name, (xs, ys) in panel.lines.items()
    ]
    return f"Curve of {_words(panel.title)}: {'; '.join(ends)}"


def short(value: float) -> str:
    """A number in about four digits: 0.0123, 12.34, 12,340, 1.2e-07."""
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _axis(
    low: Number, high: Number, start: Number, end: Number, scale: Callable[[Number], float] = float
) -> Callable[[Number], float]:
    """Maps ``low``..``high`` to the pixels ``start``..``end``; a constant lies in the middle."""
    first, span = scale(low), scale(high) - scale(low)
    return lambda value: round(start + ((scale(value) - first) / span if span else 0.5) * (end - start), 1)


def _round(low: Number, high: Number) -> list[float]:
    """Round values from ``low`` to ``high``, four at most; of almost nothing the one that there is."""
    span = high - low
    if span < 1e-300:
        return [float(low)]
    power = 10.0 ** math.floor(math.log10(span / 3))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 4.5)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    return [10.0**power for power in range(first, last + 1, max(1, math.ceil((last - first + 1) / 5)))]


def _thinned(xs: Sequence[int], ys: Sequence[float]) -> list[tuple[int, float]]:
    """At most about `_POINTS` points of a line: of each stretch its lowest and its highest, and the line's end."""
    size = max(1, math.ceil(2 * len(xs) / _POINTS))
    stretches = [range(start, min(start + size, len(xs))) for start in range(0, len(xs), size)]
    kept = {pick(stretch, key=ys.__getitem__) for stretch in stretches for pick in (min, max)} | {len(xs) - 1}
    return [(xs[place], ys[place]) for place in sorted(kept)]
