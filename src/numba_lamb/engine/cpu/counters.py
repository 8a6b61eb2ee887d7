"""Counters: how many steps were applied and skipped, as kernels count them."""

from typing import Any

import numpy as np

from numba_lamb.kernels import columns
from numba_lamb.kernels.cpu import passes
from numba_lamb.kernels.cpu.program import Program, Work


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
