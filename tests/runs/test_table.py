"""The printed answers of predictions, and the refusals among them."""

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from etude.core.errors import Refused, UserError
from etude.data.prediction import answerable, attempted, in_place
from etude.runs.table import show_answers


@dataclass(frozen=True)
class Answer:
    name: str
    value: float


ODD = "a\nb\x1b[31m"


def test_refusals_stand_between_the_answers(capsys: pytest.CaptureFixture[str]) -> None:
    answers = [Answer("one", 1.0), Refused("x", "x is\x1b broken: mend it"), Answer("two", 2.0)]
    assert show_answers(SimpleNamespace(), answers) == 1
    said = capsys.readouterr()
    assert said.err == "etude: x is? broken: mend it\n"
    assert [line.split()[0] for line in said.out.splitlines()] == ["name", "one", "two"]
    assert show_answers(SimpleNamespace(), answers, as_json=True) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row.get("name", row.get("input")) for row in rows] == ["one", "x", "two"]
    assert show_answers(SimpleNamespace(), answers[:1]) == 0
    capsys.readouterr()
    # A name that is no text in UTF-8.
    show_answers(SimpleNamespace(), [Answer("\udcff", 1.0)], as_json=True)
    out = capsys.readouterr().out
    assert json.loads(out.encode())[0]["name"] == "\udcff"


@pytest.mark.parametrize(
    "study", [SimpleNamespace(), SimpleNamespace(tell=lambda rows: "\n".join(r.name for r in rows))]
)
def test_a_name_moves_no_cursor(capsys: pytest.CaptureFixture[str], study: Any) -> None:
    show_answers(study, [Answer(ODD, 1.0)])
    assert all(sign.isprintable() or sign == "\n" for sign in capsys.readouterr().out)


def test_one_bad_input_takes_no_other_with_it() -> None:
    def half(number: int) -> int:
        if number % 2:
            raise UserError(f"{number} is odd: give another")
        return number // 2

    made = attempted([2, 3, 4], half, lambda number: f"#{number}")
    assert made == [1, Refused("#3", "3 is odd: give another"), 2]
    assert in_place(made, "ab") == ["a", made[1], "b"]
    assert answerable(made) is made
    with pytest.raises(UserError, match=r"3 is odd: give another \(and 1 more"):
        answerable(attempted([3, 5], half))
