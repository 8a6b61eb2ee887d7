"""DeviceReader: where parameters and gradients on one GPU lie, looked up in every step."""

import sys
from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.array_reader import NO_SPANS
from numba_lamb.arrays import INTERFACE, Storage, check_form, device_storage
from numba_lamb.device import stream_address
from numba_lamb.kernels.object_reader import ABSENT, NOWHERE, UNUSUAL
from numba_lamb.layout import Layer
from numba_lamb.tensor_reader import Form, TensorReader, fields_of

Int64 = NDArray[np.int64]


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
        self._own, self._given = (_Tensors(layers, index, kinds) for kinds in ([*map(type, arrays)], None))
        # What arrays of other libraries said of themselves last, and where that was found to be.
        self._own_known: dict[int, tuple[Any, Storage]] = {}
        self._given_known: dict[int, tuple[Any, Storage]] = {}
        # Layers whose gradient names the stream that it is ready on.
        self._naming: set[int] = set()

    def weights(self) -> Int64:
        """Return the parameters' addresses, or raise if one is no longer what it was but for its place."""
        found = self._own.read(self._arrays, NO_SPANS)
        for k in np.flatnonzero(found == UNUSUAL).tolist():
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
        return found

    def gradients(self, arrays: tuple[Any, ...], spans: tuple[Int64, Int64]) -> tuple[Int64, Int64]:
        """Return the gradients' addresses, 0 for None, and whose must be compared with `spans` more closely."""
        found = self._given.read(arrays, spans)
        unusual = np.flatnonzero(found == UNUSUAL)
        self._naming = set()
        for k in unusual.tolist():
            found[k] = self._gradient(k, arrays[k])
        return found, unusual

    def _gradient(self, k: int, array: Any) -> int:
        layer = self._layers[k]
        what = f"gradient of {layer.name!r}"
        if isinstance(array, np.ndarray):
            raise TypeError(
                f"{what} must be an array on GPU {self._index}, like its parameter, not a numpy.ndarray"
            )
        storage = self._look_at(what, k, array, self._given_known)
        check_form(what, layer, storage.dtype, storage.shape, storage.library)
        if storage.stream is not None:
            self._naming.add(k)
        return storage.address or NOWHERE

    def _look_at(self, what: str, k: int, array: Any, known: dict[int, tuple[Any, Storage]]) -> Storage:
        """Return where an array is; asking the driver whose memory it is takes longer than all else."""
        try:
            interface = getattr(array, INTERFACE, None)
        except RuntimeError:
            interface = None  # said below, by name
        if interface is not None and known.get(k, (None,))[0] == interface:
            return known[k][1]
        storage = device_storage(what, array)
        if storage.device not in (None, self._index):
            raise ValueError(
                f"{what} must be on GPU {self._index}, like its parameter, not on GPU {storage.device}"
            )
        known[k] = interface, storage
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
        The layers, whose shapes and dtypes tensors must have.
    index : int
        The GPU, as PyTorch numbers it.
    kinds : sequence of type, optional
        The type that each must have; any ordinary tensor by default.
    """

    def __init__(self, layers: Sequence[Layer], index: int, kinds: Sequence[type] | None) -> None:
        self._layers, self._index, self._kinds = layers, index, kinds
        self._reader: TensorReader | None = None

    def read(self, arrays: tuple[Any, ...], spans: tuple[Int64, Int64]) -> Int64:
        """Return addresses, `ABSENT` for None, and `UNUSUAL` for what is no such tensor."""
        torch: Any = sys.modules.get("torch")
        if self._reader is None and torch is not None:
            self._reader = self._made(torch, arrays)
        if self._reader is None:
            return np.array([ABSENT if array is None else UNUSUAL for array in arrays], dtype=np.int64)
        return self._reader.read(arrays, spans)[0]

    def _made(self, torch: Any, arrays: Sequence[Any]) -> TensorReader | None:
        tensors = (array for array in arrays if isinstance(array, torch.Tensor))
        device = next((tensor.device for tensor in tensors if tensor.get_device() == self._index), None)
        if device is None:
            return None
        dtypes = {np.dtype(np.float32): torch.float32, np.dtype(np.float64): torch.float64}
        forms = [
            Form(layer.shape, _strides(layer.shape), dtypes[layer.dtype], device, kind)
            for layer, kind in zip(self._layers, self._kinds or repeat(None), strict=False)
        ]
        return TensorReader(torch, forms, fields_of(torch))


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a C-contiguous array."""
    strides = [1]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * length)
    return tuple(reversed(strides))[: len(shape)]
