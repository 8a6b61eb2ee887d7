"""CudaRecord: what one step left on a GPU, on its way to the host."""

from collections.abc import Sequence

from numba_lamb.kernels import book as at
from numba_lamb.kernels import rows
from numba_lamb.optimizers.cuda_part import CudaPart
from numba_lamb.optimizers.cuda_tables import Snapshot
from numba_lamb.optimizers.records import Placement, Reading, Record, least_limit


class CudaRecord(Record):
    """Copies that were queued behind a step; `read` waits for them, and gives their memory to later ones.

    Parameters
    ----------
    placement, started
        As for `Record`.
    parts : sequence of CudaPart
        Whose tables they are.
    snapshots : sequence of Snapshot
        What each part wrote, then what the clip did, and last the counts.
    """

    __slots__ = ("_adapts", "_given", "_parts", "_read", "_snapshots")

    def __init__(
        self,
        placement: Placement,
        parts: Sequence[CudaPart],
        started: list[int],
        snapshots: Sequence[Snapshot],
    ) -> None:
        self.placement, self.started, self.limit = placement, started, least_limit(parts)
        self._parts, self._snapshots = parts, snapshots
        # The host's own tables, as they are for the step that was queued last.
        self._given = [part.addresses[:, rows.GRADIENT] != 0 for part in parts]
        self._adapts = [part.scalars[:, rows.ADAPT] != 0 for part in parts]
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
            *of_parts, clip, control = [snapshot.read() for snapshot in self._snapshots]
            norms = [part.written_in(memory)[0] for part, memory in zip(self._parts, of_parts, strict=True)]
            self._read = Reading(
                int(control[at.APPLIED]),
                int(control[at.SKIPPED]),
                float(clip[at.CLIP_NORM]) if clip[at.CLIPPED] else None,
                ordered(norms),
                ordered(self._given),
                ordered(self._adapts),
            )
            # The rest would keep the optimizer's memory.
            self._parts, self._snapshots, self._given, self._adapts = (), (), [], []
        return self._read
