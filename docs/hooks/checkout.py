"""Where things of the checkout stand in the site; shared by the hooks."""

import ast
import functools
import posixpath
from pathlib import Path

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[2]
PACKAGE = "src/etude"
_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "results/full-runs.md": "full-runs.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks": "benchmarks.md",
    "results": "studies/index.md",
}
PICTURES = (".png", ".jpg", ".gif", ".svg")


def modules() -> list[Path]:
    """The public modules of the package, relative to its folder, packages as their ``__init__.py``."""
    found = [path.relative_to(ROOT / PACKAGE) for path in sorted((ROOT / PACKAGE).rglob("*.py"))]
    return [path for path in found if path.parts[:2] not in (("data", "samples"), ("data", "render"))]


def sources() -> list[str]:
    """The Python files that the site shows, from the root of the checkout."""
    files = [*(ROOT / PACKAGE).rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


def page_of_source(file: str) -> str:
    """The page that shows a Python file of `sources`."""
    return f"source/{file.removeprefix(PACKAGE + '/')}.md"


def page_of(file: str) -> str | None:
    """The page or picture of the site that stands for a file of the checkout; None where there is none.

    Raises:
        PluginError: there is no such file.
    """
    if not (ROOT / file).exists():
        raise PluginError(f"{file} is linked to, and is not in the checkout")
    if file in _PAGES:
        return _PAGES[file]
    if file.startswith(f"{PACKAGE}/studies/") and file.endswith("/README.md"):
        return f"studies/{Path(file).parent.name}.md"
    if file.endswith(".py") and file in sources():
        return page_of_source(file)
    if file.endswith(PICTURES):
        return file
    return None


def relative(page: str, origin: str) -> str:
    """A link from one page to another."""
    return posixpath.relpath(page, posixpath.dirname(origin) or ".")


def lines_of(spec: str) -> tuple[str, int, int]:
    """The file, first and last line of ``studies/dcgan/model.py:Generator.forward``; of the whole file without a colon.

    A path is from the package's folder, or from the root of the checkout.

    Raises:
        PluginError: no such file, or no such name in it.
    """
    path, _, symbol = spec.partition(":")
    file = next((f for f in (f"{PACKAGE}/{path}", path) if (ROOT / f).is_file()), None)
    if file is None:
        raise PluginError(f"no file {path}, which a link of the documentation names")
    text, tree = _parsed(file)
    if not symbol:
        return file, 1, len(text)
    nodes: list[ast.stmt] = tree.body
    for name in symbol.split("."):
        node = next((node for node in nodes if name in _names(node)), None)
        if node is None:
            raise PluginError(f"{file} has no '{symbol}' (any more), which a link of the documentation names")
        nodes = getattr(node, "body", [])
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    return file, first, node.end_lineno or first


@functools.cache
def _parsed(file: str) -> tuple[list[str], ast.Module]:
    text = (ROOT / file).read_text(encoding="utf-8")
    return text.splitlines(), ast.parse(text)


def code_of(spec: str) -> tuple[str, int, str]:
    """The file, first line and text of what `lines_of` finds."""
    file, first, last = lines_of(spec)
    return file, first, "\n".join(_parsed(file)[0][first - 1 : last])


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
