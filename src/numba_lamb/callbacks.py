"""What adjusts an optimizer between its steps."""

import math
import numbers
from collections.abc import Callable
from typing import Any

from numba_lamb.optimizers.base import Optimizer
from numba_lamb.rates import unrounded

__all__ = ["LearningRateScheduler"]


class LearningRateScheduler:
    """Set constant learning rates after each step, from the rate and the number of the step.

    Parameters
    ----------
    learning_rate_function : callable
        ``(rate, step) -> rate``: gets a rate in full precision and the number of the step just taken, counted
        from 1, and returns the rate from the next step on, a finite number >= 0. With parameter groups it is
        called once for each group, in order, with that group's rate.

    Raises
    ------
    TypeError
        If `learning_rate_function` is not callable.

    Notes
    -----
    Call it after each step, also after one that was left out because a gradient was not finite: the number is
    that of the steps taken. Where it fails, no rate has changed.

    What it returns is assigned whenever it differs. In MindSpore the function sees the rate as eight printed
    digits, a change within 1e-10 of the rate is dropped, and groups are refused.

    References
    ----------
    ``mindspore.train.LearningRateScheduler``, MindSpore 2.10.0.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_lamb as nl
    >>> from numba_lamb.callbacks import LearningRateScheduler
    >>> opt = nl.Momentum({"w": np.ones(3)}, learning_rate=0.8, momentum=0.9)
    >>> halve_every_second = LearningRateScheduler(lambda rate, step: rate if step % 2 else rate / 2)
    >>> for _ in range(4):
    ...     opt.step({"w": np.ones(3)})
    ...     halve_every_second(opt)
    ...     print(opt.get_lr())
    0.8
    0.4
    0.4
    0.2
    """

    def __init__(self, learning_rate_function: Callable[[float, int], float]) -> None:
        if not callable(learning_rate_function):
            raise TypeError(
                "learning_rate_function must be a callable of the rate and the step, "
                f"not {type(learning_rate_function).__name__}"
            )
        self.learning_rate_function = learning_rate_function

    def __call__(self, optimizer: Optimizer) -> None:
        """Set the rates of an optimizer that has just taken a step.

        Parameters
        ----------
        optimizer : Lamb, Lars or Momentum
            The optimizer. Its rates must be numbers.

        Raises
        ------
        TypeError
            If a rate is a schedule or a table, or the function returns no number.
        ValueError
            If the function returns a number that is negative or not finite.
        """
        current = [
            _constant(group["lr"], f"lr of group {index}")
            for index, group in enumerate(optimizer.param_groups)
        ]
        step = optimizer.global_step
        wanted = [_checked(self.learning_rate_function(rate, step), step) for rate in current]
        shared = optimizer.learning_rate
        for group, before, after in zip(optimizer.param_groups, current, wanted, strict=True):
            if after != before:
                if group["lr"] is shared:
                    # Then groups that are added later start from the new rate as well.
                    optimizer.learning_rate = after
                group["lr"] = after


def _constant(rate: Any, name: str) -> float:
    """Return a constant rate as a float."""
    if isinstance(rate, numbers.Real) or getattr(rate, "ndim", None) == 0:
        return float(rate)
    raise TypeError(
        f"LearningRateScheduler sets constant rates, but {name} is a schedule or table "
        f"({type(rate).__name__}): put the change into the schedule"
    )


def _checked(rate: Any, step: int) -> float:
    """Return what the function gave as a float, if it can be a rate."""
    if isinstance(rate, bool | complex | str) or not hasattr(rate, "__float__"):
        raise TypeError(
            f"learning_rate_function must return a number, but returned {rate!r} after step {step}"
        )
    number = unrounded(float(rate))
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(
            f"learning_rate_function must return a finite rate >= 0, but returned {rate!r} after step {step}"
        )
    return number
