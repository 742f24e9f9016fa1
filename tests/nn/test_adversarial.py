"""Losses, penalty, first weights and spectral norm of adversarial networks."""

import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from etude.nn.adversarial import (
    FiniteSteps,
    discriminator_loss,
    generator_loss,
    r1_penalty,
    spectral_norm,
    start_normal,
)


def test_the_vanilla_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5])

    def minus_log_sigmoid(x: float) -> float:
        return math.log(1 + math.exp(-x))

    wanted = (minus_log_sigmoid(2) + minus_log_sigmoid(-1)) / 2 + minus_log_sigmoid(-0.5)
    assert discriminator_loss("vanilla", real, fake).item() == pytest.approx(wanted)
    assert generator_loss("vanilla", fake).item() == pytest.approx(minus_log_sigmoid(0.5))


def test_the_least_squares_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5])
    assert discriminator_loss("lsgan", real, fake).item() == pytest.approx((1 + 4) / 2 + 0.25)
    assert generator_loss("lsgan", fake).item() == pytest.approx(0.25)


def test_smoothing_lowers_the_target_of_real_pictures_only() -> None:
    """The best logit for a target of .9 is log(.9 / .1)."""
    best = torch.tensor(math.log(9.0), requires_grad=True)
    fake = torch.tensor(0.3, requires_grad=True)
    discriminator_loss("vanilla", best, fake, smoothing=0.1).backward()
    assert best.grad is not None
    assert best.grad.item() == pytest.approx(0, abs=1e-6)
    assert fake.grad is not None
    assert fake.grad.item() == pytest.approx(1 / (1 + math.exp(-0.3)))


def test_losses_of_extreme_logits_are_finite() -> None:
    far = torch.tensor([1e4, -1e4])
    for kind in ("vanilla", "lsgan"):
        assert discriminator_loss(kind, far, far).isfinite()
        assert generator_loss(kind, far.half()).isfinite()


def test_the_penalty_of_a_linear_critic_is_its_squared_norm() -> None:
    weight = torch.randn(3, 4, 4, dtype=torch.float64)
    images = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    logits = (images * weight).sum((1, 2, 3))
    assert r1_penalty(logits, images).item() == pytest.approx(weight.square().sum().item())


def test_the_penalty_has_a_gradient() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(16, 1)).double()
    images = torch.randn(3, 1, 4, 4, dtype=torch.float64, requires_grad=True)

    def penalty(weight: torch.Tensor) -> torch.Tensor:
        parameters = dict(net.named_parameters()) | {"0.weight": weight}
        return r1_penalty(torch.func.functional_call(net, parameters, images), images)

    assert torch.autograd.gradcheck(penalty, next(net.parameters()).detach().requires_grad_(True))


def test_the_first_weights() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 64, 4), nn.BatchNorm2d(64), nn.ConvTranspose2d(64, 64, 4), nn.BatchNorm2d(4096))
    start_normal(net)
    for layer in (net[0], net[2]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert layer.weight.mean().item() == pytest.approx(0, abs=5e-4)
        assert not layer.bias.any()
    assert net[3].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert net[3].weight.mean().item() == pytest.approx(1, abs=2e-3)
    assert not net[3].bias.any()


def test_spectral_norm_is_pytorchs() -> None:
    """Once both iterations, which take their halves in another order, have converged: outputs and gradients."""
    torch.manual_seed(0)
    ours, theirs = nn.Conv2d(3, 8, 3).double(), nn.Conv2d(3, 8, 3).double()
    theirs.load_state_dict(ours.state_dict())
    spectral_norm(ours)
    torch.nn.utils.parametrizations.spectral_norm(theirs)
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(300):
            mine, wanted = ours(images), theirs(images)
    assert torch.allclose(mine, wanted, rtol=1e-9)
    ours(images).square().sum().backward()
    theirs(images).square().sum().backward()
    for net in (ours, theirs):
        assert net.parametrizations["weight"].original.grad.any()
    assert torch.allclose(
        ours.parametrizations["weight"].original.grad, theirs.parametrizations["weight"].original.grad, rtol=1e-6
    )


def test_the_largest_singular_value_becomes_one() -> None:
    torch.manual_seed(0)
    layer = spectral_norm(nn.Linear(20, 30))
    with torch.no_grad():
        for _ in range(200):
            layer(torch.zeros(1, 20))
    assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, rel=1e-3)
    before = layer.parametrizations["weight"][0].u_O.clone()
    layer.eval()
    layer(torch.zeros(1, 20))
    assert torch.equal(before, layer.parametrizations["weight"][0].u_O), "no step of the iteration in evaluation"


@pytest.mark.parametrize("fused", [False, True], ids=["asked", "decided on the device"])
def test_a_step_that_is_not_finite_is_left_out_and_counted(fused: bool) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    adam = torch.optim.Adam(net.parameters(), 0.1, fused=fused)
    steps = FiniteSteps({"net": net}, {"net": adam})
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for weight, left_out in ((torch.inf, 1), (torch.nan, 1), (1.0, 0)):
        steps.begin()
        loss = (net(torch.randn(4, 2)) * weight).sum()
        loss.backward()
        steps.update("net")
        logged = steps.end({"loss": loss.detach()})
        assert logged["skipped"].item() == left_out
        assert logged["loss"].isfinite()
        assert all(p.grad is None for p in net.parameters())
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items()) == bool(left_out)
    assert steps.state() == {"skipped": 2, "in_a_row": 0}
    assert {int(state["step"]) for state in adam.state.values()} == {1}, "Adam has made one step"


def test_a_loss_scale_falls_until_steps_are_finite() -> None:
    """fp16: gradients are infinite until the scaler has lowered the scale, for which it must see them."""
    Accelerator(cpu=True)
    net = nn.Linear(1, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    steps = FiniteSteps(
        {"net": net}, {"net": AcceleratedOptimizer(torch.optim.SGD(net.parameters(), 1e-3), scaler=scaler)}
    )
    skipped = []
    for _ in range(8):
        steps.begin()
        # A gradient of 1e34 overflows until the scale is below 3.4e4.
        scaler.scale(net(torch.full((1, 1), 1e34)).sum()).backward()
        before = net.weight.detach().clone()
        steps.update("net")
        skipped.append(int(steps.end({"loss": torch.zeros(())})["skipped"].item()))
        assert torch.equal(before, net.weight) == bool(skipped[-1])
    assert skipped == [1, 0, 0, 0, 0, 0, 0, 0]
    assert scaler.get_scale() == 2.0**15
