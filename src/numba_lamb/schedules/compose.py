"""Schedules made of others: joined, scaled, held at the last value, kept within bounds.

What goes in may be a number, a table with one value per step, a schedule, or any callable ``step -> rate``.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from ._base import LearningRateSchedule, length_of
from ._checks import AnyPiece, Finite, Piece, Table, integer, piece, rate_at
from .layerwise import LearningRateWiseLayer

__all__ = ["clamp", "hold_last", "scale", "sequence"]


def sequence(pieces: Sequence[Piece], boundaries: Sequence[int]) -> LearningRateSchedule:
    r"""Join schedules end to end, each counting its steps from its own start.

    .. math:: \eta_t = f_k(t - B_k) \quad \text{for } B_k \le t < B_{k+1}, \qquad B_0 = 0

    Parameters
    ----------
    pieces : sequence of number, table or callable
        The schedules :math:`f_0, f_1, \ldots`; the last one has no end.
    boundaries : sequence of int
        The steps :math:`B_1 < B_2 < \ldots` at which the next one takes over, one fewer than the pieces.

    Returns
    -------
    LearningRateSchedule
        A frozen schedule.

    Raises
    ------
    TypeError
        If a piece is no schedule or a boundary no integer.
    ValueError
        If there is no piece, the numbers do not match, the boundaries do not increase from 1 up, or a table
        is shorter than its stretch.

    Examples
    --------
    >>> from numba_lamb.schedules import CosineDecayLR, WarmUpLR, sequence
    >>> schedule = sequence([WarmUpLR(0.5, 2), 0.5, CosineDecayLR(0.0, 0.5, 4)], [2, 4])
    >>> schedule([0, 1, 2, 3, 4, 6, 8])
    array([0.  , 0.25, 0.5 , 0.5 , 0.5 , 0.25, 0.  ])
    """
    return _Sequence(pieces, boundaries)


def scale(schedule: Piece, factor: float) -> LearningRateSchedule:
    r"""Multiply a schedule by a constant.

    .. math:: \eta_t = c \, f(t)

    Parameters
    ----------
    schedule : number, table or callable
        The schedule :math:`f`.
    factor : float
        The constant :math:`c \ge 0`.

    Returns
    -------
    LearningRateWiseLayer
        This is the same thing under the name that a layer-wise rate has.

    Raises
    ------
    TypeError
        If ``schedule`` is no schedule or ``factor`` no number.
    ValueError
        If ``factor`` is negative or not finite.

    Examples
    --------
    >>> from numba_lamb.schedules import WarmUpLR, scale
    >>> scale(WarmUpLR(0.5, 2), 0.5)([0, 1, 2])
    array([0.   , 0.125, 0.25 ])
    """
    return LearningRateWiseLayer(schedule, factor)


def hold_last(table: Sequence[float] | npt.NDArray[np.floating[Any]]) -> LearningRateSchedule:
    r"""Turn a table into a schedule that keeps the table's last value past its end.

    .. math:: \eta_t = x_{\min(t, N - 1)}

    Parameters
    ----------
    table : sequence of float
        The values :math:`x_0, \ldots, x_{N-1}`, at least one.

    Returns
    -------
    LearningRateSchedule
        A frozen schedule.

    Raises
    ------
    TypeError
        If ``table`` is no sequence of numbers.
    ValueError
        If ``table`` is empty, has more than one dimension or a value that is not finite.

    Examples
    --------
    >>> from numba_lamb.schedules import hold_last, warmup_lr
    >>> hold_last(warmup_lr(0.5, total_step=4, step_per_epoch=1, warmup_epoch=2))([1, 3, 100])
    array([0.25, 0.5 , 0.5 ])
    """
    return _HoldLast(table)


def clamp(schedule: Piece, low: float, high: float) -> LearningRateSchedule:
    r"""Keep a schedule within bounds.

    .. math:: \eta_t = \min(\max(f(t), l), h)

    Parameters
    ----------
    schedule : number, table or callable
        The schedule :math:`f`; where it is NaN it stays NaN.
    low, high : float
        The bounds :math:`l \le h`.

    Returns
    -------
    LearningRateSchedule
        A frozen schedule.

    Raises
    ------
    TypeError
        If ``schedule`` is no schedule or a bound no number.
    ValueError
        If a bound is not finite or ``low`` is above ``high``.

    Examples
    --------
    >>> from numba_lamb.schedules import CosineDecayLR, clamp
    >>> clamp(CosineDecayLR(0.0, 0.5, 4), 0.125, 0.25)([0, 2, 4])
    array([0.25 , 0.25 , 0.125])
    """
    return _Clamp(schedule, low, high)


def _pieces(name: str, value: object) -> tuple[Piece, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"{name} must be a list or tuple of schedules, got {value!r}")
    if len(value) == 0:
        raise ValueError(f"{name} must hold at least one schedule")
    return tuple(piece(f"{name}[{i}]", one) for i, one in enumerate(value))


def _boundaries(name: str, value: object) -> tuple[int, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"{name} must be a list or tuple of steps, got {value!r}")
    return tuple(integer(f"{name}[{i}]", one, low=1) for i, one in enumerate(value))


@dataclass(frozen=True, slots=True, repr=False)
class _Sequence(LearningRateSchedule):
    """What :func:`sequence` returns."""

    pieces: Annotated[Sequence[Piece], _pieces]
    boundaries: Annotated[Sequence[int], _boundaries]

    def _validate(self) -> None:
        if len(self.boundaries) != len(self.pieces) - 1:
            raise ValueError(
                f"boundaries must be one fewer than pieces, got {len(self.boundaries)} and {len(self.pieces)}"
            )
        for i, (start, end) in enumerate(itertools.pairwise((0, *self.boundaries))):
            if end <= start:
                raise ValueError(f"boundaries must increase, got {list(self.boundaries)}")
            one = self.pieces[i]
            if isinstance(one, tuple) and len(one) < end - start:
                raise ValueError(
                    f"pieces[{i}] has {len(one)} values for the {end - start} steps it is to cover"
                )

    def _length(self) -> int:
        return sum(self.boundaries[-1:]) + length_of(self.pieces[-1])

    def _rate(self, step: int) -> float:
        index = sum(boundary <= step for boundary in self.boundaries)
        start = self.boundaries[index - 1] if index else 0
        return rate_at(self.pieces[index], step - start)

    def __repr__(self) -> str:
        return f"sequence({self.pieces!r}, {self.boundaries!r})"


@dataclass(frozen=True, slots=True, repr=False)
class _HoldLast(LearningRateSchedule):
    """What :func:`hold_last` returns."""

    table: Table

    def _length(self) -> int:
        return len(self.table)

    def _rate(self, step: int) -> float:
        return rate_at(self.table, min(step, len(self.table) - 1))

    def __repr__(self) -> str:
        return f"hold_last({self.table!r})"


@dataclass(frozen=True, slots=True, repr=False)
class _Clamp(LearningRateSchedule):
    """What :func:`clamp` returns."""

    schedule: AnyPiece
    low: Finite
    high: Finite

    def _validate(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low must be <= high, got low={self.low} and high={self.high}")

    def _length(self) -> int:
        return length_of(self.schedule)

    def _rate(self, step: int) -> float:
        # In this order of arguments a NaN passes through, for the optimizer to refuse.
        return min(max(rate_at(self.schedule, step), self.low), self.high)

    def __repr__(self) -> str:
        return f"clamp({self.schedule!r}, {self.low!r}, {self.high!r})"
