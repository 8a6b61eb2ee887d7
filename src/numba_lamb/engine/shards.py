"""Shards: what a backend does whose parameters are replicated, and whose gradients and state ranks share."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.engine.bucket import Bucket
from numba_lamb.engine.flat_state import FlatState
from numba_lamb.engine.ranks import Ranks
from numba_lamb.engine.traffic import Traffic
from numba_lamb.kernels import columns
from numba_lamb.layout import FlatLayout, Layer
from numba_lamb.memory.gradients import Held
from numba_lamb.sharding import Division, cut


class Shards(Ranks):
    """Cuts state over ranks; a backend of `Ranks` comes behind it."""

    def _share(self, bucket_mb: float, centralized: Callable[[], Sequence[int]]) -> None:
        """Begin to share.

        Parameters
        ----------
        bucket_mb : float
            MiB that a buffer holds; one is under way while another is computed with.
        centralized : callable
            Returns the groups whose layers must be whole.
        """
        self._capacity = int(bucket_mb * 2**20)
        self._centralized = centralized
        self._traffic: list[Traffic] = []
        self._taken: list[tuple[Traffic, NDArray[np.intp], NDArray[np.intp]]] = []

    def follow(self, older: "Shards") -> None:
        """Go on as ranks that had state in other memory."""
        self._cuts = older._cuts

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
        self.agree("state_dict")
        found, own = self.whole_blank(bucket), bucket.saved()
        found |= {name: array for name, array in own.items() if name not in bucket.state.nbytes}
        parts = [_state_of(bucket, rank) for rank in range(self.comm.size)]
        for name in bucket.state.nbytes:
            room = max(part.nbytes[name] for part in parts)
            sent = np.zeros(room, dtype=np.uint8)
            sent[: len(own[name])] = own[name]
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
        return {**bucket.blank(), **full}

    def take_state(self, bucket: Bucket, values: Mapping[str, NDArray[Any]]) -> None:
        """Put back this rank's part of what `whole_state` returned."""
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

    # -- gradients -----------------------------------------------------------------------------------------

    @abstractmethod
    def _traffic_of(self, bucket: Bucket) -> Traffic:
        """Return what carries a bucket's gradients and weights."""

    def _place_traffic(self) -> None:
        plan = self._plan
        self._traffic = [self._traffic_of(bucket) for bucket in plan.buckets]
        # Whose gradients each takes: layers by number, and their rows.
        self._taken = []
        for traffic in self._traffic:
            own = [(k, row) for k, (bucket, row) in enumerate(plan.placement) if bucket is traffic.bucket]
            numbers, rows = np.array(own, dtype=np.intp).reshape(-1, 2).T
            self._taken.append((traffic, numbers, rows))

    def _hand_over_formats(self) -> None:
        """Tell what packs gradients how they are stored; averages are as they are computed with."""
        for traffic in self._traffic:
            traffic.formats[:, columns.GRADIENT] = traffic.bucket.format_table[:, columns.GRADIENT]
            traffic.bucket.write_gradient_formats({})

    def _facts(self, given: NDArray[np.bool_]) -> dict[str, bytes]:
        """Return what must be the same on all ranks; a gradient that others have is averaged as zeros."""
        return super()._facts(np.zeros(0, dtype=np.bool_))

    def _enter(self, held: Held, given: NDArray[np.bool_]) -> None:
        """Have averages in place of the gradients, of which all ranks together have those that are `given`."""
        for traffic, numbers, rows in self._taken:
            traffic.given[rows, columns.GRADIENT] = held.found[numbers]
            traffic.bucket.gradients[rows] = np.where(given[numbers], traffic.places[rows], 0)


def _run(bucket: Bucket, rank: int, row: int) -> tuple[int, int]:
    assert bucket.division is not None
    return int(bucket.division.starts[rank, row]), int(bucket.division.stops[rank, row])


def _state_of(bucket: Bucket, rank: int) -> FlatState:
    """Return where a rank has its part of the state."""
    assert bucket.division is not None
    return FlatState(bucket.layers, bucket.precisions, bucket.state.moments, bucket.division.runs(rank))
