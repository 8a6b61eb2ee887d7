"""Kernels that copy runs of layers into buffers that ranks exchange, and out of them.

A row of `runs` (int64) is a run of at most a chunk: its layer, its first element, its elements, and where the run
begins in the buffer.
"""

from typing import Any

import numpy as np
from numba import prange

from numba_lamb._compile import cpu_kernel
from numba_lamb.kernels.columns import GRADIENT, WEIGHTS
from numba_lamb.kernels.cpu.intrinsics import enter_ieee, leave_ieee, pointer_to, stack_values
from numba_lamb.kernels.cpu.rows import load, stored
from numba_lamb.layout import CHUNK, LANES

_BYTE = np.uint8(0)


@cpu_kernel
def pack_gradients(addresses: Any, formats: Any, runs: Any, out: Any) -> None:
    """Write gradients into `out` as they are computed with, zeros for those that are absent."""
    for run in prange(runs.shape[0]):
        mode = enter_ieee()
        layer, start, count, at = runs[run, 0], runs[run, 1], runs[run, 2], runs[run, 3]
        if addresses[layer, GRADIENT] == 0:
            for i in range(count):
                out[at + i] = 0
        else:
            gradient = stored(addresses, formats, layer, GRADIENT)
            buffer = stack_values(LANES, out[0])
            for first in range(0, count, LANES):
                width = min(count - first, LANES)
                g = load(gradient, start + first, width, out.itemsize, buffer)
                for i in range(width):
                    out[at + first + i] = g[i]
        leave_ieee(mode)


@cpu_kernel
def average(rows: Any, out: Any) -> None:
    """Write the mean of `rows` into `out`, added up in their order in float64: they may be longer."""
    for chunk in prange(-(-out.shape[0] // CHUNK)):
        mode = enter_ieee()
        totals = stack_values(CHUNK, 0.0)
        first = chunk * CHUNK
        count = min(out.shape[0] - first, CHUNK)
        for i in range(count):
            totals[i] = rows[0, first + i]
        for rank in range(1, rows.shape[0]):
            for i in range(count):
                totals[i] += rows[rank, first + i]
        for i in range(count):
            out[first + i] = totals[i] / rows.shape[0]
        leave_ieee(mode)


@cpu_kernel
def pack_weights(addresses: Any, widths: Any, runs: Any, out: Any) -> None:
    """Write weights into `out` as they are stored; `widths` has the bytes of each layer's elements."""
    for run in prange(runs.shape[0]):
        layer = runs[run, 0]
        source = pointer_to(addresses[layer, WEIGHTS] + runs[run, 1] * widths[layer], _BYTE)
        at = runs[run, 3]
        for i in range(runs[run, 2] * widths[layer]):
            out[at + i] = source[i]


@cpu_kernel
def unpack_weights(addresses: Any, widths: Any, runs: Any, given: Any) -> None:
    """Write what `pack_weights` wrote back into weights."""
    for run in prange(runs.shape[0]):
        layer = runs[run, 0]
        target = pointer_to(addresses[layer, WEIGHTS] + runs[run, 1] * widths[layer], _BYTE)
        at = runs[run, 3]
        for i in range(runs[run, 2] * widths[layer]):
            target[i] = given[at + i]
