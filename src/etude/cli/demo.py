"""``etude demo``: every study at smoke scale on embedded data, a comparison table and an HTML report.

Needs no network and takes minutes.
"""

import datetime
import time
from dataclasses import dataclass
from pathlib import Path

from etude import registry
from etude.core.config import to_dict
from etude.core.run_folder import RunFolder, RunRecord
from etude.report.page import write_report
from etude.report.results import comparisons
from etude.report.terminal import print_comparisons
from etude.runs.flags import parse
from etude.runs.table import show, show_answers
from etude.runs.training import run_to_end, say


@dataclass(frozen=True)
class Options:
    out: Path | None = None
    """The folder that the runs and the report go to; demo/DATE-TIME where nothing is named."""


def main(options: Options) -> None:
    out = options.out or Path("demo") / datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    started = time.monotonic()
    every = [registry.load(name) for name in registry.NAMES]
    numbers = []
    for study in every:
        preset = study.preset("smoke")
        config = preset.build()
        run = RunFolder.create(
            out / study.name / "demo-smoke", RunRecord(study.name, "smoke", preset.scale, {}, to_dict(config))
        )
        summary = run_to_end(study, run, config)
        numbers += [
            {
                "study": study.name,
                "experiment": row["experiment"],
                "cell": row["cell"],
                "metric": f"{row['metric']} {row['unit']}",
                "value": row["value"],
                "protocol": row["protocol"],
            }
            for row in summary["results"]
        ]
    show(numbers, "this demo: seconds of training on generated data, which says only that the parts work")
    for study in every:
        if study.shipped_weights is not None and hasattr(study.module("predict"), "example"):
            print(f"\nthe trained {study.name} that comes with etude, on real samples")
            module = study.module("predict")
            options = parse(module.Options, module.example(out)[1:], prog=f"etude predict {study.name}")
            show_answers(module, module.predict(study.shipped_weights, None, options))
    print("\npublished numbers, and ours at the largest scale that was run")
    print_comparisons(comparisons(every, [out]))
    report = write_report(out / "report.html", every, [out])
    say(f"done in {time.monotonic() - started:.0f} s")
    print(f"\nreport: {report}")
