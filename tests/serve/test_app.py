"""The server: what it refuses, and that it is this machine's alone."""

import json
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from etude.cli import main
from etude.core.errors import UserError
from etude.serve import app
from etude.serve.app import Guard, listen, strange_file

API = "/gradio_api"


def ask(url: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Status and text of an answer; no proxy is asked."""
    request = urllib.request.Request(url, body, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode("utf-8", "replace")


def test_the_page_asks_no_other_machine(server: str):
    status, page = ask(server)
    assert status == 200
    # Addresses that stand in the page for search engines are asked for by nobody.
    asked = re.findall(r'(?:src|href)="(https?://[^"]+)"', page)
    assert asked == []
    config = json.loads(ask(f"{server}/config")[1])
    assert config["analytics_enabled"] is False
    assert config["max_file_size"] == app.MAX_UPLOAD
    assert config["stylesheets"] == []
    assert {one["api_visibility"] for one in config["dependencies"]} == {"private"}


@pytest.mark.parametrize(
    "path",
    [
        f"{API}/file=/etc/passwd", f"{API}/file=../../etc/passwd", f"{API}/file=README.md", f"{API}/file=//etc/passwd",
        f"{API}/file=/proc/self/environ", f"{API}/file=http://127.0.0.1:9/", f"{API}/file=HTTPS://example.org/x.png",
        f"{API}/proxy=https://example.org/", f"{API}/run/predict", f"{API}/call/predict", f"{API}/runs",
        f"{API}/openapi.json", f"{API}/run-history/buckets", f"{API}/dev/reload", f"{API}/deep_link", "/monitoring",
        "/monitoring/summary", "/docs", "/openapi.json", "/login", "/pwa_icon", f"{API}/vibe-code", "/gradio_apix/info",
    ],
)  # fmt: skip
def test_other_paths_are_refused(server: str, path: str):
    status, text = ask(server + path)
    assert status in (403, 404), text
    assert "root:" not in text


def test_files_of_the_runs_folder_are_refused(server: str, runs: Path):
    secret = runs / "note.txt"
    secret.write_text("secret")
    assert ask(f"{server}{API}/file={secret}")[0] == 403


def test_other_names_and_other_pages_are_refused(server: str):
    # A page elsewhere may point its name to this machine.
    assert ask(server, Host="example.org")[0] == 403
    assert ask(server, Host=server.removeprefix("http://"))[0] == 200
    join = f"{server}{API}/queue/join"
    assert ask(join, b"{}", Origin="https://example.org", Content_Type="application/json")[0] == 403
    assert ask(join, b"{}", Origin="null", Content_Type="application/json")[0] == 403


def test_an_address_in_place_of_a_file_is_refused(server: str):
    """Else the server would fetch it."""
    config = json.loads(ask(f"{server}/config")[1])
    event = next(one for one in config["dependencies"] if len(one["inputs"]) == 2)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0.2)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/x.png"
        file = {"path": url, "url": url, "meta": {"_type": "gradio.FileData"}}
        body = {"data": ["shipped with etude", file], "fn_index": event["id"], "session_hash": "x"}
        status, text = ask(f"{server}{API}/queue/join", json.dumps(body).encode(), Content_Type="application/json")
        assert (status, text) == (400, "a file is uploaded, not named by an address\n")
        with pytest.raises(TimeoutError):
            listening.accept()


ADDRESS, PLACE = "a file is uploaded, not named by an address", "a file is uploaded, not named by its place"


@pytest.mark.parametrize(("body", "fault"), [
    (json.dumps({"data": [[{"value": {"path": " HTTPS://example.org/x"}}]]}), ADDRESS),
    (r'{"path": "\u0068ttp://example.org"}', ADDRESS),
    ('{"path": "//example.org/x.png"}', ADDRESS),
    ('{"data": [{"path": "/uploads/x.png", "url": "http://127.0.0.1:7860/file=/uploads/x.png"}]}', None),
    ('{"data": "solve http://example.org"}', None),
    ('{"data": {"path": null}}', None),
    ('{"data": [{"path": "/uploads"}]}', PLACE),
    ('{"data": [{"path": "/uploads/../etc/passwd"}]}', PLACE),
    ('{"data": [{"path": "/uploadsx/x.png"}]}', PLACE),
    ('{"data": {"background": {"path": "/etc/passwd"}}}', PLACE),
    ('{"data": [{"path": "x.png"}]}', PLACE),
    (r'{"data": [{"path": "/uploads/x\u0000.png"}]}', PLACE),
    ("\xff not json", None),
    ("[" * 100_000, "the request is too deeply nested"),
])  # fmt: skip
def test_what_is_no_upload_is_seen_wherever_it_stands(body: str, fault: str | None):
    assert strange_file(body.encode("latin-1"), "/uploads") == fault


def test_a_link_out_of_the_uploads_is_seen(tmp_path: Path):
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "x.png").symlink_to(tmp_path / "secret.png")
    assert strange_file(json.dumps({"path": f"{tmp_path}/uploads/x.png"}).encode(), f"{tmp_path}/uploads") == PLACE


def test_another_file_of_the_machine_is_not_read(server: str, tmp_path: Path):
    """Else a visitor would see any picture of the machine, and learn which files there are."""
    Image.new("RGB", (32, 32)).save(tmp_path / "secret.png")
    config = json.loads(ask(f"{server}/config")[1])
    event = next(one for one in config["dependencies"] if len(one["inputs"]) == 2)
    for path in (tmp_path / "secret.png", Path("/etc/passwd"), Path("/no/such/file")):
        file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        body = {"data": ["shipped with etude", file], "fn_index": event["id"], "session_hash": "y"}
        answer = ask(f"{server}{API}/queue/join", json.dumps(body).encode(), Content_Type="application/json")
        assert answer == (400, f"{PLACE}\n")


def test_large_uploads_are_refused(server: str):
    body = b"".join([
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n', bytes(50 * 2**20),
        b"\r\n--x--\r\n",
    ])  # fmt: skip
    try:
        status, text = ask(f"{server}{API}/upload", body, Content_Type="multipart/form-data; boundary=x")
    except (urllib.error.URLError, ConnectionError):
        # The server may hang up before all is sent.
        return
    assert status == 413
    assert "Traceback" not in text
    assert ask(f"{server}{API}/queue/join", bytes(5 * 2**20), Content_Type="application/json")[0] == 413


def test_another_host_may_be_asked_under_any_name():
    assert Guard(None, "0.0.0.0").refusal("/", {"host": "lab.example.org:7860"}) is None
    assert Guard(None, "::1").refusal("/", {"host": "[::1]:7860"}) is None
    assert Guard(None, "127.0.0.1").refusal("/", {"host": "[bad"}) is not None
    assert Guard(None, "127.0.0.1").refusal("/", {}) is not None


def test_port_in_use(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--runs", str(tmp_path), "--port", str(port)]) == 2
    line = f"etude: port {port} is in use: stop what uses it, or give another as --port"
    assert capsys.readouterr().err.strip() == line


@pytest.mark.parametrize(("host", "port", "said"), [
    ("no.such.host.invalid", 0, "no address of this machine"), ("203.0.113.7", 0, "no address of this machine"),
    ("127.0.0.1", 70_000, "--port must be between"), ("127.0.0.1", -1, "--port must be between"),
    ("x" * 300, 0, "no address of this machine"),
])  # fmt: skip
def test_wrong_addresses(host: str, port: int, said: str):
    with pytest.raises(UserError, match=said):
        listen(host, port)


def test_a_file_is_no_runs_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    (tmp_path / "file").write_text("x")
    assert main(["serve", "--runs", str(tmp_path / "file")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_without_gradio(tmp_path: Path):
    """In a process of its own, where gradio cannot be found."""
    code = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'gradio' else find(name, *rest)\n"
        "from etude.cli import main; sys.exit(main(['serve']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "gradio" in line
    assert "uv sync --extra web" in line


def test_a_large_upload_is_refused_on_the_page(visit: Any, expect: Any, tmp_path: Path):
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(50 * 2**20)
    page = visit("resnet")
    page.locator("input[type=file]").first.set_input_files(path)
    expect(page.get_by_text("exceed the maximum allowed size of 20.0 Mb")).to_be_visible()


@pytest.mark.parametrize("width", [1280, 390])
def test_no_tab_is_wider_than_the_page(visit: Any, expect: Any, turn: Any, width: int):
    page = visit("runs", width=width)
    for module in app.tabs().values():
        turn(page, module.TITLE)
        expect(page.get_by_role("tabpanel").first).to_be_visible()
        # It may be laid out once more when what it shows has come.
        page.wait_for_function(f"document.documentElement.scrollWidth <= {width}")
