"""Text that has its home elsewhere in the checkout, and what the command line says of itself.

- ``<!-- file CHANGELOG.md -->``: a file of the checkout.
- ``<!-- section src/etude/studies/dcgan/README.md: Deviations -->``: what stands below its heading that begins so.
- ``<!-- help run -->``: what ``etude run --help`` prints; ``<!-- verbs -->``: of every verb, each with a heading.

Links and pictures of included text lead to the pages of the site that stand for those files; so does a target that a
page itself writes as ``repo:results/...``.
"""

import json
import os
import posixpath
import re
import subprocess
import sys
from typing import Any

import checkout
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

_MARK = re.compile(r"^( *)<!-- (file|section|help|verbs)(?: (.+?))? -->$", re.MULTILINE)
_OWN_TARGET = re.compile(r"(!?\[[^\]]*\])\(repo:([^)\s#]+)()\)")
_TARGET = re.compile(r"(!?\[[^\]]*\])\((?!https?://|src:|#)([^)\s#]+)(#[^)\s]*)?\)")
_HELP = """
import contextlib, io, json, sys
from etude.cli import VERBS, main
texts = {"": VERBS}
for words in [*VERBS, *json.load(sys.stdin)]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*words.split(), "--help"]) == 0, words
    texts[words] = out.getvalue()
print(json.dumps(texts))
"""
_asked: dict[str, Any] = {}


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Ask for all helps at once, in a process that works while pages are read."""
    words: set[str] = set()
    for file in files.documentation_pages():
        if file.generated_by is None:
            words |= {found[3] for found in _MARK.finditer(file.content_string) if found[2] == "help"}
    surroundings = os.environ | {"COLUMNS": "88", "NO_COLOR": "1", "TERM": "dumb"}
    process = subprocess.Popen(
        [sys.executable, "-c", _HELP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=surroundings,
        cwd=checkout.ROOT,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(sorted(words)))
    process.stdin.close()
    process.stdin = None
    _asked.clear()
    _asked["process"] = process
    return files


def _help(words: str) -> Any:
    if "texts" not in _asked:
        written, _ = _asked["process"].communicate()
        if _asked["process"].returncode:
            raise PluginError("the command line did not tell its helps; see above")
        _asked["texts"] = json.loads(written)
    return _asked["texts"][words]


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files, **_: Any) -> str:
    def fill(found: re.Match[str]) -> str:
        if found[2] == "help":
            text = f"```text\n{_help(found[3]).rstrip()}\n```"
        elif found[2] == "verbs":
            parts = [
                f"## etude {verb}\n\n{_said(about)}\n\n```text\n{_help(verb).rstrip()}\n```"
                for verb, about in _help("").items()
            ]
            text = "\n\n".join(parts)
        elif found[2] == "file":
            text = _linked((checkout.ROOT / found[3]).read_text(encoding="utf-8"), found[3], page, config, files)
        else:
            file, _, heading = found[3].partition(": ")
            text = _linked(section(file, heading), file, page, config, files)
        return "\n".join(f"{found[1]}{line}".rstrip() for line in text.splitlines())

    return _own(_MARK.sub(fill, markdown), page, config, files)


def _own(text: str, page: Any, config: Any, files: Files) -> str:
    return _OWN_TARGET.sub(lambda found: _link(found, found[2], page, config, files), text)


def _said(about: str) -> str:
    return f"{about[0].upper()}{about[1:]}."


def section(file: str, heading: str) -> str:
    """What stands below the first heading that begins with the given words, to the next of its level."""
    lines, level, body, fenced = (checkout.ROOT / file).read_text(encoding="utf-8").splitlines(), 0, [], False
    for line in lines:
        fenced ^= line.startswith("```")
        marks = len(line) - len(line.lstrip("#")) if not fenced and re.match(r"#+ ", line) else 0
        if level and marks and marks <= level:
            break
        if level:
            body.append(line)
        elif marks and line[marks + 1 :].startswith(heading):
            level = marks
    if not level:
        raise PluginError(f"{file} has no heading '{heading}' (any more), which a page includes")
    return "\n".join(body).strip()


def _linked(text: str, origin: str, page: Any, config: Any, files: Files) -> str:
    """Links of a file of the checkout, turned to the site's pages; its pictures become files of the site."""

    def link(found: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(posixpath.dirname(origin), found[2]))
        return _link(found, file, page, config, files)

    return _TARGET.sub(link, text)


def _link(found: re.Match[str], file: str, page: Any, config: Any, files: Files) -> str:
    target = checkout.page_of(file)
    if target is None:
        # The site has no page for it: the file is named.
        return f"{found[1][1:-1]} (`{file}`)"
    if target.endswith(checkout.PICTURES) and files.get_file_from_path(target) is None:
        files.append(File.generated(config, target, abs_src_path=str(checkout.ROOT / file)))
    return f"{found[1]}({checkout.relative(target, page.file.src_uri)}{found[3] or ''})"
