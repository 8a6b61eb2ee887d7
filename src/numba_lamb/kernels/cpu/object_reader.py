"""Reads where NumPy arrays and PyTorch tensors have their values, many at once, from the objects' C structs.

An attribute of one array costs as much as a kernel spends on it. These loops read the fields behind the
attributes, so that every array can be looked at in every step. `ArrayReader` and `TensorReader` prove on known
objects that the fields are where they are read.
"""

from typing import Any

import numpy as np

from numba_lamb._compile import cpu_function, object_reader
from numba_lamb.kernels.cpu.intrinsics import pointer_to

ABSENT, UNUSUAL, NOWHERE = 0, -1, 16
"""What is said in place of an address: there is no object; it must be looked at closely; it has no values."""

ALIKE, MOVED, AMISS = range(3)
"""How what was found compares with what was kept."""

# A form, one row for each object: where its lengths begin in the table of lengths, how many there are, its
# dtype, the type of the object (0: one of those allowed), its bytes from the first value to the last, and those
# of a value.
FIRST_LENGTH, DIMENSIONS, DTYPE, TYPE, NBYTES, ITEMSIZE = range(6)
FORM_FIELDS = 6


@cpu_function
def word(address: Any) -> Any:
    """Return the 8 bytes at `address`."""
    return pointer_to(address, np.int64(0))[0]


@cpu_function
def half_word(address: Any) -> Any:
    """Return the 4 bytes at `address`."""
    return np.int64(pointer_to(address, np.int32(0))[0])


@cpu_function
def overlaps(start: Any, length: Any, starts: Any, ends: Any) -> Any:
    """Return whether `length` bytes from `start` meet one of some spans, which are sorted and apart."""
    low, high = 0, starts.shape[0]
    while low < high:
        middle = (low + high) // 2
        if starts[middle] < start + length:
            low = middle + 1
        else:
            high = middle
    return low > 0 and ends[low - 1] > start


@cpu_function
def compared(unusual: Any, moved: Any) -> Any:
    """Return what so many unusual objects, and others that moved, come to."""
    if unusual > 0:
        return AMISS
    return MOVED if moved > 0 else ALIKE


@object_reader
def read_arrays(
    forms: Any,
    lengths: Any,
    none: Any,
    kind: Any,
    flags: Any,
    kept: Any,
    found: Any,
    starts: Any,
    ends: Any,
    items: Any,
) -> Any:
    """Write into `found` the address of each NumPy array's values; return how that compares with `kept`.

    That is `ALIKE`, `MOVED`, or, where one must be looked at closely, `AMISS`.

    Parameters
    ----------
    forms, lengths : int64 array
        What each must be, and the lengths of its axes.
    none, kind : int
        The address of None, and of the type of arrays where the form leaves it open.
    flags : int
        Those that an array must have.
    kept, found : int64 array
        What was found before, and what gets an address, `ABSENT` or `UNUSUAL`.
    starts, ends : int64 array
        Spans of memory that no array may meet.
    items : int
        Where the addresses of Python objects begin, one for each form; their owner keeps them alive.
    """
    unusual = moved = 0
    for k in range(forms.shape[0]):
        at = word(items + 8 * k)
        if at == none:
            found[k] = ABSENT
            moved += kept[k] != ABSENT
            continue
        form = forms[k]
        expected = form[TYPE] if form[TYPE] != 0 else kind
        # The fields of PyArrayObject: type, data, number of axes, their lengths, dtype, flags.
        fits = word(at + 8) == expected and half_word(at + 24) == form[DIMENSIONS]
        fits = fits and word(at + 56) == form[DTYPE] and half_word(at + 64) & flags == flags
        if fits:
            axes = word(at + 32)
            for axis in range(form[DIMENSIONS]):
                fits = fits and word(axes + 8 * axis) == lengths[form[FIRST_LENGTH] + axis]
        data = word(at + 16) if fits else np.int64(0)
        if fits and form[NBYTES] == 0:
            data = NOWHERE
        elif fits and overlaps(data, form[NBYTES], starts, ends):
            fits = False
        found[k] = data if fits else UNUSUAL
        unusual += not fits
        moved += found[k] != kept[k]
    return compared(unusual, moved)


