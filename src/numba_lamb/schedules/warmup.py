"""A linear warm-up, then a constant rate, a line or a power, after mindformers."""

from dataclasses import dataclass

from ._checks import Count, MaybeCount, MaybeCountOrZero, MaybeRatio, NonNegative
from ._formulas import polynomial
from ._warmup import WithCutOff, WithWarmUp, check_falls

__all__ = [
    "ConstantWarmUpLR",
    "LinearWithWarmUpLR",
    "PolynomialWithWarmUpLR",
]


@dataclass(frozen=True, slots=True)
class ConstantWarmUpLR(WithWarmUp):
    r"""Climb in a straight line, then hold the rate.

    .. math::
        \eta_t = \begin{cases}
            \eta_{init} + (\eta - \eta_{init}) \, t / W & t < W \\
            \eta & \text{otherwise}
        \end{cases}

    Parameters
    ----------
    learning_rate : float
        Rate to reach and hold, :math:`\eta \ge 0`.
    warmup_steps : int, optional
        Steps :math:`W \ge 0` of the climb; needed unless ``warmup_ratio`` is given.
    warmup_lr_init : float, default 0.0
        Rate at step 0, :math:`\eta_{init} \ge 0`.
    warmup_ratio : float, optional
        Part of ``total_steps`` that the climb takes, from 0 to 1; :math:`W` is rounded down.
    total_steps : int, optional
        Length of the training; needed by ``warmup_ratio``, otherwise only the length of a plot.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or neither warm-up argument is given.
    ValueError
        If an argument is out of range, ``warmup_ratio`` comes without ``total_steps``, or both warm-up
        arguments are given.

    Notes
    -----
    The source's page describes a constant warm-up; its code climbs, and so does this.

    Differs from mindformers: rates must be finite and >= 0; giving ``warmup_ratio`` along with a
    ``warmup_steps`` that it would override is an error; unknown keywords are errors.

    References
    ----------
    ``mindformers.core.ConstantWarmUpLR``, mindformers 2.1.0.

    Examples
    --------
    >>> from numba_lamb.schedules import ConstantWarmUpLR
    >>> ConstantWarmUpLR(0.5, warmup_steps=2)([0, 1, 2, 9])
    array([0.  , 0.25, 0.5 , 0.5 ])
    """

    learning_rate: NonNegative
    warmup_steps: MaybeCountOrZero = None
    warmup_lr_init: NonNegative = 0.0
    warmup_ratio: MaybeRatio = None
    total_steps: MaybeCount = None

    def _after(self, step: int) -> float:
        return self.learning_rate


@dataclass(frozen=True, slots=True)
class LinearWithWarmUpLR(WithWarmUp):
    r"""Climb in a straight line, then fall in a straight line to zero.

    .. math::
        \eta_t = \begin{cases}
            \eta_{init} + (\eta - \eta_{init}) \, t / W & t < W \\
            \eta \max\left(0, \frac{T - t}{\max(1, T - W)}\right) & \text{otherwise}
        \end{cases}

    Parameters
    ----------
    learning_rate : float
        Highest rate, :math:`\eta \ge 0`.
    total_steps : int
        Step :math:`T \ge 1` at which zero is reached.
    warmup_steps : int, optional
        Steps :math:`W \ge 0` of the climb; needed unless ``warmup_ratio`` is given.
    warmup_lr_init : float, default 0.0
        Rate at step 0, :math:`\eta_{init} \ge 0`.
    warmup_ratio : float, optional
        Part of ``total_steps`` that the climb takes, from 0 to 1; :math:`W` is rounded down.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or neither warm-up argument is given.
    ValueError
        If an argument is out of range, or both warm-up arguments are given.

    Notes
    -----
    The source's page has a formula with an end value; its code falls to zero, and so does this.

    Differs from mindformers: rates must be finite and >= 0, ``total_steps`` >= 1; giving ``warmup_ratio``
    along with a ``warmup_steps`` that it would override is an error; unknown keywords are errors.

    References
    ----------
    ``mindformers.core.LinearWithWarmUpLR``, mindformers 2.1.0.

    Examples
    --------
    >>> from numba_lamb.schedules import LinearWithWarmUpLR
    >>> LinearWithWarmUpLR(0.5, total_steps=6, warmup_steps=2)([0, 1, 2, 4, 6, 9])
    array([0.  , 0.25, 0.5 , 0.25, 0.  , 0.  ])
    """

    learning_rate: NonNegative
    total_steps: Count
    warmup_steps: MaybeCountOrZero = None
    warmup_lr_init: NonNegative = 0.0
    warmup_ratio: MaybeRatio = None

    def _after(self, step: int) -> float:
        length = self.total_steps - self._warmup
        return self.learning_rate * max(0.0, (length - step) / max(1, length))


