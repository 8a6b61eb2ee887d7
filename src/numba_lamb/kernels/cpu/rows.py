"""Rows of a layer's arrays as the numbers that are computed with, whatever they are stored as.

A row is at most `LANES` values. Where all is stored as it is computed with, `formats` is None, and a row is the
memory itself. Elsewhere `load` reads a row into a buffer, and `store` writes it back.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from numba_lamb._compile import bind, cpu_function
from numba_lamb._tuning import LINE
from numba_lamb.kernels.columns import (
    BFLOAT16,
    EXP_AVG,
    FIRST_8,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    MASTERED,
    NATIVE,
    PARAMETER,
    REST,
    SECOND_8,
    SECOND_16,
    SEED,
    SPLIT,
    WEIGHTS,
)
from numba_lamb.kernels.cpu.intrinsics import (
    address_of,
    bits_of,
    float_of,
    from_element,
    low,
    pointer_to,
    prefetch,
)
from numba_lamb.layout import CHUNK, LANES
from numba_lamb.numerics import storage as storage_text

storage = bind(storage_text, cpu_function, bits_of=bits_of, float_of=float_of, low=low)

_BYTE, _SIGNED_BYTE, _HALF, _REST = np.uint8(0), np.int8(0), np.uint16(0), np.int16(0)
_SINGLE, _DOUBLE = np.float32(0), np.float64(0)


@cpu_function
def stored(addresses: Any, formats: Any, layer: Any, column: Any) -> Any:
    """Return a layer's array as rows are read of it: how it is stored, its address, and that of the rest of it."""
    other = addresses[layer, REST if column == WEIGHTS else column + REST - EXP_AVG + 1]
    return _kind(formats, layer, column), addresses[layer, column], other


def _kind(formats: Any, layer: Any, column: Any) -> Any:
    """Return how an array is stored; None, which is a type, where all are as they are computed with."""
    raise NotImplementedError("for compiled code alone")


@overload(_kind)  # type: ignore[untyped-decorator]
def _kind_by_type(formats: Any, layer: Any, column: Any) -> Callable[..., Any]:
    # One function with both returns would have a type that is neither.
    def absent(formats: Any, layer: Any, column: Any) -> Any:
        return None

    def found(formats: Any, layer: Any, column: Any) -> Any:
        return formats[layer, column]

    return absent if isinstance(formats, types.NoneType) else found


@cpu_function
def is_native(formats: Any, layer: Any, column: Any) -> Any:
    """Return whether an array is stored as it is computed with."""
    if formats is None:
        return True
    return formats[layer, column] == NATIVE


@cpu_function
def in_place_of(array: Any, buffer: Any, start: Any, itemsize: Any) -> Any:
    """Return a buffer with the values of one chunk, from element `start` on, as rows are read of it."""
    return _native(array[0]), address_of(buffer) - start * itemsize, array[2]


def _native(kind: Any) -> Any:
    """Return `NATIVE`, or None where kinds are None."""
    raise NotImplementedError("for compiled code alone")


@overload(_native)  # type: ignore[untyped-decorator]
def _native_by_type(kind: Any) -> Callable[..., Any]:
    def absent(kind: Any) -> Any:
        return None

    def native(kind: Any) -> Any:
        return NATIVE

    return absent if isinstance(kind, types.NoneType) else native


@cpu_function
def load(array: Any, at: Any, width: Any, itemsize: Any, buffer: Any) -> Any:
    """Return a pointer to `width` values of an array from element `at` on; `buffer` may hold them."""
    return _load(array[0], array[1], array[2], at, width, itemsize, buffer)


