"""Word problems: files that are broken, what counts as right, the filter, and the published split."""

import ast
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.core.errors import UserError
from etude.data import mathqa
from etude.studies.text2math import course_split as filtered
from etude.studies.text2math import problems
from etude.studies.text2math.course_split import admitted, answer_of, arithmetic, course_split
from etude.studies.text2math.problems import (
    Problem,
    Split,
    is_right,
    read_json,
    read_rows,
)
from etude.studies.text2math.program import Value, execute, numbers_of, parse, trace

MIRROR = os.environ.get("ETUDE_MIRROR") or str(Path(__file__).parents[4] / "shared" / "data")
NUM_PROBLEMS: dict[Split, int] = {"train": 19_791, "dev": 2_961, "test": 1_925}
FUZZ = settings(max_examples=200, deadline=None)


def in_mirror(names: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in names:
        if not (Path(MIRROR) / name).is_file():
            pytest.skip(f"no mirror of {name}: set ETUDE_MIRROR")
    monkeypatch.setenv("ETUDE_MIRROR", MIRROR)
    return Path(MIRROR)


@pytest.fixture
def real_mathqa(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the course's split, from a mirror; the test is skipped where there is none."""
    return in_mirror([f"mathqa/{split}.json" for split in NUM_PROBLEMS], monkeypatch) / "mathqa"


@pytest.fixture
def official(real_mathqa: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, list[dict[str, Any]]]:
    """The official dev and test rows, in the place of the archive and of the course's files."""
    folder = in_mirror(["mathqa-official/dev.json", "mathqa-official/test.json"], monkeypatch) / "mathqa-official"
    rows = {split: json.loads((folder / f"{split}.json").read_text()) for split in ("dev", "test")}
    monkeypatch.setattr(mathqa, "official_rows", rows.__getitem__)
    monkeypatch.setattr(mathqa, "filtered_copies", lambda: None)
    return rows


# --- what counts as right ---


@pytest.mark.parametrize(
    ("value", "answer", "right"),
    [
        (102.0, 100.0, True),
        (98.0, 100.0, True),
        (102.0001, 100.0, False),
        (97.9999, 100.0, False),
        (-102.0, -100.0, True),
        (100.0, -100.0, False),
        (100, 100.0, True),
        (0.0101, 0.01, True),
        (0.0, 0.0, False),
        (1.0, 0.0, False),
        (math.inf, 0.0, False),
        (100 + 0j, 100.0, False),
        (1e308, -1e308, False),
        (10**400, 1.0, False),
        (math.inf, 1.0, False),
        (-math.inf, 1.0, False),
    ],
)
def test_two_per_cent_of_the_answer(value: Value, answer: float, right: bool) -> None:
    assert is_right(value, answer) is right
    assert is_right(value, answer, course=True) is right


@pytest.mark.parametrize(
    ("value", "answer"), [(math.nan, 1.0), (1.0, math.nan), (math.inf, math.inf), (1.0, math.inf), (math.nan, math.inf)]
)
def test_what_is_no_number_is_right_for_the_course_alone(value: float, answer: float) -> None:
    off = abs((value - answer) / answer)
    assert math.isnan(off)
    assert not is_right(value, answer)
    assert is_right(value, answer, course=True)


@FUZZ
@given(st.one_of(st.floats(), st.integers(), st.complex_numbers()), st.floats())
def test_any_value_is_right_or_wrong(value: Value, answer: float) -> None:
    right, course = is_right(value, answer), is_right(value, answer, course=True)
    assert course or not right
    if right:
        assert not isinstance(value, complex)
        assert abs(value - answer) <= 0.021 * abs(answer)


# --- files ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("problems")


def read(folder: Path, body: str | bytes, needs: Sequence[str] | None = None) -> list[Problem]:
    path = folder / "some.json"
    path.write_bytes(body.encode() if isinstance(body, str) else body)
    return read_json(path) if needs is None else [problem for _, problem, _ in read_rows(path, needs)]


def refused(folder: Path, body: str | bytes, line: int, fault: str) -> None:
    with pytest.raises(UserError) as caught:
        read(folder, body)
    text = str(caught.value)
    assert text.isprintable()
    assert text.startswith(f"{folder / 'some.json'}, line {line}: "), text
    assert fault in text, text


ROW = '{"Problem": "2 and 3", "linear_formula": "add(n0,n1)|", "answer": 5}'
OK = Problem("2 and 3", "add(n0,n1)|", 5.0)


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ("[]", []),
        (" \n [ \n ] \n ", []),
        (f"[{ROW}]", [1]),
        (f"\ufeff[{ROW}]", [1]),
        (f"\ufeff \n[{ROW}]\n", [2]),
        (f"[\n{ROW},\n{ROW}\n]\n", [2, 3]),
        (f"[\r\n{ROW},\r\n{ROW}\r\n]\r\n", [2, 3]),
        (f"[{ROW},{ROW},\n\n\n{ROW}\n,\n{ROW}]", [1, 1, 4, 6]),
        (f"[\n\t{ROW.replace(', ', ',' + chr(10))},\n\t{ROW}\n]", [2, 5]),
    ],
)
def test_a_list_of_problems(folder: Path, body: str, lines: list[int]) -> None:
    assert read(folder, body) == [OK] * len(lines)
    path = folder / "some.json"
    assert [where for _, _, where in read_rows(path)] == [f"{path}, line {line}" for line in lines]


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("5", 5.0),
        ("-5", -5.0),
        ("0", 0.0),
        ("0.5", 0.5),
        ("0.8611111111111112", 0.8611111111111112),
        ("1e3", 1000.0),
        ("1E-2", 0.01),
        ("1e999", math.inf),
        ("1" + "0" * 300, 1e300),
    ],
)
def test_answers_are_whole_or_decimal(folder: Path, written: str, answer: float) -> None:
    (problem,) = read(folder, f"[{ROW.replace('5}', written + '}')}]")
    assert problem.answer == answer
    assert isinstance(problem.answer, float)


