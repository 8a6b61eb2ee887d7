"""Print what the compilers make of each CUDA kernel, as the tables in docs/benchmarks/cuda.md; needs no GPU.

``python asv_bench/cuda_code.py``; takes two minutes and the tests' dependencies.
"""

import sys
from pathlib import Path

import numpy as np

# The readers of machine code are the tests'.
sys.path.insert(0, str(Path(__file__).parent.parent))

from numba_lamb.kernels.cuda import build
from numba_lamb.kernels.cuda.passes import KERNELS
from numba_lamb.memory import device
from tests.cuda.ptx.compile import Cubin, sass_counts
from tests.cuda.ptx.resources import resources_of

CAPABILITIES = ((8, 0), (9, 0), (10, 0))
SM_REGISTERS, SM_THREADS, SM_BLOCKS = 65_536, 2048, 32


def blocks_per_sm(registers: int) -> int:
    """Return how many blocks of ours an SM holds by their registers, which it hands out to warps in eights."""
    taken = -(-registers // 8) * 8
    warps = SM_REGISTERS // (32 * taken)
    return min(warps // device.WARPS, SM_THREADS // device.THREADS, SM_BLOCKS)


def cell(kernel: object, dtype: str, capability: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """Return registers, blocks and spills as text, and how many accesses of 16 bytes load and store."""
    code = build.link(build.ptx(kernel, np.dtype(dtype), capability), capability)
    found = resources_of(code)
    counts = sass_counts(Cubin(code, ""))
    stack = f", stack {found.stack}" if found.stack else ""
    accesses = counts["LDG.E.128"], counts["STG.E.128"]
    return f"{found.registers} ({blocks_per_sm(found.registers)}){stack}", accesses


def table(dtype: str) -> str:
    """Return the table of one dtype as Markdown."""
    heads = [f"sm_{major}{minor}" for major, minor in CAPABILITIES]
    lines = [
        f"| {dtype} | {' | '.join(heads)} | loads, stores of 16 bytes |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for kernel in KERNELS.values():
        cells, accesses = zip(*(cell(kernel, dtype, capability) for capability in CAPABILITIES), strict=True)
        shown = sorted({f"{loads}, {stores}" if loads else "" for loads, stores in accesses})
        lines.append(f"| `{kernel.__name__}` | {' | '.join(cells)} | {' or '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n\n".join(table(dtype) for dtype in ("float32", "float64")))
