"""ShardedBackend: a step in the CPU's memory on replicated parameters whose gradients and state ranks share."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from numba_lamb.comm import Comm
from numba_lamb.engine.bucket import Bucket
from numba_lamb.engine.cpu.backend import COUNT_LAYERS
from numba_lamb.engine.cpu.bucket import CpuBucket
from numba_lamb.engine.cpu.parts import PartBackend
from numba_lamb.engine.cpu.traffic import CpuTraffic
from numba_lamb.engine.interface import Plan
from numba_lamb.engine.ranks import written_by
from numba_lamb.engine.shards import Shards
from numba_lamb.engine.traffic import Traffic
from numba_lamb.kernels.cpu import launch
from numba_lamb.kernels.cpu.program import Program
from numba_lamb.memory.gradients import Held
from numba_lamb.methods.passes import Pass


class _Stage(NamedTuple):
    """Passes that follow each other without a meeting: a program, or one for each piece of each bucket."""

    program: Program | None
    pieces: Sequence[tuple[Traffic, int, Program]]


class ShardedBackend(Shards, PartBackend):
    """Runs steps whose state is cut over ranks.

    Parameters
    ----------
    num_threads : int or None
        CPU threads; by default no more than there are CPUs for each rank.
    comm : Comm
        The ranks.
    bucket_mb : float
        MiB that a buffer holds; one is under way while another is computed with.
    centralized : callable
        Returns the groups whose layers must be whole.
    """

    def __init__(
        self,
        num_threads: int | None,
        comm: Comm,
        bucket_mb: float,
        centralized: Callable[[], Sequence[int]],
    ) -> None:
        PartBackend.__init__(self, num_threads, comm)
        self._share(bucket_mb, centralized)
        self._stages: list[tuple[list[_Stage], Sequence[int]]] = []
        self._under_way = False

    def place(self, plan: Plan) -> None:
        """Get ready for a plan that is new, or whose buckets, groups or method are."""
        self._plan = plan
        self._place_traffic()
        PartBackend.place(self, plan)

    def _traffic_of(self, bucket: Bucket) -> Traffic:
        assert isinstance(bucket, CpuBucket)
        return CpuTraffic(bucket, self.comm, self._capacity, self._num_threads)

    def columns_changed(self) -> None:
        """Have the next step write rates, decays and the gradients' factors anew."""
        PartBackend.columns_changed(self)
        self._stages = []

    # -- the step ------------------------------------------------------------------------------------------

    def _write_formats(self, dtypes: Mapping[int, np.dtype[Any]]) -> None:
        PartBackend._write_formats(self, dtypes)
        self._hand_over_formats()

    def _enter(self, held: Held, given: NDArray[np.bool_]) -> None:
        """Begin to average the gradients, of which all ranks together have those that are `given`."""
        Shards._enter(self, held, given)
        self._under_way = True
        for traffic in self._traffic:
            traffic.begin()
        if any(bucket.checks or bucket.clips or bucket.has_rows for bucket in self._buckets):
            for traffic in self._traffic:
                for number in range(len(traffic.pieces)):
                    traffic.arrive(number)
            self._under_way = False

    def _take(self, between: Sequence[Callable[[], Any]]) -> None:
        for bucket in self._buckets:
            bucket.prepare_rows(self._plan.method.centralizes_decay)
        if not self._stages:
            self._stages = self._made_stages()
        counted = self._counters.program(self._norm)
        for stages, written in self._stages:
            for stage in stages:
                if stage.program is not None:
                    launch.commit(stage.program, self._num_threads)
                for traffic, number, program in stage.pieces:
                    if self._under_way:
                        traffic.arrive(number)
                    launch.commit(program, self._num_threads)
                    if stage is self._last:
                        traffic.depart(number)
                if stage.pieces:
                    self._under_way = False
            if written:
                self._meet(written, False)
        for traffic in self._traffic:
            traffic.finish()
        launch.commit(self._count, self._num_threads, between, counted)
        self._held = None

    def _made_stages(self) -> list[tuple[list[_Stage], Sequence[int]]]:
        """Return a step's passes by meetings: those over chunks piece by piece, which may be under way."""
        found: list[tuple[list[_Stage], Sequence[int]]] = []
        for part in self._parts_of(self._plan.method.passes):
            stages = []
            for unit, group in groupby(part, lambda one: one.unit):
                passes: list[Pass] = list(group)
                if unit != "chunk":
                    work = [one for bucket in self._buckets for one in bucket.work(passes)]
                    stages.append(_Stage(Program(work), ()))
                    continue
                pieces = [
                    (traffic, number, Program(bucket.work(passes, piece.chunks)))
                    for traffic, bucket in zip(self._traffic, self._buckets, strict=True)
                    for number, piece in enumerate(traffic.pieces)
                ]
                stages.append(_Stage(None, pieces))
            found.append((stages, written_by(part)))
        self._last = found[-1][0][-1]
        self._count = Program([one for bucket in self._buckets for one in bucket.work((COUNT_LAYERS,))])
        return found
