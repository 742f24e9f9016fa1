"""A small network in the form of the published Inception file: TorchScript with `layers`, 2,048 features."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn


class StandIn(nn.Module):
    """One convolution over sixteen mean colours.

    Args:
        seed: of the weights.
        num_features: how many come out.
    """

    def __init__(self, seed: int = 0, num_features: int = 2048) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Conv2d(3, num_features, 4), nn.ReLU())
        draw = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=draw)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten(1)


def save(path: Path, network: nn.Module, extra: Mapping[str, str] | None = None) -> Path:
    """The network as TorchScript; ``extra``: files of the archive that mean nothing to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(network.eval()), path, _extra_files=dict(extra or {}))
    return path
