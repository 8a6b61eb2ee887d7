"""CudaRecord: what one step left on a GPU, on its way to the host."""

from collections.abc import Sequence

from numba_lamb.engine.cuda.bucket import CudaBucket
from numba_lamb.engine.cuda.transfers import Snapshot
from numba_lamb.engine.records import Reading, Record, RecordLayout, least_limit
from numba_lamb.kernels import columns
from numba_lamb.kernels.cuda import fields


class CudaRecord(Record):
    """Copies that were queued behind a step; `read` waits for them, and gives their memory to later ones.

    Parameters
    ----------
    placement, started
        As for `Record`.
    buckets : sequence of CudaBucket
        Whose tables they are.
    snapshots : sequence of Snapshot
        What each bucket wrote, then what the clip did, and last the counts.
    """

    __slots__ = ("_buckets", "_given", "_read", "_snapshots")

    def __init__(
        self,
        placement: RecordLayout,
        buckets: Sequence[CudaBucket],
        started: list[int],
        snapshots: Sequence[Snapshot],
    ) -> None:
        self.placement, self.started, self.limit = placement, started, least_limit(buckets)
        self._buckets, self._snapshots = buckets, snapshots
        # The host's own tables, as they are for the step that was queued last.
        self._given = [bucket.addresses[:, columns.GRADIENT] != 0 for bucket in buckets]
        self._read: Reading | None = None

    @property
    def is_pending(self) -> bool:
        """Whether the values are still to come."""
        return self._read is None

    def is_ready(self) -> bool:
        """Return whether the copies are over."""
        return all(snapshot.is_ready() for snapshot in self._snapshots)

    def read(self) -> Reading:
        """Return the values, after waiting for the copies."""
        if self._read is None:
            assert self.placement is not None
            ordered = self.placement.ordered
            *of_buckets, clip, control = [snapshot.read() for snapshot in self._snapshots]
            written = [
                bucket.written_in(memory) for bucket, memory in zip(self._buckets, of_buckets, strict=True)
            ]
            self._read = Reading(
                int(control[fields.APPLIED]),
                int(control[fields.SKIPPED]),
                float(clip[fields.CLIP_NORM]) if clip[fields.CLIPPED] else None,
                ordered([norms for norms, _, _ in written]),
                ordered(self._given),
                ordered([adapts for _, _, adapts in written]),
            )
            # The rest would keep the optimizer's memory.
            self._buckets, self._snapshots, self._given = (), (), []
        return self._read
