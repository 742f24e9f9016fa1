"""Samplers beside diffusers' and on data whose noise is known in closed form; what happens where something is wrong."""

import logging
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (  # pyright: ignore[reportPrivateImportUsage]
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
)
from torch import Tensor

from etude.core.errors import UserError
from etude.studies.slotdiffusion.diffusion import Schedule
from etude.studies.slotdiffusion.samplers import (
    SAMPLERS,
    Predict,
    ancestral,
    check_steps,
    ddim,
    dpm_solver_pp,
    draw,
    guided,
    halving,
    image_generators,
    make_sampler,
    places,
)

SCHEDULE = Schedule()
GRIDS = ("trailing", "even", "snr")
SHAPE = (3, 2, 2)


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return image_generators(seed, "test", slice(0, count))


def start(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return draw(generators(count, seed=1), SHAPE).to(dtype)


# --- data whose noise is known ---


class Mixture:
    r"""Normal components on a line.

    At a place of the chain they are $N(\alpha m_k, \alpha^2 d_k^2 + \sigma^2)$, and the noise in a latent is $-\sigma$
    times the slope of the log-density.
    """

    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = torch.tensor([-1.2, 0.8], dtype=torch.float64)
    deviations = torch.tensor([0.3, 0.2], dtype=torch.float64)
    mean = float((weights * means).sum())
    variance = float((weights * (deviations**2 + means**2)).sum()) - mean**2
    fourth = float((weights * ((d := means - mean) ** 4 + 6 * d**2 * deviations**2 + 3 * deviations**4)).sum())

    def predict(self, z_BX: Tensor, t_B: Tensor) -> Tensor:
        assert len(t_B.unique()) == 1
        signal, noise = SCHEDULE.level(int(t_B[0]))
        variance_K = (signal * self.deviations) ** 2 + noise**2
        off_BXK = z_BX.double()[..., None] - signal * self.means
        share_BXK = (self.weights.log() - variance_K.log() / 2 - off_BXK**2 / variance_K / 2).softmax(-1)
        return (noise * (share_BXK * off_BXK / variance_K).sum(-1)).to(z_BX.dtype)

    def below(self, z_X: Tensor, t: int) -> Tensor:
        """The distribution function at a place."""
        signal, noise = SCHEDULE.level(t)
        deviation_K = ((signal * self.deviations) ** 2 + noise**2).sqrt()
        return (self.weights * torch.special.ndtr((z_X[..., None] - signal * self.means) / deviation_K)).sum(-1)


MIXTURE = Mixture()
FAITHFUL: dict[str, tuple[Callable[..., Tensor], float, float]] = {
    "ancestral": (partial(ancestral, steps=1000), 0.006, 0.055),
    "ancestral, 200 steps": (partial(ancestral, steps=200, grid="snr"), 0.021, 0.05),
    "ddim": (partial(ddim, steps=400, grid="snr"), 0.007, 0.028),
    "ddim, eta 1": (partial(ddim, steps=400, eta=1.0, grid="snr"), 0.01, 0.055),
    "dpm-solver++": (partial(dpm_solver_pp, steps=50), 0.001, 0.013),
}
"""With what the steps leave wrong: so much of a moment or a weight at most, and such a share of a deviation.

Measured with 200,000 points, rounded up. The components are narrow for a chain whose first step adds .039 of noise.
"""


@pytest.mark.parametrize("name", FAITHFUL)
def test_a_mixture_is_recovered(name: str) -> None:
    """Mean, variance and the components, within four standard errors and what the steps leave wrong."""
    sampler, bias, narrower = FAITHFUL[name]
    count = 15_000
    noise, way = generators(2)
    z_BX = draw([noise], [count]).double()
    x = sampler(MIXTURE.predict, SCHEDULE, z_BX, [way])[0]
    assert abs(x.mean() - MIXTURE.mean) < 4 * math.sqrt(MIXTURE.variance / count) + bias
    error = math.sqrt((MIXTURE.fourth - MIXTURE.variance**2) / count)
    assert abs(x.var() - MIXTURE.variance) < 4 * error + bias
    # Of the first component nearly nothing lies above -.2, and of the second nearly nothing below.
    assert abs((x < -0.2).double().mean() - 0.3) < 4 * math.sqrt(0.21 / count) + bias
    for k, part in enumerate((x[x < -0.2], x[x > -0.2])):
        few = math.sqrt(2 * len(part))
        assert abs(part.mean() - MIXTURE.means[k]) < 4 * MIXTURE.deviations[k] / math.sqrt(len(part)) + bias
        assert abs(part.std() / MIXTURE.deviations[k] - 1) < 4 / few + narrower


def off_the_flow(sampler: Callable[..., Tensor], steps: int) -> float:
    """How far the latents at place 0 lie from where the probability-flow equation leads.

    On a line its solutions do not cross, so that each keeps its quantile: the exact answer needs no solver.
    """
    z_BX = torch.linspace(-2.5, 2.5, 41, dtype=torch.float64)[None]
    seen: list[Tensor] = []
    sampler(
        MIXTURE.predict, SCHEDULE, z_BX, [], steps=steps + 1, grid="snr", on_step=lambda *step: seen.append(step[2])
    )
    found = seen[-2][0]
    return float((MIXTURE.below(found, 0) - MIXTURE.below(z_BX[0], 999)).abs().mean())


def test_the_second_order_converges_faster_than_the_first() -> None:
    errors = {sampler: [off_the_flow(sampler, steps) for steps in (20, 40, 80)] for sampler in (ddim, dpm_solver_pp)}
    order = {sampler: math.log2(e[0] / e[2]) / 2 for sampler, e in errors.items()}
    assert 0.7 < order[ddim] < 1.3
    assert 1.6 < order[dpm_solver_pp] < 2.6
    assert all(second < first / 4 for first, second in zip(errors[ddim], errors[dpm_solver_pp], strict=True))


# --- beside diffusers ---

THEIRS: dict[str, Any] = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "linear"}


