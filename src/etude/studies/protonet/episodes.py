"""Few-shot episodes, drawn and scored as tensor operations (algorithm 1 of Snell et al. 2017).

Shape suffixes: E episodes, N classes of an episode (way), K shots, Q queries, D embedding dimensions,
C classes of the pool, P drawings of a class.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from etude.core.errors import UserError
from etude.studies.protonet.model import Distance, prototypes


@dataclass(frozen=True)
class Accuracy:
    """A mean over episodes, in per cent, with the half-width of its 95 % interval (normal approximation)."""

    mean: float
    half_width: float
    num_episodes: int
    loss: float
    """The mean of the episodes' losses (equation 2)."""


def draw_classes(num_episodes: int, way: int, groups_C: Tensor, within: bool, generator: torch.Generator) -> Tensor:
    """The classes of many episodes, int64 ``[E, N]``, without repetition within one.

    Where ``within`` is true all classes of an episode come from one group, an alphabet at a rotation: of those with
    ``way`` classes or more each is equally likely.

    Raises:
        UserError: there are fewer classes than ``way``.
    """
    noise_EC = torch.rand(num_episodes, len(groups_C), generator=generator)
    if within:
        large = groups_C.bincount().ge(way).nonzero().flatten()
        if not len(large):
            raise UserError(f"no alphabet of this split has {way} classes: ask for fewer ways")
        group_E = large[torch.randint(len(large), (num_episodes,), generator=generator)]
        noise_EC = noise_EC.masked_fill(groups_C != group_E[:, None], -1)
    else:
        _refuse_ways(way, len(groups_C))
    return noise_EC.topk(way, dim=1).indices


def _refuse_ways(way: int, num_classes: int) -> None:
    if num_classes < way:
        raise UserError(f"{way} ways were asked for, and there are {num_classes} classes: ask for fewer ways")


def draw_drawings(
    shape: tuple[int, ...], num_drawings: int, count: int, generator: torch.Generator
) -> Int[Tensor, "... k"]:
    """``count`` different drawings of each class, in random order: int64 ``[*shape, count]``."""
    if count > num_drawings:
        raise UserError(f"shots and queries make {count}, and a class has {num_drawings} drawings: ask for fewer")
    return torch.rand(*shape, num_drawings, generator=generator).argsort(-1)[..., :count]


def draw_episode(
    num_classes: int, num_drawings: int, way: int, count: int, generator: torch.Generator
) -> tuple[Int[Tensor, "n 1"], Int[Tensor, "n k"]]:
    """The classes ``[N, 1]`` and drawings ``[N, count]`` of one episode, to index a pool with."""
    _refuse_ways(way, num_classes)
    classes_N = torch.randperm(num_classes, generator=generator)[:way]
    return classes_N[:, None], draw_drawings((way,), num_drawings, count, generator)


def _embedded(z_CPD: Tensor, classes_EN: Tensor, count: int, generator: torch.Generator) -> Float[Tensor, "e n k d"]:
    """The embeddings of ``count`` random drawings of each class of many episodes."""
    drawings_ENK = draw_drawings(tuple(classes_EN.shape), z_CPD.shape[1], count, generator)
    return z_CPD[classes_EN[..., None].to(z_CPD.device), drawings_ENK.to(z_CPD.device)]


@torch.no_grad()
def score_pool(
    z_CPD: Float[Tensor, "c p d"], groups_C: Int[Tensor, " c"], distance: Distance, generator: torch.Generator, *,
    way: int, shot: int, query: int, num_episodes: int, within: bool = False, temperature: float = 1.0,
) -> Accuracy:  # fmt: skip
    """The accuracy over random episodes of a pool that was embedded once.

    Every episode is a gather and a batched matrix product: no picture is embedded twice. Where ``within`` is true the
    classes of an episode are of one alphabet at one rotation (``groups_C``), which is harder.
    """
    # About 64 MB of gathered embeddings at a time.
    chunk = max(1, 2**24 // (way * (shot + query) * z_CPD.shape[-1]))
    correct: list[Tensor] = []
    losses: list[Tensor] = []
    target_Q = torch.arange(way, device=z_CPD.device).repeat_interleave(query)
    for start in range(0, num_episodes, chunk):
        classes_EN = draw_classes(min(chunk, num_episodes - start), way, groups_C, within, generator)
        z_ENKD = _embedded(z_CPD, classes_EN, shot + query, generator)
        distances_EQN = distance(z_ENKD[:, :, shot:].flatten(1, 2), prototypes(z_ENKD[:, :, :shot]))
        correct.append((distances_EQN.argmin(-1) == target_Q).float().mean(-1))
        log_p_EQN = functional.log_softmax(-distances_EQN / temperature, -1)
        losses.append(-log_p_EQN[:, torch.arange(len(target_Q)), target_Q].mean(-1))
    accuracy_E = torch.cat(correct).double() * 100
    spread = accuracy_E.std().item() if num_episodes > 1 else 0.0
    return Accuracy(
        accuracy_E.mean().item(), 1.96 * spread / math.sqrt(num_episodes), num_episodes, torch.cat(losses).mean().item()
    )


@torch.no_grad()
def nearest_distances(
    z_CPD: Float[Tensor, "c p d"], distance: Distance, generator: torch.Generator, *, way: int, shot: int,
    num_episodes: int,
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:  # fmt: skip
    """The distances to the nearest prototype of queries whose class is in the support, and of unknown ones.

    Each episode draws ``2 * way`` classes; the second half has no prototype. A class has as many queries as drawings
    are left.
    """
    groups_C = torch.zeros(len(z_CPD), dtype=torch.long)
    classes_EN = draw_classes(num_episodes, 2 * way, groups_C, False, generator)
    z_ENKD = _embedded(z_CPD, classes_EN, z_CPD.shape[1], generator)
    proto_END = prototypes(z_ENKD[:, :way, :shot])
    known, unknown = z_ENKD[:, :way, shot:], z_ENKD[:, way:, shot:]
    near = [distance(z_ENQD.flatten(1, 2), proto_END).amin(-1).flatten() for z_ENQD in (known, unknown)]
    return near[0], near[1]
