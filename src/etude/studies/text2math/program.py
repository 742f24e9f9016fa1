"""MathQA's linear programs: numbers of a problem, parser, interpreter, traces.

A program such as ``divide(n1,n0)|multiply(#0,const_100)|`` is a list of steps. An argument is a number of the problem
(``n0``, ``n1``, ...), the result of an earlier step (``#0``, ``#1``, ...) or a constant (``const_100``; ``_`` is the
point, so ``const_0_33`` is 0.33). The value is that of the last step.

The language is that of Amini et al. 2019, "MathQA", section 3; the formulas are those with which the filtered data
set was made, and some are wrong as geometry (a cube's volume is ``6a^2``). `GEOMETRY` holds the right ones.
"""

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

MAX_STEPS = 100
"""Longer programs are refused; the longest of the data set has 49."""
MAX_ARGUMENTS = 100
"""Steps with more arguments are refused; no operator takes more than three."""
MAX_FACTORIAL = 1000
MAX_BITS = 1 << 14
"""Whole numbers above 2 to this power are refused: no later step could make a float of them."""

Value = int | float | complex

NUMBER_PATTERN = r"[-+]?\d*\.\d+|\d+"
"""A number of a problem, once `without_commas`: only a decimal can carry a sign."""
_NUMBER = re.compile(NUMBER_PATTERN)
_THOUSANDS = re.compile(r"\b\d{1,3}(?:,\d{3})+\b")


class ProgramError(ValueError):
    """A program that has no value; the message names the step, the fault and the text at fault."""


class MalformedStep(ProgramError):  # noqa: N818 - the base says that it is an error
    """A step without an operator and parenthesis, or no step at all."""


class UnknownOperator(ProgramError):  # noqa: N818
    """An operator that the language does not have."""


class TooFewArguments(ProgramError):  # noqa: N818
    """A step with fewer arguments than its operator takes."""


class UnknownArgument(ProgramError):  # noqa: N818
    """An argument that is no number of the problem, no earlier result and no constant."""


class MissingNumber(ProgramError):  # noqa: N818
    """``n7`` where the problem has fewer numbers."""


class ForwardReference(ProgramError):  # noqa: N818
    """``#3`` where step 3 has not been computed."""


class UndefinedValue(ProgramError):  # noqa: N818
    """A division by zero, a logarithm of a negative number, a comparison of complex numbers and the like."""


class TooLarge(ProgramError):  # noqa: N818
    """More steps, or larger numbers, than the bounds of this module."""


def without_commas(problem: str) -> str:
    """A problem without the commas between thousands."""
    return _THOUSANDS.sub(lambda found: found[0].replace(",", ""), problem)


def numbers_of(problem: str) -> list[float]:
    """The numbers of a problem, left to right: the i-th is ``n_i``.

    A number too large for a float is infinite.
    """
    return [float(found) for found in _NUMBER.findall(without_commas(problem))]


@dataclass(frozen=True)
class Operator:
    """An operator: how many arguments it takes, and the function of them that it computes."""

    arity: int
    compute: Callable[..., Value]


def _factorial(a: Value) -> int:
    number = _whole(a)
    if number > MAX_FACTORIAL:
        raise TooLarge(f"the factorial of {written(number)}: at most that of {MAX_FACTORIAL} is computed")
    return math.factorial(max(number, 0))


def _whole(a: Value) -> int:
    if isinstance(a, complex):
        raise UndefinedValue(f"the whole part of the complex number {a:.6g}")
    return int(a)


def _real(a: Value) -> float | int:
    if isinstance(a, complex):
        raise UndefinedValue(f"the complex number {a:.6g} where a real one is wanted")
    return a


def _power(a: Value, b: Value) -> Value:
    # So many bits at the least; twice as many at the most are computed, and refused afterwards.
    if isinstance(a, int) and isinstance(b, int) and b > 0 and (a.bit_length() - 1) * b > MAX_BITS:
        raise TooLarge(f"a power of more than {MAX_BITS} bits")
    return a**b


def _root(a: Value) -> Value:
    return _power(a, 0.5)


def _heron(a: Value, b: Value, c: Value) -> Value:
    half = (a + b + c) / 2
    return _power(half * (half - a) * (half - b) * (half - c), 0.5)


