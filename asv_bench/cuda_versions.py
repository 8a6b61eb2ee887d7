"""Compile and link every CUDA kernel with what is installed here; print a row for docs/benchmarks/cuda.md.

``python asv_bench/cuda_versions.py`` takes some twenty minutes, numba-cuda and no GPU; arguments (``9.0 12.0``)
choose compute capabilities.
"""

import platform
import sys
from importlib import metadata

import numpy as np
from cuda.bindings import nvjitlink

from numba_lamb.kernels.cuda import build, tools
from numba_lamb.kernels.cuda.table import KERNELS
from numba_lamb.kernels.cuda.variants import STORED_KERNELS

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")


def outcome(capability: tuple[int, int]) -> str:
    """Return how many kernels came to machine code, or the first error."""
    for dtype in ("float32", "float64"):
        for kernel in (*KERNELS.values(), *STORED_KERNELS.values()):
            try:
                build.link(build.ptx(kernel, np.dtype(dtype), capability), capability)
            except (ImportError, RuntimeError) as error:
                return f"{kernel.__name__}: {error}"
    return "all"


def main(capabilities: list[str]) -> int:
    """Print versions, then the capabilities that all kernels were made for; return 1 if any failed."""
    found = {name: outcome(tuple(map(int, name.split(".")))) for name in capabilities or CAPABILITIES}
    packages = [
        platform.python_version(),
        *(metadata.version(name) for name in ("numpy", "numba", "numba-cuda")),
        tools.version(tools.nvvm_package()),
        ".".join(map(str, nvjitlink.version())) + f" ({tools.version(tools.nvjitlink_package())})",
    ]
    good = [name for name, result in found.items() if result == "all"]
    print(f"| {' | '.join(packages)} | {', '.join(good) or 'none'} |")
    for name in found.keys() - set(good):
        print(f"{name}: {found[name]}", file=sys.stderr)
    return int(len(good) < len(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
