"""Cosine annealing with warm boots: a scheduler that drives an optimizer, and its rates as a function."""

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeAlias

import numpy as np

from ._base import LearningRateSchedule
from ._checks import Count, CountOrZero, Finite, NonNegative, integer, real
from ._formulas import half_cosine

__all__ = ["CosineAnnealingWarmbootingLR", "WarmbootingCosineLR"]

Curve: TypeAlias = Callable[[int, float], float]


class _HasGroups(Protocol):
    """What is driven: an optimizer of this package, of PyTorch, or anything else with groups."""

    @property
    def param_groups(self) -> Sequence[MutableMapping[str, Any]]: ...


def _curve(name: str, value: object) -> Curve | None:
    if value is None or (callable(value) and not isinstance(value, type)):
        return value
    raise TypeError(f"{name} must be None or a function of (epoch, gap), got {value!r}")


def _steps(name: str, value: object) -> tuple[int, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray):
        raise TypeError(f"{name} must be a list or tuple of epochs, got {value!r}")
    return tuple(integer(f"{name}[{i}]", one) for i, one in enumerate(value))


def _knots(epochs: int, steps: Sequence[int], warmup_epoch: int) -> tuple[int, ...]:
    """Return the first epoch, the warm boots between it and the last, in order, and the last epoch."""
    return (warmup_epoch, *sorted(step for step in steps if warmup_epoch < step < epochs), epochs)


def _segment(
    epoch: int, knots: Sequence[int], step_scale: float, epoch_scale: float, last_gap: float
) -> tuple[int, float, float]:
    """Return position and length of an epoch's segment, and the scale of the segments passed.

    Past the last knot the position counts from epoch 0 and the length is ``last_gap``.
    """
    scale = 1.0
    for i in range(len(knots) - 1):
        start, end = knots[i], knots[i + 1]
        if epoch <= end:
            last = i == len(knots) - 2
            return epoch - start, end - start + (0.0 if last else epoch_scale), scale
        scale *= step_scale
    return epoch, last_gap, scale


def _relative_rate(position: int, gap: float, eta_min: float, lf: Curve | None) -> float:
    """Return the rate as a fraction of its height in this segment."""
    if lf is not None:
        return float(lf(position, gap))
    if gap == 0:
        raise ValueError(
            "the cosine has a segment of zero epochs: epochs must be above warmup_epoch, "
            "and epoch_scale must not cancel a segment"
        )
    return half_cosine(1.0, eta_min, position, gap)


