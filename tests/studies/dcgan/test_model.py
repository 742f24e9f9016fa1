"""Shapes, parameters and class inputs of both networks."""

import pytest
import torch

from etude.core.errors import UserError
from etude.studies.dcgan.model import Discriminator, Generator, stages


@pytest.mark.parametrize(("size", "wanted"), [(28, (7, 2)), (32, (4, 3)), (56, (7, 3)), (64, (4, 4)), (256, (4, 6))])
def test_stages(size: int, wanted: tuple[int, int]) -> None:
    assert stages(size) == wanted
    base, doublings = wanted
    assert base * 2**doublings == size


@pytest.mark.parametrize("size", [0, 4, 7, 30, 33, 48])
def test_sizes_that_cannot_be_made(size: int) -> None:
    with pytest.raises(UserError, match=f"pictures of {size} pixels cannot be made"):
        stages(size)


def test_the_papers_network_has_the_known_number_of_weights() -> None:
    """At 64 pixels, three channels, noise of 100: the PyTorch tutorial's count, whose layers have no biases."""
    generator, discriminator = Generator(100, 64, channels=3), Discriminator(64, channels=3)
    # The last layer of each has a bias here, and the discriminator's first one too.
    assert sum(p.numel() for p in generator.parameters()) == 3_576_704 + 3
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_568 + 64 + 1


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize("num_classes", [0, 10])
def test_shapes(size: int, num_classes: int) -> None:
    generator = Generator(16, size, width=8, num_classes=num_classes)
    discriminator = Discriminator(size, width=8, num_classes=num_classes)
    labels = torch.arange(6) if num_classes else None
    images = generator(torch.randn(6, 16), labels)
    assert images.shape == (6, 1, size, size)
    assert images.abs().max() <= 1
    assert discriminator(images, labels).shape == (6,)


def test_both_networks_heed_the_class() -> None:
    torch.manual_seed(0)
    generator, discriminator = Generator(8, 28, width=8, num_classes=10), Discriminator(28, width=8, num_classes=10)
    generator.eval()
    noise = torch.randn(1, 8).expand(10, -1)
    images = generator(noise, torch.arange(10))
    assert len(torch.unique(images.flatten(1), dim=0)) == 10
    discriminator.eval()
    logits = discriminator(images[:1].expand(10, -1, -1, -1), torch.arange(10))
    assert len(logits.unique()) == 10


def test_a_picture_does_not_depend_on_its_neighbours_when_drawn() -> None:
    generator = Generator(8, 32, width=4).eval()
    noise = torch.randn(5, 8)
    assert torch.allclose(generator(noise)[2:3], generator(noise[2:3]), atol=1e-6)


@pytest.mark.parametrize(("norm", "count"), [("batch", 2), ("spectral", 0), ("none", 0)])
def test_norms_of_the_discriminator(norm: str, count: int) -> None:
    """Batch norm in neither the first nor the last layer (section 3)."""
    net = Discriminator(32, width=8, norm=norm)
    assert sum(isinstance(part, torch.nn.BatchNorm2d) for part in net.modules()) == count
    assert sum("u_O" in name for name, _ in net.named_buffers()) == (4 if norm == "spectral" else 0)
