"""The shape of the tree: core is small, imports run one way and in no circle, studies know only themselves."""

import ast
import functools
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

# What each room may import beside its own files and the names of the studies. A metric's network is downloaded, and its
# features are cached, as data are.
MAY_IMPORT = {
    "core": (),
    "registry": ("core",),
    "draw": ("core",),
    "nn": ("core",),
    "data": ("core",),
    "metrics": ("core", "data"),
    "serve.kit": ("core", "registry", "data", "draw"),
    "scenes": ("core", "nn", "data", "metrics", "draw", "serve.kit"),
    "studies": ("core", "registry", "scenes", "nn", "data", "metrics", "draw", "serve.kit"),
    "runs": ("core", "registry", "metrics", "draw"),
    "report": ("core", "registry", "metrics", "draw", "runs"),
    "cluster": ("core", "registry", "runs"),
    "serve": ("core", "registry", "draw", "report", "serve.kit"),
    "cli": ("core", "registry", "data", "nn", "runs", "report", "cluster", "serve", "serve.kit"),
    "__main__": ("cli",),
}


def imported(path: Path, package: str) -> Iterator[str]:
    """The dotted names that a file imports, those under TYPE_CHECKING too, relative ones made whole."""
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


@functools.cache
def imports(source: Path) -> dict[str, set[str]]:
    """The modules of etude, each with those that it imports."""
    files = {
        ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted((source / "etude").rglob("*.py"))
    }
    found: dict[str, set[str]] = {module: set() for module in files}
    for module, path in files.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for name in imported(path, package):
            while name not in files and name:
                name = name.rpartition(".")[0]
            # The version stands in the package itself.
            if name and name not in ("etude", module):
                found[module].add(name)
    return found


def room(module: str) -> str:
    """The folder or file of etude that a module stands in."""
    parts = module.split(".")[1:]
    return "serve.kit" if parts[:2] == ["serve", "kit"] else parts[0]


@pytest.fixture
def tree(root: Path) -> dict[str, set[str]]:
    return imports(root / "src")


def test_the_reader_of_imports_sees_them(tmp_path: Path):
    path = tmp_path / "x.py"
    path.write_text(
        "import etude.cli.run\nfrom etude.data import omniglot\nfrom . import b\nfrom ..c import d\n"
        "if TYPE_CHECKING:\n    from etude.nn.norms import BatchNorm\n"
        "def f():\n    import importlib\n    importlib.import_module('etude.serve.app')\n"
    )
    assert set(imported(path, "etude.studies.one")) == {
        "etude.cli.run", "etude.data.omniglot", "etude.studies.one.b", "etude.studies.c.d", "importlib",
        "etude.serve.app", "etude.nn.norms.BatchNorm",
    }  # fmt: skip


def test_core_is_small(root: Path):
    """Lines of code, comments and docstrings; blank ones are free."""
    files = sorted((root / "src" / "etude" / "core").glob("**/*.py"))
    counts = {path.name: sum(bool(line.strip()) for line in path.read_text().splitlines()) for path in files}
    assert len(counts) > 10
    total = sum(counts.values())
    assert total <= 1500, f"{total} lines: something in core belongs elsewhere ({counts})"


def test_every_room_has_its_place(tree: dict[str, set[str]]):
    assert {room(module) for module in tree if module != "etude"} == set(MAY_IMPORT)


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_imports_run_one_way(tree: dict[str, set[str]], name: str):
    allowed = {name, *MAY_IMPORT[name]}
    found = [(module, other) for module, others in tree.items() if module != "etude" and room(module) == name
             for other in others if room(other) not in allowed]  # fmt: skip
    assert found == []


def test_the_rooms_stand_in_an_order(tree: dict[str, set[str]]):
    """Else two rooms that may import each other would pass the test before."""
    tuple(graphlib.TopologicalSorter(MAY_IMPORT).static_order())


def test_no_circle_of_files(tree: dict[str, set[str]]):
    tuple(graphlib.TopologicalSorter(tree).static_order())
    assert sum(map(len, tree.values())) > 500, "imports are seen"


def test_studies_do_not_import_each_other(tree: dict[str, set[str]]):
    wrong = [
        (module, other)
        for module, others in tree.items() for other in others
        if module.startswith("etude.studies.") and other.startswith("etude.studies.")
        and module.split(".")[2] != other.split(".")[2]
    ]  # fmt: skip
    assert not wrong


def test_only_a_study_and_the_registry_know_its_name(root: Path):
    """No other file says what one of the studies needs; samples and data sets have names of their own."""
    names = imports(root / "src").keys()
    known = {name.split(".")[2] for name in names if name.startswith("etude.studies.") and name.count(".") == 2}
    assert len(known) == 8
    strangers = [
        (str(path.relative_to(root)), node.value)
        for path in sorted((root / "src" / "etude").rglob("*.py"))
        if "studies" not in path.parts and path.name != "registry.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in known
    ]
    assert strangers == []
