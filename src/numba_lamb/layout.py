"""FlatLayout: where each layer lies in the flat index space, and the chunks it is worked through in.

A layer is one parameter array. Layers that are computed with in one dtype share an index space, in which layer
``k`` owns ``[offset, offset + size)``; optimizer state is stored that way. A chunk is a piece of one layer of at
most `CHUNK` elements: the unit of work and of summation. Its length is a constant of the layout, never of
threads or device, because stored bits depend on it.

::

    layers     |--- fc1.weight: 10000 ---|  |- fc1.bias: 100 -|  |-- fc2.weight: 5000 --|
    offsets    0                            10048                10176
    chunks     [ 4096 ][ 4096 ][ 1808 ]     [ 100 ]              [ 4096 ][ 904 ]
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 4096
"""Elements in a full chunk."""
LANES = 128
"""Partial sums a chunk is added up in: element ``i`` of a chunk goes to lane ``i % LANES``."""
ALIGNMENT = 64
"""Offsets are multiples of this many elements, hence of 64 bytes for every dtype."""


BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
"""What stands for PyTorch's bfloat16, of which NumPy has none but that of ml_dtypes."""


def arithmetic_of(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that parameters of `dtype` are computed with: float64 for float64, else float32."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


@dataclass(frozen=True, slots=True)
class Layer:
    """One parameter array as the layout knows it; filters receive this record.

    Attributes
    ----------
    name : str
        The parameter's name.
    shape : tuple of int
        The parameter's shape.
    dtype : numpy.dtype
        The parameter's dtype.
    group : int
        Index of the parameter group it belongs to.
    offset : int
        First element in the flat index space of its arithmetic, a multiple of 64.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    group: int
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """The layers of one arithmetic cut into chunks, as the arrays that kernels read.

    Attributes
    ----------
    sizes : int64 array, shape (layers,)
        Elements in each layer.
    offsets : int64 array, shape (layers,)
        First element of each layer in the flat buffers.
    first_chunk : int64 array, shape (layers + 1,)
        Layer ``k`` owns chunks ``first_chunk[k]`` to ``first_chunk[k + 1] - 1``.
    chunks : int64 array, shape (chunks, 2)
        For each chunk its layer and its first element within the layer.
    extent : int
        Elements that a flat buffer of them holds.
    """

    sizes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    first_chunk: NDArray[np.int64]
    chunks: NDArray[np.int64]
    extent: int


class FlatLayout:
    """Names, shapes and flat positions of a model's layers.

    Parameters
    ----------
    layers : iterable of (name, shape, dtype) or (name, shape, dtype, group)
        The parameters in order; names are unique. Sizes may be 0 and may exceed 2**31.

    Examples
    --------
    >>> layout = FlatLayout([("fc.weight", (100, 50), "f4"), ("fc.bias", (50,), "f4")])
    >>> [(layer.name, layer.offset) for layer in layout.layers]
    [('fc.weight', 0), ('fc.bias', 5056)]
    >>> layout.table(np.dtype("f4")).chunks.tolist()
    [[0, 0], [0, 4096], [1, 0]]
    """

    def __init__(self, layers: Iterable[Sequence[Any]]) -> None:
        placed = []
        extents: dict[np.dtype[Any], int] = {}
        for name, shape, dtype, *group in layers:
            space = arithmetic_of(np.dtype(dtype))
            layer = Layer(
                name=name,
                shape=tuple(int(length) for length in shape),
                dtype=np.dtype(dtype),
                group=group[0] if group else 0,
                offset=extents.get(space, 0),
            )
            extents[space] = layer.offset + -(-layer.size // ALIGNMENT) * ALIGNMENT
            placed.append(layer)
        self.layers: tuple[Layer, ...] = tuple(placed)
        self._extents = extents
        self._tables: dict[np.dtype[Any], ChunkTable] = {}

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return f"<FlatLayout: {len(self)} layers, {self.size:,} elements>"

    @property
    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """The dtypes that layers are computed with, in order of first appearance."""
        return tuple(self._extents)

    @cached_property
    def size(self) -> int:
        """Number of elements over all layers, without the gaps that align them."""
        return sum(layer.size for layer in self.layers)

    def indices(self, dtype: np.dtype[Any]) -> list[int]:
        """Return the positions in `layers` of those that are computed with in `dtype`."""
        return [k for k, layer in enumerate(self.layers) if arithmetic_of(layer.dtype) == dtype]

    def table(self, dtype: np.dtype[Any]) -> ChunkTable:
        """Return the chunk table of the layers that are computed with in `dtype`."""
        if dtype not in self._tables:
            self._tables[dtype] = self._build_table(dtype)
        return self._tables[dtype]

    def _build_table(self, dtype: np.dtype[Any]) -> ChunkTable:
        layers = [self.layers[k] for k in self.indices(dtype)]
        sizes = np.array([layer.size for layer in layers], dtype=np.int64)
        counts = -(-sizes // CHUNK)
        first_chunk = np.zeros(len(layers) + 1, dtype=np.int64)
        np.cumsum(counts, out=first_chunk[1:])
        owner = np.repeat(np.arange(len(layers), dtype=np.int64), counts)
        start = (np.arange(first_chunk[-1], dtype=np.int64) - first_chunk[owner]) * CHUNK
        return ChunkTable(
            sizes=sizes,
            offsets=np.array([layer.offset for layer in layers], dtype=np.int64),
            first_chunk=first_chunk,
            chunks=np.ascontiguousarray(np.stack([owner, start], axis=1)),
            extent=self._extents[dtype],
        )
