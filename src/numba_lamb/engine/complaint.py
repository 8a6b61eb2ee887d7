"""Why a step's gradients cannot be used, by the layer's name."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from numba_lamb.engine.bucket import Bucket
from numba_lamb.kernels import columns

Looked: TypeAlias = tuple[Bucket, NDArray[np.int32], NDArray[np.float64]]
"""A bucket with the count of values that are not finite in each chunk, and each layer's sum of squares."""


def require(looked: Sequence[Looked], norm: float | None) -> None:
    """Raise unless gradients that were looked over, or have this norm, can be used."""
    found = complaint(looked, norm)
    if found is not None:
        raise FloatingPointError(f'{found}; nothing was changed (nonfinite="skip" leaves such a step out)')


def complaint(looked: Sequence[Looked], norm: float | None) -> str | None:
    """Return why gradients that were looked over, or have this norm, cannot be used; None if they can."""
    for bucket, nonfinite, _ in looked:
        if nonfinite.any():
            row = bucket.all_chunks[np.flatnonzero(nonfinite)[0], 0]
            first, last = bucket.all_first_chunk[row : row + 2]
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
