"""A warm-up, a plateau and a fall, in phases, after mindformers."""

from dataclasses import dataclass

from ._checks import CountOrZero, MaybeCount, MaybeCountOrZero, MaybeNonNegative, MaybeRatio, NonNegative
from ._formulas import half_cosine, ramp
from ._warmup import WithWarmUp, check_falls, steps_or_ratio

__all__ = ["ConstantWithCoolDownLR", "WarmUpStableDecayLR"]


@dataclass(frozen=True, slots=True)
class ConstantWithCoolDownLR(WithWarmUp):
    r"""Climb, hold, fall along a cosine, hold, and end at a last rate.

    .. math::
        \eta_t = \begin{cases}
            \eta_{init} + (\eta - \eta_{init}) \, t / W & t < W \\
            \eta & \text{for the next } K \text{ steps} \\
            \eta_1 + \tfrac{1}{2} (\eta - \eta_1) \left(1 + \cos \frac{2 \pi c \, (t - W - K)}{D}\right)
                & \text{for the next } D \text{ steps} \\
            \eta_1 & \text{for the next } F \text{ steps} \\
            \eta_2 & \text{afterwards}
        \end{cases}

    Parameters
    ----------
    learning_rate : float
        Highest rate, :math:`\eta \ge 0`.
    warmup_steps : int, optional
        Steps :math:`W \ge 0` of the climb; needed unless ``warmup_ratio`` is given.
    warmup_lr_init : float, default 0.0
        Rate at step 0, :math:`\eta_{init} \ge 0`.
    warmup_ratio : float, optional
        Part of ``total_steps`` that the climb takes, from 0 to 1; :math:`W` is rounded down.
    keep_steps : int, default 0
        Steps :math:`K \ge 0` at the highest rate.
    decay_steps : int, optional
        Steps :math:`D \ge 0` of the cosine; needed unless ``decay_ratio`` is given.
    decay_ratio : float, optional
        The same as a part of ``total_steps``, from 0 to 1, rounded down.
    total_steps : int, optional
        Length of the training; needed by the ratios only.
    num_cycles : float, default 0.5
        Waves :math:`c \ge 0` of the cosine; one half is a single fall.
    lr_end1 : float, default 0.0
        Rate :math:`\eta_1 \ge 0` after the cosine.
    final_steps : int, default 0
        Steps :math:`F \ge 0` at ``lr_end1``.
    lr_end2 : float, optional
        Last rate :math:`\eta_2 \ge 0`; ``None``, and 0 as in the source, mean ``lr_end1``.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or neither argument is given for the warm-up or for the decay.
    ValueError
        If an argument is out of range, a ratio comes without ``total_steps``, or both arguments are given for
        the warm-up or for the decay.

    Notes
    -----
    Differs from mindformers: rates and ``num_cycles`` must be finite and >= 0; ``decay_ratio`` may be an
    integer; a ratio along with the steps that it would override is an error; unknown keywords are errors.

    References
    ----------
    ``mindformers.core.ConstantWithCoolDownLR``, mindformers 2.1.0.

    Examples
    --------
    >>> from numba_lamb.schedules import ConstantWithCoolDownLR
    >>> schedule = ConstantWithCoolDownLR(
    ...     0.5, 2, keep_steps=2, decay_steps=4, lr_end1=0.25, final_steps=1, lr_end2=0.125
    ... )
    >>> schedule(range(10))
    array([0.        , 0.25      , 0.5       , 0.5       , 0.5       ,
           0.46338835, 0.375     , 0.28661165, 0.25      , 0.125     ])
    """

    learning_rate: NonNegative
    warmup_steps: MaybeCountOrZero = None
    warmup_lr_init: NonNegative = 0.0
    warmup_ratio: MaybeRatio = None
    keep_steps: CountOrZero = 0
    decay_steps: MaybeCountOrZero = None
    decay_ratio: MaybeRatio = None
    total_steps: MaybeCount = None
    num_cycles: NonNegative = 0.5
    lr_end1: NonNegative = 0.0
    final_steps: CountOrZero = 0
    lr_end2: MaybeNonNegative = None

    @property
    def _decay(self) -> int:
        return steps_or_ratio("decay", self.decay_steps, self.decay_ratio, self.total_steps)

    def _length(self) -> int:
        return self._warmup + self.keep_steps + self._decay + self.final_steps + 1

    def _after(self, step: int) -> float:
        falling = step - self.keep_steps
        if falling < 0:
            return self.learning_rate
        if falling < self._decay:
            return half_cosine(self.learning_rate, self.lr_end1, 2 * self.num_cycles * falling, self._decay)
        if falling - self._decay < self.final_steps:
            return self.lr_end1
        return self.lr_end2 or self.lr_end1


