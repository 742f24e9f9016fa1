"""What the source may not do with what it is given, and that every place that reads a file is known to these tests."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load",
    "dill.load", "dill.loads", "cloudpickle.load", "pandas.read_pickle", "pd.read_pickle", "yaml.load", "yaml.load_all",
    "yaml.full_load", "yaml.unsafe_load", "eval", "exec", "os.system", "os.popen", "os.execv", "tempfile.mktemp",
    "urllib.request.urlopen", "urlopen", "httpx.get", "httpx.post", "runpy.run_path",
    "torch.hub.load", "compile",
}  # fmt: skip
"""Calls that no file of the package has."""
METHODS = {"extractall", "extract"}
"""Of archives: they write by the names that these hold."""
WANTED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "Image.open": ("formats", None),
    "from_pretrained": ("trust_remote_code", False),
}
"""Calls that need an argument, and its value where that is a constant."""
ONLY_IN = {
    "requests.get": {"data/fetch.py"},
    "spec_from_file_location": {"nn/plugin.py"},
    "subprocess.run": {"runs/memory.py", "runs/monitor.py", "runs/environment.py"},
    "subprocess.Popen": {"runs/grid.py"},
    "socket.create_connection": {"cluster/connect.py"},
    "pooch.retrieve": {"data/fetch.py"},
}  # fmt: skip
"""What may fetch, run a user's file, or start a program."""

READS = {
    "read_text", "read_bytes", "json.load", "json.loads", "read_json", "read_yaml", "yaml.safe_load", "tomllib.loads",
    "np.load", "np.memmap", "torch.load", "_safe_open", "safe_open", "load_file", "Image.open", "zipfile.ZipFile",
    "tarfile.open", "gzip.open", "gzip.GzipFile", "from_pretrained", "raw_decode", "InceptionV3W", "open",
}  # fmt: skip
READERS = {
    "cli/new.py": "the package's own template and registry",
    "core/summary.py": "fuzz: run summary.json, run best.json",
    "draw/metrics.py": "fuzz: run metrics.jsonl",
    "data/tree.py": "fuzz: folder zip, pairs zip",
    "cli/export.py": "own companions, copied as bytes",
    "cli/load.py": "fuzz: exported config; bytes are copied",
    "runs/memory.py": "what its own process of etude prints",
    "runs/training.py": "/proc/self/status",
    "cli/tune.py": "no file: it opens its list of trials as runs/search.py does",
    "cluster/engine.py": "no file: it opens logs to write, and run folders as core does",
    "cluster/storage.py": "checksums as core reads them; tests/cluster",
    "cluster/worker.py": "no file: it opens logs to write",
    "core/checkpoint.py": "fuzz: weights, resume file, run best.json, run manifest.json",
    "core/config.py": "fuzz: run config.yaml",
    "core/files.py": "fuzz: all of JSON",
    "runs/environment.py": "/proc/cpuinfo",
    "runs/grid.py": "the log of a run that it started, shown",
    "runs/monitor.py": "what its own process of etude prints",
    "runs/search.py": "its own list of trials, by read_json; tests/runs",
    "core/run_folder.py": "fuzz: run, metrics of a resume",
    "data/cache.py": "fuzz: cache npy",
    "data/cifar10.py": "fuzz: cifar npz, cifar tar",
    "data/clevrtex.py": "fuzz: scenes zip, scenes tar, scenes meta, picture mask",
    "data/fetch.py": "fuzz: cache note; test_pickles.py: mirrors",
    "data/folders.py": "fuzz: folder zip, split file",
    "data/images.py": "fuzz: pictures",
    "data/audit.py": "tests/data/test_audit.py: lists of problems",
    "data/mathqa.py": "fuzz: mathqa zip, glove zip, glove npz",
    "data/mnist.py": "fuzz: mnist idx",
    "data/nasbench201.py": "tests/studies/darts/test_nb201.py: broken tables",
    "data/omniglot.py": "fuzz: omniglot zip; test_pickles.py: mirrors",
    "data/pairs.py": "fuzz: pairs zip, pairs tar, pairs listing",
    "data/render/driver.py": "fuzz: scenes meta",
    "metrics/fid.py": "test_pickles.py: the Inception file",
    "runs/hub.py": "fuzz: exported config",
    "report/baselines.py": "tests/report/test_baselines.py: broken files",
    "report/markdown.py": "the checkout's own README.md",
    "draw/pictures.py": "fuzz: picture of a report",
    "report/prose.py": "a study's own README.md",
    "report/claims.py": "tests/report/test_claims.py: malformed tables",
    "report/reference.py": "fuzz: reference, run summary.json",
    "report/results.py": "fuzz: run metrics.jsonl, run environment.json",
    "studies/darts/genotype.py": "fuzz: cell",
    "studies/dcgan/predict.py": "no file: it writes an array",
    "studies/protonet/predict.py": "fuzz: prototypes",
    "studies/slotdiffusion/vae_files.py": "fuzz: autoencoder; test_pickles.py: diffusers",
    "studies/text2math/bert.py": "test_pickles.py: BERT",
    "studies/text2math/course_split.py": "the course's own files, by problems.py",
    "studies/text2math/predict.py": "fuzz: predict text2math txt",
    "studies/text2math/splits.py": "the package's own training problems; a folder's by problems.py",
    "studies/text2math/problems.py": "fuzz: predict text2math json, eval text2math",
    "serve/app.py": "fuzz: page request",
    "studies/protonet/page.py": "fuzz: drawings of the page; own samples",
    "serve/runs.py": "fuzz: run",
    "serve/kit/site.py": "fuzz: run, pictures",
}
"""Every file of the package that reads files or parses what it is sent, and what holds it."""


