"""Machine code that is made on one machine and carried to another, whatever compilers that one has."""

from pathlib import Path
from typing import Any

import numpy as np

from numba_lamb._cache import source_hash
from numba_lamb.kernels.cuda import build, table
from numba_lamb.kernels.cuda.variants import STORED_KERNELS

KERNELS = [*table.KERNELS.values(), *STORED_KERNELS.values()]
Capability = tuple[int, int]


def path_of(folder: Path, kernel: Any, dtype: np.dtype[Any], capability: Capability) -> Path:
    """Return where a kernel's machine code is kept; its name changes with the kernels' sources."""
    target = "".join(map(str, capability))
    return folder / f"{kernel.__name__}-{dtype.name}-sm_{target}-{source_hash()[:16]}.cubin"


def make(folder: Path, capability: Capability) -> None:
    """Compile every kernel for one compute capability."""
    folder.mkdir(parents=True, exist_ok=True)
    for dtype in (np.dtype("float32"), np.dtype("float64")):
        for kernel in KERNELS:
            path = path_of(folder, kernel, dtype, capability)
            path.write_bytes(build.machine_code(kernel, dtype, capability))
            print(path.name, path.stat().st_size, flush=True)


def use(folder: Path) -> None:
    """Have kernels' machine code read from `folder`, and compiled only where it is not there."""
    compiled = build.machine_code

    def machine_code(kernel: Any, dtype: np.dtype[Any], capability: Capability) -> bytes:
        path = path_of(folder, kernel, dtype, capability)
        return path.read_bytes() if path.exists() else compiled(kernel, dtype, capability)

    build.machine_code = machine_code
