"""The user's arrays: what is accepted, where they lie in memory, and which of them changed since last step."""

import weakref
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from numba_lamb import device as cuda_device
from numba_lamb.layout import Layer

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
_INTERFACE = "__cuda_array_interface__"
_NOWHERE = 16
"""The address of a gradient without values, which may have none: 0 would say that there is no gradient."""


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
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int | None = None
    library: str | None = None
    stream: int | None = None
    on_gpu: bool = False

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def address_of(array: NDArray[Any]) -> int:
    """Return where the first element of a NumPy `array` lies."""
    address: int = array.__array_interface__["data"][0]
    return address


def is_array(value: object) -> bool:
    """Return whether `value` is one array rather than a collection of them."""
    return isinstance(value, np.ndarray) or hasattr(type(value), _INTERFACE)


def kind_of(value: object) -> str:
    """Return the name of a value's type, for messages."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def check_parameter(name: str, array: object) -> Storage:
    """Return where `array` lies if it can be updated in place, else raise an error that names the parameter."""
    what = f"parameter {name!r}"
    if isinstance(array, np.ndarray):
        _check_host(what, array)
        if array.dtype not in DTYPES:
            raise TypeError(f"{what} must be float32 or float64 in native byte order, not {array.dtype!r}")
        if not array.flags.writeable:
            raise ValueError(f"{what} is read-only and cannot be updated in place; pass a copy of it")
        return Storage(address_of(array), array.shape, array.dtype)
    if type(array).__module__.startswith(("jax", "jaxlib")):
        raise TypeError(f"{what} is a JAX array, which is immutable and cannot be updated in place")
    storage, read_only = _device_storage(what, array)
    if storage.dtype not in DTYPES:
        raise TypeError(f"{what} must be float32 or float64, not {storage.dtype!r}")
    if read_only:
        raise ValueError(f"{what} is read-only and cannot be updated in place")
    return storage


def on_device(name: str, value: object) -> Storage | None:
    """Return where a rate lies that is a single value in a GPU's memory, None for one that is elsewhere."""
    if isinstance(value, np.ndarray) or getattr(value, "ndim", None) != 0:
        return None
    try:
        if getattr(value, _INTERFACE, None) is None:
            return None
    except RuntimeError:
        pass  # said below, by name
    storage, _ = _device_storage(name, value)
    if storage.dtype not in DTYPES:
        raise TypeError(f"{name} in device memory must be float32 or float64, not {storage.dtype}")
    return storage


def _check_host(what: str, array: Any) -> None:
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{what} must be a numpy.ndarray, not {kind_of(array)}")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{what} must be C-contiguous, not strides {array.strides} for shape {array.shape}; "
            "numpy.ascontiguousarray makes a contiguous copy"
        )
    if not array.flags.aligned:
        raise ValueError(f"{what} must be aligned to its item size, but lies at {address_of(array):#x}")


def _device_storage(what: str, array: object) -> tuple[Storage, bool]:
    """Return where an array on a GPU lies, and whether it is read-only."""
    try:
        interface: Mapping[str, Any] | None = getattr(array, _INTERFACE, None)
    except RuntimeError as error:
        # PyTorch says so of a tensor that requires grad, and how to get at its values.
        raise TypeError(f"{what} does not give its memory away: {error}") from error
    if interface is None:
        raise TypeError(f"{what} must be a numpy.ndarray or have {_INTERFACE}, not {kind_of(array)}")
    if interface.get("mask") is not None:
        raise TypeError(f"{what} must not be masked")
    dtype = np.dtype(interface["typestr"])
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
    index = None if empty else cuda_device.device_of(address)
    if index is None and not empty:
        raise ValueError(f"{what} has {_INTERFACE}, but its memory belongs to no GPU")
    module = type(array).__module__.split(".")[0]
    library = module if module in ("torch", "cupy") else None
    stream = interface.get("stream")
    # The protocol numbers the default streams 1 (legacy) and 2 (per thread); the driver takes 0 and 2.
    ready = None if stream is None else cuda_device.LEGACY_STREAM if stream == 1 else int(stream)
    return Storage(address, shape, dtype, index, library, ready, on_gpu=True), bool(read_only)


