"""CpuEngine: steps on the CPU."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.engine.cpu import phases
from numba_lamb.engine.cpu.bucket import CpuBucket
from numba_lamb.engine.cpu.record import CpuRecord
from numba_lamb.engine.interface import named_stats
from numba_lamb.engine.records import RecordLayout
from numba_lamb.kernels import columns
from numba_lamb.methods.checks import plain
from numba_lamb.numerics import rules
from numba_lamb.torch.model import Model, Step


class CpuEngine:
    """Runs the steps of a model on the CPU, on as many threads as PyTorch uses.

    Parameters
    ----------
    has_two_moments : bool
        Whether the kernels are Lamb's.
    """

    make_bucket = CpuBucket

    def __init__(self, has_two_moments: bool) -> None:
        self._has_two_moments = has_two_moments
        self._loss_scale = 1.0
        self._counters = phases.Counters()
        self._norm: float | None = None
        self._found = np.zeros(0, dtype=np.int64)

    def place(self, model: Model, groups: int, statistics: Sequence[tuple[str, int, bool]]) -> None:
        """Get ready for a model that is new."""
        self._placement, self._statistics = model.placement, statistics
        self._buckets = [bucket for bucket in model.buckets if isinstance(bucket, CpuBucket)]
        self._record_layout = RecordLayout(self._buckets, self._placement, statistics)
        counts = model.steps.numpy()
        first = 0
        for bucket in self._buckets:
            # A view, so that steps are counted where PyTorch shows them.
            bucket.use_steps(counts[first : first + len(bucket.layers)])
            first += len(bucket.layers)
        self.options_changed()

    @property
    def skipped(self) -> int:
        """Steps left out."""
        return self._counters.skipped

    def options_changed(self) -> None:
        """Forget the cached rates and loss scale: the option columns were rewritten."""
        self._loss_scale = 1.0
        # What rates and decays were made of: the same objects as long as they are the same.
        self._written: tuple[Any, Any] = (None, None)

    def prepare(
        self,
        step: Step,
        rates: Sequence[float],
        decays: NDArray[np.float64],
        nonfinite: str,
        loss_scale: Any,
        found_inf: Any,
    ) -> bool:
        """Write all that a step depends on, and return whether it can be taken.

        Parameters
        ----------
        step : Step
            What the model says of the gradients.
        rates, decays : sequence of float
            Of each group.
        nonfinite : str
            What is done about gradients that are not finite, where a group has them checked.
        loss_scale, found_inf : Tensor or None
            What PyTorch's GradScaler says.
        """
        if found_inf is not None and plain(found_inf):
            self._counters.skip()
            return False
        self._found = step.found
        common = [bucket.common_step() for bucket in self._buckets]
        self._write_scale(1.0 if loss_scale is None else float(plain(loss_scale)))
        self._write_rates(rates, decays)
        if self._has_two_moments:
            for bucket, steps in zip(self._buckets, common, strict=True):
                bucket.write_corrections(steps)
        passed, self._norm = phases.inspect(self._buckets, nonfinite, self._loss_scale, None)
        if not passed:
            self._counters.skip()
        return passed

    def _write_scale(self, scale: float) -> None:
        if scale != self._loss_scale:
            # Not known until all parts have it.
            self._loss_scale = math.nan
            for bucket in self._buckets:
                bucket.hyper[:, columns.RESCALE] = rules.gradient_factor(
                    bucket.hyper64[:, columns.SIGN], 1.0, scale
                )
            self._loss_scale = scale

    def _write_rates(self, rates: Sequence[float], decays: NDArray[np.float64]) -> None:
        # Rates that were corrected must be written anew.
        corrected = any(bucket.corrects_rates for bucket in self._buckets)
        if corrected or rates is not self._written[0] or decays is not self._written[1]:
            self._written = (None, None)
            for bucket in self._buckets:
                bucket.write_rates(np.array(rates, dtype=np.float64)[bucket.group_of])
                bucket.write_decays(decays[bucket.group_of])
            self._written = rates, decays

    def commit(self, scatter: Sequence[Callable[[], Any]]) -> None:
        """Take the step that was prepared; `scatter` belongs to the update and runs no Python."""
        buckets, counters = self._buckets, self._counters
        phases.commit(buckets, self._has_two_moments, counters, self._norm, None, scatter)

    def stats(self) -> Mapping[str, float]:
        """Return statistics by name."""
        written = {
            id(bucket): (bucket.norms, bucket.updated, bucket.hyper[:, columns.ADAPT])
            for bucket in self._buckets
        }
        return named_stats(self._statistics, self._placement, written, self._counters.grad_norm)

    def record(self) -> CpuRecord:
        """Return a copy of what the last step left."""
        return CpuRecord(self._record_layout, self._buckets, self._counters, self._found)
