r"""The search: how alpha learns, when it is stopped, what is watched (Liu et al. 2019, section 2.3).

Alpha is to minimise the validation loss of the weights that training gives for it,
$\mathcal L_\text{val}(w^*(\alpha), \alpha)$. First order takes the weights as they are. Second order takes them one
step on, $w' = w - \xi \nabla_w \mathcal L_\text{train}(w, \alpha)$, whose gradient by alpha is (eq. 7)

$$\nabla_\alpha \mathcal L_\text{val}(w', \alpha)
- \xi \nabla^2_{\alpha, w} \mathcal L_\text{train}(w, \alpha) \nabla_{w'} \mathcal L_\text{val}(w', \alpha)$$

and whose second term is a difference of two gradients (eq. 8): with $w^\pm = w \pm \epsilon
\nabla_{w'} \mathcal L_\text{val}(w', \alpha)$ it is $\xi$ times

$$\frac{\nabla_\alpha \mathcal L_\text{train}(w^+, \alpha) - \nabla_\alpha \mathcal L_\text{train}(w^-, \alpha)}
{2 \epsilon}$$
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor, nn

from etude.core.errors import UserError
from etude.nn.plugin import resolve
from etude.nn.user_part import tried

DIFFERENCE = 0.01
"""Length of the step of a difference of two gradients by the weights (section 2.3, footnote 1)."""
HESSIAN_STEP = 0.01
"""Length of the step of a difference of two gradients by alpha."""
EIGENVALUE_STEPS = 10
"""Rounds of Lanczos' method."""
WINDOW, RISE = 5, 0.75
"""Zela et al. 2020, section 5.1: the eigenvalue, averaged over so many evaluations, may not have been below such a
share of its present value that many evaluations ago."""

Gradient = Callable[[Literal["train", "val"], Sequence[Tensor]], Sequence[Tensor]]
"""The gradient of the loss of a batch of either half, by some parameters as they are now."""
Row = Mapping[str, float]
Rule = Callable[[Sequence[Row]], int | None]
"""A rule takes the evaluations so far; it returns None to go on, or how many evaluations ago the kept cell was."""


