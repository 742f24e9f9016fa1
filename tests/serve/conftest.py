"""One server for all tests of the page, and a browser for each file of them.

The server is a process of its own, as `etude serve` starts it. A test opens a page with `visit("resnet")`; it is closed
when the test ends, and the test fails if a request of it left this machine or a script of it failed.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

gradio = pytest.importorskip("gradio", reason="the page is an extra: `uv sync --extra web`")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: `uv sync` installs it")

Visit = Callable[..., Any]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of the server; a test that puts a run into it takes a name of its own."""
    return tmp_path_factory.mktemp("runs")


MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    """Writes a run folder: ``make_run(runs, "darts", "one", rows=[...])``.

    ``like_shipped`` gives it the weights that come with the package, as a run that has ended; ``ended`` a summary
    alone.
    """
    from etude import registry
    from etude.core.checkpoint import read_weights
    from etude.core.config import to_dict
    from etude.core.run_folder import RunFolder, RunRecord

    def made(
        runs: Path, name: str, run: str, *, preset: str = "smoke", rows: Sequence[Mapping[str, Any]] = (),
        like_shipped: bool = False, ended: bool = False,
    ) -> Path:  # fmt: skip
        study = registry.load(name)
        config = to_dict(study.preset(preset).build())
        extra: dict[str, Any] = {}
        if like_shipped:
            assert study.shipped_weights is not None
            _, header = read_weights(study.shipped_weights)
            config, extra = header.config, header.extra
        folder = RunFolder.create(runs / name / run, RunRecord(name, preset, "smoke", {}, config))
        for row in rows:
            folder.append_metrics(row)
        if like_shipped:
            assert study.shipped_weights is not None
            place = folder.checkpoints().path(1)
            place.mkdir(parents=True)
            shutil.copy(study.shipped_weights, place / "weights.safetensors")
            folder.checkpoints().mark_best(1, "loss", 0.0)
        if like_shipped or ended:
            folder.write_summary({"extra": extra, "results": [], "stopped_early": False})
        return folder.path

    return made


@pytest.fixture(scope="session")
def server(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running page."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    words = [sys.executable, "-m", "etude", "serve", "--runs", str(runs), "--port", "0"]
    # Anything that left this machine would end there.
    nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "all")}
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=file, env=os.environ | nowhere)
    try:
        yield _address(process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = [word for word in log.read_text().split() if word.startswith("http://127.0.0.1")]
        if found:
            return found[0]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"no page after two minutes: {log.read_text()}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window. It ends with the file, for its event loop would be in the way of tests elsewhere."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on this machine: install it to test the page")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(server: str, browser: Any) -> Iterator[Visit]:
    """Opens a tab of the page as a new visitor: ``visit("resnet")``, with the width of a phone as ``width=390``."""
    contexts: list[Any] = []
    faults: list[str] = []

    def watch(request: Any) -> None:
        place = urlsplit(request.url)
        if place.scheme not in ("data", "blob") and place.hostname != "127.0.0.1":
            faults.append(f"a request to {request.url}")

    def opened(tab: str, width: int = 1280, height: int = 900) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", watch)
        page.on("pageerror", lambda error: faults.append(f"a script failed: {error}"))
        page.goto(server)
        turn_to(page, tab)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not faults


def turn_to(page: Any, tab: str) -> None:
    """Choose a tab; on a narrow page some of them stand in a menu."""
    page.locator("[role=tab]").first.wait_for()
    button = page.get_by_role("tab", name=tab, exact=True)
    if button.count():
        button.click()
        return
    page.get_by_role("button", name="More tabs").click()
    page.locator(".overflow-dropdown").get_by_role("button", name=tab, exact=True).click()


@pytest.fixture
def turn() -> Callable[[Any, str], None]:
    """Chooses another tab of an open page: ``turn(page, "darts")``."""
    return turn_to


@pytest.fixture
def expect() -> Any:
    """Playwright's assertions, which wait: long, for a busy machine is no fault."""
    playwright.expect.set_options(timeout=40_000)
    return playwright.expect
