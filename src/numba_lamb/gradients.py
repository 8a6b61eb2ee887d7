"""Gradients: what is accepted, where it lies, and which of them changed since the last step."""

import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from numba_lamb.arrays import INTERFACE, MemoryMap, address_of, check_host, device_storage, is_array, kind_of
from numba_lamb.device import stream_address
from numba_lamb.layout import Layer

_NOWHERE = 16
"""The address of a gradient without values, which may have none: 0 would say that there is no gradient."""


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
        check_host(what, array)
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
        self._tensor_dtypes: dict[Any, Any] = {}
        # Layers whose gradient names the stream that it is ready on, which can be another each time it is asked.
        self._naming: set[str] = set()

    def address(self, layer: Layer, array: object) -> int:
        """Return the address of the gradient of `layer`, else raise an error that names the parameter."""
        torch: Any = sys.modules.get("torch")
        if torch is not None and type(array) is torch.Tensor and self._is_usual(torch, layer, array):
            self._naming.discard(layer.name)
            return int(array.data_ptr()) or _NOWHERE  # type: ignore[attr-defined]
        what = f"gradient of {layer.name!r}"
        if isinstance(array, np.ndarray):
            raise TypeError(
                f"{what} must be an array on GPU {self._index}, like its parameter, not a numpy.ndarray"
            )
        storage, _ = device_storage(what, array)
        _check_form(what, layer, storage.dtype, storage.shape)
        if storage.device not in (None, self._index):
            raise ValueError(
                f"{what} must be on GPU {self._index}, like its parameter, not on GPU {storage.device}"
            )
        if storage.stream is None:
            self._naming.discard(layer.name)
        else:
            self._naming.add(layer.name)
        return storage.address or _NOWHERE

    def _is_usual(self, torch: Any, layer: Layer, array: Any) -> bool:
        """Return whether a tensor is what gradients usually are: its interface takes far longer to ask for."""
        if not self._tensor_dtypes:
            self._tensor_dtypes = {np.dtype("f4"): torch.float32, np.dtype("f8"): torch.float64}
        return bool(
            array.dtype is self._tensor_dtypes[layer.dtype]
            and array.layout is torch.strided
            and array.get_device() == self._index
            and array.shape == layer.shape
            and array.is_contiguous()
            and not array.is_neg()
            and array.data_ptr() % layer.dtype.itemsize == 0
        )

    def producers(self, layers: Sequence[Layer], gradients: Sequence[Any]) -> set[int]:
        """Return the streams on which these gradients say that they are ready."""
        if not self._naming:
            return set()
        named = (
            getattr(gradient, INTERFACE).get("stream")
            for layer, gradient in zip(layers, gradients, strict=True)
            if gradient is not None and layer.name in self._naming
        )
        return {stream_address(stream) for stream in named if stream is not None}


def _check_form(what: str, layer: Layer, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if dtype != layer.dtype:
        raise TypeError(f"{what} must have the parameter's dtype {layer.dtype}, not {dtype}")
    if shape != layer.shape:
        raise ValueError(f"{what} must have the parameter's shape {layer.shape}, not {shape}")


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