@dataclass(frozen=True, slots=True)
class WarmbootingCosineLR(LearningRateSchedule):
    r"""Fall along cosines that start over, lower each time, as a function of the epoch.

    .. math::
        \eta_e = \eta \, s^i \left( \eta_{min} + \frac{1 - \eta_{min}}{2}
                 \left(1 + \cos \frac{\pi (e - K_i)}{G_i}\right)\right)
        \quad \text{for } K_i < e \le K_{i+1}

    with knots :math:`K` = warm-up end, steps, last epoch; :math:`G_i = K_{i+1} - K_i`, and ``epoch_scale``
    more in all segments but the last.

    Parameters
    ----------
    learning_rate : float
        Base rate, :math:`\eta \ge 0`.
    epochs : int
        Last epoch, above ``warmup_epoch``.
    eta_min : float, default 0.05
        Floor of the cosine, a fraction :math:`\eta_{min} \ge 0` of the base rate.
    steps : sequence of int, default ()
        Epochs of the warm boots; those not between ``warmup_epoch`` and ``epochs`` are left out.
    step_scale : float, default 0.8
        Factor :math:`s` per warm boot.
    lf : callable, optional
        ``(position in the segment, length of the segment) -> fraction``, in place of the cosine.
    warmup_epoch : int, default 0
        First knot.
    epoch_scale : float, default 1.0
        Epochs added to every segment but the last, so that it stops short of the floor.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If an argument is out of range, ``epochs`` is not above ``warmup_epoch``, or a segment has zero
        length.

    Notes
    -----
    A knot belongs to the segment before it. Before ``warmup_epoch`` the position is negative, and the cosine
    climbs towards its peak. Past ``epochs`` the position counts from epoch 0 and the length is that of the
    last segment: the values that :class:`CosineAnnealingWarmbootingLR` has when it is stepped through all
    epochs in order.

    Differs from the source: it needs no optimizer and keeps no state.

    References
    ----------
    The class ``CosineAnnealingWarmbootingLR`` of the CAWB learning rate scheduler.

    Examples
    --------
    >>> from numba_lamb.schedules import WarmbootingCosineLR
    >>> schedule = WarmbootingCosineLR(1.0, epochs=8, eta_min=0.0, steps=[4], epoch_scale=0.0)
    >>> schedule(range(9)).round(3)
    array([1.   , 0.854, 0.5  , 0.146, 0.   , 0.683, 0.4  , 0.117, 0.   ])
    """

    learning_rate: NonNegative
    epochs: Count
    eta_min: NonNegative = 0.05
    steps: Annotated[Sequence[int], _steps] = ()
    step_scale: Finite = 0.8
    lf: Annotated[Curve | None, _curve] = None
    warmup_epoch: CountOrZero = 0
    epoch_scale: Finite = 1.0

    def _validate(self) -> None:
        if self.epochs <= self.warmup_epoch:
            raise ValueError(
                f"epochs must be > warmup_epoch, got epochs={self.epochs}, warmup_epoch={self.warmup_epoch}"
            )
        for knot in self._knots[1:]:
            if _segment(knot, self._knots, 1.0, self.epoch_scale, 1.0)[1] == 0:
                raise ValueError(
                    f"epoch_scale={self.epoch_scale} cancels the segment that ends at epoch {knot}"
                )

    @property
    def _knots(self) -> tuple[int, ...]:
        return _knots(self.epochs, self.steps, self.warmup_epoch)

    def _length(self) -> int:
        return self.epochs + 1

    def _rate(self, step: int) -> float:
        knots = self._knots
        position, gap, scale = _segment(step, knots, self.step_scale, self.epoch_scale, knots[-1] - knots[-2])
        return scale * self.learning_rate * _relative_rate(position, gap, self.eta_min, self.lf)


