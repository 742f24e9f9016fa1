"""Formulas become MathML while the site is built, which browsers draw by themselves: no script, no network."""

import html
import re
import unicodedata
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
_STYLED = re.compile(r'<mi mathvariant="([a-z-]+)">([^<]+)</mi>')
# Browsers know no mathvariant but normal (MathML Core): the letters themselves are of the style.
_STYLES = {
    "script": "SCRIPT",
    "double-struck": "DOUBLE-STRUCK",
    "bold": "BOLD",
    "bold-italic": "BOLD ITALIC",
    "fraktur": "FRAKTUR",
}
# Commands that the converter does not know.
_WRITTEN_OUT = {r"\arg": r"\operatorname{arg}"}


def on_page_content(page_html: str, page: Any, **_: Any) -> str:
    def mathml(found: re.Match[str]) -> str:
        formula = html.unescape(found[3]).strip()
        try:
            return to_mathml(formula, display=found[2] == "[")
        except PluginError as error:
            raise PluginError(f"{page.file.src_uri}: {error}") from error

    return _FORMULA.sub(mathml, page_html)


def to_mathml(formula: str, *, display: bool) -> str:
    """A formula in LaTeX as MathML.

    Raises:
        PluginError: a command that is not known.
    """
    for command, meaning in _WRITTEN_OUT.items():
        formula = re.sub(re.escape(command) + r"(?![a-zA-Z])", lambda _, meaning=meaning: meaning, formula)
    try:
        written = convert(formula, display="block" if display else "inline")
    except Exception as error:
        raise PluginError(f"the formula {formula} cannot be read: {type(error).__name__} {error}") from error
    if unknown := re.search(r"\\[a-zA-Z]+", html.unescape(re.sub(r"<[^>]*>", " ", written))):
        raise PluginError(f"the command {unknown[0]} in the formula {formula} is not known")
    return _STYLED.sub(lambda found: _styled(found[1], html.unescape(found[2])), written)


def _styled(variant: str, letters: str) -> str:
    if variant == "normal":
        return f'<mi mathvariant="normal">{html.escape(letters)}</mi>'
    return f"<mi>{''.join(_letter(_STYLES[variant], letter) for letter in letters)}</mi>"


def _letter(style: str, letter: str) -> str:
    """A letter of a style from Unicode's mathematical ones, of which some have a name of their own."""
    kind = "CAPITAL " if letter.isupper() else "SMALL " if letter.islower() else "DIGIT "
    name = unicodedata.name(letter).split()[-1]
    for whole in (f"MATHEMATICAL {style} {kind}{name}", f"{style} {kind}{name}"):
        try:
            return unicodedata.lookup(whole)
        except KeyError:
            continue
    raise PluginError(f"there is no {style.lower()} {letter}")
