"""Every draw comes from a generator keyed by (seed, stream, step, index).

A resume then needs no saved random state, a new draw in one place changes none elsewhere, and two
processes draw what one would.
"""

import hashlib
import random
from typing import Any, cast

import numpy as np
import torch


def key(seed: int, stream: str, step: int, index: int = 0) -> int:
    """A 63-bit seed for one draw, BLAKE2b of its parts: a stream such as ``"train/episode"``, its step and index."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{step}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, stream: str, step: int, index: int = 0) -> torch.Generator:
    """A CPU generator for one draw, the same on every device and in every process."""
    return torch.Generator().manual_seed(key(seed, stream, step, index))


def upload(drawn: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Move what was drawn on the CPU to a device; to a GPU from pinned memory, for which the CPU need not wait."""
    held = drawn.pin_memory() if (drawn.device.type, torch.device(device).type) == ("cpu", "cuda") else drawn
    return held.to(device, non_blocking=True)


def seed_globals(seed: int, stream: str, step: int, index: int = 0) -> None:
    """Key the global generators, for draws inside libraries and layers (dropout, initialisation)."""
    value = key(seed, stream, step, index)
    random.seed(value)
    np.random.seed(value % 2**32)
    cast(Any, torch).manual_seed(value)
