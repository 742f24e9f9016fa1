"""The chain by hand, by composing its steps, and beside diffusers'."""

import math

import pytest
import torch
from diffusers import DDPMScheduler  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor

from etude.studies.slotdiffusion.diffusion import Level, Schedule, epsilon_loss, posterior

SPACINGS = {"linear": "linear", "root": "scaled_linear"}
"""Ours, and diffusers' name for it."""


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- the tables ---


def test_three_steps_by_hand() -> None:
    schedule = Schedule(3, 0.1, 0.3)
    expected = {
        "betas": [0.1, 0.2, 0.3],
        "alphas_bar": [0.9, 0.72, 0.504],
        "log_snr": [math.log(9), math.log(0.72 / 0.28), math.log(0.504 / 0.496)],
    }
    for name, values in expected.items():
        wanted = torch.tensor(values, dtype=torch.float64)
        torch.testing.assert_close(getattr(schedule, name), wanted, rtol=1e-12, atol=1e-15)
    # (1 - .9) / (1 - .72) * .2 and (1 - .72) / (1 - .504) * .3
    found = [posterior(schedule.level(t), schedule.level(t - 1)).variance for t in range(3)]
    assert found == pytest.approx([0, 1 / 14, 0.084 / 0.496])
    assert schedule.level(-1) == (1, 0)
    assert schedule.level(1) == pytest.approx((math.sqrt(0.72), math.sqrt(0.28)), rel=1e-12)
    assert schedule.level(1).half_log_snr == pytest.approx(math.log(0.72 / 0.28) / 2, rel=1e-12)
    assert schedule.level(-1).half_log_snr == math.inf


def test_the_defaults_are_those_of_latent_diffusion() -> None:
    schedule = Schedule()
    assert (schedule.num_steps, len(schedule.betas)) == (1000, 1000)
    assert schedule.betas[[0, -1]].tolist() == pytest.approx([0.0015, 0.0195], rel=1e-12)
    # The product of a thousand factors, as a sum of logarithms of exact fractions.
    logs = (math.log1p(-(0.0015 + 0.018 * t / 999)) for t in range(1000))
    assert schedule.alphas_bar[-1].item() == pytest.approx(math.exp(math.fsum(logs)), rel=1e-12)
    assert (schedule.alphas_bar.diff() < 0).all()


def test_roots_are_spaced_evenly() -> None:
    roots = Schedule(spacing="root").betas.sqrt()
    torch.testing.assert_close(roots.diff(), (roots[-1] - roots[0]).expand(999) / 999)
    assert (roots[[0, -1]] ** 2).tolist() == pytest.approx([0.0015, 0.0195], rel=1e-12)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_the_tables_are_those_of_diffusers(spacing: str) -> None:
    """Theirs are float32, and products of a thousand such factors."""
    ours = Schedule(spacing=spacing)  # pyright: ignore[reportArgumentType]
    theirs = DDPMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule=SPACINGS[spacing])
    torch.testing.assert_close(ours.betas.float(), theirs.betas, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.alphas_bar.float(), theirs.alphas_cumprod, rtol=2e-5, atol=0)
    variance = torch.stack([theirs._get_variance(t) for t in range(1, 1000)])
    # One minus a float32 near one.
    found = torch.tensor([posterior(ours.level(t), ours.level(t - 1)).variance for t in range(1, 1000)])
    torch.testing.assert_close(found, variance, rtol=2e-4, atol=0)
    z0, noise, t_B = draw(5, 3, 4, 4), draw(5, 3, 4, 4, seed=1), torch.tensor([0, 1, 250, 700, 999])
    wanted = theirs.add_noise(z0.float(), noise.float(), t_B)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(ours.q_sample(z0.float(), t_B, noise.float()), wanted, rtol=1e-5, atol=1e-5)


# --- to noise and back ---


