"""The results tables of README files, written from committed runs only.

``python -m etude.report.markdown FILE...`` rewrites what stands between one of these marks and ``<!-- end -->``; with
``--check`` it only says whether it is up to date.

- ``<!-- board -->``: the number by which each study is known, one line a study.
- ``<!-- results STUDY [run] -->``: the comparison with the published numbers, or what of it was run.
- ``<!-- claims STUDY -->``: what the sources say, judged.
- ``<!-- measured STUDY -->``: numbers that nobody published.
- ``<!-- table STUDY EXPERIMENT [VARIANT] -->``: all splits and metrics of our runs, one line a cell.
- ``<!-- parts STUDY EXPERIMENT [VARIANT] -->``: the same of the parts of the test split, such as "test, seen".
"""

import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from etude import registry
from etude.core.files import write_atomic
from etude.core.study import Study
from etude.report.claims import Judgement, judgements
from etude.report.reference import Comparison, measurement, read_headline
from etude.report.results import comparisons, summaries
from etude.runs.text import escaped

_PLACE = re.compile(
    r"(<!-- (board|results|claims|measured|table|parts)(?: (\S+)(?: (\S+)(?: (.+?))?)?)? -->\n)(?s:.*?)(<!-- end -->)"
)
# With one label an item, the error and micro F1 say what the accuracy says.
_SAID_TWICE = ("error", "micro_f1")


def table(rows: Sequence[Comparison]) -> str:
    """A Markdown table with one line a measured cell, every published number for it at the line's end.

    A protocol that all lines share stands above the table once; others are numbered below it.
    """
    if not rows:
        return "No run stands beside a published number yet.\n"
    head = [
        "experiment", "cell", "metric", "split", "ours", "95 % interval", "seeds", "scale", "published: verdict",
        "without learning",
    ]  # fmt: skip
    groups: dict[tuple[object, ...], list[Comparison]] = {}
    for row in rows:
        groups.setdefault((row.study, row.experiment, row.cell, row.metric, row.split, row.runs), []).append(row)
    protocols = list(dict.fromkeys(group[0].protocol or group[0].published_protocol for group in groups.values()))
    lines: list[str] = []
    for group in groups.values():
        first = group[0]
        number = f" ({protocols.index(first.protocol or first.published_protocol) + 1})" if len(protocols) > 1 else ""
        ours = "" if first.ours is None else f"{first.ours:.2f}"
        interval = f"{first.interval[0]:.2f} to {first.interval[1]:.2f}" if first.interval else ""
        published = "; ".join(f"{row.claim} ({row.source}): {row.told}" for row in group)
        cells = (
            first.experiment, first.cell, f"{first.metric} {first.unit}".strip(), f"{first.split}{number}", ours,
            interval, ", ".join(map(str, first.seeds)), first.scale or "", published,
            "" if first.baseline is None else f"{first.baseline:.4g} ({first.baseline_name})",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(escaped, cells)) + " |")
    above = f"{_sentence(protocols[0])}\n\n" if len(protocols) == 1 else ""
    below = "".join(f"\n({number}) {_sentence(text)}\n" for number, text in enumerate(protocols, 1))
    body = "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines]) + "\n"
    stands = "".join(f"\nProxy: {text}.\n" for text in dict.fromkeys(row.proxy for row in rows if row.proxy))
    return above + body + (below if len(protocols) > 1 else "") + stands


def claims(rows: Sequence[Judgement]) -> str:
    """A Markdown table of claims with their verdicts and evidence."""
    if not rows:
        return "No claim of a source is judged yet.\n"
    lines = ["| claim | source | verdict | evidence |", "|---|---|---|---|"]
    lines += [
        "| " + " | ".join(map(escaped, (row.claim, row.source, row.verdict, row.evidence))) + " |" for row in rows
    ]
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    return f"{escaped(text[:1].upper() + text[1:])}."