def test_other_fields_are_left_alone(folder: Path) -> None:
    assert read(folder, f'[{ROW[:-1]}, "options": ["a"], "correct": null}}]') == [OK]


def test_only_what_is_needed_must_be_there(folder: Path) -> None:
    (bare,) = read(folder, '[{"Problem": "2 and 3"}]', ["Problem"])
    assert (bare.text, bare.program) == ("2 and 3", "")
    assert math.isnan(bare.answer)
    with pytest.raises(UserError, match="line 1: the object has no field 'answer'"):
        read(folder, '[{"Problem": "2 and 3"}]', ["Problem", "answer"])
    with pytest.raises(UserError, match="line 1: 'linear_formula' must be a text, not 3"):
        read(folder, '[{"Problem": "2 and 3", "linear_formula": 3}]', ["Problem"])


def row(**changes: str) -> str:
    """An object whose fields are these JSON texts; an empty one leaves the field out."""
    fields = {"Problem": '"2 and 3"', "linear_formula": '"add(n0,n1)"', "answer": "5"} | changes
    return "{" + ", ".join(f'"{name}": {text}' for name, text in fields.items() if text) + "}"


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (row(Problem=""), "the object has no field 'Problem'"),
        (row(linear_formula=""), "the object has no field 'linear_formula'"),
        (row(answer=""), "the object has no field 'answer'"),
        ("{}", "the object has no field 'Problem'"),
        (row(Problem="5"), "'Problem' must be a text, not 5"),
        (row(Problem="null"), "'Problem' must be a text, not null"),
        (row(Problem='["a"]'), "'Problem' must be a text, not [\"a\"]"),
        (row(linear_formula="{}"), "'linear_formula' must be a text, not {}"),
        (row(linear_formula="true"), "'linear_formula' must be a text, not true"),
        (row(answer="true"), "'answer' must be a number, not true"),
        (row(answer="false"), "'answer' must be a number, not false"),
        (row(answer="null"), "'answer' must be a number, not null"),
        (row(answer='"5"'), "'answer' must be a number, not \"5\""),
        (row(answer="[[5]]"), "'answer' must be a number, not [[5]]"),
        (row(answer=f'"{"x" * 60}"'), f"'answer' must be a number, not \"{'x' * 36}..."),
        (row(answer="1" + "0" * 400), "'answer' is too large for a number"),
        (row(answer="-1" + "0" * 400), "'answer' is too large for a number"),
        ("5", "an object {...} is wanted, not 5"),
        ("null", "an object {...} is wanted, not null"),
        ('"a"', 'an object {...} is wanted, not "a"'),
        ("[]", "an object {...} is wanted, not []"),
        (",", "this is no JSON"),
        ("nul", "this is no JSON"),
        ("{'Problem': 1}", "this is no JSON"),
        ('{"Problem" 1}', "this is no JSON"),
        ('{"Problem": "a\tb"}', "this is no JSON"),
        ('{"Problem": "\\x"}', "this is no JSON"),
        ("\x00", "this is no JSON"),
        (row(Problem='"3 \\ud83d"'), "half a sign"),
        (row(extra='["\\uDE82"]'), "half a sign"),
        ("// a remark", "this is no JSON"),
    ],
    ids=lambda value: value[:40],
)
def test_a_fault_names_the_line_of_its_object(folder: Path, body: str, fault: str) -> None:
    for before, line in (("[", 1), (f"[\n{ROW},\n", 3), (f"[{ROW},\r\n\r\n  {ROW},", 3)):
        refused(folder, f"{before}{body},\n{ROW}\n]", line, fault)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("", 1),
        ("\n\n", 3),
        (ROW, 1),
        ("null", 1),
        ("hello", 1),
        (f"\ufeff\ufeff[{ROW}]", 1),
        (f"[\n{ROW},]", 2),
        (f"[\n{ROW},\n]", 3),
        ("[,]", 1),
        (f"[\n{ROW}\n{ROW}\n]", 3),
        (f"[\n{ROW};\n{ROW}\n]", 2),
        ("[", 1),
        (f"[\n{ROW}", 2),
        (f"[\n{ROW},\n", 3),
        (f"[\n{ROW}]]", 2),
        (f"[\n{ROW}]\n[{ROW}]", 3),
        (f"[\n{ROW}]\n\x00", 3),
    ],
)
def test_a_fault_of_the_list_names_its_line(folder: Path, body: str, line: int) -> None:
    refused(folder, body, line, "a list of problems is wanted")