@dataclass(frozen=True, slots=True)
class WarmUpStableDecayLR(WithWarmUp):
    r"""Climb in a straight line, hold, then fall in a straight line.

    .. math::
        \eta_t = \begin{cases}
            \eta_{init} + (\eta - \eta_{init}) \, t / W & t < W \\
            \eta & W \le t < S \\
            \eta - (\eta - \eta_{end}) \frac{t - S}{T - S} & \text{otherwise}
        \end{cases}

    Parameters
    ----------
    learning_rate : float
        Rate of the plateau, :math:`\eta > \eta_{end}`.
    lr_end : float, default 1e-7
        Rate at step :math:`T`, :math:`\eta_{end} \ge 0`.
    warmup_steps : int, optional
        Steps :math:`W \ge 0` of the climb; needed unless ``warmup_ratio`` is given.
    warmup_lr_init : float, default 0.0
        Rate at step 0, :math:`\eta_{init} \ge 0`.
    warmup_ratio : float, optional
        Part of ``total_steps`` that the climb takes, from 0 to 1; :math:`W` is rounded down.
    total_steps : int
        Step :math:`T \ge 1` at which the fall reaches ``lr_end``.
    decay_start_steps : int, optional
        Step :math:`0 \le S < T` at which the fall begins; needed unless ``decay_start_ratio`` is given.
    decay_start_ratio : float, optional
        The same as a part of ``total_steps``, from 0 to 1, rounded down.

    Raises
    ------
    TypeError
        If an argument has the wrong type, ``total_steps`` is missing, or neither argument is given for the
        warm-up or for the start of the decay.
    ValueError
        If an argument is out of range, ``lr_end`` is not below ``learning_rate``, the decay does not start
        before ``total_steps``, or both arguments are given for the warm-up or for the start of the decay.

    Notes
    -----
    As in the source the line goes on after :math:`T`, below ``lr_end`` and soon below zero: the optimizers
    refuse such a rate when they meet it; ``clamp(schedule, lr_end, learning_rate)`` stops it.

    Differs from mindformers: without a warm-up, step 0 has the rate of the plateau, not NaN; a decay that
    starts at ``total_steps`` (0/0 there) or after it (a growing rate there) is refused; rates must be finite
    and >= 0; a ratio along with the steps that it would override is an error; unknown keywords are errors.

    References
    ----------
    ``mindformers.core.WarmUpStableDecayLR``, mindformers 2.1.0.

    Examples
    --------
    >>> from numba_lamb.schedules import WarmUpStableDecayLR
    >>> schedule = WarmUpStableDecayLR(0.5, 0.0, warmup_steps=2, total_steps=8, decay_start_steps=4)
    >>> schedule([0, 1, 2, 4, 6, 8])
    array([0.  , 0.25, 0.5 , 0.5 , 0.25, 0.  ])
    """

    learning_rate: NonNegative
    lr_end: NonNegative = 1e-7
    warmup_steps: MaybeCountOrZero = None
    warmup_lr_init: NonNegative = 0.0
    warmup_ratio: MaybeRatio = None
    total_steps: MaybeCount = None
    decay_start_steps: MaybeCountOrZero = None
    decay_start_ratio: MaybeRatio = None

    def _validate(self) -> None:
        WithWarmUp._validate(self)
        if self.total_steps is None:
            raise TypeError("total_steps must be an integer, got None")
        check_falls(self.learning_rate, self.lr_end)
        if self._decay_start >= self.total_steps:
            raise ValueError(
                f"the decay must start before total_steps={self.total_steps}, got {self._decay_start}"
            )

    @property
    def _decay_start(self) -> int:
        return steps_or_ratio("decay_start", self.decay_start_steps, self.decay_start_ratio, self.total_steps)

    def _after(self, step: int) -> float:
        assert self.total_steps is not None
        start = self._decay_start
        falling = max(0, step + self._warmup - start)
        return ramp(self.learning_rate, self.lr_end, falling, self.total_steps - start)
