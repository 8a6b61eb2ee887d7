"""Which CPUs ranks of one machine share."""

import os
import socket
from hashlib import blake2b

import numpy as np

from numba_lamb.comm.interface import Comm

_NAME, _CPUS = 8, 1024
"""Bytes of a machine's name, hashed, and of a mask of its CPUs: Linux has 8192 at most."""


def own_cpus() -> list[int]:
    """Return the numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def ranks_sharing(comm: Comm) -> int:
    """Return how many ranks may run on any CPU of this one, itself among them; every rank must call it."""
    own = np.zeros(_NAME + _CPUS, dtype=np.uint8)
    own[:_NAME] = np.frombuffer(
        blake2b(socket.gethostname().encode(), digest_size=_NAME).digest(), dtype=np.uint8
    )
    mask = np.zeros(8 * _CPUS, dtype=np.bool_)
    mask[[cpu for cpu in own_cpus() if cpu < len(mask)]] = True
    own[_NAME:] = np.packbits(mask)
    told = np.zeros((comm.size, len(own)), dtype=np.uint8)
    comm.all_gather(told, own)()
    near = (told[:, :_NAME] == own[:_NAME]).all(axis=1)
    return max(1, int((near & (told[:, _NAME:] & own[_NAME:]).any(axis=1)).sum()))
