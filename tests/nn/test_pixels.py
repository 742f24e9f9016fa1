"""Bytes and pictures: how they lie in memory, and what rounds to what. Studies test that bytes come back."""

import pytest
import torch

from etude.nn.pixels import prepare, to_bytes


def test_bytes_by_hand() -> None:
    images = torch.tensor([0, 51, 102, 153, 204, 255], dtype=torch.uint8).view(1, 1, 2, 3)
    found = prepare(images)
    assert (found.shape, found.dtype) == ((1, 3, 1, 2), torch.float32)
    assert found.is_contiguous(memory_format=torch.channels_last)
    wanted = torch.tensor([[-1, -0.6, -0.2], [0.2, 0.6, 1]])
    torch.testing.assert_close(found[0, :, 0].T, wanted)


def test_pictures_to_bytes_by_hand() -> None:
    """The nearest byte; half a byte goes to the even one."""
    edges = torch.tensor([-1, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 1 - 0.49 / 127.5, 1 - 0.51 / 127.5, 0, -2, 9])
    assert to_bytes(edges.view(1, 1, 1, 8)).flatten().tolist() == [0, 0, 1, 255, 254, 128, 0, 255]


def test_bytes_lie_as_files_have_them() -> None:
    images = torch.rand(2, 3, 4, 5).mul(2).sub(1).contiguous(memory_format=torch.channels_last)
    found = to_bytes(images)
    assert (found.shape, found.dtype) == ((2, 4, 5, 3), torch.uint8)
    assert found.is_contiguous()
    assert torch.equal(found[1, 2, 3], to_bytes(images[1:, :, 2:3, 3:4]).flatten())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(kind: torch.dtype) -> None:
    """It is rounded in float32: half precision would lose bytes above 128."""
    images = torch.linspace(-1.2, 1.2, 99, dtype=kind).view(1, 1, 9, 11)
    assert torch.equal(to_bytes(images), to_bytes(images.float()))
    every = prepare(torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1))
    if kind != torch.bfloat16:
        assert to_bytes(every.to(kind)).flatten().tolist() == [*range(256)]
