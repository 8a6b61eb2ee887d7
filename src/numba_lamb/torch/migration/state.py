"""What optimizers keep of each parameter, from the names of others to ours; always copies."""

from collections.abc import Mapping
from typing import Any

import torch

from numba_lamb.torch.migration.sources import BITSANDBYTES, Source, is_eight_bit
from numba_lamb.torch.stored import rest_of

_MOMENTS = {
    "Lamb": {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"},
    "Lars": {"momentum_buffer": "momentum_buffer"},
    "Momentum": {"momentum_buffer": "momentum_buffer"},
}
_OF_BITSANDBYTES = {"exp_avg": "state1", "exp_avg_sq": "state2"}


def parameter_states(
    source: Source, state: Mapping[Any, Mapping[str, Any]], groups: list[Mapping[str, Any]]
) -> dict[Any, dict[str, torch.Tensor]]:
    """Return our state of each parameter that has one in `state`; `groups` hold indices, some also a step."""
    found = {}
    for group in groups:
        for index in group["params"]:
            entry = parameter_state(source, index, state.get(index, {}), group.get("step"))
            if entry:
                found[index] = entry
    return found


def master_states(other: torch.optim.Optimizer) -> dict[int, dict[str, torch.Tensor]]:
    """Return what our masters add to parameters of 16 bits, by index, where `other` has masters beside its state.

    Apex's ``FusedMixedPrecisionLamb`` has them from its first step on, and not in its ``state_dict()``.
    """
    groups = getattr(other, "param_groups_full_precision", [])
    masters = [master for group in groups for master in group["params"]]
    tensors = [tensor for group in other.param_groups for tensor in group["params"]]
    return {
        index: rest_of(tensor.detach(), master.detach())
        for index, (tensor, master) in enumerate(zip(tensors, masters, strict=False))
        if master is not None
    }


def parameter_state(
    source: Source, index: Any, entry: Mapping[str, Any], group_step: Any
) -> dict[str, torch.Tensor]:
    """Return our state of the parameter `index`, empty where `entry` has no moments."""
    what = f"state of parameter {index} of {source.name}"
    names = _OF_BITSANDBYTES if source is BITSANDBYTES else _MOMENTS[source.kind]
    held = [name for name in names.values() if entry.get(name) is not None]
    if not held:
        return {}
    if source is BITSANDBYTES and is_eight_bit(entry):
        raise ValueError(
            f"{what} is quantised to 8 bits; only that of 32 bits (optim_bits=32) can be continued"
        )
    step = entry.get("step", group_step)
    if step is None:
        if source.kind == "Lamb":
            raise ValueError(f"{what} has no 'step', nor has its group; Lamb needs it to correct the moments")
        # Nobody counted, and no formula of momentum asks for the count.
        step = 0
    found = {"step": torch.tensor(float(step), dtype=torch.float32)}
    for ours, theirs in names.items():
        if theirs not in held:
            raise ValueError(f"{what} has no {theirs!r}; it must have {', '.join(map(repr, names.values()))}")
        if not isinstance(entry[theirs], torch.Tensor):
            raise TypeError(f"{what} has a {theirs!r} that is a {type(entry[theirs]).__name__}, not a tensor")
        found[ours] = entry[theirs].detach().clone()
    return found
