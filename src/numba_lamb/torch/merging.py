"""Layers merged into one tensor, as engines that flatten parameters do: the norms of layers are lost then."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from numba_lamb.methods.lars import MOMENTUM
from numba_lamb.methods.options import Method, Row
from numba_lamb.torch.dtensors import is_dtensor
from numba_lamb.torch.keys import where
from numba_lamb.torch.scales import has_whole_rows

Shapes = list[dict[int, tuple[int, ...]]]
"""For each group the shapes of its parameters by ``id``: a reference would keep alive what was replaced."""


def shapes_of(groups: Sequence[Mapping[str, Any]]) -> Shapes:
    """Return the shapes of all parameters of `groups`."""
    return [{id(tensor): _shape(tensor) for tensor in group["params"]} for group in groups]


def check_layers(before: Shapes, groups: Sequence[Mapping[str, Any]], found: Sequence[Row]) -> Shapes:
    """Return the shapes of all parameters, or raise if layers were merged whose norms or names count.

    Parameters
    ----------
    before : list
        What this returned the last time.
    groups : sequence of mapping
        The parameter groups.
    found : sequence of Row
        What kernels are told of each.
    """
    now = shapes_of(groups)
    for index in _merged(before, now):
        if found[index].adapts or groups[index].get("decay_filter") is not None:
            raise ValueError(
                f"params{where(index)} must be layers, but {len(before[index])} tensors were merged into "
                f"{len(now[index])}, which loses the norms and names of layers; have the engine leave parameters "
                "as they are (DeepSpeed: float32 without ZeRO), or make a new optimizer if these are layers"
            )
    return now


def check_layer(name: str, tensor: Tensor, group: Mapping[str, Any], method: Method) -> None:
    """Raise if a parameter is a part of something whose state or norms cannot be had.

    Parameters
    ----------
    name, tensor
        The parameter.
    group : mapping
        Its group.
    method : Method
        Whose steps it is to take.
    """
    needs_layers = method is not MOMENTUM or group.get("max_grad_norm") or group.get("decay_filter")
    if needs_layers and getattr(tensor, "_fsdp_flattened", False):
        raise TypeError(
            f"parameter {name!r} must be a layer, got one of several that FSDP1 flattened, or a piece of those, "
            "whose norm is no layer's; fully_shard of FSDP2 leaves layers as they are"
        )
    if is_dtensor(tensor) and group["moments"] == "int8" and not has_whole_rows(tensor):
        raise ValueError(
            f"moments must be None or 'bfloat16' for {name!r}, whose pieces end inside of rows of 128 elements "
            "that share a scale, got 'int8'; give it a group of its own"
        )


def _merged(before: Shapes, now: Shapes) -> Iterator[int]:
    """Yield the groups in which layers were merged."""
    # Fewer tensors are new than gone, same shapes left out, and hold as much, or could as 1-D shards of processes.
    kept = {item for shapes in now for item in shapes.items()}
    known = {item for shapes in before for item in shapes.items()}
    for index, (old, new) in enumerate(zip(before, now, strict=False)):
        gone = Counter(shape for key, shape in old.items() if (key, shape) not in kept)
        made = Counter(shape for key, shape in new.items() if (key, shape) not in known)
        lost, found = [*(gone - made).elements()], [*(made - gone).elements()]
        total = sum(map(math.prod, lost))
        flat = sum(math.prod(shape) for shape in found if len(shape) == 1)
        if 0 < len(found) < len(lost) and total:
            whole = sum(map(math.prod, found)) == total
            if whole or flat * _processes() >= total:
                yield index


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return () if is_lazy(tensor) else tuple(tensor.shape)


def _processes() -> int:
    distributed = torch.distributed
    started = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if started else 1
