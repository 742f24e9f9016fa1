"""The words after ``etude``: the verb is found and run, faults become one line.

A verb's file has ``main``, which gets its ``Options`` filled from the words; one without, whose flags a study adds to,
gets the words themselves, and may have a ``HELP`` for the question for them.
"""

import importlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from etude import __version__, registry
from etude.core.errors import Interrupted, UserError, nearest, one_line
from etude.runs.flags import parse

VERBS = {
    "demo": "every study at smoke scale, a comparison table and a report; no network, minutes",
    "list": "the studies",
    "show": "a study's presets, experiments and published numbers",
    "check": "build a preset, run one batch of everything, and say what a run will cost",
    "run": "train a preset",
    "study": "run an experiment: the grid of runs behind a published table",
    "tune": "search over a study's own settings, trials that fall behind stopped early",
    "resume": "go on with a run that was stopped",
    "eval": "evaluate a run again on the test split",
    "predict": "use a trained model on your own files",
    "baseline": "what the best simple methods get where a study's networks are measured",
    "compare": "our numbers beside the published ones",
    "report": "one HTML or Markdown file of all studies, one study or one run: numbers, curves, pictures",
    "serve": "the page: a tab a study, on this machine",
    "data": "list, get or verify the data sets; render one",
    "export": "write trained weights as one file, as a folder for the hub, or as ONNX",
    "load": "make a run of a folder that `etude export` wrote elsewhere",
    "new": "lay out the files of a new study in a checkout",
}


_ENDING = re.compile(r"\.[a-z][a-z0-9]{1,11}", re.IGNORECASE)


def usage() -> str:
    rows = "\n".join(f"  {verb:8} {about}" for verb, about in VERBS.items())
    title = f"etude {__version__}: classic deep-learning systems, from scratch"
    return f"{title}\n\nusage: etude VERB ...\n\n{rows}\n\n`etude VERB --help` tells more."


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns the exit status: 0, 1 (a part of the work failed), 2 (a user's fault), 130 (stopped)."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in {"-h", "--help", "help"}:
        print(usage())
        return 0 if args else 2
    if args[0] in {"-V", "--version"}:
        print(__version__)
        return 0
    logging.basicConfig(format="etude: %(message)s", level=logging.WARNING)
    warnings.showwarning = _one_line_warning
    try:
        verb, *rest = args
        if verb not in VERBS:
            raise UserError(f"no verb '{verb}'{nearest(verb, VERBS)}")
        if verb in ("eval", "predict"):
            _refuse_missing(rest)
        module: Any = importlib.import_module(f"etude.cli.{verb}")
        if hasattr(module, "Options"):
            return module.main(parse(module.Options, rest, prog=f"etude {verb}", description=module.__doc__)) or 0
        if hasattr(module, "HELP") and (not rest or rest[0] in {"-h", "--help"}):
            print(module.HELP)
            return 0 if rest else 2
        return module.main(rest) or 0
    except UserError as error:
        print(f"etude: {one_line(error)}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"etude: {stop}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("etude: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away, as `| head` does.
        sys.stderr.close()
        return 0
    except SystemExit as stop:
        return int(stop.code or 0)


def _refuse_missing(words: Sequence[str]) -> None:
    """Refuse inputs none of which is there, before anything heavy is imported.

    A word is taken for a path by its ending or a slash, if it has no blank and does not follow a flag.
    """
    given = [word for before, word in pairwise(["", *words]) if not before.startswith("--") or before == "--support"]
    paths = [
        word for word in given
        if not word.startswith("-") and len(word.split()) == 1 and word not in registry.NAMES
        and ("/" in word or _ENDING.fullmatch(Path(word).suffix))
    ]  # fmt: skip
    inputs = [word for word in paths if word != words[0]]
    for tried in ([word for word in paths if word == words[0]], inputs):
        if tried and not any(os.path.exists(word) for word in tried):
            raise UserError(f"{tried[0]} does not exist: check the path")


def _one_line_warning(message: object, category: type[Warning], *rest: object) -> None:
    if issubclass(category, RuntimeWarning | UserWarning):
        print(f"etude: warning: {' '.join(str(message).split())}", file=sys.stderr)
