"""HostReader: where parameters and gradients that are NumPy arrays lie, looked up in every step."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numba_lamb.foreign import kind_of, way_to_array
from numba_lamb.kernels.cpu.object_reader import NOWHERE
from numba_lamb.layout import Layer, arithmetic_of
from numba_lamb.memory.array_reader import READABLE, WRITABLE, ArrayReader
from numba_lamb.memory.arrays import (
    FLOATS,
    address_of,
    check_host,
    check_shape,
    is_array,
    is_float,
    one_of,
    plain,
)

Int64 = NDArray[np.int64]


class _Given(NamedTuple):
    """What gradients are taken to be: their dtypes, what reads them, and which are not what is computed with."""

    dtypes: list[np.dtype[Any]]
    reader: ArrayReader
    others: Mapping[int, np.dtype[Any]]


class HostReader:
    """Reads the arrays of some layers.

    Parameters
    ----------
    layers : sequence of Layer
        The layers in the order of parameters.
    arrays : sequence of ndarray
        Their parameters.
    """

    def __init__(self, layers: Sequence[Layer], arrays: Sequence[NDArray[Any]]) -> None:
        self._layers, self._arrays = layers, tuple(arrays)
        # The dtypes that NumPy's own arrays have, of which others may be copies.
        dtypes = [np.dtype(layer.dtype.type) for layer in layers]
        shapes = [layer.shape for layer in layers]
        self._weights = ArrayReader(shapes, dtypes, WRITABLE, [*map(type, arrays)])
        self._shapes = shapes
        # One object, so that an interrupt leaves the older or the newer.
        self._given = self._taken_for_usual(dtypes)

    def _taken_for_usual(self, dtypes: list[np.dtype[Any]]) -> "_Given":
        """Return what reads gradients of these dtypes."""
        others = {
            k: dtype
            for k, (dtype, layer) in enumerate(zip(dtypes, self._layers, strict=True))
            if dtype != arithmetic_of(layer.dtype)
        }
        return _Given(dtypes, ArrayReader(self._shapes, dtypes, READABLE), others)

    @property
    def dtypes(self) -> Mapping[int, np.dtype[Any]]:
        """The dtypes of gradients that are not what is computed with, by layer."""
        return self._given.others

    def weights(self) -> Int64 | None:
        """Return the parameters' addresses, or raise if one is no longer what it was but for its place."""
        read = self._weights.read(self._arrays)
        if read is None:
            return None
        found, unusual = read
        for k in unusual.tolist():
            found[k] = self._weight(self._layers[k], plain(self._arrays[k]))
        return found

    @staticmethod
    def _weight(layer: Layer, array: NDArray[Any]) -> int:
        what = f"parameter {layer.name!r}"
        if not array.flags.writeable:
            raise ValueError(f"{what} became read-only and cannot be updated in place")
        if array.dtype != layer.dtype or array.shape != layer.shape:
            raise ValueError(
                f"{what} must keep shape {layer.shape} and dtype {layer.dtype}, got {array.shape} and "
                f"{array.dtype}; make another optimizer for an array that was changed"
            )
        check_host(what, array)
        return address_of(array) or NOWHERE

    def keep_weights(self, found: Int64) -> None:
        """Keep the parameters' addresses that are in use."""
        self._weights.keep(found)

    def gradients(self, arrays: tuple[Any, ...], spans: tuple[Int64, Int64]) -> tuple[Int64, Int64] | None:
        """Return the gradients' addresses, 0 for None, and whose must be compared with `spans` more closely."""
        read = self._given.reader.read(arrays, spans)
        if read is None:
            return None
        found, unusual = read
        dtypes = list(self._given.dtypes)
        for k in unusual.tolist():
            found[k] = self.gradient(self._layers[k], arrays[k])
            dtypes[k] = np.dtype(plain(arrays[k]).dtype.type)
        if dtypes != self._given.dtypes:
            self._given = self._taken_for_usual(dtypes)
        return found, unusual

    def keep_gradients(self, found: Int64) -> None:
        """Keep the gradients' addresses that are in use."""
        self._given.reader.keep(found)

    @staticmethod
    def gradient(layer: Layer, array: object) -> int:
        """Return the address of the gradient of `layer`, else raise an error that names the parameter."""
        what = f"gradient of {layer.name!r}"
        if not isinstance(array, np.ndarray):
            place = ", like its parameter" if is_array(array) else ""
            raise TypeError(
                f"{what} must be a numpy.ndarray{place}, got {kind_of(array)}{way_to_array(array)}"
            )
        own = check_host(what, array)
        if not is_float(own.dtype):
            raise TypeError(
                f"{what} must be {one_of(FLOATS)} in native byte order, got {own.dtype!r}; "
                "gradient.astype(np.float32) can be used"
            )
        check_shape(what, layer, own.shape)
        return address_of(own) or NOWHERE

    def producers(self, arrays: Sequence[Any]) -> set[int]:
        """Return no stream: what is in the CPU's memory is ready."""
        return set()
