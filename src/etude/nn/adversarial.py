r"""Adversarial networks: losses, initial weights, spectral normalisation, one guarded step of both networks.

The discriminator gives one logit an image or patch, $D$. The losses:

- vanilla (Goodfellow et al. 2014): $-\log \sigma(D(x)) - \log(1 - \sigma(D(G(z))))$ for the discriminator, and the
  non-saturating $-\log \sigma(D(G(z)))$ for the generator;
- lsgan (Mao et al. 2017): $(D(x) - 1)^2 + D(G(z))^2$ and $(D(G(z)) - 1)^2$.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from etude.core.runtime import Runtime

T = TypeVar("T")
GanLoss = Literal["vanilla", "lsgan"]


def discriminator_loss(kind: GanLoss, real: Tensor, fake: Tensor, smoothing: float = 0.0) -> Tensor:
    """The sum of both halves, each a mean over all logits, of any shape.

    The target of real images is 1 less ``smoothing`` (one-sided; Salimans et al. 2016, section 3.4).
    """
    return _towards(kind, real, 1.0 - smoothing) + _towards(kind, fake, 0.0)


def generator_loss(kind: GanLoss, fake: Tensor) -> Tensor:
    """The generator's loss: the distance of generated images from being taken for real."""
    return _towards(kind, fake, 1.0)