@pytest.mark.parametrize(
    "body",
    [
        row(answer="1" * 5000),
        row(extra="1" * 5000),
        row(Problem="[" * 100_000),
        row(extra="[" * 100_000 + "]" * 100_000),
        row(extra='{"a":' * 100_000),
    ],
    ids=lambda value: value[:40],
)
def test_what_is_too_much_for_the_reader_of_json(folder: Path, body: str) -> None:
    with pytest.raises(UserError, match=r"some\.json has an object nested too deeply, or a number of too many digits"):
        read(folder, f"[{body}]")


def test_both_halves_of_a_sign_are_one(folder: Path) -> None:
    body = json.dumps([{"Problem": "\U0001f682 of 3 m", "linear_formula": "sqrt(n0)|", "answer": 1.7}])
    assert "\\ud83d" in body
    assert read(folder, body)[0].text == "\U0001f682 of 3 m"


def test_a_file_cut_short_is_refused_at_its_last_line(folder: Path) -> None:
    whole = f"[\n{ROW},\n{ROW}\n]"
    for end in range(len(whole)):
        refused(folder, whole[:end], whole.count("\n", 0, end) + 1, "")


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (b"\xff\xfe[\x00]\x00", 1),
        (f"[\n{ROW}\n]".encode("utf-16"), 1),
        (f"[\n{ROW},\n{ROW}".encode() + b"\x80\n]", 3),
        (f"[\n{ROW},\n{ROW}\n]".encode("latin-1").replace(b"d 3", b"d\xe93"), 2),
        (f"[\n{ROW}\n]".encode() + b"\xf0\x9f", 3),
    ],
)
def test_what_is_not_utf8_is_named_by_its_line(folder: Path, body: bytes, line: int) -> None:
    refused(folder, body, line, "this is no text in UTF-8")


def test_files_that_cannot_be_read(folder: Path) -> None:
    for path in (folder / "nothing.json", folder):
        with pytest.raises(UserError) as caught:
            read_json(path)
        assert str(caught.value).startswith(f"{path} cannot be read (")
        assert str(caught.value).isprintable()


