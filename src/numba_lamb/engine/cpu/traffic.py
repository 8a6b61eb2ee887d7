"""CpuTraffic: gradients and weights on their way between ranks, in the CPU's memory."""

import numpy as np

from numba_lamb.comm import Comm
from numba_lamb.comm.interface import Wait
from numba_lamb.engine.cpu.bucket import CpuBucket
from numba_lamb.engine.traffic import SLOTS, Traffic
from numba_lamb.kernels import columns
from numba_lamb.kernels.cpu import launch, staging
from numba_lamb.layout import CHUNK
from numba_lamb.memory.arrays import address_of, aligned_zeros


class CpuTraffic(Traffic):
    """Traffic whose messages are arrays.

    Parameters
    ----------
    bucket, comm, capacity
        As for `Traffic`.
    num_threads : int or None
        CPU threads.
    """

    bucket: CpuBucket

    def __init__(self, bucket: CpuBucket, comm: Comm, capacity: int, num_threads: int | None) -> None:
        super().__init__(bucket, comm, capacity)
        self._comm, self._threads = comm, num_threads
        self._shard = aligned_zeros(self.elements, bucket.dtype)
        self.places = self._placed(address_of(self._shard))
        bytes_ = np.dtype(np.uint8)
        self._slots = [
            (
                aligned_zeros(self.size * self.room, bucket.dtype),
                aligned_zeros(self.size * self.room, bucket.dtype),
                aligned_zeros(self.byte_room, bytes_),
                aligned_zeros(self.size * self.byte_room, bytes_),
            )
            for _ in range(self.slots)
        ]
        self.given = np.zeros_like(bucket.addresses)
        self.formats = np.zeros((len(bucket.layers), columns.FORMATS), dtype=np.int64)

    def _send_gradients(self, number: int) -> Wait:
        piece = self.pieces[number]
        sent, told = (buffer[: self.size * piece.room] for buffer in self._slots[number % SLOTS][:2])
        formats = self.formats if self.formats.any() else None
        given = self.given, formats, piece.runs, sent
        launch.run(staging.pack_gradients, len(piece.runs), self._threads, *given)
        return self._comm.all_to_all(told, sent)

    def _average(self, number: int) -> None:
        piece = self.pieces[number]
        rows = self._slots[number % SLOTS][1][: self.size * piece.room].reshape(self.size, piece.room)
        target = self._shard[piece.elements]
        launch.run(staging.average, -(-len(target) // CHUNK), self._threads, rows, target)

    def _send_weights(self, number: int) -> Wait:
        piece = self.pieces[number]
        own, told = self._slots[number % SLOTS][2:]
        own, told = own[: piece.byte_room], told[: self.size * piece.byte_room]
        given = self.bucket.addresses, self.widths, piece.own, own
        launch.run(staging.pack_weights, len(piece.own), self._threads, *given)
        return self._comm.all_gather(told, own)

    def _unpack_weights(self, number: int) -> None:
        piece = self.pieces[number]
        given = self.bucket.addresses, self.widths, piece.others, self._slots[number % SLOTS][3]
        launch.run(staging.unpack_weights, len(piece.others), self._threads, *given)
