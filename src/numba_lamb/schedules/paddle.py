"""Annealing by hand-written segments, and every annealing of Paddle v1 by its name there."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from ._base import LearningRateSchedule
from ._checks import Count, NonNegative, integer, real
from .samples import (
    BySamples,
    CaffePolyAnnealingLR,
    ConstantAnnealingLR,
    DiscExpAnnealingLR,
    ExpAnnealingLR,
    LinearAnnealingLR,
    PolyAnnealingLR,
)

__all__ = ["ManualAnnealingLR", "PassManualAnnealingLR", "annealing"]


@functools.lru_cache
def _segments(args: str) -> tuple[tuple[int, float], ...]:
    """Return the ends and factors of ``"end:factor,end:factor"``."""
    segments: list[tuple[int, float]] = []
    for part in args.split(","):
        end, colon, factor = part.partition(":")
        try:
            if not colon:
                raise ValueError
            segments.append((int(end), real("factor", float(factor), low=0.0)))
        except ValueError:
            raise ValueError(
                f'learning_rate_args must be like "1000:1.0,2000:0.5", got {part!r} in {args!r}'
            ) from None
    if any(later <= earlier for (earlier, _), (later, _) in itertools.pairwise(segments)):
        raise ValueError(f"the segments of learning_rate_args must increase, got {args!r}")
    return tuple(segments)


def _segments_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r}")
    _segments(value)
    return value


def _factor(args: str, position: int) -> float:
    """Return the factor of the first segment that ends at or after a position, or the last factor."""
    segments = _segments(args)
    return next((factor for end, factor in segments if position <= end), segments[-1][1])


@dataclass(frozen=True, slots=True)
class ManualAnnealingLR(BySamples):
    r"""Multiply the rate by a factor per segment of samples, ``learning_rate_schedule="manual"``.

    .. math::
        \eta_n = \eta \, r_k \quad \text{for } s_{k-1} < n \le s_k, \qquad \eta \, r_K \text{ for } n > s_K

    Parameters
    ----------
    learning_rate : float
        Base rate, :math:`\eta \ge 0`.
    learning_rate_args : str
        ``"s_1:r_1,s_2:r_2,..."``: segment ends in samples, increasing, and factors >= 0.
    batch_size : int
        Samples per step, at least 1.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range or ``learning_rate_args`` cannot be read.

    Notes
    -----
    Differs from Paddle: it keeps no position, so steps may be asked for in any order; segments that do not
    increase and so would never be reached are refused.

    References
    ----------
    ``manual`` of the learning rate schedulers of Paddle v1.

    Examples
    --------
    >>> from numba_lamb.schedules import ManualAnnealingLR
    >>> ManualAnnealingLR(0.5, "64:1.0,128:0.5", batch_size=32)([0, 1, 2, 3, 4])
    array([0.5 , 0.5 , 0.25, 0.25, 0.25])
    """

    learning_rate: NonNegative
    learning_rate_args: Annotated[str, _segments_text]
    batch_size: Count

    def _length(self) -> int:
        return -(-_segments(self.learning_rate_args)[-1][0] // self.batch_size)

    def _anneal(self, samples: int) -> float:
        return self.learning_rate * _factor(self.learning_rate_args, samples)


@dataclass(frozen=True, slots=True)
class PassManualAnnealingLR(LearningRateSchedule):
    r"""Multiply the rate by a factor per group of passes, ``learning_rate_schedule="pass_manual"``.

    .. math::
        \eta_p = \eta \, r_k \quad \text{for } s_{k-1} < p \le s_k, \qquad \eta \, r_K \text{ for } p > s_K,
        \qquad p = \lfloor t / \lceil N / B \rceil \rfloor

    Parameters
    ----------
    learning_rate : float
        Base rate, :math:`\eta \ge 0`.
    learning_rate_args : str
        ``"s_1:r_1,s_2:r_2,..."``: last pass of each group, counted from 0 and increasing, and factors >= 0.
    batch_size : int
        Samples per step, :math:`B \ge 1`.
    samples_per_pass : int
        Samples in the data set, :math:`N \ge 1`; the last batch of a pass may be short.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range or ``learning_rate_args`` cannot be read.

    Notes
    -----
    Differs from Paddle: the pass is worked out from the step; it keeps no position; segments that do not
    increase and so would never be reached are refused.

    References
    ----------
    ``pass_manual`` of the learning rate schedulers of Paddle v1.

    Examples
    --------
    >>> from numba_lamb.schedules import PassManualAnnealingLR
    >>> PassManualAnnealingLR(0.5, "0:1.0,1:0.5", batch_size=4, samples_per_pass=6)([0, 1, 2, 3, 4])
    array([0.5 , 0.5 , 0.25, 0.25, 0.25])
    """

    learning_rate: NonNegative
    learning_rate_args: Annotated[str, _segments_text]
    batch_size: Count
    samples_per_pass: Count

    @property
    def _steps_per_pass(self) -> int:
        return -(-self.samples_per_pass // self.batch_size)

    def _length(self) -> int:
        return (_segments(self.learning_rate_args)[-1][0] + 1) * self._steps_per_pass

    def _rate(self, step: int) -> float:
        return self.at_pass(step // self._steps_per_pass)

    def at_pass(self, number: int) -> float:
        """Return the rate of a pass.

        Parameters
        ----------
        number : int
            The pass, counted from 0.

        Returns
        -------
        float
            The rate.

        Raises
        ------
        TypeError
            If ``number`` is not an integer.
        ValueError
            If ``number`` is negative.
        """
        return self.learning_rate * _factor(self.learning_rate_args, integer("number", number))


_FORMULAS: dict[str, Callable[[float, float, float, int], LearningRateSchedule]] = {
    "caffe_poly": CaffePolyAnnealingLR,
    "discexp": DiscExpAnnealingLR,
    "exp": ExpAnnealingLR,
    "linear": LinearAnnealingLR,
    "poly": PolyAnnealingLR,
}
_NAMES = sorted([*_FORMULAS, "constant", "manual", "pass_manual"])


def annealing(
    learning_rate: float,
    batch_size: int,
    learning_rate_schedule: str = "poly",
    learning_rate_decay_a: float = 0.0,
    learning_rate_decay_b: float = 0.0,
    learning_rate_args: str = "",
    samples_per_pass: int | None = None,
) -> LearningRateSchedule:
    r"""Return the annealing that goes by a name in Paddle v1.

    ============== ===================================================================
    name           rate after :math:`n` samples
    ============== ===================================================================
    constant       :math:`\eta`
    poly           :math:`\eta (1 + a n)^{-b}`
    caffe_poly     :math:`\eta (1 - n / a)^b`, 0 beyond :math:`n = a`
    exp            :math:`\eta a^{n / b}`
    discexp        :math:`\eta a^{\lfloor n / b \rfloor}`
    linear         :math:`\max(\eta - a n, b)`
    manual         :math:`\eta r_k` in segment k of the samples
    pass_manual    :math:`\eta r_k` in segment k of the passes
    ============== ===================================================================

    Parameters
    ----------
    learning_rate : float
        Rate :math:`\eta \ge 0`.
    batch_size : int
        Samples per step, at least 1.
    learning_rate_schedule : str, default "poly"
        The name.
    learning_rate_decay_a, learning_rate_decay_b : float, default 0.0
        The numbers :math:`a` and :math:`b` of the formulas.
    learning_rate_args : str, default ""
        ``"end:factor,end:factor"`` of ``manual`` and ``pass_manual``.
    samples_per_pass : int, optional
        Samples in the data set, needed by ``pass_manual``.

    Returns
    -------
    LearningRateSchedule
        A schedule of the class of that name.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or ``samples_per_pass`` is missing where it is needed.
    ValueError
        If the name is unknown, an argument is out of range, or one is given that the formula does not use.

    Notes
    -----
    With nothing but a rate this is constant, as in Paddle's Python settings: ``poly`` with both numbers 0.

    Differs from Paddle: an argument without effect is an error; so are the ranges given with the classes.

    References
    ----------
    ``learning_rate_schedule`` of the settings of Paddle v1.

    Examples
    --------
    >>> from numba_lamb.schedules import annealing
    >>> annealing(0.5, 50, "discexp", learning_rate_decay_a=0.5, learning_rate_decay_b=100)([0, 1, 3])
    array([0.5  , 0.25 , 0.125])
    """
    if not isinstance(learning_rate_schedule, str):
        raise TypeError(f"learning_rate_schedule must be a string, got {learning_rate_schedule!r}")
    kind, a, b = learning_rate_schedule, learning_rate_decay_a, learning_rate_decay_b
    if kind not in _NAMES:
        raise ValueError(f"learning_rate_schedule must be one of {', '.join(_NAMES)}, got {kind!r}")
    for name, given, used in (
        ("learning_rate_decay_a", a != 0, kind in _FORMULAS),
        ("learning_rate_decay_b", b != 0, kind in _FORMULAS),
        ("learning_rate_args", learning_rate_args != "", kind in ("manual", "pass_manual")),
        ("samples_per_pass", samples_per_pass is not None, kind == "pass_manual"),
    ):
        if given and not used:
            raise ValueError(f"{name} has no effect on learning_rate_schedule={kind!r}: leave it out")
    if kind == "constant":
        return ConstantAnnealingLR(learning_rate, batch_size)
    if kind == "manual":
        return ManualAnnealingLR(learning_rate, learning_rate_args, batch_size)
    if kind == "pass_manual":
        samples = integer("samples_per_pass", samples_per_pass, low=1)
        return PassManualAnnealingLR(learning_rate, learning_rate_args, batch_size, samples)
    return _FORMULAS[kind](learning_rate, a, b, batch_size)
