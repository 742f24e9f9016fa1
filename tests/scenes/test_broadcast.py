"""The shared first layer against the plain form."""

import pytest
import torch
from torch import Tensor

from etude.scenes.broadcast import BroadcastConv


def plain(layer: BroadcastConv, slots: Tensor, positions: Tensor) -> Tensor:
    return layer.conv(slots[:, :, None, None] + positions[None])


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "side"), [(1, 4), (3, 5), (5, 8), (5, 11), (5, 16), (3, 32), (7, 33)])
def test_it_is_the_plain_form(kernel: int, side: int, stride: int) -> None:
    """Values and all gradients, in float64."""
    torch.manual_seed(0)
    layer = BroadcastConv(6, 4, kernel, side, stride=stride).double()
    slots = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    positions = torch.randn(6, side, side, dtype=torch.float64, requires_grad=True)
    found, wanted = layer(slots, positions), plain(layer, slots, positions)
    assert found.shape == (7, 4, stride * side, stride * side)
    torch.testing.assert_close(found, wanted)
    pull = torch.randn_like(wanted)
    leaves = [slots, positions, *layer.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad((found * pull).sum(), leaves), torch.autograd.grad((wanted * pull).sum(), leaves)
    )


def test_less_is_computed() -> None:
    """From 128 x 128 places to 10 x 10 a slot, and one map for all."""
    from torch.utils.flop_counter import FlopCounterMode

    layer, slots, positions = BroadcastConv(16, 8, 5, 128), torch.randn(22, 16), torch.randn(16, 128, 128)
    counts = []
    for form in (layer, lambda *given: plain(layer, *given)):
        with FlopCounterMode(display=False) as counter:
            form(slots, positions)
        counts.append(counter.get_total_flops())
    assert counts[1] / counts[0] == pytest.approx(22 * 128**2 / (22 * 10**2 + 128**2), rel=0.01)


@pytest.mark.parametrize(("options", "says"), [({"kernel": 4}, "odd"), ({"stride": 3}, "1 or 2")])
def test_other_layers_are_refused(options: dict[str, int], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        BroadcastConv(4, 4, options.get("kernel", 3), 8, stride=options.get("stride", 1))
