"""How many threads to use by default: what OMP_NUM_THREADS says, else the CPUs that this process may use."""

import math
import os
import re
from functools import cache
from pathlib import Path, PurePosixPath

from numba_lamb.comm.cpus import own_cpus

_COUNTS = re.compile(r"\s*([0-9]{1,9})\s*(,\s*[0-9]{1,9}\s*)*")
_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def default_threads() -> int:
    """Return the number in OMP_NUM_THREADS, else the container's quota; no more than the CPUs to run on."""
    cpus = usable_cpus()
    return min(omp_num_threads() or cpu_quota() or cpus, cpus)


def usable_cpus() -> int:
    """Return how many CPUs this process may run on."""
    return len(own_cpus())


@cache
def omp_num_threads() -> int | None:
    """Return the first number in OMP_NUM_THREADS, read once as OpenMP does; None if it has none."""
    found = _COUNTS.fullmatch(os.environ.get("OMP_NUM_THREADS", ""))
    return int(found[1]) or None if found else None


@cache
def cpu_quota() -> int | None:
    """Return the CPU time per second that our control groups (version 2) allow, rounded up; None if unlimited."""
    own = PurePosixPath(".")
    for line in _lines(_OWN_GROUP):
        if line.startswith("0::/") and ".." not in line:
            own = PurePosixPath(line[4:])
    quotas = []
    for group in (own, *own.parents):
        for line in _lines(_GROUPS / group / "cpu.max"):
            quota, _, period = line.partition(" ")
            if quota.isdecimal() and period.isdecimal() and int(period) > 0:
                quotas.append(math.ceil(int(quota) / int(period)))
    return min(quotas, default=None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
