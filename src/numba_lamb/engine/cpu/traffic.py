"""Traffic: a bucket's gradients and weights on their way between ranks, piece by piece.

Every rank's run of chunks is cut into as many pieces. The pieces of one number travel together, so that one may be
computed with while the next is under way. A buffer holds all ranks' pieces of a number, one after the other.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numba_lamb.comm import Comm
from numba_lamb.comm.interface import Wait
from numba_lamb.engine.cpu.bucket import CpuBucket
from numba_lamb.kernels import columns
from numba_lamb.kernels.cpu import launch, staging
from numba_lamb.layout import CHUNK
from numba_lamb.memory.arrays import address_of, aligned_zeros
from numba_lamb.sharding import Division

Int64 = NDArray[np.int64]
_SLOTS = 2
"""Pieces that may be under way."""


class _Piece(NamedTuple):
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


class Traffic:
    """Averages gradients over ranks, and hands out weights.

    Parameters
    ----------
    bucket : CpuBucket
        Divided.
    division : Division
        How.
    comm : Comm
        The ranks.
    capacity : int
        Bytes that a buffer may hold, as long as it holds a chunk of each rank.
    num_threads : int or None
        CPU threads.
    """

    def __init__(
        self,
        bucket: CpuBucket,
        division: Division,
        comm: Comm,
        capacity: int,
        num_threads: int | None,
    ) -> None:
        self.bucket, self._comm, self._threads = bucket, comm, num_threads
        self.widths = np.array([p.storage.itemsize for p in bucket.precisions], dtype=np.int64)
        self.pieces = _pieces(division, comm, capacity, bucket.dtype.itemsize, self.widths)
        own = division.own[comm.rank]
        self.shard = aligned_zeros(int((division.stops - division.starts)[comm.rank].sum()), bucket.dtype)
        """This rank's averaged gradients."""
        # Where each layer's element 0 would be, were all of it there; any address for layers of other ranks.
        self.places = np.full(len(bucket.layers), address_of(self.shard) or 1, dtype=np.int64)
        at = address_of(self.shard)
        for layer in dict.fromkeys(division.chunks[own, 0].tolist()):
            start, stop = int(division.starts[comm.rank, layer]), int(division.stops[comm.rank, layer])
            self.places[layer] = at - start * bucket.dtype.itemsize
            at += (stop - start) * bucket.dtype.itemsize
        room = max((piece.room for piece in self.pieces), default=0)
        byte_room = max((piece.byte_room for piece in self.pieces), default=0)
        size, dtype = comm.size, bucket.dtype
        self._slots = [
            (
                aligned_zeros(size * room, dtype),
                aligned_zeros(size * room, dtype),
                aligned_zeros(byte_room, np.dtype(np.uint8)),
                aligned_zeros(size * byte_room, np.dtype(np.uint8)),
            )
            for _ in range(min(_SLOTS, len(self.pieces)))
        ]
        # The gradients of this rank alone, as they are given.
        self.given = np.zeros_like(bucket.addresses)
        self.formats = np.zeros((len(bucket.layers), columns.FORMATS), dtype=np.int64)
        self._coming: list[Wait] = []
        self._going: list[Wait] = []

    # -- gradients -----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin to average gradients."""
        self._coming = []
        for number in range(len(self._slots)):
            self._send(number)

    def _send(self, number: int) -> None:
        piece = self.pieces[number]
        values, out = self._slots[number % _SLOTS][:2]
        values, out = (buffer[: self._comm.size * piece.room] for buffer in (values, out))
        formats = self.formats if self.formats.any() else None
        launch.run(
            staging.pack_gradients, len(piece.runs), self._threads, self.given, formats, piece.runs, values
        )
        self._coming.append(self._comm.all_to_all(out, values))

    def arrive(self, number: int) -> None:
        """Wait for the average of a piece, which must be the next, and put it into `shard`."""
        piece, size = self.pieces[number], self._comm.size
        self._coming[number]()
        rows = self._slots[number % _SLOTS][1][: size * piece.room].reshape(size, piece.room)
        target = self.shard[piece.elements]
        launch.run(staging.average, -(-len(target) // CHUNK), self._threads, rows, target)
        if number + _SLOTS < len(self.pieces):
            self._send(number + _SLOTS)

    # -- weights -------------------------------------------------------------------------------------------

    def depart(self, number: int) -> None:
        """Begin to hand out a piece of the weights; those of two pieces before are there then."""
        if number == 0:
            self._going = []
        if number >= _SLOTS:
            self._unpack(number - _SLOTS)
        piece = self.pieces[number]
        own, out = self._slots[number % _SLOTS][2:]
        own, out = own[: piece.byte_room], out[: self._comm.size * piece.byte_room]
        launch.run(
            staging.pack_weights,
            len(piece.own),
            self._threads,
            self.bucket.addresses,
            self.widths,
            piece.own,
            own,
        )
        self._going.append(self._comm.all_gather(out, own))

    def finish(self) -> None:
        """Wait for all weights."""
        for number in range(max(0, len(self.pieces) - _SLOTS), len(self.pieces)):
            self._unpack(number)

    def _unpack(self, number: int) -> None:
        piece = self.pieces[number]
        self._going[number]()
        out = self._slots[number % _SLOTS][3]
        launch.run(
            staging.unpack_weights,
            len(piece.others),
            self._threads,
            self.bucket.addresses,
            self.widths,
            piece.others,
            out,
        )


def _pieces(division: Division, comm: Comm, capacity: int, itemsize: int, widths: Int64) -> list[_Piece]:
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
            _Piece(
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
