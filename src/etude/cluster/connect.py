"""The way to a Ray cluster, and one line where there is none."""

import importlib
import math
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import etude
from etude.core.errors import UserError, extra

PATIENCE = 10.0
"""Seconds to wait for a node that is large enough."""
_OBJECTS = 80 * 2**20
"""Bytes of Ray's store of objects, in which runs put nothing."""


def load(module: str) -> Any:
    """A module of the extra `ray`, with Ray's usage statistics off; one line where it is not installed."""
    if sys.platform == "win32":
        raise UserError("a grid on Ray needs Linux or macOS: leave --ray out, and the grid runs on this machine")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Else Ray would send the folder of a command under `uv run` to every node and run workers by uv there.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{module.partition('.')[0]} is not installed ({error}): {extra('ray')}") from error


def require_sizes(cpus: int, gpus: float) -> None:
    """Refuse what no run can have."""
    if cpus < 1:
        raise UserError(f"--cpus must be at least 1, not {cpus}")
    if not (math.isfinite(gpus) and gpus >= 0 and (gpus <= 1 or gpus == int(gpus))):
        raise UserError(f"--gpus must be 0, a fraction of one such as 0.5, or a whole number, not {gpus:g}")


def connect(address: str) -> Any:
    """Join a cluster, or start one on this machine.

    Args:
        address: ``local``, which listens on loopback alone; ``auto``, the cluster that runs on this machine or that
            RAY_ADDRESS names; or HOST:PORT.

    Returns the module ``ray``.
    """
    if "://" in address:
        raise UserError(
            f"--ray {address}: no way to reach a cluster by this scheme: on one of its machines (`ray start "
            "--address=HOST:PORT` makes this one of them) give --ray auto or --ray HOST:PORT"
        )
    if address not in ("local", "auto"):
        _require_listener(address)
    if address == "local":
        # Ray's switch for systems whose firewall asks: all that it starts listens on loopback. It turns an address of
        # 127.0.0.1 that is handed to `init` into that of the network.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    ray = load("ray")
    settings: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "address": address}
    if address == "local":
        settings |= {"include_dashboard": False, "object_store_memory": _OBJECTS}
    try:
        # Ray prints on its way; what a person needs of it is in the error.
        ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if address == "auto":
            raise UserError(
                "--ray auto: no Ray cluster is running on this machine: start one with `ray start --head`, give "
                "HOST:PORT, or --ray local"
            ) from error
        raise UserError(f"--ray {address}: {' '.join(str(error).split())[:300]}") from error
    return ray


def _require_listener(address: str) -> None:
    """Ray itself waits a minute for a head that is not there, and then aborts the process."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--ray takes local, auto or HOST:PORT such as 10.0.0.1:6379, not '{address}'")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--ray {address}: nothing answers there ({error}): `ray start --head` prints a cluster's address"
        ) from error


def room(ray: Any, cpus: int, gpus: float) -> int:
    """The number of runs that a cluster's nodes have room for at a time."""
    sizes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(int(min(size.get("CPU", 0) // cpus, size.get("GPU", 0) / gpus if gpus else math.inf)) for size in sizes)


def require_room(ray: Any, cpus: int, gpus: float, patience: float = PATIENCE) -> None:
    """Refuse a run that fits on no node, after a wait for nodes that are about to join."""
    deadline = time.monotonic() + patience
    while not room(ray, cpus, gpus):
        if time.monotonic() > deadline:
            sizes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            seen = "; ".join(f"{size.get('CPU', 0):g} CPUs and {size.get('GPU', 0):g} GPUs" for size in sizes)
            raise UserError(
                f"no node of the cluster has {cpus} CPUs and {gpus:g} GPUs for a run (nodes: {seen or 'none'}): lower "
                "--cpus or --gpus"
            )
        time.sleep(0.5)


def source() -> str:
    """The folder that etude is imported from where it is not installed; nodes that see it import it from there too."""
    root = Path(etude.__file__).resolve().parents[1]
    return "" if root.name in ("site-packages", "dist-packages") else str(root)
