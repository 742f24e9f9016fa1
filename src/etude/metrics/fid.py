"""FID and KID as clean-fid defines them, of arrays in place of folders.

Heusel et al. 2017; Bińkowski et al. 2018; Parmar et al. 2022, whose package `cleanfid` resizes with an antialiased
bicubic filter of unrounded values (its mode ``clean``) and reads the Inception network of 2015-12-05. The network and
KID are the package's own, resizing equals the package's bit for bit, and FID is the same distance from eigenvalues,
which is quicker. Features of pictures that do not change are kept in the cache.

Shape suffixes: N images, H height, W width, C channels, F features (2,048).
"""

import contextlib
import hashlib
import math
import tempfile
import warnings
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from etude.core import randomness
from etude.core.errors import UserError
from etude.core.files import expanded
from etude.core.loop import progress_bar
from etude.core.runtime import Runtime
from etude.data.cache import decoded, digest
from etude.data.fetch import fetch
from etude.data.inception import WEIGHTS

NUM_FEATURES = 2048
SIDE = 299
_VERSION = 1
"""The version of the features in the cache: raise it when their values change."""
_CHUNK = 500
"""Pictures of one file in the cache: what a killed process loses at most."""
_BATCH = {"cpu": 8}
"""Small batches keep a map in the processor's cache."""
_FINGERPRINT = (1.02265, 0.29041, 0.45914, 0.47594, 0.0, 0.00246, 0.03287, 0.44385)
"""Every 256th feature that the published network's TorchScript gives for `_test_picture`."""


@dataclass(frozen=True)
class Score:
    """The distance of generated pictures from real ones, with what the numbers rest on."""

    fid: float
    """The Fréchet distance, which few pictures bias upwards: compare at equal counts only."""
    half_width: float
    """Half the 95 % interval of ``fid`` over draws of the generated pictures, see `jackknife`."""
    kid: float
    """The kernel distance, unbiased."""
    num_real: int
    num_fake: int


class Inception:
    """The network of 2015-12-05, from a local TorchScript file or, with None, clean-fid's home, downloaded once.

    Raises:
        UserError: the file is missing, damaged or another network, or cannot be fetched.
    """

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        path = _home() if weights is None else weights
        self.device = torch.device("cpu")
        self.network = _network(path)
        try:
            features_F = self.features(_test_picture())[0]
        except (RuntimeError, AssertionError) as error:
            raise UserError(_no_network(path, f"its layers differ: {_first_line(error)}")) from error
        if not _is_published(features_F):
            raise UserError(_no_network(path, "its weights differ"))
        self.key = _content(self.network.base.state_dict())
        """Hex digest of the weights, however the file is packed."""
        # What fails from here on is the device's fault, not the file's.
        self.network.to(device)
        self.device = device

    def features(self, images: np.ndarray | Tensor, *, title: str = "features") -> np.ndarray:
        """The features of each picture by clean-fid's network, under a progress bar of a title.

        Args:
            images: uint8, grey ``[N, H, W]`` or colour ``[N, H, W, 3]``.

        Returns:
            float32 ``[N, F]``.
        """
        _check(images)
        rows = np.zeros((len(images), NUM_FEATURES), np.float32)
        with self._bar(title, len(images)) as show:
            self._fill(rows, images, show)
        return rows

    def cached_features(self, images: np.ndarray | Tensor, *, title: str = "features of real pictures") -> np.ndarray:
        """`features` of pictures that will be asked for again: kept in the cache, by weights and pictures.

        They are kept in parts, so that a process that is killed goes on where it was.
        """
        _check(images)
        rows = np.zeros((len(images), NUM_FEATURES), np.float32)
        with self._bar(title, len(images)) as show:
            for start in range(0, len(images), _CHUNK):
                part = _numpy(images, slice(start, start + _CHUNK))
                key = digest(self.key, str(part.shape), hashlib.sha256(part.tobytes()).hexdigest())

                def build(to: np.ndarray, part: np.ndarray = part, start: int = start) -> None:
                    self._fill(to, part, lambda done: show(start + done))

                shape = (len(part), rows.shape[1])
                rows[start : start + len(part)] = decoded("inception", key, _VERSION, shape, build, np.float32)
                show(start + len(part))
        return rows

    @contextlib.contextmanager
    def _bar(self, title: str, total: int) -> Generator[Callable[[int], None], None, None]:
        with progress_bar(enabled=total > 1) as bar:
            task = bar.add_task(title, total=total, note="")
            yield lambda done: bar.update(task, completed=done)

    @torch.inference_mode()
    def _fill(self, rows: np.ndarray, images: np.ndarray | Tensor, show: Callable[[int], None]) -> None:
        size = _BATCH.get(self.device.type, 64)
        # Nothing less than float32: the distance is small beside the features.
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with (
            exact,
            torch.autocast(self.device.type, enabled=False),
            ThreadPoolExecutor(torch.get_num_threads()) as pool,
        ):
            for start in range(0, len(images), size):
                part = _numpy(images, slice(start, start + size))
                large = torch.from_numpy(np.stack(list(pool.map(resize, part)))).to(self.device)
                rows[start : start + len(part)] = self.network(large.expand(-1, 3, -1, -1)).cpu().numpy()
                show(start + len(part))


