"""Numbers that are written as words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etude.studies.text2math.program import numbers_of
from etude.studies.text2math.reading import in_figures, left_as_words, signs_of, typed, without_ordinals


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("crosses a pole in eighteen seconds", "crosses a pole in 18 seconds"),
        ("Twenty-five men and thirty boys", "25 men and 30 boys"),
        ("one hundred and twenty km in three hundred seconds", "120 km in 300 seconds"),
        ("two thousand five hundred and six", "2506"),
        ("one million two hundred thousand", "1200000"),
        ("two three four", "2 3 4"),
        ("nineteen eighty four", "19 84"),
        ("ten twenty", "10 20"),
        ("seventy two and one", "72 and 1"),
        ("zero five", "0 5"),
        ("five zero", "5 0"),
        ("a hundred people", "100 people"),
        ("A thousand and one nights", "1001 nights"),
        ("half a dozen eggs or two dozen", "6 eggs or 24"),
        ("a dozen dozens", "12 dozens"),
        ("half a million a year", "500000 a year"),
        ("hundreds of people, dozens of them", "hundreds of people, dozens of them"),
        ("half an hour , twice a day", "half an hour , twice a day"),
        ("a half of a tent", "a half of a tent"),
        ("someone has often a tent", "someone has often a tent"),
        ("12 men and 3 boys", "12 men and 3 boys"),
        ("", ""),
    ],
)
def test_in_figures(text: str, wanted: str) -> None:
    assert in_figures(text)[0] == wanted


def test_words_of_quantity_are_named() -> None:
    assert left_as_words(in_figures("Twice as fast as two men , a half twice")[0]) == ["twice", "half"]
    assert left_as_words(in_figures("half a dozen eggs")[0]) == []


def test_what_was_replaced_is_told() -> None:
    assert in_figures("Ninety km and forty-two m")[1] == [("Ninety", 90), ("forty-two", 42)]


_WORDS = ("zero", "one", "five", "twelve", "twenty", "ninety", "hundred", "thousand", "million", "dozen", "half", "a",
          "and", "-", "apples")  # fmt: skip


@given(st.lists(st.sampled_from(_WORDS), max_size=12).map(" ".join) | st.text(max_size=30))
def test_the_rest_of_the_text_stays(text: str) -> None:
    figures, replaced = in_figures(text)
    for word, value in replaced:
        assert word in text
        assert str(value) in figures
    if not replaced:
        assert figures == text


def _spell(number: int) -> str:
    small = (
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
        "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    )  # fmt: skip
    tens = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
    if number < 20:
        return small[number]
    if number < 100:
        return tens[number // 10] + (f"-{small[number % 10]}" if number % 10 else "")
    for scale, name in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if number >= scale:
            rest = number % scale
            joined = " and " if 0 < rest < 100 else " "
            return f"{_spell(number // scale)} {name}" + (joined + _spell(rest) if rest else "")
    raise AssertionError


@given(st.integers(0, 999_999_999))
def test_every_number_that_is_spelled_is_read(number: int) -> None:
    assert in_figures(f"there were {_spell(number)} of them")[0] == f"there were {number} of them"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("a pen costs Rs.40 and a book Rs. 2.50", [40, 2.5]),
        ("a house for 1,50,000 and one for 12,34,56,789", [150000, 123456789]),
        ("1,500 men and 2,000,000 ants", [1500, 2000000]),
        ("2 1/2 cups", [2.5]),
        ("2 and 3/4 cups , 1-1/2 spoons", [2.75, 1.5]),
        ("3/4 of 20", [3, 4, 20]),
        ("in 12 3 / 2 is no fraction", [12, 3, 2]),
        ("½ of 30 , 2½ km , 1 ¾ h", [0.5, 30, 2.5, 1.75]),
        ("5 dozen eggs", [60]),
        ("15 percent of 80 , 20 per cent", [15, 80, 20]),
        ("120km in 18sec , 5kg , 3m", [120, 18, 5, 3]),
        ("0.5 and 3.25", [0.5, 3.25]),
    ],
)
def test_forms_that_people_type(text: str, numbers: list[float]) -> None:
    assert numbers_of(typed(text)[0]) == numbers


def test_forms_are_told() -> None:
    text, said = typed("2 1/2 cups at Rs.40 , 15 percent")
    assert text == "2.5 cups at Rs. 40 , 15 %"
    assert said == ["'2 1/2' as 2.5", "'percent' as %"]
    assert typed("a train of 120 m crosses a pole in 18 seconds .")[1] == []


def test_ordinals_and_signs() -> None:
    assert without_ordinals("12 shops on 5th avenue") == "12 shops on fifth avenue"
    assert without_ordinals("12 shops") is None
    assert signs_of("from -5 degrees to 10-3 , 8 - 2 , minus 4") == ["-5", "minus 4"]
