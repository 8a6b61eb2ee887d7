"""CudaShardedBackend: a step on a GPU on replicated parameters whose gradients and state ranks share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from numba_lamb.comm import Comm
from numba_lamb.engine.bucket import Bucket
from numba_lamb.engine.cuda.bucket import CudaBucket
from numba_lamb.engine.cuda.parts import CudaPartBackend
from numba_lamb.engine.cuda.traffic import CudaTraffic
from numba_lamb.engine.interface import Plan
from numba_lamb.engine.shards import Shards


class CudaShardedBackend(Shards, CudaPartBackend):
    """Runs steps whose state is cut over ranks.

    Parameters
    ----------
    index, library, comm
        As for `CudaPartBackend`.
    bucket_mb : float
        MiB that a buffer holds; one is under way while another is computed with.
    centralized : callable
        Returns the groups whose layers must be whole.
    """

    _traffic: list[CudaTraffic]  # type: ignore[assignment]

    def __init__(
        self,
        index: int,
        library: str | None,
        comm: Comm,
        bucket_mb: float,
        centralized: Callable[[], Sequence[int]],
    ) -> None:
        CudaPartBackend.__init__(self, index, library, comm)
        self._share(bucket_mb, centralized)

    def place(self, plan: Plan) -> None:
        """Get ready for a plan that is new, or whose buckets, groups or method are."""
        self._plan = plan
        self._connect()
        with self._device.current():
            self._place_traffic()
        CudaPartBackend.place(self, plan)

    def _traffic_of(self, bucket: Bucket) -> CudaTraffic:
        assert isinstance(bucket, CudaBucket)
        return CudaTraffic(bucket, self.comm, self._device_comm, self._capacity)

    def _write_formats(self, dtypes: Mapping[int, np.dtype[Any]]) -> None:
        CudaPartBackend._write_formats(self, dtypes)
        self._hand_over_formats()

    def _average(self, stream: int) -> None:
        for traffic in self._traffic:
            traffic.send(stream)
            traffic.begin()
        for traffic in self._traffic:
            for number in range(len(traffic.pieces)):
                traffic.arrive(number)

    def _update(self, kernel: str, stream: int) -> None:
        for traffic in self._traffic:
            for number in range(len(traffic.pieces)):
                traffic.update(kernel, number)
                traffic.depart(number)
            if not traffic.pieces:
                # It may be the bucket that closes the step.
                self._launch([(traffic.bucket, kernel)], stream)
        for traffic in self._traffic:
            traffic.finish()
