"""A layer's arrays in other formats than they are computed with: what stands for those names of `block`.

`load` reads patterns as they are, so that those of all arrays are under way together, and `decode` makes values of
them. Threads of a block share a layer, hence its formats: no branch on one diverges.
"""

from typing import Any

import numpy as np
from numba import cuda

from numba_lamb._compile import bind, cuda_function
from numba_lamb.kernels import columns
from numba_lamb.kernels.columns import (
    BFLOAT16,
    EXP_AVG,
    EXP_AVG_SQ,
    FIRST_8,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    GRADIENT,
    MASTERED,
    NATIVE,
    SECOND_8,
    SECOND_16,
    SPLIT,
    WEIGHTS,
)
from numba_lamb.kernels.cuda import fields
from numba_lamb.kernels.cuda.block import WARP, address_of, longs, this_lane
from numba_lamb.kernels.cuda.intrinsics import (
    bits_of,
    float_of,
    held_in,
    holding,
    is_single,
    low,
    multiply,
    own_values,
    pointer_to,
    shuffle_down,
)
from numba_lamb.layout import CHUNK, LANES
from numba_lamb.numerics import storage as storage_text

STORED = True
ROWS = 4
"""Half as many as elsewhere: a value takes up to two registers until it is decoded."""
STRIDE = ROWS * LANES
WARPS = LANES // WARP
PAIRS = 2 * ROWS
MAXIMA = ROWS * WARPS
_BYTE, _HALF = np.uint8(0), np.uint16(0)
_SINGLE, _DOUBLE = np.float32(0), np.float64(0)

storage = bind(storage_text, cuda_function, bits_of=bits_of, float_of=float_of, low=low, multiply=multiply)


@cuda_function
def array_of(args: Any, hyper: Any, layer: Any, column: Any) -> Any:
    """Return how one of a layer's arrays is stored, its address, that of the rest of it, and its column.

    The column is a constant: what an array of it is never stored as is no part of the machine code.
    """
    kind = longs(args, fields.FORMATS)[layer * columns.FORMATS + column]
    rest = columns.REST
    if column >= EXP_AVG:
        rest = column + columns.EXP_AVG_SCALES - EXP_AVG
    return kind, address_of(args, layer, column), address_of(args, layer, rest), column


@cuda_function
def own_rows(like: Any) -> Any:
    """Return room for this thread's values of `ROWS` rows, and for what belongs to each."""
    return own_values(like, PAIRS)


