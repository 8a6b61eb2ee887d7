"""Whether the value of an option is allowed: each check returns it in plain form, or raises."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, TypeAlias

from numba_lamb._text import shorten
from numba_lamb.foreign import kind_of
from numba_lamb.kernels.columns import LARGEST_COUNT
from numba_lamb.layout import Layer
from numba_lamb.numerics.rules import ROUNDED_ZERO
from numba_lamb.rates import unrounded

Check: TypeAlias = Callable[[str, str, Any], Any]
"""``(name, where, value) -> value in plain form``; `where` says whose option it is, for messages."""
LARGEST = 3.4e38
"""What a rate must be less than, to be a float32."""
_SCHEDULED = "; numba_lamb.torch.ScheduleLR(opt, schedule) sets it at each step"


def described(value: object) -> str:
    """Return a value and its type, for messages."""
    if value is None:
        return "None"
    told, kind = shown(value), _kind(value)
    return told if told == kind else f"{told}, {kind}"


def shown(value: object) -> str:
    """Return a value for messages; its type where it cannot be shown."""
    try:
        return shorten(repr(value))
    except Exception:  # the repr is the user's code, or an int of too many digits
        return _kind(value)


def _kind(value: object) -> str:
    kind = kind_of(value)
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def plain(value: Any) -> Any:
    """Return an option as a value that can be compared with another: of an array of one element that element."""
    if type(value) in (float, int, bool, str, type(None)):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [*map(plain, value)]
    return value.item() if hasattr(value, "item") and math.prod(getattr(value, "shape", (2,))) == 1 else value


def compared(value: Any) -> Any:
    """Return what is equal for equal values of one type, where ``1 == True``; nothing equals a larger array."""
    found = plain(value)
    if isinstance(found, list):
        return [*map(compared, found)]
    return type(found), object() if hasattr(found, "shape") else found


def is_mutable(value: Any) -> bool:
    """Return whether an option can change without another object in its place."""
    if isinstance(value, tuple):
        return any(map(is_mutable, value))
    return hasattr(value, "item") or (isinstance(value, Sequence) and not isinstance(value, str | bytes))


def real(*, zero: bool, below: float = math.inf, least: float = 0.0) -> Check:
    """Return a check for a number above 0 and below `below`, or with `zero` in [`least`, 0]."""
    sign = ">=" if zero else ">"
    allowed = f"a number {sign} 0 and " + ("finite" if below == math.inf else f"< {below:g}")

    def check(name: str, where: str, value: Any) -> float:
        found = plain(value)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise TypeError(f"{name}{where} must be {allowed}, got {described(value)}")
        try:
            number = float(found)
        except OverflowError:
            number = math.inf
        if not (0 < number < below or (zero and least <= number <= 0)):
            raise ValueError(f"{name}{where} must be {allowed}, got {shown(found)}")
        return number

    return check


def floating(*, zero: bool = False, below: float = math.inf) -> Check:
    """Return a check for a float, as MindSpore has it: above 0 (or 0 itself, with `zero`) and below `below`."""
    sign = ">=" if zero else ">"
    allowed = f"a float {sign} 0 and finite"
    if below < math.inf:
        allowed = f"a float between 0 and {below:g}, both excluded"

    def check(name: str, where: str, value: Any) -> float:
        if not isinstance(value, float):
            raise TypeError(f"{name}{where} must be {allowed}, got {described(value)}")
        if not (0 < value < below or (zero and value == 0)):
            raise ValueError(f"{name}{where} must be {allowed}, got {shown(value)}")
        return float(value)

    return check


def rate(name: str, where: str, value: Any) -> float:
    """Return a rate as a float if it is a finite number >= 0 or a tensor of one, else raise."""
    way = _SCHEDULED if name == "lr" else ""
    shape = getattr(value, "shape", ())
    if shape and math.prod(shape) != 1:
        raise ValueError(f"{name}{where} must be a number, or a tensor of one, got shape {tuple(shape)}{way}")
    is_array = hasattr(value, "item")
    if callable(value) or (isinstance(value, Iterable) and not isinstance(value, str) and not is_array):
        raise TypeError(f"{name}{where} must be a number, got {described(value)}{way}")
    return unrounded(real(zero=True, below=LARGEST, least=ROUNDED_ZERO)(name, where, value))


def pair(check: Check, allowed: str) -> Check:
    """Return a check for two values, each of which passes `check`."""

    def checked(name: str, where: str, value: Any) -> tuple[Any, Any]:
        if isinstance(value, str | bytes) or not isinstance(value, Sequence) or len(value) != 2:
            raise TypeError(f"{name}{where} must be {allowed}, got {described(value)}")
        first, second = (check(f"{name}[{k}]", where, value[k]) for k in range(2))
        return first, second

    return checked


def bounds(name: str, where: str, value: Any) -> tuple[float, float]:
    """Return two numbers, 0 or more, of which the second is no less than the first and may be infinite."""
    allowed = "a pair (low, high) of numbers with 0 <= low <= high"
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or len(value) != 2:
        raise TypeError(f"{name}{where} must be {allowed}, got {described(value)}")
    low, high = map(plain, value)
    if any(isinstance(bound, bool) or not isinstance(bound, int | float) for bound in (low, high)):
        raise TypeError(f"{name}{where} must be {allowed}, got {described(value)}")
    if not 0 <= low <= high:
        raise ValueError(f"{name}{where} must be {allowed}, got {(low, high)!r}")
    return float(low), float(high)


def flag_or_bounds(name: str, where: str, value: Any) -> bool | tuple[float, float]:
    """Return a bool, or `bounds`."""
    if isinstance(value, bool):
        return value
    try:
        return bounds(name, where, value)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("must be ", "must be a bool or ", 1)) from None


def flag(name: str, where: str, value: Any) -> bool:
    """Return `value` if it is a bool, else raise."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}{where} must be a bool, got {described(value)}")
    return value