def analytic(z_BX: Tensor, t_B: Tensor) -> Tensor:
    """Bent in the latent and different at every place."""
    return torch.tanh(z_BX + t_B.view(-1, 1, 1, 1) / 700) + 0.1 * z_BX


def theirs(scheduler: Any, steps: int, z_BX: Tensor, **options: Any) -> list[Tensor]:
    """Their latents after each step, under `analytic`."""
    scheduler.set_timesteps(steps)
    seen = []
    for t in scheduler.timesteps:
        noise = analytic(z_BX, t.expand(len(z_BX)))
        z_BX = scheduler.step(noise, t, z_BX, **options).prev_sample
        seen.append(z_BX)
    return seen


def ours(sampler: Callable[..., Tensor], steps: int, z_BX: Tensor, **options: Any) -> list[Tensor]:
    seen: list[Tensor] = []
    options = {"generators": generators(len(z_BX)), **options}
    sampler(analytic, SCHEDULE, z_BX, steps=steps, on_step=lambda *step: seen.append(step[2]), **options)
    return seen


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    """All the way. Theirs is float32 throughout, and the first divisions are by .005."""
    assert len(found) == len(wanted)
    for mine, their in zip(found, wanted, strict=True):
        scale = their.abs().max().item()
        torch.testing.assert_close(mine.double(), their.double(), rtol=0, atol=2e-4 * scale)


@pytest.mark.parametrize("steps", [1, 8, 50, 1000])
def test_ddim_is_that_of_diffusers(steps: int) -> None:
    scheduler = DDIMScheduler(**THEIRS, timestep_spacing="trailing", clip_sample=False)
    wanted = theirs(scheduler, steps, start(2, torch.float32))
    assert places(SCHEDULE, steps) == scheduler.timesteps.tolist()
    assert_same(ours(ddim, steps, start(2, torch.float32)), wanted)


def test_ddim_with_noise_is_that_of_diffusers() -> None:
    """One image: its generator draws what theirs draws. Theirs draws once more, at the end, times zero."""
    scheduler = DDIMScheduler(**THEIRS, timestep_spacing="trailing", clip_sample=False)
    wanted = theirs(scheduler, 50, start(1, torch.float32), eta=0.6, generator=generators(1)[0])
    assert_same(ours(ddim, 50, start(1, torch.float32), eta=0.6), wanted)


@pytest.mark.parametrize("steps", [25, 1000])
def test_the_ancestral_sampler_is_that_of_diffusers(steps: int) -> None:
    scheduler = DDPMScheduler(**THEIRS, variance_type="fixed_small", clip_sample=False, timestep_spacing="trailing")
    wanted = theirs(scheduler, steps, start(1, torch.float32), generator=generators(1)[0])
    assert_same(ours(ancestral, steps, start(1, torch.float32), grid="trailing"), wanted)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("steps", [1, 2, 8, 50])
