"""Decay by the step, after ``mindspore.nn.learning_rate_schedule``."""

import math
from dataclasses import dataclass

from ._base import LearningRateSchedule
from ._checks import Count, Flag, NonNegative, Positive
from ._formulas import half_cosine, polynomial, power, ramp

__all__ = [
    "CosineDecayLR",
    "ExponentialDecayLR",
    "InverseDecayLR",
    "NaturalExpDecayLR",
    "PolynomialDecayLR",
    "WarmUpLR",
]


@dataclass(frozen=True, slots=True)
class _RateDecay(LearningRateSchedule):
    """The arguments that the three decays with a rate have in common."""

    learning_rate: Positive
    decay_rate: Positive
    decay_steps: Count
    is_stair: Flag = False

    def _length(self) -> int:
        return 4 * self.decay_steps

    def _progress(self, step: int) -> tuple[int, int]:
        """Return p as numerator and denominator, since one formula multiplies before it divides."""
        return (step // self.decay_steps, 1) if self.is_stair else (step, self.decay_steps)


@dataclass(frozen=True, slots=True)
class ExponentialDecayLR(_RateDecay):
    r"""Multiply the rate by a constant factor every ``decay_steps`` steps, smoothly or in stairs.

    .. math:: \eta_t = \eta_0 \, \rho^{\,p}, \qquad p = t / D \text{ or } \lfloor t / D \rfloor

    Parameters
    ----------
    learning_rate : float
        Rate at step 0, :math:`\eta_0 > 0`.
    decay_rate : float
        Factor :math:`\rho > 0`; above 1 the rate grows.
    decay_steps : int
        Steps :math:`D \ge 1` per factor.
    is_stair : bool, default False
        Round :math:`p` down.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from MindSpore: integers are taken as rates; arithmetic is in float64.

    References
    ----------
    ``mindspore.nn.ExponentialDecayLR``, MindSpore 2.10.0.

    Examples
    --------
    >>> from numba_lamb.schedules import ExponentialDecayLR
    >>> ExponentialDecayLR(0.1, decay_rate=0.5, decay_steps=4, is_stair=True)([0, 3, 4, 8])
    array([0.1  , 0.1  , 0.05 , 0.025])
    """

    def _rate(self, step: int) -> float:
        numerator, denominator = self._progress(step)
        return self.learning_rate * power(self.decay_rate, numerator / denominator)


@dataclass(frozen=True, slots=True)
class NaturalExpDecayLR(_RateDecay):
    r"""Let the rate fall as a power of e, smoothly per step or in stairs of ``decay_steps``.

    .. math:: \eta_t = \eta_0 \, e^{-\rho p}, \qquad p = t \text{ or } \lfloor t / D \rfloor D

    Parameters
    ----------
    learning_rate : float
        Rate at step 0, :math:`\eta_0 > 0`.
    decay_rate : float
        Decay per step, :math:`\rho > 0`.
    decay_steps : int
        Width of a stair, :math:`D \ge 1`; without stairs it changes nothing.
    is_stair : bool, default False
        Hold the rate for ``decay_steps`` steps at a time.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    The exponent is not divided by ``decay_steps``: the source's page divides, its code does not.

    Differs from MindSpore: integers are taken as rates; arithmetic is in float64.

    References
    ----------
    ``mindspore.nn.NaturalExpDecayLR``, MindSpore 2.10.0.

    Examples
    --------
    >>> from numba_lamb.schedules import NaturalExpDecayLR
    >>> NaturalExpDecayLR(0.1, decay_rate=0.9, decay_steps=4, is_stair=True)(2)
    0.1
    """

    def _rate(self, step: int) -> float:
        steps = step // self.decay_steps * self.decay_steps if self.is_stair else step
        return self.learning_rate * power(math.e, -self.decay_rate * steps)


@dataclass(frozen=True, slots=True)
class InverseDecayLR(_RateDecay):
    r"""Divide the rate by one plus a multiple of the time, smoothly or in stairs.

    .. math:: \eta_t = \frac{\eta_0}{1 + \rho p}, \qquad p = t / D \text{ or } \lfloor t / D \rfloor

    Parameters
    ----------
    learning_rate : float
        Rate at step 0, :math:`\eta_0 > 0`.
    decay_rate : float
        Growth of the divisor per ``decay_steps``, :math:`\rho > 0`.
    decay_steps : int
        Steps :math:`D \ge 1` per unit of time.
    is_stair : bool, default False
        Round :math:`p` down.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from MindSpore: integers are taken as rates; arithmetic is in float64.

    References
    ----------
    ``mindspore.nn.InverseDecayLR``, MindSpore 2.10.0.

    Examples
    --------
    >>> from numba_lamb.schedules import InverseDecayLR
    >>> InverseDecayLR(0.1, decay_rate=1.0, decay_steps=5)([0, 5, 15])
    array([0.1  , 0.05 , 0.025])
    """

    def _rate(self, step: int) -> float:
        numerator, denominator = self._progress(step)
        return self.learning_rate / (1 + self.decay_rate * numerator / denominator)


@dataclass(frozen=True, slots=True)
class CosineDecayLR(LearningRateSchedule):
    r"""Fall from ``max_lr`` to ``min_lr`` along half a cosine wave and stay there.

    .. math::
        \eta_t = \eta_{min} + \tfrac{1}{2} (\eta_{max} - \eta_{min})
                 \left(1 + \cos \frac{\pi \min(t, D)}{D}\right)

    Parameters
    ----------
    min_lr : float
        Lowest rate, :math:`\ge 0` and below ``max_lr``.
    max_lr : float
        Rate at step 0, :math:`> 0`.
    decay_steps : int
        Steps :math:`D \ge 1` until the lowest rate.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range, or ``min_lr`` is not below ``max_lr``.

    Notes
    -----
    Differs from MindSpore: integers are taken as rates; arithmetic is in float64.

    References
    ----------
    ``mindspore.nn.CosineDecayLR``, MindSpore 2.10.0.

    Examples
    --------
    >>> from numba_lamb.schedules import CosineDecayLR
    >>> CosineDecayLR(min_lr=0.0, max_lr=0.5, decay_steps=10)([0, 5, 10, 20])
    array([0.5 , 0.25, 0.  , 0.  ])
    """

    min_lr: NonNegative
    max_lr: Positive
    decay_steps: Count

    def _validate(self) -> None:
        if self.min_lr >= self.max_lr:
            raise ValueError(f"min_lr must be < max_lr, got min_lr={self.min_lr} and max_lr={self.max_lr}")

    def _length(self) -> int:
        return self.decay_steps

    def _rate(self, step: int) -> float:
        return half_cosine(self.max_lr, self.min_lr, min(step, self.decay_steps), self.decay_steps)


@dataclass(frozen=True, slots=True)
class PolynomialDecayLR(LearningRateSchedule):
    r"""Go from one rate to another along a power of the time that is left.

    .. math:: \eta_t = (\eta_0 - \eta_{end}) \left(1 - \frac{s}{D'}\right)^{q} + \eta_{end}

    with :math:`s = \min(t, D), D' = D`, or :math:`s = t, D' = D \max(\lceil t / D \rceil, 1)` with
    ``update_decay_steps``, where the end moves on each time it is reached.

    Parameters
    ----------
    learning_rate : float
        Rate at step 0, :math:`\eta_0 > 0`.
    end_learning_rate : float
        Last rate, :math:`\eta_{end} \ge 0`; it may lie above the first.
    decay_steps : int
        Steps :math:`D \ge 1` until the last rate.
    power : float
        Exponent :math:`q > 0`.
    update_decay_steps : bool, default False
        Stretch the decay to the next multiple of ``decay_steps`` instead of staying at the last rate.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from MindSpore: integers are taken as rates; arithmetic is in float64.

    References
    ----------
    ``mindspore.nn.PolynomialDecayLR``, MindSpore 2.10.0.

    Examples
    --------
    The decay :math:`\gamma_0 (1 - t/T)^2` of the LARS paper:

    >>> from numba_lamb.schedules import PolynomialDecayLR
    >>> PolynomialDecayLR(2.0, end_learning_rate=0.0, decay_steps=4, power=2.0)([0, 2, 4, 9])
    array([2. , 0.5, 0. , 0. ])
    """

    learning_rate: Positive
    end_learning_rate: NonNegative
    decay_steps: Count
    power: Positive
    update_decay_steps: Flag = False

    def _length(self) -> int:
        return self.decay_steps * (3 if self.update_decay_steps else 1)

    def _rate(self, step: int) -> float:
        length = self.decay_steps
        if self.update_decay_steps:
            length *= max(-(-step // length), 1)
        return polynomial(self.learning_rate, self.end_learning_rate, min(step, length), length, self.power)


@dataclass(frozen=True, slots=True)
class WarmUpLR(LearningRateSchedule):
    r"""Rise in a straight line from zero and hold.

    .. math:: \eta_t = \eta \, \frac{\min(t, W)}{W}

    Parameters
    ----------
    learning_rate : float
        Rate to reach, :math:`\eta \ge 0`.
    warmup_steps : int
        Steps :math:`W \ge 1` of the rise.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    The rate of step 0 is 0: that step moves no weight, only the moments.

    Differs from MindSpore: integers are taken as rates; arithmetic is in float64.

    References
    ----------
    ``mindspore.nn.WarmUpLR``, MindSpore 2.10.0.

    Examples
    --------
    >>> from numba_lamb.schedules import WarmUpLR
    >>> WarmUpLR(0.1, warmup_steps=4)([0, 1, 4, 9])
    array([0.   , 0.025, 0.1  , 0.1  ])
    """

    learning_rate: NonNegative
    warmup_steps: Count

    def _length(self) -> int:
        return 2 * self.warmup_steps

    def _rate(self, step: int) -> float:
        if step >= self.warmup_steps:
            return self.learning_rate
        return ramp(0.0, self.learning_rate, step, self.warmup_steps)
