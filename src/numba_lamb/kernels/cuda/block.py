"""What one block does: where things are, rows of values under way together, sums in the pinned order.

A block has a thread for each of the 128 lanes. Thread ``t`` takes element ``t`` of every row of 128, hence lane
``t``. It loads its values of `ROWS` rows, which are all under way together, before it uses the first. Each access
is of one value, so that nothing depends on how arrays are aligned.

No variable that is a tuple is assigned in two places or carried round a loop: NVVM before 13.4 never ends on one.

Here arrays are stored as they are computed with. In kernels for other formats the names of ``a layer's arrays``
stand for what is in `numba_lamb.kernels.cuda.stored`.
"""

from typing import Any

import numpy as np
from numba import cuda

from numba_lamb._compile import bind, cuda_function
from numba_lamb.kernels import columns
from numba_lamb.kernels.cuda import fields
from numba_lamb.kernels.cuda.intrinsics import fma, multiply, own_values, pointer_to, shuffle_down, zero_like
from numba_lamb.layout import CHUNK, LANES
from numba_lamb.numerics import rules as rule_text

ROWS = 8
"""How many rows of a chunk a thread has under way: a chunk is four times as many."""
STRIDE = ROWS * LANES
WARP = 32
DOUBLE_BYTES = 8

rules = bind(rule_text, cuda_function, fma=fma, multiply=multiply)


# -- where things are ----------------------------------------------------------------------------------------


@cuda_function
def this_lane() -> Any:
    """Return this thread's place in its block."""
    return cuda.threadIdx.x


@cuda_function
def this_block() -> Any:
    """Return this block's place in the grid."""
    return np.int64(cuda.blockIdx.x)


@cuda_function
def longs(args: Any, field: Any) -> Any:
    """Return the int64 table whose address the args holds."""
    return pointer_to(args[field], args[0])


@cuda_function
def doubles(args: Any, field: Any) -> Any:
    """Return the float64 table whose address the args holds."""
    return pointer_to(args[field], 0.0)


@cuda_function
def values(args: Any, field: Any, hyper: Any) -> Any:
    """Return the table of the parameters' dtype whose address the args holds."""
    return pointer_to(args[field], hyper[0])


@cuda_function
def hyper64_of(args: Any, layer: Any, column: Any) -> Any:
    """Return one of a layer's float64 hyper-parameters."""
    return doubles(args, fields.HYPER64)[layer * columns.HYPER64 + column]


@cuda_function
def is_stopped(args: Any) -> Any:
    """Return whether this step must change nothing."""
    control = longs(args, fields.CONTROL)
    return control[fields.FOUND] + control[fields.REFUSAL] != 0


@cuda_function
def was_stopped(args: Any) -> Any:
    """Return what `is_stopped` was when the verdict was latched: for the last kernel, which clears the flags."""
    return longs(args, fields.CONTROL)[fields.STOPPED] != 0


@cuda_function
def address_of(args: Any, layer: Any, column: Any) -> Any:
    """Return where one of a layer's arrays starts."""
    return longs(args, fields.ADDRESSES)[layer * columns.ADDRESSES + column]


@cuda_function
def chunk_of(args: Any, chunk: Any, stopped: Any) -> Any:
    """Return a chunk's layer, and the places in it where the chunk starts and ends.

    It ends where it starts if there is nothing to do: no such chunk, no gradient, or a step that is stopped.
    """
    layer = start = last = 0
    if 0 <= chunk < args[fields.CHUNK_COUNT] and not stopped:
        layer, start = longs(args, fields.CHUNKS)[2 * chunk], longs(args, fields.CHUNKS)[2 * chunk + 1]
        last = start
        if address_of(args, layer, columns.GRADIENT) != 0:
            # A chunk of a piece of a layer may begin within one of the whole layer's, and ends with it.
            last = min(longs(args, fields.SIZES)[layer], (start | (CHUNK - 1)) + 1)
    return layer, start, last


@cuda_function
def begin_of(start: Any) -> Any:
    """Return where the whole layer's chunk begins in which the chunk of a piece does."""
    return start & -CHUNK


@cuda_function
def sums_of(args: Any, chunk: Any) -> Any:
    """Return the sums of one of this rank's chunks, by column."""
    return pointer_to(args[fields.SUMS] + chunk * columns.SUMS * DOUBLE_BYTES, 0.0)


# -- a layer's arrays ----------------------------------------------------------------------------------------

STORED = False
"""Whether arrays may be stored otherwise than they are computed with."""


@cuda_function
def array_of(args: Any, hyper: Any, layer: Any, column: Any) -> Any:
    """Return one of a layer's arrays."""
    return pointer_to(address_of(args, layer, column), hyper[0])


@cuda_function
def own_rows(array: Any) -> Any:
    """Return room for this thread's values of `ROWS` rows."""
    return own_values(array, ROWS)


@cuda_function
def load(own: Any, array: Any, first: Any, last: Any) -> None:
    """Read this thread's values of `ROWS` rows, from `first` on; past the end, what lies before `last`."""
    for k in range(ROWS):
        # No branch guards a load: a guard takes a register for each row until its value is used.
        own[k] = array[min(first + k * LANES, last - 1)]


@cuda_function
def load_fenced(own: Any, array: Any, step: Any, first: Any, last: Any) -> None:
    """Do what `load` does with every `step`-th value, for arithmetic without branches; past the end read nothing.

    The assembler would begin with such arithmetic before all loads are issued, but it moves none across a branch.
    """
    if first + (ROWS - 1) * LANES < last:
        for k in range(ROWS):
            own[k] = array[(first + k * LANES) * step]
    else:
        for k in range(ROWS):
            if first + k * LANES < last:
                own[k] = array[(first + k * LANES) * step]


