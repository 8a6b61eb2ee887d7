"""A table that is constant between milestones, after ``mindspore.nn.piecewise_constant_lr``."""

from collections.abc import Sequence

from ._checks import integer, real

__all__ = ["piecewise_constant_lr"]


def piecewise_constant_lr(milestone: Sequence[int], learning_rates: Sequence[float]) -> list[float]:
    r"""Return a table that is constant between milestones.

    .. math:: y_i = x_k \quad \text{for } M_{k-1} \le i < M_k, \qquad M_0 = 0

    Parameters
    ----------
    milestone : list or tuple of int
        Where each piece ends, :math:`M_k \ge 1`, never decreasing; two equal ones make an empty piece.
    learning_rates : list or tuple of float
        The rate :math:`x_k` of each piece.

    Returns
    -------
    list of float
        One rate per step, as many as the last milestone says.

    Raises
    ------
    TypeError
        If a milestone is not an integer or a rate is not a number.
    ValueError
        If the lengths differ, a milestone is below 1 or below the one before it, or a rate is not finite.

    Notes
    -----
    As in the source the sign of the rates is not checked here; the optimizers refuse a negative rate.

    Differs from MindSpore: integers are taken as rates; NaN and infinity are refused.

    References
    ----------
    ``mindspore.nn.piecewise_constant_lr``, MindSpore 2.10.0.

    Examples
    --------
    >>> from numba_lamb.schedules import piecewise_constant_lr
    >>> piecewise_constant_lr([2, 5], [0.1, 0.05])
    [0.1, 0.1, 0.05, 0.05, 0.05]
    """
    for name, value in (("milestone", milestone), ("learning_rates", learning_rates)):
        if not isinstance(value, list | tuple):
            raise TypeError(f"{name} must be a list or tuple, got {value!r}")
    if len(milestone) != len(learning_rates):
        raise ValueError(
            f"milestone and learning_rates must be as long, got {len(milestone)} and {len(learning_rates)}"
        )
    rates: list[float] = []
    for i, (end, rate) in enumerate(zip(milestone, learning_rates, strict=True)):
        end = integer(f"milestone[{i}]", end, low=1)
        if end < len(rates):
            raise ValueError(f"milestone must not decrease, got milestone[{i}]={end} after {len(rates)}")
        rates += [real(f"learning_rates[{i}]", rate)] * (end - len(rates))
    return rates
