"""The user's arrays: what is accepted, where they lie in memory, and which of them changed since last step."""

import weakref
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.layout import Layer

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def address_of(array: NDArray[Any]) -> int:
    """Return where the first element of `array` lies."""
    address: int = array.__array_interface__["data"][0]
    return address


def _kind(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _check_storage(what: str, array: object) -> NDArray[Any]:
    if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{what} must be a numpy.ndarray, not {_kind(array)}")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{what} must be C-contiguous, not strides {array.strides} for shape {array.shape}; "
            "numpy.ascontiguousarray makes a contiguous copy"
        )
    if not array.flags.aligned:
        raise ValueError(f"{what} must be aligned to its item size, but lies at {address_of(array):#x}")
    return array


def check_parameter(name: str, array: object) -> NDArray[Any]:
    """Return `array` if it can be updated in place, else raise an error that names the parameter."""
    array = _check_storage(f"parameter {name!r}", array)
    if array.dtype not in DTYPES:
        raise TypeError(
            f"parameter {name!r} must be float32 or float64 in native byte order, not {array.dtype!r}"
        )
    if not array.flags.writeable:
        raise ValueError(f"parameter {name!r} is read-only and cannot be updated in place; pass a copy of it")
    return array


def check_gradient(layer: Layer, array: object) -> NDArray[Any]:
    """Return `array` if it can be the gradient of `layer`, else raise an error that names the parameter."""
    if type(array) is np.ndarray and array.dtype is layer.dtype and array.shape == layer.shape:
        # The usual case in one look; whatever is unusual is told apart below.
        flags = array.flags
        if flags.c_contiguous and flags.aligned:
            return array
    array = _check_storage(f"gradient of {layer.name!r}", array)
    if array.dtype != layer.dtype:
        raise TypeError(
            f"gradient of {layer.name!r} must have the parameter's dtype {layer.dtype}, not {array.dtype}"
        )
    if array.shape != layer.shape:
        raise ValueError(
            f"gradient of {layer.name!r} must have the parameter's shape {layer.shape}, not {array.shape}"
        )
    return array


class MemoryMap:
    """The memory that parameters occupy; finds what overlaps it."""

    def __init__(self, names: Sequence[str], arrays: Sequence[NDArray[Any]]) -> None:
        spans = sorted(
            (address_of(array), address_of(array) + array.nbytes, name)
            for name, array in zip(names, arrays, strict=True)
            if array.size
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
    """

    def __init__(
        self, layers: Sequence[Layer], memory: MemoryMap, columns: Sequence[tuple[NDArray[np.int64], int]]
    ) -> None:
        self._layers = layers
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
        array = check_gradient(layer, gradient)
        address = address_of(array)
        owner = self._memory.owner(address, array.nbytes)
        if owner is not None:
            raise ValueError(f"gradient of {layer.name!r} shares memory with parameter {owner!r}")
        column, row = self._columns[k]
        column[row] = address
        self._seen[k] = weakref.ref(array)

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
        if isinstance(gradients, np.ndarray | str) or not isinstance(gradients, Iterable):
            raise TypeError(
                f"gradients must be a sequence of arrays or a mapping from parameter name to array, "
                f"not {_kind(gradients)}"
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