def test_dpm_solver_is_that_of_diffusers(steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(**THEIRS, timestep_spacing="trailing", final_sigmas_type="zero")
    wanted = theirs(scheduler, steps, start(2, torch.float32))
    assert places(SCHEDULE, steps) == scheduler.timesteps.tolist()
    assert_same(ours(dpm_solver_pp, steps, start(2, torch.float32), grid="trailing"), wanted)


@pytest.mark.parametrize("grid", GRIDS)
def test_dpm_solver_is_algorithm_2(grid: Any) -> None:
    """A twin in NumPy, line by line: diffusers' grids are not ours but for the one above."""
    visited = places(SCHEDULE, 9, grid)
    alpha_bar = SCHEDULE.alphas_bar.numpy()[visited]
    alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    lam = np.log(alpha / sigma)

    def data(x: np.ndarray, i: int) -> np.ndarray:
        t_B = torch.full((2,), visited[i])
        return (x - sigma[i] * analytic(torch.from_numpy(x), t_B).numpy()) / alpha[i]

    x = start(2).numpy()
    queue = [data(x, 0)]
    x = sigma[1] / sigma[0] * x - alpha[1] * (np.exp(-(lam[1] - lam[0])) - 1) * queue[0]
    for i in range(2, 9):
        queue.append(data(x, i - 1))
        h = lam[i] - lam[i - 1]
        r = (lam[i - 1] - lam[i - 2]) / h
        d = (1 + 1 / (2 * r)) * queue[i - 1] - 1 / (2 * r) * queue[i - 2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (np.exp(-h) - 1) * d
    found = dpm_solver_pp(analytic, SCHEDULE, start(2), [], steps=9, grid=grid)
    np.testing.assert_allclose(found.numpy(), data(x, 8), rtol=1e-9, atol=1e-9)


# --- what must agree exactly ---


def test_ddim_with_all_its_noise_is_the_ancestral_sampler() -> None:
    """Every latent of all T steps, in float64: the coefficients are the same."""
    found = ours(ddim, 1000, start(2), eta=1.0)
    wanted = ours(ancestral, 1000, start(2))
    assert len(found) == 1000
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", [ddim, dpm_solver_pp])
@pytest.mark.parametrize("grid", GRIDS)
def test_constant_noise_is_taken_out_again(sampler: Callable[..., Tensor], grid: Any) -> None:
    """Where the network names the noise that is in a latent, whatever the latent, the guess never changes.

    So the data comes out in any number of steps, up to rounding. The first guess divides a rounding error of the latent
    by .005, and nothing takes it out again: 1e-5 in float32 is met in float64 only.
    """
    z0, noise = start(4), draw(generators(4, seed=5), SHAPE).double()
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 5e-4)):
        z = SCHEDULE.q_sample(z0, torch.full((4,), 999), noise).to(dtype)
        for steps in (1, 2, 3, 10, 77, 1000):
            found = sampler(lambda z, t: noise, SCHEDULE, z, [], steps=steps, grid=grid)
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), z0, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_is_the_first_guess(name: str) -> None:
    z = start(3)
    guess = SCHEDULE.predict_z0(z, torch.full((3,), 999), analytic(z, torch.full((3,), 999)))
    torch.testing.assert_close(SAMPLERS[name](analytic, SCHEDULE, z, generators(3), steps=1), guess)


# --- places and steps ---


def test_places_by_hand() -> None:
    chain = Schedule(10, 0.05, 0.3)
    assert places(chain, 5, "trailing") == [9, 7, 5, 3, 1]
    assert places(chain, 4, "trailing") == [9, 6, 4, 2]
    assert places(chain, 4, "even") == [9, 6, 3, 0]
    for grid in GRIDS:
        assert places(chain, 1, grid) == [9]
        assert places(chain, 10, grid) == [*range(9, -1, -1)]


def test_places_even_in_the_signal_to_noise_ratio() -> None:
    found = SCHEDULE.log_snr[places(SCHEDULE, 12, "snr")]
    gaps = found.diff()
    assert places(SCHEDULE, 12, "snr")[-1] == 0
    # The chain's own places lie .7 apart at the data's end.
    assert (gaps - gaps.mean()).abs().max() < 0.35 * (1 + 1e-6) + 1e-6


@pytest.mark.parametrize("grid", GRIDS)
def test_places_are_as_many_as_asked_for(grid: Any) -> None:
    for chain in (Schedule(60, 0.01, 0.2), Schedule(spacing="root")):
        for steps in (1, 2, 3, 7, 29, 30, 31, 49, 58, 59, 60):
            found = places(chain, steps, grid)
            assert len(found) == steps
            assert found[0] == chain.num_steps - 1
            assert min(found) >= 0
            assert all(a > b for a, b in pairwise(found))


