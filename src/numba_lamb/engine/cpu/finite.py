"""What a step must know of its gradients before anything is written: whether they are finite, and their norm."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from numba_lamb.engine.bucket import Bucket
from numba_lamb.engine.cpu.bucket import CpuBucket
from numba_lamb.kernels import columns
from numba_lamb.kernels.cpu import launch, passes
from numba_lamb.numerics import rules

Looked: TypeAlias = tuple[Bucket, NDArray[np.int32], NDArray[np.float64]]
"""A bucket with the count of values that are not finite in each chunk, and each layer's sum of squares."""


def look_over(buckets: Sequence[CpuBucket], loss_scale: float, num_threads: int | None) -> None:
    """Count the values that cannot be used, in layers where all must be."""
    for bucket in buckets:
        bucket.find_bounds(loss_scale)
        tables = bucket.addresses, bucket.hyper, bucket.bounds, bucket.table.sizes, bucket.table.chunks
        launch.run(passes.check_gradients, len(bucket.table.chunks), num_threads, *tables, bucket.nonfinite)
        _forgive(bucket)


def measure(buckets: Sequence[CpuBucket], loss_scale: float, num_threads: int | None) -> float:
    """Do `look_over` and return the norm of the gradients that are clipped, without the loss scale."""
    total = 0.0
    for bucket in buckets:
        bucket.find_bounds(loss_scale)
        tables = bucket.addresses, bucket.hyper, bucket.bounds, bucket.table.sizes, bucket.table.chunks
        launch.run(
            passes.gradient_squares,
            len(bucket.table.chunks),
            num_threads,
            *tables,
            bucket.nonfinite,
            bucket.sums,
        )
        passes.total_squares.serial(
            bucket.table.first_chunk, bucket.sums, bucket.hyper64, bucket.squares, bucket.total
        )
        total += float(bucket.total[0])
        _forgive(bucket)
    return float(rules.gradient_norm(total, loss_scale))


def _forgive(bucket: CpuBucket) -> None:
    """Forget what was found in layers whose gradients need not be finite."""
    checked = bucket.hyper64[:, columns.CHECKED] != 0
    if not checked.all():
        bucket.nonfinite[~checked[bucket.table.chunks[:, 0]]] = 0


def passed(buckets: Sequence[CpuBucket], norm: float | None, nonfinite: str) -> bool:
    """Return whether gradients that were looked over, or have this norm, can be used; raise if so asked."""
    complaint = _complaint([(bucket, bucket.nonfinite, bucket.squares) for bucket in buckets], norm)
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
    for bucket, nonfinite, _ in looked:
        if nonfinite.any():
            row = bucket.table.chunks[np.flatnonzero(nonfinite)[0], 0]
            first, last = bucket.table.first_chunk[row : row + 2]
            count = nonfinite[first:last].sum()
            bound = float(bucket.hyper64[row, columns.BOUND])
            return (
                f"gradient of {bucket.layers[row].name!r} has {count} values that are infinite or NaN, or beyond "
                f"{bound:.3g}, from where the moments may overflow"
            )
    if norm is None or math.isfinite(norm):
        return None
    bucket, _, squares = max(looked, key=lambda entry: float(entry[2].max()))
    name = bucket.layers[int(squares.argmax())].name
    return (
        f"the norm of the gradients, all of them finite, is not: float64 cannot hold it; that of {name!r} "
        "is the largest"
    )
