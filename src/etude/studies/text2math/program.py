"""MathQA's linear programs: numbers of a problem, parser, interpreter, traces.

A program such as ``divide(n1,n0)|multiply(#0,const_100)|`` is a list of steps. An argument is a number of the problem
(``n0``, ``n1``, ...), the result of an earlier step (``#0``, ``#1``, ...) or a constant (``const_100``; ``_`` is the
point, so ``const_0_33`` is 0.33). The value is that of the last step.

The language is that of Amini et al. 2019, "MathQA", section 3; the formulas are those with which the filtered data
set was made, and some are wrong as geometry (a cube's volume is ``6a^2``). `GEOMETRY` holds the right ones.
"""

import math
import re
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
    """A program that cannot be run; the message names the step, the fault and the text at fault."""


class NoValue(ProgramError):  # noqa: N818 - the base says that it is an error
    """A sound program without a value: a division by zero, an order of complex numbers, a number beyond the bounds."""


def without_commas(problem: str) -> str:
    """Return a problem without the commas between thousands."""
    return _THOUSANDS.sub(lambda found: found[0].replace(",", ""), problem)


def numbers_of(problem: str) -> list[float]:
    """Return the numbers of a problem, left to right: the i-th is ``n_i``, infinite where no float can hold it."""
    return [float(found) for found in _NUMBER.findall(without_commas(problem))]


@dataclass(frozen=True)
class Operator:
    """An operator: how many arguments it takes, and the function of them that it computes."""

    arity: int
    compute: Callable[..., Value]


def _factorial(a: Value) -> int:
    number = _whole(a)
    if number > MAX_FACTORIAL:
        raise NoValue(f"the factorial of {written(number)}: at most that of {MAX_FACTORIAL} is computed")
    return math.factorial(max(number, 0))


def _whole(a: Value) -> int:
    if isinstance(a, complex):
        raise NoValue(f"the whole part of the complex number {a:.6g}")
    return int(a)


def _real(a: Value) -> float | int:
    if isinstance(a, complex):
        raise NoValue(f"the complex number {a:.6g} where a real one is wanted")
    return a


def _power(a: Value, b: Value) -> Value:
    # So many bits at the least; twice as many at the most are computed, and refused afterwards.
    if isinstance(a, int) and isinstance(b, int) and b > 0 and (a.bit_length() - 1) * b > MAX_BITS:
        raise NoValue(f"a power of more than {MAX_BITS} bits")
    return a**b


def _root(a: Value) -> Value:
    return _power(a, 0.5)


def _heron(a: Value, b: Value, c: Value) -> Value:
    half = (a + b + c) / 2
    square = half * (half - a) * (half - b) * (half - c)
    if not isinstance(square, complex) and square < 0:
        raise NoValue(f"no triangle has the edges {written(a)}, {written(b)} and {written(c)}")
    return _power(square, 0.5)


def _lcm(a: Value, b: Value) -> int:
    if not (_whole(a) or _whole(b)):
        raise NoValue("the least common multiple of 0 and 0")
    return math.lcm(_whole(a), _whole(b))


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
    "lcm": Operator(2, _lcm),
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
    """Return a program's steps.

    Steps are divided by ``|``, and empty ones skipped. An operator is all before the first ``(``, spaces included; the
    arguments end at the first ``)``, or with the step.

    Raises:
        ProgramError: a step without a parenthesis, no step, more than `MAX_STEPS` steps or `MAX_ARGUMENTS` arguments.
    """
    texts = [found[0] for found in islice(re.finditer(r"[^|]+", program), MAX_STEPS + 1)]
    if not texts:
        raise ProgramError("an empty program has no value")
    if len(texts) > MAX_STEPS:
        raise ProgramError(f"a program of more than {MAX_STEPS} steps")
    return tuple(_parsed(text) for text in texts)