@dataclass(frozen=True, slots=True)
class PolynomialWithWarmUpLR(WithCutOff):
    r"""Climb in a straight line, then fall to ``lr_end`` along a power of the time that is left.

    .. math::
        \eta_t = \begin{cases}
            \eta_{end} & t > T \\
            \eta_{init} + (\eta - \eta_{init}) \, t / W & t < W \\
            (\eta - \eta_{end}) \left(1 - \frac{t - W}{D}\right)^{q} + \eta_{end} & \text{otherwise}
        \end{cases}

    Parameters
    ----------
    learning_rate : float
        Highest rate, :math:`\eta > \eta_{end}`.
    total_steps : int
        Last step :math:`T \ge 1` of the fall.
    warmup_steps : int, optional
        Steps :math:`W \ge 0` of the climb; needed unless ``warmup_ratio`` is given.
    lr_end : float, default 1e-7
        Last rate, :math:`\eta_{end} \ge 0`.
    power : float, default 1.0
        Exponent :math:`q \ge 0`.
    warmup_lr_init : float, default 0.0
        Rate at step 0, :math:`\eta_{init} \ge 0`.
    warmup_ratio : float, optional
        Part of ``total_steps`` that the climb takes, from 0 to 1; :math:`W` is rounded down.
    decay_steps : int, optional
        Divisor :math:`D \ge 1`; by default :math:`\max(1, T - W)`.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or neither warm-up argument is given.
    ValueError
        If an argument is out of range, ``lr_end`` is not below ``learning_rate``, both warm-up arguments are
        given, or ``decay_steps`` is below :math:`T - W` while ``power`` is not a whole number.

    Notes
    -----
    As in the source, a ``decay_steps`` below :math:`T - W` carries the curve beyond ``lr_end``, below zero
    even: the optimizers refuse such a rate when they meet it.

    Differs from mindformers: a fractional power of a negative number, NaN there, and a negative power,
    infinite at the end there, are refused; rates must be finite and >= 0, ``total_steps`` and ``decay_steps``
    >= 1; giving ``warmup_ratio`` along with a ``warmup_steps`` that it would override is an error; unknown
    keywords are errors.

    References
    ----------
    ``mindformers.core.PolynomialWithWarmUpLR``, mindformers 2.1.0.

    Examples
    --------
    >>> from numba_lamb.schedules import PolynomialWithWarmUpLR
    >>> PolynomialWithWarmUpLR(0.5, 6, warmup_steps=2, lr_end=0.0, power=2.0)([0, 1, 2, 4, 6, 9])
    array([0.   , 0.25 , 0.5  , 0.125, 0.   , 0.   ])
    """

    learning_rate: NonNegative
    total_steps: Count
    warmup_steps: MaybeCountOrZero = None
    lr_end: NonNegative = 1e-7
    power: NonNegative = 1.0
    warmup_lr_init: NonNegative = 0.0
    warmup_ratio: MaybeRatio = None
    decay_steps: MaybeCount = None

    def _validate(self) -> None:
        WithCutOff._validate(self)
        check_falls(self.learning_rate, self.lr_end)
        length = self.total_steps - self._warmup
        if self._divisor < length and not self.power.is_integer():
            raise ValueError(
                f"decay_steps must be >= {length}, the steps after the warm-up, or power a whole number, "
                f"got decay_steps={self.decay_steps}, power={self.power}"
            )

    @property
    def _divisor(self) -> int:
        return self.decay_steps or max(1, self.total_steps - self._warmup)

    @property
    def _cutoff(self) -> int:
        return self.total_steps + 1

    def _after(self, step: int) -> float:
        return polynomial(self.learning_rate, self.lr_end, step, self._divisor, self.power)
