"""MathQA's language: every formula by hand, every refusal by its fault, bounds, fuzz, and broken gold programs."""

import ast
import json
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etude.studies.text2math import program as language
from etude.studies.text2math.program import (
    GEOMETRY,
    MAX_ARGUMENTS,
    MAX_BITS,
    MAX_FACTORIAL,
    MAX_STEPS,
    OPERATORS,
    NoValue,
    ProgramError,
    Step,
    Value,
    argument_value,
    execute,
    numbers_of,
    parse,
    trace,
    written,
)

MIRROR = Path(os.environ.get("ETUDE_MIRROR") or Path(__file__).parents[4] / "shared" / "data")

# The faults of programs, as their messages name them.
MALFORMED = "has no parenthesis|an empty program"
UNKNOWN_OPERATOR = "there is no operator"
TOO_FEW = r"argument\(s\) in place of"
UNKNOWN_ARGUMENT = "is no number n0|is no constant|has no index"
MISSING = "of a problem with . number"
FORWARD = "is not computed yet"
UNDEFINED = r"a division by zero|no value \(|the complex number"
TOO_LARGE = "too large for a float|bits|the factorial of"

PI = math.pi
FORMULAS: dict[str, tuple[tuple[float, ...], float]] = {
    "add": ((3.0, 4.5), 7.5),
    "subtract": ((3.0, 4.5), -1.5),
    "multiply": ((3.0, 4.5), 13.5),
    "divide": ((3.0, 4.0), 0.75),
    "speed": ((120.0, 1.5), 80.0),
    "p_after_gain": ((150.0, 1.25), 120.0),
    "power": ((2.0, 10.0), 1024.0),
    "reminder": ((17.9, 5.2), 2),
    "gcd": ((12.7, 18.2), 6),
    "lcm": ((4.9, 6.0), 12),
    "max": ((3.0, 4.5), 4.5),
    "min": ((3.0, 4.5), 3.0),
    "choose": ((6.0, 2.0), 15.0),
    "permutation": ((6.0, 2.0), 360.0),
    "factorial": ((5.0,), 120),
    "floor": ((7.9,), 7),
    "log": ((100.0,), 4.605170185988092),
    "sqrt": ((2.25,), 1.5),
    "inverse": ((8.0,), 0.125),
    "negate": ((8.0,), -8.0),
    "negate_prob": ((0.25,), 0.75),
    "circle_area": ((3.0,), 9 * PI),
    "circumface": ((3.0,), 6 * PI),
    "square_area": ((7.0,), 49.0),
    "square_perimeter": ((7.0,), 28.0),
    "rhombus_perimeter": ((7.0,), 28.0),
    "square_edge_by_area": ((49.0,), 7.0),
    "square_edge_by_perimeter": ((28.0,), 7.0),
    "cube_edge_by_volume": ((27.0,), 3.0),
    "surface_sphere": ((6.0,), 144 * PI),
    "volume_sphere": ((6.0,), 288 * PI),
    "surface_cube": ((5.0,), 150.0),
    "volume_cube": ((5.0,), 150.0),
    "rectangle_area": ((3.0, 4.0), 12.0),
    "rectangle_perimeter": ((3.0, 4.0), 14.0),
    "triangle_area": ((3.0, 5.0), 7.5),
    "triangle_area_three_edges": ((13.0, 14.0, 15.0), 84.0),
    "triangle_perimeter": ((13.0, 14.0, 15.0), 42.0),
    "quadrilateral_area": ((6.0, 3.0, 5.0), 24.0),
    "rhombus_area": ((6.0, 8.0), 7.0),
    "volume_rectangular_prism": ((2.0, 3.0, 5.0), 30.0),
    "surface_rectangular_prism": ((2.0, 3.0, 5.0), 62.0),
    "volume_cylinder": ((3.0, 2.0), 4 * PI),
    "surface_cylinder": ((3.0, 2.0), 30 * PI),
    "volume_cone": ((3.0, 2.0), 9 * PI),
    "stream_speed": ((10.0, 4.0), 7.0),
    "original_price_before_loss": ((20.0, 80.0), 64.0),
    "original_price_before_gain": ((25.0, 80.0), 100.0),
}
RIGHT: dict[str, tuple[tuple[float, ...], float]] = {
    "volume_cube": ((5.0,), 125.0),
    "volume_cylinder": ((3.0, 2.0), 18 * PI),
    "volume_cone": ((3.0, 2.0), 6 * PI),
    "rhombus_area": ((6.0, 8.0), 24.0),
    "stream_speed": ((10.0, 4.0), 3.0),
    "original_price_before_loss": ((20.0, 80.0), 100.0),
    "original_price_before_gain": ((25.0, 80.0), 64.0),
}
"""The same where geometry and trade say otherwise."""