def _towards(kind: GanLoss, logits: Tensor, target: float) -> Tensor:
    # Half precision has no room for the logarithm of a sigmoid.
    logits = logits.float()
    if kind == "lsgan":
        return (logits - target).square().mean()
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def r1_penalty(logits_N: Tensor, images_NCHW: Tensor) -> Tensor:
    r"""$\mathbb E \lVert \nabla_x D(x) \rVert^2$ over real images (Mescheder et al. 2018, equation 9, no factor).

    The logits, one for each image or patch, were computed of the images, which have ``requires_grad``.
    """
    (gradient,) = torch.autograd.grad(logits_N.sum(), images_NCHW, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


@torch.no_grad()
def start_normal(module: nn.Module) -> None:
    """Weights from N(0, 0.02), scales of norms from N(1, 0.02), the rest zero (Radford et al. 2016, section 4)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            part.weight.normal_(0, 0.02)
            if part.bias is not None:
                part.bias.zero_()
        elif isinstance(part, nn.BatchNorm2d) and part.affine:
            part.weight.normal_(1, 0.02)
            part.bias.zero_()


PATIENCE = 50
"""Steps in a row that may be left out before a run ends."""


class FiniteSteps:
    """Optimiser steps that leave a network as it was where a gradient is not finite.

    One such step of two adversaries is no reason to end a run; fifty in a row are. A training step calls `begin`,
    `update` for each network and `end`. The optimisers are as the runtime prepared them.
    """

    def __init__(self, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> None:
        self._modules, self._optimizers = dict(modules), dict(optimizers)
        self._buffers = [buffer for module in modules.values() for buffer in module.buffers()]
        self._before: list[Tensor] = []
        device = next(parameter.device for module in modules.values() for parameter in module.parameters())
        # On the device: whether a step is left out is decided where its gradient is, and nothing waits to hear of it.
        self._now, self._skipped, self._in_a_row = (torch.zeros((), dtype=torch.int64, device=device) for _ in range(3))

    @property
    def skipped(self) -> int:
        """Updates of a network that were left out, from the first step on. Waits for the device."""
        return int(self._skipped)

    @property
    def left_out(self) -> Tensor:
        """A boolean on the device: the last step left a network as it was."""
        return self._in_a_row > 0

    def state(self) -> dict[str, int]:
        """The updates that were left out, and the steps in a row with one: an exact resume needs both."""
        return {"skipped": self.skipped, "in_a_row": int(self._in_a_row)}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Take back what `state` gave."""
        self._skipped.fill_(state["skipped"])
        self._in_a_row.fill_(state["in_a_row"])

    def begin(self) -> None:
        """Before a training step: running statistics are noted."""
        self._before, self._now = [buffer.clone() for buffer in self._buffers], torch.zeros_like(self._now)

    def update(self, name: str) -> None:
        """One network's optimiser step, unless a gradient is not finite; its gradients are cleared."""
        optimizer: Any = self._optimizers[name]
        if getattr(optimizer, "scaler", None) is not None:
            # Under fp16 the loss scale makes gradients infinite; the scaler finds them itself, and then lowers it.
            optimizer.step()
            left_out = torch.full_like(self._now, int(optimizer.step_was_skipped))
        else:
            gradients = [p.grad for p in self._modules[name].parameters() if p.grad is not None]
            left_out = ~nn.utils.get_total_norm(gradients).isfinite()
            plain = getattr(optimizer, "optimizer", optimizer)
            if all(group.get("fused") for group in plain.param_groups):
                # What a loss scaler tells a fused optimiser: its kernel then changes nothing, and nobody waits.
                plain.found_inf = left_out.float()
                optimizer.step()
                plain.found_inf = None
            elif not left_out:
                optimizer.step()
        self._now = self._now + left_out
        self._skipped = self._skipped + left_out
        optimizer.zero_grad()

    def end(self, metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """After a training step: what it logs, with ``skipped``, the networks that were left as they were.

        The running statistics of a step that was left out are put back, and metrics of it that are not finite become
        zero: the loop ends a run at the first loss that is not. After `PATIENCE` such steps in a row the loss is nan.
        """
        left_out = self._now > 0
        for buffer, before in zip(self._buffers, self._before, strict=True):
            torch.where(left_out, before, buffer, out=buffer)
        self._in_a_row = torch.where(left_out, self._in_a_row + 1, 0)
        patient = self._in_a_row < PATIENCE
        # The loss may be finite where its gradient is not: the loop must see that nothing is learned.
        ended = {name: torch.full_like(v, torch.nan) if name == "loss" else v for name, v in metrics.items()}
        logged = {name: torch.where(patient, v.nan_to_num(0.0, 0.0, 0.0), ended[name]) for name, v in metrics.items()}
        return logged | {"skipped": self._now.to(next(iter(logged.values())).dtype)}


class Adversaries(FiniteSteps):
    """A generator and a discriminator with an Adam each, which learn in turn (Goodfellow et al. 2014, algorithm 1)."""

    def __init__(
        self, runtime: Runtime, generator: nn.Module, discriminator: nn.Module, *, lr: float, beta1: float
    ) -> None:
        self.runtime, self.generator, self.discriminator = runtime, generator, discriminator
        self.networks: dict[str, nn.Module] = {"generator": generator, "discriminator": discriminator}
        self.shared = {name: runtime.prepare(net, channels_last=True) for name, net in self.networks.items()}
        self.optimizers: dict[str, Optimizer] = {
            name: torch.optim.Adam(net.parameters(), lr=lr, betas=(beta1, 0.999), fused=True)
            for name, net in self.networks.items()
        }
        super().__init__(
            self.networks, {name: runtime.prepare_optimizer(adam) for name, adam in self.optimizers.items()}
        )

    def step(
        self,
        parts: int,
        make: Callable[[int, nn.Module], T],
        judge: Callable[[int, T], Mapping[str, Tensor]] | None,
        deceive: Callable[[int, T], Mapping[str, Tensor]],
    ) -> dict[str, Tensor]:
        """One step of the discriminator and one of the generator; `end` then takes what is logged.

        Args:
            parts: how many parts the batch has, over all processes.
            make: for a part of the batch and the generator to call, the generated pictures with what belongs to them.
            judge: the discriminator's scalars of a part, ``loss`` among them, which detaches what was made; None: it
                does not learn.
            deceive: the generator's.

        Returns:
            The mean of each scalar over the parts; ``loss`` is the generator's.
        """
        for network in self.networks.values():
            network.train()
        self.begin()
        made: dict[int, T] = {}

        def judged(part: int) -> Mapping[str, Tensor]:
            assert judge is not None
            # A batch of one part makes its pictures once for both networks. With more, the running statistics change
            # between the parts, and a graph that is kept would be stale.
            if parts == 1:
                made[part] = make(part, self.shared["generator"])
                return judge(part, made[part])
            with torch.no_grad():
                fresh = make(part, self.generator)
            return judge(part, fresh)

        def deceived(part: int) -> Mapping[str, Tensor]:
            return deceive(part, made.pop(part) if part in made else make(part, self.shared["generator"]))

        means: dict[str, Tensor] = {}
        if judge is not None:
            means = self.runtime.accumulate(judged, parts, self.shared["discriminator"])
            self.update("discriminator")
        # The discriminator wants no gradient here; `deceive` calls it without DDP, which would wait for one.
        self.discriminator.requires_grad_(False)
        means |= self.runtime.accumulate(deceived, parts, self.shared["generator"])
        self.discriminator.requires_grad_(True)
        self.update("generator")
        return means


class SpectralNorm(nn.Module):
    """Divides a weight ``[outputs, ...]`` by its largest singular value (Miyato et al. 2018, algorithm 1).

    The value comes from one step of power iteration a forward pass in training, on a vector that is kept.
    """

    u_O: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        start_O = torch.randn(len(weight), dtype=weight.dtype, device=weight.device)
        self.register_buffer("u_O", functional.normalize(start_O, dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        flat_OI = weight.flatten(1)
        with torch.no_grad():
            v_I = functional.normalize(flat_OI.T @ self.u_O, dim=0)
            u_O = functional.normalize(flat_OI @ v_I, dim=0)
            if self.training:
                # The graph of an earlier pass may still hold the old vector.
                self.u_O.copy_(u_O)
        return weight / (u_O.clone() @ flat_OI @ v_I)


def spectral_norm(layer: nn.Module) -> nn.Module:
    """The layer with its weight normalised at every use."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    parametrize.register_parametrization(layer, "weight", SpectralNorm(weight.detach()), unsafe=True)
    return layer
