"""The reader of MNIST's files, and the digits that come with etude."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etude.core.errors import UserError
from etude.data import mnist
from etude.data.fetch import Source


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.tobytes()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "file.gz"
    monkeypatch.setattr(mnist, "fetch", lambda source: path)
    return path


SOURCE = Source("mnist", "file.gz", "https://example.org/file.gz", "0" * 64, 1)
PICTURES = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)


def test_an_idx_file_is_read(file: Path) -> None:
    file.write_bytes(gzip.compress(idx(PICTURES)))
    assert (mnist._read(SOURCE, (2, 28, 28)) == PICTURES).all()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(idx(PICTURES))[:-20],
        gzip.compress(idx(PICTURES)[:-1]),
        gzip.compress(idx(PICTURES) + b"\0"),
        gzip.compress(idx(PICTURES[:1])),
        gzip.compress(idx(PICTURES.reshape(2, -1))),
        gzip.compress(b"\0\0\x0d\3" + idx(PICTURES)[4:]),
    ],
)
def test_another_file_is_one_line(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"file\.gz (is damaged|does not hold 2 x 28 x 28 bytes).*: remove it") as error:
        mnist._read(SOURCE, (2, 28, 28))
    assert "\n" not in str(error.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_are_read_or_refused(file: Path, noise: bytes, place: int) -> None:
    whole = gzip.compress(idx(PICTURES))
    file.write_bytes(whole[:place] + noise + whole[place + len(noise) :])
    try:
        found = mnist._read(SOURCE, (2, 28, 28))
    except UserError:
        return
    assert found.shape == (2, 28, 28)


def test_the_digits_that_come_with_etude() -> None:
    for split, count in (("train", 240), ("test", 60)):
        images, labels = mnist.sample(split)
        assert images.shape == (count, 28, 28)
        assert images.dtype == torch.uint8
        assert labels.bincount().tolist() == [count // 10] * 10
        # Ink in the middle on black.
        assert images[:, 4:24, 4:24].float().mean() > 40
        assert images[:, 0].float().mean() < 1
    assert not (mnist.sample("train")[0][:60] == mnist.sample("test")[0]).flatten(1).all(1).any()


def test_a_border_is_added_evenly() -> None:
    images = torch.full((2, 28, 28), 7, dtype=torch.uint8)
    larger = mnist.to_size(images, 32)
    assert larger.shape == (2, 32, 32)
    assert (larger[:, 2:30, 2:30] == 7).all()
    assert larger.sum() == images.sum()
    assert mnist.to_size(images, 28) is not None
    with pytest.raises(UserError, match="do not fit 20"):
        mnist.to_size(images, 20)
