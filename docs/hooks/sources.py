"""The source files as pages with line numbers, and links to names in them.

``[text](src:nn/norms.py:BatchNorm.forward)`` leads to the line where that name is defined. The line is looked up while
the site is built; a name that is gone fails the build. ``<!-- code nn/norms.py:normalize -->`` shows the text itself.
"""

import html
import keyword
import re
from typing import Any

import checkout
from mkdocs.structure.files import File, Files

_LINK = re.compile(r"\]\(src:([^)\s]+)\)")
_CODE = re.compile(r"^( *)<!-- code (\S+) -->$", re.MULTILINE)
_HEADING = re.compile(r'<(h\d) id="(etude\.[\w.]+)"[^>]*>.*?</\1>', re.DOTALL)
# As Pygments' classes, which the theme colours; Pygments itself would take as long as all other pages.
_TOKEN = re.compile(
    r'''(?P<s>[rbfRBF]{0,2}(?:"""(?s:.*?)"""|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'))'''
    r"|(?P<c1>#[^\n]*)"
    rf"|(?P<k>\b(?:{'|'.join(keyword.kwlist)})\b)"
    r"|(?P<mi>\b\d[\d_.]*(?:e-?\d+)?\b)"
    r"|(?P<nd>(?m:^\s*)@[\w.]+)"
    r"|(?<=\bdef )(?P<nf>\w+)|(?<=\bclass )(?P<nc>\w+)"
)
_FRONT = """---
title: {title}
search:
  exclude: true
hide: [toc]
---
# `{title}`
"""


def on_files(files: Files, config: Any, **_: Any) -> Files:
    for file in checkout.sources():
        title = file.removeprefix(f"{checkout.PACKAGE}/")
        files.append(File.generated(config, checkout.page_of_source(file), content=_FRONT.format(title=title)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    origin = page.file.src_uri

    def link(found: re.Match[str]) -> str:
        file, line, _ = checkout.lines_of(found[1])
        target = checkout.relative(checkout.page_of_source(file), origin)
        return f"]({target}#L{line})" if ":" in found[1] else f"]({target})"

    def code(found: re.Match[str]) -> str:
        file, line, text = checkout.code_of(found[2])
        title = file.removeprefix(f"{checkout.PACKAGE}/")
        target = checkout.relative(checkout.page_of_source(file), origin)
        block = [f'```python linenums="{line}"', *text.splitlines(), "```"]
        shown = "\n".join(f"{found[1]}{row}" for row in block)
        return f"{found[1]}[{title}]({target}#L{line}){{ .code-from }}\n\n{shown}\n"

    return _CODE.sub(code, _LINK.sub(link, markdown))


def on_page_content(page_html: str, page: Any, files: Files, **_: Any) -> str:
    origin = page.file.src_uri
    if origin.startswith("source/"):
        file = next(file for file in checkout.sources() if checkout.page_of_source(file) == origin)
        return page_html + _numbered(file, page)
    if origin.startswith("api/"):
        return _HEADING.sub(lambda found: _with_source(found, page.file, files), page_html)
    return page_html


def _numbered(file: str, page: Any) -> str:
    """A file's text, every line with a number that can be linked to."""
    text = (checkout.ROOT / file).read_text(encoding="utf-8")
    coloured = _coloured(text).splitlines()
    page.present_anchor_ids |= {f"L{number}" for number in range(1, len(coloured) + 1)}
    lines = "\n".join(
        f'<span class="line" id="L{number}"><a href="#L{number}" tabindex="-1">{number}</a>{line}</span>'
        for number, line in enumerate(coloured, start=1)
    )
    return f'<div class="highlight source-page"><pre><code>{lines}</code></pre></div>'


def _coloured(text: str) -> str:
    """Python as HTML, every token within one line."""
    parts: list[str] = []
    end = 0
    for token in _TOKEN.finditer(text):
        parts.append(html.escape(text[end : token.start()], quote=False))
        lines = html.escape(token[0], quote=False).split("\n")
        parts.append("\n".join(f'<span class="{token.lastgroup}">{line}</span>' for line in lines))
        end = token.end()
    return "".join([*parts, html.escape(text[end:], quote=False)])


def _with_source(found: re.Match[str], here: File, files: Files) -> str:
    """A heading of the reference with a link to the lines it is about."""
    parts = found[2].split(".")[1:]
    for cut in range(len(parts), 0, -1):
        file = f"{checkout.PACKAGE}/{'/'.join(parts[:cut])}.py"
        if (checkout.ROOT / file).is_file():
            spec = f"{'/'.join(parts[:cut])}.py" + (f":{'.'.join(parts[cut:])}" if parts[cut:] else "")
            try:
                line = checkout.lines_of(spec)[1]
            # A name that is imported or set on self has no statement of its own.
            except checkout.PluginError:
                return found[0]
            page = files.get_file_from_path(checkout.page_of_source(file))
            assert page is not None
            link = f'<a class="to-source" href="{html.escape(page.url_relative_to(here))}#L{line}">source</a>'
            return found[0].replace(f"</{found[1]}>", f"{link}</{found[1]}>")
    return found[0]
