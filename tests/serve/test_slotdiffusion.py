"""The tab of slotdiffusion: what is drawn on the way, and that a drawing nobody waits for costs nothing."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.studies.slotdiffusion.predict_common import networks, settings

from etude.core.checkpoint import WeightsHeader, save_weights
from etude.core.config import to_dict
from etude.core.errors import UserError
from etude.core.run_folder import RunFolder, RunRecord
from etude.nn.pixels import to_bytes
from etude.scenes.page import SAMPLES, changed, looked
from etude.serve.kit.site import SHIPPED, Site
from etude.studies.slotdiffusion import page as slotdiffusion
from etude.studies.slotdiffusion.model import SlotDiffusion
from etude.studies.slotdiffusion.page import Moment, draw, drawing, look, painter_of, progress_html, thinned
from etude.studies.slotdiffusion.predict import STREAM
from etude.studies.slotdiffusion.samplers import SAMPLERS

FIRST, SECOND = (str(SAMPLES / f"CLEVRTEX_render_00000{number}.png") for number in (3, 5))


def trained(runs: Path, name: str, *, fresh: bool = False, **changes: Any) -> Path:
    """A finished run with weights that were drawn; ``fresh``: those that training begins with."""
    config = to_dict(settings(**changes))
    run = RunFolder.create(runs / "slotdiffusion" / name, RunRecord("slotdiffusion", "smoke", "smoke", {}, config))
    place = run.checkpoints().path(1)
    place.mkdir(parents=True)
    model, vae = networks(**changes)
    if fresh:
        model = SlotDiffusion(settings(**changes).model, settings(**changes).vae.channels)
    modules = {"vae": vae} if changes.get("phase") == "vae" else {"model": model, "vae": vae}
    save_weights(place / "weights.safetensors", modules, WeightsHeader("slotdiffusion", config, {}))
    run.checkpoints().mark_best(1, "loss", 0.0)
    run.write_summary({"extra": {}, "results": [], "stopped_early": False})
    return run.path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    runs = tmp_path_factory.mktemp("runs")
    trained(runs, "one")
    return Site(runs)


def wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("sampler", slotdiffusion.SAMPLERS)
def test_the_last_moment_is_the_picture(site: Site, sampler: str):
    loaded = slotdiffusion._networks(site, "one")
    painter = painter_of(loaded, sampler, 5, 3)
    pictures = [scene.slots for scene in looked(look, site, "one", FIRST, SECOND)]
    moments = list(drawing(painter, pictures, pause=0.0))
    assert [(m.picture, m.step, m.steps) for m in moments] == [(p, s, 5) for p in (0, 1) for s in range(1, 6)]
    for number, slots in enumerate(pictures):
        wanted = to_bytes(painter.paint(torch.stack(list(slots))[None], [0], STREAM))[0].numpy()
        last = moments[5 * number + 4]
        assert np.array_equal(last.noisy_HWC, wanted)
        assert np.abs(last.guess_HWC.astype(int) - wanted).max() <= 1
    assert moments[-1].left == 0
    assert moments[0].left > 0


def test_few_moments_are_shown_of_many_steps(site: Site):
    painter = painter_of(slotdiffusion._networks(site, "one"), "ddim", 10, 0)
    moments = list(drawing(painter, [look(site, "one", FIRST).slots], pause=60.0))
    assert [moment.step for moment in moments] == [1, 10]


def test_a_drawing_that_is_closed_takes_no_further_step(site: Site, monkeypatch: pytest.MonkeyPatch):
    painter = painter_of(slotdiffusion._networks(site, "one"), "ddim", 10, 0)
    asked: list[int] = []
    unet = painter.model.unet
    forward = unet.forward
    monkeypatch.setattr(unet, "forward", lambda *a, **k: asked.append(1) or forward(*a, **k))
    slots = look(site, "one", FIRST).slots
    moments = drawing(painter, [slots] * 500, pause=0.0)
    next(moments)
    moments.close()  # pyright: ignore[reportAttributeAccessIssue]
    wait(lambda: all(thread.name != "etude-work" for thread in threading.enumerate()))
    assert len(asked) <= 3, "of 5,000"


def test_changes_are_drawn(site: Site):
    scenes = looked(look, site, "one", FIRST, SECOND)
    assert [len(part) for part in changed(["move:1"], scenes)] == [2, 4]
    *_, (progress, html) = draw(site, "one", FIRST, SECOND, ["move:1"], "ddim", 3, 0)
    assert "Drawn in 3 steps with ddim." in progress
    assert html.count("drawn of noise and its slots") == 2


def test_what_is_said_of_the_time(site: Site):
    painter = painter_of(slotdiffusion._networks(site, "one"), "ddim", 10, 0)
    blank = np.zeros((2, 2, 3), np.uint8)
    told = progress_html(Moment(1, 4, 10, 200.0, blank, blank), 2, painter)
    assert "Step 4 of 10 of picture 2 of 2, about 3 min left" in told
    assert 'value="14" max="20"' in told
    assert "about 1 s left" in progress_html(Moment(0, 4, 10, 0.01, blank, blank), 1, painter)


def test_a_long_way_is_thinned_but_its_last_moment_stays():
    way = [np.full((1, 1), number, np.uint8) for number in range(11)]
    assert [int(image[0, 0]) for image in thinned(way)] == [0, 2, 4, 6, 8, 10]
    assert thinned(way[:10]) == way[:10]


def test_the_samplers_are_those_of_the_study_and_no_file_is_run(site: Site, tmp_path: Path):
    assert set(slotdiffusion.SAMPLERS) == set(SAMPLERS)
    code = tmp_path / "code.py"
    code.write_text("raise SystemExit('this was run')\n")
    loaded = slotdiffusion._networks(site, "one")
    for sampler, steps, seed, line in (
        (f"{code}:sampler", 3, 0, "no sampler"), ("ddim", 11, 0, "give 1 to 10"), ("ddim", 0, 0, "give 1 to 10"),
        ("ddim", 3, -1, "the seed must be"), ("ddim", 3, 2**40, "the seed must be"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=line):
            painter_of(loaded, sampler, steps, seed)


def test_without_a_network_the_tab_says_what_to_run(site: Site):
    with pytest.raises(UserError, match="'etude run slotdiffusion smoke' trains a tiny one"):
        look(site, "", FIRST)


@pytest.mark.parametrize("found", [[], ["one"]])
def test_the_tab_says_so_before_anything_is_asked(site: Site, monkeypatch: pytest.MonkeyPatch, found: list[str]):
    monkeypatch.setattr(Site, "choices", lambda *_: found)
    assert slotdiffusion.missing(site).startswith("No network of slotdiffusion is here yet") == (not found)


def test_an_autoencoder_alone_is_not_offered(tmp_path: Path):
    trained(tmp_path, "one")
    trained(tmp_path, "vae", phase="vae")
    site = Site(tmp_path)
    site.fits["slotdiffusion"] = slotdiffusion.has_slots
    assert [name for name in site.choices("slotdiffusion") if name != SHIPPED] == ["one"]
    with pytest.raises(UserError, match="an autoencoder alone"):
        look(site, "vae", FIRST)


# --- in a browser ---


def seconds_of(process: int) -> float:
    """What a process has used of the processors."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def server_of(runs: Path) -> int:
    """The process that serves a runs folder."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"serve" in words and str(runs).encode() in words:
            return int(entry.parent.name)
    raise AssertionError("no server")


def becomes_idle(process: int) -> bool:
    """Whether a second comes in which the process does next to nothing."""
    for _ in range(10):
        before = seconds_of(process)
        time.sleep(1)
        if seconds_of(process) - before < 0.25:
            return True
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads what a process has used from /proc")
def test_a_long_drawing_is_cancelled_and_the_machine_is_idle(visit: Any, expect: Any, runs: Path):
    expect.set_options(timeout=30_000)
    # A thousand steps take many times as long as this test; so little noise keeps what is not trained finite.
    big: dict[str, Any] = {"model__size": 64, "model__width": 48, "vae__width": 8, "chain__steps": 1000}
    big |= {"chain__first": 1e-4, "chain__last": 2e-3}
    trained(runs, "slow", fresh=True, **big)
    page = visit("slotdiffusion")
    panel = page.get_by_role("tabpanel").filter(visible=True)
    panel.get_by_label("Network").click()
    page.get_by_role("option", name="slow", exact=True).click()
    panel.get_by_role("button", name="CLEVRTEX_render_000003").click()
    expect(panel.get_by_text("First picture:")).to_be_visible()
    panel.get_by_label("Sampler").click()
    page.get_by_role("option", name="ancestral").click()
    panel.get_by_label("number input for Steps").fill("1000")
    panel.get_by_role("button", name="Draw").click()
    expect(panel.locator("#slotdiffusion-progress")).to_contain_text("of 1000, about")
    expect(panel.get_by_alt_text("what the network takes the latent for")).to_be_visible()
    panel.get_by_role("button", name="Cancel").click()
    expect(panel.locator("#slotdiffusion-progress")).to_have_text("Stopped: nothing is being drawn.")
    process = server_of(runs)
    assert becomes_idle(process)
    expect(panel.locator("#slotdiffusion-progress")).to_have_text("Stopped: nothing is being drawn.")
    # The next one is drawn to its end.
    panel.get_by_label("number input for Steps").fill("2")
    panel.get_by_role("button", name="Draw").click()
    expect(panel.locator("#slotdiffusion-progress")).to_contain_text("Drawn in 2 steps with ancestral.")
    expect(panel.get_by_alt_text("the first picture drawn of noise and its slots")).to_be_visible()
    # A visitor who leaves stops what was drawn for him.
    panel.get_by_label("number input for Steps").fill("1000")
    panel.get_by_role("button", name="Draw").click()
    expect(panel.locator("#slotdiffusion-progress")).to_contain_text("of 1000, about")
    page.close()
    assert becomes_idle(process)
