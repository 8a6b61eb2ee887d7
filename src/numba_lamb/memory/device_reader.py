"""DeviceReader: where parameters and gradients on one GPU lie, looked up in every step."""

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from numba_lamb.kernels.cpu.object_reader import ABSENT, NOWHERE, UNUSUAL
from numba_lamb.layout import Layer, arithmetic_of
from numba_lamb.memory.array_reader import NO_SPANS
from numba_lamb.memory.arrays import (
    FLOATS,
    INTERFACE,
    Storage,
    check_shape,
    device_storage,
    is_float,
    one_of,
)
from numba_lamb.memory.device import stream_address
from numba_lamb.memory.tensor_reader import Form, TensorReader, fields_of

Int64 = NDArray[np.int64]


_Known: TypeAlias = dict[int, tuple[Callable[[], Any] | None, Storage]]


class _Given(NamedTuple):
    """What gradients are taken to be: their dtypes, what reads them, and which are not what is computed with."""

    dtypes: list[np.dtype[Any]]
    tensors: "_Tensors"
    others: Mapping[int, np.dtype[Any]]


class DeviceReader:
    """Reads the arrays of some layers, PyTorch's tensors many at once.

    Parameters
    ----------
    layers : sequence of Layer
        The layers in the order of parameters.
    arrays : sequence
        Their parameters.
    index : int
        The GPU.
    """

    def __init__(self, layers: Sequence[Layer], arrays: Sequence[Any], index: int) -> None:
        self._layers, self._arrays, self._index = layers, tuple(arrays), index
        dtypes = [layer.dtype for layer in layers]
        self._own = _Tensors(layers, dtypes, index, [*map(type, arrays)])
        # One object, so that an interrupt leaves the older or the newer.
        self._given = self._taken_for_usual(dtypes)
        # Arrays of other libraries that were looked at, and where they were.
        self._own_known: _Known = {}
        self._given_known: _Known = {}
        self._used = np.zeros(0, dtype=np.int64)
        # Layers whose gradient names the stream that it is ready on.
        self._naming: set[int] = set()

    def _taken_for_usual(self, dtypes: list[np.dtype[Any]]) -> _Given:
        """Return what reads gradients of these dtypes."""
        others = {
            k: dtype
            for k, (dtype, layer) in enumerate(zip(dtypes, self._layers, strict=True))
            if dtype != arithmetic_of(layer.dtype)
        }
        return _Given(dtypes, _Tensors(self._layers, dtypes, self._index, None), others)

    @property
    def dtypes(self) -> Mapping[int, np.dtype[Any]]:
        """The dtypes of gradients that are not what is computed with, by layer."""
        return self._given.others

    def weights(self) -> Int64 | None:
        """Return the parameters' addresses, or raise if one is no longer what it was but for its place."""
        read = self._own.read(self._arrays, NO_SPANS)
        if read is None:
            return None
        found, unusual = read
        for k in unusual.tolist():
            layer = self._layers[k]
            what = f"parameter {layer.name!r}"
            storage = self._look_at(what, k, self._arrays[k], self._own_known)
            if storage.read_only:
                raise ValueError(f"{what} became read-only and cannot be updated in place")
            if (storage.dtype, storage.shape) != (layer.dtype, layer.shape):
                raise ValueError(
                    f"{what} must keep shape {layer.shape} and dtype {layer.dtype}, got {storage.shape} and "
                    f"{storage.dtype}; make another optimizer for an array that was changed"
                )
            found[k] = storage.address or NOWHERE
        if np.array_equal(found, self._used):
            return None
        # An interrupt may come before the new ones are in use.
        self._used = np.zeros(0, dtype=np.int64)
        return found

    def keep_weights(self, found: Int64) -> None:
        """Keep the parameters' addresses that are in use."""
        self._used = found.copy()
        self._own.keep(found)

    def gradients(self, arrays: tuple[Any, ...], spans: tuple[Int64, Int64]) -> tuple[Int64, Int64] | None:
        """Return the gradients' addresses, 0 for None, and whose must be compared with `spans` more closely."""
        read = self._given.tensors.read(arrays, spans)
        if read is None:
            return None
        found, unusual = read
        dtypes = list(self._given.dtypes)
        self._naming = set()
        for k in unusual.tolist():
            storage = self._gradient(k, arrays[k])
            found[k], dtypes[k] = storage.address or NOWHERE, storage.dtype
        if dtypes != self._given.dtypes:
            self._given = self._taken_for_usual(dtypes)
        return found, unusual

    def keep_gradients(self, found: Int64) -> None:
        """Keep the gradients' addresses that are in use."""
        self._given.tensors.keep(found)

    def _gradient(self, k: int, array: Any) -> Storage:
        layer = self._layers[k]
        what = f"gradient of {layer.name!r}"
        if isinstance(array, np.ndarray):
            raise TypeError(
                f"{what} must be an array on GPU {self._index}, like its parameter, not a numpy.ndarray"
            )
        storage = self._look_at(what, k, array, self._given_known)
        if not is_float(storage.dtype):
            way = "to(torch.float32)" if storage.library == "torch" else "astype(np.float32)"
            raise TypeError(
                f"{what} must be {one_of(FLOATS)} in native byte order, got {storage.dtype!r}; gradient.{way} can "
                "be used"
            )
        check_shape(what, layer, storage.shape)
        if storage.stream is not None:
            self._naming.add(k)
        return storage

    def _look_at(self, what: str, k: int, array: Any, known: _Known) -> Storage:
        """Return where an array is, which takes some microseconds unless it is the one of the last step."""
        seen, storage = known.get(k, (None, None))
        if storage is not None and seen is not None and seen() is array:
            return storage
        storage = device_storage(what, array)
        if storage.device not in (None, self._index):
            raise ValueError(
                f"{what} must be on GPU {self._index}, like its parameter, not on GPU {storage.device}"
            )
        torch: Any = sys.modules.get("torch")
        # PyTorch's tensors change under the same object; others have no struct that could be read.
        watched = torch is None or not isinstance(array, torch.Tensor)
        known[k] = _reference(array) if watched else None, storage
        return storage

    def producers(self, arrays: Sequence[Any]) -> set[int]:
        """Return the streams on which the gradients that were read last say that they are ready."""
        named = (getattr(arrays[k], INTERFACE).get("stream") for k in self._naming)
        return {stream_address(stream) for stream in named if stream is not None}


