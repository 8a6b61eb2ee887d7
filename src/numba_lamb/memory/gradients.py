"""Gradients: in which order they are given, and where they lie in this step."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from numba_lamb.foreign import kind_of, way_to_array
from numba_lamb.layout import Layer, arithmetic_of
from numba_lamb.memory.arrays import MemoryMap, is_array

Int64 = NDArray[np.int64]


class Reader(Protocol):
    """Says where the parameters of some layers lie and where their gradients do, looking at each of them.

    None says that they are where `keep_weights` and `keep_gradients` were told.
    """

    def weights(self) -> Int64 | None:
        """Return the parameters' addresses, or raise if one is no longer what it was but for its place."""

    def keep_weights(self, found: Int64) -> None:
        """Keep the parameters' addresses that are in use."""

    def gradients(self, arrays: tuple[Any, ...], spans: tuple[Int64, Int64]) -> tuple[Int64, Int64] | None:
        """Return the gradients' addresses, 0 for None, or raise by name if one does not fit its parameter.

        The second array has the indices of gradients that may meet one of the `spans` of memory, sorted starts
        and ends.
        """

    def keep_gradients(self, found: Int64) -> None:
        """Keep the gradients' addresses that are in use."""

    def producers(self, arrays: Sequence[Any]) -> set[int]:
        """Return the streams on which the gradients that were read last say that they are ready."""

    @property
    def dtypes(self) -> Mapping[int, np.dtype[Any]]:
        """The dtypes of gradients that were read last, of those that are not what is computed with, by layer.

        The same object as long as they stay.
        """


class Held(NamedTuple):
    """A step's gradients, whose addresses are written: to be kept alive until it is taken."""

    arrays: Sequence[Any]
    found: NDArray[np.int64]
    """Where each layer's gradient is, 0 for None: an array that stays as it is."""
    producers: Collection[int] = ()
    """The streams on which they say that they are ready."""
    dtypes: Mapping[int, np.dtype[Any]] = MappingProxyType({})
    """Those that are not what is computed with, by layer: the same object as long as they stay."""


class WeightTable:
    """Keeps the tables' addresses of parameters true, which may move between steps.

    Parameters
    ----------
    memory : MemoryMap
        Where the parameters lie now.
    columns : sequence of (int64 array, list of int)
        Columns of addresses and, for each, whose they are: indices of layers.
    reader : Reader
        Says where parameters lie.
    """

    def __init__(
        self,
        memory: MemoryMap,
        columns: Sequence[tuple[Int64, Sequence[int]]],
        reader: Reader,
    ) -> None:
        self._columns, self._reader = _as_arrays(columns), reader
        self.memory = memory
        """Where the parameters lay when that was asked last."""
        self.update()

    def update(self) -> None:
        """Look at the parameters; raise if one cannot be updated, or lies where another does."""
        found = self._reader.weights()
        if found is None:
            return
        self.memory = self.memory.moved(found.tolist())
        for column, indices in self._columns:
            column[:] = found[indices]
        self._reader.keep_weights(found)


class GradientTable:
    """Writes where parameters and gradients lie, looked up in every step: nothing about an array stays true.

    Parameters
    ----------
    layers : sequence of Layer
        The layers in the order gradients are given in.
    columns : sequence of (int64 array, list of int)
        Columns of addresses and, for each, whose they are: indices of layers.
    reader : Reader
        Says where gradients lie.
    weights : WeightTable
        The parameters.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        columns: Sequence[tuple[Int64, Sequence[int]]],
        reader: Reader,
        weights: WeightTable,
    ) -> None:
        self._layers, self._columns, self._reader, self._weights = (
            layers,
            _as_arrays(columns),
            reader,
            weights,
        )
        self._positions = {layer.name: k for k, layer in enumerate(layers)}
        self.found = np.zeros(len(layers), dtype=np.int64)
        """Where each layer's gradient was at the last update, 0 for None: an array that stays as it is."""

    def ordered(self, gradients: Any) -> tuple[Any, ...]:
        """Return `gradients` by layer; this runs what code of the user's own they have."""
        named = isinstance(gradients, Mapping)
        return self._by_name(gradients) if named else self._by_position(gradients)

    def update(self, gradients: tuple[Any, ...]) -> None:
        """Write the addresses of the parameters and of what `ordered` returned, which must be kept alive.

        It raises by name if a parameter cannot be updated, or a gradient does not fit its parameter or lies in
        one.
        """
        self._weights.update()
        memory = self._weights.memory
        read = self._reader.gradients(gradients, memory.spans)
        if read is None:
            return
        found, doubtful = read
        for k in doubtful.tolist():
            owner = memory.owner(int(found[k]), self._nbytes(k))
            if owner is not None:
                raise ValueError(
                    f"gradient of {self._layers[k].name!r} shares memory with parameter {owner!r}"
                )
        for column, indices in self._columns:
            column[:] = found[indices]
        # The reader's own is overwritten by the next look.
        self.found = found.copy()
        self._reader.keep_gradients(found)

    def _nbytes(self, k: int) -> int:
        """Return how many bytes a gradient has that was read."""
        layer = self._layers[k]
        return layer.size * self._reader.dtypes.get(k, arithmetic_of(layer.dtype)).itemsize

    def read(self, gradients: Any) -> Held:
        """Return `gradients` by layer, after writing where they and the parameters lie."""
        ordered = self.ordered(gradients)
        self.update(ordered)
        return Held(ordered, self.found, self._reader.producers(ordered), self._reader.dtypes)

    def given(self) -> list[bool]:
        """Return for each layer whether the last update had a gradient for it."""
        given: list[bool] = (self.found != 0).tolist()
        return given

    def _by_name(self, gradients: Mapping[str, Any]) -> tuple[Any, ...]:
        unknown = [name for name in gradients if name not in self._positions]
        if unknown:
            nested = way_to_array(gradients[unknown[0]]) if isinstance(gradients[unknown[0]], Mapping) else ""
            raise KeyError(
                f"no parameter is named {unknown[0]!r}; there are {_listed(self._positions)}{nested}"
            )
        missing = [name for name in self._positions if name not in gradients]
        if missing:
            raise KeyError(
                f"no gradient for parameter {missing[0]!r}; give None for a parameter that is not to be updated"
            )
        return tuple([gradients[layer.name] for layer in self._layers])

    def _by_position(self, gradients: Any) -> tuple[Any, ...]:
        if is_array(gradients) or isinstance(gradients, str) or not isinstance(gradients, Iterable):
            raise TypeError(
                f"gradients must be a sequence of arrays or a mapping from parameter name to array, "
                f"not {kind_of(gradients)}"
            )
        # A tuple of its own, which nobody can change while the step looks at it.
        ordered = tuple(gradients)
        if len(ordered) != len(self._layers):
            raise ValueError(f"gradients has {len(ordered)} entries for {len(self._layers)} parameters")
        return ordered


def _as_arrays(columns: Sequence[tuple[Int64, Sequence[int]]]) -> list[tuple[Int64, NDArray[np.intp]]]:
    return [(column, np.array(indices, dtype=np.intp)) for column, indices in columns]


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