OPERATORS: Mapping[str, Operator] = {
    "add": Operator(2, lambda a, b: a + b),
    "subtract": Operator(2, lambda a, b: a - b),
    "multiply": Operator(2, lambda a, b: a * b),
    "divide": Operator(2, lambda a, b: a / b),
    "speed": Operator(2, lambda a, b: a / b),
    "p_after_gain": Operator(2, lambda a, b: a / b),
    "power": Operator(2, _power),
    "reminder": Operator(2, lambda a, b: _whole(a) % _whole(b)),
    "gcd": Operator(2, lambda a, b: math.gcd(_whole(a), _whole(b))),
    "lcm": Operator(2, lambda a, b: math.lcm(_whole(a), _whole(b))),
    "max": Operator(2, lambda a, b: max(_real(a), _real(b))),
    "min": Operator(2, lambda a, b: min(_real(a), _real(b))),
    "choose": Operator(2, lambda a, b: _factorial(a) / (_factorial(b) * _factorial(a - b))),
    "permutation": Operator(2, lambda a, b: _factorial(a) / _factorial(b)),
    "factorial": Operator(1, _factorial),
    "floor": Operator(1, _whole),
    "log": Operator(1, lambda a: math.log(_real(a))),
    "sqrt": Operator(1, _root),
    "inverse": Operator(1, lambda a: 1 / a),
    "negate": Operator(1, lambda a: -a),
    "negate_prob": Operator(1, lambda a: 1 - a),
    "circle_area": Operator(1, lambda a: math.pi * a**2),
    "circumface": Operator(1, lambda a: 2 * math.pi * a),
    "square_area": Operator(1, lambda a: a**2),
    "square_perimeter": Operator(1, lambda a: 4 * a),
    "rhombus_perimeter": Operator(1, lambda a: 4 * a),
    "square_edge_by_area": Operator(1, _root),
    "square_edge_by_perimeter": Operator(1, lambda a: a / 4),
    "cube_edge_by_volume": Operator(1, lambda a: _power(a, 1 / 3)),
    "surface_sphere": Operator(1, lambda a: 4 * math.pi * a**2),
    "volume_sphere": Operator(1, lambda a: 4 / 3 * math.pi * a**3),
    "surface_cube": Operator(1, lambda a: 6 * a**2),
    "volume_cube": Operator(1, lambda a: 6 * a**2),
    "rectangle_area": Operator(2, lambda a, b: a * b),
    "rectangle_perimeter": Operator(2, lambda a, b: 2 * (a + b)),
    "triangle_area": Operator(2, lambda a, b: a * b / 2),
    "triangle_area_three_edges": Operator(3, _heron),
    "triangle_perimeter": Operator(3, lambda a, b, c: a + b + c),
    "quadrilateral_area": Operator(3, lambda a, b, c: (b + c) / 2 * a),
    "rhombus_area": Operator(2, lambda a, b: (a + b) / 2),
    "volume_rectangular_prism": Operator(3, lambda a, b, c: a * b * c),
    "surface_rectangular_prism": Operator(3, lambda a, b, c: 2 * (a * b + b * c + c * a)),
    "volume_cylinder": Operator(2, lambda a, b: math.pi / 3 * b**2 * a),
    "surface_cylinder": Operator(2, lambda a, b: 2 * math.pi * a * b + 2 * math.pi * a**2),
    "volume_cone": Operator(2, lambda a, b: math.pi * a**2 / 3 * a),
    "stream_speed": Operator(2, lambda a, b: (a + b) / 2),
    "original_price_before_loss": Operator(2, lambda a, b: (100 - a) / 100 * b),
    "original_price_before_gain": Operator(2, lambda a, b: (100 + a) / 100 * b),
}
"""The data set's own formulas; a, b, c are the arguments as written."""

GEOMETRY: Mapping[str, Operator] = {
    **OPERATORS,
    "volume_cube": Operator(1, lambda a: a**3),
    "volume_cylinder": Operator(2, lambda a, b: math.pi * a**2 * b),
    "volume_cone": Operator(2, lambda a, b: math.pi * a**2 * b / 3),
    "rhombus_area": Operator(2, lambda a, b: a * b / 2),
    "stream_speed": Operator(2, lambda a, b: (a - b) / 2),
    "original_price_before_loss": Operator(2, lambda a, b: b * 100 / (100 - a)),
    "original_price_before_gain": Operator(2, lambda a, b: b * 100 / (100 + a)),
}
"""The same with the formulas of geometry and trade: radius before height, downstream before upstream."""


@dataclass(frozen=True)
class Step:
    """An operator and its arguments, as written."""

    operator: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.operator}({','.join(self.arguments)})"


@dataclass(frozen=True)
class Traced:
    """A step with what it computed."""

    step: Step
    inputs: tuple[Value, ...]
    value: Value

    def __str__(self) -> str:
        return f"{self.step.operator}({', '.join(map(written, self.inputs))}) = {written(self.value)}"


def parse(program: str) -> tuple[Step, ...]:
    """A program's steps.

    Steps are divided by ``|``, and empty ones skipped. An operator is all before the first ``(``, spaces included; the
    arguments end at the first ``)``, or with the step.

    Raises:
        MalformedStep: a step without a parenthesis, or no step.
        TooLarge: more than `MAX_STEPS` steps, or `MAX_ARGUMENTS` arguments.
    """
    texts = [found[0] for found in islice(re.finditer(r"[^|]+", program), MAX_STEPS + 1)]
    if not texts:
        raise MalformedStep("an empty program has no value")
    if len(texts) > MAX_STEPS:
        raise TooLarge(f"a program of more than {MAX_STEPS} steps")
    return tuple(_parsed(text) for text in texts)


