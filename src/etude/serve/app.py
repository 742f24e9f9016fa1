"""The page: a tab a study, on this machine alone.

Nothing of it comes from another machine: fonts are the system's, analytics, sharing and version checks are off, and a
visitor's request cannot make the server fetch anything.
"""

import contextlib
import ipaddress
import json
import os
import signal
import socket
import tempfile
import threading
import urllib.parse
import webbrowser
from pathlib import Path
from typing import Any

# Before gradio is imported, which reads them then.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
os.environ.pop("GRADIO_ALLOWED_PATHS", None)

import gradio as gr
from fastapi import FastAPI
from gradio.themes.default import Default
from gradio.themes.utils.fonts import Font
from gradio.utils import get_upload_folder

from etude import registry
from etude.core.errors import UserError
from etude.draw import svg
from etude.serve import runs
from etude.serve.kit import markup
from etude.serve.kit.site import MAX_UPLOAD, Site

_FONTS = [Font(name) for name in ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif")]
_MONO = [Font(name) for name in ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")]
_CSS = """
.gradio-container { max-width: 1160px !important; margin: 0 auto !important; }
.tab-wrapper { max-width: calc(100vw - 32px); }
.drop img { width: 100%; height: 100%; object-fit: contain; }
:focus-visible { outline: 2px solid #0072B2 !important; outline-offset: 2px; }
"""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def tabs() -> dict[str, Any]:
    """The tabs by name, in the order of the page: those of the studies that have a page.py, then the runs'."""
    studies = map(registry.load, registry.NAMES)
    return {study.name: study.module("page") for study in studies if study.has("page")} | {"runs": runs}


def build(site: Site) -> gr.Blocks:
    """The page of a site, to be served by `application`."""
    with gr.Blocks(title="etude", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("# etude\nClassic deep-learning systems: the networks that come with it, and your own runs.")
        with gr.Tabs():
            for name, module in tabs().items():
                with gr.Tab(module.TITLE, id=name):
                    module.tab(site)
        menus = [(study, menu) for study, found in site.choosers.items() for menu in found]
        if menus:
            # Runs may have ended since the page was built.
            page.load(
                lambda: {menu: gr.update(choices=site.choices(study)) for study, menu in menus},
                outputs=[menu for _, menu in menus],
                show_progress="hidden",
            )
    for event in page.fns.values():
        event.api_visibility = "private"
        # Examples would ask past the queue, by a route that is closed here.
        event.queue = True
    # One of each kind at a time, and no endless line of those who wait.
    page.queue(max_size=64, default_concurrency_limit=1, api_open=False)
    return page


def application(site: Site, host: str) -> FastAPI:
    """The web application of a site that listens at ``host``, an IP address."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    theme = Default(primary_hue="blue", font=_FONTS, font_mono=_MONO)
    styles = "".join(getattr(tab, "CSS", "") for tab in tabs().values())
    gr.mount_gradio_app(
        app, build(site), "/",
        footer_links=[], run_history=False, root_path="", allowed_paths=[], blocked_paths=[str(site.runs.resolve())],
        show_error=False, max_file_size=MAX_UPLOAD, ssr_mode=False, enable_monitoring=False, pwa=False,
        mcp_server=False, theme=theme, css=_CSS + markup.CSS + svg.STYLE + styles,
    )  # fmt: skip
    app.add_middleware(Guard, host=host)
    return app


def serve(site: Site, host: str, port: int, *, opened: bool = False) -> None:
    """Serve the page until the process is stopped, and open it in a browser where ``opened`` says so.

    Raises:
        UserError: the address is none of this machine's, or the port (0: any that is free) is taken.
    """
    import uvicorn

    listening = listen(host, port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A folder for uploads and pictures that goes when the page does, in place of one that all users share.
    with listening, tempfile.TemporaryDirectory(prefix="etude-serve-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder).resolve())
        server = uvicorn.Server(
            uvicorn.Config(
                application(site, listening.getsockname()[0]), log_level="critical", timeout_graceful_shutdown=1
            )
        )
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}"
        print(f"etude: the page is at {address} (stop it with Ctrl-C)", flush=True)
        threading.Thread(target=warm, args=(site,), daemon=True).start()
        if opened:
            threading.Timer(1.0, webbrowser.open, (address,)).start()
        server.run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address and listens."""
    if not 0 <= port <= 65_535:
        raise UserError(f"--port must be between 0 and 65,535, not {port}")
    nowhere = f"--host '{host}' is no address of this machine: 127.0.0.1 keeps the page on it"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(nowhere) from error
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        if isinstance(error, PermissionError):
            raise UserError(f"port {port} needs rights that this process has not: give --port above 1023") from error
        if error.errno == 98 or "in use" in str(error):
            raise UserError(f"port {port} is in use: stop what uses it, or give another as --port") from error
        raise UserError(nowhere) from error
    return bound


def warm(site: Site) -> None:
    """Import what the tabs use, and load what comes with the package, before the first visitor asks."""
    for module in tabs().values():
        if hasattr(module, "warm"):
            with contextlib.suppress(Exception):
                module.warm(site)


class Guard:
    """Lets in what the page itself asks for, and refuses the rest of what gradio serves.

    Refused: a request under another name than the server's own, where it listens on loopback (a page elsewhere may
    point its name there), or sent by another site's page; routes that fetch, record or describe; a web address or
    another file of this machine where an upload is expected, see `strange_file`; bodies beyond a bound.
    """

    _EXACT = ("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt")
    _BELOW = ("/static/", "/assets/", "/svelte/")
    # Nothing here calls another machine: neither /proxy=... nor /file=http... is among them.
    _API = ("app_id", "cancel", "component_server", "file=", "heartbeat/", "info", "queue/data", "queue/join", "reset",
            "startup-events", "theme.css", "upload", "upload_progress")  # fmt: skip
    _MAX_JSON = 4 * 2**20
    _MAX_UPLOADS = 4 * MAX_UPLOAD
    """Bytes of all files of a request; each has a bound of its own."""

    def __init__(self, app: Any, host: str) -> None:
        self.app = app
        self.names = {*_LOOPBACK, host} if ipaddress.ip_address(host).is_loopback else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = "no such page" if scope["type"] != "http" else self.refusal(scope["path"], headers)
        if refusal:
            await _answer(send, 403, refusal)
            return
        if scope["method"] == "POST":
            # The server ends a body at its announced length; one in chunks has none.
            length, upload = headers.get("content-length", ""), scope["path"].endswith("/upload")
            most = self._MAX_UPLOADS if upload else self._limit(headers)
            if "transfer-encoding" in headers or not length.isdecimal() or int(length) > most:
                await _answer(send, 413, "the request is too large")
                return
            if not upload:
                body = await _whole(receive)
                fault = strange_file(body, get_upload_folder())
                if fault:
                    await _answer(send, 400, fault)
                    return
                receive = _again(body, receive)
        await self.app(scope, receive, send)

    def refusal(self, path: str, headers: dict[str, str]) -> str | None:
        """Why a request is refused, or None."""
        host, origin = headers.get("host", ""), headers.get("origin")
        try:
            name = urllib.parse.urlsplit(f"//{host}").hostname
        except ValueError:
            name = None
        if self.names is not None and name not in self.names:
            return "this page answers under the name of this machine only"
        if origin is not None and urllib.parse.urlsplit(origin).netloc != host:
            return "this page answers itself only"
        if path in self._EXACT or path.startswith(self._BELOW):
            return None
        name = path.removeprefix("/gradio_api/")
        known = name != path and any(name == api or (api[-1] in "=/" and name.startswith(api)) for api in self._API)
        if not known or name.lower().startswith(("file=http:", "file=https:")):
            return "no such page"
        return None

    def _limit(self, headers: dict[str, str]) -> int:
        return self._MAX_JSON if "json" in headers.get("content-type", "json") else MAX_UPLOAD


def strange_file(body: bytes, folder: str) -> str | None:
    """Why a JSON request is refused: it names a file that was not uploaded, or an address; else None.

    Gradio would fetch the address, and of an application that it did not launch itself it reads files of any place.

    Args:
        body: of the request.
        folder: where uploads and the page's own pictures lie.
    """
    try:
        waiting = [json.loads(body)]
    except RecursionError:
        return "the request is too deeply nested"
    except ValueError:
        return None
    root = os.path.realpath(folder)
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            place = value.get("path")
            if isinstance(place, str) and place:
                if place.strip().lower().startswith(("http:", "https:", "//", "ftp:")):
                    return "a file is uploaded, not named by an address"
                with contextlib.suppress(OSError, ValueError):
                    if os.path.realpath(place).startswith(f"{root}{os.sep}"):
                        place = None
                if place is not None:
                    return "a file is uploaded, not named by its place"
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return None


async def _whole(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _again(body: bytes, receive: Any) -> Any:
    """A ``receive`` that gives the body that was read already, and then what comes."""
    given = False

    async def once() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


async def _answer(send: Any, status: int, line: str) -> None:
    body = f"{line}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
