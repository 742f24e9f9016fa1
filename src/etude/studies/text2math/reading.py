"""Problems as people type them: numbers that are written as words."""

import re

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
