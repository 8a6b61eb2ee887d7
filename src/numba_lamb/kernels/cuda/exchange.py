"""The CUDA kernels for what ranks send each other: gradients, weights and sums on their way into messages and out.

A row of runs (int64) is a run of at most a chunk: its layer, its first element, its elements, and where the run
begins in the message. A block takes a run.
"""

from typing import Any

import numpy as np

from numba_lamb._compile import cuda_function
from numba_lamb.kernels import columns
from numba_lamb.kernels.cuda import fields
from numba_lamb.kernels.cuda.block import (
    ROWS,
    STRIDE,
    address_of,
    array_of,
    decode,
    doubles,
    load,
    load_fenced,
    longs,
    own_rows,
    sums_of,
    this_block,
    this_lane,
    values,
)
from numba_lamb.kernels.cuda.frame import refuse
from numba_lamb.kernels.cuda.intrinsics import cast_like, own_values, pointer_to, zero_like
from numba_lamb.layout import CHUNK, LANES

# By other names they are the same in kernels for other formats: messages are as they are computed with.
DEPTH, load_values, load_values_fenced = ROWS, load, load_fenced
_BYTE, _HALF, _WORD = np.uint8(0), np.uint16(0), np.uint32(0)


@cuda_function
def run_of(args: Any, run: Any) -> Any:
    """Return a run's layer, first element, number of elements, 0 past the last run, and place in the message."""
    layer = start = count = at = 0
    if run < args[fields.RUN_COUNT]:
        runs = longs(args, fields.RUNS)
        layer, start, count, at = runs[4 * run], runs[4 * run + 1], runs[4 * run + 2], runs[4 * run + 3]
    return layer, start, count, at


# -- gradients -----------------------------------------------------------------------------------------------


def pack_gradients(args: Any, hyper: Any) -> None:
    """Write gradients into a message as they are computed with, zeros for those that are absent."""
    layer, start, count, at = run_of(args, this_block())
    if count == 0:
        return
    message, g = values(args, fields.MESSAGE, hyper), own_rows(hyper)
    last, given = start + count, address_of(args, layer, columns.GRADIENT) != 0
    gradients = array_of(args, hyper, layer, columns.GRADIENT)
    for first in range(start + this_lane(), last, STRIDE):
        if given:
            load(g, gradients, first, last)
            decode(g, gradients)
        for k in range(ROWS):
            i = first + k * LANES
            if i < last:
                message[at + i - start] = g[k] if given else zero_like(hyper)


def average(args: Any, hyper: Any) -> None:
    """Write the mean over ranks, added up in their order in float64."""
    message, averages = values(args, fields.MESSAGE, hyper), values(args, fields.AVERAGES, hyper)
    start = this_block() * CHUNK
    last = min(args[fields.AVERAGE_COUNT], start + CHUNK)
    ranks, room = args[fields.RANKS], args[fields.ROOM]
    own, totals = own_values(hyper, DEPTH), own_values(doubles(args, fields.MESSAGE), DEPTH)
    for first in range(start + this_lane(), last, DEPTH * LANES):
        for rank in range(ranks):
            load_values_fenced(own, message, 1, rank * room + first, rank * room + last)
            for k in range(DEPTH):
                # The first is not added to 0, which would make 0 of -0.
                totals[k] = np.float64(own[k]) if rank == 0 else totals[k] + np.float64(own[k])
        for k in range(DEPTH):
            if first + k * LANES < last:
                averages[first + k * LANES] = cast_like(hyper, totals[k] / np.float64(ranks))


# -- weights -------------------------------------------------------------------------------------------------


