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


def look_over(parts: Sequence[CpuPart], num_threads: int | None) -> None:
    """Count the values that are not finite, in layers where they must be."""
    for part in parts:
        arguments = (part.addresses, part.scalars, part.table.sizes, part.table.chunks, part.nonfinite)
        launch.run(cpu.check_gradients, len(part.table.chunks), num_threads, *arguments)
        _forgive(part)


def measure(parts: Sequence[CpuPart], loss_scale: float, num_threads: int | None) -> float:
    """Do `look_over` and return the norm of the gradients that are clipped, without the loss scale."""
    total = 0.0
    for part in parts:
        arguments = (part.addresses, part.scalars, part.table.sizes, part.table.chunks, part.nonfinite)
        launch.run(cpu.gradient_squares, len(part.table.chunks), num_threads, *arguments, part.sums)
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
    looked = [(part, part.nonfinite, part.squares) for part in parts]
    if nonfinite == "raise":
        require(looked, norm)
    return _complaint(looked, norm) is None


def require(looked: Sequence[Looked], norm: float | None) -> None:
    """Raise unless gradients that were looked over, or have this norm, can be used."""
    complaint = _complaint(looked, norm)
    if complaint is not None:
        raise FloatingPointError(
            f'{complaint}; nothing was changed (nonfinite="skip" leaves such a step out)'
        )


def _complaint(looked: Sequence[Looked], norm: float | None) -> str | None:
    for part, nonfinite, _ in looked:
        if nonfinite.any():
            row = part.table.chunks[np.flatnonzero(nonfinite)[0], 0]
            first, last = part.table.first_chunk[row : row + 2]
            count = nonfinite[first:last].sum()
            return f"gradient of {part.layers[row].name!r} has {count} values that are infinite or NaN"
    if norm is None or math.isfinite(norm):
        return None
    part, _, squares = max(looked, key=lambda entry: float(entry[2].max()))
    name = part.layers[int(squares.argmax())].name
    return (
        f"the norm of the gradients, all of them finite, is not: float64 cannot hold it; that of {name!r} "
        "is the largest"
    )