def resize(image: np.ndarray) -> np.ndarray:
    """clean-fid's ``clean`` resizing: bicubic, antialiased, each channel in float32, not rounded.

    Args:
        image: uint8 ``[H, W]`` or ``[H, W, 3]``.

    Returns:
        float32 ``[C, 299, 299]`` from 0 to 255; a grey picture has one channel, which stands for three equal ones.
    """
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    large = [
        Image.fromarray(plane.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for plane in planes
    ]
    return np.stack([np.asarray(plane) for plane in large]).clip(0, 255)


def frechet_distance(real_NF: np.ndarray, fake_NF: np.ndarray) -> float:
    """FID: ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` of two sets of features (Heusel et al. 2017, eq. 6)."""
    _check_features(real_NF, fake_NF)
    return _Distance(real_NF).to(fake_NF.mean(0, dtype=np.float64), np.cov(fake_NF, rowvar=False))


def kernel_distance(real_NF: np.ndarray, fake_NF: np.ndarray, generator: torch.Generator | None = None) -> float:
    """KID: clean-fid's own, the mean over 100 subsets of up to 1,000 (Bińkowski et al. 2018, section 4).

    Without a generator the subsets of features are the same ones each time.
    """
    from cleanfid.fid import kernel_distance

    _check_features(real_NF, fake_NF)
    draw = generator or randomness.generator(0, "kid", 0)
    before = np.random.get_state()
    np.random.seed(int(torch.randint(2**32, (), generator=draw)))
    try:
        return kernel_distance(real_NF, fake_NF)
    finally:
        np.random.set_state(before)


def jackknife(real_NF: np.ndarray, fake_NF: np.ndarray, *, groups: int = 20) -> float:
    """Half the width of a 95 % interval of the FID, over draws of the generated pictures.

    A bootstrap sample repeats pictures, which raises every FID far above the one that it is to surround. So each of
    some equal groups of pictures is left out in turn (Efron and Tibshirani 1993, section 11.5; Shao and Wu 1989): all
    these FIDs rest on equally many different pictures, have the same bias, and their spread gives the standard error,
    ``((g - 1) / g sum_j (FID_j - mean)^2)^(1/2)``, if anything too large (Efron and Stein 1981). Times Student's t of
    ``g - 1`` degrees.

    It says how far the FID moves when the same generator draws as many pictures again. The real pictures are taken as
    given, as in every comparison against one test set; and another training is not in it: seeds tell that.

    Args:
        real_NF: features.
        fake_NF: features, in an order that means nothing; at least two a group.
        groups: g.
    """
    from scipy.stats import t

    _check_features(real_NF, fake_NF)
    count = len(fake_NF)
    groups = min(groups, count // 2)
    assert groups >= 2, "an interval needs at least four pictures"
    distance = _Distance(real_NF)
    # Sums about the mean of all, from which those without a group follow.
    centre = fake_NF.mean(0, dtype=np.float64)
    parts = [part - centre for part in np.array_split(fake_NF.astype(np.float64), groups)]
    first = [part.sum(0) for part in parts]
    second = sum(part.T @ part for part in parts)
    values = []
    for part, its_sum in zip(parts, first, strict=True):
        left = count - len(part)
        mean = -its_sum / left
        covariance = (second - part.T @ part - left * np.outer(mean, mean)) / (left - 1)
        values.append(distance.to(mean + centre, covariance))
    error = math.sqrt((groups - 1) / groups) * float(np.linalg.norm(np.array(values) - np.mean(values)))
    return float(t.ppf(0.975, groups - 1)) * error


def measure(setting: str, real: Tensor, made: Tensor, runtime: Runtime, stream: str, title: str) -> Score:
    """FID with its interval, and KID; the processes share the work, and the cache has features of real pictures.

    Args:
        setting: the study's ``metric.inception``, see `weights_of`.
        real: bytes, as `Inception.features` takes them.
        made: bytes likewise.
        runtime: the run's.
        stream: the draws of `kernel_distance`.
        title: of the progress bar.
    """
    network = Inception(weights_of(setting), runtime.device)
    real_NF = network.cached_features(real)
    mine = network.features(made[runtime.share(len(made))], title=title)
    made_NF = runtime.gather(torch.from_numpy(mine).to(runtime.device), len(made)).cpu().numpy()
    return score(real_NF, made_NF, runtime.generator(stream, 0))


def score(real_NF: np.ndarray, fake_NF: np.ndarray, generator: torch.Generator | None = None) -> Score:
    """FID with its interval, and KID, of features."""
    return Score(
        fid=frechet_distance(real_NF, fake_NF),
        half_width=jackknife(real_NF, fake_NF),
        kid=kernel_distance(real_NF, fake_NF, generator),
        num_real=len(real_NF),
        num_fake=len(fake_NF),
    )


class _Distance:
    """The Fréchet distance from one set of features, cheap for many others.

    The trace of ``(S1 S2)^(1/2)`` is the sum of the square roots of the eigenvalues of ``R^T S2 R`` where
    ``S1 = R R^T``: a symmetric matrix, no wider than the rank of ``S1``.
    """

    def __init__(self, real_NF: np.ndarray) -> None:
        self.mean = real_NF.mean(0, dtype=np.float64)
        covariance = np.cov(real_NF, rowvar=False)
        self.trace = float(np.trace(covariance))
        values, vectors = np.linalg.eigh(covariance)
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        self.root = vectors[:, kept] * np.sqrt(values[kept])

    def to(self, mean_F: np.ndarray, covariance_FF: np.ndarray) -> float:
        """The distance to features of this mean and covariance."""
        values = np.linalg.eigvalsh(self.root.T @ covariance_FF @ self.root)
        cross = np.sqrt(values.clip(0)).sum()
        distance = ((self.mean - mean_F) ** 2).sum() + self.trace + np.trace(covariance_FF) - 2 * cross
        return max(0.0, float(distance))


# --- the file ---


def weights_of(setting: str) -> Path | None:
    """The local file that a study's setting names; None where it names none.

    Raises:
        UserError: there is no such file.
    """
    path = expanded(setting, "--metric.inception")
    if setting and not path.is_file():
        raise UserError(f"no file {setting} with the Inception weights: give another --metric.inception, or none")
    return path if setting else None


def _home() -> Path:
    try:
        return fetch(WEIGHTS)
    except UserError as error:
        raise UserError(f"{error}, or give a copy of {WEIGHTS.filename} by its path") from error


def _network(path: Path) -> Any:
    """clean-fid's wrapper of a TorchScript file."""
    from cleanfid.inception_torchscript import InceptionV3W

    if not path.is_file():
        raise UserError(f"{path} is no file: give a copy of {WEIGHTS.filename} ({WEIGHTS.url})")
    # The package takes a folder that holds the file under its published name.
    with tempfile.TemporaryDirectory(prefix="etude-") as folder, warnings.catch_warnings():
        # TorchScript is deprecated as a whole; the published file is one.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        (Path(folder) / WEIGHTS.filename).symlink_to(path.absolute())
        try:
            return InceptionV3W(folder, download=False).cpu().eval()
        except Exception as error:
            raise UserError(_no_network(path, _first_line(error))) from error


def _no_network(path: Path, reason: str) -> str:
    return (
        f"{path} is not the Inception network that FID is defined with ({reason}): delete it, and give a copy of "
        f"{WEIGHTS.url} or none, and it is fetched from there"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".: ")[:200]


def _content(state: Mapping[str, Tensor]) -> str:
    """Hex digest of names, shapes and values of the layers up to the features."""
    whole = hashlib.sha256()
    for name in sorted(name for name in state if name.startswith("layers.")):
        value = state[name].contiguous().numpy()
        whole.update(f"{name.removeprefix('layers.')}{value.shape}{value.dtype}".encode())
        whole.update(value.tobytes())
    return whole.hexdigest()


def _is_published(features_F: np.ndarray) -> bool:
    """True where these features of `_test_picture` are the published network's."""
    return len(features_F) == NUM_FEATURES and np.allclose(features_F[::256], _FINGERPRINT, rtol=1e-3, atol=1e-3)


def _test_picture() -> np.ndarray:
    """A picture that shows one network from another: uint8 ``[1, 32, 32, 3]``."""
    row, column, channel = np.ogrid[:32, :32, :3]
    return ((row * 7 + column * (3 + channel) + row * column // 8) % 256).astype(np.uint8)[None]


# --- pictures ---


def _check(images: np.ndarray | Tensor) -> None:
    assert images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3), "[N, H, W] or [N, H, W, 3]"
    assert images.dtype in (np.dtype(np.uint8), torch.uint8), "bytes"


def _check_features(real_NF: np.ndarray, fake_NF: np.ndarray) -> None:
    for rows in (real_NF, fake_NF):
        assert len(rows) >= 2, "a covariance needs two pictures"
        assert np.isfinite(rows).all(), "features are finite"


def _numpy(images: np.ndarray | Tensor, rows: slice) -> np.ndarray:
    part: Any = images[rows]
    return part.cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)
