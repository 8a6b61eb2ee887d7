"""ShardedBackend: a step on replicated parameters whose gradients ranks average, and whose state they share."""

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
from numba_lamb.engine.cpu.traffic import Traffic
from numba_lamb.engine.flat_state import FlatState
from numba_lamb.engine.interface import Plan
from numba_lamb.kernels import columns
from numba_lamb.kernels.cpu import launch
from numba_lamb.kernels.cpu.program import Program
from numba_lamb.layout import FlatLayout, Layer
from numba_lamb.memory.gradients import Held
from numba_lamb.methods.passes import Pass
from numba_lamb.sharding import Division, cut


class _Stage(NamedTuple):
    """Passes that follow each other without a meeting: a program, or one for each piece of each bucket."""

    program: Program | None
    pieces: Sequence[tuple[Traffic, int, Program]]


def _run(bucket: CpuBucket, rank: int, row: int) -> tuple[int, int]:
    assert bucket.division is not None
    return int(bucket.division.starts[rank, row]), int(bucket.division.stops[rank, row])


class ShardedBackend(PartBackend):
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
        super().__init__(num_threads, comm)
        self._capacity = int(bucket_mb * 2**20)
        self._centralized = centralized
        self._traffic: list[Traffic] = []
        self._taken: list[tuple[Traffic, NDArray[np.intp], NDArray[np.intp]]] = []
        self._stages: list[tuple[list[_Stage], Sequence[int]]] = []
        self._under_way = False

    def _fresh(self, layout: FlatLayout, layers: Sequence[Layer], dtype: np.dtype[Any]) -> Division:
        groups = self._centralized()
        whole = {k for k, layer in enumerate(layers) if layer.group in groups}
        division = cut(layout.table(dtype), self.comm.size, whole)
        for k, layer in enumerate(layers):
            if layout.layers[k].size:
                self.cut_as(layer.name, division.starts[:, k], division.stops[:, k])
        return division

    # -- state ---------------------------------------------------------------------------------------------

    def whole_state(self, bucket: Bucket) -> dict[str, NDArray[Any]]:
        """Return what a step left behind of all layers, of which every rank tells its part."""
        assert isinstance(bucket, CpuBucket)
        found = self.whole_blank(bucket)
        parts = [self._state_of(bucket, rank) for rank in range(self.comm.size)]
        for name in bucket.state.nbytes:
            room = max(part.nbytes[name] for part in parts)
            sent = np.zeros(room, dtype=np.uint8)
            own = bucket.saved()[name]
            sent[: len(own)] = own
            told = np.zeros((self.comm.size, room), dtype=np.uint8)
            self.comm.all_gather(told, sent)()
            for rank, part in enumerate(parts):
                for row in range(len(bucket.layers)):
                    if name in part.names(row):
                        target = bucket.full.run(found, name, row, _run(bucket, rank, row))
                        target[:] = part.part({name: told[rank]}, name, row)
        return found

    def whole_blank(self, bucket: Bucket) -> dict[str, NDArray[Any]]:
        """Return arrays of the form of `whole_state`, to be filled and taken."""
        self.check_whole()
        full = {name: np.zeros(nbytes, dtype=np.uint8) for name, nbytes in bucket.full.nbytes.items()}
        return {**bucket.saved(), **full}

    def take_state(self, bucket: Bucket, values: Mapping[str, NDArray[Any]]) -> None:
        """Put back this rank's part of what `whole_state` returned."""
        assert isinstance(bucket, CpuBucket)
        own = {name: array.copy() for name, array in bucket.saved().items()}
        for name, array in values.items():
            if name not in bucket.state.nbytes:
                own[name] = array
                continue
            for row in range(len(bucket.layers)):
                if name in bucket.state.names(row):
                    given = bucket.full.run(values, name, row, _run(bucket, self.comm.rank, row))
                    bucket.state.part(own, name, row)[...] = given
        bucket.restore(own)

    @staticmethod
    def _state_of(bucket: CpuBucket, rank: int) -> FlatState:
        """Return where a rank has its part of the state."""
        assert bucket.division is not None
        return FlatState(bucket.layers, bucket.precisions, bucket.state.moments, bucket.division.runs(rank))

    def place(self, plan: Plan) -> None:
        """Get ready for a plan that is new, or whose buckets, groups or method are."""
        self._traffic = [
            Traffic(bucket, bucket.division, self.comm, self._capacity, self._num_threads)
            for bucket in plan.buckets
            if isinstance(bucket, CpuBucket) and bucket.division is not None
        ]
        # Whose gradients each takes: layers by number, and their rows.
        self._taken = []
        for traffic in self._traffic:
            own = [(k, row) for k, (bucket, row) in enumerate(plan.placement) if bucket is traffic.bucket]
            numbers, rows = np.array(own, dtype=np.intp).reshape(-1, 2).T
            self._taken.append((traffic, numbers, rows))
        super().place(plan)

    def columns_changed(self) -> None:
        """Have the next step write rates, decays and the gradients' factors anew."""
        super().columns_changed()
        self._stages = []

    # -- the step ------------------------------------------------------------------------------------------

    def _write_formats(self, dtypes: Mapping[int, np.dtype[Any]]) -> None:
        """Tell what packs gradients how they are stored; averages are as they are computed with."""
        super()._write_formats(dtypes)
        for traffic in self._traffic:
            traffic.formats[:, columns.GRADIENT] = traffic.bucket.format_table[:, columns.GRADIENT]
            traffic.bucket.write_gradient_formats({})

    def _facts(self, given: NDArray[np.bool_]) -> dict[str, bytes]:
        """Return what must be the same on all ranks; a gradient that others have is averaged as zeros."""
        return super()._facts(np.zeros(0, dtype=np.bool_))

    def _enter(self, held: Held, given: NDArray[np.bool_]) -> None:
        """Begin to average the gradients, of which all ranks together have those that are `given`."""
        for traffic, numbers, rows in self._taken:
            traffic.given[rows, columns.GRADIENT] = held.found[numbers]
            traffic.bucket.gradients[rows] = np.where(given[numbers], traffic.places[rows], 0)
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
                    (traffic, number, Program(traffic.bucket.work(passes, piece.chunks)))
                    for traffic in self._traffic
                    for number, piece in enumerate(traffic.pieces)
                ]
                stages.append(_Stage(None, pieces))
            found.append((stages, sorted({column for one in part for column in one.writes})))
        self._last = found[-1][0][-1]
        self._count = Program([one for bucket in self._buckets for one in bucket.work((COUNT_LAYERS,))])
        return found
