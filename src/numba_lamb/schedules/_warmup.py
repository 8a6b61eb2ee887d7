"""What the schedules with a warm-up share: how long it lasts, and the ramp itself."""

from abc import abstractmethod

from ._base import LearningRateSchedule
from ._formulas import ramp


def steps_or_ratio(name: str, steps: int | None, ratio: float | None, total_steps: int | None) -> int:
    """Return a number of steps given as ``<name>_steps`` or as the part ``<name>_ratio`` of the total."""
    if ratio is None:
        if steps is None:
            raise TypeError(
                f"{name}_steps must be an integer, got None; or give {name}_ratio and total_steps"
            )
        return steps
    if steps:
        raise ValueError(f"give {name}_steps or {name}_ratio, not both; got {steps} and {ratio}")
    if total_steps is None:
        raise ValueError(f"{name}_ratio={ratio} needs total_steps")
    return int(total_steps * ratio)


def check_falls(learning_rate: float, lr_end: float) -> None:
    """Refuse an end that is not below the start."""
    if lr_end >= learning_rate:
        raise ValueError(f"lr_end must be < learning_rate, got {lr_end} and {learning_rate}")


class WithWarmUp(LearningRateSchedule):
    """A schedule that climbs from ``warmup_lr_init`` to ``learning_rate`` before anything else."""

    __slots__ = ()

    learning_rate: float
    warmup_steps: int | None
    warmup_lr_init: float
    warmup_ratio: float | None
    total_steps: int | None

    @property
    def _warmup(self) -> int:
        return steps_or_ratio("warmup", self.warmup_steps, self.warmup_ratio, self.total_steps)

    def _validate(self) -> None:
        # Working out the step counts raises where the arguments behind them contradict each other.
        _ = self._warmup, self._length()

    def _length(self) -> int:
        return self.total_steps or 2 * self._warmup

    def _rate(self, step: int) -> float:
        warmup = self._warmup
        if step < warmup:
            return ramp(self.warmup_lr_init, self.learning_rate, step, warmup)
        return self._after(step - warmup)

    @abstractmethod
    def _after(self, step: int) -> float:
        """Return the rate ``step`` steps after the end of the warm-up."""


class WithCutOff(WithWarmUp):
    """A schedule with a warm-up that is at ``lr_end`` from a certain step on, warm-up over or not."""

    __slots__ = ()

    lr_end: float

    @property
    @abstractmethod
    def _cutoff(self) -> int:
        """The first step at ``lr_end``."""

    def _length(self) -> int:
        return self._cutoff

    def _rate(self, step: int) -> float:
        return self.lr_end if step >= self._cutoff else super()._rate(step)
