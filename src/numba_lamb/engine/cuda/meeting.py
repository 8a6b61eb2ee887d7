"""Meeting: ranks tell each other sums of their chunks on the GPU, and whether anything keeps them from a step."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from numba_lamb.comm import DeviceComm, Span
from numba_lamb.engine.cuda.arguments import Arguments
from numba_lamb.engine.cuda.bucket import CudaBucket
from numba_lamb.engine.cuda.transfers import block_of
from numba_lamb.kernels import columns
from numba_lamb.kernels.cuda import fields
from numba_lamb.memory import device
from numba_lamb.memory.cuda_memory import Buffer, zeros


class Meeting:
    """One message of each rank to all.

    Parameters
    ----------
    buckets : sequence of CudaBucket
        Divided.
    ranks : int
        How many there are.
    comm : DeviceComm
        What carries messages.
    written : sequence of int
        The columns that are told; `SUMS` for how many values are not finite.
    """

    def __init__(
        self, buckets: Sequence[CudaBucket], ranks: int, comm: DeviceComm, written: Sequence[int]
    ) -> None:
        self._buckets, self._comm, self._written = buckets, comm, written
        divisions = [bucket.division for bucket in buckets if bucket.division is not None]
        rooms = [max(map(len, division.own)) for division in divisions]
        self._before = np.cumsum([0, *rooms]).tolist()
        width = max(len(written), 0)
        self._room = fields.FLAGS + self._before[-1] * width
        gpu = buckets[0].device
        self._sent, self._told = zeros(gpu, 8 * self._room), zeros(gpu, 8 * self._room * ranks)
        tables = block_of(
            {
                "written": np.array([*written, 0], dtype=np.int64),
                **{
                    f"owners {k}": np.ascontiguousarray(np.stack(division.sources, axis=1), dtype=np.int64)
                    for k, division in enumerate(divisions)
                },
            }
        )
        self._tables = Buffer(gpu, len(tables.memory))
        gpu.write(self._tables.address, tables.memory)
        rows = []
        for k, (bucket, before) in enumerate(zip(buckets, self._before, strict=False)):
            common = {
                fields.RANKS: ranks,
                fields.ROOM: self._room,
                fields.OWNERS: self._tables.address + tables.offsets[f"owners {k}"],
                fields.WRITTEN: self._tables.address + tables.offsets["written"],
                fields.WRITTEN_COUNT: width,
                fields.BEFORE: before,
            }
            for message in (self._sent, self._told):
                rows.append((bucket, {**common, fields.MESSAGE: message.address}))
        self._arguments = Arguments(rows)
        self._pack, self._unpack = (
            [
                bucket.bound(
                    name, -(-count(bucket) // fields.THREADS), self._arguments.address(2 * k + which)
                )
                for k, bucket in enumerate(buckets)
            ]
            for which, (name, count) in enumerate((("pack_sums", _own), ("unpack_sums", _all)))
        )

    def meet(self, stream: int) -> None:
        """Queue it."""
        self._arguments.send(stream)
        device.launch([one.on(stream) for one in self._pack])
        told, sent = (Span(buffer.address, buffer.nbytes) for buffer in (self._told, self._sent))
        self._comm.all_gather(told, sent, stream)()
        device.launch([one.on(stream) for one in self._unpack])

    def told(self) -> tuple[NDArray[np.float64], list[NDArray[np.int32]]]:
        """Return all ranks' flags, and for each bucket its chunks' counts of what is not finite; this waits."""
        ranks = self._told.nbytes // (8 * self._room)
        found = np.zeros((ranks, self._room))
        self._buckets[0].device.read(self._told.address, found)
        flags, rows = found[:, : fields.FLAGS], found[:, fields.FLAGS :]
        rows = rows.reshape(ranks, self._before[-1], len(self._written))
        counts = []
        for bucket, before in zip(self._buckets, self._before, strict=False):
            assert bucket.division is not None
            most = np.zeros(len(bucket.all_chunks), dtype=np.int32)
            for numbers, values in zip(bucket.division.own, rows, strict=True):
                # Any of several ranks that have a chunk may have found something.
                own = values[before : before + len(numbers), self._written.index(columns.SUMS)]
                most[numbers] = np.maximum(most[numbers], own.astype(np.int32))
            counts.append(most)
        return flags, counts


def _own(bucket: CudaBucket) -> int:
    return len(bucket.chunks)


def _all(bucket: CudaBucket) -> int:
    return len(bucket.all_chunks)