def call(operator: str, count: int) -> str:
    return f"{operator}({','.join(f'n{place}' for place in range(count))})"


@contextmanager
def quick() -> Iterator[None]:
    begun = time.process_time()
    yield
    assert time.process_time() - begun < 1


def test_every_operator_has_a_value_by_hand() -> None:
    assert set(FORMULAS) == set(OPERATORS) == set(GEOMETRY)
    assert len(OPERATORS) == 48


@pytest.mark.parametrize("operator", FORMULAS)
def test_the_formulas_of_the_data_set(operator: str) -> None:
    numbers, value = FORMULAS[operator]
    assert execute(call(operator, len(numbers)), numbers) == pytest.approx(value, rel=1e-12)
    assert OPERATORS[operator].arity == len(numbers)


@pytest.mark.parametrize("operator", FORMULAS)
def test_the_formulas_of_geometry(operator: str) -> None:
    numbers, value = RIGHT.get(operator, FORMULAS[operator])
    assert execute(call(operator, len(numbers)), numbers, GEOMETRY) == pytest.approx(value, rel=1e-12)


def test_the_two_sets_differ_in_the_odd_formulas_alone() -> None:
    assert {name for name in OPERATORS if OPERATORS[name] is not GEOMETRY[name]} == set(RIGHT)


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("factorial(const_0)", 1),
        ("negate(const_3)|factorial(#0)", 1),
        ("factorial(const_4_9)", 24),
        ("factorial(const_1000)", math.factorial(1000)),
        ("negate(const_7_9)|floor(#0)", -7),
        ("negate(const_7)|reminder(#0,const_3)", 2),
        ("negate(const_7)|reminder(const_7,#0)", 0),
        ("negate(const_12)|gcd(#0,const_18)", 6),
        ("gcd(const_0,const_0)", 0),
        ("lcm(const_0,const_5)", 0),
        ("choose(const_2,const_5)", 2 / 120),
        ("choose(const_5_5,const_2_2)", 120 / (2 * 6)),
        ("choose(const_1000,const_1)", 1000),
        ("power(const_4,const_0_5)", 2.0),
        ("power(const_0,const_0)", 1.0),
        ("sqrt(const_0)", 0.0),
    ],
)
def test_corners_of_the_whole_numbers(program: str, value: float) -> None:
    assert execute(program, []) == value


@pytest.mark.parametrize(
    ("problem", "numbers"),
    [
        ("", []),
        ("no numbers , none", []),
        ("a 3 - digit number of 2 , 5 and 1", [3.0, 2.0, 5.0, 1.0]),
        ("rs . 1,000 and 12,345,678 and 1,234.5", [1000.0, 12345678.0, 1234.5]),
        ("1,23 and 1,2345 and 1234,567", [1.0, 23.0, 1.0, 2345.0, 1234.0, 567.0]),
        ("1,234,56", [1234.0, 56.0]),
        ("1 ,000", [1.0, 0.0]),
        ("-5 and +7 and -5.5 and +7.25", [5.0, 7.0, -5.5, 7.25]),
        ("3-2 and 3-2.5", [3.0, 2.0, 3.0, -2.5]),
        (".5 and -.5 and 5. and 1.2.3", [0.5, -0.5, 5.0, 1.2, 0.3]),
        ("x2y3 and 50% and 1/2 and 2:3", [2.0, 3.0, 50.0, 1.0, 2.0, 2.0, 3.0]),
        ("1e5", [1.0, 5.0]),
        ("007", [7.0]),
        pytest.param("9" * 400, [math.inf], id="four hundred digits"),
    ],
)
def test_numbers_of_a_problem(problem: str, numbers: list[float]) -> None:
    assert numbers_of(problem) == numbers


def test_steps_of_a_program() -> None:
    program = "divide(n1,n0)|multiply(#0, const_100 )|"
    assert parse(program) == (Step("divide", ("n1", "n0")), Step("multiply", ("#0", "const_100")))
    assert "|".join(map(str, parse(program))) == "divide(n1,n0)|multiply(#0,const_100)"
    assert parse("||add(n0,n1)||||sqrt(#0)||") == parse("add(n0,n1)|sqrt(#0)")


