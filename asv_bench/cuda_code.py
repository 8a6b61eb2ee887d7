"""Print what the compilers make of each CUDA kernel, as the tables in docs/benchmarks/cuda.md; needs no GPU.

``python asv_bench/cuda_code.py``; takes some minutes and the tests' dependencies. Arguments (``lars_update``)
choose kernels.
"""

import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

# The readers of machine code are the tests'.
sys.path.insert(0, str(Path(__file__).parent.parent))

from numba_lamb.kernels.cuda import build
from numba_lamb.kernels.cuda.fields import THREADS
from numba_lamb.kernels.cuda.table import KERNELS
from numba_lamb.kernels.cuda.variants import STORED_KERNELS
from tests.cuda.kernel_texts import compiled
from tests.cuda.ptx.compile import Cubin
from tests.cuda.ptx.resources import resources_of
from tests.cuda.ptx.sass import loads_in_flight

MOST_THREADS = {
    (7, 5): 1024,
    (8, 0): 2048,
    (8, 6): 1536,
    (8, 9): 1536,
    (9, 0): 2048,
    (10, 0): 2048,
    (12, 0): 1536,
}
"""By compute capability, of an SM."""
SM_REGISTERS = 65_536


def blocks_per_sm(registers: int, capability: tuple[int, int]) -> int:
    """Return how many blocks of ours an SM holds by their registers, which it hands out to warps in eights."""
    warps = SM_REGISTERS // (32 * -(-registers // 8) * 8)
    return min(warps // (THREADS // 32), MOST_THREADS[capability] // THREADS)


def cell(text: str, capability: tuple[int, int]) -> tuple[str, int]:
    """Return registers, blocks and stack as text, and how many loads are under way, for a kernel's PTX."""
    code = build.link(text, capability)
    found = resources_of(code)
    stack = f", stack {found.stack}" if found.stack else ""
    shown = f"{found.registers} ({blocks_per_sm(found.registers, capability)}){stack}"
    return shown, loads_in_flight(Cubin(code, ""))


def table(
    title: str, dtype: str, kernels: Mapping[str, Callable[..., None]], chosen: Collection[str] = ()
) -> str:
    """Return the table of kernels in one dtype as Markdown."""
    heads = [f"sm_{major}{minor}" for major, minor in MOST_THREADS]
    lines = [
        f"| {title} | {' | '.join(heads)} | loads |",
        f"| --- |{' ---: |' * (len(heads) + 1)}",
    ]
    for name, kernel in kernels.items():
        if chosen and name not in chosen:
            continue
        texts = compiled(kernel, dtype, list(MOST_THREADS)).ptx
        cells, loads = zip(*(cell(texts[str(each)], each) for each in MOST_THREADS), strict=True)
        lines.append(f"| `{name}` | {' | '.join(cells)} | {min(loads)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for number, dtype in enumerate(("float32", "float64")):
        print("\n" * number + table(dtype, dtype, KERNELS, sys.argv[1:]))
    print("\n" + table("other formats, in float32", "float32", STORED_KERNELS, sys.argv[1:]))