def read_or_refused(folder: Path, body: bytes) -> None:
    try:
        found = read(folder, body)
    except UserError as error:
        refusal = str(error)
    else:
        for problem in found:
            assert [type(field) for field in (problem.text, problem.program, problem.answer)] == [str, str, float]
        return
    assert refusal.isprintable()
    assert "some.json, line " in refusal or "too many digits" in refusal


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(["Problem", "linear_formula", "answer"]), st.text(max_size=4)), inner, max_size=4
        ),
    ),
    max_leaves=12,
)
PROBLEMS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "Problem": st.one_of(st.text(), JSON),
            "linear_formula": st.one_of(st.text(), JSON),
            "answer": st.one_of(st.floats(), st.integers(), JSON),
        },
    ),
    max_size=4,
)


@FUZZ
@given(st.one_of(st.binary(max_size=80), st.binary(max_size=60).map(lambda body: b"[{" + body)))
def test_any_bytes_are_problems_or_one_line(folder: Path, body: bytes) -> None:
    read_or_refused(folder, body)


@FUZZ
@given(st.one_of(JSON, PROBLEMS), st.sampled_from([None, 0, 1]), st.booleans())
def test_any_json_is_problems_or_one_line(folder: Path, value: object, indent: int | None, plain: bool) -> None:
    read_or_refused(folder, json.dumps(value, indent=indent, ensure_ascii=plain).encode("utf-8", "surrogatepass"))


@FUZZ
@given(st.data())
def test_garbled_files_are_problems_or_one_line(folder: Path, data: st.DataObject) -> None:
    body = bytearray(f"[\n{ROW},\n{ROW}\n]".encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body) - 1))
        piece = data.draw(st.one_of(st.binary(max_size=2), st.sampled_from([b'"', b"{", b"}", b"[", b"]", b",", b":"])))
        body[place : place + data.draw(st.integers(0, 2))] = piece
    read_or_refused(folder, bytes(body))


@FUZZ
@given(st.lists(st.tuples(st.text(), st.text(), st.floats(allow_nan=False))), st.sampled_from([None, 1]))
def test_what_json_writes_is_read_back(folder: Path, rows: list[tuple[str, str, float]], indent: int | None) -> None:
    named = [{"Problem": text, "linear_formula": program, "answer": answer} for text, program, answer in rows]
    assert read(folder, json.dumps(named, indent=indent)) == [Problem(*values) for values in rows]


# --- options ---


@pytest.mark.parametrize(
    ("correct", "answer"),
    [("a", 38.0), ("b", 0.5), ("c", 30.0), ("d", 1250.0), ("e", 12.5), ("f", None), ("", None), ("A", None)],
)
def test_the_number_in_an_option(correct: str, answer: float | None) -> None:
    assert answer_of("a ) 38 , b ) 1 : 2 , c ) rs . 30 , d ) $ 1250 . , e ) 12.5 %", correct) == answer


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("31 / 36", 31 / 36),
        ("1 : 4", 0.25),
        ("2 * ( 3 + 4 )", 14.0),
        ("rs . 1.5", 1.5),
        ("€ 7", 7.0),
        ("£ 7 , 500", 7.0),
        ("12 km / hr", None),
        ("none of these", None),
        ("", None),
        ("a ) 9", 9.0),
        ("4 ( 1 / 2 )", None),
        ("1 / 0", None),
        ("x = 5", 5.0),
        ("- 3", -3.0),
        ("-3", -3.0),
        ("- 3.5", None),
        ("- 1 / 2", None),
        ("- 1 : 2", None),
        ("5 - 3", 2.0),
        ("\N{MINUS SIGN} 3", None),
        ("9 ^ 2", None),
        ("5 !", None),
        ("3 , 000", 3.0),
        ("....", None),
    ],
)
def test_what_the_filter_reads_of_an_option(option: str, answer: float | None) -> None:
    assert answer_of(f"a ) {option}", "a") == answer
    if "," not in option:
        assert answer_of(f"b ) 77 , a ) {option} , c ) 88", "a") == answer
        assert answer_of(f"['b ) 77', 'a ) {option}', 'c ) 88']", "a") == answer


