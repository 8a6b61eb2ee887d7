"""Group options: whether each is allowed, and what kernels are told of them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
import torch

from numba_lamb.numerics.rules import ROUNDED_ZERO
from numba_lamb.rates import unrounded

FILTERS = ("decay_filter", "adapt_filter")
"""Options that are functions: they are not part of a checkpoint."""
LARGEST = 3.4e38
"""What a rate must be less than, to be a float32."""
_USUAL = {float, int, bool, str, type(None)}
_SCHEDULED = "; numba_lamb.torch.ScheduleLR(opt, schedule) sets it at each step"
_ARRAYS = torch.Tensor | np.ndarray
NONFINITE = ("propagate", "skip", "raise")


@dataclass(frozen=True)
class GroupRow:
    """What the layers of one group have in common, by column of `numba_lamb.kernels.columns`.

    Attributes
    ----------
    bound : callable
        Returns what a gradient may be at most, given the largest number of its dtype.
    scalars, settings : mapping from int to float
        Values by column.
    adapts : bool
        Whether its layers have a trust ratio at all.
    always_adapt : bool
        Whether those without weight decay have one too.
    """

    bound: Callable[[float], float]
    hyper: Mapping[int, float] = field(default_factory=dict)
    hyper64: Mapping[int, float] = field(default_factory=dict)
    adapts: bool = False
    always_adapt: bool = True


def where(index: int) -> str:
    """Return what messages call a group by: nothing for the first, which may be the only one."""
    return f" of group {index}" if index else ""


def number(value: Any) -> Any:
    """Return an option as it is, but of a tensor or array its element."""
    if type(value) in _USUAL:
        return value
    return value.item() if isinstance(value, torch.Tensor | np.ndarray | np.generic) else value


def numbers(value: Any) -> Any:
    """Return an option as it is, but of a sequence a list of what `number` makes of each item."""
    return [*map(number, value)] if is_sequence(value) else value


def is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    """Return whether an option is several values: a tuple, a list, or what a configuration has in its place."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray)


def is_mutable(value: Any) -> bool:
    """Return whether an option can change without another object in its place."""
    if isinstance(value, tuple):
        return any(map(is_mutable, value))
    return isinstance(value, torch.Tensor | np.ndarray) or is_sequence(value)


def check_rate(where: str, name: str, value: object) -> float:
    """Return a rate as a float if it is a finite number >= 0 or a tensor of one, else raise."""
    way = _SCHEDULED if name == "lr" else ""
    if isinstance(value, torch.Tensor) and value.numel() != 1:
        shape = tuple(value.shape)
        raise ValueError(f"{name}{where} as a tensor must be 1-element, not of shape {shape}{way}")
    if callable(value) or (isinstance(value, Iterable) and not isinstance(value, str | _ARRAYS)):
        raise TypeError(f"{name}{where} must be a number, not {type(value).__name__}{way}")
    return unrounded(check_number(where, name, value, zero=True, below=LARGEST, least=ROUNDED_ZERO))


def check_number(
    where: str, name: str, value: object, *, zero: bool = False, below: float = math.inf, least: float = 0.0
) -> float:
    """Return `value` as a float if it is a number above 0 and below `below`, or with `zero` in [`least`, 0]."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic) and math.prod(value.shape) == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}{where} must be a number, not {type(value).__name__}")
    found = float(value)
    if not (0 < found < below or (zero and least <= found <= 0)):
        sign = ">= 0" if zero else "> 0"
        allowed = f"{sign} and finite" if below == math.inf else f"{sign} and < {below:g}"
        raise ValueError(f"{name}{where} must be {allowed}, not {value!r}")
    return found


def check_betas(where: str, value: object) -> tuple[float, float]:
    """Return a pair of decay rates as floats if each is in [0, 1), else raise."""
    if not is_sequence(value) or len(value) != 2:
        raise TypeError(f"betas{where} must be a pair of numbers, not {value!r}")
    first, second = (
        check_number(where, f"betas[{k}]", beta, zero=True, below=1.0) for k, beta in enumerate(value)
    )
    return first, second


def check_flag(where: str, name: str, value: object, *, none: bool = False) -> None:
    """Raise unless `value` is a bool, or None where that is allowed."""
    if not isinstance(value, bool) and not (none and value is None):
        raise TypeError(
            f"{name}{where} must be a bool{' or None' if none else ''}, not {type(value).__name__}"
        )


def check_choice(where: str, name: str, value: object, allowed: Any) -> None:
    """Raise unless `value` is one of `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}{where} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def check_common(where: str, group: Mapping[str, Any]) -> None:
    """Raise unless the options are allowed that all optimizers have."""
    check_rate(where, "lr", group["lr"])
    check_rate(where, "weight_decay", group["weight_decay"])
    check_flag(where, "maximize", group["maximize"])
    check_choice(where, "nonfinite", group["nonfinite"], NONFINITE)
    if group["max_grad_norm"] is not None:
        check_number(where, "max_grad_norm", group["max_grad_norm"])
    for name in FILTERS:
        given = group.get(name)
        if given is not None and not callable(given):
            raise TypeError(
                f"{name}{where} must be a callable of a layer or None, not {type(given).__name__}"
            )