def first_order(gradient: Gradient, architecture: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradient of the validation loss by the architecture, at the weights as they are."""
    return gradient("val", architecture)


@torch.no_grad()
def second_order(
    gradient: Gradient, architecture: Sequence[Tensor], weights: Sequence[Tensor], *, rate: float,
    momenta: Sequence[Tensor | None], momentum: float, weight_decay: float,
) -> list[Tensor]:  # fmt: skip
    """The gradient of the validation loss by the architecture, through one step of SGD.

    The weights are moved and put back.

    Args:
        gradient: the gradient of either half's loss.
        architecture: alpha, and beta where there is one.
        weights: all other parameters.
        rate: xi, the learning rate of SGD, of which ``momentum`` and ``weight_decay`` are too.
        momenta: SGD's momentum buffer of each weight; None where there is none yet.
    """
    before = [weight.clone() for weight in weights]
    for weight, of_loss, kept in zip(weights, gradient("train", weights), momenta, strict=True):
        step = of_loss + weight_decay * weight
        weight.sub_(step if kept is None else step + momentum * kept, alpha=rate)
    of_val = gradient("val", [*architecture, *weights])
    by_alpha, by_weights = of_val[: len(architecture)], of_val[len(architecture) :]
    length = torch.sqrt(sum((part.double().square().sum() for part in by_weights), torch.zeros(()).double()))
    epsilon = (DIFFERENCE / length.clamp(min=1e-12)).to(by_weights[0].dtype)
    sides: list[Sequence[Tensor]] = []
    for sign in (1, -1):
        for weight, kept, direction in zip(weights, before, by_weights, strict=True):
            weight.copy_(kept + sign * epsilon * direction)
        sides.append(gradient("train", architecture))
    for weight, kept in zip(weights, before, strict=True):
        weight.copy_(kept)
    return [
        here - rate * (plus - minus) / (2 * epsilon) for here, plus, minus in zip(by_alpha, *sides, strict=True)
    ]  # fmt: skip


@torch.no_grad()
def largest_eigenvalue(gradient: Callable[[], Sequence[Tensor]], parameters: Sequence[Tensor], start: Tensor) -> float:
    """The largest eigenvalue of a loss's Hessian, by Lanczos' method.

    Zela et al. 2020, section 4: where it is large by alpha, a mixture loses much when it is cut down to one operation.
    Power iteration would find the one of largest size, which may be negative.

    Args:
        gradient: the gradient of the loss by ``parameters`` as they are now; the same function each time.
        parameters: alpha, and beta where there is one; they are moved and put back.
        start: the first direction, one value for each of all parameters' values.
    """
    before = [parameter.clone() for parameter in parameters]
    sizes = [part.numel() for part in before]

    def product(direction: Tensor) -> Tensor:
        """The Hessian times a direction of length 1, as a difference of two gradients."""
        sides: list[Tensor] = []
        for sign in (HESSIAN_STEP, -HESSIAN_STEP):
            for parameter, kept, part in zip(parameters, before, direction.split(sizes), strict=True):
                parameter.copy_(kept + sign * part.view_as(kept))
            sides.append(torch.cat([part.flatten() for part in gradient()]).double().cpu())
        return (sides[0] - sides[1]) / (2 * HESSIAN_STEP)

    direction = start.double().cpu() / start.double().cpu().norm()
    basis, products = [direction], [product(direction.to(before[0]))]
    while len(basis) < min(EIGENVALUE_STEPS, sum(sizes)):
        known = torch.stack(basis)
        rest = products[-1]
        for _ in range(2):
            # Once is not enough in floating point.
            rest = rest - known.T @ (known @ rest)
        if not rest.norm() > 1e-9 * products[0].norm():
            break
        basis.append(rest / rest.norm())
        products.append(product(basis[-1].to(before[0])))
    for parameter, kept in zip(parameters, before, strict=True):
        parameter.copy_(kept)
    small = torch.stack(basis) @ torch.stack(products).T
    return float(torch.linalg.eigvalsh((small + small.T) / 2)[-1])


@contextmanager
def by_these(model: nn.Module, parameters: Sequence[Tensor]) -> Iterator[None]:
    """Gradients are by these parameters of the model alone: nothing is kept or computed for the others."""
    others = set(model.parameters()).difference(parameters)
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Running statistics are put back to what they were, whatever the forward passes within do to them."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])


def entropy(weights_EO: Tensor) -> float:
    """The mean over edges of the entropy of their operations' weights, in nats: from 0 to the logarithm of 8."""
    weights_EO = weights_EO.detach().double()
    return float(-torch.special.xlogy(weights_EO, weights_EO).sum(1).mean())


# --- when to stop ---


def eigenvalue_rises(rows: Sequence[Row]) -> int | None:
    """Stop once the averaged eigenvalue has risen by a third in `WINDOW` evaluations, and go back to before (Zela et
    al. 2020, section 5.1)."""
    values = [row["eigenvalue"] for row in rows]
    if len(values) <= WINDOW:
        return None
    now, then = fmean(values[-WINDOW:]), fmean(values[:-WINDOW][-WINDOW:])
    return WINDOW if now > 0 and then / now < RISE else None


MEASURED = {
    "step": 1.0, "loss": 2.0, "accuracy": 10.0, "alpha/loss": 2.0, "alpha/accuracy": 10.0, "skips": 0.0,
    "reduction_skips": 0.0, "entropy": 2.0, "reduction_entropy": 2.0,
}  # fmt: skip
"""The quantities of every evaluation, with values as in an early one."""


def make_rule(name: str, most_skips: int, *, eigenvalue: bool = False) -> Rule:
    """A rule by its name, or a user's own.

    Args:
        name: none; skips, which stops at so many in the normal cell (Liang et al. 2019, "DARTS+", criterion 1);
            eigenvalue; or path/to/file.py:Name.
        most_skips: the skips at which the rule ``skips`` stops.
        eigenvalue: whether evaluations measure the largest eigenvalue, so that a user's own rule may ask for it.

    Raises:
        UserError: no such rule, or one that answers something else than None or a number when it is tried.
    """
    builtin: dict[str, Rule] = {
        "none": lambda rows: None,
        "skips": lambda rows: 0 if rows[-1]["skips"] >= most_skips else None,
        "eigenvalue": eigenvalue_rises,
    }
    rule: Any = resolve(name, builtin, "rule to stop by")
    if name in builtin:
        return rule

    def own(rows: Sequence[Row]) -> int | None:
        answer = tried(f"rule {name}", f"{len(rows)} rows", lambda: rule(rows))
        # False is a number to Python, and would stop at once.
        number = isinstance(answer, int) and not isinstance(answer, bool)
        if answer is None or (number and 0 <= answer < max(len(rows), 1)):
            return answer
        raise UserError(f"the rule {name} must return None or how many evaluations to go back, not {answer!r}")

    own([MEASURED | ({"eigenvalue": 0.1} if eigenvalue else {})])
    return own
