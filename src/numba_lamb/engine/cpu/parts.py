"""PartBackend: a step on the CPU on layers of which each rank has a part, with the norms of the whole."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.comm import Comm
from numba_lamb.engine.cpu.backend import CpuBackend
from numba_lamb.engine.cpu.bucket import CpuBucket
from numba_lamb.engine.interface import Plan
from numba_lamb.engine.ranks import Ranks
from numba_lamb.kernels import columns
from numba_lamb.kernels.cpu import launch
from numba_lamb.kernels.cpu.threads import cpu_quota, usable_cpus
from numba_lamb.memory.gradients import Held
from numba_lamb.sharding import Division


class PartBackend(Ranks, CpuBackend):
    """Runs steps on the CPU, and has ranks tell each other the sums of their chunks.

    Parameters
    ----------
    num_threads : int or None
        CPU threads; by default no more than there are CPUs for each rank.
    comm : Comm
        The ranks.
    """

    def __init__(self, num_threads: int | None, comm: Comm) -> None:
        if num_threads is None:
            # A container's quota is for all of its ranks.
            cpus = min(usable_cpus(), cpu_quota() or usable_cpus())
            num_threads = max(1, min(launch.thread_count(None), cpus // comm.sharing))
        CpuBackend.__init__(self, num_threads)
        self._join(comm)

    def place(self, plan: Plan) -> None:
        """Get ready for a plan that is new, or whose buckets, groups or method are."""
        CpuBackend.place(self, plan)
        self._note_layers()

    def columns_changed(self) -> None:
        """Have the next step write rates, decays and the gradients' factors anew."""
        CpuBackend.columns_changed(self)
        self._note_options()

    # -- the step ------------------------------------------------------------------------------------------

    def _ready(self, read: Callable[[], Held], stream: object) -> Held | None:
        return None if self._plan.found_inf else self._look(read, stream)

    def _leave_out(self) -> None:
        self._counters.skip()

    def _inspected(self, held: Held, given: NDArray[np.bool_]) -> bool:
        passed = self._inspect()
        if passed:
            self._held, self._found = held, given.astype(np.int64)
        return passed

    def _said(self) -> tuple[Any, Any, Any]:
        steps = [bucket.steps.tobytes() for bucket in self._buckets]
        return (self.counters(), steps), self._written, self._scale

    def _take(self, between: Sequence[Callable[[], Any]]) -> None:
        CpuBackend.commit(self, between)

    def _meet(self, written: Sequence[int], looked: bool) -> None:
        """Have all ranks know the sums in these columns, and what a finite check found if they looked."""
        columns_of = [*written] + [columns.SUMS] * looked
        rooms = [max(map(len, _divided(bucket).own)) for bucket in self._buckets]
        begins = np.cumsum([0, *rooms]).tolist()
        if not begins[-1]:
            return
        sent = np.zeros((begins[-1], len(columns_of)))
        for at, bucket in zip(begins, self._buckets, strict=False):
            # What was found comes after all sums.
            known = np.concatenate([bucket.sums, bucket.nonfinite[:, None]], axis=1)
            sent[at : at + len(known)] = known[:, columns_of]
        told = np.zeros((self.comm.size, *sent.shape))
        self.comm.all_gather(told.view(np.uint8), sent.reshape(-1).view(np.uint8))()
        for at, bucket in zip(begins, self._buckets, strict=False):
            division = _divided(bucket)
            source, place = division.sources
            found = told[source, at + place]
            bucket.all_sums[:, written] = found[:, : len(written)]
            if looked:
                bucket.all_nonfinite[:] = found[:, -1]
                for numbers, values in zip(division.own, told, strict=True) if division.overlaps else ():
                    # Any of several ranks that have a chunk may have found something.
                    more = values[at : at + len(numbers), -1].astype(np.int32)
                    bucket.all_nonfinite[numbers] = np.maximum(bucket.all_nonfinite[numbers], more)


def _divided(bucket: CpuBucket) -> Division:
    assert bucket.division is not None
    return bucket.division
