"""The user's arrays: what is accepted as a parameter or rate, and where it lies in memory."""

import importlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from numba_lamb.foreign import kind_of, refuse_foreign
from numba_lamb.layout import Layer
from numba_lamb.memory import device

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
"""What is computed with, and what rates in device memory may be."""
FLOATS = ("bfloat16", "float16", "float32", "float64")
"""What parameters and gradients may be; NumPy's bfloat16 is that of ml_dtypes."""
INTERFACE = "__cuda_array_interface__"


@dataclass(frozen=True, slots=True)
class Storage:
    """Where an array's values lie.

    Attributes
    ----------
    address : int
        Of the first value.
    shape : tuple of int
        Lengths of the axes; values are contiguous in C order.
    dtype : numpy.dtype
        Of the values.
    device : int or None
        Index of the GPU, None for the CPU's memory and for arrays without values.
    library : str or None
        ``"torch"`` or ``"cupy"`` for an array on a GPU that one of them owns.
    stream : int or None
        The stream on which an array on a GPU is ready, None if it names none.
    on_gpu, read_only : bool
        Whether it is an array on a GPU, and one that says that it must not be written.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int | None = None
    library: str | None = None
    stream: int | None = None
    on_gpu: bool = False
    read_only: bool = False

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def plain(array: NDArray[Any]) -> NDArray[Any]:
    """Return `array`, or of a subclass, whose attributes may say anything, the array that it is underneath."""
    return array if type(array) is np.ndarray else cast(NDArray[Any], np.ndarray.view(array, np.ndarray))


def address_of(array: NDArray[Any]) -> int:
    """Return where the first element of a NumPy `array` lies."""
    address: int = plain(array).__array_interface__["data"][0]
    return address


def is_array(value: object) -> bool:
    """Return whether `value` is one array rather than a collection of them."""
    return isinstance(value, np.ndarray) or hasattr(type(value), INTERFACE)


def check_parameter(name: str, array: object) -> Storage:
    """Return where `array` lies if it can be updated in place, else raise an error that names the parameter."""
    what = f"parameter {name!r}"
    if isinstance(array, np.ndarray):
        array = check_host(what, array)
        if not is_float(array.dtype):
            way = (
                "; array.astype(np.float32) is a copy that can be trained"
                if array.dtype.kind in "fiub"
                else ""
            )
            raise TypeError(f"{what} must be {one_of(FLOATS)} in native byte order, got {array.dtype!r}{way}")
        if not array.flags.writeable:
            raise ValueError(f"{what} is read-only and cannot be updated in place; pass a copy of it")
        return Storage(address_of(array), array.shape, array.dtype)
    refuse_foreign(what, array)
    storage = device_storage(what, array)
    if not is_float(storage.dtype):
        raise TypeError(f"{what} must be {one_of(FLOATS)} in native byte order, got {storage.dtype!r}")
    if storage.read_only:
        raise ValueError(f"{what} is read-only and cannot be updated in place")
    return storage


def on_device(name: str, value: object) -> Storage | None:
    """Return where a rate lies that is a single value in a GPU's memory, None for one that is elsewhere."""
    if isinstance(value, np.ndarray) or getattr(value, "ndim", 0) != 0:
        return None
    try:
        interface = getattr(value, INTERFACE, None)
        if interface is None or len(interface["shape"]):
            return None
    except RuntimeError:
        pass  # said below, by name
    storage = device_storage(name, value)
    if storage.dtype not in DTYPES:
        raise TypeError(f"{name} in device memory must be float32 or float64, not {storage.dtype}")
    return storage


def value_on_device(storage: Storage) -> float:
    """Return a single value in a GPU's memory, after waiting for all work on that GPU."""
    value = np.empty((), dtype=storage.dtype)
    gpu = device.open_device(storage.device or 0)
    with gpu.current():
        gpu.read(storage.address, value)
    return float(value)


def check_host(what: str, array: Any) -> NDArray[Any]:
    """Return a NumPy `array` as a plain one if kernels can walk it, else raise."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{what} must be a numpy.ndarray, not {kind_of(array)}")
    own = plain(array)
    if not own.flags.c_contiguous:
        raise ValueError(
            f"{what} must be C-contiguous, not strides {own.strides} for shape {own.shape}; "
            "numpy.ascontiguousarray makes a contiguous copy"
        )
    if not own.flags.aligned:
        raise ValueError(f"{what} must be aligned to its item size, but lies at {address_of(own):#x}")
    return own


def is_float(dtype: np.dtype[Any]) -> bool:
    """Return whether a parameter or gradient may have this dtype."""
    return dtype.name in FLOATS and dtype.isnative


def one_of(names: Sequence[str]) -> str:
    """Return names as what something must be."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def check_shape(what: str, layer: Layer, shape: tuple[int, ...]) -> None:
    """Raise unless a gradient has the shape of its parameter."""
    if shape != layer.shape:
        raise ValueError(f"{what} must have the parameter's shape {layer.shape}, got {shape}")


