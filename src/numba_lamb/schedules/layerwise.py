"""Rates that differ by layer: a scale on any schedule, and the cosine of the page that describes it."""

from dataclasses import dataclass

from ._base import LearningRateSchedule, length_of
from ._checks import AnyPiece, Count, NonNegative, rate_at
from ._formulas import half_cosine

__all__ = ["LayerWiseCosineAnnealingLR", "LearningRateWiseLayer"]


@dataclass(frozen=True, slots=True)
class LearningRateWiseLayer(LearningRateSchedule):
    r"""Scale another schedule, so that a layer or a group of layers follows it at its own height.

    .. math:: \eta_{t,l} = \alpha_l \, \eta_{base}(t)

    Parameters
    ----------
    base_lr : number, table or callable
        The rate to scale: a constant, one value per step, or any ``step -> rate``.
    lr_scale : float
        Factor of the layer, :math:`\alpha_l \ge 0`.

    Raises
    ------
    TypeError
        If ``base_lr`` is none of these, or ``lr_scale`` is not a number.
    ValueError
        If ``lr_scale`` is negative or not finite.

    Notes
    -----
    The source's page adds a cosine to this formula, its code does not, and neither does this class; the
    cosine is :class:`LayerWiseCosineAnnealingLR`.

    Differs from mindformers: the arguments are checked; numbers and tables are taken as a base.

    References
    ----------
    ``mindformers.core.LearningRateWiseLayer``, mindformers 2.1.0.

    Examples
    --------
    >>> from numba_lamb.schedules import LearningRateWiseLayer, LinearWithWarmUpLR
    >>> linear_warmup = LinearWithWarmUpLR(learning_rate=0.005, warmup_steps=10, total_steps=20)
    >>> learning_rate_wise_layer = LearningRateWiseLayer(linear_warmup, 0.5)
    >>> learning_rate_wise_layer(1)
    0.00025
    >>> learning_rate_wise_layer(15)
    0.00125
    """

    base_lr: AnyPiece
    lr_scale: NonNegative

    def _length(self) -> int:
        return length_of(self.base_lr)

    def _rate(self, step: int) -> float:
        return self.lr_scale * rate_at(self.base_lr, step)


@dataclass(frozen=True, slots=True)
class LayerWiseCosineAnnealingLR(LearningRateSchedule):
    r"""Anneal a layer's own rate to a common end along half a cosine, and start over.

    .. math::
        \eta_{t,l} = \eta_{end} + \tfrac{1}{2} (\eta_{base} \, \alpha_l - \eta_{end})
                     \left(1 + \cos \frac{\pi \, T_{cur}}{T_{max}}\right), \qquad T_{cur} = t \bmod T_{max}

    Parameters
    ----------
    base_lr : float
        Base rate :math:`\eta_{base} \ge 0`, common to all layers.
    lr_scale : float
        Factor of the layer, :math:`\alpha_l \ge 0`.
    t_max : int
        Steps or epochs :math:`T_{max} \ge 1` from one reset to the next.
    eta_end : float, default 0.0
        Rate that each fall approaches, :math:`\eta_{end} \ge 0`, common to all layers.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    Differs from mindformers: its page gives this formula, no code of it does. The page counts :math:`T_{cur}`
    from the last reset and puts :math:`T_{max}` before the next one; so there is a reset every ``t_max``
    steps.

    References
    ----------
    Page of ``mindformers.core.LearningRateWiseLayer``.

    Examples
    --------
    >>> from numba_lamb.schedules import LayerWiseCosineAnnealingLR
    >>> LayerWiseCosineAnnealingLR(0.5, lr_scale=0.5, t_max=4, eta_end=0.125)([0, 2, 4])
    array([0.25  , 0.1875, 0.25  ])
    """

    base_lr: NonNegative
    lr_scale: NonNegative
    t_max: Count
    eta_end: NonNegative = 0.0

    def _length(self) -> int:
        return self.t_max

    def _rate(self, step: int) -> float:
        return half_cosine(self.base_lr * self.lr_scale, self.eta_end, step % self.t_max, self.t_max)
