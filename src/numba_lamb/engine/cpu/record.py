"""CpuRecord: what one step left in tables in the CPU's memory."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from numba_lamb.engine.cpu.bucket import CpuBucket
from numba_lamb.engine.cpu.counters import Counters
from numba_lamb.engine.records import Reading, Record, RecordLayout, least_limit
from numba_lamb.kernels import columns


class CpuRecord(Record):
    """Copies of tables in the CPU's memory, made in as few steps as can be.

    Parameters
    ----------
    placement, buckets, counters
        Whose tables they are, the buckets themselves, and what counts their steps.
    found : int64 array
        Where each layer's gradient was, in the placement's order, 0 for none; not copied.
    """

    __slots__ = ("_adapts", "_counts", "_found", "_grad_norm", "_norms")

    # A step leaves the caches cold: each object that is touched here, and each call, costs a microsecond then.
    def __init__(
        self,
        placement: RecordLayout,
        buckets: Sequence[CpuBucket],
        counters: Counters,
        found: NDArray[np.int64],
    ) -> None:
        self.placement = placement
        self.started = counters.started
        self._grad_norm = counters.taken_norm
        self._found = found
        # Bytes are copied in half the time of an array.
        self._counts = counters.values.tobytes()
        if len(buckets) == 1:
            # As nearly always: a comprehension is a call of its own.
            self._norms = [buckets[0].norms.tobytes()]
        else:
            self._norms = [bucket.norms.tobytes() for bucket in buckets]
        self.limit = math.inf if self._grad_norm is None else least_limit(buckets)
        self._adapts = None
        if placement.tells_adapted:
            self._adapts = [bucket.updated == columns.ADAPTED for bucket in buckets]

    def read(self) -> Reading:
        """Return the values."""
        assert self.placement is not None
        ordered = self.placement.ordered
        applied, skipped = np.frombuffer(self._counts, dtype=np.int64).tolist()
        norms = ordered([np.frombuffer(memory).reshape(-1, columns.NORMS) for memory in self._norms])
        given = _fitted(self._found, len(norms)) != 0
        adapts = np.ones(len(norms), dtype=np.bool_) if self._adapts is None else ordered(self._adapts)
        return Reading(applied, skipped, self._grad_norm, norms, given, adapts)


def _fitted(found: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    # Where layers were added, the last step's gradients are those of older ones.
    return np.concatenate([found, np.zeros(max(0, count - len(found)), dtype=np.int64)])
