"""Formulas become MathML while the site is built, which browsers draw by themselves: no script, no network."""

import html
import re
import unicodedata
from typing import Any
from xml.etree import ElementTree

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>([.,:;?!)]*)', re.DOTALL)
_STYLED = re.compile(r'<mi mathvariant="([a-z-]+)">([^<]+)</mi>')
# Browsers know no mathvariant but normal (MathML Core): the letters themselves are of the style.
_STYLES = {
    "script": "SCRIPT",
    "double-struck": "DOUBLE-STRUCK",
    "bold": "BOLD",
    "bold-italic": "BOLD ITALIC",
    "fraktur": "FRAKTUR",
}
_AROUND = ("msub", "msup", "msubsup", "munder", "mover", "munderover")
_LIMITS = ("max", "min", "lim", "sup", "inf")
_THIN = "0.1667em"
# Commands that the converter does not know.
_WRITTEN_OUT = {r"\arg": r"\operatorname{arg}"}


def on_page_content(page_html: str, page: Any, **_: Any) -> str:
    def mathml(found: re.Match[str]) -> str:
        formula = html.unescape(found[3]).strip()
        try:
            written = to_mathml(formula, display=found[2] == "[")
            # No line begins with the sign that follows a formula.
            return f'<span class="formula">{written}{found[4]}</span>' if found[4] else written
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
    return _spaced(_STYLED.sub(lambda found: _styled(found[1], html.unescape(found[2])), written))


def _spaced(written: str) -> str:
    """The space around names such as log as LaTeX has it: thin, and none before a bracket."""
    # In a page of HTML the name of the language is superfluous, and would come back in front of every tag.
    try:
        root = ElementTree.fromstring(written.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "", 1))
    except ElementTree.ParseError as error:
        raise PluginError(f"MathML that is not well formed ({error}): {written}") from error
    for bar in root.iter("mo"):
        # Without left and right before them bars are of one height, whatever stands between.
        if bar.text in ("\u2016", "|") and bar.get("stretchy") is None:
            bar.set("stretchy", "false")
    parents = {child: parent for parent in root.iter() for child in parent}
    for name in root.iter():
        if name.tag not in ("mo", "mi") or not re.fullmatch(r"[A-Za-z]{2,}", name.text or ""):
            continue
        if name.get("mathvariant") is not None:
            continue
        whole = name
        while parents[whole].tag in _AROUND and parents[whole][0] is whole:
            whole = parents[whole]
            if whole.tag == "msub" and name.text in _LIMITS and root.get("display") == "block":
                whole.tag = "munder"
        siblings = list(parents[whole])
        after = siblings[siblings.index(whole) + 1 :]
        bracket = not after or "".join(after[0].itertext())[:1] in ("(", "[", ")", ",", "=")
        name.tag = "mo"
        name.set("lspace", _THIN if siblings[0] is not whole else "0")
        name.set("rspace", "0" if bracket else _THIN)
    return ElementTree.tostring(root, encoding="unicode")


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
