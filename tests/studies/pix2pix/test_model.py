"""The two networks: published counts, shapes, patches, noise, norms; jitter and mirror."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.studies.pix2pix.common import draw
from torch import nn

from etude.nn.pixels import prepare, to_bytes
from etude.studies.pix2pix.model import (
    PATCHES,
    BatchNorm,
    Discriminator,
    Generator,
    crop_and_mirror,
)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_parameter_counts() -> None:
    assert count(Generator(256)) == 54_413_955
    assert count(Discriminator(70)) == 2_768_705
    assert count(Generator(128, width=16, widest=6)) == 1_601_315


def test_the_layout_of_the_published_form() -> None:
    generator = Generator(256)
    convs = [m for m in generator.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert [conv.out_channels for conv in convs] == [
        64, 128, 256, 512, 512, 512, 512, 512, 512, 512, 512, 512, 256, 128, 64, 3
    ]  # fmt: skip
    assert [conv.bias is not None for conv in convs] == [False] * 15 + [True]
    normed = [any(isinstance(m, BatchNorm) for m in layer) for layer in generator.down]  # type: ignore[union-attr]
    assert normed == [False, True, True, True, True, True, True, False]
    assert all(any(isinstance(m, BatchNorm) for m in layer) for layer in generator.up)  # type: ignore[union-attr]
    slopes = [m.negative_slope for m in generator.modules() if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.2] * 7


@pytest.mark.parametrize("size", [64, 128, 256])
def test_shapes_range_and_noise(size: int) -> None:
    generator = Generator(size, width=4)
    masks = generator.noise(2, draw())
    assert [mask.shape for mask in masks] == [(2, 32, 2, 2), (2, 32, 4, 4), (2, 32 if size > 64 else 16, 8, 8)]
    assert {value for mask in masks for value in mask.unique().tolist()} == {0.0, 2.0}
    x = torch.randn(2, 3, size, size, generator=draw())
    made = generator(x, masks)
    assert made.shape == x.shape
    assert made.abs().max() <= 1
    assert not torch.equal(generator.eval()(x, masks), generator(x, generator.noise(2, draw(1)))), "noise in use too"


def test_noise_keeps_the_mean() -> None:
    generator = Generator(64, width=32, dropout=0.2)
    mask = generator.noise(64, draw())[1]
    assert mask.mean().item() == pytest.approx(1, abs=0.01)
    assert mask.max().item() == pytest.approx(1.25)


def test_every_layer_on_the_way_down_reaches_the_output() -> None:
    """Also those past the innermost one: the skips are there."""
    generator = Generator(64, width=2)
    generator(torch.randn(2, 3, 64, 64), []).square().sum().backward()
    for name, p in generator.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name


def test_a_picture_does_not_depend_on_its_batch_in_use() -> None:
    generator = Generator(64, width=4).eval()
    x, masks = torch.randn(3, 3, 64, 64, generator=draw()), generator.noise(3, draw())
    together = generator(x, masks)
    for row in range(3):
        alone = generator(x[row : row + 1], [mask[row : row + 1] for mask in masks])
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-4, atol=1e-5)
    trained = generator.train()(x, masks)
    assert (trained - together).abs().max() > 0.01, "training takes the batch's statistics"


def test_norms_in_use_against_the_built_in_ones() -> None:
    """Each picture by itself is instance norm, which is batch norm over a batch of one (section 3.4)."""
    x = torch.randn(3, 5, 4, 6, generator=draw())
    own, running, built_in = BatchNorm(5, "batch"), BatchNorm(5, "running"), nn.BatchNorm2d(5)
    with torch.no_grad():
        for layer in (own, running, built_in):
            layer.weight.copy_(torch.arange(1.0, 6))
            layer.bias.copy_(torch.arange(5.0))
    for layer in (own, running):
        torch.testing.assert_close(layer(x), built_in.train()(x))
    torch.testing.assert_close(running.eval()(x), nn.functional.batch_norm(
        x, running.running_mean, running.running_var, running.weight, running.bias
    ))  # fmt: skip
    expected = nn.functional.instance_norm(x, weight=own.weight, bias=own.bias)
    torch.testing.assert_close(own.eval()(x), expected)
    torch.testing.assert_close(own(x[:1]), built_in.train()(x[:1]))


@pytest.mark.parametrize("patch", sorted(PATCHES))
def test_a_logit_sees_a_patch(patch: int) -> None:
    """The gradient of one logit is nonzero on exactly that many pixels, of the input and of the output."""
    discriminator = Discriminator(patch, width=2).eval()
    size = 512 if patch == 286 else 256
    given, shown = (torch.randn(1, 3, size, size, generator=draw(seed), requires_grad=True) for seed in (0, 1))
    logits = discriminator(given, shown)
    middle = logits.shape[-1] // 2
    gradients = torch.autograd.grad(logits[0, 0, middle, middle], (given, shown))
    for gradient in gradients:
        seen = gradient[0].abs().sum(0) > 0
        for axis in (0, 1):
            places = seen.any(axis).nonzero().flatten()
            assert int(places.max() - places.min()) + 1 == patch


@pytest.mark.parametrize("count", [1, 3])
def test_two_pictures_of_each_input_are_two_calls(count: int) -> None:
    """Logits, gradients and running statistics, in training."""
    together, apart = Discriminator(70, width=4).double(), Discriminator(70, width=4).double()
    apart.load_state_dict(together.state_dict())
    given, *shown = torch.randn(3, count, 3, 64, 64, generator=draw(0), dtype=torch.float64)
    both = together(given, *shown)
    each = [apart(given, picture) for picture in shown]
    torch.testing.assert_close(both, torch.cat(each))
    both.square().sum().backward()
    torch.cat(each).square().sum().backward()
    for mine, theirs in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    for mine, theirs in zip(together.buffers(), apart.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_256_picture_has_30_by_30_patches() -> None:
    assert Discriminator(70, width=2)(*torch.zeros(2, 1, 3, 256, 256)).shape == (1, 1, 30, 30)


def test_bytes_and_back() -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3)[: 16 * 16 * 3].view(1, 16, 16, 3)
    assert torch.equal(to_bytes(prepare(images)), images)
    assert prepare(images).is_contiguous(memory_format=torch.channels_last)
    assert (prepare(images).min().item(), prepare(images).max().item()) == (-1, 1)
    assert to_bytes(torch.tensor([-3.0, 3.0, 0.0])[:, None, None, None]).flatten().tolist() == [0, 255, 128]


@given(st.integers(0, 10_000), st.booleans())
def test_both_pictures_of_a_pair_are_cut_alike(seed: int, mirror: bool) -> None:
    """Every pixel says where it was: a window, upright, mirrored or not, the same of A and B."""
    place = torch.arange(12 * 12).view(12, 12)
    pair = torch.stack([place, place // 12, place % 12], -1).byte()
    pairs = torch.stack([pair, 255 - pair]).expand(5, 2, 12, 12, 3)
    cut = crop_and_mirror(pairs, 9, draw(seed), mirror=mirror)
    assert cut.shape == (5, 2, 9, 9, 3)
    assert torch.equal(cut[:, 0], 255 - cut[:, 1])
    for image in cut[:, 0].int():
        rows, columns = image[..., 1], image[..., 2]
        assert torch.equal(rows, rows[:1, :1] + torch.arange(9)[:, None].expand(9, 9))
        step = int(columns[0, 1] - columns[0, 0])
        assert step in ((1, -1) if mirror else (1,))
        assert torch.equal(columns, columns[:1, :1] + step * torch.arange(9).expand(9, 9))


def test_windows_and_mirrors_are_evenly_drawn() -> None:
    columns = torch.arange(11).expand(11, 11)
    pairs = torch.stack([columns, columns.T, columns], -1).byte().expand(4000, 2, 11, 11, 3)
    cut = crop_and_mirror(pairs, 9, draw(), mirror=True)[:, 0]
    mirrored = cut[:, 0, 0, 0] > cut[:, 0, 1, 0]
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.04)
    for first in (cut[..., 0].amin((1, 2)), cut[..., 1].amin((1, 2))):
        assert first.bincount().div(4000).tolist() == pytest.approx([1 / 3] * 3, abs=0.04)


def test_without_jitter_and_mirror_pairs_stay() -> None:
    pairs = torch.randint(0, 256, (2, 2, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(crop_and_mirror(pairs, 8, draw(), mirror=False), pairs)
