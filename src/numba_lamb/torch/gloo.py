"""A group of gloo beside those that a program has."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from numba_lamb.comm.interface import CommError
from numba_lamb.engine.agreement import digest

_made: WeakKeyDictionary[Any, Counter[tuple[int, ...]]] = WeakKeyDictionary()
"""How many were made of some ranks, which is the same number on all of them, by the group of all processes."""


def group_ranks(group: Any) -> list[int]:
    """Return which of all processes are in a group, in its order; None is that of all."""
    return list(dist.get_process_group_ranks(group or dist.group.WORLD))


def gloo_of(ranks: Sequence[int], timeout: timedelta) -> Any:
    """Return a new group of gloo of some of all processes, in this order; each of them must call it.

    `dist.new_group` names a group by how many its process is in, so that processes of unlike groups wait for each
    other forever.
    """
    c10d: Any = dist.distributed_c10d
    world, key = dist.group.WORLD, tuple(ranks)
    numbers, rank = _made.setdefault(world, Counter()), key.index(dist.get_rank())
    name = f"numba_lamb/{digest(key).hex()}/{numbers[key]}"
    store = c10d.PrefixStore(name, c10d._get_process_group_store(world))
    made = dist.ProcessGroup(store, rank, len(key))
    kind = dist.ProcessGroup.BackendType.GLOO
    try:
        backend = dist.ProcessGroupGloo(store, rank, len(key), timeout)
    except RuntimeError as error:
        raise CommError(
            f"rank {rank}: another rank makes no optimizer, or cannot be reached by gloo within "
            f"{timeout.total_seconds():g} seconds: {error}"
        ) from error
    made._set_default_backend(kind)
    made._register_backend(torch.device("cpu"), kind, backend)
    # Counted when it is there, so that another try goes by the same name on all ranks.
    numbers[key] += 1
    return made
