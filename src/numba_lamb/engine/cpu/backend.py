"""CpuBackend: a step on the CPU, in order."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.engine.columns import write_gradient_formats
from numba_lamb.engine.cpu.bucket import CpuBucket
from numba_lamb.engine.cpu.calibration import Calibration
from numba_lamb.engine.cpu.counters import Counters
from numba_lamb.engine.cpu.finite import inspect
from numba_lamb.engine.cpu.record import CpuRecord
from numba_lamb.engine.interface import Backend, Plan, named_stats
from numba_lamb.engine.precision import Precision
from numba_lamb.engine.records import RecordLayout
from numba_lamb.groups import Parameter
from numba_lamb.kernels import columns
from numba_lamb.kernels.cpu import launch
from numba_lamb.kernels.cpu.program import Program
from numba_lamb.layout import FlatLayout, Layer
from numba_lamb.memory.arrays import plain
from numba_lamb.memory.gradients import Held, Reader
from numba_lamb.memory.host_reader import HostReader
from numba_lamb.methods.passes import Pass

COUNT_LAYERS = Pass("count_layers", "layer")
"""The last pass over a bucket, which on a GPU is a part of others."""


class CpuBackend(Backend):
    """Runs steps on the CPU.

    Parameters
    ----------
    num_threads : int or None
        CPU threads.
    """

    waits = False
    _plan: Plan

    def __init__(self, num_threads: int | None) -> None:
        self.nonfinite = "raise"
        self._num_threads = num_threads
        self._counters = Counters()
        self._held: Held | None = None
        self._norm: float | None = None
        # The last step's gradients.
        self._found = np.zeros(0, dtype=np.int64)

    def __getstate__(self) -> dict[str, Any]:
        # A copy gets a plan of its own arrays.
        return {key: value for key, value in vars(self).items() if key in ("_num_threads", "_counters")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(None)  # type: ignore[misc]
        vars(self).update(state)

    def new_reader(self, layers: Sequence[Layer], arrays: Sequence[Any]) -> Reader:
        """Return what says where these parameters and their gradients lie."""
        return HostReader(layers, arrays)

    def new_bucket(
        self,
        layout: FlatLayout,
        dtype: np.dtype[Any],
        parameters: Sequence[Parameter],
        precisions: Sequence[Precision],
        state_names: Sequence[str],
    ) -> CpuBucket:
        """Return tables and zeroed state for the layers of `dtype`."""
        given = layout, dtype, parameters, precisions, state_names
        return CpuBucket(*given, *self._part_of(layout, dtype))

    def values_of(self, parameter: Parameter) -> NDArray[Any]:
        """Return a parameter's values."""
        return plain(parameter.array)

    def writer(self, parameter: Parameter, values: NDArray[Any]) -> Callable[[], Any]:
        """Return what writes values of the right form into a parameter, and runs no Python."""
        return partial(plain(parameter.array).__setitem__, Ellipsis, values)

    def place(self, plan: Plan) -> None:
        """Get ready for a plan that is new, or whose buckets, groups or method are."""
        self._plan = plan
        self._buckets = [bucket for bucket in plan.buckets if isinstance(bucket, CpuBucket)]
        self._calibration = Calibration(plan.layout.size, launch.thread_count(self._num_threads))
        for bucket in self._buckets:
            bucket.ahead = self._calibration.ahead
        self._record_layout: RecordLayout | None = None
        for bucket, counts in zip(self._buckets, plan.counts or (), strict=False):
            bucket.use_steps(counts)
        self.columns_changed()

    def columns_changed(self) -> None:
        """Have the next step write rates, decays and the gradients' factors anew."""
        self._scale: float | None = None
        self._written: tuple[list[float], list[float]] | None = None
        self._corrects_rates = any(bucket.corrects_rates for bucket in self._buckets)
        self._programs: list[tuple[Program, Sequence[int]]] = []
        self._dtypes: Mapping[int, np.dtype[Any]] | None = None

    # -- the step ------------------------------------------------------------------------------------------

    def prepare(self, read: Callable[[], Held], stream: object = None) -> bool:
        """Write all that the next step depends on, and return whether it can be taken."""
        if self._plan.found_inf:
            self._counters.skip()
            return False
        held = self._look(read, stream)
        passed = self._inspect()
        if passed:
            self._held, self._found = held, held.found
        return passed

    def _look(self, read: Callable[[], Held], stream: object) -> Held:
        """Write what a step depends on but for what is told by all gradients; return these."""
        if stream is not None:
            raise ValueError("stream is for arrays on a GPU; these parameters are NumPy arrays")
        rates, decays = self._values("lr"), self._values("weight_decay")
        # Schedules and what gives the gradients are the user's code; from here on none runs.
        held = read()
        if held.dtypes is not self._dtypes:
            self._write_formats(held.dtypes)
        self._write_scale(self._loss_scale)
        self._write_rates(rates, decays)
        return held

    def _inspect(self) -> bool:
        """Return whether the gradients can be used, else count a step that is left out, or raise."""
        passed, self._norm = inspect(
            self._buckets, self._plan.nonfinite, self._loss_scale, self._num_threads, self._meet
        )
        if not passed:
            self._counters.skip()
        return passed

    @property
    def _loss_scale(self) -> float:
        """What gradients were multiplied by."""
        return float(self._plan.loss_scale * (self._plan.grad_scale or 1.0))

    def _write_formats(self, dtypes: Mapping[int, np.dtype[Any]]) -> None:
        """Tell kernels how gradients are stored, by layer."""
        self._dtypes = None
        write_gradient_formats(self._buckets, self._plan.placement, dtypes)
        # Where all is stored as it is computed with, kernels are others.
        self._programs = []
        self._dtypes = dtypes

    def _values(self, key: str) -> list[float]:
        applied = self._counters.applied
        values = self._plan.groups.values(key, applied)
        for bucket in self._buckets:
            if max(values) > bucket.largest and max(values[k] for k in bucket.group_of) > bucket.largest:
                index = max(bucket.group_of.tolist(), key=values.__getitem__)
                raise ValueError(
                    f"{key} of group {index} must be held by the {bucket.dtype} of its parameters, got "
                    f"{values[index]!r} at step {applied}"
                )
        return values

    def _write_scale(self, scale: float) -> None:
        if scale != self._scale:
            # Not known until all buckets have it.
            self._scale = None
            for bucket in self._buckets:
                bucket.write_factors(scale)
            self._scale = scale

    def _write_rates(self, rates: list[float], decays: list[float]) -> None:
        buckets = self._buckets
        common = [bucket.common_step() for bucket in buckets]
        # Rates that were corrected must be written anew.
        if self._corrects_rates or (rates, decays) != self._written:
            self._written = None
            for bucket in buckets:
                bucket.write_rates(np.array(rates)[bucket.group_of])
                bucket.write_decays(np.array(decays)[bucket.group_of])
            self._written = rates, decays
        if self._plan.method.needs_steps:
            for bucket, steps in zip(buckets, common, strict=True):
                bucket.write_corrections(steps)

    def commit(self, between: Sequence[Callable[[], Any]] = ()) -> None:
        """Update and count all layers: whole, or, if this is interrupted, not at all."""
        for bucket in self._buckets:
            bucket.prepare_rows(self._plan.method.centralizes_decay)
        if not self._programs:
            self._programs = [self._program(part) for part in self._parts_of(self._passes)]
        counted = self._counters.program(self._norm)
        *before, last = self._programs
        for program, written in before:
            launch.commit(program, self._num_threads)
            self._meet(written, False)
        self._calibration.timed(partial(launch.commit, last[0], self._num_threads, between, counted))
        self._held = None

    @property
    def _passes(self) -> Sequence[Pass]:
        """A step."""
        return *self._plan.method.passes, COUNT_LAYERS

    def _parts_of(self, passes: Sequence[Pass]) -> Sequence[Sequence[Pass]]:
        """Return the passes, cut where ranks meet."""
        return [passes]

    def _program(self, part: Sequence[Pass]) -> tuple[Program, Sequence[int]]:
        """Return passes over all buckets as a program, and the columns of sums that they write."""
        work = [one for bucket in self._buckets for one in bucket.work(part)]
        return Program(work), sorted({column for one in part for column in one.writes})

    def _meet(self, written: Sequence[int], looked: bool) -> None:
        """Have buckets know the sums of all chunks in these columns, and what a finite check found."""

    # -- what steps left -----------------------------------------------------------------------------------

    def counters(self) -> tuple[int, int]:
        """Return how many steps were applied and how many skipped."""
        return self._counters.applied, self._counters.skipped

    def set_counters(self, applied: int, skipped: int) -> None:
        """Set what `counters` returns."""
        self._counters.reset(applied, skipped)

    def stats(self) -> dict[str, float]:
        """Return statistics by name."""
        written = {
            id(bucket): (
                bucket.norms,
                bucket.updated != columns.NOT_UPDATED,
                bucket.updated == columns.ADAPTED,
            )
            for bucket in self._buckets
        }
        plan = self._plan
        found = named_stats(plan.method.statistics, plan.placement, written, self._counters.grad_norm)
        for bucket in self._buckets:
            found |= bucket.beyond_float16()
        return found

    def record(self) -> CpuRecord:
        """Return a copy of what the last step left."""
        if self._record_layout is None:
            plan = self._plan
            self._record_layout = RecordLayout(self._buckets, plan.placement, plan.method.statistics)
        return CpuRecord(self._record_layout, self._buckets, self._counters, self._found)
