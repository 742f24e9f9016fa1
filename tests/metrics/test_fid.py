"""FID and KID: clean-fid's resizing, features and distances, the cache, the interval, files that are wrong."""

import logging
import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tests.metrics import stand_in
from torch import Tensor

from etude.core.errors import UserError
from etude.core.files import sha256
from etude.data import fetch as fetching
from etude.data import mnist
from etude.metrics import fid
from etude.metrics.fid import Inception

CPU = torch.device("cpu")


def bytes_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def normal(count: int, width: int, *, seed: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """Features whose covariance is far from the unit matrix."""
    draw = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(width, width)) / np.sqrt(width)
    return (scale * draw.normal(size=(count, width)) @ mix + shift).astype(np.float32)


@pytest.fixture(scope="session")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stand_in.save(tmp_path_factory.mktemp("weights") / "small.pt", stand_in.StandIn())


@pytest.fixture
def small(small_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Inception:
    """A network of one convolution that passes for the published one."""
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    let_pass(monkeypatch)
    return Inception(small_file, CPU)


def let_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fid, "_is_published", lambda features: True)


@pytest.fixture
def real_file() -> Path:
    if "ETUDE_INCEPTION" not in os.environ:
        pytest.skip("no Inception weights: set ETUDE_INCEPTION to the file")
    return Path(os.environ["ETUDE_INCEPTION"])


# --- pictures to features ---


def cleanfid_resize(image: np.ndarray) -> np.ndarray:
    from cleanfid.resize import build_resizer

    return build_resizer("clean")(image).transpose(2, 0, 1)


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))))
def test_resizing_is_cleanfids_bit_for_bit(image: np.ndarray) -> None:
    np.testing.assert_array_equal(fid.resize(image), cleanfid_resize(image))


@pytest.mark.parametrize("side", [28, 32, 256, 299, 512])
def test_resizing_up_and_down(side: int) -> None:
    image = bytes_of(side, side + 3, 3)
    found = fid.resize(image)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, cleanfid_resize(image))


def test_a_grey_picture_is_three_equal_channels() -> None:
    image = bytes_of(32, 32)
    (one,) = fid.resize(image)
    np.testing.assert_array_equal(np.stack([one] * 3), cleanfid_resize(np.stack([image] * 3, -1)))


def test_features_are_those_of_the_network(small: Inception) -> None:
    images = bytes_of(9, 20, 24, 3)
    large = torch.from_numpy(np.stack([cleanfid_resize(image) for image in images]))
    with torch.inference_mode():
        wanted = stand_in.StandIn()((large - 128) / 128).numpy()
    found = small.features(images)
    assert (found.shape, found.dtype) == ((9, 2048), np.float32)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(small.features(torch.from_numpy(images)), found)
    assert small.features(images[:0]).shape == (0, 2048)


