"""Traffic: a bucket's gradients and weights on their way between ranks, piece by piece.

Every rank's run of chunks is cut into as many pieces. The pieces of one number travel together, so that one may be
computed with while the next is under way. A buffer holds all ranks' pieces of a number, one after the other.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numba_lamb.comm import Comm
from numba_lamb.comm.interface import Wait
from numba_lamb.engine.bucket import Bucket
from numba_lamb.layout import CHUNK
from numba_lamb.sharding import Division

Int64 = NDArray[np.int64]
SLOTS = 2
"""Pieces that may be under way."""


class Piece(NamedTuple):
    """The pieces of one number, of all ranks."""

    chunks: slice
    """Which of this rank's chunks they are."""
    elements: slice
    """Which of this rank's elements."""
    room: int
    """Elements that a buffer has for a rank."""
    runs: Int64
    """Gradients of all ranks in a buffer."""
    byte_room: int
    """Bytes that a buffer of weights has for a rank."""
    own: Int64
    """This rank's weights in a buffer of its own."""
    others: Int64
    """The other ranks' weights in a buffer of all."""


class Traffic(ABC):
    """Averages gradients over ranks, and hands out weights, wherever arrays live.

    Parameters
    ----------
    bucket : Bucket
        Divided.
    comm : Comm
        The ranks.
    capacity : int
        Bytes that a buffer may hold, as long as it holds a chunk of each rank.
    """

    formats: Int64
    """How the gradients of this rank alone are stored, as `Bucket.format_table`."""
    given: Int64
    """Where they are, as `Bucket.addresses`."""
    places: Int64
    """Where element 0 of each layer's averaged gradient would be, were all of it there; never 0."""

    def __init__(self, bucket: Bucket, comm: Comm, capacity: int) -> None:
        assert bucket.division is not None
        self.bucket, self.size = bucket, comm.size
        self.widths = np.array([p.storage.itemsize for p in bucket.precisions], dtype=np.int64)
        self.pieces = pieces_of(bucket.division, comm, capacity, bucket.dtype.itemsize, self.widths)
        self.elements = int((bucket.division.stops - bucket.division.starts)[comm.rank].sum())
        """How many averaged gradients are here."""
        self.room = max((piece.room for piece in self.pieces), default=0)
        self.byte_room = max((piece.byte_room for piece in self.pieces), default=0)
        self.slots = min(SLOTS, len(self.pieces))
        self._coming: list[Wait] = []
        self._going: list[Wait] = []

    def _placed(self, address: int) -> Int64:
        """Return `places`, given where averaged gradients begin."""
        bucket = self.bucket
        assert bucket.runs is not None
        # Any address for layers of other ranks.
        places = np.full(len(bucket.layers), address or 1, dtype=np.int64)
        for layer in dict.fromkeys(bucket.chunks[:, 0].tolist()):
            start, stop = bucket.runs[layer]
            places[layer] = address - start * bucket.dtype.itemsize
            address += (stop - start) * bucket.dtype.itemsize
        return places

    # -- gradients -----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to average gradients."""
        self._coming = []
        for number in range(self.slots):
            self._coming.append(self._send_gradients(number))

    def arrive(self, number: int) -> None:
        """Wait for the average of a piece, which must be the next, and put it where kernels find it."""
        self._coming[number]()
        self._average(number)
        if number + SLOTS < len(self.pieces):
            self._coming.append(self._send_gradients(number + SLOTS))

    @abstractmethod
    def _send_gradients(self, number: int) -> Wait:
        """Begin to send a piece of the gradients."""

    @abstractmethod
    def _average(self, number: int) -> None:
        """Average what came of a piece."""

    # -- weights -------------------------------------------------------------------------------------------

    def depart(self, number: int) -> None:
        """Begin to hand out a piece of the weights; those of two pieces before are there then."""
        if number == 0:
            self._going = []
        if number >= SLOTS:
            self._arrive_weights(number - SLOTS)
        self._going.append(self._send_weights(number))

    def finish(self) -> None:
        """Wait for all weights."""
        for number in range(max(0, len(self.pieces) - SLOTS), len(self.pieces)):
            self._arrive_weights(number)

    def _arrive_weights(self, number: int) -> None:
        self._going[number]()
        self._unpack_weights(number)

    @abstractmethod
    def _send_weights(self, number: int) -> Wait:
        """Begin to send a piece of the weights."""

    @abstractmethod
    def _unpack_weights(self, number: int) -> None:
        """Write what came of a piece."""


def pieces_of(division: Division, comm: Comm, capacity: int, itemsize: int, widths: Int64) -> list[Piece]:
    """Return the pieces in which a bucket travels."""
    counts = np.minimum(division.stops.max(axis=0)[division.chunks[:, 0]] - division.chunks[:, 1], CHUNK)
    most = max((int(counts[own].sum()) for own in division.own), default=0)
    number = max(1, -(-most * comm.size * itemsize // max(capacity, 1)))
    number = min(number, max((len(own) for own in division.own), default=0))
    cuts = [_cuts(counts[own], number) for own in division.own]
    pieces, done = [], 0
    for k in range(number):
        parts = [own[cut[k] : cut[k + 1]] for own, cut in zip(division.own, cuts, strict=True)]
        room = max(int(counts[part].sum()) for part in parts)
        sizes = counts * widths[division.chunks[:, 0]]
        byte_room = max(int(sizes[part].sum()) for part in parts)
        runs = [_runs(division, part, counts, counts, r * room) for r, part in enumerate(parts)]
        weights = [
            _runs(division, part, counts, sizes, 0 if r == comm.rank else r * byte_room)
            for r, part in enumerate(parts)
        ]
        count = int(counts[parts[comm.rank]].sum())
        pieces.append(
            Piece(
                slice(*cuts[comm.rank][k : k + 2]),
                slice(done, done + count),
                room,
                np.concatenate(runs),
                byte_room,
                weights[comm.rank],
                np.concatenate(
                    [*weights[: comm.rank], *weights[comm.rank + 1 :], np.zeros((0, 4), np.int64)]
                ),
            )
        )
        done += count
    return pieces


def _cuts(counts: Int64, number: int) -> list[int]:
    """Return where chunks of these sizes are cut into as many parts of about one size."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    inner = [int(np.searchsorted(ends, k * total / number, side="left")) for k in range(1, number)]
    return [0, *inner, len(counts)]


def _runs(division: Division, part: Any, counts: Int64, sizes: Int64, at: int) -> Int64:
    """Return chunks as runs in a buffer, in which they take these sizes from a place on."""
    ends = np.cumsum(sizes[part])
    begins: Sequence[Any] = at + ends - sizes[part]
    rows = [division.chunks[part, 0], division.chunks[part, 1], counts[part], begins]
    return np.ascontiguousarray(np.stack(rows, axis=1).astype(np.int64))
