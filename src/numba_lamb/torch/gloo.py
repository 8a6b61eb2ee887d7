"""Gloo for the processes of a group that has no backend for the CPU's memory."""

from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from numba_lamb.comm.interface import CommError

_made: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""How many were made for a group, which is the same number on all its processes."""


def gloo_of(group: Any, timeout: timedelta) -> Any:
    """Return a new group of gloo with the processes of another, in its order; all of them must call it.

    `dist.new_group` names a group by how many its process is in, so that processes of unlike groups wait for each
    other forever.
    """
    group = group or dist.group.WORLD
    rank, size, number = group.rank(), group.size(), _made.get(group, 0)
    c10d: Any = dist.distributed_c10d
    store = dist.distributed_c10d.PrefixStore(f"numba_lamb/{number}", c10d._get_process_group_store(group))
    made = dist.ProcessGroup(store, rank, size)
    kind = dist.ProcessGroup.BackendType.GLOO
    try:
        backend = dist.ProcessGroupGloo(store, rank, size, timeout)
    except RuntimeError as error:
        raise CommError(
            f"rank {rank}: another rank makes no optimizer, or cannot be reached by gloo within "
            f"{timeout.total_seconds():g} seconds: {error}"
        ) from error
    made._set_default_backend(kind)
    made._register_backend(torch.device("cpu"), kind, backend)
    # Counted when it is there, so that another try goes by the same name on all ranks.
    _made[group] = number + 1
    return made
