"""What a measurement was made on: the machine and the versions."""

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from llvmlite import binding

__all__ = [
    "PACKAGES",
    "available_memory",
    "caches",
    "cpu_model",
    "describe_machine",
    "usable_cpus",
    "versions",
]

PACKAGES = (
    "numba-lamb",
    "numba",
    "numpy",
    "llvmlite",
    "torch",
    "timm",
    "jax",
    "optax",
    "torch-optimizer",
    "pytorch-optimizer",
    "paddlepaddle",
)
_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def describe_machine() -> dict[str, object]:
    """Return the processor, its caches, CPU counts and system, as plain values."""
    return {
        "cpu": cpu_model(),
        "processor": str(binding.get_host_cpu_name()),
        "cpus": os.cpu_count(),
        "usable_cpus": usable_cpus(),
        "caches": caches(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed, without importing them."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """Return the processor's name as the system gives it."""
    for line in _lines(_CPUINFO):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def usable_cpus() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def caches() -> dict[str, str]:
    """Return the sizes of the first CPU's caches by name (``L1d``, ``L2``, ...), where the system tells them."""
    found = {}
    for folder in sorted(_CACHES.glob("index*")):
        level, kind, size = ("".join(_lines(folder / name)) for name in ("level", "type", "size"))
        if level and size:
            found[f"L{level}{ {'Data': 'd', 'Instruction': 'i'}.get(kind, '') }"] = size
    return found


def available_memory() -> float | None:
    """Return the bytes that can still be allocated, by the system and by this container; None if unknown."""
    limits = [1024.0 * int(line.split()[1]) for line in _lines(_MEMINFO) if line.startswith("MemAvailable:")]
    most, used = _lines(_CGROUP / "memory.max"), _lines(_CGROUP / "memory.current")
    if most and used and most[0] != "max":
        # Files that the container has read count as used, but the system gives them up.
        cached = sum(
            int(line.split()[1])
            for line in _lines(_CGROUP / "memory.stat")
            if line.startswith("inactive_file ")
        )
        limits.append(float(int(most[0]) - int(used[0]) + cached))
    return min(limits, default=None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
