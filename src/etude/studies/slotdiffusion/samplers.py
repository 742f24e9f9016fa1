r"""The way back: latents out of noise, by a network that predicts the noise in a latent.

A sampler visits some places of the chain, from the noisiest down to the data. At each it has the network's $\epsilon$
and with it a guess of the data, $\hat z_0 = (z - \sigma \epsilon) / \alpha$, with $\alpha = \sqrt{\bar\alpha_t}$ and
$\sigma = \sqrt{1 - \bar\alpha_t}$; samplers differ in how they go on from there. The last move ends at the data itself,
and is $\hat z_0$ for all of them (for `ddim` whatever its noise).

All have one interface, which a sampler of the user's own has to meet too:

    sampler(predict, schedule, z_BX, generators, *, steps, on_step=None) -> Tensor [B, X]

- ``predict(z_BX, t_B)``: the noise; ``t_B`` is int64, and alike for all images;
- ``schedule``: the chain that the network was trained on;
- ``z_BX``: what to begin with, at place T - 1: standard normal, see `draw`. Results have its dtype and device;
- ``generators``: one for each image, for noise on the way;
- ``steps``: how often the network is asked, 1 to T;
- ``on_step(step, steps, z_BX, z0_BX)``: called after each step, from 1, with the latents and the guess they came from.
  What it raises ends the sampling.

An image's noise comes from a generator of its own, keyed by the image's number. So the pictures do not depend on how
many are made at a time, up to what a network's own sums round to, and `halving` may choose that number.

Shape suffixes: B images, X all axes of one latent, N steps.
"""

import logging
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from etude.core import randomness
from etude.core.errors import UserError
from etude.nn.plugin import resolve
from etude.nn.user_part import tried
from etude.studies.slotdiffusion.diffusion import Level, Schedule, posterior

Predict = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[[int, int, Tensor, Tensor], None]
Sampler = Callable[..., Tensor]
Grid = Literal["trailing", "even", "snr"]

_log = logging.getLogger("etude")


# --- noise ---


def image_generators(seed: int, stream: str, images: slice) -> list[torch.Generator]:
    """A generator for each image, keyed by its number: made anew wherever the image is begun anew.

    Args:
        seed: the run's seed.
        stream: what is drawn.
        images: their numbers, from ``start`` to ``stop``.
    """
    return [randomness.generator(seed, stream, 0, index) for index in range(images.start or 0, images.stop)]


def draw(generators: Sequence[torch.Generator], shape: Sequence[int], like: Tensor | None = None) -> Tensor:
    """Standard normal ``[B, *shape]``, each image's from its own generator: float32, drawn on the CPU.

    With ``like`` it has that tensor's dtype and device.
    """
    noise_BX = torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators])
    return noise_BX if like is None else noise_BX.to(like)


# --- places ---


def check_steps(steps: int, num_steps: int) -> None:
    """Raise `UserError` unless a chain of ``num_steps`` can be sampled in ``steps``."""
    if not 1 <= steps <= num_steps:
        raise UserError(f"cannot sample in {steps} steps: give 1 to {num_steps}, as many as the model was trained with")


def places(schedule: Schedule, steps: int, grid: Grid = "trailing") -> list[int]:
    """The places to visit, falling, all different, the first T - 1.

    Args:
        schedule: the chain.
        steps: N.
        grid: ``trailing``: every T/N-th, so that the move to the data is as long as the others (Lin et al. 2024,
            "Common diffusion noise schedules and sample steps are flawed", table 2); ``even``: evenly from T - 1 to 0,
            both included (Nichol and Dhariwal 2021, section 4); ``snr``: evenly in the logarithm of the
            signal-to-noise ratio, both included (Lu et al. 2022, DPM-Solver, section 3.4), at the nearest places.

    Raises:
        UserError: see `check_steps`.
    """
    last = schedule.num_steps - 1
    check_steps(steps, schedule.num_steps)
    if grid == "trailing":
        falling_N = last - np.arange(steps) * (schedule.num_steps / steps)
    elif grid == "even":
        falling_N = np.linspace(last, 0, steps)
    else:
        snr_T = schedule.log_snr.numpy()
        wanted_N = np.linspace(snr_T[-1], snr_T[0], steps)
        falling_N = np.interp(wanted_N, snr_T[::-1], np.arange(last, -1, -1))
    rising_N, index_N = np.rint(falling_N)[::-1].astype(int), np.arange(steps)
    # Where they lie closer than the chain's places, those above move up, and at the top those below down.
    rising_N = np.maximum.accumulate(rising_N - index_N) + index_N
    rising_N = np.minimum(rising_N, last - index_N[::-1])
    return rising_N[::-1].tolist()


