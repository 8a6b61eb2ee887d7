"""Rates by the epoch as lists with one value per step, after ``mindspore.nn.dynamic_lr``.

The formulas are those of the schedules in ``decay``, with the epoch ``step // step_per_epoch`` in place of
the step; the lists are equal to the source's.
"""

from ._base import LearningRateSchedule
from ._checks import flag, integer
from .decay import (
    CosineDecayLR,
    ExponentialDecayLR,
    InverseDecayLR,
    NaturalExpDecayLR,
    PolynomialDecayLR,
    WarmUpLR,
)

__all__ = [
    "cosine_decay_lr",
    "exponential_decay_lr",
    "inverse_decay_lr",
    "natural_exp_decay_lr",
    "polynomial_decay_lr",
    "warmup_lr",
]


def exponential_decay_lr(
    learning_rate: float,
    decay_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    is_stair: bool = False,
) -> list[float]:
    r"""Return a table that is multiplied by a constant factor every ``decay_epoch`` epochs.

    .. math::
        y_i = \eta_0 \, \rho^{\,p}, \qquad p = e / D \text{ or } \lfloor e / D \rfloor,
        \qquad e = \lfloor i / \mathrm{step\_per\_epoch} \rfloor

    Parameters
    ----------
    learning_rate, decay_rate : float
        First rate :math:`\eta_0 > 0` and factor :math:`\rho > 0`.
    total_step, step_per_epoch, decay_epoch : int
        Length of the table, steps per epoch, and epochs :math:`D` per factor, each at least 1.
    is_stair : bool, default False
        Round :math:`p` down.

    Returns
    -------
    list of float
        One rate per step.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from MindSpore: integers are taken as rates.

    References
    ----------
    ``mindspore.nn.exponential_decay_lr``, MindSpore 2.10.0.

    Examples
    --------
    >>> from numba_lamb.schedules import exponential_decay_lr
    >>> exponential_decay_lr(0.1, 0.5, total_step=6, step_per_epoch=2, decay_epoch=1)
    [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]
    """
    decay_epoch = integer("decay_epoch", decay_epoch, low=1)
    return _by_epoch(
        ExponentialDecayLR(learning_rate, decay_rate, decay_epoch, is_stair), total_step, step_per_epoch
    )


def natural_exp_decay_lr(
    learning_rate: float,
    decay_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    is_stair: bool = False,
) -> list[float]:
    r"""Return a table that falls as a power of e with the epoch.

    .. math::
        y_i = \eta_0 \, e^{-\rho p}, \qquad p = e_i \text{ or } \lfloor e_i / D \rfloor D,
        \qquad e_i = \lfloor i / \mathrm{step\_per\_epoch} \rfloor

    Parameters
    ----------
    learning_rate, decay_rate : float
        First rate :math:`\eta_0 > 0` and decay per epoch :math:`\rho > 0`.
    total_step, step_per_epoch, decay_epoch : int
        Length of the table, steps per epoch, and epochs :math:`D` per stair, each at least 1.
    is_stair : bool, default False
        Hold the rate for ``decay_epoch`` epochs at a time; without it ``decay_epoch`` changes nothing.

    Returns
    -------
    list of float
        One rate per step.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from MindSpore: integers are taken as rates.

    References
    ----------
    ``mindspore.nn.natural_exp_decay_lr``, MindSpore 2.10.0.

    Examples
    --------
    >>> from numba_lamb.schedules import natural_exp_decay_lr
    >>> natural_exp_decay_lr(0.1, 0.9, total_step=4, step_per_epoch=2, decay_epoch=2, is_stair=True)
    [0.1, 0.1, 0.1, 0.1]
    """
    decay_epoch = integer("decay_epoch", decay_epoch, low=1)
    return _by_epoch(
        NaturalExpDecayLR(learning_rate, decay_rate, decay_epoch, is_stair), total_step, step_per_epoch
    )


def inverse_decay_lr(
    learning_rate: float,
    decay_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    is_stair: bool = False,
) -> list[float]:
    r"""Return a table that is divided by one plus a multiple of the epoch.

    .. math::
        y_i = \frac{\eta_0}{1 + \rho p}, \qquad p = e / D \text{ or } \lfloor e / D \rfloor,
        \qquad e = \lfloor i / \mathrm{step\_per\_epoch} \rfloor

    Parameters
    ----------
    learning_rate, decay_rate : float
        First rate :math:`\eta_0 > 0` and growth of the divisor :math:`\rho > 0`.
    total_step, step_per_epoch, decay_epoch : int
        Length of the table, steps per epoch, and epochs :math:`D` per unit of time, each at least 1.
    is_stair : bool, default False
        Round :math:`p` down.

    Returns
    -------
    list of float
        One rate per step.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from MindSpore: integers are taken as rates.

    References
    ----------
    ``mindspore.nn.inverse_decay_lr``, MindSpore 2.10.0.

    Examples
    --------
    >>> from numba_lamb.schedules import inverse_decay_lr
    >>> inverse_decay_lr(0.1, 1.0, total_step=4, step_per_epoch=1, decay_epoch=1)
    [0.1, 0.05, 0.03333333333333333, 0.025]
    """
    decay_epoch = integer("decay_epoch", decay_epoch, low=1)
    return _by_epoch(
        InverseDecayLR(learning_rate, decay_rate, decay_epoch, is_stair), total_step, step_per_epoch
    )


