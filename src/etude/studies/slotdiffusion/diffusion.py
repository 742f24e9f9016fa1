r"""The chain that turns latents into noise, and what a network learns of it.

Ho et al. 2020, "Denoising diffusion probabilistic models". T steps shrink a latent and add noise; with
$\alpha_t = 1 - \beta_t$ and $\bar\alpha_t = \prod_{s \le t} \alpha_s$ the place $t$ is reached at once (eq. 2 and 4):

$$q(z_t \mid z_{t-1}) = N(\sqrt{\alpha_t} \, z_{t-1}, \beta_t), \qquad
z_t = \sqrt{\bar\alpha_t} \, z_0 + \sqrt{1 - \bar\alpha_t} \, \epsilon, \quad \epsilon \sim N(0, 1)$$

The way back is a normal distribution too, once $z_0$ is known (eq. 6 and 7), and the network learns $\epsilon$, from
which $z_0$ follows (eq. 14).

The paper counts places from 1 to T and calls the data 0. Here, as in the network's embedding, t runs from 0 to T - 1,
and the data is -1.

Shape suffixes: B images, X all axes of one latent, T places of the chain.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Spacing = Literal["linear", "root"]


class Level(NamedTuple):
    r"""The shares of data and noise in a latent: $z = signal \cdot z_0 + noise \cdot \epsilon$."""

    signal: float
    noise: float

    @property
    def half_log_snr(self) -> float:
        r"""$\lambda = \log(signal / noise)$; infinite for the data."""
        return math.log(self.signal / self.noise) if self.noise else math.inf


class Posterior(NamedTuple):
    """The normal distribution of an earlier latent: mean ``data * z_0 + latent * z_t``, and its variance."""

    data: float
    latent: float
    variance: float


def posterior(now: Level, then: Level) -> Posterior:
    r"""$q(z_s \mid z_t, z_0)$ for $s < t$: eq. 6 and 7 of Ho et al. 2020.

    With $\beta = 1 - \bar\alpha_t / \bar\alpha_s$, which is $\beta_t$ for neighbours, and is what Nichol and Dhariwal
    2021 (section 4) take for places further apart:

    $$\tilde\mu = \frac{\sqrt{\bar\alpha_s} \, \beta}{1 - \bar\alpha_t} z_0
    + \frac{\sqrt{1 - \beta} \, (1 - \bar\alpha_s)}{1 - \bar\alpha_t} z_t, \qquad
    \tilde\beta = \frac{1 - \bar\alpha_s}{1 - \bar\alpha_t} \beta$$
    """
    beta, left = 1 - (now.signal / then.signal) ** 2, (then.noise / now.noise) ** 2
    return Posterior(then.signal * beta / now.noise**2, now.signal / then.signal * left, left * beta)


@dataclass(frozen=True)
class Schedule:
    r"""The noise that each of T steps of the chain adds, $\beta$ from the first to the last.

    Evenly spaced between them is with ``linear`` $\beta$ itself, as in Ho et al. 2020 (section 4), and with ``root``
    $\sqrt\beta$, which is what the code of Rombach et al. 2022 (latent diffusion), and what was made of it, means by
    "linear". All tables are float64 ``[T]``, on the CPU.
    """

    num_steps: int = 1000
    first: float = 0.0015
    last: float = 0.0195
    spacing: Spacing = "linear"

    @cached_property
    def betas(self) -> Tensor:
        r"""$\beta_t$."""
        power = 0.5 if self.spacing == "root" else 1.0
        return torch.linspace(self.first**power, self.last**power, self.num_steps, dtype=torch.float64) ** (1 / power)

    @cached_property
    def alphas_bar(self) -> Tensor:
        r"""$\bar\alpha_t$: the share of the data's variance that is left."""
        return (1 - self.betas).cumprod(0)

    @cached_property
    def log_snr(self) -> Tensor:
        r"""$\log(\bar\alpha_t / (1 - \bar\alpha_t))$, natural; twice the $\lambda$ of `Level`."""
        return self.alphas_bar.log() - (-self.alphas_bar).log1p()

    def level(self, t: int) -> Level:
        """The level of a place; -1 is the data."""
        assert -1 <= t < self.num_steps, "a place of the chain"
        if t < 0:
            return Level(1.0, 0.0)
        alpha_bar = self.alphas_bar[t].item()
        return Level(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))

    def _levels(self, t_B: Tensor, like_BX: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise of each image ``[B, 1, ...]``, in float32 at least."""
        levels_2B = _tables(self, torch.promote_types(like_BX.dtype, torch.float32), like_BX.device)[:, t_B]
        signal, noise = levels_2B.view(2, -1, *[1] * (like_BX.ndim - 1))
        return signal, noise

    def q_sample(self, z0_BX: Tensor, t_B: Tensor, noise_BX: Tensor) -> Tensor:
        r"""$z_t$ of the data, given standard normal noise and each image's place, int64 from 0 to T - 1: eq. 4."""
        signal, noise = self._levels(t_B, z0_BX)
        return signal * z0_BX + noise * noise_BX

    def predict_z0(self, z_BX: Tensor, t_B: Tensor, noise_BX: Tensor) -> Tensor:
        r"""The data, if ``noise_BX`` is what was added: $(z_t - \sqrt{1 - \bar\alpha_t} \epsilon) /
        \sqrt{\bar\alpha_t}$."""
        signal, noise = self._levels(t_B, z_BX)
        return (z_BX - noise * noise_BX) / signal

    def predict_noise(self, z_BX: Tensor, t_B: Tensor, z0_BX: Tensor) -> Tensor:
        """The noise that was added, if ``z0_BX`` is the data; the inverse of `predict_z0`."""
        signal, noise = self._levels(t_B, z_BX)
        return (z_BX - signal * z0_BX) / noise

    def velocity(self, z0_BX: Tensor, t_B: Tensor, noise_BX: Tensor) -> Tensor:
        r"""$v = \sqrt{\bar\alpha_t} \epsilon - \sqrt{1 - \bar\alpha_t} z_0$ (Salimans and Ho 2022, appendix D)."""
        signal, noise = self._levels(t_B, z0_BX)
        return signal * noise_BX - noise * z0_BX

    def noise_of_velocity(self, z_BX: Tensor, t_B: Tensor, velocity_BX: Tensor) -> Tensor:
        """The noise that was added to a latent of a velocity."""
        signal, noise = self._levels(t_B, z_BX)
        return signal * velocity_BX + noise * z_BX


@lru_cache(maxsize=8)
def _tables(schedule: Schedule, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Signal and noise of every place ``[2, T]``: made once, for every training step reads them."""
    levels_2T = torch.stack([schedule.alphas_bar.sqrt(), (1 - schedule.alphas_bar).sqrt()])
    # Rounded first: not every device has float64.
    return levels_2T.to(dtype).to(device)


def epsilon_loss(predicted_BX: Tensor, noise_BX: Tensor) -> Tensor:
    """Mean squared error of the predicted noise, or velocity, over all values, in float32 at least: eq. 14 of Ho et al.
    2020."""
    dtype = torch.promote_types(predicted_BX.dtype, torch.float32)
    return functional.mse_loss(predicted_BX.to(dtype), noise_BX.to(dtype))