class CosineAnnealingWarmbootingLR:
    r"""Drive the rates of an optimizer along cosines that start over, lower each time.

    .. math::
        \eta_e = \eta \, s^i \left( \eta_{min} + \frac{1 - \eta_{min}}{2}
                 \left(1 + \cos \frac{\pi (e - K_i)}{G_i}\right)\right)
        \quad \text{for } K_i < e \le K_{i+1}

    with knots :math:`K` = warm-up end, steps, last epoch; :math:`G_i = K_{i+1} - K_i`, and ``epoch_scale``
    more in all segments but the last. Call :meth:`step_batch` before each batch and :meth:`step` after each
    epoch.

    Parameters
    ----------
    optimizer : object
        Anything with ``param_groups``, a sequence of dicts with a number under ``"lr"``: the base rates.
    epochs : int, default 0
        Last epoch, :math:`\ge 0`; only ``lf`` can do without a value above ``warmup_epoch``.
    eta_min : float, default 0.05
        Floor of the cosine, a fraction :math:`\eta_{min} \ge 0` of the base rate.
    steps : sequence of int, default ()
        Epochs of the warm boots; those not between ``warmup_epoch`` and ``epochs`` are left out.
    step_scale : float, default 0.8
        Factor :math:`s` per warm boot.
    lf : callable, optional
        ``(position in the segment, length of the segment) -> fraction``, in place of the cosine.
    batchs : int, default 0
        Batches per epoch, for :meth:`step_batch`.
    warmup_epoch : int, default 0
        Epochs of warm-up by batches, and the first knot.
    epoch_scale : float, default 1.0
        Epochs added to every segment but the last, so that it stops short of the floor.

    Attributes
    ----------
    iters, iters_batch : int
        Calls of :meth:`step` and :meth:`step_batch` so far, less one.
    last_epoch : int
        Added to ``iters``; set it to resume.
    gap : float
        Length of the segment of the last call, kept past the end.
    steps : list of int
        The knots.
    base_lr : list of float
        The rates of the groups when the scheduler was made.

    Raises
    ------
    TypeError
        If an argument has the wrong type or a group's rate is not a number.
    ValueError
        If an argument is out of range.
    KeyError
        If a group has no ``"lr"``.

    Notes
    -----
    Differs from the source: a division by zero is a ``ValueError``, and a step that fails leaves all as it
    was; the caller's ``steps`` are not sorted in place; ``initial_lr`` is not written to the groups, nothing
    there reads it; epochs are integers >= 0; a group added later is an error, not passed over.

    References
    ----------
    The class ``CosineAnnealingWarmbootingLR`` of the CAWB learning rate scheduler.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from numba_lamb.schedules import CosineAnnealingWarmbootingLR
    >>> optimizer = SimpleNamespace(param_groups=[{"lr": 0.5}])
    >>> scheduler = CosineAnnealingWarmbootingLR(optimizer, epochs=4, eta_min=0.0)
    >>> [round(scheduler.step(), 3) for epoch in range(5)]
    [0.5, 0.427, 0.25, 0.073, 0.0]
    """

    def __init__(
        self,
        optimizer: _HasGroups,
        epochs: int = 0,
        eta_min: float = 0.05,
        steps: Sequence[int] = (),
        step_scale: float = 0.8,
        lf: Curve | None = None,
        batchs: int = 0,
        warmup_epoch: int = 0,
        epoch_scale: float = 1.0,
    ) -> None:
        warmup_epoch = integer("warmup_epoch", warmup_epoch)
        self.optimizer = optimizer
        self.base_lr = [
            real(f"param_groups[{i}]['lr']", group["lr"]) for i, group in enumerate(optimizer.param_groups)
        ]
        self.steps = list(_knots(integer("epochs", epochs), _steps("steps", steps), warmup_epoch))
        self.eta_min = real("eta_min", eta_min, low=0.0)
        self.step_scale = real("step_scale", step_scale)
        self.epoch_scale = real("epoch_scale", epoch_scale)
        self.lf = _curve("lf", lf)
        self.warmup_iters = integer("batchs", batchs) * warmup_epoch
        self.iters = -1
        self.iters_batch = -1
        self.last_epoch = 0
        self.gap: float = 0

    def step(self, external_iter: int | None = None) -> float:
        """Set the rates of the next epoch, or of a given one.

        Parameters
        ----------
        external_iter : int, optional
            Epoch to go to, at least 0; ``last_epoch`` is added to it.

        Returns
        -------
        float
            The rate of the first group.

        Raises
        ------
        TypeError
            If ``external_iter`` is not an integer.
        ValueError
            If it is negative, if the cosine would divide by a segment of zero epochs, or if groups were
            added.
        """
        iters = self.iters + 1 if external_iter is None else integer("external_iter", external_iter)
        position, gap, scale = _segment(
            iters + self.last_epoch, self.steps, self.step_scale, self.epoch_scale, self.gap
        )
        relative = _relative_rate(position, gap, self.eta_min, self.lf)
        rate = self._write([scale * base * relative for base in self.base_lr])
        self.iters, self.gap = iters, gap
        return rate

    def step_batch(self) -> float | None:
        """Set the rates of the next batch while the warm-up lasts: a straight line from zero.

        Returns
        -------
        float or None
            The rate of the first group, or ``None`` after the warm-up, when nothing is set.

        Raises
        ------
        ValueError
            If groups were added.
        """
        batch = self.iters_batch + 1
        rate = None
        if batch < self.warmup_iters:
            rate = self._write([base * (batch / self.warmup_iters) for base in self.base_lr])
        self.iters_batch = batch
        return rate

    def _write(self, rates: list[float]) -> float:
        groups = self.optimizer.param_groups
        if len(groups) != len(rates):
            raise ValueError(
                f"the optimizer has {len(groups)} groups, it had {len(rates)} when this scheduler was made"
            )
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        return rates[0]