def named(call: ast.expr) -> str:
    """``np.load`` of ``np.load(...)``; of a longer chain the last two names."""
    parts: list[str] = []
    while isinstance(call, ast.Attribute):
        parts.append(call.attr)
        call = call.value
    # Of what another call gave, only the methods are known.
    parts.append(call.id if isinstance(call, ast.Name) else "")
    return ".".join(reversed(parts))


def calls(source: str) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield named(node.func), node


def faults(source: str, file: str) -> list[str]:
    """What a source file calls that it may not."""
    found: list[str] = []
    for name, call in calls(source):
        last, given = name.rpartition(".")[2], {word.arg: word.value for word in call.keywords}
        if name in FORBIDDEN or any(name.endswith(f".{bad}") for bad in FORBIDDEN if "." in bad) or last in METHODS:
            found.append(name)
        for wanted, (argument, value) in WANTED.items():
            if name == wanted or name.endswith(f".{wanted}"):
                one = given.get(argument)
                constant = one.value if isinstance(one, ast.Constant) else None
                if one is None or (value is not None and constant is not value):
                    found.append(f"{name} without {argument}")
        shell = given.get("shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            found.append(f"{name} with shell")
        for only, files in ONLY_IN.items():
            if (name == only or name.endswith(f".{only}")) and file not in files:
                found.append(f"{name} in {file}")
    return found


def reads(source: str) -> bool:
    names = {name for name, _ in calls(source)} - {"RunFolder.open"}
    return any(name in READS or name.rpartition(".")[2] in READS for name in names)


@pytest.mark.parametrize("source", [
    "import pickle\npickle.load(f)", "yaml.load(text, yaml.Loader)", "eval(text)", "archive.extractall(to)",
    "tar.extract('x')", "torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=on)",
    "np.load(path)", "np.load(path, allow_pickle=True)", "PIL.Image.open(path)", "subprocess.run(x, shell=True)",
    "requests.get(url)", "AutoModel.from_pretrained(name)", "kind.from_pretrained(name, trust_remote_code=True)",
    "subprocess.run(['ls'])", "importlib.util.spec_from_file_location('x', path)", "urllib.request.urlopen(u)",
])  # fmt: skip
def test_what_is_forbidden_is_seen(source: str) -> None:
    assert faults(source, "data/images.py")


def test_what_is_allowed_is_not() -> None:
    source = (
        "model.eval()\nyaml.safe_load(t)\nnp.load(f, allow_pickle=False)\nImage.open(f, formats=F)\nre.compile(p)\n"
        "torch.load(p, map_location='cpu', weights_only=True)\nkind.from_pretrained(n, trust_remote_code=False)"
    )
    assert faults(source, "data/images.py") == []


def _sources(root: Path) -> Iterator[tuple[str, str]]:
    package = root / "src" / "etude"
    for path in sorted(package.rglob("*.py")):
        yield path.relative_to(package).as_posix(), path.read_text(encoding="utf-8")


def test_no_source_file_runs_what_it_reads(root: Path) -> None:
    found = {file: bad for file, source in _sources(root) if (bad := faults(source, file))}
    assert found == {}


def test_every_reader_is_known(root: Path) -> None:
    """A file that begins to read files is named here, with what holds it to what SECURITY.md promises."""
    found = {file for file, source in _sources(root) if reads(source)}
    assert found - READERS.keys() == set()
    assert {file for file in READERS if (root / "src" / "etude" / file).exists()} <= found