@pytest.mark.parametrize(
    ("text", "step"),
    [
        (" add (n0,n1)", Step(" add ", ("n0", "n1"))),
        ("add(n0,n1", Step("add", ("n0", "n1"))),
        ("add(n0,n1)n2)", Step("add", ("n0", "n1"))),
        ("add((n0,n1)", Step("add", ("(n0", "n1"))),
        ("add(n0,sqrt(n1))", Step("add", ("n0", "sqrt(n1"))),
        (")add(n0)", Step(")add", ("n0",))),
        ("(n0)", Step("", ("n0",))),
        ("add()", Step("add", ("",))),
        ("add(", Step("add", ("",))),
        ("add(,)", Step("add", ("", ""))),
        ("add(\tn0\n, n1 )", Step("add", ("n0", "n1"))),
    ],
)
def test_what_belongs_to_a_step(text: str, step: Step) -> None:
    assert parse(text) == (step,)


def test_the_last_step_is_the_value() -> None:
    assert execute("add(n0,n1)|multiply(n0,n1)", [3.0, 4.0]) == 12.0
    assert execute("add(n0,n1", [3.0, 4.0]) == 7.0
    assert execute("||add(n0,n1)||multiply(#0,#0)||", [3.0, 4.0]) == 49.0


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("n0", 3.0),
        ("n1", 4.0),
        ("n01", 4.0),
        ("#0", 30.0),
        ("#1", 40.0),
        ("n#1", 40.0),
        ("const_#0", 30.0),
        ("const_100", 100.0),
        ("const_0_33", 0.33),
        ("const_3.0", 3.0),
        ("const_3_6", 3.6),
        ("const_2_", 2.0),
        ("const__5", 0.5),
        ("const_pi", PI),
        ("nconst_2", 2.0),
        ("-n1", 4.0),
    ],
)
def test_what_an_argument_stands_for(argument: str, value: float) -> None:
    assert argument_value(argument, [3.0, 4.0], [30.0, 40.0]) == value


@pytest.mark.parametrize(
    ("argument", "kind"),
    [
        ("", UNKNOWN_ARGUMENT),
        ("3", UNKNOWN_ARGUMENT),
        ("x", UNKNOWN_ARGUMENT),
        ("const3", UNKNOWN_ARGUMENT),
        ("const_", UNKNOWN_ARGUMENT),
        ("const_deg_to_rad", UNKNOWN_ARGUMENT),
        ("const_n0", UNKNOWN_ARGUMENT),
        ("const_1_2_3", UNKNOWN_ARGUMENT),
        ("const_1e5", UNKNOWN_ARGUMENT),
        ("const_inf", UNKNOWN_ARGUMENT),
        ("const_nan", UNKNOWN_ARGUMENT),
        ("const_-1", UNKNOWN_ARGUMENT),
        ("const_1\n", UNKNOWN_ARGUMENT),
        ("const_.", UNKNOWN_ARGUMENT),
        ("const_\N{ARABIC-INDIC DIGIT THREE}", UNKNOWN_ARGUMENT),
        pytest.param("const_" + "9" * 400, UNKNOWN_ARGUMENT, id="a long constant"),
        ("n", UNKNOWN_ARGUMENT),
        ("n-1", UNKNOWN_ARGUMENT),
        ("n 1", UNKNOWN_ARGUMENT),
        ("n0n1", UNKNOWN_ARGUMENT),
        ("n1_0", UNKNOWN_ARGUMENT),
        ("n\N{SUPERSCRIPT TWO}", UNKNOWN_ARGUMENT),
        ("n\N{ARABIC-INDIC DIGIT THREE}", UNKNOWN_ARGUMENT),
        ("#", UNKNOWN_ARGUMENT),
        ("#n0", UNKNOWN_ARGUMENT),
        ("##0", UNKNOWN_ARGUMENT),
        ("#-1", UNKNOWN_ARGUMENT),
        ("n2", MISSING),
        ("n1000000", MISSING),
        pytest.param("n" + "9" * 5000, MISSING, id="a long number"),
        ("#2", FORWARD),
        ("#1000000", FORWARD),
        pytest.param("#" + "9" * 5000, FORWARD, id="a long reference"),
    ],
)
def test_arguments_that_stand_for_nothing(argument: str, kind: str) -> None:
    with pytest.raises(ProgramError) as caught:
        argument_value(argument, [3.0, 4.0], [30.0, 40.0])
    assert re.search(kind, str(caught.value))
    assert str(caught.value).isprintable()
    assert argument[:50].strip() in str(caught.value)
    assert len(str(caught.value)) < 200


