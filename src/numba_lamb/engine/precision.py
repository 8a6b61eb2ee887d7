"""Precision: in which dtypes a bucket's parameters are stored, computed with, and their moments kept."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Precision:
    """The dtypes of a bucket.

    Attributes
    ----------
    storage : numpy.dtype
        Of parameters and gradients.
    compute : numpy.dtype
        Of the arithmetic, and so of hyper-parameters, step lengths and row means.
    state : numpy.dtype
        Of the moments.
    """

    storage: np.dtype[Any]
    compute: np.dtype[Any]
    state: np.dtype[Any]

    @property
    def largest(self) -> float:
        """The largest number that arithmetic can hold."""
        return float(np.finfo(self.compute).max)


def precision_of(dtype: np.dtype[Any]) -> Precision:
    """Return how parameters of `dtype` are computed with: float32 and float64 in their own dtype throughout."""
    return Precision(dtype, dtype, dtype)
