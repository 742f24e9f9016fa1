"""``python -m etude.runs.child WORDS``: `etude` that dies with the process that started it.

Standard input is a pipe whose other end only the parent holds: its end is the parent's end, however that came. A run
that outlived its parent would hold the lock of the folder that another process, or another node, is to go on with.
"""

import os
import runpy
import signal
import sys
import threading


def watch() -> None:
    """Kill this process and those it started once the parent is gone."""
    while os.read(0, 1):
        pass
    if sys.platform == "win32":
        # No process groups there: what this process started reads a pipe of its own.
        os._exit(1)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    assert sys.platform == "win32" or os.getpgrp() == os.getpid(), "a process group of its own, for it is killed whole"
    threading.Thread(target=watch, daemon=True).start()
    runpy.run_module("etude", run_name="__main__", alter_sys=True)