@pytest.mark.parametrize("steps", [0, -3, 1001])
@pytest.mark.parametrize("name", SAMPLERS)
def test_steps_out_of_range_are_refused(name: str, steps: int) -> None:
    with pytest.raises(UserError, match=f"in {steps} steps: give 1 to 1000") as caught:
        SAMPLERS[name](analytic, SCHEDULE, start(1), generators(1), steps=steps)
    assert "\n" not in str(caught.value)
    check_steps(1, 1000)
    check_steps(1000, 1000)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_out_of_range_is_refused(eta: float) -> None:
    with pytest.raises(UserError, match="eta of ddim"):
        ddim(analytic, SCHEDULE, start(1), generators(1), steps=2, eta=eta)


# --- progress, cancelling, and numbers that are none ---


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_listener_hears_each_step_and_may_stop(name: str) -> None:
    heard: list[tuple[int, int]] = []
    last: list[Tensor] = []

    def listen(step: int, steps: int, z_BX: Tensor, z0_BX: Tensor) -> None:
        assert z0_BX.shape == z_BX.shape
        assert not z_BX.requires_grad
        heard.append((step, steps))
        last[:] = [z_BX, z0_BX]
        if step == stop:
            raise KeyboardInterrupt

    stop = 0
    found = SAMPLERS[name](analytic, SCHEDULE, start(2), generators(2), steps=5, on_step=listen)
    assert heard == [(i, 5) for i in range(1, 6)]
    assert torch.equal(found, last[0])
    torch.testing.assert_close(found, last[1])
    stop = 8
    heard.clear()
    with pytest.raises(KeyboardInterrupt):
        SAMPLERS[name](analytic, SCHEDULE, start(2), generators(2), steps=30, on_step=listen)
    assert len(heard) == 8


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_named(name: str, value: float) -> None:
    def breaks(z_BX: Tensor, t_B: Tensor) -> Tensor:
        return z_BX * (value if t_B[0] < 500 else 0.5)

    expected = 1 + sum(t >= 500 for t in places(SCHEDULE, 10, "even"))
    with pytest.raises(UserError, match=f"at step {expected} of 10: sample in float32, with less guidance") as caught:
        SAMPLERS[name](breaks, SCHEDULE, start(2), generators(2), steps=10, grid="even")
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_under_autocast_and_without_gradients() -> None:
    layer = torch.nn.Conv2d(3, 3, 1)

    def predict(z_BX: Tensor, t_B: Tensor) -> Tensor:
        assert t_B.dtype == torch.int64
        assert t_B.shape == (2,)
        with torch.autocast("cpu", torch.bfloat16):
            return layer(z_BX)

    found = dpm_solver_pp(predict, SCHEDULE, start(2, torch.float32), [], steps=3)
    assert found.dtype == torch.float32
    assert not found.requires_grad


def test_noise_of_another_shape_is_our_fault() -> None:
    with pytest.raises(AssertionError, match="shape"):
        ddim(lambda z, t: z[:, :1], SCHEDULE, start(2), [], steps=2)


# --- guidance ---


def conditional(z_BX: Tensor, t_B: Tensor, shift_BX: Tensor, scale_B: Tensor) -> Tensor:
    return analytic(z_BX, t_B) * scale_B.view(-1, 1, 1, 1) + shift_BX


def test_guidance_leads_away_from_no_condition_in_one_batch() -> None:
    z, t_B, sizes = start(3), torch.full((3,), 400), []
    given, null = (start(3), torch.tensor([0.5, 1.0, 2.0])), (torch.zeros(1, *SHAPE).double(), torch.ones(1))

    def predict(*arguments: Tensor) -> Tensor:
        sizes.append(len(arguments[0]))
        return conditional(*arguments)

    for weight in (0.0, 0.5, 1.0, 3.0):
        with_it, without = conditional(z, t_B, *given), analytic(z, t_B)
        found = guided(predict, given, null, weight)(z, t_B)
        torch.testing.assert_close(found, without + weight * (with_it - without))
    assert sizes == [3, 6, 3, 6]


# --- parts of a whole ---


def pictures(part: slice, name: str, predict: Predict = analytic) -> Tensor:
    noise = image_generators(7, "pictures", part)
    options = {"eta": 0.7} if name == "ddim" else {}
    return SAMPLERS[name](predict, SCHEDULE, draw(noise, SHAPE), noise, steps=12, **options)


@pytest.mark.parametrize("name", SAMPLERS)
def test_pictures_do_not_depend_on_the_batch(name: str) -> None:
    """Bit for bit, as this network treats every number by itself."""
    whole = halving(partial(pictures, name=name), 8, 8)
    assert whole.shape == (8, *SHAPE)
    assert torch.pdist(whole.flatten(1)).min() > 0.01
    for batch in (1, 3, 100):
        assert torch.equal(halving(partial(pictures, name=name), 8, batch), whole)