class _Tensors:
    """Reads those arrays that are PyTorch's tensors on one GPU.

    Parameters
    ----------
    layers : sequence of Layer
        The layers, whose shapes tensors must have.
    dtypes : sequence of numpy.dtype
        The dtype that each must have.
    index : int
        The GPU, as PyTorch numbers it.
    kinds : sequence of type, optional
        The type that each must have; any ordinary tensor by default.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        dtypes: Sequence[np.dtype[Any]],
        index: int,
        kinds: Sequence[type] | None,
    ) -> None:
        self._layers, self._dtypes, self._index, self._kinds = layers, dtypes, index, kinds
        self._reader: TensorReader | None = None

    def keep(self, found: Int64) -> None:
        """Keep the addresses in use, with which `read` compares."""
        if self._reader is not None:
            self._reader.keep(found)

    def read(self, arrays: tuple[Any, ...], spans: tuple[Int64, Int64]) -> tuple[Int64, Int64] | None:
        """Return addresses, and the indices of what is no such tensor; None if all are where they were."""
        torch: Any = sys.modules.get("torch")
        if self._reader is None and torch is not None:
            self._reader = self._made(torch, arrays)
        if self._reader is not None:
            return self._reader.read(arrays, spans)
        found = np.array([ABSENT if array is None else UNUSUAL for array in arrays], dtype=np.int64)
        return found, np.flatnonzero(found)

    def _made(self, torch: Any, arrays: Sequence[Any]) -> TensorReader | None:
        tensors = (array for array in arrays if isinstance(array, torch.Tensor))
        device = next((tensor.device for tensor in tensors if tensor.get_device() == self._index), None)
        if device is None:
            return None
        forms = [
            Form(layer.shape, _strides(layer.shape), getattr(torch, dtype.name), device, kind)
            for layer, dtype, kind in zip(
                self._layers, self._dtypes, self._kinds or repeat(None), strict=False
            )
        ]
        return TensorReader(torch, forms, fields_of(torch))


def _reference(array: Any) -> Callable[[], Any] | None:
    """Return a weak reference to an array, None for what has none."""
    try:
        return weakref.ref(array)
    except TypeError:
        return None


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a C-contiguous array."""
    strides = [1]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * length)
    return tuple(reversed(strides))[: len(shape)]