def device_storage(what: str, array: object) -> Storage:
    """Return where an array on a GPU lies."""
    try:
        interface: Mapping[str, Any] | None = getattr(array, INTERFACE, None)
    except RuntimeError as error:
        # PyTorch says so of a tensor that requires grad, and how to get at its values.
        raise TypeError(f"{what} has no accessible memory: {error}") from error
    if interface is None:
        raise TypeError(f"{what} must be a numpy.ndarray or have {INTERFACE}, not {kind_of(array)}")
    if interface.get("mask") is not None:
        raise TypeError(f"{what} must not be masked")
    dtype = _dtype_of(what, array, np.dtype(interface["typestr"]))
    shape = tuple(int(length) for length in interface["shape"])
    strides = interface.get("strides")
    address, read_only = interface["data"]
    empty = 0 in shape
    if strides is not None and not empty and not _is_contiguous(shape, strides, dtype.itemsize):
        raise ValueError(
            f"{what} must be C-contiguous, not strides {tuple(strides)} for shape {shape}; make a contiguous copy"
        )
    address = int(address or 0)
    if not address and not empty:
        raise TypeError(f"{what} has no memory of its own ({kind_of(array)})")
    if address % dtype.itemsize:
        raise ValueError(f"{what} must be aligned to its item size, but lies at {address:#x}")
    index = None if empty else device.device_of(address)
    if index is None and not empty:
        raise ValueError(f"{what} has {INTERFACE}, but its memory belongs to no GPU")
    module = type(array).__module__.split(".")[0]
    library = module if module in ("torch", "cupy") else None
    stream = interface.get("stream")
    ready = None if stream is None else device.stream_address(stream)
    return Storage(address, shape, dtype, index, library, ready, on_gpu=True, read_only=bool(read_only))


def _dtype_of(what: str, array: object, given: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of an array whose interface has none for bfloat16 but two bytes of whatever."""
    if given.str[1:] != "V2" or str(getattr(array, "dtype", "")).rpartition(".")[2] != "bfloat16":
        return given
    try:
        found: np.dtype[Any] = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        raise TypeError(f"{what} is of bfloat16, for which ml_dtypes must be installed") from None
    return found


def _is_contiguous(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    expected = itemsize
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def check_one_place(names: Sequence[str], storages: Sequence[Storage]) -> None:
    """Raise unless these parameters are all in the CPU's memory, or all in that of one GPU."""
    places = dict(zip(names, storages, strict=True))
    on_gpu = [name for name, storage in places.items() if storage.on_gpu]
    if on_gpu and len(on_gpu) < len(places):
        other = next(name for name, storage in places.items() if not storage.on_gpu)
        raise ValueError(
            f"parameters must be all on the CPU or all on one GPU, but {other!r} is a NumPy array and "
            f"{on_gpu[0]!r} is on a GPU"
        )
    # Of each GPU one parameter; those without values are on none.
    first = {places[name].device: name for name in reversed(on_gpu) if places[name].device is not None}
    if len(first) > 1:
        (one, name), (two, other) = sorted(first.items(), key=lambda entry: on_gpu.index(entry[1]))[:2]
        raise ValueError(
            f"parameters must be on one GPU, but {name!r} is on GPU {one} and {other!r} on GPU {two}"
        )


class MemoryMap:
    """The memory that parameters occupy; finds what overlaps it."""

    def __init__(self, names: Sequence[str], storages: Sequence[Storage]) -> None:
        check_one_place(names, storages)
        self._names, self._storages = names, storages
        spans = sorted(
            (storage.address, storage.address + storage.nbytes, name)
            for name, storage in zip(names, storages, strict=True)
            if storage.nbytes
        )
        for (_, end, name), (start, _, other) in pairwise(spans):
            if start < end:
                raise ValueError(f"parameters {name!r} and {other!r} share memory; each must have its own")
        self._starts = [start for start, _, _ in spans]
        self._spans = spans
        starts, ends = (np.array([span[side] for span in spans], dtype=np.int64) for side in (0, 1))
        self.spans = starts, ends
        """Sorted starts and ends of the memory that is occupied."""

    def moved(self, addresses: Sequence[int]) -> "MemoryMap":
        """Return the map of the same parameters at other addresses, or raise if they share memory there."""
        storages = [
            replace(storage, address=address)
            for storage, address in zip(self._storages, addresses, strict=True)
        ]
        return MemoryMap(self._names, storages)

    def owner(self, start: int, length: int) -> str | None:
        """Return the name of a parameter that lies within `length` bytes from `start`, or None."""
        # Spans do not overlap, so the last one that begins before the end is the only candidate.
        position = bisect_right(self._starts, start + length - 1) - 1
        if length and position >= 0 and self._spans[position][1] > start:
            return self._spans[position][2]
        return None


def aligned_zeros(count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return `count` zeros that begin at a multiple of 64 bytes."""
    raw = np.zeros(count * dtype.itemsize + 64, dtype=np.uint8)
    skipped = -address_of(raw) % 64
    return raw[skipped : skipped + count * dtype.itemsize].view(dtype)