def maybe(check: Check) -> Check:
    """Return a check that lets None pass, and says so."""

    def checked(name: str, where: str, value: Any) -> Any:
        if value is None:
            return None
        try:
            return check(name, where, value)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace(", got ", ", or None, got ", 1)) from None

    return checked


def choice(allowed: Collection[str]) -> Check:
    """Return a check for one of `allowed`."""

    def check(name: str, where: str, value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            names = ", ".join(map(repr, allowed))
            raise ValueError(f"{name}{where} must be one of {names}, got {shown(value)}")
        return value

    return check


def whole(name: str, where: str, value: Any) -> int:
    """Return `value` if it is an int from 0 to 2**63-1, else raise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}{where} must be an int from 0 to 2**63-1, got {described(value)}")
    if not 0 <= value < 2**63:
        raise ValueError(f"{name}{where} must be an int from 0 to 2**63-1, got {shown(value)}")
    return value


def layer_filter(name: str, where: str, value: Any) -> Any:
    """Return `value` if it is None or callable, else raise."""
    if value is not None and not callable(value):
        raise TypeError(f"{name}{where} must be a callable of a Layer, or None, got {described(value)}")
    return value


def passes(name: str, layer_filter: Callable[[Layer], object], layer: Layer) -> bool:
    """Return what a filter says of a layer; where it took the layer for a name, the error says so."""
    try:
        return bool(layer_filter(layer))
    except (TypeError, AttributeError) as error:
        at_the_call = error.__traceback__ is not None and error.__traceback__.tb_next is None
        if not (at_the_call or "Layer" in str(error)):
            raise
        raise type(error)(
            f"{name} must be a callable of one Layer, which has name, shape, ndim, dtype and group, got an error "
            f"for {layer.name!r}: {error}; use layer.name, as in lambda layer: 'bias' not in layer.name"
        ) from error


MOST_LOOKS = 4
"""How often a step looks at options and parameters that its filters change."""


def never_still() -> RuntimeError:
    """Return what is raised after so many looks."""
    return RuntimeError(
        "decay_filter and adapt_filter must leave parameters and options alone, which changed whenever "
        "a filter was called"
    )


def check_step_count(name: str, count: object) -> float:
    """Return a parameter's step count if steps can be added to it, else raise."""
    if not isinstance(count, int | float) or not 0 <= count <= LARGEST_COUNT or count % 1:
        raise ValueError(
            f"state 'step' of parameter {name!r} must be a number >= 0, whole and at most 2**62, not {count!r}"
        )
    return count
