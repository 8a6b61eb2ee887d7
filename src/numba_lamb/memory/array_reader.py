"""ArrayReader: where many NumPy arrays have their values, and which of them are not as expected."""

import ctypes
import math
import sys
import sysconfig
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from numba import int64, typeof
from numpy.typing import NDArray

from numba_lamb.kernels.cpu.object_reader import (
    ABSENT,
    ALIKE,
    FIRST_LENGTH,
    FORM_FIELDS,
    MOVED,
    NOWHERE,
    UNUSUAL,
    read_arrays,
)
from numba_lamb.memory.arrays import address_of

READABLE = 0x1 | 0x100
"""NumPy's flags of an array that is C-contiguous and aligned."""
WRITABLE = READABLE | 0x400
Int64 = NDArray[np.int64]
NO_SPANS = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
"""No memory that an array may not meet."""
NOTHING = np.zeros(0, dtype=np.int64)
_NONE, _NDARRAY = id(None), id(np.ndarray)
_FLOAT32 = np.dtype(np.float32)


def items_of(objects: tuple[Any, ...]) -> int:
    """Return where a tuple has its items' addresses; for an interpreter of which `fields_are_known`."""
    return id(objects) + _first_item()


@cache
def _first_item() -> int:
    """Return how far into a tuple its items' addresses begin; LookupError if that is not as in CPython."""
    probe = object(), object(), object()
    for offset in range(16, 48, 8):
        words = (ctypes.c_int64 * len(probe)).from_address(id(probe) + offset)
        if list(words) == [id(item) for item in probe]:
            return offset
    raise LookupError("a tuple's items are not where they are read")


def bound(reader: Any, *first: Any) -> Callable[..., int]:
    """Return a compiled reader with its first arguments, which takes two spans and where the items are.

    It is called below Numba's choice among signatures, which takes longer than reading.
    """
    signature = (*map(typeof, first), *map(typeof, NO_SPANS), int64)
    return partial(reader.compile(signature), *first)


def forms_of(lengths: Sequence[Sequence[int]], columns: Sequence[Sequence[int]]) -> tuple[Int64, Int64]:
    """Return tables of forms and of lengths.

    Parameters
    ----------
    lengths : sequence of sequence of int
        For each object what stands in the table of lengths.
    columns : sequence of sequence of int
        The other columns of forms, from `DIMENSIONS` on, each with an entry for every object.
    """
    forms = np.zeros((len(lengths), FORM_FIELDS), dtype=np.int64)
    forms[1:, FIRST_LENGTH] = np.cumsum([len(each) for each in lengths[:-1]])
    for number, column in enumerate(columns, start=1):
        forms[:, number] = column
    return forms, np.array([length for each in lengths for length in each], dtype=np.int64)


class ArrayReader:
    """Reads arrays of known shapes and dtypes.

    Parameters
    ----------
    shapes : sequence of tuple of int
        The shape that each array must have.
    dtypes : sequence of numpy.dtype
        The dtype that each must have: one of NumPy's own, in native byte order.
    flags : int
        `READABLE` or `WRITABLE`.
    types : sequence of type, optional
        The type of each; by default `numpy.ndarray` for all.
    trusted : bool, optional
        Whether the structs can be read; by default what `fields_are_known` says.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[np.dtype[Any]],
        flags: int,
        types: Sequence[type] | None = None,
        trusted: bool | None = None,
    ) -> None:
        # Kept alive, because their addresses are compared.
        self._named = tuple(dtypes), tuple(types or ())
        itemsizes = [dtype.itemsize for dtype in dtypes]
        self._forms, self._lengths = forms_of(
            shapes,
            [
                [len(shape) for shape in shapes],
                [id(dtype) for dtype in dtypes],
                [id(kind) for kind in types] if types else [0] * len(shapes),
                [math.prod(shape) * size for shape, size in zip(shapes, itemsizes, strict=True)],
                itemsizes,
            ],
        )
        self._reads = fields_are_known() if trusted is None else trusted
        self._kept, self._found = (np.full(len(shapes), UNUSUAL, dtype=np.int64) for _ in range(2))
        table = self._forms, self._lengths, _NONE, _NDARRAY, flags, self._kept, self._found
        self._read = bound(read_arrays, *table) if self._reads else None

    def keep(self, found: Int64) -> None:
        """Keep the addresses in use, with which `read` compares."""
        self._kept[:] = found

    def read(
        self, arrays: tuple[Any, ...], spans: tuple[Int64, Int64] = NO_SPANS
    ) -> tuple[Int64, Int64] | None:
        """Return the address of each array's values, and the indices of those that must be looked at closely.

        None says that all are usual and where `keep` was told. After any other answer nothing is kept, because an
        interrupt may leave what is in use half written. The next call overwrites what is returned.

        Parameters
        ----------
        arrays : tuple
            One object for each shape. None has address 0, an array without values 16.
        spans : pair of int64 array
            Sorted starts and ends of memory; what meets it must be looked at closely.
        """
        if self._read is None:
            self._found[:] = [ABSENT if array is None else UNUSUAL for array in arrays]
        else:
            outcome = self._read(*spans, items_of(arrays))
            if outcome == ALIKE:
                return None
            self._kept.fill(UNUSUAL)
            if outcome == MOVED:
                return self._found, NOTHING
        return self._found, np.flatnonzero(self._found == UNUSUAL)


@cache
def fields_are_known() -> bool:
    """Return whether the structs of this interpreter's objects and this NumPy's arrays are those that are read."""
    if (
        sys.implementation.name != "cpython"
        or sysconfig.get_config_var("Py_GIL_DISABLED")
        or (sys.maxsize, sys.byteorder) != (2**63 - 1, "little")
    ):
        return False
    try:
        _first_item()
    except LookupError:
        return False
    arrays, shapes, allowed = zip(*_samples(), strict=True)
    for flags in (READABLE, WRITABLE):
        reader = ArrayReader(shapes, [_FLOAT32] * len(arrays), flags, trusted=True)
        expected = [
            (address_of(array) if array.size else NOWHERE) if flags & kind == flags else UNUSUAL
            for array, kind in zip(arrays, allowed, strict=True)
        ]
        found = reader.read(arrays)
        if found is None or found[0].tolist() != expected:
            return False
    return True


def _samples() -> list[tuple[NDArray[Any], tuple[int, ...], int]]:
    """Return arrays, the shape that each is taken for, and the flags that it has then; 0 if it does not fit."""
    fixed = np.zeros(3, dtype=np.float32)
    fixed.flags.writeable = False
    misaligned = np.zeros(13, dtype=np.uint8)[1:].view(np.float32)
    fitting = [np.zeros(shape, dtype=np.float32) for shape in ((), (3,), (2, 3, 4), (2,) * 9, (2, 0, 5))]
    return [
        *((array, array.shape, WRITABLE) for array in fitting),
        (fixed, (3,), READABLE),
        (misaligned, (3,), 0),
        (np.zeros((4, 3), dtype=np.float32).T, (3, 4), 0),
        (np.zeros(6, dtype=np.float32)[::2], (3,), 0),
        (np.zeros(3, dtype=np.float32), (4,), 0),
        (np.zeros((3, 1), dtype=np.float32), (3,), 0),
        *((np.zeros(3, dtype=dtype), (3,), 0) for dtype in (np.float64, np.int32, ">f4")),
        (np.zeros(3, dtype=np.float32).view(np.recarray), (3,), 0),
    ]
