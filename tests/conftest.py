"""Fixtures for all tests. Shapes and types are checked here and only here, by jaxtyping and beartype."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from jaxtyping import install_import_hook
from xdist.scheduler.loadscope import LoadScopeScheduling

# Each of many processes would otherwise compile PyTorch's files anew: half the time of its import.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

install_import_hook("etude", "beartype.beartype")

# CI tries the same cases each time; at a desk every run tries new ones.
settings.register_profile("desk", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "desk")

ROOT = Path(__file__).parents[1]


# What `uv run pytest` leaves to CI, which runs it by `-m long`: how the names of tests begin, each with its own marker.
LONG = {
    "benchmarks/": "benchmark", "cluster/test_cluster.py": "cluster", "test_distributed.py": "cluster",
    "docs/": "site", "fuzz/": "fuzz", "notebooks/": "notebook", "cli/test_export.py": "export",
    "cli/test_tune.py::test_a_search_is_stopped": "cluster", "runs/test_launch.py": "cluster",
    "test_kill.py": "kill", "runs/test_memory.py": "memory", "readme/test_commands.py::test_commands[": "readme",
    "cli/test_verbs.py::test_demo": "command", "cli/test_verbs.py::test_a_grid_runs_only": "command",
    "cli/test_study.py::test_the_report_shows": "command", "cli/test_startup.py": "command",
    "runs/test_tracking.py::test_trackio_holds": "command", "nn/test_graph.py": "export", "cli/test_load.py": "export",
    "studies/slotdiffusion/test_unet.py::test_it_compiles": "compile",
    "studies/slotdiffusion/test_task.py::test_both_phases": "command",
    "studies/slotdiffusion/test_task.py::test_a_run_resumes_exactly": "resume",
    "studies/slotdiffusion/test_task.py::test_pictures": "pictures",
    "studies/darts/test_task.py::test_a_search_resumes_exactly": "resume",
    "studies/darts/test_task.py::test_an_evaluation": "resume",
    "studies/darts/test_task.py::test_the_plain_form": "resume", "core/test_loop.py::test_a_stopped_process": "kill",
    "cli/test_verbs.py::test_a_stop_outside": "kill", "runs/test_grid.py::test_what_runs_here_is_asked": "kill",
    "security/test_pickles.py::test_as_weights": "fuzz",
    "security/test_archives.py::test_a_zip_bomb": "fuzz",
    "studies/slotdiffusion/test_predict.py::test_weights_in_half": "resume",
    "studies/dcgan/test_task.py::test_memory_does_not_grow": "memory",
    "studies/darts/test_bad_input.py::test_predictions_of_a_search": "command",
    "cli/test_tune.py::test_a_study_without_a_metric": "command",
    "studies/test_baselines.py::test_the_nearest_training_problem": "real", "data/test_audit.py::test_three": "real",
    "studies/text2math/test_problems.py::test_every_gold": "real", "data/test_omniglot.py": "real",
    "studies/text2math/test_problems.py::test_the_official": "real", "studies/test_baselines.py::test_pixels": "real",
    "studies/test_baselines.py::test_real_pairs": "real", "golden/test_presets.py": "golden",
    "studies/slotdiffusion/test_shipped.py::test_its_attention": "real", "security/test_pickles.py::test_in": "fuzz",
    "studies/darts/test_shared.py::test_a_shared_cell_is": "resume", "cli/test_report.py::test_what_goes": "command",
    "studies/darts/test_shared.py::test_a_network_of": "resume", "cli/test_report.py::test_a_run_of": "command",
    "cli/test_surroundings.py::test_every_verb": "command",
    "core/test_randomness.py::test_a_fresh": "command", "studies/darts/test_bad_input.py::test_a_cell": "command",
    "studies/slotdiffusion/test_predict.py::test_memory": "command",
}  # fmt: skip


def _long(path: str) -> list[str]:
    return [mark for name, mark in LONG.items() if path.startswith(f"tests/{name}")]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file that is left out whole is not imported either: some of them need seconds for that."""
    path = collection_path.relative_to(ROOT).as_posix() if collection_path.is_relative_to(ROOT) else ""
    return True if path.endswith(".py") and _long(path) and "not long" in config.option.markexpr else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        own = _long(item.nodeid)
        if "server" in getattr(item, "fixturenames", ()):
            own.append("browser")
        for mark in (*own, *(["long"] if own else [])):
            item.add_marker(mark)


