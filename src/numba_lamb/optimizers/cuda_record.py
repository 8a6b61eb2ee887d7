"""CudaRecord: what one step left on a GPU, on its way to the host."""

from collections.abc import Sequence

from numba_lamb.kernels import book as at
from numba_lamb.kernels import rows
from numba_lamb.optimizers.cuda_part import CudaPart
from numba_lamb.optimizers.cuda_tables import Snapshot
from numba_lamb.optimizers.records import Placement, Reading, Record


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

    def __init__(
        self,
        placement: Placement,
        parts: Sequence[CudaPart],
        started: list[int],
        snapshots: Sequence[Snapshot],
    ) -> None:
        super().__init__(placement, started, min(part.least_limit for part in parts))
        self.is_pending = True
        self._parts, self._snapshots = parts, snapshots
        # The host's own tables, as they are for the step that was queued last.
        self._given = [part.addresses[:, rows.GRADIENT] != 0 for part in parts]
        self._adapts = [part.scalars[:, rows.ADAPT] != 0 for part in parts]
        self._found: Reading | None = None

    def is_ready(self) -> bool:
        """Return whether the copies are over."""
        return all(snapshot.is_ready() for snapshot in self._snapshots)

    def read(self) -> Reading:
        """Return the values, after waiting for the copies."""
        if self._found is None:
            assert self.placement is not None
            ordered = self.placement.ordered
            *of_parts, clip, control = [snapshot.read() for snapshot in self._snapshots]
            norms = [part.written_in(memory)[0] for part, memory in zip(self._parts, of_parts, strict=True)]
            self._found = Reading(
                int(control[at.APPLIED]),
                int(control[at.SKIPPED]),
                float(clip[at.CLIP_NORM]) if clip[at.CLIPPED] else None,
                ordered(norms),
                ordered(self._given),
                ordered(self._adapts),
            )
            self.is_pending = False
            # The rest would keep the optimizer's memory.
            self._parts, self._snapshots, self._given, self._adapts = (), (), [], []
        return self._found
