"""Looks at the gradients before anything is written: whether they are usable, and their norm."""

from collections.abc import Sequence

from numba_lamb.engine.complaint import complaint, require
from numba_lamb.engine.cpu.bucket import CpuBucket
from numba_lamb.kernels import columns
from numba_lamb.kernels.cpu import launch, passes
from numba_lamb.numerics import rules


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
    looked = [(bucket, bucket.nonfinite, bucket.squares) for bucket in buckets]
    if nonfinite == "raise":
        require(looked, norm)
        return True
    return complaint(looked, norm) is None
