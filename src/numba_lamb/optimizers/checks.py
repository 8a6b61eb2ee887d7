"""Whether an argument of an optimizer is allowed."""

import math

from numba_lamb.kernels.rows import LARGEST_COUNT

_NONFINITE = ("raise", "skip", "propagate")


def check_float(name: str, value: object, *, zero: bool = False, below: float = math.inf) -> None:
    """Raise unless `value` is a float above 0 (or 0 itself, with `zero`) and less than `below`."""
    if not isinstance(value, float):
        raise TypeError(f"{name} must be a float, not {type(value).__name__}")
    if not (0 < value < below or (zero and value == 0)):
        sign = ">=" if zero else ">"
        allowed = f"{sign} 0 and finite" if below == math.inf else f"between 0 and {below:g}, both excluded"
        raise ValueError(f"{name} must be {allowed}, not {value!r}")


def check_number(name: str, value: object, *, allowed: str = "an int or float") -> float:
    """Return `value` as a float if it is an int or float above 0 and finite, else raise."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be {allowed}, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    check_float(name, number)
    return number


def check_limit(value: object) -> float | None:
    """Return `value` as a float if it can be a ``max_grad_norm``, else raise; None is no limit."""
    if value is None:
        return None
    return check_number("max_grad_norm", value, allowed="an int or float, or None")


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


def check_step_count(name: str, count: object) -> float:
    """Return a parameter's step count if steps can be added to it, else raise."""
    if not isinstance(count, int | float) or not 0 <= count <= LARGEST_COUNT or count % 1:
        raise ValueError(
            f"state 'step' of parameter {name!r} must be a number >= 0, whole and at most 2**62, not {count!r}"
        )
    return count
