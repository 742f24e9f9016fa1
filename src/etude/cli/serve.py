"""``etude serve``: the page, with a tab a study, on this machine."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from etude.core.errors import UserError, extra


@dataclass(frozen=True)
class Options:
    runs: Path = Path("runs")
    """The folder of local runs; it need not exist, for trained networks come with the package."""
    host: str = "127.0.0.1"
    """The address to listen at. Another than a loopback one lets other machines in: nobody is asked for a password."""
    port: int = 7860
    """0 takes any that is free."""
    open: bool = False
    """Open the page in a browser."""


def main(options: Options) -> None:
    if importlib.util.find_spec("gradio") is None:
        raise UserError(f"the page needs gradio: {extra('web')}")
    if options.runs.exists() and not options.runs.is_dir():
        raise UserError(f"--runs {options.runs} is not a folder: name the one that `etude run` writes to")
    from etude.serve.app import serve
    from etude.serve.kit.site import Site

    serve(Site(options.runs), options.host, options.port, opened=options.open)
