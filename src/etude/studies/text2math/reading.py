"""Problems as people type them: numbers that are written as words."""

import re
from collections.abc import Iterator

_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_UNITS = {word: value for value, word in enumerate(_SMALL)}
_ROUND = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_TENS = {word: 10 * value for value, word in enumerate(_ROUND, 2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_DOZENS = ("dozen", "dozens")
_KNOWN = "|".join([*_UNITS, *_TENS, *_SCALES, *_DOZENS])
# "a hundred", "half a dozen", "half a million".
_ARTICLE = rf"(?:(?:half\s+)?an?\s+(?=(?:{'|'.join([*_SCALES, *_DOZENS])})\b))?"
# "and" only after hundred or a larger word.
_AND = "".join(rf"(?:(?<={scale} )and\s+)?" for scale in _SCALES)
# A run of such words.
_RUN = re.compile(rf"\b{_ARTICLE}(?:{_KNOWN})\b(?:(?:\s+|\s*-\s*){_AND}(?:{_KNOWN})\b)*", re.IGNORECASE)


def spelled_numbers(text: str) -> Iterator[tuple[int, int, int]]:
    """The numbers that are written as words: where each begins and ends, and its value.

    ``"twenty-five"``, ``"a hundred"`` and ``"half a dozen"`` are one number, ``"two three"`` are two.
    """
    for run in _RUN.finditer(text):
        words = [
            (run.start() + w.start(), run.start() + w.end(), w[0].lower()) for w in re.finditer(r"[A-Za-z]+", run[0])
        ]
        begin = 0
        while begin < len(words):
            value, end = _longest([word for _, _, word in words[begin:]])
            if end == 0:
                begin += 1
                continue
            yield words[begin][0], words[begin + end - 1][1], value
            begin += end


def _longest(words: list[str]) -> tuple[int, int]:
    """The value of the longest number that some words begin with, and how many words it takes."""
    if words[0] == "half":
        value, taken = _longest(["one", *words[2:3]])
        return value // 2, taken + 1
    if words[0] in ("a", "an"):
        return _longest(["one", *words[1:]])
    total, part, taken, last = 0, 0, 0, 10**12
    for place, word in enumerate(words):
        if place and total + part == 0:
            # Nothing follows zero.
            break
        if word == "and":
            continue
        if word in _DOZENS:
            # Nothing follows a dozen either.
            return (12 * (total + part), place + 1) if total + part else (0, 0)
        if word in _SCALES:
            scale = _SCALES[word]
            if part == 0 or (scale > 100 and total and scale >= last):
                break
            if scale == 100:
                if part >= 100:
                    break
                part *= 100
            else:
                total, part, last = total + part * scale, 0, scale
        elif word in _TENS:
            if part % 100:
                break
            part += _TENS[word]
        else:
            value = _UNITS[word]
            # "twenty five", but not "twenty fifteen" nor "five five".
            if part % 10 or (part % 100 and value >= 10) or (value == 0 and place):
                break
            part += value
        taken = place + 1
    return total + part, taken


# Words of quantity that are no numbers of a problem: the programs of MathQA have a constant for them.
_LEFT = re.compile(
    r"\b(?:twice|thrice|double[ds]?|triple[ds]?|quadruple[ds]?|half|halves|quarters?)\b",
    re.IGNORECASE,
)


def left_as_words(figures: str) -> list[str]:
    """Words of quantity, such as twice and half, in a text whose numbers are in figures (`in_figures`)."""
    return list(dict.fromkeys(word.lower() for word in _LEFT.findall(figures)))


def in_figures(text: str) -> tuple[str, list[tuple[str, int]]]:
    """A problem with its spelled numbers in figures, and what was replaced by what."""
    parts: list[str] = []
    replaced: list[tuple[str, int]] = []
    done = 0
    for start, end, value in spelled_numbers(text):
        parts += [text[done:start], str(value)]
        replaced.append((text[start:end], value))
        done = end
    return "".join([*parts, text[done:]]), replaced