def test_surplus_arguments_are_ignored_but_must_be_known() -> None:
    assert execute("add(n0,n1,n0,const_9)", [3.0, 4.0]) == 7.0
    assert trace("sqrt(n1,n0)", [3.0, 4.0])[0].inputs == (4.0,)
    for surplus, kind in (("n2", MISSING), ("#0", FORWARD), ("", UNKNOWN_ARGUMENT)):
        with pytest.raises(ProgramError, match=kind):
            execute(f"add(n0,n1,{surplus})", [3.0, 4.0])


FAULTS: list[tuple[str, str]] = [
    ("", "an empty program has no value"),
    ("|||", "an empty program has no value"),
    ("add", "the step 'add' has no parenthesis"),
    ("add(n0,n1)| |", "the step ' ' has no parenthesis"),
    ("add(n0,n1)|add n0,n1)", "the step 'add n0,n1)' has no parenthesis"),
    ("addd(n0,n1)", "step 0 (addd(n0,n1)): there is no operator 'addd'"),
    ("Add(n0,n1)", "there is no operator 'Add'"),
    ("add(n0,n1)| add(n0,n1)", "step 1 ( add(n0,n1)): there is no operator ' add'"),
    ("add (n0,n1)", "there is no operator 'add '"),
    ("(n0,n1)", "there is no operator ''"),
    ("add(n0)", "step 0 (add(n0)): 1 argument(s) in place of 2"),
    ("triangle_perimeter(n0,n1)", "2 argument(s) in place of 3"),
    ("add(n0;n1)", "'n0;n1' has no index"),
    ("sqrt()", "step 0 (sqrt()): '' is no number n0, no result #0 and no constant const_1"),
    ("add()", "'' is no number"),
    ("sqrt(n0)|sqrt(const_tau)", "step 1 (sqrt(const_tau)): 'const_tau' is no constant: const_pi, or"),
    ("add(n0,n2)", "step 0 (add(n0,n2)): 'n2' of a problem with 2 number(s)"),
    ("add(n0,#0)", "step 0 (add(n0,#0)): '#0' is not computed yet"),
    ("add(n0,n1)|add(#0,#2)|add(n0,n1)", "step 1 (add(#0,#2)): '#2' is not computed yet"),
    ("divide(n0,const_0)", "step 0 (divide(n0,const_0)): a division by zero"),
    ("inverse(const_0)", "a division by zero"),
    ("reminder(n0,const_0_9)", "a division by zero"),
    ("negate(n0)|power(const_0,#0)", "step 1 (power(const_0,#0)): a division by zero"),
    ("log(const_0)", "no value ("),
    ("negate(n0)|log(#0)", "step 1 (log(#0)): no value ("),
    ("power(const_10,const_308)|power(#0,const_2)", "step 1 (power(#0,const_2)): a number too large"),
    ("factorial(const_1001)", "the factorial of 1001: at most that of 1000"),
    (
        "factorial(n0)|factorial(const_1000)|factorial(#1)",
        "step 2 (factorial(#1)): the factorial of about 2^",
    ),
    ("factorial(const_1000)|sqrt(#0)", "step 1 (sqrt(#0)): a number too large for a float"),
    ("permutation(const_1000,const_1)", "a number too large for a float"),
]


@pytest.mark.parametrize(("program", "fault"), FAULTS)
def test_faults_name_step_and_text(program: str, fault: str) -> None:
    for run in (execute, trace):
        with pytest.raises(ProgramError) as caught:
            run(program, [4.0, 9.0])
        assert fault in str(caught.value)
        sound = re.search(f"{UNDEFINED}|{TOO_LARGE}", str(caught.value)) is not None
        assert isinstance(caught.value, NoValue) is sound
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


def test_an_operator_is_looked_up_before_its_arguments_and_those_before_their_number() -> None:
    for program, kind in (("nothing(n9)", UNKNOWN_OPERATOR), ("add(n9)", MISSING), ("add(n0)", TOO_FEW)):
        with pytest.raises(ProgramError, match=kind):
            execute(program, [1.0])


def test_messages_stay_short_and_on_one_line() -> None:
    for program in ("a\nb(n0)", "\x1b[31m(n0)", "x" * 10_000, "add(" + "y" * 10_000, "add(n\n0)", "\u2028" * 3):
        with pytest.raises(ProgramError) as caught:
            execute(program, [1.0])
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


# --- complex numbers, infinities and what is no number ---


