"""A study's README.md as parts of the report: its deviations, and the words of its pictures."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup


class Readme:
    """A study's README.md.

    Args:
        path: the file; a missing one has nothing to say.
    """

    def __init__(self, path: Path) -> None:
        self.text = path.read_text(encoding="utf-8") if path.is_file() else ""
        # HTML in it is shown as it is written, not obeyed.
        self._reader = MarkdownIt("commonmark", {"html": False}).enable("table")
        self._tokens = self._reader.parse(self.text)

    def pictures(self) -> dict[str, str]:
        """The committed pictures that it shows, in their order: path below ``results/``, and words."""
        found: dict[str, str] = {}
        for token in self._tokens:
            for child in token.children or []:
                target = str(child.attrGet("src") or "")
                if child.type == "image" and "/results/" in f"/{target}":
                    found.setdefault(f"/{target}".rpartition("/results/")[2], child.content)
        return found

    def html(self, title: str, level: int) -> Markup:
        """The section whose heading begins with ``title``, its own headings from ``level`` on; empty without one."""
        tokens = self._section(title)
        for token in tokens:
            if token.type in ("heading_open", "heading_close"):
                token.tag = f"h{min(6, int(token.tag[1:]) - 3 + level)}"
            elif token.type == "th_open":
                token.attrSet("scope", "col")
            elif token.type == "inline" and token.children:
                token.children = _alone(token.children)
        written = self._reader.renderer.render(tokens, self._reader.options, {})
        label = f'<div class="wide" role="region" tabindex="0" aria-label="{title}"><table>'
        return Markup(written.replace("<table>", label).replace("</table>", "</table></div>"))

    def markdown(self, title: str) -> str:
        """The same section as Markdown, its links to other files made plain words."""
        tokens = self._section(title)
        if not tokens:
            return ""
        first = min(token.map[0] for token in tokens if token.map)
        last = max(token.map[1] for token in tokens if token.map)
        text = "\n".join(self.text.splitlines()[first:last])
        return re.sub(r"(`+[^`]*`+)|!?\[([^\]]*)\]\((?!https?:)[^)]*\)|<(?=[a-zA-Z/!?])", _plain, text)

    def _section(self, title: str) -> list[Token]:
        tokens = self._reader.parse(self.text)
        heads = [number for number, token in enumerate(tokens) if token.type == "heading_open" and token.tag <= "h2"]
        for number, following in itertools.pairwise([*heads, len(tokens)]):
            if tokens[number + 1].content.startswith(title):
                return tokens[number + 3 : following]
        return []


def _plain(found: re.Match[str]) -> str:
    return found[1] or (r"\<" if found[0] == "<" else found[2])


def _alone(children: Sequence[Token]) -> list[Token]:
    """Links into the source tree lead nowhere from a page by itself, and pictures would be fetched: words stay."""
    kept: list[Token] = []
    inside: list[bool] = []
    for child in children:
        if child.type == "link_open":
            inside.append(str(child.attrGet("href") or "").startswith(("https://", "http://")))
            kept += [child] if inside[-1] else []
        elif child.type == "link_close":
            kept += [child] if inside.pop() else []
        elif child.type == "image":
            kept.append(Token("text", "", 0, content=child.content))
        else:
            kept.append(child)
    return kept