@lru_cache(1 << 14)
def _parsed(text: str) -> Step:
    operator, parenthesis, rest = text.partition("(")
    if not parenthesis:
        raise MalformedStep(f"the step '{_short(text)}' has no parenthesis: steps are written operator(argument,...)")
    arguments = rest.partition(")")[0].split(",", MAX_ARGUMENTS)
    if len(arguments) > MAX_ARGUMENTS:
        raise TooLarge(f"the step '{_short(text)}' has more than {MAX_ARGUMENTS} arguments")
    return Step(operator, tuple(argument.strip() for argument in arguments))


def execute(
    program: str | Sequence[Step], numbers: Sequence[float], operators: Mapping[str, Operator] = OPERATORS
) -> Value:
    """The value of a program.

    Args:
        program: its text or its steps.
        numbers: of the problem; see `numbers_of`.
        operators: `OPERATORS`, or `GEOMETRY` for the right formulas.

    Returns:
        The last step's value; not always finite, and complex after an even root of a negative number.

    Raises:
        ProgramError: one of its kinds.
    """
    return trace(program, numbers, operators)[-1].value


def trace(
    program: str | Sequence[Step], numbers: Sequence[float], operators: Mapping[str, Operator] = OPERATORS
) -> list[Traced]:
    """As `execute`, with every step's value."""
    steps = parse(program) if isinstance(program, str) else program
    if not steps:
        raise MalformedStep("an empty program has no value")
    if len(steps) > MAX_STEPS:
        raise TooLarge(f"a program of {len(steps)} steps: at most {MAX_STEPS} are run")
    done: list[Traced] = []
    for place, step in enumerate(steps):
        try:
            done.append(_run(step, numbers, [earlier.value for earlier in done], operators))
        except ProgramError as error:
            raise type(error)(f"step {place} ({_short(str(step))}): {error}") from None
    return done


def _run(step: Step, numbers: Sequence[float], results: Sequence[Value], operators: Mapping[str, Operator]) -> Traced:
    operator = operators.get(step.operator)
    if operator is None:
        raise UnknownOperator(f"there is no operator '{_short(step.operator)}'")
    inputs = tuple(argument_value(argument, numbers, results) for argument in step.arguments)
    if len(inputs) < operator.arity:
        raise TooFewArguments(f"{len(inputs)} argument(s) in place of {operator.arity}")
    inputs = inputs[: operator.arity]
    try:
        value = operator.compute(*inputs)
    except ProgramError:
        raise
    except ZeroDivisionError:
        raise UndefinedValue("a division by zero") from None
    except OverflowError:
        raise TooLarge("a number too large for a float, or no whole part of an infinite one") from None
    except (ValueError, TypeError) as error:
        raise UndefinedValue(f"no value ({error})") from None
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise TooLarge(f"a whole number of {value.bit_length()} bits: at most {MAX_BITS}")
    return Traced(step, inputs, value)


def argument_value(argument: str, numbers: Sequence[float], results: Sequence[Value]) -> Value:
    """Return the value of an argument, which is of the first of the three kinds whose mark it contains."""
    if "#" in argument:
        index = _index(argument.partition("#")[2], argument)
        if index >= len(results):
            raise ForwardReference(f"'{_short(argument)}' is not computed yet")
        return results[index]
    if "const_" in argument:
        return _constant(argument.partition("const_")[2], argument)
    if "n" in argument:
        index = _index(argument.partition("n")[2], argument)
        if index >= len(numbers):
            raise MissingNumber(f"'{_short(argument)}' of a problem with {len(numbers)} number(s)")
        return numbers[index]
    raise UnknownArgument(f"'{_short(argument)}' is no number n0, no result #0 and no constant const_1")


def _index(digits: str, argument: str) -> int:
    if not (digits.isascii() and digits.isdigit()):
        raise UnknownArgument(f"'{_short(argument)}' has no index")
    return int(digits) if len(digits) <= 300 else sys.maxsize


def _constant(text: str, argument: str) -> float:
    if text == "pi":
        return math.pi
    digits = text.replace("_", ".", 1)
    if not re.fullmatch(r"[0-9]{1,300}(\.[0-9]{0,300})?|\.[0-9]{1,300}", digits):
        raise UnknownArgument(f"'{_short(argument)}' is no constant: const_pi, or digits with _ for the point")
    return float(digits)


def real(value: Value | None) -> float | None:
    """A value as a finite number; None where it is none."""
    try:
        number = math.nan if value is None or isinstance(value, complex) else float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def written(value: Value) -> str:
    """A value for people: at most ten digits, no needless zeros."""
    if isinstance(value, complex):
        return f"{value:.10g}"
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"about {'-' if value < 0 else ''}2^{value.bit_length() - 1}"
    return f"{value:.10g}"


def _short(text: str) -> str:
    cut = text if len(text) <= 60 else f"{text[:57]}..."
    return "".join(sign if sign.isprintable() else "?" for sign in cut)
