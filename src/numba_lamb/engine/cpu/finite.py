"""Looks at the gradients before anything is written: whether they are usable, and their norm."""

from collections.abc import Callable, Sequence

import numpy as np

from numba_lamb.engine.complaint import complaint, require
from numba_lamb.engine.cpu.bucket import CpuBucket
from numba_lamb.kernels import columns
from numba_lamb.kernels.cpu import launch, passes
from numba_lamb.numerics import rules

Meet = Callable[[Sequence[int], bool], object]
"""Makes buckets know what is told of all chunks: columns of sums, and whether what a finite check found."""


def inspect(
    buckets: Sequence[CpuBucket],
    nonfinite: str,
    loss_scale: float,
    num_threads: int | None,
    meet: Meet,
) -> tuple[bool, float | None]:
    """Look at the gradients as the buckets' columns ask for, and write what they are multiplied by.

    `meet` is called once the own chunks were looked at; after it the buckets know of all chunks.

    Returns
    -------
    passed : bool
        Whether the step may be taken. Raises instead if `nonfinite` is ``"raise"``.
    norm : float or None
        That of the gradients that are clipped, None if none is.
    """
    norm = None
    if any(bucket.clips for bucket in buckets):
        norm = _measure(buckets, loss_scale, num_threads, meet)
        for bucket in buckets:
            _write_rescale(bucket, norm, loss_scale)
    elif any(bucket.checks for bucket in buckets):
        _look_over(buckets, loss_scale, num_threads, meet)
    if not any(bucket.checks for bucket in buckets):
        return True, norm
    watched = norm if any(bucket.checks and bucket.clips for bucket in buckets) else None
    return _passed(buckets, watched, nonfinite), norm


def _write_rescale(bucket: CpuBucket, norm: float, loss_scale: float) -> None:
    limits = bucket.hyper64[:, columns.MAX_GRAD_NORM].tolist()
    known = {limit: rules.clip_factor(norm, limit) if limit > 0 else 1.0 for limit in set(limits)}
    factors = np.array([known[limit] for limit in limits])
    bucket.hyper[:, columns.RESCALE] = rules.gradient_factor(
        bucket.hyper64[:, columns.SIGN], factors, loss_scale
    )


def _look_over(
    buckets: Sequence[CpuBucket],
    loss_scale: float,
    num_threads: int | None,
    meet: Meet,
) -> None:
    """Count the values that cannot be used, in layers where all must be."""
    for bucket in buckets:
        bucket.find_bounds(loss_scale)
        launch.run(
            passes.check_gradients,
            len(bucket.chunks),
            num_threads,
            bucket.addresses,
            bucket.formats,
            bucket.bounds,
            bucket.bound_patterns,
            bucket.signless,
            bucket.sizes,
            bucket.chunks,
            bucket.ahead,
            bucket.nonfinite,
        )
    meet((), True)
    for bucket in buckets:
        _forgive(bucket)


def _measure(
    buckets: Sequence[CpuBucket],
    loss_scale: float,
    num_threads: int | None,
    meet: Meet,
) -> float:
    """Do `_look_over` and return the norm of the gradients that are clipped, without the loss scale."""
    total = 0.0
    for bucket in buckets:
        bucket.find_bounds(loss_scale)
        launch.run(
            passes.gradient_squares,
            len(bucket.chunks),
            num_threads,
            bucket.addresses,
            bucket.formats,
            bucket.bounds,
            bucket.sizes,
            bucket.chunks,
            bucket.ahead,
            bucket.nonfinite,
            bucket.sums,
        )
    meet((columns.GRADIENT_SQUARES,), True)
    for bucket in buckets:
        passes.total_squares.serial(
            bucket.all_first_chunk, bucket.all_sums, bucket.hyper64, bucket.squares, bucket.total
        )
        total += float(bucket.total[0])
        _forgive(bucket)
    return float(rules.gradient_norm(total, loss_scale))


def _forgive(bucket: CpuBucket) -> None:
    """Forget what was found in layers whose gradients need not be finite."""
    checked = bucket.hyper64[:, columns.CHECKED] != 0
    if not checked.all():
        bucket.all_nonfinite[~checked[bucket.all_chunks[:, 0]]] = 0


def _passed(buckets: Sequence[CpuBucket], norm: float | None, nonfinite: str) -> bool:
    """Return whether gradients that were looked over, or have this norm, can be used; raise if so asked."""
    looked = [(bucket, bucket.all_nonfinite, bucket.squares) for bucket in buckets]
    if nonfinite == "raise":
        require(looked, norm)
        return True
    return complaint(looked, norm) is None
