"""What the tabs share, without a browser: confined runs, networks in memory, one line for each fault."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest

from etude import registry
from etude.core.errors import UserError
from etude.serve.kit import site as site_module
from etude.serve.kit.site import SHIPPED, Site, answering, drawn, read


def test_shipped_first_then_finished_runs(tmp_path: Path, make_run: Any):
    assert Site(tmp_path / "absent").choices("resnet") == [SHIPPED]
    make_run(tmp_path, "resnet", "going")
    make_run(tmp_path, "resnet", "b", like_shipped=True)
    make_run(tmp_path, "resnet", "a", like_shipped=True)
    site = Site(tmp_path)
    assert site.choices("resnet") == [SHIPPED, "a", "b"]
    assert set(site.folders("resnet")) == {"a", "b", "going"}
    assert site.weights("resnet", SHIPPED) == (registry.load("resnet").shipped_weights, None)
    weights, extra = site.weights("resnet", "a")
    assert weights.is_relative_to(tmp_path)
    assert extra is not None


@pytest.mark.parametrize("name", ["", "c", "..", "../resnet/a", "/etc", "a/../a", "going", "a\0b", "x" * 5000])
def test_other_names_are_refused(tmp_path: Path, make_run: Any, name: str):
    make_run(tmp_path, "resnet", "a", like_shipped=True)
    make_run(tmp_path, "resnet", "going")
    with pytest.raises(UserError, match="no finished run"):
        Site(tmp_path).weights("resnet", name)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, make_run: Any):
    outside = make_run(tmp_path / "elsewhere", "resnet", "secret", like_shipped=True)
    inside = make_run(tmp_path / "runs", "resnet", "a", like_shipped=True)
    (tmp_path / "runs" / "resnet" / "link").symlink_to(outside)
    site = Site(tmp_path / "runs")
    assert site.choices("resnet") == [SHIPPED, "a"]
    with pytest.raises(UserError):
        site.weights("resnet", "link")
    weights = inside / "checkpoints" / "step-00000001" / "weights.safetensors"
    weights.unlink()
    weights.symlink_to(outside / "checkpoints" / "step-00000001" / "weights.safetensors")
    with pytest.raises(UserError, match="outside the runs folder"):
        site.weights("resnet", "a")


def test_networks_are_kept_until_their_file_changes(tmp_path: Path, make_run: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(site_module, "_KEPT", 2)
    made: list[Path] = []

    def load(weights: Path, extra: Mapping[str, Any] | None) -> int:
        made.append(weights)
        return len(made)

    for name in "abc":
        make_run(tmp_path, "resnet", name, like_shipped=True)
    site = Site(tmp_path)
    assert [site.loaded("resnet", name, load) for name in "aab"] == [1, 1, 2]
    # A third drives the one out that was asked for longest ago.
    assert [site.loaded("resnet", name, load) for name in "acab"] == [1, 3, 1, 4]
    weights, _ = site.weights("resnet", "b")
    weights.touch()
    assert site.loaded("resnet", "b", load) == 5


def test_a_network_in_use_is_waited_for(tmp_path: Path):
    site, order = Site(tmp_path), []
    begun = threading.Event()

    def load(weights: Path, extra: object) -> str:
        return "network"

    def second() -> None:
        with site.using("resnet", SHIPPED, load):
            order.append("second")

    with site.using("resnet", SHIPPED, load) as network:
        assert network == "network"
        other = threading.Thread(target=lambda: (begun.set(), second()))
        other.start()
        begun.wait()
        assert site.loaded("resnet", SHIPPED, load) == "network"
        order.append("first")
    other.join()
    assert order == ["first", "second"]


def test_faults_are_one_line(caplog: pytest.LogCaptureFixture):
    @answering
    def wrong(name: str) -> None:
        raise UserError(f"{name} is not\nan image")

    @answering
    def broken() -> None:
        raise ZeroDivisionError("secret")

    @answering
    def stream(count: int) -> Any:
        yield count
        raise UserError("enough")

    with pytest.raises(gr.Error) as fault:
        wrong("<img src=x onerror=alert(1)>")
    assert fault.value.message == "&lt;img src=x onerror=alert(1)&gt; is not an image"
    with pytest.raises(gr.Error) as fault:
        broken()
    assert "secret" not in fault.value.message
    assert "ZeroDivisionError" in caplog.text
    given = stream(3)
    assert next(given) == 3
    with pytest.raises(gr.Error, match="enough"):
        next(given)


def test_pictures_are_read_by_the_name_that_the_visitor_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "hash" / "notes.png"
    path.parent.mkdir()
    path.write_text("no picture")
    with pytest.raises(UserError, match=r"^notes\.png is not an image of a known format"):
        read(str(path))
    with pytest.raises(UserError, match="no picture yet"):
        read(None)
    monkeypatch.setattr(site_module, "MAX_UPLOAD", 5)
    with pytest.raises(UserError, match=r"^notes\.png is larger than"):
        read(str(path))


def test_a_drawing_becomes_pixels():
    from etude.draw.figures import figure

    def draw(path: Path) -> None:
        with figure(path, 2.0, 1.0) as page:
            page.subplots().plot([0, 1])

    assert drawn(draw).shape == (110, 220, 3)
    assert drawn(draw).dtype == np.uint8
