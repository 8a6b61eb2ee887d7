"""Which CPUs ranks of one machine share."""

import os
from collections.abc import Sequence


def own_cpus() -> list[int]:
    """Return the numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def sharing(all_cpus: Sequence[Sequence[int]]) -> int:
    """Return how many ranks of this machine, given the CPUs of each, may run on any CPU of this one."""
    own = set(own_cpus())
    return max(1, sum(not own.isdisjoint(cpus) for cpus in all_cpus))
