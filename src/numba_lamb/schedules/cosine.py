"""Cosine curves: after a warm-up, with restarts, without end, after mindformers."""

from dataclasses import dataclass

from ._base import LearningRateSchedule
from ._checks import (
    Count,
    MaybeCount,
    MaybeCountOrZero,
    MaybeRatio,
    NonNegative,
)
from ._formulas import half_cosine
from ._warmup import WithCutOff, steps_or_ratio

__all__ = [
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CosineWithRestartsAndWarmUpLR",
    "CosineWithWarmUpLR",
]


class _CosineWithWarmUp(WithCutOff):
    """The rules that the two schedules of cosine waves have in common."""

    __slots__ = ()

    decay_steps: int | None

    @property
    def _part(self) -> float | None:
        return None

    def _validate(self) -> None:
        if self.total_steps is None:
            if self.decay_steps is None:
                raise ValueError("total_steps must be given, got None")
            raise TypeError(
                "total_steps must be an integer, got None: it shapes the cosine, decay_steps does not"
            )
        super()._validate()

    @property
    def _cutoff(self) -> int:
        if self.decay_steps is None and self._part is None:
            return self._total
        return steps_or_ratio("decay", self.decay_steps, self._part, self._total)

    @property
    def _total(self) -> int:
        assert self.total_steps is not None
        return self.total_steps

    @property
    def _wave(self) -> int:
        """Steps of the cosine part."""
        return max(1, self._total - self._warmup)


@dataclass(frozen=True, slots=True)
class CosineWithWarmUpLR(_CosineWithWarmUp):
    r"""Climb in a straight line, then follow a cosine down to ``lr_end``.

    .. math::
        \eta_t = \begin{cases}
            \eta_{end} & t \ge S \\
            \eta_{init} + (\eta - \eta_{init}) \, t / W & t < W \\
            \eta_{end} + \tfrac{1}{2} (\eta - \eta_{end})
                \left(1 + \cos \frac{2 \pi c \, (t - W)}{\max(1, T - W)}\right) & \text{otherwise}
        \end{cases}

    Parameters
    ----------
    learning_rate : float
        Highest rate, :math:`\eta \ge 0`.
    warmup_steps : int, default 0
        Steps :math:`W \ge 0` of the climb.
    total_steps : int
        Step :math:`T \ge 1` at which the cosine ends.
    num_cycles : float, default 0.5
        Waves :math:`c \ge 0` of the cosine; one half is a single fall.
    lr_end : float, default 0.0
        Last rate, :math:`\eta_{end} \ge 0`.
    warmup_lr_init : float, default 0.0
        Rate at step 0, :math:`\eta_{init} \ge 0`.
    warmup_ratio : float, optional
        Part of ``total_steps`` that the climb takes, from 0 to 1; :math:`W` is rounded down.
    decay_steps : int, optional
        Step :math:`S \ge 1` from which ``lr_end`` holds, by default :math:`T`.
    decay_ratio : float, optional
        The same as a part of ``total_steps``, from 0 to 1, rounded down.

    Raises
    ------
    TypeError
        If an argument has the wrong type, or only ``decay_steps`` is given of it and ``total_steps``.
    ValueError
        If an argument is out of range, ``total_steps`` is missing, or the steps and the ratio are both given
        for the warm-up or for the decay.

    Notes
    -----
    ``decay_steps`` cuts the curve off, it does not stretch the cosine; the cut comes before the warm-up.

    Differs from mindformers: rates and ``num_cycles`` must be finite and >= 0, step counts of the decay >= 1;
    a ratio along with the steps that it would override is an error; unknown keywords are errors.

    References
    ----------
    ``mindformers.core.CosineWithWarmUpLR``, mindformers 2.1.0.

    Examples
    --------
    >>> from numba_lamb.schedules import CosineWithWarmUpLR
    >>> CosineWithWarmUpLR(0.5, warmup_steps=2, total_steps=6)([0, 1, 2, 4, 6])
    array([0.  , 0.25, 0.5 , 0.25, 0.  ])
    """

    learning_rate: NonNegative
    warmup_steps: MaybeCountOrZero = 0
    total_steps: MaybeCount = None
    num_cycles: NonNegative = 0.5
    lr_end: NonNegative = 0.0
    warmup_lr_init: NonNegative = 0.0
    warmup_ratio: MaybeRatio = None
    decay_steps: MaybeCount = None
    decay_ratio: MaybeRatio = None

    @property
    def _part(self) -> float | None:
        return self.decay_ratio

    def _after(self, step: int) -> float:
        return half_cosine(self.learning_rate, self.lr_end, 2 * self.num_cycles * step, self._wave)