@lru_cache(1 << 14)
def _parsed(text: str) -> Step:
    operator, parenthesis, rest = text.partition("(")
    if not parenthesis:
        raise ProgramError(f"the step '{_short(text)}' has no parenthesis: steps are written operator(argument,...)")
    arguments = rest.partition(")")[0].split(",", MAX_ARGUMENTS)
    if len(arguments) > MAX_ARGUMENTS:
        raise ProgramError(f"the step '{_short(text)}' has more than {MAX_ARGUMENTS} arguments")
    return Step(operator, tuple(argument.strip() for argument in arguments))


def execute(program: str, numbers: Sequence[float], operators: Mapping[str, Operator] = OPERATORS) -> Value:
    """Return the value of a program's last step, which may be infinite, no number, or complex.

    Raises:
        ProgramError: the program cannot be run; `NoValue` where a step of it has no value.
    """
    return trace(program, numbers, operators)[-1].value


def trace(program: str, numbers: Sequence[float], operators: Mapping[str, Operator] = OPERATORS) -> list[Traced]:
    """Return every step's value; see `execute`."""
    done: list[Traced] = []
    for place, step in enumerate(parse(program)):
        try:
            done.append(_run(step, numbers, [earlier.value for earlier in done], operators))
        except ProgramError as error:
            raise type(error)(f"step {place} ({_short(str(step))}): {error}") from None
    return done


def _run(step: Step, numbers: Sequence[float], results: Sequence[Value], operators: Mapping[str, Operator]) -> Traced:
    operator = operators.get(step.operator)
    if operator is None:
        raise ProgramError(f"there is no operator '{_short(step.operator)}'")
    inputs = tuple(argument_value(argument, numbers, results) for argument in step.arguments)
    if len(inputs) < operator.arity:
        raise ProgramError(f"{len(inputs)} argument(s) in place of {operator.arity}")
    inputs = inputs[: operator.arity]
    try:
        value = operator.compute(*inputs)
    except NoValue:
        raise
    except ZeroDivisionError:
        raise NoValue("a division by zero") from None
    except OverflowError:
        raise NoValue("a number too large for a float, or no whole part of an infinite one") from None
    except (ValueError, TypeError) as error:
        raise NoValue(f"no value ({error})") from None
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise NoValue(f"a whole number of {value.bit_length()} bits: at most {MAX_BITS}")
    return Traced(step, inputs, value)


def argument_value(argument: str, numbers: Sequence[float], results: Sequence[Value]) -> Value:
    """Return the value of an argument, which is of the first of the three kinds whose mark it contains."""
    if "#" in argument:
        return _nth(results, argument, "#", "is not computed yet")
    if "const_" in argument:
        return _constant(argument)
    if "n" in argument:
        return _nth(numbers, argument, "n", f"of a problem with {len(numbers)} number(s)")
    raise ProgramError(f"'{_short(argument)}' is no number n0, no result #0 and no constant const_1")


def _nth(values: Sequence[Value], argument: str, mark: str, missing: str) -> Value:
    digits = argument.partition(mark)[2]
    if not (digits.isascii() and digits.isdigit()):
        raise ProgramError(f"'{_short(argument)}' has no index")
    # Python reads no number of thousands of digits.
    if len(digits) > 300 or int(digits) >= len(values):
        raise ProgramError(f"'{_short(argument)}' {missing}")
    return values[int(digits)]


def _constant(argument: str) -> float:
    digits = argument.partition("const_")[2].replace("_", ".", 1)
    if digits == "pi":
        return math.pi
    if not re.fullmatch(r"[0-9]{1,300}(\.[0-9]{0,300})?|\.[0-9]{1,300}", digits):
        raise ProgramError(f"'{_short(argument)}' is no constant: const_pi, or digits with _ for the point")
    return float(digits)


def real(value: Value | None) -> float | None:
    """Return a value as a finite number, or None where it is none."""
    try:
        number = math.nan if value is None or isinstance(value, complex) else float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def written(value: Value) -> str:
    """Return a value for people: at most ten digits, no needless zeros."""
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"about {'-' if value < 0 else ''}2^{value.bit_length() - 1}"
    return f"{value:.10g}"


def _short(text: str) -> str:
    cut = text if len(text) <= 60 else f"{text[:57]}..."
    return "".join(sign if sign.isprintable() else "?" for sign in cut)