@cpu_function
def _load(kind: Any, address: Any, other: Any, at: Any, width: Any, itemsize: Any, buffer: Any) -> Any:
    if kind is None:
        return from_element(pointer_to(address, buffer[0]), at)
    if kind == NATIVE:
        return from_element(pointer_to(address, buffer[0]), at)
    if kind == SPLIT:
        high, rest = pointer_to(address + at * 2, _HALF), pointer_to(other + at * 2, _REST)
        for i in range(width):
            buffer[i] = storage.joined(low(high[i]), np.int32(rest[i]))
    elif kind == MASTERED:
        halves, master = pointer_to(address + at * 2, _HALF), pointer_to(other + at * 4, _SINGLE)
        for i in range(width):
            buffer[i] = storage.mastered(master[i], low(halves[i]))
    elif kind in (BFLOAT16, SECOND_16):
        halves = pointer_to(address + at * 2, _HALF)
        for i in range(width):
            buffer[i] = storage.from_bfloat16(low(halves[i]))
    elif kind == FLOAT16:
        halves = pointer_to(address + at * 2, _HALF)
        for i in range(width):
            buffer[i] = storage.from_float16(low(halves[i]))
    elif kind == FLOAT32:
        single = pointer_to(address + at * 4, _SINGLE)
        for i in range(width):
            buffer[i] = single[i]
    elif kind == FLOAT64:
        double = pointer_to(address + at * 8, _DOUBLE)
        for i in range(width):
            buffer[i] = double[i]
    elif kind == FIRST_8:
        first, scale = pointer_to(address + at, _SIGNED_BYTE), pointer_to(other, _SINGLE)[at // LANES]
        for i in range(width):
            buffer[i] = storage.first_from_code(np.float32(first[i]), scale)
    elif kind == SECOND_8:
        second, scale = pointer_to(address + at, _BYTE), pointer_to(other, _SINGLE)[at // LANES]
        for i in range(width):
            buffer[i] = storage.second_from_code(np.float32(second[i]), scale)
    return buffer


@cpu_function
def key_of(formats: Any, keys: Any, counts: Any, layer: Any, start: Any, use: Any) -> Any:
    """Return what the random bits of a chunk are made of, for one use in the step that is being taken."""
    if formats is None:
        return 0
    step, chunk = np.int64(counts[layer]), start // CHUNK
    return storage.chunk_key(keys[layer, SEED], keys[layer, PARAMETER], step, chunk, use)


@cpu_function
def draw(array: Any, at: Any, width: Any, key: Any, bits: Any) -> None:
    """Write 32 random bits for each element of a row into `bits`, if `array` is rounded by such."""
    _draw(array[0], at, width, key, bits)


@cpu_function
def _draw(kind: Any, at: Any, width: Any, key: Any, bits: Any) -> None:
    if kind is None:
        return
    if kind in (BFLOAT16, FLOAT16, SECOND_16, FIRST_8, SECOND_8):
        for i in range(width):
            bits[i] = storage.random_bits(key, at % CHUNK + i)


@cpu_function
def store(array: Any, at: Any, width: Any, values: Any, upper: Any, bits: Any) -> None:
    """Write back a row that `load` returned; `values` are then as they are stored, a split master as it was.

    Parameters
    ----------
    array, at, width
        As for `load`.
    values : pointer
        The row.
    upper : bool
        Which half of an element's random bits is for this array.
    bits : pointer
        What `draw` wrote.
    """
    _store(array[0], array[1], array[2], at, width, values, upper, bits)


@cpu_function
def _store(
    kind: Any, address: Any, other: Any, at: Any, width: Any, values: Any, upper: Any, bits: Any
) -> None:
    if kind is None:
        return
    if kind == NATIVE:
        return
    if kind == SPLIT:
        high, rest = pointer_to(address + at * 2, _HALF), pointer_to(other + at * 2, _REST)
        for i in range(width):
            pattern = bits_of(np.float32(values[i]))
            nearest = storage.split_high(pattern)
            high[i] = nearest
            rest[i] = storage.split_rest(pattern, nearest)
    elif kind == MASTERED:
        halves, master = pointer_to(address + at * 2, _HALF), pointer_to(other + at * 4, _SINGLE)
        for i in range(width):
            master[i] = values[i]
            halves[i] = storage.to_float16(np.float32(values[i]))
    elif kind == FLOAT16:
        halves = pointer_to(address + at * 2, _HALF)
        for i in range(width):
            halves[i] = storage.random_float16(np.float32(values[i]), storage.half_of(bits[i], upper))
    elif kind == BFLOAT16:
        halves = pointer_to(address + at * 2, _HALF)
        for i in range(width):
            found = storage.random_bfloat16(np.float32(values[i]), storage.half_of(bits[i], upper))
            halves[i] = found
            values[i] = storage.from_bfloat16(found)
    elif kind == SECOND_16:
        halves = pointer_to(address + at * 2, _HALF)
        for i in range(width):
            found = storage.stored_second(np.float32(values[i]), storage.half_of(bits[i], upper))
            halves[i] = found
            values[i] = storage.from_bfloat16(found)
    elif kind == FIRST_8:
        first, scale = pointer_to(address + at, _SIGNED_BYTE), _scale(values, width)
        pointer_to(other, _SINGLE)[at // LANES] = scale
        inverse = np.float32(1) / scale
        for i in range(width):
            half = storage.half_of(bits[i], upper)
            code = storage.code_of_first(np.float32(values[i]), scale, inverse, half)
            first[i] = np.int32(code)
            values[i] = storage.first_from_code(code, scale)
    elif kind == SECOND_8:
        second, scale = pointer_to(address + at, _BYTE), _scale(values, width)
        pointer_to(other, _SINGLE)[at // LANES] = scale
        inverse = np.float32(1) / scale
        for i in range(width):
            half = storage.half_of(bits[i], upper)
            code = storage.code_of_second(np.float32(values[i]), scale, inverse, half)
            second[i] = np.int32(code)
            values[i] = storage.second_from_code(code, scale)


@cpu_function
def _scale(values: Any, width: Any) -> Any:
    """Return the scale of a row; patterns without signs are in the order of magnitude."""
    largest = low(0)
    for i in range(width):
        largest = max(largest, low(bits_of(np.float32(values[i])) & 0x7FFF_FFFF))
    return storage.row_scale(float_of(largest))


# -- prefetch ------------------------------------------------------------------------------------------------


@cpu_function
def fetch_ahead(array: Any, at: Any, itemsize: Any, ahead: Any) -> None:
    """Prefetch a row of an array, `ahead` bytes after element `at`; none where it is 0."""
    if ahead > 0:
        _fetch(array[0], array[1], array[2], at, itemsize, ahead)


@cpu_function
def _fetch(kind: Any, address: Any, other: Any, at: Any, itemsize: Any, ahead: Any) -> None:
    if kind is None:
        _fetch_lines(address + at * itemsize + ahead, LANES * itemsize)
        return
    size = itemsize
    if kind == FLOAT32:
        size = 4
    elif kind == FLOAT64:
        size = 8
    elif kind in (FIRST_8, SECOND_8):
        size = 1
    elif kind != NATIVE:
        size = 2
    _fetch_lines(address + at * size + ahead, LANES * size)
    if kind == SPLIT:
        _fetch_lines(other + at * 2 + ahead, LANES * 2)
    elif kind == MASTERED:
        _fetch_lines(other + at * 4 + ahead, LANES * 4)


@cpu_function
def _fetch_lines(start: Any, length: Any) -> None:
    line = pointer_to(start, _BYTE)
    for k in range(0, length, LINE):
        prefetch(line, k)
