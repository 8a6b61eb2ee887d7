"""Argument checks shared by every schedule: each takes a name and a value and returns it in plain form.

Numbers come back as Python ``float`` or ``int``, whatever NumPy type they arrived in, so that the ``repr`` of
a schedule can be evaluated and its arithmetic is always in double precision.
"""

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real as RealNumber
from typing import Annotated, Any, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt

T = TypeVar("T")

Schedule: TypeAlias = Callable[[int], float]
"""Anything that gives the rate of a step; every object of this package is one."""

Piece: TypeAlias = float | Sequence[float] | npt.NDArray[Any] | Schedule
"""What may stand where a schedule is expected: a number, a table with one value per step, or a callable."""


def real(
    name: str, value: object, *, low: float = -math.inf, above: float = -math.inf, high: float = math.inf
) -> float:
    """Return ``value`` as a finite float with ``low <= value <= high`` and ``value > above``."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, RealNumber):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {value!r}")
    if number < low:
        raise ValueError(f"{name} must be >= {low:g}, got {value!r}")
    if number <= above:
        raise ValueError(f"{name} must be > {above:g}, got {value!r}")
    if number > high:
        raise ValueError(f"{name} must be <= {high:g}, got {value!r}")
    return number


def integer(name: str, value: object, *, low: int = 0) -> int:
    """Return ``value`` as an int that is at least ``low``."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(cast(Any, value))
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < low:
        raise ValueError(f"{name} must be >= {low}, got {value!r}")
    return number


def flag(name: str, value: object) -> bool:
    """Return ``value`` if it is ``True`` or ``False``."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def optional(check: Callable[[str, object], T], name: str, value: object) -> T | None:
    """Let ``None`` pass and hand anything else to ``check``."""
    return None if value is None else check(name, value)


def table(name: str, value: object) -> tuple[float, ...]:
    """Return a non-empty one-dimensional table as a tuple of finite floats."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"{name} must be a list, tuple or array of numbers, got {value!r}")
    if isinstance(value, np.ndarray) and value.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {value.shape}")
    if len(value) == 0:
        raise ValueError(f"{name} must hold at least one value")
    return tuple(real(f"{name}[{i}]", item) for i, item in enumerate(value))


def piece(name: str, value: object) -> Piece:
    """Return a number as float, a table as tuple of floats, and a callable unchanged."""
    if isinstance(value, type):
        raise TypeError(f"{name} must be a schedule, got the class {value.__name__}: give it its arguments")
    if callable(value):
        return cast(Schedule, value)
    if isinstance(value, RealNumber):
        return real(name, value)
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes):
        return table(name, value)
    raise TypeError(f"{name} must be a number, a table of numbers or a callable of the step, got {value!r}")


def rate_at(given: Piece, step: int) -> float:
    """Return the rate of a checked piece at a step; a table raises IndexError past its end."""
    if isinstance(given, float):
        return given
    if isinstance(given, tuple):
        if step >= len(given):
            raise IndexError(
                f"the table has {len(given)} values, none for step {step}; hold_last(table) keeps the last"
            )
        return cast(float, given[step])
    value: Any = cast(Schedule, given)(step)
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{given!r} returned {value!r} for step {step}, not a number")
    return float(value)


# A field annotated with one of these is checked when the schedule is made.
Finite: TypeAlias = Annotated[float, real]
NonNegative: TypeAlias = Annotated[float, partial(real, low=0.0)]
Positive: TypeAlias = Annotated[float, partial(real, above=0.0)]
Count: TypeAlias = Annotated[int, partial(integer, low=1)]
CountOrZero: TypeAlias = Annotated[int, integer]
Flag: TypeAlias = Annotated[bool, flag]
Table: TypeAlias = Annotated[Sequence[float] | npt.NDArray[Any], table]
AnyPiece: TypeAlias = Annotated[Piece, piece]
MaybeNonNegative: TypeAlias = Annotated[float | None, partial(optional, partial(real, low=0.0))]
MaybeRatio: TypeAlias = Annotated[float | None, partial(optional, partial(real, low=0.0, high=1.0))]
MaybeCount: TypeAlias = Annotated[int | None, partial(optional, partial(integer, low=1))]
MaybeCountOrZero: TypeAlias = Annotated[int | None, partial(optional, integer)]
