"""``python -m etude.cluster.monitor STUDY PRESET --flags``: the validation metric by which a run is judged, as JSON.

The task itself says, and may say another for other settings; it is built where trials run, with their data.
"""

import json
import sys

from etude.core.errors import UserError
from etude.runs.training import choose


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
