"""The phases of a step on the CPU that every kind of optimizer has, once rates and gradients are known."""

from collections.abc import Sequence

import numpy as np

from numba_lamb.kernels import cpu, launch, rows
from numba_lamb.numerics import rules
from numba_lamb.optimizers import inspection
from numba_lamb.optimizers.cpu_part import CpuPart


def inspect(
    parts: Sequence[CpuPart], nonfinite: str, loss_scale: float, num_threads: int | None
) -> tuple[bool, float | None]:
    """Look at the gradients as the parts' settings ask for, and write what they are multiplied by.

    Returns
    -------
    passed : bool
        Whether the step may be taken. Raises instead if `nonfinite` is ``"raise"``.
    norm : float or None
        That of the gradients that are clipped, None if none is.
    """
    norm = None
    if any(part.clips for part in parts):
        norm = inspection.measure(parts, loss_scale, num_threads)
        for part in parts:
            _write_rescale(part, norm, loss_scale)
    elif any(part.checks for part in parts):
        inspection.look_over(parts, num_threads)
    if not any(part.checks for part in parts):
        return True, norm
    watched = norm if any(part.checks and part.clips for part in parts) else None
    return inspection.passed(parts, watched, nonfinite), norm


def _write_rescale(part: CpuPart, norm: float, loss_scale: float) -> None:
    limits = part.settings[:, rows.LIMIT].tolist()
    known = {limit: rules.clip_factor(norm, limit) if limit > 0 else 1.0 for limit in set(limits)}
    factors = np.array([known[limit] for limit in limits])
    part.scalars[:, rows.RESCALE] = part.settings[:, rows.SIGN] * (factors / loss_scale)


def run(part: CpuPart, has_two_moments: bool, num_threads: int | None) -> None:
    """Update the layers of one part: Lamb has two moments, Lars and Momentum have one."""
    table, scalars = part.table, part.scalars
    chunks = len(table.chunks)
    if part.shrinks:
        launch.run(cpu.decay_weights, chunks, num_threads, part.addresses, scalars, table.sizes, table.chunks)
    if len(part.row_table):
        factors = scalars[:, [rows.RESCALE, rows.DECAY]]
        if has_two_moments:
            # LAMB centralizes the gradient itself, with no decay in it.
            factors[:, 1] = 0
        part.update_row_means(np.ascontiguousarray(factors), num_threads)
    kernel = cpu.lamb_step if has_two_moments else cpu.lars_step
    launch.run(kernel, chunks, num_threads, *part.step_tables)
