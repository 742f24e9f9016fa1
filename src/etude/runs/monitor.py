"""``python -m etude.runs.monitor STUDY PRESET --flags``: the validation metric by which a run is judged, as JSON.

The task itself says, and may say another for other settings; it is built where trials run, with their data.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from etude.core.errors import UserError
from etude.runs.training import choose


def ask_monitor(words: Sequence[str], environment: Mapping[str, str], cwd: Path | None = None) -> dict[str, str]:
    """Returns what a process of this module says: ``metric`` and ``direction``, a ``fault``, or nothing."""
    command = [sys.executable, "-m", "etude.runs.monitor", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {"fault": (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]}


def main() -> None:
    from etude.core.runtime import Runtime

    try:
        chosen = choose(sys.argv[1:], "etude tune")
        task = chosen.study.task(chosen.config, Runtime(chosen.config.loop, chosen.config.seed))
    except UserError as error:
        print(json.dumps({"fault": str(error)}))
        return
    print(json.dumps({"metric": task.monitor[0], "direction": task.monitor[1]} if task.monitor else {}))


if __name__ == "__main__":
    main()