def test_a_unicode_minus_anywhere_drops_the_row() -> None:
    assert answer_of("a ) 3 , b ) \N{MINUS SIGN} 3", "a") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("1+2*3", 7.0),
        ("8/4/2", 1.0),
        ("8-4-2", 2.0),
        ("(1+2)*3", 9.0),
        ("-2*-3", 6.0),
        ("--2", 2.0),
        ("+2", 2.0),
        ("2*(3-(4-5))", 8.0),
        ("", None),
        ("()", None),
        ("1 2", None),
        ("1+", None),
        ("*1", None),
        ("(1", None),
        ("1)", None),
        ("2(3)", None),
        ("2**3", None),
        ("7//2", None),
        ("1.2.3", None),
        ("1e5", None),
        ("1_000", None),
        ("1/0", None),
        ("0/0", None),
        ("\N{SUPERSCRIPT TWO}", None),
        ("__import__('os')", None),
    ],
)
def test_arithmetic_by_hand(text: str, value: float | None) -> None:
    assert arithmetic(text) == value


def test_long_arithmetic_is_none_or_a_number() -> None:
    for text in ("(" * 10**5, "-" * 10**5 + "1", "1+" * 10**5 + "1", "9**" * 33 + "9"):
        assert arithmetic(text) is None
    for text in ("(" * 49 + "1" + ")" * 49, "-" * 98 + "1", "(" * 20 + "1" + ")" * 20):
        assert arithmetic(text) == 1.0
    for depth in range(40, 110):
        arithmetic("(" * depth)
        arithmetic("-(" * depth)
    assert arithmetic("9" * 400) is None


OPERAND = st.one_of(st.integers(0, 99).map(str), st.integers(0, 99).map(lambda number: f"{number}.25"))
EXPRESSION = st.recursive(
    OPERAND,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join),
        inner.map("({})".format),
        inner.map("-{}".format),
    ),
    max_leaves=12,
)


@FUZZ
@given(EXPRESSION)
def test_arithmetic_is_pythons(text: str) -> None:
    # Without leading zeros and powers, the test may ask Python itself.
    try:
        wanted = pytest.approx(float(eval(text)), rel=1e-9, abs=1e-9)
    except ZeroDivisionError:
        wanted = None
    assert arithmetic(text) == wanted


@FUZZ
@given(st.one_of(st.text(), st.text("0123456789.+-*/() ", max_size=120)))
def test_arithmetic_of_any_text_is_a_number_or_none(text: str) -> None:
    value = arithmetic(text)
    assert value is None or isinstance(value, float)


@FUZZ
@given(st.one_of(st.text(), st.text("abc)(0123456789.:,+-*/$%[]'\" \n", max_size=80)), st.one_of(st.text(max_size=3)))
def test_any_option_has_a_number_or_none(options: str, correct: str) -> None:
    for letter in (correct, "a", "(", "[", "a*", "\\"):
        for text in (options, f"{letter} ) {options}"):
            value = answer_of(text, letter)
            assert value is None or isinstance(value, float)


def test_no_text_is_run_as_python() -> None:
    sources = [ast.parse(Path(str(module.__file__)).read_text()) for module in (problems, filtered)]
    calls = [node.func for source in sources for node in ast.walk(source) if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    assert not names & {"eval", "exec", "compile", "__import__"}


# --- the filter ---


def official_row(**changes: str) -> dict[str, str]:
    return {"Problem": "2 and 3", "options": "a ) 7 , b ) 5", "correct": "b", "linear_formula": "add(n0,n1)"} | changes


def test_rows_whose_program_gives_their_option_are_kept() -> None:
    assert admitted([official_row()]) == [Problem("2 and 3", "add(n0,n1)", 5.0)]
    assert admitted([official_row(options="b ) 5.1")]) == [Problem("2 and 3", "add(n0,n1)", 5.1)]
    assert admitted([official_row(), official_row(correct="a"), official_row(Problem="1 and 4")]) == [
        Problem("2 and 3", "add(n0,n1)", 5.0),
        Problem("1 and 4", "add(n0,n1)", 5.0),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"options": "b ) 5.2"},
        {"correct": "c"},
        {"options": "b ) none"},
        {"linear_formula": "add(n0,n2)"},
        {"linear_formula": "addd(n0,n1)"},
        {"linear_formula": ""},
        {"linear_formula": "divide(n0,const_0)"},
        {"linear_formula": "negate(n0)|sqrt(#0)"},
        {"linear_formula": "subtract(n0,n0)", "options": "b ) 0"},
    ],
)
def test_other_rows_are_dropped(changes: dict[str, str]) -> None:
    assert admitted([official_row(**changes)]) == []


