"""The Inception network with a few channels a layer, in the published file's form, and a plain twin of its graph."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

# Every convolution: its input's channels (of the published network), its output's, its kernel.
_A = {"conv": (64, 1, 1), "tower.conv": (48, 1, 1), "tower.conv_1": (64, 5, 5), "tower_1.conv": (64, 1, 1),
      "tower_1.conv_1": (96, 3, 3), "tower_1.conv_2": (96, 3, 3), "tower_2.conv": (32, 1, 1)}  # fmt: skip
_C = {"conv": (192, 1, 1), "tower.conv": (128, 1, 1), "tower.conv_1": (128, 1, 7), "tower.conv_2": (192, 7, 1),
      "tower_1.conv": (128, 1, 1), "tower_1.conv_1": (128, 7, 1), "tower_1.conv_2": (128, 1, 7),
      "tower_1.conv_3": (128, 7, 1), "tower_1.conv_4": (192, 1, 7), "tower_2.conv": (192, 1, 1)}  # fmt: skip
_E = {"conv": (320, 1, 1), "tower_conv": (384, 1, 1), "tower_mixed_conv": (384, 1, 3),
      "tower_mixed_conv_1": (384, 3, 1), "tower_1_conv": (448, 1, 1), "tower_1_conv_1": (384, 3, 3),
      "tower_1_mixed_conv": (384, 1, 3), "tower_1_mixed_conv_1": (384, 3, 1), "tower_2_conv": (192, 1, 1)}  # fmt: skip
BLOCKS = {
    "mixed": (192, _A),
    "mixed_1": (256, _A | {"tower_2.conv": (64, 1, 1)}),
    "mixed_2": (288, _A | {"tower_2.conv": (64, 1, 1)}),
    "mixed_3": (288, {"conv": (384, 3, 3), "tower.conv": (64, 1, 1), "tower.conv_1": (96, 3, 3),
                      "tower.conv_2": (96, 3, 3)}),
    "mixed_4": (768, _C),
    **{f"mixed_{place}": (768, {name: (160 if out == 128 else out, *kernel) for name, (out, *kernel) in _C.items()})
       for place in (5, 6)},
    "mixed_7": (768, {name: (192, *kernel) for name, (_, *kernel) in _C.items()}),
    "mixed_8": (768, {"tower.conv": (192, 1, 1), "tower.conv_1": (320, 3, 3), "tower_1.conv": (192, 1, 1),
                      "tower_1.conv_1": (192, 1, 7), "tower_1.conv_2": (192, 7, 1), "tower_1.conv_3": (192, 3, 3)}),
    "mixed_9": (1280, _E),
    "mixed_10": (2048, _E),
}  # fmt: skip
STEM = {"conv": (3, 32, 3, 3), "conv_1": (32, 32, 3, 3), "conv_2": (32, 64, 3, 3), "conv_3": (64, 80, 1, 1),
        "conv_4": (80, 192, 3, 3)}  # fmt: skip


def state(divide: int = 16, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a network with that many times fewer channels; 1: the published shapes."""
    draw = torch.Generator().manual_seed(seed)
    kernels = {name: ((into if into == 3 else into // divide), out // divide, *kernel)
               for name, (into, out, *kernel) in STEM.items()}  # fmt: skip
    for block, (into, layers) in BLOCKS.items():
        for name, (out, *kernel) in layers.items():
            # A tower's first layer reads the block's map, the later ones the layer before.
            later = "mixed_conv" in name or not name.endswith("conv")
            channels = layers[_before(name)][0] if later else into
            kernels[f"{block}.{name}"] = (channels // divide, out // divide, *kernel)
    values = {}
    for name, (into, out, *kernel) in kernels.items():
        fan = into * kernel[0] * kernel[1]
        values[f"{name}.weight"] = torch.randn(out, into, *kernel, generator=draw) * (2 / fan) ** 0.5
        values[f"{name}.beta"] = torch.randn(out, generator=draw) * 0.3
        values[f"{name}.mean"] = torch.randn(out, generator=draw) * 0.3
        values[f"{name}.var"] = torch.rand(out, generator=draw) + 0.5
    return values


def _before(name: str) -> str:
    """The layer whose output one reads."""
    if "mixed" in name:
        return "tower_conv" if name.startswith("tower_mixed") else "tower_1_conv_1"
    stem, _, place = name.rpartition("_")
    return stem if place == "1" else f"{stem}_{int(place) - 1}"


def save(path: Path, values: dict[str, Tensor]) -> Path:
    """A TorchScript file with these weights below ``layers``."""
    root = nn.Module()
    for name, value in values.items():
        here = root
        for part in f"layers.{name}".split(".")[:-1]:
            if not hasattr(here, part):
                here.add_module(part, nn.Module())
            here = getattr(here, part)
        here.register_parameter(name.rpartition(".")[2], nn.Parameter(value, requires_grad=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(root), path)
    return path


def features(values: dict[str, Tensor], x: Tensor) -> Tensor:
    """The published graph, layer by layer: batch norm, ReLU, pools before their convolutions."""

    def layer(name: str, x: Tensor, stride: int = 1, padding: int | tuple[int, int] | str = "same") -> Tensor:
        weight, beta, mean, var = (values[f"{name}.{part}"] for part in ("weight", "beta", "mean", "var"))
        if stride == 2:
            padding = 0
        return functional.batch_norm(functional.conv2d(x, weight, None, stride, padding), mean, var, None, beta,
                                     eps=0.001).relu()  # fmt: skip

    def tower(name: str, x: Tensor, last: int, stride: int = 1) -> Tensor:
        x = layer(f"{name}.conv", x)
        for place in range(1, last + 1):
            x = layer(f"{name}.conv_{place}", x, stride if place == last else 1)
        return x

    def mean(x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def mixed(name: str, x: Tensor, short: int, long: int) -> Tensor:
        branches = tower(f"{name}.tower", x, short), tower(f"{name}.tower_1", x, long)
        return torch.cat([layer(f"{name}.conv", x), *branches, layer(f"{name}.tower_2.conv", mean(x))], 1)

    def wide(name: str, x: Tensor, pool: Tensor) -> Tensor:
        a = layer(f"{name}.tower_conv", x)
        b = layer(f"{name}.tower_1_conv_1", layer(f"{name}.tower_1_conv", x))
        ends = [layer(f"{name}.tower_mixed_conv", a), layer(f"{name}.tower_mixed_conv_1", a),
                layer(f"{name}.tower_1_mixed_conv", b), layer(f"{name}.tower_1_mixed_conv_1", b)]  # fmt: skip
        return torch.cat([layer(f"{name}.conv", x), *ends, layer(f"{name}.tower_2_conv", pool)], 1)

    x = layer("conv", (x - 128) / 128, 2)
    x = functional.max_pool2d(layer("conv_2", layer("conv_1", x, padding=0)), 3, 2)
    x = functional.max_pool2d(layer("conv_4", layer("conv_3", x), padding=0), 3, 2)
    for name in ("mixed", "mixed_1", "mixed_2"):
        x = mixed(name, x, 1, 2)
    x = torch.cat([layer("mixed_3.conv", x, 2), tower("mixed_3.tower", x, 2, 2), functional.max_pool2d(x, 3, 2)], 1)
    for name in ("mixed_4", "mixed_5", "mixed_6", "mixed_7"):
        x = mixed(name, x, 2, 4)
    branches = tower("mixed_8.tower", x, 1, 2), tower("mixed_8.tower_1", x, 3, 2)
    x = torch.cat([*branches, functional.max_pool2d(x, 3, 2)], 1)
    x = wide("mixed_9", x, mean(x))
    x = wide("mixed_10", x, functional.max_pool2d(x, 3, 1, 1))
    return functional.avg_pool2d(x, 8).flatten(1)