def _walk(
    name: str, predict: Predict, schedule: Schedule, z_BX: Tensor, steps: int, grid: Grid, on_step: OnStep | None,
    move: Callable[[Level, Level, Tensor, Tensor, Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Visit the places of a grid; ``move(now, then, z_BX, z0_BX, noise_BX)`` is the latent at the next one."""
    visited = [*places(schedule, steps, grid), -1]
    for step, (t, following) in enumerate(pairwise(visited), 1):
        now, then = schedule.level(t), schedule.level(following)
        noise_BX = predict(z_BX, torch.full((len(z_BX),), t, device=z_BX.device)).to(z_BX.dtype)
        assert noise_BX.shape == z_BX.shape, "noise of the latent's shape"
        z0_BX = (z_BX - now.noise * noise_BX) / now.signal
        z_BX = move(now, then, z_BX, z0_BX, noise_BX)
        if not z_BX.isfinite().all():
            raise UserError(
                f"the {name} sampler met numbers that are not finite at step {step} of {steps}: sample in float32, "
                "with less guidance, or from another checkpoint"
            )
        if on_step is not None:
            on_step(step, steps, z_BX, z0_BX)
    return z_BX


# --- samplers ---


@torch.no_grad()
def ancestral(
    predict: Predict, schedule: Schedule, z_BX: Tensor, generators: Sequence[torch.Generator], *, steps: int,
    grid: Grid = "even", on_step: OnStep | None = None,
) -> Tensor:  # fmt: skip
    r"""Algorithm 2 of Ho et al. 2020: step by step a draw from $q(z_s \mid z_t, \hat z_0)$.

    Fewer steps than T are the same algorithm on the chain of the places visited (Nichol and Dhariwal 2021, section 4).
    The variance is $\tilde\beta_t$ (section 3.2). For the grid see `places`, for the rest the top of the file.
    """

    def move(now: Level, then: Level, z_BX: Tensor, z0_BX: Tensor, noise_BX: Tensor) -> Tensor:
        back = posterior(now, then)
        z_BX = back.data * z0_BX + back.latent * z_BX
        if not then.noise:
            return z_BX
        return z_BX + math.sqrt(back.variance) * draw(generators, z_BX.shape[1:], z_BX)

    return _walk("ancestral", predict, schedule, z_BX, steps, grid, on_step, move)


@torch.no_grad()
def ddim(
    predict: Predict, schedule: Schedule, z_BX: Tensor, generators: Sequence[torch.Generator], *, steps: int,
    eta: float = 0.0, grid: Grid = "trailing", on_step: OnStep | None = None,
) -> Tensor:  # fmt: skip
    r"""Song et al. 2021, "Denoising diffusion implicit models", eq. 12 and 16:

    $$z_s = \sqrt{\bar\alpha_s} \, \hat z_0 + \sqrt{1 - \bar\alpha_s - \varsigma^2} \, \epsilon + \varsigma \epsilon',
    \qquad \varsigma = \eta \sqrt{\frac{1 - \bar\alpha_s}{1 - \bar\alpha_t}}
    \sqrt{1 - \frac{\bar\alpha_t}{\bar\alpha_s}}$$

    With $\eta$ 0 there is no noise on the way, and it is a first-order solver of the probability-flow equation; with 1
    it is `ancestral`. For the grid see `places`, for the rest the top of the file.

    Raises:
        UserError: ``eta`` is not within 0 and 1, or see `check_steps`.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta of ddim is {eta:g}: give 0 (no noise on the way) to 1 (as much as the ancestral sampler)")

    def move(now: Level, then: Level, z_BX: Tensor, z0_BX: Tensor, noise_BX: Tensor) -> Tensor:
        fresh = eta * math.sqrt(posterior(now, then).variance)
        kept = math.sqrt(max(then.noise**2 - fresh**2, 0.0))
        z_BX = then.signal * z0_BX + kept * noise_BX
        return z_BX + fresh * draw(generators, z_BX.shape[1:], z_BX) if fresh else z_BX

    return _walk("ddim", predict, schedule, z_BX, steps, grid, on_step, move)


@torch.no_grad()
def dpm_solver_pp(
    predict: Predict, schedule: Schedule, z_BX: Tensor, generators: Sequence[torch.Generator], *, steps: int,
    grid: Grid = "snr", on_step: OnStep | None = None,
) -> Tensor:  # fmt: skip
    r"""DPM-Solver++(2M), algorithm 2 of Lu et al. 2022, "DPM-Solver++": the probability-flow equation to second order.

    In $\lambda = \log(\alpha / \sigma)$ the equation is linear but for $\hat z_0$. That is taken to be a line through
    its last two values; with $h_i = \lambda_i - \lambda_{i-1}$ and $r = h_{i-1} / h_i$

    $$D = \left(1 + \frac{1}{2r}\right) \hat z_0^{(i-1)} - \frac{1}{2r} \hat z_0^{(i-2)}, \qquad
    z_i = \frac{\sigma_i}{\sigma_{i-1}} z_{i-1} - \alpha_i (e^{-h_i} - 1) D$$

    The first step has no earlier value, and the last, to the data, is infinitely long in $\lambda$, where a line would
    lead nowhere: both take $D = \hat z_0$, which is the first order. Steps that are even in t are of very uneven length
    in $\lambda$, and near the data the line then leads astray. For the grid see `places`, for the rest the top of the
    file; the generators are untouched.
    """
    before_BX, h_before = None, math.nan

    def move(now: Level, then: Level, z_BX: Tensor, z0_BX: Tensor, noise_BX: Tensor) -> Tensor:
        nonlocal before_BX, h_before
        h = then.half_log_snr - now.half_log_snr
        data_BX = z0_BX
        if before_BX is not None and math.isfinite(h):
            data_BX = torch.lerp(before_BX, z0_BX, 1 + h / (2 * h_before))
        before_BX, h_before = z0_BX, h
        return then.noise / now.noise * z_BX - then.signal * math.expm1(-h) * data_BX

    return _walk("dpm-solver++", predict, schedule, z_BX, steps, grid, on_step, move)


SAMPLERS: dict[str, Sampler] = {"ancestral": ancestral, "ddim": ddim, "dpm-solver++": dpm_solver_pp}


def make_sampler(name: str) -> Sampler:
    """A sampler by its name in `SAMPLERS`, or a user's own as ``path/to/file.py:Name``, tried out at once.

    It is tried on data that is standard normal, where the noise in a latent is $\\sigma z$ on average.

    Raises:
        UserError: there is none of that name, or it fails, or returns something else than finite latents.
    """
    sampler = resolve(name, SAMPLERS, "sampler")
    if name in SAMPLERS:
        return sampler
    schedule, start_BX = Schedule(10), draw(image_generators(0, "try", slice(0, 2)), (4, 2, 2))
    noise_T = (1 - schedule.alphas_bar).sqrt().float()

    def predict(z_BX: Tensor, t_B: Tensor) -> Tensor:
        if z_BX.shape != start_BX.shape or t_B.shape != z_BX.shape[:1]:
            raise ValueError(
                f"predict takes latents {list(start_BX.shape)} and places [{len(start_BX)}], not {list(z_BX.shape)} "
                f"and {list(t_B.shape)}"
            )
        return noise_T[t_B].view(-1, 1, 1, 1) * z_BX

    told: list[int] = []

    def call() -> Any:
        return sampler(
            predict, schedule, start_BX.clone(), image_generators(0, "try/noise", slice(0, 2)), steps=4,
            on_step=lambda step, steps, z_BX, z0_BX: told.append(step),
        )  # fmt: skip

    shape = list(start_BX.shape)
    answer = tried(f"sampler {name}", f"latents {shape}", call, shape)
    if not answer.isfinite().all():
        raise UserError(f"the sampler {name} makes numbers that are not finite of standard normal data")
    # The sheets of denoising are made of what it is called with; one that asks twice a step may leave some out.
    if told[-1:] != [4]:
        last = f"the last was step {told[-1]}" if told else "it was not called"
        raise UserError(f"the sampler {name} must call on_step after each step, at last after step 4 of 4: {last}")
    return sampler


# --- around samplers ---


def guided(predict: Callable[..., Tensor], given: Sequence[Tensor], null: Sequence[Tensor], weight: float) -> Predict:
    r"""Classifier-free guidance (Ho and Salimans 2022, eq. 6), both predictions in one batch of twice the size:

    $$\epsilon = \epsilon_{null} + w \, (\epsilon_{given} - \epsilon_{null})$$

    The paper's own weight is $w - 1$. With 1 there is no guidance and with 0 no condition, and the batch stays single.

    Args:
        predict: the noise ``[B, X]`` of ``(z_BX, t_B, *condition)``.
        given: the condition's tensors, each ``[B, ...]``.
        null: those that stand for no condition, each ``[B, ...]`` or ``[1, ...]``.
        weight: w.
    """
    null = [none.expand_as(some) for none, some in zip(null, given, strict=True)]
    if weight in (0, 1):
        condition = given if weight else null
        return lambda z_BX, t_B: predict(z_BX, t_B, *condition)
    both = [torch.cat(pair) for pair in zip(given, null, strict=True)]

    def one_batch(z_BX: Tensor, t_B: Tensor) -> Tensor:
        given_BX, null_BX = predict(torch.cat([z_BX, z_BX]), torch.cat([t_B, t_B]), *both).chunk(2)
        return torch.lerp(null_BX, given_BX, weight)

    return one_batch


_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "alloc_failed")


def halving(sample: Callable[[slice], Tensor], count: int, batch: int) -> Tensor:
    """Sample ``count`` images, at most ``batch`` at a time, and half as many as soon as memory does not suffice.

    What was made stays made. The result does not depend on the batch if ``sample`` keys its noise by the image, with
    generators that it makes itself by `image_generators`: a part that failed is begun anew.

    Args:
        sample: the images of these numbers ``[n, ...]``; best on the CPU, as all are kept.
        count: how many in all, at least 1.
        batch: the most at a time, at least 1.

    Raises:
        UserError: not even one fits.
    """
    made: list[Tensor] = []
    start = 0
    while start < count:
        part = slice(start, min(start + batch, count))
        size = part.stop - start
        try:
            made.append(sample(part))
        except (RuntimeError, MemoryError) as error:
            # Only CUDA has a type for it.
            known = isinstance(error, torch.OutOfMemoryError | MemoryError)
            if not known and not any(words in str(error).lower() for words in _NO_MEMORY):
                raise
            if size == 1:
                raise UserError(
                    "not enough memory to sample a single image: choose a smaller model, another device or half "
                    "precision, or free memory"
                ) from error
            batch = size // 2
        else:
            start = part.stop
            continue
        # Out here nothing holds on to what the failed attempt had made.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _log.warning("not enough memory to sample %d images at a time: going on with %d", size, batch)
    return torch.cat(made)
