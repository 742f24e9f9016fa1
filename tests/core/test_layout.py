"""The shape of the tree: core is small and knows no study, imports run one way, studies know only themselves."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

# What a folder may import beside its own. The drawing helpers of the report are shared with the studies; a metric's
# network is downloaded, and its features are cached, as data are.
MAY_IMPORT = {
    "core": (),
    "nn": ("core",),
    "data": ("core",),
    "metrics": ("core", "data.cache", "data.fetch", "data.inception"),
    "studies": ("nn", "data", "metrics", "core", "report.figures"),
    "report": ("studies", "nn", "data", "metrics", "core"),
}


def imported(path: Path, package: str) -> Iterator[str]:
    """The dotted names that a file imports, relative ones made whole."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield from (f"{base}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def edges(root: Path) -> Iterator[tuple[str, str]]:
    """Pairs of an etude module and one that it imports."""
    source = root / "src"
    for path in sorted((source / "etude").rglob("*.py")):
        module = ".".join(path.relative_to(source).with_suffix("").parts)
        for name in imported(path, module.rpartition(".")[0]):
            if name.startswith("etude."):
                yield module, name


def test_the_reader_of_imports_sees_them(tmp_path: Path):
    path = tmp_path / "x.py"
    path.write_text(
        "import etude.cli.run\nfrom etude.data import omniglot\nfrom . import b\nfrom ..c import d\n"
        "def f():\n    import importlib\n    importlib.import_module('etude.web.page')\n"
    )
    assert set(imported(path, "etude.studies.one")) == {
        "etude.cli.run", "etude.data.omniglot", "etude.studies.one.b", "etude.studies.c.d", "importlib",
        "etude.web.page",
    }  # fmt: skip


def test_core_is_small(root: Path):
    """Lines of code, comments and docstrings; blank ones are free."""
    files = sorted((root / "src" / "etude" / "core").glob("**/*.py"))
    counts = {path.name: sum(bool(line.strip()) for line in path.read_text().splitlines()) for path in files}
    assert len(counts) > 10
    total = sum(counts.values())
    assert total <= 1500, f"{total} lines: something in core belongs elsewhere ({counts})"


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_run_one_way(root: Path, folder: str):
    found = [(module, name) for module, name in edges(root) if module.startswith(f"etude.{folder}.")]
    allowed = (f"etude.{folder}.", "etude.__version__", *(f"etude.{name}" for name in MAY_IMPORT[folder]))
    assert [edge for edge in found if not edge[1].startswith(allowed)] == []


def test_core_imports_are_seen(root: Path):
    """Else the test before would prove nothing."""
    assert sum(module.startswith("etude.core.") for module, _ in edges(root)) > 30


def test_studies_do_not_import_each_other(root: Path):
    wrong = [
        (module, name) for module, name in edges(root)
        if module.startswith("etude.studies.") and name.startswith("etude.studies.")
        and len(module.split(".")) > 3 and module.split(".")[2] != name.split(".")[2]
    ]  # fmt: skip
    assert not wrong
