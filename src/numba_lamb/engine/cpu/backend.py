"""CpuBackend: the phases of a step on NumPy arrays."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.engine.cpu import phases
from numba_lamb.engine.cpu.bucket import CpuBucket
from numba_lamb.engine.cpu.record import CpuRecord
from numba_lamb.engine.interface import Backend, Subject, named_stats
from numba_lamb.engine.records import RecordLayout
from numba_lamb.groups import Parameter
from numba_lamb.kernels import columns
from numba_lamb.layout import FlatLayout, Layer
from numba_lamb.memory.arrays import plain
from numba_lamb.memory.gradients import Reader
from numba_lamb.memory.host_reader import HostReader


class CpuBackend(Backend):
    """Runs steps on the CPU.

    Parameters
    ----------
    num_threads : int or None
        CPU threads.
    """

    waits = False

    def __init__(self, num_threads: int | None) -> None:
        self.nonfinite = "raise"
        self._num_threads = num_threads
        self._counters = phases.Counters()

    def new_reader(self, layers: Sequence[Layer], arrays: Sequence[Any]) -> Reader:
        """Return what says where these parameters and their gradients lie."""
        return HostReader(layers, arrays)

    def new_bucket(
        self,
        layout: FlatLayout,
        dtype: np.dtype[Any],
        parameters: Sequence[Parameter],
        state_names: Sequence[str],
    ) -> CpuBucket:
        """Return tables and zeroed state for the layers of `dtype`."""
        return CpuBucket(layout, dtype, parameters, state_names)

    def values_of(self, parameter: Parameter) -> NDArray[Any]:
        """Return a parameter's values."""
        return plain(parameter.array)

    def writer(self, parameter: Parameter, values: NDArray[Any]) -> Callable[[], Any]:
        """Return what writes values of the right form into a parameter, and runs no Python."""
        return partial(plain(parameter.array).__setitem__, Ellipsis, values)

    def placed(self, optimizer: Subject) -> None:
        """Have the next step write rates and decays anew."""
        self._record_layout: RecordLayout | None = None
        for bucket in self._cpu_buckets(optimizer):
            bucket.forget_written()

    def counters(self) -> tuple[int, int]:
        """Return how many steps were applied and how many skipped."""
        return self._counters.applied, self._counters.skipped

    def set_counters(self, applied: int, skipped: int) -> None:
        """Set what `counters` returns."""
        self._counters.reset(applied, skipped)

    def stats(self, optimizer: Subject) -> dict[str, float]:
        """Return the optimizer's statistics by name."""
        written = {
            id(bucket): (bucket.norms, bucket.updated, bucket.hyper[:, columns.ADAPT])
            for bucket in self._cpu_buckets(optimizer)
        }
        return named_stats(optimizer._statistics, optimizer._placement, written, self._counters.grad_norm)

    def record(self, optimizer: Subject) -> CpuRecord:
        """Return a copy of what the last step left."""
        buckets: Any = optimizer._buckets
        if self._record_layout is None:
            self._record_layout = RecordLayout(buckets, optimizer._placement, optimizer._statistics)
        return CpuRecord(self._record_layout, buckets, self._counters, optimizer._gradients.found)

    def _cpu_buckets(self, optimizer: Subject) -> list[CpuBucket]:
        return [bucket for bucket in optimizer._buckets if isinstance(bucket, CpuBucket)]

    def step(self, optimizer: Subject, gradients: Any, stream: object) -> bool:
        """Take a step and return whether it was applied."""
        if stream is not None:
            raise ValueError("stream is for arrays on a GPU; these parameters are NumPy arrays")
        buckets = self._cpu_buckets(optimizer)
        rates = self._values(optimizer, buckets, "lr")
        decays = self._values(optimizer, buckets, "weight_decay")
        held = optimizer._gradients.ordered(gradients)
        # Schedules and what gives the gradients are the user's code; from here on none runs.
        optimizer._gradients.update(held)
        for bucket in buckets:
            common = bucket.common_step()
            # Corrected rates are multiplied where they stand, and decay outside the direction depends on the rate.
            if bucket.corrects_rates or (rates, decays) != (bucket.written_rates, bucket.written_decays):
                bucket.forget_written()
                bucket.write_rates(np.array(rates)[bucket.group_of])
                bucket.write_decays(np.array(decays)[bucket.group_of])
                bucket.written_rates, bucket.written_decays = rates, decays
            if optimizer._has_two_moments:
                bucket.write_corrections(common)
        passed, norm = phases.inspect(buckets, optimizer._nonfinite, optimizer._loss_scale, self._num_threads)
        if passed:
            phases.commit(buckets, optimizer._has_two_moments, self._counters, norm, self._num_threads)
        else:
            self._counters.skip()
        del held
        return passed

    def _values(self, optimizer: Subject, buckets: Sequence[CpuBucket], key: str) -> list[float]:
        applied = self._counters.applied
        values = optimizer._groups.values(key, applied)
        for bucket in buckets:
            if max(values) > bucket.largest and max(values[k] for k in bucket.group_of) > bucket.largest:
                index = max(bucket.group_of.tolist(), key=values.__getitem__)
                raise ValueError(
                    f"{key!r} of group {index} at step {applied} is {values[index]!r}, "
                    f"more than the {bucket.dtype} of its parameters can hold"
                )
        return values