def test_batches_are_halved_until_they_fit(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[tuple[int, int]] = []

    def tight(z_BX: Tensor, t_B: Tensor) -> Tensor:
        # Halfway: what was drawn until then must be drawn anew.
        if len(z_BX) > 3 and t_B[0] < 500:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return analytic(z_BX, t_B)

    def sample(part: slice) -> Tensor:
        tried.append((part.start, part.stop))
        return pictures(part, "ancestral", tight)

    with caplog.at_level(logging.WARNING, "etude"):
        found = halving(sample, 11, 8)
    assert tried == [(0, 8), (0, 4), (0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 11)]
    assert [record.getMessage() for record in caplog.records] == [
        "not enough memory to sample 8 images at a time: going on with 4",
        "not enough memory to sample 4 images at a time: going on with 2",
    ]
    assert torch.equal(found, pictures(slice(0, 11), "ancestral"))


def test_what_was_made_is_kept_where_memory_gets_short_later() -> None:
    tried: list[int] = []

    def sample(part: slice) -> Tensor:
        tried.append(part.start)
        if part.start >= 4 and part.stop - part.start > 1:
            raise MemoryError
        return torch.arange(part.start, part.stop)

    assert halving(sample, 6, 4).tolist() == [*range(6)]
    assert tried == [0, 4, 4, 5]


def test_the_cpus_own_error_counts(caplog: pytest.LogCaptureFixture) -> None:
    def sample(part: slice) -> Tensor:
        if part.stop - part.start > 1:
            torch.empty(1 << 46)
        return torch.ones(1)

    assert len(halving(sample, 2, 2)) == 2
    assert len(caplog.records) == 1


def test_one_image_that_does_not_fit_is_named() -> None:
    def sample(part: slice) -> Tensor:
        raise RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")

    with pytest.raises(UserError, match="not enough memory to sample a single image: choose") as caught:
        halving(sample, 5, 4)
    assert "\n" not in str(caught.value)


def test_other_faults_pass_through() -> None:
    def sample(part: slice) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        halving(sample, 5, 4)


# --- a sampler of one's own ---

OWN = """
import torch

def euler(predict, schedule, z, generators, *, steps, on_step=None):
    for step in range(steps):
        t = schedule.num_steps - 1 - step * schedule.num_steps // steps
        t_B = torch.full((len(z),), t)
        z0 = schedule.predict_z0(z, t_B, predict(z, t_B))
        last = step == steps - 1
        z = z0 if last else schedule.q_sample(z0, t_B - schedule.num_steps // steps, predict(z, t_B))
        if on_step:
            on_step(step + 1, steps, z, z0)
    return z

def flat(predict, schedule, z, generators, *, steps, on_step=None):
    return z.flatten(1)

def pair(predict, schedule, z, generators, *, steps, on_step=None):
    return z, z

def broken(predict, schedule, z, generators, *, steps, on_step=None):
    return z / 0

def deaf(predict, schedule, z, generators, *, steps):
    return z

def narrow(predict, schedule, z, generators, *, steps, on_step=None):
    return predict(z, torch.tensor([3]))

number = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    return path


def test_ones_own_sampler_is_taken(own: Path) -> None:
    sampler = make_sampler(f"{own}:euler")
    found = sampler(analytic, SCHEDULE, start(2), generators(2), steps=10)
    torch.testing.assert_close(found, ddim(analytic, SCHEDULE, start(2), [], steps=10))
    assert all(make_sampler(name) is SAMPLERS[name] for name in SAMPLERS)


@pytest.mark.parametrize(("name", "words"), [
    ("flat", r"must map latents .* to \[2, 4, 2, 2\], not \[2, 16\]"),
    ("pair", "not \\("),
    ("broken", "not finite"),
    ("deaf", "failed on latents .*: TypeError: .*on_step"),
    ("narrow", r"places \[2\], not \[2, 4, 2, 2\] and \[1\]"),
    ("number", "failed on latents .*: TypeError"),
    ("eulr", "has no 'eulr'; did you mean 'euler'"),
])  # fmt: skip
def test_ones_own_sampler_is_refused_with_the_reason(own: Path, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        make_sampler(f"{own}:{name}")
    assert "\n" not in str(caught.value)


def test_no_sampler_of_that_name() -> None:
    with pytest.raises(UserError, match="no sampler 'ddmi'; did you mean 'ddim'"):
        make_sampler("ddmi")