class _ByFile(LoadScopeScheduling):
    """A file's tests run in one process, and so do all that share a server, a cluster or a site."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return next((name for name in ("serve", "docs", "cluster") if path.startswith(f"tests/{name}/")), path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return _ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The networks are small: two threads that wait for each other on a busy machine take many times as long."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _pictures_fail():
    """A picture that cannot be drawn is a fault, where a run would go on without it."""
    from etude.draw import figures

    patch = pytest.MonkeyPatch()
    patch.setattr(figures, "each_alone", lambda say: contextlib.nullcontext())
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """A cache of the tests' own; processes they start share it."""
    before = {name: os.environ.get(name) for name in ("ETUDE_CACHE", "ETUDE_MIRROR")}
    os.environ["ETUDE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ.pop("ETUDE_MIRROR", None)
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A folder that all processes of the session share: ``built_once("finished", build)`` fills it at the first call.

    It is to be left as it is.
    """
    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    base.mkdir(exist_ok=True)

    def built(name: str, build: Callable[[Path], object]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                # What a build that failed has left.
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                build(folder)
                done.touch()
        return folder

    return built


_MIRROR = os.environ.get("ETUDE_MIRROR") or str(ROOT.parent / "shared" / "data")


@pytest.fixture
def real_omniglot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published Omniglot files, from a mirror; the test is skipped where there is none."""
    if not _MIRROR.startswith("http") and not (Path(_MIRROR) / "omniglot").is_dir():
        pytest.skip("no mirror of Omniglot: set ETUDE_MIRROR")
    monkeypatch.setenv("ETUDE_MIRROR", _MIRROR)


def _in_mirror(name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = Path(_MIRROR) / name
    if not path.is_file():
        pytest.skip(f"no mirror of {name}: set ETUDE_MIRROR")
    monkeypatch.setenv("ETUDE_MIRROR", _MIRROR)
    return path


@pytest.fixture
def real_table(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The table of NAS-Bench-201, from a mirror folder; the test is skipped where there is none."""
    return _in_mirror("nasbench201.csv", monkeypatch)


@pytest.fixture
def real_birds(monkeypatch: pytest.MonkeyPatch) -> Path:
    """811 photos of six bird species, from a mirror folder; the test is skipped where there is none."""
    return _in_mirror("birds6_224.zip", monkeypatch)


@pytest.fixture
def real_cifar(monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10 as JPEG copies, from a mirror folder; the test is skipped where there is none."""
    return _in_mirror("cifar10_jpeg.npz", monkeypatch)


@pytest.fixture
def real_mathqa(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The course's split of MathQA, from a mirror folder; the test is skipped where there is none."""
    return _in_mirror("mathqa/train.json", monkeypatch).parent


@pytest.fixture
def real_mnist(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published MNIST files, from a mirror folder; the test is skipped where there is none."""
    return _in_mirror("mnist/train-images-idx3-ubyte.gz", monkeypatch).parent


@pytest.fixture
def real_pairs(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Subsets of 50 pairs each, from a mirror folder; the test is skipped where there is none."""
    return _in_mirror("pairs/maps_subset_256x512.zip", monkeypatch).parent


@pytest.fixture
def real_scenes(monkeypatch: pytest.MonkeyPatch) -> Path:
    """1,727 rendered scenes with masks, from a mirror folder; the test is skipped where there is none."""
    return _in_mirror("clevrtex-render-128.zip", monkeypatch)


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(autouse=True)
def _all_floats():
    """A run on the CPU makes numbers below a float's exponent zero, and hypothesis insists on them."""
    torch.set_flush_denormal(False)