def test_even_roots_of_negative_numbers_are_complex() -> None:
    value = execute("negate(n0)|sqrt(#0)", [4.0])
    assert isinstance(value, complex)
    assert value == pytest.approx(2j)
    assert execute("negate(n0)|sqrt(#0)|multiply(#1,#1)", [4.0]) == pytest.approx(-4)
    with pytest.raises(NoValue, match="no triangle has the edges 1, 1 and 9"):
        execute("triangle_area_three_edges(n0,n0,n1)", [1.0, 9.0])
    with pytest.raises(NoValue, match="least common multiple of 0 and 0"):
        execute("lcm(const_0,n0)", [0.3])
    assert isinstance(execute("negate(n0)|cube_edge_by_volume(#0)", [8.0]), complex)


@pytest.mark.parametrize("step", ["floor(#1)", "max(#1,n0)", "min(n0,#1)", "gcd(#1,n0)", "log(#1)", "factorial(#1)"])
def test_complex_numbers_have_no_order_and_no_whole_part(step: str) -> None:
    with pytest.raises(NoValue, match="the complex number"):
        execute(f"negate(n0)|sqrt(#0)|{step}", [4.0])


def test_infinities_and_nan_go_through_floats_alone() -> None:
    assert execute("add(n0,n1)", [math.inf, 1.0]) == math.inf
    assert math.isnan(abs(execute("subtract(n0,n0)", [math.inf])))
    assert math.isnan(abs(execute("sqrt(n0)", [math.nan])))
    for step in ("floor", "factorial"):
        with pytest.raises(NoValue, match="no whole part of an infinite one"):
            execute(f"{step}(n0)", [math.inf])
        with pytest.raises(NoValue, match="no value"):
            execute(f"{step}(n0)", [math.nan])


# --- bounds ---


@pytest.mark.parametrize(
    "program",
    [
        "add(n0,n1)|power(#0,#0)|power(#1,#1)|power(#2,#2)|power(#3,#3)",
        "floor(n0)|" + "|".join(f"power(#{k},#{k})" for k in range(40)),
        "factorial(n0)|" + "|".join(f"multiply(#{k},#{k})" for k in range(60)),
        "factorial(n0)|" + "|".join(f"square_area(#{k})" for k in range(60)),
        "factorial(n0)|" + "|".join(f"volume_rectangular_prism(#{k},#{k},#{k})" for k in range(60)),
        "factorial(n0)|" + "|".join(f"lcm(#{2 * k},#{2 * k})|multiply(#{2 * k + 1},#{2 * k + 1})" for k in range(40)),
        "factorial(n1)|factorial(#0)|factorial(#1)",
        "factorial(const_1000)|factorial(const_900)|multiply(#0,#1)|factorial(#2)",
        "factorial(const_1000000000)",
        "floor(n2)|factorial(#0)",
        "floor(n2)|power(#0,#0)",
        "floor(n2)|floor(n0)|power(#1,#0)",
        "floor(n2)|permutation(#0,#0)",
        "factorial(const_1000)|multiply(#0,#0)",
        "factorial(const_1000)|inverse(#0)|power(#0,#1)",
    ],
)
def test_numbers_that_grow_are_refused_in_time(program: str) -> None:
    with quick(), pytest.raises(NoValue) as caught:
        execute(program, [7.0, 12.0, 1e308])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_powers_below_the_bound_are_whole_and_exact() -> None:
    assert execute("floor(const_2)|floor(const_16000)|power(#0,#1)", []) == 2**16000
    assert execute("floor(const_2)|floor(const_16000)|power(#0,#1)|log(#2)", []) == pytest.approx(16000 * math.log(2))
    assert execute("floor(const_1)|floor(n0)|power(#0,#1)", [1e300]) == 1
    assert execute("floor(const_0)|floor(n0)|power(#0,#1)", [1e300]) == 0
    assert execute("floor(const_2)|floor(n0)|power(#0,#1)", [-3e4]) == 0.0
    with pytest.raises(NoValue):
        execute("floor(const_2)|floor(n0)|power(#0,#1)", [float(MAX_BITS)])


def test_ten_to_the_sixth_bars() -> None:
    bars = "|" * 10**6
    with quick():
        assert execute(f"{bars}add(n0,n1){bars}sqrt(#0){bars}", [9.0, 7.0]) == 4.0
        with pytest.raises(ProgramError, match="an empty program"):
            parse(bars)
        with pytest.raises(ProgramError, match="more than 100 steps"):
            parse("a|" * 10**6)


