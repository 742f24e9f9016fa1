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
from collections.abc import Iterable, Sequence
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
    lines: list[list[str]] = []
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
        lines.append([escaped(cell) for cell in cells])
    sentences = [f"{escaped(text[:1].upper() + text[1:])}." for text in protocols]
    stands = "".join(f"\nProxy: {text}.\n" for text in dict.fromkeys(row.proxy for row in rows if row.proxy))
    if len(sentences) == 1:
        return f"{sentences[0]}\n\n{_written(head, lines)}{stands}"
    notes = "".join(f"\n({number}) {text}\n" for number, text in enumerate(sentences, 1))
    return _written(head, lines) + notes + stands


def claims(rows: Sequence[Judgement]) -> str:
    """A Markdown table of claims with their verdicts and evidence."""
    if not rows:
        return "No claim of a source is judged yet.\n"
    lines = [[escaped(cell) for cell in (row.claim, row.source, row.verdict, row.evidence)] for row in rows]
    return _written(["claim", "source", "verdict", "evidence"], lines)


def _written(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(cells) + " |\n" for cells in (head, *lines)]
    return "".join([rows[0], "|---" * len(head) + "|\n", *rows[1:]])


def board() -> str:
    """A Markdown table of the number by which each study is known: ours, published, and what learns nothing."""
    lines: list[list[str]] = []
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
        ours = f"**{ours}** ({seeds} {'seed' if seeds == 1 else 'seeds'})"
        lines.append([link, study.about, head.about, ours, head.published, head.baseline])
    return _written(["study", "what it is", "measured", "ours", "published", "baseline"], lines)


def measured(study: Study) -> str:
    """A Markdown table of what the committed runs measured beside the published numbers."""
    published = {row.experiment for row in comparisons([study], [])}
    lines: list[list[str]] = []
    for name, summary in summaries(study, []).items():
        for row in summary["results"]:
            if row["experiment"] not in published:
                width = f" ± {row['half_width']:.2f}" if row["half_width"] is not None else ""
                value = f"{row['value']:.2f}{width} {row['unit']}"
                about = f"`{name}`; {row['split']}; {row['protocol']}"
                lines.append([row["experiment"], row["cell"], row["metric"], value, about])
    return _written(["experiment", "cell", "metric", "ours", "run; protocol"], lines)


def pivot(study: Study, experiment: str, variant: str = "", *, parts: bool = False) -> str:
    """A Markdown table of an experiment's committed runs: cells down, metrics of every split across, mean over seeds.

    Runs of different presets or settings have lines of their own. Of the runs only those of a ``variant``, such as a
    data set, are in it, where one is named; ``parts`` takes the parts of the test split in place of whole splits.
    """
    lines: dict[tuple[str, str, str], dict[tuple[str, str], list[float]]] = {}
    seeds: dict[tuple[str, str, str], list[int]] = {}
    for summary in summaries(study, []).values():
        for row in summary["results"]:
            if row["experiment"] != experiment or row["metric"] in _SAID_TWICE or variant not in ("", row["variant"]):
                continue
            if "," in row["split"] if not parts else not row["split"].startswith("test, "):
                continue
            name = (row["cell"], row["variant"], measurement(summary))
            lines.setdefault(name, {}).setdefault((row["split"], row["metric"]), []).append(row["value"])
            if summary["seed"] not in seeds.setdefault(name, []):
                seeds[name].append(summary["seed"])
    columns = list(dict.fromkeys(name for line in lines.values() for name in line))
    heads = ["cell", "data", "preset", "seeds", *(f"{split} {metric.replace('_', ' ')}" for split, metric in columns)]
    return _written(
        heads,
        [
            [name[0], name[1], name[2].split(" ")[0], ", ".join(map(str, sorted(seeds[name])))]
            + [_mean(line.get(column, [])) for column in columns]
            for name, line in lines.items()
        ],
    )


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" (s {statistics.stdev(values):.2f})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def rewritten(text: str) -> str:
    """A README's text with its results tables made anew."""

    def fill(place: re.Match[str]) -> str:
        if place[2] == "board":
            body = board()
        elif place[2] == "claims":
            body = claims(judgements([registry.load(place[3])], []))
        elif place[2] in ("table", "parts"):
            body = pivot(registry.load(place[3]), place[4], place[5] or "", parts=place[2] == "parts")
        elif place[2] == "measured":
            body = measured(registry.load(place[3]))
        else:
            rows = comparisons([registry.load(place[3])], [])
            body = table([row for row in rows if place[4] != "run" or row.ours is not None])
        return f"{place[1]}\n{body}\n{place[6]}"

    return _PLACE.sub(fill, text)


def main(args: list[str]) -> int:
    """Rewrite or check the files. Returns 1 where ``--check`` finds an old table."""
    new = {name: rewritten(Path(name).read_text(encoding="utf-8")) for name in args if name != "--check"}
    old = [name for name, text in new.items() if text != Path(name).read_text(encoding="utf-8")]
    if "--check" not in args:
        for name in old:
            write_atomic(Path(name), new[name])
    elif old:
        print(f"out of date: {', '.join(old)}; `just readme` writes them anew", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