@cuda_function
def copy_run(target: Any, source: Any, size: Any) -> None:
    """Copy bytes, in units as wide as their places allow."""
    if (target | source | size) & 3 == 0:
        copy_units(pointer_to(target, _WORD), pointer_to(source, _WORD), size // 4)
    elif (target | source | size) & 1 == 0:
        copy_units(pointer_to(target, _HALF), pointer_to(source, _HALF), size // 2)
    else:
        copy_units(pointer_to(target, _BYTE), pointer_to(source, _BYTE), size)


@cuda_function
def copy_units(target: Any, source: Any, count: Any) -> None:
    """Copy a block's values."""
    own = own_values(source, DEPTH)
    for first in range(this_lane(), count, DEPTH * LANES):
        load_values(own, source, first, count)
        for k in range(DEPTH):
            if first + k * LANES < count:
                target[first + k * LANES] = own[k]


@cuda_function
def places_of(args: Any, run: Any) -> Any:
    """Return where a run's weights are in their parameter and in the message, and their bytes."""
    layer, start, count, at = run_of(args, run)
    width = longs(args, fields.WIDTHS)[layer]
    weights = address_of(args, layer, columns.WEIGHTS) + start * width
    return weights, args[fields.MESSAGE] + at, count * width


def pack_weights(args: Any, hyper: Any) -> None:
    """Write weights into a message as they are stored."""
    weights, message, size = places_of(args, this_block())
    copy_run(message, weights, size)


def unpack_weights(args: Any, hyper: Any) -> None:
    """Write what `pack_weights` wrote back into weights."""
    weights, message, size = places_of(args, this_block())
    copy_run(weights, message, size)


# -- sums ----------------------------------------------------------------------------------------------------


@cuda_function
def place_of_sums(args: Any, rank: Any, chunk: Any) -> Any:
    """Return where a message of all ranks has the sums of one of a rank's chunks of this bucket."""
    return (
        rank * args[fields.ROOM] + fields.FLAGS + (args[fields.BEFORE] + chunk) * args[fields.WRITTEN_COUNT]
    )


def pack_sums(args: Any, hyper: Any) -> None:
    """Write sums of this rank's chunks into its message, and whether anything keeps it from the step."""
    chunk = this_block() * LANES + this_lane()
    message, written = doubles(args, fields.MESSAGE), longs(args, fields.WRITTEN)
    if chunk == 0:
        control, found_inf = longs(args, fields.CONTROL), args[fields.FOUND_INF]
        message[fields.HAS_FOUND] = control[fields.FOUND] != 0
        message[fields.HAS_REFUSED] = control[fields.REFUSAL] != 0
        message[fields.LEAVES_OUT] = found_inf != 0 and pointer_to(found_inf, np.float32(0))[0] != 0
    if chunk < args[fields.CHUNK_COUNT]:
        at = place_of_sums(args, 0, chunk)
        for k in range(args[fields.WRITTEN_COUNT]):
            if written[k] == columns.SUMS:
                message[at + k] = np.float64(pointer_to(args[fields.NONFINITE], np.int32(0))[chunk])
            else:
                message[at + k] = sums_of(args, chunk)[written[k]]


def unpack_sums(args: Any, hyper: Any) -> None:
    """Write the sums of all chunks, and stop a step that any rank must leave out."""
    chunk = this_block() * LANES + this_lane()
    message, written = doubles(args, fields.MESSAGE), longs(args, fields.WRITTEN)
    if chunk == 0:
        control = longs(args, fields.CONTROL)
        for rank in range(args[fields.RANKS]):
            flags = rank * args[fields.ROOM]
            if message[flags + fields.HAS_FOUND] != 0:
                control[fields.FOUND] = 1
            if message[flags + fields.HAS_REFUSED] != 0 and control[fields.REFUSAL] == 0:
                refuse(args, fields.ELSEWHERE)
    if chunk < args[fields.ALL_COUNT]:
        owners, all_sums = longs(args, fields.OWNERS), doubles(args, fields.ALL_SUMS)
        at = place_of_sums(args, owners[2 * chunk], owners[2 * chunk + 1])
        for k in range(args[fields.WRITTEN_COUNT]):
            if written[k] < columns.SUMS:
                all_sums[chunk * columns.SUMS + written[k]] = message[at + k]


EXCHANGE_KERNELS = pack_gradients, average, pack_weights, unpack_weights, pack_sums, unpack_sums
