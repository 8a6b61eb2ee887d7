"""A state dict as it can be loaded: counts checked, and nothing in memory that processes share."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch

from numba_lamb.torch.counts import check_count
from numba_lamb.torch.tensors import is_shared


def loadable(state_dict: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return `state_dict` with shared tensors copied, or raise if a step count is refused.

    Parameters
    ----------
    state_dict : mapping
        ``state`` and ``param_groups``.
    names : sequence of str
        The parameters' names, in the order of all groups.
    """
    keys = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    by_key = dict(zip(keys, names, strict=False))
    state = {}
    for key, entry in state_dict["state"].items():
        if isinstance(entry, Mapping):
            if "step" in entry:
                check_count(by_key.get(key, str(key)), entry["step"])
            entry = {name: _own(value) for name, value in entry.items()}
        state[key] = entry
    return {**state_dict, "state": state}


def _own(value: Any) -> Any:
    """Return a copy of a tensor that lies in memory other processes, or a file, may change."""
    return value.clone() if isinstance(value, torch.Tensor) and is_shared(value) else value