@cuda_function
def load(own: Any, array: Any, first: Any, last: Any) -> None:
    """Read this thread's patterns of `ROWS` rows, from `first` on; past the end, what lies before `last`."""
    kind, address, other, column = array[0], array[1], array[2], array[3]
    if kind == NATIVE:
        for k in range(ROWS):
            own[k] = pointer_to(address, own[0])[min(first + k * LANES, last - 1)]
    elif column == GRADIENT and kind == FLOAT32:
        for k in range(ROWS):
            own[k] = pointer_to(address, _SINGLE)[min(first + k * LANES, last - 1)]
    elif column == GRADIENT and kind == FLOAT64:
        for k in range(ROWS):
            own[k] = pointer_to(address, _DOUBLE)[min(first + k * LANES, last - 1)]
    elif is_single(own) and column >= EXP_AVG and kind in (FIRST_8, SECOND_8):
        for k in range(ROWS):
            i = min(first + k * LANES, last - 1)
            own[k] = holding(own, low(pointer_to(address, _BYTE)[i]))
            own[ROWS + k] = pointer_to(other, _SINGLE)[i // LANES]
    else:
        for k in range(ROWS):
            own[k] = holding(own, low(pointer_to(address, _HALF)[min(first + k * LANES, last - 1)]))
        if is_single(own) and column == WEIGHTS and kind == SPLIT:
            for k in range(ROWS):
                own[ROWS + k] = holding(own, low(pointer_to(other, _HALF)[min(first + k * LANES, last - 1)]))
        elif is_single(own) and column == WEIGHTS and kind == MASTERED:
            for k in range(ROWS):
                own[ROWS + k] = pointer_to(other, _SINGLE)[min(first + k * LANES, last - 1)]


@cuda_function
def load_fenced(own: Any, array: Any, step: Any, first: Any, last: Any) -> None:
    """Do what `load` does: `decode` begins behind branches."""
    load(own, array, first, last)


@cuda_function
def decode(own: Any, array: Any) -> None:
    """Make values of the patterns that were loaded."""
    kind, column = array[0], array[3]
    if kind in (BFLOAT16, SECOND_16):
        for k in range(ROWS):
            own[k] = storage.from_bfloat16(held_in(own[k]))
    elif column <= GRADIENT and kind == FLOAT16:
        for k in range(ROWS):
            own[k] = storage.from_float16(held_in(own[k]))
    elif is_single(own) and column == WEIGHTS and kind == SPLIT:
        for k in range(ROWS):
            own[k] = storage.joined(held_in(own[k]), np.int32(np.int16(held_in(own[ROWS + k]))))
    elif is_single(own) and column == WEIGHTS and kind == MASTERED:
        for k in range(ROWS):
            own[k] = storage.mastered(np.float32(own[ROWS + k]), held_in(own[k]))
    elif is_single(own) and column == EXP_AVG and kind == FIRST_8:
        for k in range(ROWS):
            code = np.float32(np.int32(np.int8(held_in(own[k]))))
            own[k] = storage.first_from_code(code, np.float32(own[ROWS + k]))
    elif is_single(own) and column == EXP_AVG_SQ and kind == SECOND_8:
        for k in range(ROWS):
            code = np.float32(np.int32(held_in(own[k])))
            own[k] = storage.second_from_code(code, np.float32(own[ROWS + k]))


# -- random bits ---------------------------------------------------------------------------------------------


@cuda_function
def make_keys(args: Any, layer: Any, step: Any) -> None:
    """Write what a layer's random bits are made of in its step `step`, for which it has taken one less."""
    random, keys = longs(args, fields.RANDOM), longs(args, fields.KEYS)
    seed = random[layer * columns.KEYS + columns.SEED]
    parameter = random[layer * columns.KEYS + columns.PARAMETER]
    for use in range(storage.USES):
        keys[layer * storage.USES + use] = storage.layer_key(seed, parameter, step - 1, use)


@cuda_function
def key_of(args: Any, layer: Any, start: Any, use: Any) -> Any:
    """Return what the random bits of a chunk are made of, for one use in the step that is being taken."""
    key = longs(args, fields.KEYS)[layer * storage.USES + use]
    return storage.key_in_layer(low(key), start // CHUNK)


@cuda_function
def half_at(key: Any, place: Any, upper: Any) -> Any:
    """Return 16 random bits of one element of a chunk."""
    return storage.half_of(storage.random_bits(key, place), upper)


# -- writing -------------------------------------------------------------------------------------------------


@cuda_function
def until(start: Any, last: Any) -> Any:
    """Return where a thread's rows of a chunk end: after as many rounds as any thread has, since all meet."""
    return start + (last - start + STRIDE - 1) // STRIDE * STRIDE


@cuda_function
def store(array: Any, i: Any, value: Any, key: Any, place: Any) -> None:
    """Write one value of the weights, which is element `place` of the whole layer's chunk."""
    kind, address, other = array[0], array[1], array[2]
    if kind == NATIVE:
        pointer_to(address, value)[i] = value
    elif kind == SPLIT:
        pattern = bits_of(np.float32(value))
        nearest = storage.split_high(pattern)
        pointer_to(address, _HALF)[i] = nearest
        pointer_to(other, _HALF)[i] = storage.split_rest(pattern, nearest)
    elif kind == MASTERED:
        pointer_to(other, _SINGLE)[i] = value
        pointer_to(address, _HALF)[i] = storage.to_float16(np.float32(value))
    elif kind == FLOAT16:
        half = half_at(key, place, False)
        pointer_to(address, _HALF)[i] = storage.random_float16(np.float32(value), half)
    elif kind == BFLOAT16:
        half = half_at(key, place, False)
        pointer_to(address, _HALF)[i] = storage.random_bfloat16(np.float32(value), half)


@cuda_function
def store_rows(own: Any, array: Any, first: Any, last: Any, begin: Any, key: Any, upper: Any) -> None:
    """Write this thread's values of `ROWS` rows of a moment; they are then as they are stored.

    All threads must come here. `upper` says whether it is the second, whose are the upper random bits.
    """
    kind, address, other = array[0], array[1], array[2]
    if kind == NATIVE:
        for k in range(ROWS):
            if first + k * LANES < last:
                pointer_to(address, own[0])[first + k * LANES] = own[k]
    elif is_single(own) and kind in (BFLOAT16, SECOND_16):
        for k in range(ROWS):
            i = first + k * LANES
            if i < last:
                half = half_at(key, i - begin, upper)
                found = storage.random_bfloat16(np.float32(own[k]), half)
                if upper:
                    found = storage.stored_second(np.float32(own[k]), half)
                pointer_to(address, _HALF)[i] = found
                own[k] = storage.from_bfloat16(found)
    elif is_single(own) and kind in (FIRST_8, SECOND_8):
        find_scales(own, first, last)
        for k in range(ROWS):
            i = first + k * LANES
            if i < last:
                scale = np.float32(own[ROWS + k])
                if this_lane() == 0:
                    pointer_to(other, _SINGLE)[i // LANES] = scale
                half, inverse = half_at(key, i - begin, upper), np.float32(1) / scale
                if upper:
                    code = storage.code_of_second(np.float32(own[k]), scale, inverse, half)
                    pointer_to(address, _BYTE)[i] = np.int32(code)
                    own[k] = storage.second_from_code(code, scale)
                else:
                    code = storage.code_of_first(np.float32(own[k]), scale, inverse, half)
                    pointer_to(address, _BYTE)[i] = np.int32(code)
                    own[k] = storage.first_from_code(code, scale)


@cuda_function
def find_scales(own: Any, first: Any, last: Any) -> None:
    """Put beside each value the scale of its row. All threads must come here."""
    lane = this_lane()
    found = cuda.shared.array(MAXIMA, np.uint32)
    for k in range(ROWS):
        # Patterns without signs are in the order of magnitude.
        largest = low(0)
        if first + k * LANES < last:
            largest = low(bits_of(np.float32(own[k])) & 0x7FFF_FFFF)
        distance = WARP // 2
        while distance > 0:
            largest = max(largest, shuffle_down(largest, distance))
            distance //= 2
        if lane % WARP == 0:
            found[k * WARPS + lane // WARP] = largest
    cuda.syncthreads()
    for k in range(ROWS):
        largest = max(
            max(found[k * WARPS], found[k * WARPS + 1]), max(found[k * WARPS + 2], found[k * WARPS + 3])
        )
        own[ROWS + k] = storage.row_scale(float_of(largest))
    # The next rows' may not be there before all have read these.
    cuda.syncthreads()
