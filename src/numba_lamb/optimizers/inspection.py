"""What a step must know of its gradients before anything is written: whether they are finite, and their norm."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from numba_lamb.kernels import cpu, launch, rows
from numba_lamb.numerics import rules
from numba_lamb.optimizers.cpu_part import CpuPart
from numba_lamb.optimizers.parts import Part

Looked: TypeAlias = tuple[Part, NDArray[np.int32], NDArray[np.float64]]
"""A part with the count of values that are not finite in each chunk, and each layer's sum of squares."""


def look_over(parts: Sequence[CpuPart], loss_scale: float, num_threads: int | None) -> None:
    """Count the values that cannot be used, in layers where all must be."""
    for part in parts:
        part.find_bounds(loss_scale)
        tables = part.addresses, part.scalars, part.bounds, part.table.sizes, part.table.chunks
        launch.run(cpu.check_gradients, len(part.table.chunks), num_threads, *tables, part.nonfinite)
        _forgive(part)


def measure(parts: Sequence[CpuPart], loss_scale: float, num_threads: int | None) -> float:
    """Do `look_over` and return the norm of the gradients that are clipped, without the loss scale."""
    total = 0.0
    for part in parts:
        part.find_bounds(loss_scale)
        tables = part.addresses, part.scalars, part.bounds, part.table.sizes, part.table.chunks
        launch.run(
            cpu.gradient_squares, len(part.table.chunks), num_threads, *tables, part.nonfinite, part.sums
        )
        cpu.total_squares.serial(part.table.first_chunk, part.sums, part.settings, part.squares, part.total)
        total += float(part.total[0])
        _forgive(part)
    return float(rules.gradient_norm(total, loss_scale))


def _forgive(part: CpuPart) -> None:
    """Forget what was found in layers whose gradients need not be finite."""
    checked = part.settings[:, rows.CHECKED] != 0
    if not checked.all():
        part.nonfinite[~checked[part.table.chunks[:, 0]]] = 0


def passed(parts: Sequence[CpuPart], norm: float | None, nonfinite: str) -> bool:
    """Return whether gradients that were looked over, or have this norm, can be used; raise if so asked."""
    complaint = _complaint([(part, part.nonfinite, part.squares) for part in parts], norm)
    if complaint is not None and nonfinite == "raise":
        raise FloatingPointError(_NOTHING_CHANGED.format(complaint))
    return complaint is None


def require(looked: Sequence[Looked], norm: float | None) -> None:
    """Raise unless gradients that were looked over, or have this norm, can be used."""
    complaint = _complaint(looked, norm)
    if complaint is not None:
        raise FloatingPointError(_NOTHING_CHANGED.format(complaint))


_NOTHING_CHANGED = '{}; nothing was changed (nonfinite="skip" leaves such a step out)'


def _complaint(looked: Sequence[Looked], norm: float | None) -> str | None:
    for part, nonfinite, _ in looked:
        if nonfinite.any():
            row = part.table.chunks[np.flatnonzero(nonfinite)[0], 0]
            first, last = part.table.first_chunk[row : row + 2]
            count = nonfinite[first:last].sum()
            bound = float(part.settings[row, rows.BOUND])
            return (
                f"gradient of {part.layers[row].name!r} has {count} values that are infinite or NaN, or beyond "
                f"{bound:.3g}, from where the moments may overflow"
            )
    if norm is None or math.isfinite(norm):
        return None
    part, _, squares = max(looked, key=lambda entry: float(entry[2].max()))
    name = part.layers[int(squares.argmax())].name
    return (
        f"the norm of the gradients, all of them finite, is not: float64 cannot hold it; that of {name!r} "
        "is the largest"
    )