def _is_contiguous(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    expected = itemsize
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


class GradientReader(Protocol):
    """Says where a gradient lies, if it can be one."""

    def address(self, layer: Layer, array: object) -> int:
        """Return the address of the gradient of `layer`, else raise an error that names the parameter."""


class HostGradients:
    """Reads gradients that are NumPy arrays."""

    def address(self, layer: Layer, array: object) -> int:
        """Return the address of the gradient of `layer`, else raise an error that names the parameter."""
        if type(array) is np.ndarray and array.dtype is layer.dtype and array.shape == layer.shape:
            # The usual case in one look; whatever is unusual is told apart below.
            flags = array.flags
            if flags.c_contiguous and flags.aligned:
                return address_of(array)
        what = f"gradient of {layer.name!r}"
        if not isinstance(array, np.ndarray):
            place = ", like its parameter" if is_array(array) else ""
            raise TypeError(f"{what} must be a numpy.ndarray{place}, not {kind_of(array)}")
        _check_host(what, array)
        _check_form(what, layer, array.dtype, array.shape)
        return address_of(array)


class DeviceGradients:
    """Reads gradients that are arrays on one GPU.

    Parameters
    ----------
    index : int
        The GPU of the parameters.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self.producers: set[int] = set()
        """Streams on which gradients said to be ready since this was last emptied."""

    def address(self, layer: Layer, array: object) -> int:
        """Return the address of the gradient of `layer`, else raise an error that names the parameter."""
        what = f"gradient of {layer.name!r}"
        if isinstance(array, np.ndarray):
            raise TypeError(
                f"{what} must be an array on GPU {self._index}, like its parameter, not a numpy.ndarray"
            )
        storage, _ = _device_storage(what, array)
        _check_form(what, layer, storage.dtype, storage.shape)
        if storage.device not in (None, self._index):
            raise ValueError(
                f"{what} must be on GPU {self._index}, like its parameter, not on GPU {storage.device}"
            )
        if storage.stream is not None:
            self.producers.add(storage.stream)
        return storage.address or _NOWHERE


def _check_form(what: str, layer: Layer, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if dtype != layer.dtype:
        raise TypeError(f"{what} must have the parameter's dtype {layer.dtype}, not {dtype}")
    if shape != layer.shape:
        raise ValueError(f"{what} must have the parameter's shape {layer.shape}, not {shape}")


class MemoryMap:
    """The memory that parameters occupy; finds what overlaps it."""

    def __init__(self, names: Sequence[str], storages: Sequence[Storage]) -> None:
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

    def owner(self, start: int, length: int) -> str | None:
        """Return the name of a parameter that lies within `length` bytes from `start`, or None."""
        # Spans do not overlap, so the last one that begins before the end is the only candidate.
        position = bisect_right(self._starts, start + length - 1) - 1
        if length and position >= 0 and self._spans[position][1] > start:
            return self._spans[position][2]
        return None


class GradientTable:
    """Keeps one address per gradient and checks only arrays that are new since the last step.

    Parameters
    ----------
    layers : sequence of Layer
        The layers in the order gradients are given in.
    memory : MemoryMap
        The parameters' memory.
    columns : sequence of (int64 array, row)
        For each layer the column of addresses, and its row in it, that its gradient's address goes to.
    reader : GradientReader
        Tells whether an array can be a gradient, and where it lies.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        memory: MemoryMap,
        columns: Sequence[tuple[NDArray[np.int64], int]],
        reader: GradientReader,
    ) -> None:
        self._layers = layers
        self._nbytes = [layer.size * layer.dtype.itemsize for layer in layers]
        self._reader = reader
        self._memory = memory
        self._columns = columns
        self._seen: list[Any] = [_nothing] * len(layers)
        self._positions = {layer.name: k for k, layer in enumerate(layers)}
        self.complete = False
        """Whether the last update had a gradient for every layer."""

    def update(self, gradients: Any) -> Sequence[Any]:
        """Write the addresses of `gradients`, 0 for None, and return what must be held while they are used."""
        named = isinstance(gradients, Mapping)
        ordered = self._by_name(gradients) if named else self._by_position(gradients)
        seen = self._seen
        complete = True
        for k, gradient in enumerate(ordered):
            if gradient is None:
                complete = False
                seen[k] = _nothing
                column, row = self._columns[k]
                column[row] = 0
            elif seen[k]() is not gradient:
                self._adopt(k, gradient)
        self.complete = complete
        return ordered

    def given(self) -> list[bool]:
        """Return for each layer whether the last update had a gradient for it."""
        return [bool(column[row]) for column, row in self._columns]

    def _adopt(self, k: int, gradient: object) -> None:
        layer = self._layers[k]
        address = self._reader.address(layer, gradient)
        owner = self._memory.owner(address, self._nbytes[k])
        if owner is not None:
            raise ValueError(f"gradient of {layer.name!r} shares memory with parameter {owner!r}")
        column, row = self._columns[k]
        column[row] = address
        try:
            self._seen[k] = weakref.ref(gradient)
        except TypeError:
            # What cannot be watched is looked at anew each step.
            self._seen[k] = _nothing

    def _by_name(self, gradients: Mapping[str, Any]) -> list[Any]:
        unknown = [name for name in gradients if name not in self._positions]
        if unknown:
            raise KeyError(f"no parameter is named {unknown[0]!r}; there are {_listed(self._positions)}")
        missing = [name for name in self._positions if name not in gradients]
        if missing:
            raise KeyError(
                f"no gradient for parameter {missing[0]!r}; give None for a parameter that is not to be updated"
            )
        return [gradients[layer.name] for layer in self._layers]

    def _by_position(self, gradients: Any) -> Sequence[Any]:
        if is_array(gradients) or isinstance(gradients, str) or not isinstance(gradients, Iterable):
            raise TypeError(
                f"gradients must be a sequence of arrays or a mapping from parameter name to array, "
                f"not {kind_of(gradients)}"
            )
        ordered = gradients if isinstance(gradients, list | tuple) else list(gradients)
        if len(ordered) != len(self._layers):
            raise ValueError(f"gradients has {len(ordered)} entries for {len(self._layers)} parameters")
        return ordered


def _nothing() -> None:
    """Stand in for a weak reference whose array is gone."""


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def aligned_zeros(count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return `count` zeros that begin at a multiple of 64 bytes."""
    raw = np.zeros(count * dtype.itemsize + 64, dtype=np.uint8)
    skipped = -address_of(raw) % 64
    return raw[skipped : skipped + count * dtype.itemsize].view(dtype)
