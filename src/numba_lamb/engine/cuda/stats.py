"""LazyStats: statistics that reach the host when somebody reads one."""

from collections.abc import Iterator, Mapping, Sequence

from numba_lamb.engine.cuda.bucket import CudaBucket
from numba_lamb.engine.cuda.transfers import Snapshot
from numba_lamb.engine.interface import Plan, named_stats
from numba_lamb.kernels.cuda import fields


class LazyStats(Mapping[str, float]):
    """Statistics as they were when asked for; the first that is read waits for them.

    Parameters
    ----------
    plan : Plan
        Whose they are. What it is now decides their names, whatever becomes of it.
    buckets : sequence of CudaBucket
        Its buckets.
    snapshots : sequence of Snapshot
        What each bucket wrote, and last what the clip did.
    """

    def __init__(self, plan: Plan, buckets: Sequence[CudaBucket], snapshots: Sequence[Snapshot]) -> None:
        self._buckets = buckets
        self._snapshots = snapshots
        self._placement = plan.placement
        self._statistics = plan.method.statistics
        self._found: dict[str, float] | None = None

    def _values(self) -> dict[str, float]:
        if self._found is None:
            *of_buckets, clip = [snapshot.read() for snapshot in self._snapshots]
            written = {
                id(bucket): bucket.written_in(memory)
                for bucket, memory in zip(self._buckets, of_buckets, strict=True)
            }
            grad_norm = float(clip[fields.CLIP_NORM]) if clip[fields.CLIPPED] else None
            self._found = named_stats(self._statistics, self._placement, written, grad_norm)
            # The rest would keep the optimizer's memory.
            self._snapshots, self._buckets, self._placement = (), (), ()
        return self._found

    def __getitem__(self, name: str) -> float:
        return self._values()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values())

    def __len__(self) -> int:
        return len(self._values())

    def __repr__(self) -> str:
        return repr(self._values())