def cosine_decay_lr(
    min_lr: float, max_lr: float, total_step: int, step_per_epoch: int, decay_epoch: int
) -> list[float]:
    r"""Return a table that falls along half a cosine wave of the epoch and then holds.

    .. math::
        y_i = \eta_{min} + \tfrac{1}{2} (\eta_{max} - \eta_{min})
              \left(1 + \cos \frac{\pi \min(e, D)}{D}\right),
        \qquad e = \lfloor i / \mathrm{step\_per\_epoch} \rfloor

    Parameters
    ----------
    min_lr, max_lr : float
        Lowest rate, at least 0, and first rate, above it.
    total_step, step_per_epoch, decay_epoch : int
        Length of the table, steps per epoch, and epochs :math:`D` of the fall, each at least 1.

    Returns
    -------
    list of float
        One rate per step.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range, or ``min_lr`` is not below ``max_lr``.

    Notes
    -----
    Differs from MindSpore: integers are taken as rates.

    References
    ----------
    ``mindspore.nn.cosine_decay_lr``, MindSpore 2.10.0.

    Examples
    --------
    >>> from numba_lamb.schedules import cosine_decay_lr
    >>> cosine_decay_lr(0.0, 0.5, total_step=6, step_per_epoch=2, decay_epoch=2)
    [0.5, 0.5, 0.25, 0.25, 0.0, 0.0]
    """
    decay_epoch = integer("decay_epoch", decay_epoch, low=1)
    return _by_epoch(CosineDecayLR(min_lr, max_lr, decay_epoch), total_step, step_per_epoch)


def polynomial_decay_lr(
    learning_rate: float,
    end_learning_rate: float,
    total_step: int,
    step_per_epoch: int,
    decay_epoch: int,
    power: float,
    update_decay_epoch: bool = False,
) -> list[float]:
    r"""Return a table that goes from one rate to another along a power of the epochs that are left.

    .. math:: y_i = (\eta_0 - \eta_{end}) \left(1 - \frac{s}{D'}\right)^{q} + \eta_{end}

    with :math:`s = \min(e, D), D' = D`, or :math:`s = e, D' = D \max(\lceil e / D \rceil, 1)` with
    ``update_decay_epoch``, where :math:`e = \lfloor i / \mathrm{step\_per\_epoch} \rfloor`.

    Parameters
    ----------
    learning_rate, end_learning_rate : float
        First rate, above 0, and last rate, at least 0.
    total_step, step_per_epoch, decay_epoch : int
        Length of the table, steps per epoch, and epochs :math:`D` of the decay, each at least 1.
    power : float
        Exponent :math:`q > 0`.
    update_decay_epoch : bool, default False
        Stretch the decay to the next multiple of ``decay_epoch`` instead of staying at the last rate.

    Returns
    -------
    list of float
        One rate per step.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from MindSpore: integers are taken as rates and as ``power``.

    References
    ----------
    ``mindspore.nn.polynomial_decay_lr``, MindSpore 2.10.0.

    Examples
    --------
    >>> from numba_lamb.schedules import polynomial_decay_lr
    >>> polynomial_decay_lr(0.5, 0.0, total_step=4, step_per_epoch=1, decay_epoch=2, power=1.0)
    [0.5, 0.25, 0.0, 0.0]
    """
    decay_epoch = integer("decay_epoch", decay_epoch, low=1)
    update_decay_epoch = flag("update_decay_epoch", update_decay_epoch)
    return _by_epoch(
        PolynomialDecayLR(learning_rate, end_learning_rate, decay_epoch, power, update_decay_epoch),
        total_step,
        step_per_epoch,
    )


def warmup_lr(learning_rate: float, total_step: int, step_per_epoch: int, warmup_epoch: int) -> list[float]:
    r"""Return a table that rises from zero by the epoch and then holds.

    .. math::
        y_i = \eta \, \frac{\min(e, W)}{W}, \qquad e = \lfloor i / \mathrm{step\_per\_epoch} \rfloor

    Parameters
    ----------
    learning_rate : float
        Rate to reach, :math:`\eta \ge 0`.
    total_step, step_per_epoch, warmup_epoch : int
        Length of the table, steps per epoch, and epochs :math:`W` of the rise, each at least 1.

    Returns
    -------
    list of float
        One rate per step.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from MindSpore: integers are taken as rates.

    References
    ----------
    ``mindspore.nn.warmup_lr``, MindSpore 2.10.0.

    Examples
    --------
    >>> from numba_lamb.schedules import warmup_lr
    >>> warmup_lr(0.5, total_step=6, step_per_epoch=2, warmup_epoch=2)
    [0.0, 0.0, 0.25, 0.25, 0.5, 0.5]
    """
    warmup_epoch = integer("warmup_epoch", warmup_epoch, low=1)
    return _by_epoch(WarmUpLR(learning_rate, warmup_epoch), total_step, step_per_epoch)


def _by_epoch(schedule: LearningRateSchedule, total_step: int, step_per_epoch: int) -> list[float]:
    """Return the schedule as a table in which its steps are epochs."""
    total_step = integer("total_step", total_step, low=1)
    step_per_epoch = integer("step_per_epoch", step_per_epoch, low=1)
    return [schedule(step // step_per_epoch) for step in range(total_step)]
