"""Writes the groups' options, and how gradients are stored, into the columns that kernels read."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from numba_lamb.engine.bucket import Bucket
from numba_lamb.kernels import columns
from numba_lamb.methods.options import Row
from numba_lamb.numerics import rules


def write_options(
    buckets: Sequence[Bucket],
    groups: Sequence[Row],
    decayed: Sequence[Sequence[bool]],
    adaptable: Sequence[Sequence[bool]],
    loss_scale: float = 1.0,
) -> None:
    """Write every layer's options, or raise before anything is written.

    Parameters
    ----------
    buckets : sequence of Bucket
        The layers.
    groups : sequence of Row
        What kernels are told of each group.
    decayed, adaptable : sequence of sequence of bool
        For each layer of each bucket whether its filters let it be decayed, and have a trust ratio.
    loss_scale : float
        What gradients were multiplied by.
    """
    for bucket in buckets:
        bucket.check_precisions(groups)
        for index in {*bucket.group_of.tolist()}:
            for column, name in groups[index].held.items():
                bucket.cast(name, groups[index].hyper[column])
        bucket.cast("1/loss_scale", 1.0 / loss_scale)
    for bucket, decays, adapts in zip(buckets, decayed, adaptable, strict=True):
        hyper, hyper64 = bucket.hyper, bucket.hyper64
        hyper64[:, columns.DECAYED] = decays
        for index in {*bucket.group_of.tolist()}:
            own, row = bucket.group_of == index, groups[index]
            hyper64[own, columns.BOUND] = row.bound(bucket.largest)
            hyper64[own, columns.ADAPTS] = row.adapts
            for column, value in row.hyper64.items():
                hyper64[own, column] = value
            for column, value in row.hyper.items():
                hyper[own, column] = value
            bucket.random[own, columns.SEED] = row.seed
        hyper64[~np.array(adapts, dtype=np.bool_), columns.ADAPTS] = rules.NEVER
        hyper[:, columns.RESCALE] = rules.gradient_factor(hyper64[:, columns.SIGN], 1.0, loss_scale)
        bucket.refresh_flags()


def write_gradient_formats(
    buckets: Sequence[Bucket], placement: Sequence[tuple[Bucket, int]], dtypes: Mapping[int, np.dtype[Any]]
) -> None:
    """Tell kernels how gradients are stored, of which `dtypes` has those that are not what is computed with.

    `placement` has each layer's bucket and its row there.
    """
    given: dict[int, dict[int, np.dtype[Any]]] = {}
    for k, dtype in dtypes.items():
        bucket, row = placement[k]
        given.setdefault(id(bucket), {})[row] = dtype
    for each in buckets:
        each.write_gradient_formats(given.get(id(each), {}))
