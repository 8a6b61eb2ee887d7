"""CudaTraffic: gradients and weights on their way between ranks, in a GPU's memory."""

from collections.abc import Mapping

import numpy as np

from numba_lamb.comm import Comm, DeviceComm, Span
from numba_lamb.comm.interface import Wait
from numba_lamb.engine.cuda.arguments import Arguments
from numba_lamb.engine.cuda.bucket import CudaBucket
from numba_lamb.engine.cuda.transfers import Block, Mirror, block_of
from numba_lamb.engine.traffic import SLOTS, Traffic
from numba_lamb.kernels.cuda import fields
from numba_lamb.layout import CHUNK
from numba_lamb.memory import device
from numba_lamb.memory.cuda_memory import Buffer, zeros
from numba_lamb.memory.device import Launch

_PACK_GRADIENTS, _AVERAGE, _PACK_WEIGHTS, _UNPACK_WEIGHTS, _UPDATE = range(5)
"""The rows of arguments that a piece has."""
_ROWS = 5


class CudaTraffic(Traffic):
    """Traffic whose messages are on a GPU.

    Parameters
    ----------
    bucket, comm, capacity
        As for `Traffic`.
    device_comm : DeviceComm
        What carries messages.
    """

    bucket: CudaBucket
    stream: int
    """Where all of this is queued."""

    def __init__(self, bucket: CudaBucket, comm: Comm, device_comm: DeviceComm, capacity: int) -> None:
        super().__init__(bucket, comm, capacity)
        self._comm, gpu = device_comm, bucket.device
        itemsize = bucket.dtype.itemsize
        self._shard = zeros(gpu, self.elements * itemsize)
        self.places = self._placed(self._shard.address)
        # A message of this rank, and what comes: of gradients, and once all of those are there, of weights.
        nbytes = self.size * max(self.room * itemsize, self.byte_room)
        self._slots = [(zeros(gpu, nbytes), zeros(gpu, nbytes)) for _ in range(self.slots)]
        block = Block(
            {
                "given": (bucket.addresses.shape, np.int64),
                "formats": (bucket.format_table.shape, np.int64),
            }
        )
        self.given, self.formats = block.tables["given"], block.tables["formats"]
        self._mirror = Mirror(gpu, block.memory)
        names = ("runs", "own", "others")
        tables = block_of(
            {
                "widths": self.widths,
                **{
                    f"{name} {k}": getattr(piece, name)
                    for k, piece in enumerate(self.pieces)
                    for name in names
                },
            }
        )
        self._tables = Buffer(gpu, len(tables.memory))
        gpu.write(self._tables.address, tables.memory)
        rows = [
            (bucket, fields_of)
            for number in range(len(self.pieces))
            for fields_of in self._fields(number, block, tables)
        ]
        self._arguments = Arguments(rows) if rows else None
        self._launches: dict[tuple[str, int, bool], Launch] = {}

    def _fields(self, number: int, block: Block, tables: Block) -> list[Mapping[int, int]]:
        """Return in which fields the arguments of a piece's kernels differ from the bucket's, by row."""
        piece, slot = self.pieces[number], self._slots[number % SLOTS]
        sent, came = (buffer.address for buffer in slot)
        itemsize = self.bucket.dtype.itemsize

        def runs(name: str) -> dict[int, int]:
            return {
                fields.RUNS: self._tables.address + tables.offsets[f"{name} {number}"],
                fields.RUN_COUNT: len(getattr(piece, name)),
                fields.WIDTHS: self._tables.address + tables.offsets["widths"],
            }

        first, last = piece.chunks.start, piece.chunks.stop
        update = {
            fields.CHUNKS: int(self.bucket.args[fields.CHUNKS]) + 16 * first,
            fields.CHUNK_COUNT: last - first,
        }
        if number:
            # One piece closes the step.
            update[fields.LAST_BUCKET] = 0
        return [
            {
                **runs("runs"),
                fields.ADDRESSES: self._mirror.address + block.offsets["given"],
                fields.FORMATS: self._mirror.address + block.offsets["formats"],
                fields.MESSAGE: sent,
            },
            {
                fields.MESSAGE: came,
                fields.ROOM: piece.room,
                fields.RANKS: self.size,
                fields.AVERAGES: self._shard.address + piece.elements.start * itemsize,
                fields.AVERAGE_COUNT: piece.elements.stop - piece.elements.start,
            },
            {**runs("own"), fields.MESSAGE: sent},
            {**runs("others"), fields.MESSAGE: came},
            update,
        ]

    def send(self, stream: int) -> None:
        """Queue what kernels are told."""
        self.stream = stream
        self._mirror.send(stream)
        if self._arguments is not None:
            self._arguments.send(stream)

    def update(self, name: str, number: int) -> None:
        """Queue the last pass over the chunks of a piece."""
        chunks = self.pieces[number].chunks
        self._run(name, number, _UPDATE, chunks.stop - chunks.start)

    def _run(self, name: str, number: int, row: int, blocks: int, stored: bool = False) -> None:
        key = name, number, stored or self.bucket.formats is not None
        if key not in self._launches:
            assert self._arguments is not None
            address = self._arguments.address(_ROWS * number + row)
            self._launches[key] = self.bucket.bound(name, blocks, address, stored)
        device.launch([self._launches[key].on(self.stream)])

    # -- gradients -----------------------------------------------------------------------------------------

    def _send_gradients(self, number: int) -> Wait:
        piece, (sent, came) = self.pieces[number], self._slots[number % SLOTS]
        self._run("pack_gradients", number, _PACK_GRADIENTS, len(piece.runs), bool(self.formats.any()))
        nbytes = self.size * piece.room * self.bucket.dtype.itemsize
        return self._comm.all_to_all(Span(came.address, nbytes), Span(sent.address, nbytes), self.stream)

    def _average(self, number: int) -> None:
        elements = self.pieces[number].elements
        self._run("average", number, _AVERAGE, -(-(elements.stop - elements.start) // CHUNK))

    # -- weights -------------------------------------------------------------------------------------------

    def _send_weights(self, number: int) -> Wait:
        piece, (sent, came) = self.pieces[number], self._slots[number % SLOTS]
        self._run("pack_weights", number, _PACK_WEIGHTS, len(piece.own))
        nbytes = piece.byte_room
        return self._comm.all_gather(
            Span(came.address, self.size * nbytes), Span(sent.address, nbytes), self.stream
        )

    def _unpack_weights(self, number: int) -> None:
        self._run("unpack_weights", number, _UNPACK_WEIGHTS, len(self.pieces[number].others))
