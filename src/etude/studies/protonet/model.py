"""The embedding network and the distances of Prototypical Networks.

Shape suffixes: N images or classes, K shots, Q queries, D embedding dimensions, C channels, H W pixels.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from etude.nn.conv import ConvBlock

Distance = Callable[[Tensor, Tensor], Tensor]


class Conv4(nn.Module):
    """Four blocks of 64 filters; 28x28 pixels become 64 numbers.

    Source: Snell et al. 2017, section 3.1. 111,936 parameters at one channel.

    Args:
        in_channels: 1 for grey pictures.
        width: filters of each block.

    Returns from ``forward``: embeddings ``[N, D]`` and the output of every block by name.
    """

    def __init__(self, in_channels: int = 1, width: int = 64) -> None:
        super().__init__()
        channels = (in_channels, width, width, width, width)
        self.blocks = nn.ModuleList(ConvBlock(channels[i], channels[i + 1]) for i in range(4))

    def forward(self, x_NCHW: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n d"], dict[str, Tensor]]:
        if min(x_NCHW.shape[-2:]) < 16:
            raise ValueError(f"pictures of {tuple(x_NCHW.shape[-2:])} vanish in four poolings: use 16x16 or more")
        named: dict[str, Tensor] = {}
        for number, block in enumerate(self.blocks, start=1):
            x_NCHW = named[f"block{number}"] = block(x_NCHW)
        return x_NCHW.flatten(1), named


def prototypes(support_NKD: Float[Tensor, "*b n k d"]) -> Float[Tensor, "*b n d"]:
    r"""The mean embedding of each class, $c_n = \frac1K \sum_k f_\phi(x_{nk})$ (equation 1)."""
    return support_NKD.mean(-2)


def squared_euclidean(query_QD: Float[Tensor, "*b q d"], proto_ND: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b q n"]:
    r"""$\|z_q - c_n\|^2$ of every query and prototype, as one matrix product."""
    product_QN = query_QD @ proto_ND.transpose(-1, -2)
    squares_Q1 = query_QD.square().sum(-1, keepdim=True)
    squares_1N = proto_ND.square().sum(-1).unsqueeze(-2)
    # Rounding may leave a distance just below zero.
    return (squares_Q1 - 2 * product_QN + squares_1N).clamp_min(0)


def cosine(query_QD: Float[Tensor, "*b q d"], proto_ND: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b q n"]:
    r"""$1 - \cos(z_q, c_n)$ of every query and prototype."""
    return 1 - functional.normalize(query_QD, dim=-1) @ functional.normalize(proto_ND, dim=-1).transpose(-1, -2)


DISTANCES: dict[str, Distance] = {"euclidean": squared_euclidean, "cosine": cosine}


def episode_loss(
    support_NKD: Float[Tensor, "n k d"],
    query_NQD: Float[Tensor, "n q d"],
    distance: Distance,
    temperature: float = 1.0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    r"""Return the loss and accuracy of one episode, both scalars.

    $J = -\frac{1}{NQ} \sum_{n,q} \log p(y = n \mid x_{nq})$ with
    $p(y = n \mid x) \propto \exp(-d(f_\phi(x), c_n) / t)$ (equation 2, algorithm 1).

    Args:
        support_NKD: embedded support, K drawings of each of N classes.
        query_NQD: embedded queries, Q of each class.
        distance: of queries ``[q, d]`` and prototypes ``[n, d]``, as ``[q, n]``.
        temperature: t; 1 in the paper.
    """
    num_classes, num_queries, _ = query_NQD.shape
    proto_ND = prototypes(support_NKD)
    logits = -distance(query_NQD.flatten(0, 1), proto_ND) / temperature
    target = torch.arange(num_classes, device=logits.device).repeat_interleave(num_queries)
    accuracy = (logits.argmax(-1) == target).float().mean()
    return functional.cross_entropy(logits, target), accuracy