def test_noise_by_hand() -> None:
    schedule, t_B = Schedule(3, 0.1, 0.3), torch.tensor([0, 2])
    z0, noise = torch.tensor([[2.0, -1.0], [2.0, -1.0]]), torch.tensor([[1.0, 1.0], [0.5, 0.0]])
    a, b = math.sqrt(0.504), math.sqrt(0.496)
    wanted = [[2 * math.sqrt(0.9) + math.sqrt(0.1), -math.sqrt(0.9) + math.sqrt(0.1)], [2 * a + 0.5 * b, -a]]
    torch.testing.assert_close(schedule.q_sample(z0, t_B, noise), torch.tensor(wanted))


def test_all_single_steps_together_are_the_closed_form() -> None:
    """Mean and variance of eq. 2, taken T times, at every place."""
    schedule, mean, variance = Schedule(), 1.0, 0.0
    one, place = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    for t, beta in enumerate(schedule.betas.tolist()):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        assert schedule.q_sample(one, place + t, 0 * one).item() == pytest.approx(mean, rel=1e-10)
        assert schedule.q_sample(0 * one, place + t, one).item() ** 2 == pytest.approx(variance, rel=1e-10)


def test_data_and_noise_are_found_again() -> None:
    schedule, t_B = Schedule(), torch.arange(0, 1000, 37)
    z0, noise = draw(len(t_B), 3, 2, 2), draw(len(t_B), 3, 2, 2, seed=1)
    z = schedule.q_sample(z0, t_B, noise)
    torch.testing.assert_close(schedule.predict_z0(z, t_B, noise), z0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(schedule.predict_noise(z, t_B, z0), noise, rtol=1e-9, atol=1e-9)


def test_velocity_is_that_of_diffusers_and_gives_the_noise_back() -> None:
    schedule, t_B = Schedule(), torch.arange(0, 1000, 37)
    z0, noise = draw(len(t_B), 3, 2, 2), draw(len(t_B), 3, 2, 2, seed=1)
    velocity = schedule.velocity(z0, t_B, noise)
    theirs = DDPMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="linear")
    torch.testing.assert_close(velocity, theirs.get_velocity(z0, noise, t_B), rtol=1e-5, atol=1e-6)  # pyright: ignore
    z = schedule.q_sample(z0, t_B, noise)
    torch.testing.assert_close(schedule.noise_of_velocity(z, t_B, velocity), noise, rtol=1e-9, atol=1e-9)


def test_half_precision_is_computed_in_float32() -> None:
    schedule, t_B = Schedule(), torch.tensor([3, 999])
    z0, noise = draw(2, 4).bfloat16(), draw(2, 4, seed=1).bfloat16()
    z = schedule.q_sample(z0, t_B, noise)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, schedule.q_sample(z0.float(), t_B, noise.float()))


@pytest.mark.parametrize(("now", "then"), [(700, 699), (700, 300), (999, 0), (0, -1)])
def test_the_posterior_is_bayes(now: int, then: int) -> None:
    """Precisions add up: that of the earlier latent given the data, and that of the later one given the earlier."""
    schedule = Schedule()
    early, late = schedule.level(then), schedule.level(now)
    found = posterior(late, early)
    beta, shrink = 1 - (late.signal / early.signal) ** 2, late.signal / early.signal
    assert beta == pytest.approx(1 - shrink**2)
    if then < 0:
        assert found == pytest.approx((1, 0, 0))
        return
    precision = 1 / early.noise**2 + shrink**2 / beta
    wanted = (early.signal / early.noise**2 / precision, shrink / beta / precision, 1 / precision)
    assert found == pytest.approx(wanted, rel=1e-9)
    if then == now - 1:
        assert beta == pytest.approx(schedule.betas[now].item(), rel=1e-9)


def test_a_level_without_data_is_no_place() -> None:
    with pytest.raises(AssertionError, match="place"):
        Schedule(3).level(3)
    assert Level(1.0, 1.0).half_log_snr == 0


def test_the_loss_is_the_mean_square() -> None:
    predicted, noise = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert epsilon_loss(predicted, noise).item() == 2.5
    assert epsilon_loss(predicted.half(), noise).dtype == torch.float32
    # Squares that half precision does not hold.
    assert epsilon_loss(300 * torch.ones(1, 1).half(), torch.zeros(1, 1)).item() == 90_000
    x = draw(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: epsilon_loss(x, draw(2, 3, seed=1)), (x,))
