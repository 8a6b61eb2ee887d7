"""Annealing by the number of samples processed, after Paddle v1.

Here :math:`n` counts the samples up to and including the current batch: at step :math:`t` it is
:math:`(t + 1)` times the batch size.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

from ._base import LearningRateSchedule
from ._checks import Count, NonNegative, Positive, integer
from ._formulas import polynomial, power

__all__ = [
    "CaffePolyAnnealingLR",
    "ConstantAnnealingLR",
    "DiscExpAnnealingLR",
    "ExpAnnealingLR",
    "LinearAnnealingLR",
    "PolyAnnealingLR",
]


class BySamples(LearningRateSchedule):
    """A schedule of the samples processed."""

    __slots__ = ()

    batch_size: int

    def at_samples(self, samples: int) -> float:
        """Return the rate once so many samples are processed, those of the current batch included.

        Parameters
        ----------
        samples : int
            Number of samples, at least 0.

        Returns
        -------
        float
            The rate.

        Raises
        ------
        TypeError
            If ``samples`` is not an integer.
        ValueError
            If ``samples`` is negative.
        """
        return self._anneal(integer("samples", samples))

    def _rate(self, step: int) -> float:
        return self._anneal((step + 1) * self.batch_size)

    @abstractmethod
    def _anneal(self, samples: int) -> float:
        """Return the rate after a number of samples known to be an int >= 0."""


@dataclass(frozen=True, slots=True)
class _TwoNumbers(BySamples):
    """The arguments that the formulas with two numbers have in common."""

    learning_rate: NonNegative
    learning_rate_decay_a: NonNegative
    learning_rate_decay_b: NonNegative
    batch_size: Count


@dataclass(frozen=True, slots=True)
class ConstantAnnealingLR(BySamples):
    r"""Hold the rate, ``learning_rate_schedule="constant"``.

    .. math:: \eta_n = \eta

    Parameters
    ----------
    learning_rate : float
        The rate, :math:`\eta \ge 0`.
    batch_size : int
        Samples per step, at least 1; it changes nothing here and is there for a uniform set of classes.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    References
    ----------
    ``constant`` of the learning rate schedulers of Paddle v1.

    Examples
    --------
    >>> from numba_lamb.schedules import ConstantAnnealingLR
    >>> ConstantAnnealingLR(0.5, batch_size=32)([0, 100])
    array([0.5, 0.5])
    """

    learning_rate: NonNegative
    batch_size: Count

    def _anneal(self, samples: int) -> float:
        return self.learning_rate


@dataclass(frozen=True, slots=True)
class PolyAnnealingLR(_TwoNumbers):
    r"""Divide the rate by a power of the samples, ``learning_rate_schedule="poly"``.

    .. math:: \eta_n = \eta \, (1 + a n)^{-b}

    Parameters
    ----------
    learning_rate : float
        First rate, :math:`\eta \ge 0`.
    learning_rate_decay_a : float
        Growth :math:`a \ge 0` per sample.
    learning_rate_decay_b : float
        Exponent :math:`b \ge 0`.
    batch_size : int
        Samples per step, at least 1.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from Paddle: negative numbers are refused.

    References
    ----------
    ``poly`` of the learning rate schedulers of Paddle v1.

    Examples
    --------
    >>> from numba_lamb.schedules import PolyAnnealingLR
    >>> PolyAnnealingLR(0.5, 0.25, 1.0, batch_size=4)([0, 2])
    array([0.25 , 0.125])
    """

    def _anneal(self, samples: int) -> float:
        return self.learning_rate * power(
            1.0 + self.learning_rate_decay_a * samples, -self.learning_rate_decay_b
        )


@dataclass(frozen=True, slots=True)
class CaffePolyAnnealingLR(_TwoNumbers):
    r"""Fall to zero along a power of the samples that are left, ``learning_rate_schedule="caffe_poly"``.

    .. math:: \eta_n = \eta \, (1 - n / a)^{b} \text{ for } n \le a, \qquad 0 \text{ for } n > a

    Parameters
    ----------
    learning_rate : float
        First rate, :math:`\eta \ge 0`.
    learning_rate_decay_a : float
        Samples :math:`a > 0` at which zero is reached.
    learning_rate_decay_b : float
        Exponent :math:`b \ge 0`.
    batch_size : int
        Samples per step, at least 1.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from Paddle: :math:`a = 0`, 0/0 there, and negative numbers are refused.

    References
    ----------
    ``caffe_poly`` of the learning rate schedulers of Paddle v1.

    Examples
    --------
    >>> from numba_lamb.schedules import CaffePolyAnnealingLR
    >>> CaffePolyAnnealingLR(0.5, 100, 2.0, batch_size=50)([0, 1, 2])
    array([0.125, 0.   , 0.   ])
    """

    learning_rate_decay_a: Positive

    def _length(self) -> int:
        return math.ceil(self.learning_rate_decay_a / self.batch_size)

    def _anneal(self, samples: int) -> float:
        if samples > self.learning_rate_decay_a:
            return 0.0
        return polynomial(
            self.learning_rate, 0.0, samples, self.learning_rate_decay_a, self.learning_rate_decay_b
        )


@dataclass(frozen=True, slots=True)
class ExpAnnealingLR(_TwoNumbers):
    r"""Multiply the rate smoothly by a factor per so many samples, ``learning_rate_schedule="exp"``.

    .. math:: \eta_n = \eta \, a^{n / b}

    Parameters
    ----------
    learning_rate : float
        First rate, :math:`\eta \ge 0`.
    learning_rate_decay_a : float
        Factor :math:`a > 0`.
    learning_rate_decay_b : float
        Samples :math:`b > 0` per factor.
    batch_size : int
        Samples per step, at least 1.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from Paddle: :math:`a = 0`, :math:`b = 0` (a division by zero there) and negative numbers are
    refused.

    References
    ----------
    ``exp`` of the learning rate schedulers of Paddle v1.

    Examples
    --------
    >>> from numba_lamb.schedules import ExpAnnealingLR
    >>> ExpAnnealingLR(0.5, 0.25, 100, batch_size=50)([0, 1])
    array([0.25 , 0.125])
    """

    learning_rate_decay_a: Positive
    learning_rate_decay_b: Positive

    def _anneal(self, samples: int) -> float:
        return self.learning_rate * power(self.learning_rate_decay_a, samples / self.learning_rate_decay_b)


@dataclass(frozen=True, slots=True)
class DiscExpAnnealingLR(_TwoNumbers):
    r"""Multiply the rate by a factor every so many samples, ``learning_rate_schedule="discexp"``.

    .. math:: \eta_n = \eta \, a^{\lfloor n / b \rfloor}

    Parameters
    ----------
    learning_rate : float
        First rate, :math:`\eta \ge 0`.
    learning_rate_decay_a : float
        Factor :math:`a > 0`.
    learning_rate_decay_b : float
        Samples :math:`b > 0` per factor.
    batch_size : int
        Samples per step, at least 1.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from Paddle: :math:`a = 0`, :math:`b = 0` (a division by zero there) and negative numbers are
    refused.

    References
    ----------
    ``discexp`` of the learning rate schedulers of Paddle v1.

    Examples
    --------
    >>> from numba_lamb.schedules import DiscExpAnnealingLR
    >>> DiscExpAnnealingLR(0.5, 0.5, 100, batch_size=50)([0, 1, 2, 3])
    array([0.5  , 0.25 , 0.25 , 0.125])
    """

    learning_rate_decay_a: Positive
    learning_rate_decay_b: Positive

    def _anneal(self, samples: int) -> float:
        stairs = math.floor(samples / self.learning_rate_decay_b)
        return self.learning_rate * power(self.learning_rate_decay_a, stairs)


@dataclass(frozen=True, slots=True)
class LinearAnnealingLR(_TwoNumbers):
    r"""Fall in a straight line to a floor, ``learning_rate_schedule="linear"``.

    .. math:: \eta_n = \max(\eta - a n, b)

    Parameters
    ----------
    learning_rate : float
        First rate, :math:`\eta \ge 0`.
    learning_rate_decay_a : float
        Fall :math:`a \ge 0` per sample.
    learning_rate_decay_b : float
        The floor, :math:`b \ge 0`.
    batch_size : int
        Samples per step, at least 1.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from Paddle: negative numbers are refused.

    References
    ----------
    ``linear`` of the learning rate schedulers of Paddle v1.

    Examples
    --------
    >>> from numba_lamb.schedules import LinearAnnealingLR
    >>> LinearAnnealingLR(0.5, 0.0625, 0.125, batch_size=2)([0, 1, 2, 3])
    array([0.375, 0.25 , 0.125, 0.125])
    """

    def _anneal(self, samples: int) -> float:
        return max(self.learning_rate - self.learning_rate_decay_a * samples, self.learning_rate_decay_b)