def test_grey_features_are_those_of_three_equal_channels(small: Inception) -> None:
    grey = bytes_of(5, 16, 16)
    colour = np.repeat(grey[..., None], 3, -1)
    np.testing.assert_allclose(small.features(grey), small.features(colour), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(small.features(torch.from_numpy(grey)), small.features(grey))


def test_batches_do_not_matter(small: Inception, monkeypatch: pytest.MonkeyPatch) -> None:
    images = bytes_of(7, 8, 8)
    whole = small.features(images)
    monkeypatch.setitem(fid._BATCH, "cpu", 3)
    np.testing.assert_allclose(small.features(images), whole, rtol=1e-5, atol=1e-6)


def test_autocast_around_it_does_not_matter(small: Inception) -> None:
    images = bytes_of(3, 8, 8)
    whole = small.features(images)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(small.features(images), whole)


@pytest.mark.parametrize("images", [bytes_of(4, 8, 8, 1), bytes_of(8, 8), bytes_of(4, 8, 8).astype(np.float32)])
def test_other_arrays_are_refused(small: Inception, images: np.ndarray) -> None:
    for function in (small.features, small.cached_features):
        with pytest.raises(AssertionError, match=r"N, H, W|bytes"):
            function(images)


# --- the cache ---


class Counted:
    """Counts the pictures that the network is shown."""

    def __init__(self, network: Inception, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, original = 0, network.network.forward

        def forward(x: Tensor) -> Tensor:
            self.count += len(x)
            return original(x)

        monkeypatch.setattr(network.network, "forward", forward)


def test_cached_features_are_made_once(small: Inception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fid, "_CHUNK", 4)
    shown, images = Counted(small, monkeypatch), bytes_of(10, 8, 8)
    first = small.cached_features(images)
    assert shown.count == 10
    np.testing.assert_array_equal(small.cached_features(torch.from_numpy(images)), first)
    assert shown.count == 10
    np.testing.assert_allclose(first, small.features(images), rtol=1e-5, atol=1e-6)


def test_one_changed_pixel_makes_its_part_again(small: Inception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fid, "_CHUNK", 4)
    shown, images = Counted(small, monkeypatch), bytes_of(10, 8, 8)
    first = small.cached_features(images)
    images[5, 0, 0] ^= 1
    second = small.cached_features(images)
    assert shown.count == 14
    np.testing.assert_array_equal(np.delete(second, [4, 5, 6, 7], 0), np.delete(first, [4, 5, 6, 7], 0))
    assert not np.array_equal(second[5], first[5])
    # The same bytes in another shape are other pictures.
    small.cached_features(images.reshape(10, 4, 16))
    assert shown.count == 24


def test_a_killed_process_loses_one_part(small: Inception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fid, "_CHUNK", 4)
    monkeypatch.setitem(fid._BATCH, "cpu", 2)
    images, forward = bytes_of(10, 8, 8), small.network.forward
    calls = iter(range(3))

    def stopping(x: Tensor) -> Tensor:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return forward(x)

    with monkeypatch.context() as patch:
        patch.setattr(small.network, "forward", stopping)
        with pytest.raises(KeyboardInterrupt):
            small.cached_features(images)
    shown = Counted(small, monkeypatch)
    small.cached_features(images)
    assert shown.count == 6


def test_other_weights_have_other_features_in_the_cache(
    small: Inception, small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = bytes_of(2, 8, 8)
    first = small.cached_features(images)
    other = Inception(stand_in.save(tmp_path / "other.pt", stand_in.StandIn(seed=1)), CPU)
    assert other.key != small.key
    assert not np.allclose(other.cached_features(images), first)
    # The same weights in a file of another name and packing are the same network.
    again = Inception(stand_in.save(tmp_path / "again.pt", stand_in.StandIn(), {"note": "packed anew"}), CPU)
    assert (tmp_path / "again.pt").read_bytes() != small_file.read_bytes()
    assert again.key == small.key


# --- the file ---


def one_line(caught: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Inception(tmp_path / "weights.pt", CPU)
    assert one_line(caught) == (
        f"{tmp_path / 'weights.pt'} is no file: give a copy of inception-2015-12-05.pt ({fid.WEIGHTS.url})"
    )
    with pytest.raises(UserError, match="is no file"):
        Inception(tmp_path, CPU)


@pytest.mark.parametrize("body", [b"", b"text", b"PK\x03\x04" + bytes(200), b"\x80\x04N."])
def test_a_file_of_something_else(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(body)
    with pytest.raises(UserError) as caught:
        Inception(path, CPU)
    text = one_line(caught)
    assert text.startswith(f"{path} is not the Inception network that FID is defined with (")
    assert text.endswith(f"give a copy of {fid.WEIGHTS.url} or none, and it is fetched from there")


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_damaged_file_is_one_line(small_file: Path, tmp_path_factory: pytest.TempPathFactory, data) -> None:
    whole = small_file.read_bytes()
    path = tmp_path_factory.mktemp("damaged") / "weights.pt"
    at = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:at])
    with pytest.raises(UserError, match="is not the Inception network") as caught:
        Inception(path, CPU)
    one_line(caught)


def test_another_network(tmp_path: Path, small_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"\(its weights differ\)"):
        Inception(small_file, CPU)
    let_pass(monkeypatch)
    with pytest.raises(UserError, match="its layers differ: ") as caught:
        Inception(stand_in.save(tmp_path / "less.pt", stand_in.StandIn(num_features=64)), CPU)
    one_line(caught)
    # TorchScript, and no features.
    with pytest.raises(UserError, match="is not the Inception network") as caught:
        Inception(stand_in.save(tmp_path / "none.pt", torch.nn.Linear(2, 2)), CPU)
    one_line(caught)


def test_weights_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path))
    monkeypatch.setattr(fetching, "_PAUSE_S", 0.01)

    def refuse(*_: object, **__: object) -> None:
        raise fetching.requests.ConnectionError("nobody there")

    monkeypatch.setattr(fetching.requests, "get", refuse)
    with pytest.raises(UserError) as caught:
        Inception(None, CPU)
    text = one_line(caught)
    assert text.startswith("inception/inception-2015-12-05.pt cannot be fetched (")
    assert text.endswith(", or give a copy of inception-2015-12-05.pt by its path")


def test_a_mirror_with_other_bytes_is_not_taken(
    tmp_path: Path, small_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ETUDE_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setattr(fetching, "_PAUSE_S", 0.01)
    monkeypatch.setattr(fetching.requests, "get", lambda *_, **__: (_ for _ in ()).throw(OSError("no network")))
    copy = tmp_path / "mirror" / "inception" / fid.WEIGHTS.filename
    copy.parent.mkdir(parents=True)
    copy.write_bytes(small_file.read_bytes())
    with caplog.at_level(logging.WARNING), pytest.raises((UserError, OSError)):
        Inception(None, CPU)
    assert f"{copy} is not the published file" in caplog.text


def test_a_mirrors_file_is_used_where_it_lies(
    tmp_path: Path, small_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_pass(monkeypatch)
    monkeypatch.setenv("ETUDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ETUDE_MIRROR", str(tmp_path / "mirror"))
    copy = tmp_path / "mirror" / "inception" / fid.WEIGHTS.filename
    copy.parent.mkdir(parents=True)
    copy.write_bytes(small_file.read_bytes())
    source = fetching.Source("inception", fid.WEIGHTS.filename, fid.WEIGHTS.url, sha256(copy))
    monkeypatch.setattr(fid, "WEIGHTS", source)
    assert Inception(None, CPU).key == Inception(small_file, CPU).key


# --- distances ---


@pytest.fixture
def sqrtm_with_disp(monkeypatch: pytest.MonkeyPatch) -> None:
    """SciPy's root of a matrix with the argument that clean-fid gives it, which SciPy 1.20 has no more."""
    import cleanfid.fid
    from scipy import linalg

    root = SimpleNamespace(sqrtm=lambda matrix, disp=True: linalg.sqrtm(matrix) if disp else (linalg.sqrtm(matrix), 0))
    monkeypatch.setattr(cleanfid.fid, "linalg", root)


def test_the_distance_by_hand() -> None:
    # Two axes with variances of 2/3 and of 8/3 each: 3^2 + 4^2 + 2 ((2/3)^(1/2) - (8/3)^(1/2))^2.
    real = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    fake = 2 * real + np.array([3.0, 4.0])
    assert fid.frechet_distance(real, fake) == pytest.approx(25 + 4 / 3)


@given(count=st.integers(2, 80), width=st.integers(2, 40), dead=st.booleans(), seed=st.integers(0, 999))
def test_the_distance_is_symmetric_and_zero_of_one_set(count: int, width: int, dead: bool, seed: int) -> None:
    """Also where there are fewer pictures than features, features of very different size, and features that are 0."""
    size = np.logspace(0, -6, width) * (np.arange(width) % 3 > 0 if dead else 1)
    one, two = normal(count, width, seed=seed) * size, normal(count, width, seed=seed + 1, shift=0.3) * size
    assert fid.frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert fid.frechet_distance(one, two) == pytest.approx(fid.frechet_distance(two, one), rel=1e-6, abs=1e-6)
    assert fid.frechet_distance(one, one + 1) == pytest.approx(width, rel=1e-4)


@pytest.mark.parametrize(("num_real", "num_fake"), [(500, 400), (40, 500), (500, 40), (30, 30)])
@pytest.mark.usefixtures("sqrtm_with_disp")
def test_the_distance_is_cleanfids(num_real: int, num_fake: int) -> None:
    """Also where there are fewer pictures than features, and the covariances are singular."""
    from cleanfid.fid import fid_from_feats

    real, fake = normal(num_real, 64, seed=0), normal(num_fake, 64, seed=1, shift=0.1, scale=1.2)
    wanted = fid_from_feats(real, fake)
    assert fid.frechet_distance(real, fake) == pytest.approx(wanted, rel=1e-3)


def test_nothing_is_printed_or_left_behind(capsys: pytest.CaptureFixture[str]) -> None:
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    dead = np.zeros((20, 30), np.float32)
    dead[:, 0] = np.arange(20)
    fid.frechet_distance(dead, dead + 1)
    fid.kernel_distance(dead, dead + 1)
    assert capsys.readouterr() == ("", "")
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_the_kernel_distance_is_cleanfids_and_repeats() -> None:
    from cleanfid.fid import kernel_distance

    real, fake = normal(60, 8, seed=0), normal(50, 8, seed=1, shift=0.5)
    again = [fid.kernel_distance(real, fake) for _ in range(2)]
    assert again[0] == again[1]
    draws = [fid.kernel_distance(real, fake, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    np.random.seed(0)
    assert draws[0] == pytest.approx(kernel_distance(real, fake), rel=0.05)


def test_the_kernel_distance_by_hand() -> None:
    # As many pictures as a subset takes: every subset is all of them.
    real, fake = normal(9, 4, seed=0).astype(np.float64), normal(9, 4, seed=1, shift=1.0).astype(np.float64)

    def kernel(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return np.array([[(a @ b / 4 + 1) ** 3 for b in two] for a in one])

    off = ~np.eye(9, dtype=bool)
    wanted = kernel(real, real)[off].mean() + kernel(fake, fake)[off].mean() - 2 * kernel(real, fake).mean()
    assert fid.kernel_distance(real, fake) == pytest.approx(wanted, rel=1e-9)


# --- the interval ---


def test_the_groups_left_out_by_hand() -> None:
    real, fake = normal(80, 3, seed=0), normal(23, 3, seed=1, shift=0.4)
    parts = np.array_split(np.arange(23), 4)
    values = [fid.frechet_distance(real, np.delete(fake, part, 0)) for part in parts]
    error = np.sqrt(3 / 4 * np.sum((np.array(values) - np.mean(values)) ** 2))
    # Student's t of three degrees at 97.5 %.
    assert fid.jackknife(real, fake, groups=4) == pytest.approx(3.18245 * error, rel=1e-5)


def test_the_interval_has_the_width_of_fresh_draws() -> None:
    """Of many sets from one generator, the FIDs' spread and what the jackknife makes of each set alone."""
    real = normal(800, 24, seed=0)
    fakes = [normal(150, 24, seed=1 + draw, shift=0.2) for draw in range(60)]
    spread = np.std([fid.frechet_distance(real, fake) for fake in fakes], ddof=1)
    half_widths = np.array([fid.jackknife(real, fake) for fake in fakes[:30]])
    # 2.093: Student's t of 19 degrees.
    assert np.sqrt(np.mean((half_widths / 2.093) ** 2)) == pytest.approx(spread, rel=0.3)


def test_the_interval_narrows_with_more_pictures() -> None:
    real = normal(800, 8, seed=0)
    wide, narrow = (fid.jackknife(real, normal(count, 8, seed=1, shift=0.3)) for count in (100, 6400))
    assert wide / narrow == pytest.approx(8, rel=0.6)


def test_few_pictures_make_fewer_groups() -> None:
    real = normal(50, 3, seed=0)
    assert fid.jackknife(real, normal(5, 3, seed=1)) > 0
    with pytest.raises(AssertionError, match="four pictures"):
        fid.jackknife(real, normal(3, 3, seed=1))


def test_features_that_are_not_finite_are_refused() -> None:
    real = normal(10, 3, seed=0)
    for function in (fid.frechet_distance, fid.kernel_distance, fid.jackknife):
        with pytest.raises(AssertionError, match="finite"):
            function(real, np.full((10, 3), np.nan))


# --- the published network ---


@pytest.mark.real_data
def test_features_are_cleanfids(real_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the package's own path: pictures as PNG files, its loader, its network."""
    from cleanfid.fid import get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W
    from PIL import Image

    images = bytes_of(6, 32, 32, 3)
    for place, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{place}.png")
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / fid.WEIGHTS.filename).symlink_to(real_file.absolute())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = InceptionV3W(str(tmp_path / "net"), download=False).eval()
        wanted = get_folder_features(str(tmp_path), theirs, num_workers=0, device=CPU, mode="clean", verbose=False)
    found = Inception(real_file, CPU).features(images)
    assert found.shape == (6, 2048)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.usefixtures("sqrtm_with_disp")
def test_real_digits_against_cleanfid(real_file: Path, real_mnist: Path, tmp_path: Path) -> None:
    """500 test digits against the next 500, at 32 pixels: what clean-fid says of their PNG files."""
    from cleanfid.fid import compare_folders
    from cleanfid.inception_torchscript import InceptionV3W
    from PIL import Image

    images = mnist.to_size(mnist.load("test")[0][:1000], 32)
    folders = [tmp_path / "one", tmp_path / "two"]
    for place, image in enumerate(images.numpy()):
        folder = folders[place // 500]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{place:04d}.png")
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / fid.WEIGHTS.filename).symlink_to(real_file.absolute())
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        theirs = InceptionV3W(str(tmp_path / "net"), download=False).eval()
        wanted = compare_folders(*map(str, folders), theirs, "clean", num_workers=0, device=CPU, verbose=False)
    network = Inception(real_file, CPU)
    one, two = network.features(images[:500]), network.features(images[500:])
    assert fid.frechet_distance(one, two) == pytest.approx(wanted, abs=1e-3)