def test_a_hundred_steps_and_no_more() -> None:
    steps = ["add(n0,const_1)"] + [f"add(#{k},const_1)" for k in range(MAX_STEPS)]
    with quick():
        assert execute("|".join(steps[:MAX_STEPS]), [0.0]) == MAX_STEPS
        with pytest.raises(ProgramError, match="more than 100 steps"):
            execute("|".join(steps), [0.0])


def test_a_hundred_arguments_and_no_more() -> None:
    with quick():
        assert execute(f"add({','.join(['n0'] * MAX_ARGUMENTS)})", [2.0]) == 4.0
        with pytest.raises(ProgramError, match="has more than 100 arguments"):
            execute(f"add({','.join(['n0'] * (MAX_ARGUMENTS + 1))})", [2.0])
        with pytest.raises(ProgramError, match="has more than 100 arguments"):
            execute("add(" + "n0," * 10**6, [2.0])


def test_numbers_of_long_texts_in_time() -> None:
    groups = "1" + ",111" * 10**4
    for text in ("9" * 10**5, "0." + "1" * 10**5, groups, f"{groups}x", "1,1111" * 10**4, "-" * 10**5, "." * 10**5):
        with quick():
            assert all(isinstance(number, float) for number in numbers_of(text))


def test_long_steps_are_refused_in_time() -> None:
    for text in ("(" * 10**6, ")" * 10**6, "#" * 10**6, "x(" + "const_" * 10**5, "add(n" + "9" * 10**6):
        with quick(), pytest.raises(ProgramError) as caught:
            execute(text, [1.0])
        assert len(str(caught.value)) < 300


# --- traces ---


def test_a_trace_tells_every_step() -> None:
    traced = trace("divide(n1,n0)|multiply(#0,const_100)|", [4.0, 3.0])
    assert [str(step) for step in traced] == ["divide(3, 4) = 0.75", "multiply(0.75, 100) = 75"]
    assert [step.value for step in traced] == [0.75, 75.0]
    assert traced[1].inputs == (0.75, 100.0)
    assert str(traced[1].step) == "multiply(#0,const_100)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (3.0, "3"),
        (-0.5, "-0.5"),
        (1 / 3, "0.3333333333"),
        (1234567890.0, "1234567890"),
        (123456789012, "1.23456789e+11"),
        (1e300, "1e+300"),
        (math.inf, "inf"),
        (math.nan, "nan"),
        (2j, "0+2j"),
        (complex(1 / 3, -1), "0.3333333333-1j"),
        (2**999, "5.357543036e+300"),
    ],
)
def test_values_for_people(value: Value, text: str) -> None:
    assert written(value) == text


def test_whole_numbers_that_no_float_can_hold() -> None:
    assert written(2**1000) == "about 2^1000"
    assert written(-(2**1000)) == "about -2^1000"
    assert written(2**MAX_BITS) == f"about 2^{MAX_BITS}"


# --- fuzz ---

FUZZ = settings(max_examples=300, deadline=None)
ODD_NUMBERS = st.one_of(
    st.floats(),
    st.floats(-1e4, 1e4),
    st.integers(-20, 1100).map(float),
    st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 1e308, -1e308, 5e-324]),
)
PIECES = [*OPERATORS, *"()|,#n_ 0123456789.-+", "const_", "const_pi", "n0", "n1", "#0", "#1", "||", "\n", "\u0663", "²"]
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=40).map("".join))


@st.composite
def well_formed(draw: st.DrawFn) -> tuple[str, list[float]]:
    """A program without a fault in its text, and numbers for it."""
    numbers = draw(st.lists(ODD_NUMBERS, min_size=1, max_size=4))
    constants = ["const_pi", "const_2", "const_0_33", "const_100.0", "const_1000", "const_0", "const_" + "9" * 300]
    steps: list[str] = []
    for place in range(draw(st.integers(1, 12))):
        operator = draw(st.sampled_from(sorted(OPERATORS)))
        sources = [f"n{k}" for k in range(len(numbers))] + [f"#{k}" for k in range(place)] * 3 + constants
        arguments = [draw(st.sampled_from(sources)) for _ in range(OPERATORS[operator].arity)]
        steps.append(f"{operator}({','.join(arguments)})")
    return "|".join(steps), numbers


def outcome(run: Callable[[], object]) -> str:
    """A value, or a refusal of the promised kind, as a text."""
    refusal: ProgramError | None = None
    with quick():
        try:
            return repr(run())
        except ProgramError as error:
            refusal = error
    assert str(refusal).isprintable()
    assert len(str(refusal)) < 400
    return f"{type(refusal).__name__}: {refusal}"


