"""A state dict as it can be loaded: counts checked, and nothing in memory that processes share."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch

from numba_lamb.methods.options import FIXED
from numba_lamb.torch.counts import check_count
from numba_lamb.torch.tensors import is_shared


def loadable(
    state_dict: Mapping[str, Any], names: Sequence[str], own: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return `state_dict` with shared tensors copied, or raise if a step count is refused.

    Parameters
    ----------
    state_dict : mapping
        ``state`` and ``param_groups``.
    names : sequence of str
        The parameters' names, in the order of all groups.
    own : sequence of mapping
        The loading optimizer's groups: how parameters and state are stored stays as it is there.
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
    groups = [*state_dict["param_groups"]]
    for k, group in enumerate(own[: len(groups)]):
        groups[k] = {**groups[k], **{name: group[name] for name in FIXED}}
    return {**state_dict, "state": state, "param_groups": groups}


class Wrapped:
    """A tensor that PyTorch, which makes state of the parameter's dtype, does not look into."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value


@contextmanager
def uncast(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Have state that is loaded come to `unwrap` in its own dtypes, which PyTorch makes the parameter's."""
    # The last of the hooks, so that the user's see tensors.
    hook = optimizer.register_load_state_dict_pre_hook(_wrap)
    try:
        yield
    finally:
        hook.remove()


def _wrap(optimizer: object, state_dict: dict[str, Any]) -> dict[str, Any]:
    return {**state_dict, "state": {key: _wrapped(entry) for key, entry in state_dict["state"].items()}}


def _wrapped(entry: Any) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    return {
        name: Wrapped(value) if isinstance(value, torch.Tensor) and name != "step" else value
        for name, value in entry.items()
    }


def unwrap(state: dict[Any, Any]) -> None:
    """Put the tensors that were wrapped back, each on its parameter's device."""
    for tensor, entry in state.items():
        for name, value in entry.items() if isinstance(entry, dict) else ():
            if isinstance(value, Wrapped):
                entry[name] = value.value.to(tensor.device)


def _own(value: Any) -> Any:
    """Return a copy of a tensor that lies in memory other processes, or a file, may change."""
    return value.clone() if isinstance(value, torch.Tensor) and is_shared(value) else value