@dataclass(frozen=True, slots=True)
class CosineWithRestartsAndWarmUpLR(_CosineWithWarmUp):
    r"""Climb in a straight line, then fall along several half cosines, each from the top.

    .. math::
        \eta_t = \begin{cases}
            \eta_{end} & t \ge S \\
            \eta_{init} + (\eta - \eta_{init}) \, t / W & t < W \\
            \eta_{end} + \tfrac{1}{2} (\eta - \eta_{end})
                \left(1 + \cos(\pi \, (c p \bmod 1))\right) & p < 1 \\
            0 & p \ge 1
        \end{cases}
        \qquad p = \frac{t - W}{\max(1, T - W)}

    Parameters
    ----------
    learning_rate : float
        Highest rate, :math:`\eta \ge 0`.
    warmup_steps : int, optional
        Steps :math:`W \ge 0` of the climb; needed unless ``warmup_ratio`` is given.
    total_steps : int
        Step :math:`T \ge 1` at which the last cosine ends.
    num_cycles : float, default 1.0
        Falls :math:`c \ge 0` between the warm-up and :math:`T`.
    lr_end : float, default 0.0
        Lowest rate of each fall, :math:`\eta_{end} \ge 0`.
    warmup_lr_init : float, default 0.0
        Rate at step 0, :math:`\eta_{init} \ge 0`.
    warmup_ratio : float, optional
        Part of ``total_steps`` that the climb takes, from 0 to 1; :math:`W` is rounded down.
    decay_steps : int, optional
        Step :math:`S \ge 1` from which ``lr_end`` holds, by default :math:`T`.

    Raises
    ------
    TypeError
        If an argument has the wrong type, neither warm-up argument is given, or ``decay_steps`` comes without
        ``total_steps``.
    ValueError
        If an argument is out of range, ``total_steps`` is missing, or both warm-up arguments are given.

    Notes
    -----
    As in the source, the rate is 0, not ``lr_end``, from :math:`T` to a later ``decay_steps``.

    Differs from mindformers: rates and ``num_cycles`` must be finite and >= 0, step counts of the decay >= 1;
    giving ``warmup_ratio`` along with a ``warmup_steps`` that it would override is an error; unknown keywords
    are errors.

    References
    ----------
    ``mindformers.core.CosineWithRestartsAndWarmUpLR``, mindformers 2.1.0.

    Examples
    --------
    >>> from numba_lamb.schedules import CosineWithRestartsAndWarmUpLR
    >>> CosineWithRestartsAndWarmUpLR(0.5, 0, total_steps=8, num_cycles=2)([0, 2, 4, 6, 8])
    array([0.5 , 0.25, 0.5 , 0.25, 0.  ])
    """

    learning_rate: NonNegative
    warmup_steps: MaybeCountOrZero = None
    total_steps: MaybeCount = None
    num_cycles: NonNegative = 1.0
    lr_end: NonNegative = 0.0
    warmup_lr_init: NonNegative = 0.0
    warmup_ratio: MaybeRatio = None
    decay_steps: MaybeCount = None

    def _after(self, step: int) -> float:
        if step >= self._wave:
            return 0.0
        return half_cosine(self.learning_rate, self.lr_end, self.num_cycles * step / self._wave % 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class CosineAnnealingLR(LearningRateSchedule):
    r"""Swing between two rates along a cosine, without end.

    .. math::
        \eta_t = \eta_{min} + \tfrac{1}{2} (\eta_{max} - \eta_{min}) \left(1 + \cos \frac{\pi t}{T_{max}}\right)

    Parameters
    ----------
    base_lr : float
        Rate at step 0, :math:`\eta_{max} \ge 0`.
    t_max : int
        Steps :math:`T_{max} \ge 1` from one extreme to the other.
    eta_min : float, default 0.0
        The other extreme, :math:`\eta_{min} \ge 0`.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    After ``t_max`` the rate climbs again; ``CosineDecayLR`` stays down.

    Differs from mindformers: rates must be finite and >= 0; unknown keywords are errors.

    References
    ----------
    ``mindformers.core.CosineAnnealingLR``, mindformers 2.1.0; I. Loshchilov and F. Hutter, "SGDR: Stochastic
    Gradient Descent with Warm Restarts", arXiv:1608.03983.

    Examples
    --------
    >>> from numba_lamb.schedules import CosineAnnealingLR
    >>> CosineAnnealingLR(0.5, t_max=4)([0, 2, 4, 6, 8])
    array([0.5 , 0.25, 0.  , 0.25, 0.5 ])
    """

    base_lr: NonNegative
    t_max: Count
    eta_min: NonNegative = 0.0

    def _length(self) -> int:
        return self.t_max

    def _rate(self, step: int) -> float:
        return half_cosine(self.base_lr, self.eta_min, step, self.t_max)


@dataclass(frozen=True, slots=True)
class CosineAnnealingWarmRestarts(LearningRateSchedule):
    r"""Fall along half cosines, each from the top and each ``t_mult`` times as long as the one before.

    .. math::
        \eta_t = \eta_{min} + \tfrac{1}{2} (\eta_{max} - \eta_{min})
                 \left(1 + \cos \frac{\pi \, T_{cur}}{T_i}\right), \qquad T_i = T_0 m^i

    Parameters
    ----------
    base_lr : float
        Rate at each restart, :math:`\eta_{max} \ge 0`.
    t_0 : int
        Steps :math:`T_0 \ge 1` of the first fall.
    t_mult : int, default 1
        Growth :math:`m \ge 1` of the falls.
    eta_min : float, default 0.0
        Rate that each fall approaches, :math:`\eta_{min} \ge 0`.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    The step of a restart has ``base_lr``; ``eta_min`` itself is not reached.

    Differs from mindformers: the restart is found in integers, not by a float32 logarithm; rates must be
    finite and >= 0; unknown keywords are errors.

    References
    ----------
    ``mindformers.core.CosineAnnealingWarmRestarts``, mindformers 2.1.0; I. Loshchilov and F. Hutter, "SGDR:
    Stochastic Gradient Descent with Warm Restarts", arXiv:1608.03983.

    Examples
    --------
    >>> from numba_lamb.schedules import CosineAnnealingWarmRestarts
    >>> CosineAnnealingWarmRestarts(0.5, t_0=2, t_mult=2)([0, 1, 2, 4, 6, 10])
    array([0.5 , 0.25, 0.5 , 0.25, 0.5 , 0.25])
    """

    base_lr: NonNegative
    t_0: Count
    t_mult: Count = 1
    eta_min: NonNegative = 0.0

    def _length(self) -> int:
        return self.t_0 * (1 + self.t_mult)

    def _rate(self, step: int) -> float:
        length = self.t_0
        if self.t_mult == 1:
            step %= length
        while step >= length:
            step -= length
            length *= self.t_mult
        return half_cosine(self.base_lr, self.eta_min, step, length)