@FUZZ
@given(TEXTS, st.lists(ODD_NUMBERS, max_size=4))
def test_any_text_has_a_value_or_a_program_error(text: str, numbers: list[float]) -> None:
    parsed = outcome(lambda: parse(text))
    value = outcome(lambda: execute(text, numbers))
    assert value == outcome(lambda: trace(text, numbers)[-1].value)
    if parsed.startswith("("):
        assert parse("|".join(map(str, parse(text)))) == parse(text)
    else:
        assert value == parsed


@FUZZ
@given(st.text(max_size=20))
def test_any_argument_has_a_value_or_a_program_error(argument: str) -> None:
    outcome(lambda: argument_value(argument, [1.0], [2.0]))


@FUZZ
@given(well_formed(), st.sampled_from([OPERATORS, GEOMETRY]))
def test_any_numbers_have_a_value_or_a_program_error(case: tuple[str, list[float]], operators: dict) -> None:
    program, numbers = case
    value = outcome(lambda: execute(program, numbers, operators))
    assert not value.startswith("ProgramError")
    try:
        traced = trace(program, numbers, operators)
    except NoValue:
        return
    assert repr(traced[-1].value) == value
    assert len(traced) == len(parse(program))
    for step in traced:
        assert not isinstance(step.value, int) or step.value.bit_length() <= MAX_BITS
        assert len(step.inputs) == operators[step.step.operator].arity
        assert str(step).isprintable()
        assert len(str(step)) < 300


@FUZZ
@given(st.text())
def test_any_text_has_numbers(text: str) -> None:
    with quick():
        assert all(isinstance(number, float) for number in numbers_of(text))


# --- gold programs, and what becomes of them when they are broken ---

GOLD = [
    ("multiply(n2,const_100)|multiply(n0,n1)|divide(#0,#1)|multiply(#2,const_100)|divide(#3,#1)|", [3.0, 10.0, 36.0]),
    ("divide(n0,n1)|subtract(const_1,#0)|divide(n2,#1)", [2.0, 3.0, 90.0]),
    ("add(n0,n3)|multiply(n0,n1)|multiply(n0,n2)|subtract(#1,#2)|divide(#3,#0)|", [6.0, 8.0, 3.0, 4.0]),
    ("multiply(n0,n3)|multiply(n0,n1)|speed(n0,n0)|speed(#1,n2)|add(#2,#3)|divide(#0,#4)|", [10.0, 2.0, 5.0, 10.0]),
    ("divide(n2,n1)|power(n0,const_2)|power(#0,const_2)|subtract(#2,#1)|sqrt(#3)", [12.0, 4.0, 80.0]),
    ("multiply(n0,n1)|floor(#0)|", [9.65, 12.0]),
    ("multiply(const_2,const_4)|multiply(n0,#0)|cube_edge_by_volume(#1)|surface_cube(#2)", [512.0, 3.0]),
    ("rectangle_area(const_1,const_1)|triangle_area(#0,#0)|divide(#0,#1)|", []),
    ("lcm(n3,n5)|add(n2,#0)|reminder(#1,n7)|", [10.0, 40.0, 3.0, 6.0, 6.0, 5.0, 5.0, 7.0]),
    ("square_area(n0)|square_edge_by_area(#0)", [5.0]),
    ("triangle_area_three_edges(n0,n0,n2)|triangle_perimeter(n0,n0,n2)|multiply(#0,const_2)|divide(#2,#1)", [13.0] * 3),
    ("multiply(const_2,const_4)|choose(#0,const_2)|divide(const_1,#1)|negate_prob(#2)", []),
    ("factorial(n2)|factorial(n1)|factorial(n0)|multiply(#1,#2)|divide(#0,#3)|inverse(#4)|", [6.0, 2.0, 8.0]),
]


@pytest.fixture(params=["literal", pytest.param("real", marks=pytest.mark.real_data)])
def gold(request: pytest.FixtureRequest) -> list[tuple[str, list[float]]]:
    """Gold programs with the numbers of their problems: those of this file, or a sample of the data set's own."""
    if request.param == "literal":
        return GOLD
    path = MIRROR / "mathqa" / "dev.json"
    if not path.is_file():
        pytest.skip("no mirror of mathqa/dev.json: set ETUDE_MIRROR")
    rows = json.loads(path.read_text())
    drawn = random.Random(0).sample(rows, 60)
    return [(row["linear_formula"], numbers_of(row["Problem"])) for row in drawn]


def with_step(steps: list[str], place: int, step: str) -> str:
    return "|".join([*steps[:place], step, *steps[place + 1 :]])


