"""Names of parameters in groups, and where all of them are."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def names_in(groups: Sequence[Mapping[str, Any]], index: int) -> list[tuple[str, Tensor]]:
    """Return the names and parameters of one group."""
    group = groups[index]
    first = sum(len(before["params"]) for before in groups[:index])
    given = group.get("param_names", ())
    numbered = [f"param_{first + k}" for k in range(len(given), len(group["params"]))]
    return list(zip([*given, *numbered], group["params"], strict=False))


def unlike_names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the name of each parameter, with its number where one before it has that name."""
    names: list[str] = []
    known: set[str] = set()
    for index in range(len(groups)):
        for name, _ in names_in(groups, index):
            names.append(name if name not in known else f"{name} of group {index}, number {len(names)}")
            known.add(names[-1])
    return names


def device_of(groups: Sequence[Mapping[str, Any]]) -> torch.device | None:
    """Return where the parameters are, None if there are none, or raise if that is not one device."""
    seen: dict[torch.device, str] = {}
    for index in range(len(groups)):
        for name, tensor in names_in(groups, index):
            seen.setdefault(tensor.device, name)
    if len(seen) > 1:
        (one, name), (two, other) = list(seen.items())[:2]
        raise ValueError(
            f"parameters must be on one device, but {name!r} is on {one} and {other!r} on {two}; make an "
            "optimizer for each device"
        )
    return next(iter(seen), None)