def board() -> str:
    """A Markdown table of the number by which each study is known: ours, published, and what learns nothing."""
    lines = ["| study | what it is | measured | ours | published | baseline |", "|---|---|---|---|---|---|"]
    for study in map(registry.load, registry.NAMES):
        head = read_headline(study.folder / "reference.toml")
        found = [
            (row["value"], summary["seed"])
            for summary in summaries(study, []).values()
            for row in summary["results"]
            if all(row[key] == getattr(head, key) for key in ("experiment", "cell", "metric", "split"))
            and head.variant in ("", row["variant"])
        ]
        mean = statistics.fmean(value for value, _ in found)
        link = f"[`{study.name}`](src/etude/studies/{study.name}/README.md)"
        seeds = len({seed for _, seed in found})
        ours = f"{mean:.2f}" if mean >= 1 else f"{mean:.3f}".lstrip("0")
        told = f"**{ours}** ({seeds} {'seed' if seeds == 1 else 'seeds'})"
        cells = [link, study.about, head.about, told, head.published, head.baseline]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def measured(study: Study) -> str:
    """A Markdown table of what the committed runs measured beside the published numbers."""
    published = {row.experiment for row in comparisons([study], [])}
    lines = ["| experiment | cell | metric | ours | run; protocol |", "|---|---|---|---|---|"]
    for name, summary in summaries(study, []).items():
        for row in summary["results"]:
            if row["experiment"] not in published:
                width = f" ± {row['half_width']:.2f}" if row["half_width"] is not None else ""
                value = f"{row['value']:.2f}{width} {row['unit']}"
                about = f"`{name}`; {row['split']}; {row['protocol']}"
                lines.append(f"| {row['experiment']} | {row['cell']} | {row['metric']} | {value} | {about} |")
    return "\n".join(lines) + "\n"


def pivot(study: Study, experiment: str, variant: str = "", *, parts: bool = False) -> str:
    """A Markdown table of an experiment's committed runs: cells down, metrics of every split across, mean over seeds.

    Runs of different presets or settings have lines of their own.

    Args:
        study: whose.
        experiment: the table's name.
        variant: only runs of this one, such as a data set; all where it is empty.
        parts: the parts of the test split in place of whole splits.
    """
    lines: dict[tuple[str, str, str], dict[tuple[str, str], list[float]]] = {}
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for summary in summaries(study, []).values():
        rows = [row for row in summary["results"] if row["experiment"] == experiment]
        rows = [row for row in rows if row["metric"] not in _SAID_TWICE and variant in ("", row["variant"])]
        rows = [
            row for row in rows if parts == row["split"].startswith("test, ") and (parts or "," not in row["split"])
        ]
        for row in rows:
            line = lines.setdefault((row["cell"], row["variant"], measurement(summary)), {})
            line.setdefault((row["split"], row["metric"]), []).append(row["value"])
        for name in {(row["cell"], row["variant"], measurement(summary)) for row in rows}:
            seeds.setdefault(name, []).append(summary["seed"])
    columns = list(dict.fromkeys(name for line in lines.values() for name in line))
    heads = [f"{split} {metric.replace('_', ' ')}" for split, metric in columns]
    written = ["| cell | data | preset | seeds | " + " | ".join(heads) + " |", "|---" * (4 + len(columns)) + "|"]
    for name, line in lines.items():
        cell, data, settings = name
        told = ", ".join(map(str, sorted(seeds[name])))
        cells = [cell, data, settings.split(" ")[0], told, *(_mean(line.get(column, [])) for column in columns)]
        written.append("| " + " | ".join(cells) + " |")
    return "\n".join(written) + "\n"


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" (s {statistics.stdev(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def rewritten(text: str) -> str:
    """A README's text with its results tables made anew."""

    def fill(place: re.Match[str]) -> str:
        if place[2] == "board":
            return place[1] + "\n" + board() + "\n" + place[6]
        study = registry.load(place[3])
        if place[2] == "claims":
            body = claims(judgements([study], []))
        elif place[2] in ("table", "parts"):
            body = pivot(study, place[4], place[5] or "", parts=place[2] == "parts")
        else:
            rows = [row for row in comparisons([study], []) if place[4] != "run" or row.ours is not None]
            body = table(rows) if place[2] == "results" else measured(study)
        return place[1] + "\n" + body + "\n" + place[6]

    return _PLACE.sub(fill, text)


def main(args: list[str]) -> int:
    """Rewrite or check the files. Returns 1 where ``--check`` finds an old table."""
    checks = "--check" in args
    old: list[str] = []
    for name in (word for word in args if word != "--check"):
        path = Path(name)
        text = path.read_text(encoding="utf-8")
        if rewritten(text) == text:
            continue
        old.append(name)
        if not checks:
            write_atomic(path, rewritten(text))
    if checks and old:
        print(f"out of date: {', '.join(old)}; `just readme` writes them anew", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