def broken_steps(text: str, place: int, num_numbers: int) -> Iterator[tuple[str, str]]:
    """A step in all the ways that the rules name, with the error that each must give."""
    operator, _, rest = text.partition("(")
    arguments = rest.partition(")")[0].split(",")
    yield f"{operator}{rest}", MALFORMED
    yield operator, MALFORMED
    yield " ", MALFORMED
    for name in (f"{operator}x", f" {operator}", f"{operator} ", operator.upper(), operator[:-1], ""):
        yield f"{name}({rest}", UNKNOWN_OPERATOR
    replacements: list[tuple[str, str]] = [
        (f"#{place}", FORWARD),
        (f"#{place + 7}", FORWARD),
        (f"n{num_numbers}", MISSING),
        (f"n{num_numbers + 20}", MISSING),
        ("const_deg_to_rad", UNKNOWN_ARGUMENT),
        ("const_", UNKNOWN_ARGUMENT),
        ("const_1_0_0", UNKNOWN_ARGUMENT),
        ("const_x", UNKNOWN_ARGUMENT),
        ("x", UNKNOWN_ARGUMENT),
        ("100", UNKNOWN_ARGUMENT),
        ("", UNKNOWN_ARGUMENT),
        ("n", UNKNOWN_ARGUMENT),
        ("#", UNKNOWN_ARGUMENT),
    ]
    for slot in range(len(arguments)):
        for argument, kind in replacements:
            yield f"{operator}({','.join([*arguments[:slot], argument, *arguments[slot + 1 :]])})", kind
        fewer = [*arguments[:slot], *arguments[slot + 1 :]]
        yield f"{operator}({','.join(fewer)})", TOO_FEW if fewer else UNKNOWN_ARGUMENT
    yield f"{operator}()", UNKNOWN_ARGUMENT
    yield f"{operator}({','.join(arguments)},x)", UNKNOWN_ARGUMENT


def test_broken_gold_programs_are_refused_by_the_kind_of_their_fault(gold: list[tuple[str, list[float]]]) -> None:
    count = 0
    for program, numbers in gold:
        steps = [step for step in program.split("|") if step]
        cases = [
            (with_step(steps, place, broken), kind, place)
            for place in range(len(steps))
            for broken, kind in broken_steps(steps[place], place, len(numbers))
        ]
        last = len(steps)
        cases += [(text, MALFORMED, 0) for text in ("", "|", "|||")]
        cases += [
            ("|".join([*steps, "divide(const_1,const_0)"]), UNDEFINED, last),
            (
                "|".join([*steps, f"subtract(#{last - 1},#{last - 1})|divide(const_1,#{last})"]),
                UNDEFINED,
                last + 1,
            ),
            ("|".join([*steps, f"factorial(const_{MAX_FACTORIAL + 1})"]), TOO_LARGE, last),
            ("|".join([*steps, *["add(const_1,const_1)"] * MAX_STEPS]), "more than 100 steps", -1),
        ]
        for text, kind, place in cases:
            with pytest.raises(ProgramError) as caught:
                execute(text, numbers)
            assert re.search(kind, str(caught.value)), text
            if kind is not MALFORMED and place >= 0:
                assert str(caught.value).startswith(f"step {place} ("), text
            assert str(caught.value).isprintable()
        count += len(cases)
    assert count > 1000


def test_gold_programs_bear_what_the_rules_allow(gold: list[tuple[str, list[float]]]) -> None:
    for program, numbers in gold:
        steps = [step for step in program.split("|") if step]
        value = execute(program, numbers)
        assert execute("|".join(steps), numbers) == value
        assert execute("||".join(["", *steps, ""]), numbers) == value
        assert execute("|".join(step.rstrip(")") for step in steps), numbers) == value
        assert execute("|".join(step.replace(",", " ,\t") for step in steps), numbers) == value
        assert execute("|".join(step.replace(")", ",const_1)") for step in steps), numbers) == value
        traced = trace(program, numbers)
        assert traced[-1].value == value
        assert [str(step.step) for step in traced] == [step.replace(" ", "") for step in steps]


def test_the_interpreter_runs_no_text_as_python() -> None:
    source = Path(language.__file__).read_text()
    assert not {"eval", "exec", "compile", "__import__"} & names_called(source)
    for text in ("__import__('os')(n0)", "add(__import__('os'),n0)", "eval(n0)", "add(n0.__class__,n0)"):
        with pytest.raises(ProgramError):
            execute(text, [1.0])


def names_called(source: str) -> set[str]:
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return {call.id for call in calls if isinstance(call, ast.Name)}
