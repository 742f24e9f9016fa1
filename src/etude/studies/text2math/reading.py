"""Problems as people type them: signs and forms that the data set has not, and numbers that are written as words."""

import re
import unicodedata
from collections.abc import Callable

_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = {"thousand": 1000, "million": 10**6, "billion": 10**9}
_VALUES = {word: value for value, word in enumerate(_SMALL)} | {word: 10 * value for value, word in enumerate(_TENS, 2)}
_VALUES |= {"a": 1, "an": 1, "and": 0, "half": 0}


def _pattern() -> str:
    """Return the grammar of spelled numbers as a regular expression, built from the small ones up."""
    gap = r"(?:\s+|\s*-\s*)"
    # An article stands at the beginning alone.
    after = rf"{gap}(?:and\s+)?(?!an?\b)"
    below_100 = rf"(?:(?:{'|'.join(_TENS)})(?:{gap}(?:{'|'.join(_SMALL[1:10])})\b)?|(?:{'|'.join(_SMALL[1:])}))\b"
    number = rf"(?:(?:{below_100}{gap}|an?\s+)hundred\b(?:{after}{below_100})?|{below_100})"
    below_1000 = number
    for scale in _SCALES:
        number = rf"(?:(?:{below_1000}{gap}|an?\s+){scale}\b(?:{after}{number})?|{number})"
    scales = "|".join(["hundred", *_SCALES])
    return rf"\b(?:half\s+an?\s+(?:dozen|dozens|{scales})|(?:{number}{gap}|an?\s+)dozens?|{number}|zero)\b"


_NUMBER = re.compile(_pattern(), re.IGNORECASE)


def _value(spelled: str) -> int:
    total = part = 0
    words = re.findall("[a-z]+", spelled.lower())
    for word in words:
        if word == "hundred":
            part *= 100
        elif word in _SCALES:
            total, part = total + part * _SCALES[word], 0
        elif word in ("dozen", "dozens"):
            total, part = 12 * (total + part), 0
        else:
            part += _VALUES[word]
    return (total + part) // (2 if words[0] == "half" else 1)


def in_figures(text: str) -> tuple[str, list[tuple[str, int]]]:
    """Return a problem with its spelled numbers in figures, and what was replaced by what.

    ``"twenty-five"``, ``"a hundred"`` and ``"half a dozen"`` are one number, ``"two three"`` are two.
    """
    replaced = [(found[0], _value(found[0])) for found in _NUMBER.finditer(text)]
    values = (str(value) for _, value in replaced)
    return _NUMBER.sub(lambda _: next(values), text), replaced


# Words of quantity that are no numbers of a problem: the programs of MathQA have a constant for them.
_LEFT = re.compile(
    r"\b(?:twice|thrice|double[ds]?|triple[ds]?|quadruple[ds]?|half|halves|quarters?)\b",
    re.IGNORECASE,
)


def left_as_words(figures: str) -> list[str]:
    """Return the words of quantity, such as twice and half, in a text whose numbers are in figures (`in_figures`)."""
    return list(dict.fromkeys(word.lower() for word in _LEFT.findall(figures)))


def _mixed(found: re.Match[str]) -> str:
    whole, above, below = (int(found[place]) for place in (1, 2, 3))
    return _decimal(whole + above / below) if above < below else found[0]


def _decimal(value: float) -> str:
    return f"{value:.6g}"


_VULGAR = {sign: unicodedata.numeric(sign) for sign in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"}
_FORMS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    # A full stop after a letter is no decimal point: Rs.40 is 40.
    (re.compile(r"(?<=[A-Za-z])\.(?=\d)"), lambda found: ". "),
    # Lakhs and crores are parted by twos: 1,50,000.
    (re.compile(r"\b\d{1,2}(?:,\d{2})+,\d{3}\b"), lambda found: found[0].replace(",", "")),
    (re.compile(rf"(\d+)?\s*([{''.join(_VULGAR)}])"), lambda found: _decimal(int(found[1] or 0) + _VULGAR[found[2]])),
    # A whole number and a fraction below 1 are one number: 2 1/2.
    (
        re.compile(r"(?<![\d./])(\d+)(?:\s+|-|\s+and\s+)([1-9]\d?)\s*/\s*([1-9]\d?)(?![\d./])"),
        _mixed,
    ),
    (re.compile(r"\b(\d+(?:\.\d+)?)\s+dozens?\b", re.IGNORECASE), lambda found: _decimal(12 * float(found[1]))),
    (re.compile(r"(?<=\d)\s*(?:per\s?cent|pct)\b", re.IGNORECASE), lambda found: " %"),
    # A minus sign and a dash, which stand for a hyphen.
    (re.compile("[\u2212\u2013](?=\\s*\\d)"), lambda found: "-"),
    # Units that hang on their number: 120km.
    (re.compile(r"(?<=\d)(?!(?:st|nd|rd|th)\b)(?=[A-Za-z]{2,}|[gmlsh]\b)"), lambda found: " "),
)
"""The forms that people type, and what the data set has in their place."""
_ORDINAL = re.compile(r"\b(\d+)(?:st|nd|rd|th)\b", re.IGNORECASE)
_NEGATIVE = re.compile(r"(?:(?<=\s)|(?<=\()|^)-\d+(?:\.\d+)?\b|\bminus\s+\d+(?:\.\d+)?", re.IGNORECASE)


def typed(text: str) -> tuple[str, list[str]]:
    """Return a problem as the data set would write it, and what was read as what, in words.

    ``"Rs.40"`` is 40 and no .4, ``"1,50,000"`` and ``"2 1/2"`` are one number each, ``"15 percent"`` is 15 %.
    """
    said: list[str] = []
    for form, write in _FORMS:

        def replaced(found: re.Match[str], write: Callable[[re.Match[str]], str] = write) -> str:
            written = write(found)
            if written.strip() and found[0].strip() not in ("", ".") and written != found[0]:
                said.append(f"'{found[0].strip()}' as {written.strip()}")
            return written

        text = form.sub(replaced, text)
    return text, said


def without_ordinals(text: str) -> str | None:
    """Return a problem whose ordinals in figures are no numbers any more, ``"5th avenue"`` as ``"fifth avenue"``, or
    None where it has none."""
    return _ORDINAL.sub(lambda found: _ORDINALS.get(int(found[1]), "later"), text) if _ORDINAL.search(text) else None


_ORDINALS = dict(enumerate(
    ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
     "twelfth"), 1,
))  # fmt: skip


def signs_of(text: str) -> list[str]:
    """Return the numbers of a problem that are written as negative, such as -5 in ``"-5 degrees"`` and not in 10-5: the
    programs of MathQA know a number without its sign."""
    return [found[0] for found in _NEGATIVE.finditer(text)]
