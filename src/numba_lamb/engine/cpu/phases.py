"""The phases of a step on the CPU that every kind of optimizer has, once rates and gradients are known."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from numba_lamb.engine.cpu import finite
from numba_lamb.engine.cpu.bucket import CpuBucket
from numba_lamb.kernels import columns
from numba_lamb.kernels.cpu import launch, passes
from numba_lamb.kernels.cpu.program import Program, Work
from numba_lamb.numerics import rules


class Counters:
    """How many steps were applied and skipped, and the norm of the last one's gradients.

    A step's last kernel writes them, so that they always say what weights and moments are of.
    """

    def __init__(self) -> None:
        self.values = np.zeros(columns.COUNTS, dtype=np.int64)
        """Steps applied and skipped, as kernels count them."""
        self.taken_norm: float | None = None
        """The norm of the last step that was begun, None if nothing was to be clipped."""
        # Whether there is a norm, and that: of the step that is being taken, and of the last one.
        self._norm, self._shown = np.zeros((2, 2))
        self._program: Program | None = None
        self.started = [0, 0]
        """The counts that were set last: another list whenever they are."""

    def __getstate__(self) -> dict[str, Any]:
        # A program is bound to these arrays, of which a copy has its own.
        return {**vars(self), "_program": None}

    @property
    def applied(self) -> int:
        """Steps applied."""
        return int(self.values[columns.APPLIED])

    @property
    def skipped(self) -> int:
        """Steps left out."""
        return int(self.values[columns.SKIPPED])

    @property
    def grad_norm(self) -> float | None:
        """The norm of the last step's gradients, None if none were clipped."""
        return float(self._shown[1]) if self._shown[0] else None

    def reset(self, applied: int, skipped: int) -> None:
        """Set the counts, and forget the norm."""
        self.values[:] = applied, skipped
        self._shown[:] = 0
        self.started = [applied, skipped]

    def skip(self) -> None:
        """Count a step that is left out."""
        self.values[columns.SKIPPED] += 1

    def program(self, norm: float | None) -> Program:
        """Return what counts a step whose gradients have this norm."""
        if norm is not None or self._norm[0]:
            self._norm[:] = norm is not None, norm or 0.0
        self.taken_norm = norm
        if self._program is None:
            self._program = Program([Work(passes.count_step, 0, (self.values, self._norm, self._shown))])
        return self._program


def inspect(
    buckets: Sequence[CpuBucket], nonfinite: str, loss_scale: float, num_threads: int | None
) -> tuple[bool, float | None]:
    """Look at the gradients as the buckets' columns ask for, and write what they are multiplied by.

    Returns
    -------
    passed : bool
        Whether the step may be taken. Raises instead if `nonfinite` is ``"raise"``.
    norm : float or None
        That of the gradients that are clipped, None if none is.
    """
    norm = None
    if any(bucket.clips for bucket in buckets):
        norm = finite.measure(buckets, loss_scale, num_threads)
        for bucket in buckets:
            _write_rescale(bucket, norm, loss_scale)
    elif any(bucket.checks for bucket in buckets):
        finite.look_over(buckets, loss_scale, num_threads)
    if not any(bucket.checks for bucket in buckets):
        return True, norm
    watched = norm if any(bucket.checks and bucket.clips for bucket in buckets) else None
    return finite.passed(buckets, watched, nonfinite), norm


def _write_rescale(bucket: CpuBucket, norm: float, loss_scale: float) -> None:
    limits = bucket.hyper64[:, columns.MAX_GRAD_NORM].tolist()
    known = {limit: rules.clip_factor(norm, limit) if limit > 0 else 1.0 for limit in set(limits)}
    factors = np.array([known[limit] for limit in limits])
    bucket.hyper[:, columns.RESCALE] = rules.gradient_factor(
        bucket.hyper64[:, columns.SIGN], factors, loss_scale
    )


def commit(
    buckets: Sequence[CpuBucket],
    has_two_moments: bool,
    counters: Counters,
    norm: float | None,
    num_threads: int | None,
    between: Sequence[Callable[[], Any]] = (),
) -> None:
    """Update and count all layers: whole, or, if this is interrupted, not at all.

    Parameters
    ----------
    buckets : sequence of CpuPart
        The layers; Lamb's have two moments, those of Lars and Momentum one.
    has_two_moments : bool
        Which of them these are.
    counters : Counters
        What is counted in.
    norm : float or None
        That of the gradients, if they are clipped.
    num_threads : int or None
        CPU threads.
    between : sequence of callable
        What else belongs to the update, and runs no Python.
    """
    for bucket in buckets:
        bucket.prepare_rows(has_two_moments)
    programs = [bucket.program(has_two_moments) for bucket in buckets]
    launch.commit(programs, between, counters.program(norm), num_threads)
