"""Division: which chunks of which layers each rank has.

The flat index space of a model is cut into as many runs as there are ranks, between chunks: a layer may lie on
several ranks, and every rank has the same number of elements but for a chunk. Sums of chunks are what ranks tell
each other: added up in the order of the whole layer, they have the bits of one process.

::

    layers   |---------- fc1.weight: 10000 ----------|  |- fc1.bias: 100 -|  |- fc2.weight: 5000 -|
    chunks   [ 4096 ][ 4096 ][ 1808 ]                   [ 100 ]              [ 4096 ][ 904 ]
    ranks    0       0       1                          1                    1       1
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from numba_lamb.layout import CHUNK, ChunkTable

Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Division:
    """The layers of one arithmetic over ranks.

    A rank has one run of elements of a layer, or none. Ranks may have the same run, which then counts once.

    Attributes
    ----------
    starts, stops : int64 array, shape (ranks, layers)
        The run of each layer that a rank has; alike for none.
    near : bool array, shape (ranks, layers), or None
        Whose sums of a layer are taken here: others may have another tensor of its name. None for anybody's.
    """

    starts: Int64
    stops: Int64
    near: NDArray[np.bool_] | None = None

    @cached_property
    def _table(self) -> tuple[Int64, Int64]:
        parts, first = [np.zeros((0, 2), dtype=np.int64)], [0]
        for layer in range(self.starts.shape[1]):
            runs = np.unique(np.stack([self.starts[:, layer], self.stops[:, layer]], axis=1), axis=0)
            begins = np.concatenate([_begins(start, stop) for start, stop in runs.tolist()])
            parts.append(np.stack([np.full(len(begins), layer, dtype=np.int64), begins], axis=1))
            first.append(first[-1] + len(begins))
        return np.ascontiguousarray(np.concatenate(parts)), np.array(first, dtype=np.int64)

    @property
    def chunks(self) -> Int64:
        """For each chunk of all ranks its layer and its first element there, shape (chunks, 2)."""
        return self._table[0]

    @property
    def first_chunk(self) -> Int64:
        """Layer ``k`` owns chunks ``first_chunk[k]`` to ``first_chunk[k + 1] - 1``, shape (layers + 1,)."""
        return self._table[1]

    def runs(self, rank: int) -> list[tuple[int, int]]:
        """Return a rank's run of each layer."""
        return list(zip(self.starts[rank].tolist(), self.stops[rank].tolist(), strict=True))

    @cached_property
    def sources(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """For each chunk the rank whose sums are taken, and which of that rank's it is."""
        source, place = np.zeros((2, len(self.chunks)), dtype=np.intp)
        for number, own in reversed([*enumerate(self.own)]):
            near = slice(None) if self.near is None else self.near[number, self.chunks[own, 0]]
            source[own[near]] = number
            place[own[near]] = np.arange(len(own))[near]
        return source, place

    @property
    def overlaps(self) -> bool:
        """Whether several ranks have a chunk."""
        return sum(map(len, self.own)) > len(self.chunks)

    @cached_property
    def own(self) -> list[NDArray[np.intp]]:
        """For each rank the numbers of its chunks."""
        layer, begin = self.chunks[:, 0], self.chunks[:, 1]
        return [
            np.flatnonzero((begin >= starts[layer]) & (begin < stops[layer]))
            for starts, stops in zip(self.starts, self.stops, strict=True)
        ]


def _begins(start: int, stop: int) -> Int64:
    """Return where the chunks of a run begin: at its start, and at those of the whole layer."""
    if start == stop:
        return np.zeros(0, dtype=np.int64)
    return np.concatenate([[start], np.arange(start - start % CHUNK + CHUNK, stop, CHUNK)]).astype(np.int64)


def cut(table: ChunkTable, ranks: int, whole: Collection[int] = ()) -> Division:
    """Cut layers over ranks, between chunks and into equal numbers of elements as nearly as that goes.

    Parameters
    ----------
    table : ChunkTable
        The layers.
    ranks : int
        How many there are, >= 1.
    whole : collection of int
        Layers that are not cut.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_lamb.layout import FlatLayout
    >>> layers = [("fc1.weight", (10000,), "f4"), ("fc1.bias", (100,), "f4"), ("fc2.weight", (5000,), "f4")]
    >>> division = cut(FlatLayout(layers).table(np.dtype("f4")), 2)
    >>> division.stops - division.starts
    array([[8192,    0,    0],
           [1808,  100, 5000]])
    """
    layers, begins = table.chunks[:, 0], table.chunks[:, 1]
    counts = np.minimum(table.sizes[layers] - begins, CHUNK)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    borders = [0]
    for rank in range(1, ranks):
        border = int(np.searchsorted(ends, rank * total / ranks, side="left"))
        if border < len(ends) and ends[border] - rank * total / ranks <= counts[border] / 2:
            border += 1
        border = _outside(border, table.first_chunk, whole)
        borders.append(max(border, borders[-1]))
    borders.append(len(ends))
    return _divided(table, borders)


def _outside(border: int, first_chunk: Int64, whole: Collection[int]) -> int:
    """Return the border between chunks that is nearest and not inside of a layer that must stay whole."""
    layer = int(np.searchsorted(first_chunk, border, side="right")) - 1
    if layer not in whole or border >= first_chunk[-1]:
        return border
    start, stop = int(first_chunk[layer]), int(first_chunk[layer + 1])
    return start if border - start <= stop - border else stop


def _divided(table: ChunkTable, borders: Sequence[int]) -> Division:
    """Return the division in which each rank has the chunks between two borders."""
    starts = np.zeros((len(borders) - 1, len(table.sizes)), dtype=np.int64)
    stops = np.zeros_like(starts)
    for rank, (first, last) in enumerate(pairwise(borders)):
        starts[rank] = _elements_before(table, first)
        stops[rank] = _elements_before(table, last)
    empty = starts == stops
    starts[empty] = stops[empty] = 0
    return Division(starts, stops)


def _elements_before(table: ChunkTable, chunk: int) -> Int64:
    """Return how many elements of each layer come before a chunk."""
    before: Int64 = np.maximum(chunk - table.first_chunk[:-1], 0) * CHUNK
    return np.minimum(before, table.sizes)
