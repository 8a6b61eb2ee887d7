"""Whether an argument of an optimizer is allowed."""

import math
from collections.abc import Callable

from numba_lamb._text import shorten
from numba_lamb.foreign import kind_of
from numba_lamb.kernels.columns import LARGEST_COUNT
from numba_lamb.layout import Layer

_NONFINITE = ("raise", "skip", "propagate")


def check_float(name: str, value: object, *, zero: bool = False, below: float = math.inf) -> None:
    """Raise unless `value` is a float above 0 (or 0 itself, with `zero`) and less than `below`."""
    sign = ">=" if zero else ">"
    allowed = f"{sign} 0 and finite" if below == math.inf else f"between 0 and {below:g}, both excluded"
    if not isinstance(value, float):
        raise TypeError(f"{name} must be a float {allowed}, got {_described(value)}")
    if not (0 < value < below or (zero and value == 0)):
        raise ValueError(f"{name} must be a float {allowed}, got {value!r}")


def check_number(name: str, value: object, *, none: bool = False) -> float:
    """Return `value` as a float if it is an int or float above 0 and finite, else raise."""
    allowed = f"an int or float > 0 and finite{', or None' if none else ''}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be {allowed}, got {_described(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be {allowed}, got {number!r}")
    return number


def _described(value: object) -> str:
    """Return a value and its type, for messages."""
    if value is None:
        return "None"
    kind = kind_of(value)
    kind = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    try:
        return f"{shorten(repr(value))}, {kind}"
    except Exception:  # the repr is the user's code, or an int of too many digits
        return kind


def check_limit(value: object) -> float | None:
    """Return `value` as a float if it can be a ``max_grad_norm``, else raise; None is no limit."""
    return None if value is None else check_number("max_grad_norm", value, none=True)


def check_nonfinite(value: object) -> None:
    """Raise unless `value` can be ``nonfinite``; None is the backend's own."""
    if value is not None and value not in _NONFINITE:
        raise ValueError(
            f"nonfinite must be one of {', '.join(map(repr, _NONFINITE))}, or None, not {value!r}"
        )


def check_filter(name: str, layer_filter: object) -> None:
    """Raise unless `layer_filter` is None or callable."""
    if layer_filter is not None and not callable(layer_filter):
        raise TypeError(f"{name} must be a callable of a layer or None, not {type(layer_filter).__name__}")


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


def check_step_count(name: str, count: object) -> float:
    """Return a parameter's step count if steps can be added to it, else raise."""
    if not isinstance(count, int | float) or not 0 <= count <= LARGEST_COUNT or count % 1:
        raise ValueError(
            f"state 'step' of parameter {name!r} must be a number >= 0, whole and at most 2**62, not {count!r}"
        )
    return count