@cuda_function
def decode(own: Any, array: Any) -> None:
    """Make values of what was loaded: they are."""


@cuda_function
def until(start: Any, last: Any) -> Any:
    """Return where a thread's rows of a chunk end."""
    return last


@cuda_function
def key_of(args: Any, layer: Any, start: Any, use: Any) -> Any:
    """Return what the random bits of a chunk are made of: of none."""
    return 0


@cuda_function
def store(array: Any, i: Any, value: Any, key: Any, place: Any) -> None:
    """Write one value, which is element `place` of the whole layer's chunk."""
    array[i] = value


@cuda_function
def store_rows(own: Any, array: Any, first: Any, last: Any, begin: Any, key: Any, upper: Any) -> None:
    """Write rows that all are known of, which here are written value by value."""


@cuda_function
def make_keys(args: Any, layer: Any, step: Any) -> None:
    """Write what a layer's random bits are made of in its step `step`: of none."""


# -- gradients -----------------------------------------------------------------------------------------------


@cuda_function
def rows_from(args: Any, hyper: Any, layer: Any, start: Any) -> Any:
    """Return what `mean_of` needs to find the row of an element of the chunk that begins at `start`.

    The means; the place among them of the row that `start` lies in, below 0 where the layer is not centralized;
    how far into it `start` lies and how long rows are, in 32 bits, where a division costs little: no more of both
    than matters within a chunk.
    """
    row, length = longs(args, fields.FIRST_ROW)[layer], longs(args, fields.ROW_LENGTHS)[layer]
    short, shift = length, 0
    if row >= 0:
        row += start // length
        short = min(length, CHUNK)
        shift = short - min(length - start % length, CHUNK)
    return values(args, fields.MEANS, hyper), row, shift, np.uint32(short)


@cuda_function
def mean_of(rows: Any, place: Any) -> Any:
    """Return the mean of the row in which the element `place` after the chunk's start lies."""
    # The sum is one of 64 bits, by which a division would take several times as long.
    return rows[0][rows[1] + np.int64(np.uint32(place + rows[2]) // rows[3])]


@cuda_function
def lamb_gradient(g: Any, w: Any, rescale: Any, rows: Any, place: Any) -> Any:
    """Return what enters LAMB's moments of the gradient `place` after the chunk's start."""
    d = rescale * g
    if rows[1] >= 0:
        decayed = rules.decayed_gradient(g, w, rescale, zero_like(rows[0]))
        d = rules.centered(decayed, mean_of(rows, place))
    return d


@cuda_function
def lars_gradient(g: Any, w: Any, rescale: Any, decay: Any, rows: Any, place: Any) -> Any:
    """Return what enters the momentum of the gradient `place` after the chunk's start."""
    d = rules.decayed_gradient(g, w, rescale, decay)
    if rows[1] >= 0:
        d = rules.centered(d, mean_of(rows, place))
    return d


# -- sums ----------------------------------------------------------------------------------------------------


@cuda_function
def add_lanes(value: Any) -> Any:
    """Add up the block's lanes in the pinned tree; the sum is in its first thread. All threads must come here."""
    lane = this_lane()
    # Each place of the program that adds up has lanes of its own: no thread waits for others to have read them.
    lanes = cuda.shared.array(LANES, np.float64)
    lanes[lane] = value
    cuda.syncthreads()
    total = 0.0
    if lane < WARP:
        total = (lanes[lane] + lanes[lane + 64]) + (lanes[lane + 32] + lanes[lane + 96])
        distance = WARP // 2
        while distance > 0:
            total += shuffle_down(total, distance)
            distance //= 2
    return total


@cuda_function
def add_column(column: Any, step: Any, first: Any, last: Any) -> Any:
    """Add up elements `first` to ``last - 1`` of a float64 column in the pinned tree, for the first thread.

    An element and the next are `step` values apart.
    """
    own, total = own_rows(column), 0.0
    for row in range(first + this_lane(), last, STRIDE):
        load_fenced(own, column, step, row, last)
        for k in range(ROWS):
            if row + k * LANES < last:
                total += own[k]
    return add_lanes(total)


@cuda_function
def column_of_sums(args: Any, column: Any) -> Any:
    """Return where one column of the sums of all chunks begins."""
    return pointer_to(args[fields.ALL_SUMS] + column * DOUBLE_BYTES, 0.0)


@cuda_function
def add_sums(args: Any, layer: Any, column: Any) -> Any:
    """Add up one column of the sums of a layer's chunks; the sum is in the first thread."""
    first, last = longs(args, fields.FIRST_CHUNK)[layer], longs(args, fields.FIRST_CHUNK)[layer + 1]
    return add_column(column_of_sums(args, column), columns.SUMS, first, last)


@cuda_function
def add_all_sums(args: Any, layer: Any, third: Any) -> Any:
    """Do what `add_sums` does for w^2, for what the other norm is of, and for a `third` column, in one reading."""
    first, last = longs(args, fields.FIRST_CHUNK)[layer], longs(args, fields.FIRST_CHUNK)[layer + 1]
    one = column_of_sums(args, columns.WEIGHT_SQUARES)
    two, three = column_of_sums(args, columns.UPDATE_SQUARES), column_of_sums(args, third)
    own_one, own_two, own_three = own_rows(one), own_rows(two), own_rows(three)
    a = b = c = 0.0
    for row in range(first + this_lane(), last, STRIDE):
        load_fenced(own_one, one, columns.SUMS, row, last)
        load_fenced(own_two, two, columns.SUMS, row, last)
        load_fenced(own_three, three, columns.SUMS, row, last)
        for k in range(ROWS):
            if row + k * LANES < last:
                a += own_one[k]
                b += own_two[k]
                c += own_three[k]
    return add_lanes(a), add_lanes(b), add_lanes(c)
