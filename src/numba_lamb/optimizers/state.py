"""Whether a saved state fits an optimizer, told before anything is put back."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from numba_lamb.kernels.columns import LARGEST_COUNT
from numba_lamb.methods.options import STORAGE
from numba_lamb.rates import RATE_KEYS


def upgraded(state: Any, own: Mapping[str, Any]) -> Any:
    """Return a state of format version 1, whose groups had rates alone, in today's form.

    One of version 2 from before there were options of storage has their defaults.
    """
    if not isinstance(state, Mapping):
        return state
    if state.get("format_version") != 1:
        groups = state.get("groups")
        if not isinstance(groups, list):
            return state
        missing = {option.name: option.default for option in STORAGE}
        return {
            **state,
            "groups": [{**missing, **group} if isinstance(group, Mapping) else group for group in groups],
        }
    numbers, groups = state.get("numbers"), state.get("groups")
    if not isinstance(numbers, Mapping) or not isinstance(groups, list) or len(groups) != len(own["groups"]):
        return {**state, "format_version": own["format_version"]}
    shared = {key: value for key, value in numbers.items() if key not in own["numbers"]}
    return {
        **state,
        "format_version": own["format_version"],
        "numbers": {key: value for key, value in numbers.items() if key in own["numbers"]},
        "groups": [
            {**own_group, **shared, **group} if isinstance(group, Mapping) else group
            for own_group, group in zip(own["groups"], groups, strict=True)
        ],
    }


def check_state(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise unless `state` has the form of an optimizer's `own` state; options but rates are checked elsewhere."""
    _check_form(state, own, "state")
    for index, group in enumerate(state["groups"]):
        for key in RATE_KEYS:
            number = group[key]
            fits = number is None or (type(number) is float and math.isfinite(number) and number >= 0)
            _require(fits, f"state['groups'][{index}][{key!r}]", "finite and >= 0", number)


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
            if not where.startswith("state['groups']"):
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
