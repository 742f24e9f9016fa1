"""Scores of a network that is not trained, said to foretell how well it trains.

Shape suffixes: B images, C channels, H W pixels.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from etude.studies.darts.cell_task import entropy_loss


def naswot(network: nn.Module, x_BCHW: Tensor, labels_B: Tensor) -> float:
    r"""The logarithm of the determinant of the kernel of activation codes (Mellor et al. 2021, eq. 2).

    A picture's code is which rectified units it makes positive; the kernel counts the units that two pictures have
    alike, $K_{ij} = N - d_H(c_i, c_j)$. Where two pictures have one code it is singular: minus infinity.
    """
    kernel_BB = torch.zeros(len(x_BCHW), len(x_BCHW), dtype=torch.float64)

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        code_BU = (output.detach() > 0).flatten(1).double().cpu()
        kernel_BB.add_(code_BU @ code_BU.T + (1 - code_BU) @ (1 - code_BU).T)

    hooks = [module.register_forward_hook(count) for module in network.modules() if isinstance(module, nn.ReLU)]
    try:
        with torch.no_grad():
            network.train()(x_BCHW)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.linalg.slogdet(kernel_BB)[1].item()


def synflow(network: nn.Module, x_BCHW: Tensor, labels_B: Tensor) -> float:
    r"""The logarithm of $\sum_\theta |\theta \, \partial R / \partial \theta|$, where R is the sum of the outputs of a
    picture of ones through the absolute weights (Tanaka et al. 2020, eq. 1), norms left out.

    The network is in float64 and evaluation afterwards, its weights as they were.
    """
    network = network.double().eval()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    ones = torch.ones_like(x_BCHW[:1], dtype=torch.float64)
    # Norms with the statistics that they begin with are the identity, but for epsilon.
    answered = network(ones)[0].sum()
    found = torch.autograd.grad(answered, list(network.parameters()), allow_unused=True)
    total = sum(
        float((parameter.detach() * of).abs().sum())
        for parameter, of in zip(network.parameters(), found, strict=True) if of is not None
    )  # fmt: skip
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), before, strict=True):
            parameter.copy_(value)
    return math.log(total) if total > 0 else -math.inf


def gradient_norm(network: nn.Module, x_BCHW: Tensor, labels_B: Tensor) -> float:
    """The sum over parameters of the length of the gradient of the cross-entropy of one batch (Abdelfattah et al.
    2021, section 3.1)."""
    loss = entropy_loss(network.train()(x_BCHW)[0], labels_B)
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    return sum(float(of.norm()) for of in found if of is not None)


def parameters(network: nn.Module, x_BCHW: Tensor, labels_B: Tensor) -> float:
    """The number of parameters, which asks nothing of a picture."""
    return float(sum(parameter.numel() for parameter in network.parameters()))


Score = Callable[[nn.Module, Tensor, Tensor], float]
SCORES: Mapping[str, Score] = {
    "parameters": parameters, "gradient_norm": gradient_norm, "naswot": naswot, "synflow": synflow
}  # fmt: skip
"""By name; synflow last, for it leaves the network in another form."""
