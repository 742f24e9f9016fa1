"""One page of reference for each public module, from its docstrings; the list is the tree itself."""

from typing import Any

import checkout
from mkdocs.structure.files import File, Files

# What a reader meets first comes first.
_ORDER = (
    "core", "registry", "nn", "scenes", "data", "metrics", "draw", "studies", "runs", "report", "serve", "cluster",
    "cli",
)  # fmt: skip


def _pages() -> dict[str, str]:
    """Pages of the reference and the modules they are of."""
    pages: dict[str, str] = {}
    for path in checkout.modules():
        if path.name.startswith("_"):
            # Empty ones have nothing to say.
            if path.name != "__init__.py" or path.parent.name == "" or not (_package(path)).strip():
                continue
            name = ".".join(path.parent.parts)
            pages[f"api/{'/'.join(path.parent.parts)}/index.md"] = f"etude.{name}"
        else:
            pages[f"api/{path.with_suffix('').as_posix()}.md"] = f"etude.{'.'.join(path.with_suffix('').parts)}"
    return pages


def _package(path: Any) -> str:
    return (checkout.ROOT / checkout.PACKAGE / path).read_text(encoding="utf-8")


def on_config(config: Any) -> Any:
    tree: dict[str, Any] = {}
    for page, module in _pages().items():
        *parents, name = module.split(".")[1:]
        if page.endswith("/index.md"):
            parents, name = [*parents, name], ""
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = page
    top = sorted(tree, key=_ORDER.index)
    written = [{name: _nav(tree[name])} for name in top]
    for entry in config.nav:
        if "Reference" in entry:
            entry["Reference"] += written
    return config


def _nav(place: Any) -> Any:
    if isinstance(place, str):
        return place
    pages = [place[name] if not name else {name: _nav(place[name])} for name in sorted(place)]
    # Modules before packages.
    return sorted(pages, key=lambda page: isinstance(page, dict) and isinstance(next(iter(page.values())), list))


def on_files(files: Files, config: Any, **_: Any) -> Files:
    for page, module in _pages().items():
        short = module.removeprefix("etude.")
        content = f"---\ntitle: {short}\nsearch:\n  boost: 0.5\n---\n# `{short}`\n\n::: {module}\n"
        files.append(File.generated(config, page, content=content))
    return files