@pytest.mark.real_data
@pytest.mark.parametrize("split", ["dev", "test"])
def test_the_official_rows_give_the_courses_split(
    real_mathqa: Path, official: Mapping[str, list[dict[str, Any]]], split: Split
) -> None:
    assert len(official[split]) == mathqa.NUM_ROWS[split]
    made = course_split(split)
    assert len(made) == NUM_PROBLEMS[split]
    assert made == read_json(real_mathqa / f"{split}.json")


@pytest.mark.real_data
@pytest.mark.parametrize(("split", "more"), [("dev", 1), ("test", 25)])
def test_the_rule_alone_admits_a_few_more(
    real_mathqa: Path, official: Mapping[str, list[dict[str, Any]]], split: Split, more: int
) -> None:
    left_out = [row for place, row in enumerate(official[split]) if place in filtered._LEFT_OUT[split]]
    extra = {problem.text for problem in admitted(left_out)}
    assert len(extra) == more
    assert not extra & {problem.text for problem in read_json(real_mathqa / f"{split}.json")}


def test_left_out_rows_alone_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [official_row(Problem=f"{place} and {5 - place}") for place in range(4)]
    monkeypatch.setattr(mathqa, "official_rows", lambda split: rows)
    monkeypatch.setattr(mathqa, "filtered_copies", lambda: None)
    assert len(course_split("dev")) == 4
    monkeypatch.setattr(filtered, "_LEFT_OUT", {"dev": frozenset({1, 3, 99})})
    assert [problem.text for problem in course_split("dev")] == ["0 and 5", "2 and 3"]


def test_rows_left_out_are_rows_of_the_file() -> None:
    for split, rows in filtered._LEFT_OUT.items():
        assert all(0 <= row < mathqa.NUM_ROWS[split] for row in rows)
    assert {split: len(rows) for split, rows in filtered._LEFT_OUT.items()} == {"train": 0, "dev": 1, "test": 30}


# --- the real problems ---


@pytest.mark.real_data
@pytest.mark.parametrize("split", get_args(Split))
def test_the_courses_own_files_come_first(real_mathqa: Path, monkeypatch: pytest.MonkeyPatch, split: Split) -> None:
    monkeypatch.setattr(mathqa, "official_rows", None)
    found = course_split(split)
    assert found == read_json(real_mathqa / f"{split}.json")
    assert len(found) == len({problem.text for problem in found}) == NUM_PROBLEMS[split]


@pytest.mark.real_data
def test_every_gold_program_gives_its_answer(real_mathqa: Path) -> None:
    count = 0
    for split in NUM_PROBLEMS:
        for place, problem in enumerate(read_json(real_mathqa / f"{split}.json")):
            traced = trace(problem.program, numbers_of(problem.text))
            assert is_right(traced[-1].value, problem.answer), (split, place)
            assert is_right(traced[-1].value, problem.answer, course=True), (split, place)
            assert len(traced) == len(parse(problem.program)) <= 49
            count += 1
    assert count == 24_677


@pytest.mark.real_data
def test_execution_is_the_end_of_the_trace_for_gold(real_mathqa: Path) -> None:
    for problem in read_json(real_mathqa / "test.json"):
        numbers = numbers_of(problem.text)
        assert execute(problem.program, numbers) == trace(problem.program, numbers)[-1].value


@pytest.mark.real_data
def test_programs_shared_with_train(real_mathqa: Path) -> None:
    plain = {
        split: [problem.program.removesuffix("|") for problem in read_json(real_mathqa / f"{split}.json")]
        for split in NUM_PROBLEMS
    }
    known = set(plain["train"])
    shared = {split: sum(program in known for program in plain[split]) for split in ("dev", "test")}
    assert shared == {"dev": 2_388, "test": 1_573}
