"""Run a CUDA kernel's PTX with NumPy: one lane per thread, on any machine.

What runs is what the compiler made of the kernel: vector accesses, inline assembly, shuffles, atomics, waiting
between blocks. Each access is checked for bounds and alignment, each operation is rounded as IEEE 754 and PTX say,
and an instruction or modifier that is not known is refused before anything runs.

In shared memory two accesses of which one writes, with no barrier between them, are found whatever order they
happen to run in, and so is a barrier that a thread of its block never comes to. Global memory is sequentially
consistent and threads change places only between instructions: a data race or a missing fence is not found there.
Nor is anything about speed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.cuda.ptx.errors import DeadlockError, PtxError, StepLimitError
from tests.cuda.ptx.lanes import Lanes, Shape
from tests.cuda.ptx.machine import Machine
from tests.cuda.ptx.memory import Memory
from tests.cuda.ptx.parser import Kernel, parse

__all__ = ["DeadlockError", "Kernel", "Memory", "PtxError", "StepLimitError", "launch", "parse"]

MAX_THREADS = 1024
# Enough to make little of the cost of an instruction, few enough for the registers to stay in the cache.
MANY_LANES = 16384


def launch(
    kernel: Kernel | str,
    grid: int | tuple[int, ...],
    block: int | tuple[int, ...],
    arguments: Sequence[Any],
    memory: Memory,
    *,
    dynamic_shared: int = 0,
    resident: int | None = None,
    seed: int = 0,
    fairness: int = 4,
    max_steps: int = 2_000_000,
) -> int:
    """Run a kernel on the arrays of `memory`, in place, and return how many steps that took.

    Arguments are numbers: addresses that `Memory.add` gave, integers, or floats. `resident` blocks run at once;
    the others begin in order as those end. The default is a number that runs fast: for a kernel whose blocks
    wait for one another, as a cooperative launch allows, give the size of the grid. `seed` decides the order
    of what is unordered: atomics within one instruction, and which threads go first.
    """
    kernel = parse(kernel) if isinstance(kernel, str) else kernel
    blocks, threads = shape(grid), shape(block)
    limit = min(MAX_THREADS, kernel.max_threads or MAX_THREADS)
    if threads.size > limit:
        raise PtxError(f"{kernel.name} runs with at most {limit} threads per block, not {threads.size}")
    slots = min(blocks.size, resident or max(1, MANY_LANES // threads.size))
    lanes = Lanes(kernel, blocks, threads, slots, memory, dynamic_shared)
    lanes.set_parameters(arguments)
    machine = Machine(lanes, slots, seed, fairness)
    with np.errstate(all="ignore"):
        machine.run(max_steps)
    return machine.steps


def shape(size: int | tuple[int, ...]) -> Shape:
    sizes = Shape(*size) if isinstance(size, tuple) else Shape(size)
    if min(sizes) < 1:
        raise PtxError(f"a launch of size {size}")
    return sizes
