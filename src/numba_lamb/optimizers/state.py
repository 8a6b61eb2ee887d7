"""Whether a saved state fits an optimizer, told before anything is put back."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from numba_lamb.kernels.columns import LARGEST_COUNT

_LATER = ("max_grad_norm",)
"""Numbers that older states lack; the optimizer keeps its own then. None is a value of theirs."""


def check_state(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise unless `state` has the form of an optimizer's `own` state."""
    _check_form(state, _of_its_time(own, state), "state")
    for name, number in state["numbers"].items():
        _require(number is not None or name in _LATER, f"state['numbers'][{name!r}]", "a float", number)
    for index, group in enumerate(state["groups"]):
        for key, number in group.items():
            fits = number is None or (math.isfinite(number) and number >= 0)
            _require(fits, f"state['groups'][{index}][{key!r}]", "finite and >= 0", number)


def _of_its_time(own: Mapping[str, Any], state: Any) -> Mapping[str, Any]:
    """Return `own` without those later numbers that `state` lacks."""
    given = state.get("numbers") if isinstance(state, Mapping) else None
    if not isinstance(given, Mapping):
        return own
    numbers = {name: value for name, value in own["numbers"].items() if name in given or name not in _LATER}
    return {**own, "numbers": numbers}


def _check_form(state: Any, own: Any, where: str) -> None:
    if isinstance(own, Mapping):
        if not isinstance(state, Mapping):
            raise ValueError(f"{where} must be a dict, not {type(state).__name__}")
        for key in own:
            if key not in state:
                raise ValueError(f"{where} has no {key!r}")
        for key in state:
            if key not in own:
                raise ValueError(f"{where} has an unexpected key {key!r}")
        for key, value in own.items():
            if key in ("format_version", "optimizer") and state[key] != value:
                raise ValueError(f"{where} has {key} {state[key]!r}; this optimizer takes {value!r}")
            _check_form(state[key], value, f"{where}[{key!r}]")
    elif isinstance(own, list):
        if not isinstance(state, list) or len(state) != len(own):
            found = f"{len(state)} entries" if isinstance(state, list) else type(state).__name__
            raise ValueError(f"{where} must be a list of {len(own)} entries, not {found}")
        for k, value in enumerate(own):
            _check_form(state[k], value, f"{where}[{k}]")
    elif isinstance(own, np.ndarray):
        if not isinstance(state, np.ndarray) or (state.shape, state.dtype) != (own.shape, own.dtype):
            found = f"{state.dtype} {state.shape}" if isinstance(state, np.ndarray) else type(state).__name__
            raise ValueError(f"{where} must be {own.dtype} of shape {own.shape}, not {found}")
    elif isinstance(own, int):
        _require(type(state) is int and 0 <= state <= LARGEST_COUNT, where, "an int >= 0 and <= 2**62", state)
    elif own is None or isinstance(own, float):
        _require(state is None or type(state) is float, where, "a float or None", state)


def _require(holds: bool, where: str, what: str, state: Any) -> None:
    if not holds:
        raise ValueError(f"{where} must be {what}, not {state!r}")
