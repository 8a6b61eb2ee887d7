"""Precision: how the arrays of one layer are stored, in what they are computed with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from numba_lamb.groups import Parameter
from numba_lamb.kernels import columns
from numba_lamb.layout import BFLOAT16, LANES, arithmetic_of
from numba_lamb.methods.options import Row

_FORMATS = {
    "bfloat16": columns.BFLOAT16,
    "float16": columns.FLOAT16,
    "float32": columns.FLOAT32,
    "float64": columns.FLOAT64,
}
_CODES = (np.dtype(np.int8), np.dtype(np.uint8))
_HALF, _REST = np.dtype(np.uint16), np.dtype(np.int16)
_SINGLE = np.dtype(np.float32)


class Piece(NamedTuple):
    """One array of a layer's state: what it is stored in, its elements, and its column of addresses."""

    dtype: np.dtype[Any]
    size: int
    column: int
    shaped: bool
    """Whether it has the parameter's shape, and not one value for a row of 128 elements."""

    def before(self, first: int) -> int:
        """Return how many bytes there would be before a layer's element `first`, a multiple of 128."""
        return (first if self.shaped else first // LANES) * self.dtype.itemsize


@dataclass(frozen=True)
class Precision:
    """How a layer is stored.

    Attributes
    ----------
    storage : numpy.dtype
        Of the parameter.
    master : str or None
        ``"split"`` where a parameter of 16 bits has a float32 master; None for none.
    moments : str or None
        ``"bfloat16"``, ``"int8"``, or None for the dtype of the arithmetic.
    """

    storage: np.dtype[Any]
    master: str | None = "split"
    moments: str | None = None

    @property
    def compute(self) -> np.dtype[Any]:
        """Of the arithmetic."""
        return arithmetic_of(self.storage)

    @property
    def weights(self) -> int:
        """The format of the weights."""
        if self.storage == self.compute:
            return columns.NATIVE
        if self.master is None:
            return _FORMATS[name_of(self.storage)]
        return columns.SPLIT if name_of(self.storage) == "bfloat16" else columns.MASTERED

    def moment(self, number: int) -> int:
        """Return the format of a moment, the first or the second."""
        if self.moments is None:
            return columns.NATIVE
        if self.moments == "int8":
            return columns.SECOND_8 if number else columns.FIRST_8
        return columns.SECOND_16 if number else columns.BFLOAT16

    def state(self, names: Sequence[str], size: int) -> dict[str, Piece]:
        """Return the arrays of a layer's state by name, moments with the given names first."""
        found = {}
        for number, name in enumerate(names):
            dtype = {None: self.compute, "bfloat16": _HALF, "int8": _CODES[number]}[self.moments]
            found[name] = Piece(dtype, size, columns.EXP_AVG + number, True)
        if self.weights == columns.SPLIT:
            found["remainder"] = Piece(_REST, size, columns.REST, True)
        if self.weights == columns.MASTERED:
            found["master"] = Piece(_SINGLE, size, columns.REST, True)
        if self.moments == "int8":
            for number, name in enumerate(names):
                rows = -(-size // LANES)
                found[f"{name}_scale"] = Piece(_SINGLE, rows, columns.EXP_AVG_SCALES + number, False)
        return found


def precisions_of(parameters: Sequence[Parameter], groups: Sequence[Row]) -> list[Precision]:
    """Return how parameters are stored by their groups, or raise if one cannot be stored so."""
    rows = [groups[parameter.group] for parameter in parameters]
    return [
        precision_of(parameter.name, parameter.storage.dtype, row.master, row.moments)
        for parameter, row in zip(parameters, rows, strict=True)
    ]


def precision_of(name: str, storage: np.dtype[Any], master: str | None, moments: str | None) -> Precision:
    """Return how a parameter is stored, or raise if it cannot be stored so."""
    if moments is not None and arithmetic_of(storage) == np.float64:
        raise ValueError(
            f"moments must be None for parameter {name!r} of float64, got {moments!r}; give it a group of its own"
        )
    return Precision(storage, master, moments)


def gradient_format(dtype: np.dtype[Any], compute: np.dtype[Any]) -> int:
    """Return the format of a gradient, given the dtype of the arithmetic."""
    return columns.NATIVE if dtype == compute else _FORMATS[name_of(dtype)]


def name_of(dtype: np.dtype[Any]) -> str:
    """Return the name of a floating-point dtype."""
    return "bfloat16" if dtype == BFLOAT16 else dtype.name