# Where the fields of PyTorch's structs are, in bytes: TensorImpl in the Python object; in TensorImpl its storage,
# the number of axes (lengths and strides follow), the offset into the storage, dtype and device, the dispatch
# keys; in StorageImpl the address, the bytes, and the flags that say whether reading the address does more.
IMPL, STORAGE, AXES, OFFSET, DTYPE_AND_DEVICE, KEYS, DATA, STORAGE_NBYTES, CHECKS = range(9)
TENSOR_FIELDS = 9
INLINE_AXES = 5
"""Up to so many lengths and strides lie in TensorImpl itself."""
DTYPE_MASK = 0xFFFFFFFFFF
"""2 bytes of dtype, 2 of device and 1 that says whether there is one."""
CHECKS_MASK = 0xFF000000


@cpu_function
def has_strides(axes: Any, count: Any, lengths: Any) -> Any:
    """Return whether a tensor has these lengths and strides, of which those of length 1 may be any."""
    if word(axes) != count:
        return False
    own = axes + 8
    strides = own + 8 * INLINE_AXES
    if count > INLINE_AXES:
        own = word(own)
        strides = own + 8 * count
    for axis in range(count):
        length = word(own + 8 * axis)
        if length != lengths[axis]:
            return False
        if length != 1 and word(strides + 8 * axis) != lengths[count + axis]:
            return False
    return True


@object_reader
def read_tensors(
    forms: Any,
    lengths: Any,
    none: Any,
    kinds: Any,
    keys: Any,
    fields: Any,
    kept: Any,
    found: Any,
    starts: Any,
    ends: Any,
    items: Any,
) -> Any:
    """Do for PyTorch tensors what `read_arrays` does for arrays.

    Lengths are followed by strides. `kinds` are two types, `keys` the dispatch keys of ordinary tensors, and
    `fields` says where a struct's fields are.
    """
    unusual = moved = 0
    for k in range(forms.shape[0]):
        at = word(items + 8 * k)
        if at == none:
            found[k] = ABSENT
            moved += kept[k] != ABSENT
            continue
        found[k] = UNUSUAL
        unusual += 1
        form = forms[k]
        kind = word(at + 8)
        if kind != form[TYPE] and (form[TYPE] != 0 or (kind != kinds[0] and kind != kinds[1])):
            continue
        tensor = word(at + fields[IMPL])
        if tensor == 0 or word(tensor + fields[KEYS]) != keys:
            continue
        if word(tensor + fields[DTYPE_AND_DEVICE]) & DTYPE_MASK != form[DTYPE]:
            continue
        if not has_strides(tensor + fields[AXES], form[DIMENSIONS], lengths[form[FIRST_LENGTH] :]):
            continue
        if form[NBYTES] == 0:
            found[k] = NOWHERE
            unusual -= 1
            moved += kept[k] != NOWHERE
            continue
        storage = word(tensor + fields[STORAGE])
        data = word(storage + fields[DATA])
        offset = word(tensor + fields[OFFSET]) * form[ITEMSIZE]
        if data == 0 or word(storage + fields[CHECKS]) & CHECKS_MASK != 0:
            continue
        # A storage can be cut under its tensors.
        if (
            offset + form[NBYTES] > word(storage + fields[STORAGE_NBYTES])
            or (data + offset) % form[ITEMSIZE] != 0
        ):
            continue
        if not overlaps(data + offset, form[NBYTES], starts, ends):
            found[k] = data + offset
            unusual -= 1
            moved += found[k] != kept[k]
    return compared(unusual, moved)
