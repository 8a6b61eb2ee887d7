"""The base of all schedules: a frozen value that maps a step, or an array of steps, to rates."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_type_hints, overload

import numpy as np
import numpy.typing as npt

from numba_lamb._install import how_to_install

from ._checks import Piece, integer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LearningRateSchedule"]


class LearningRateSchedule(ABC):
    r"""A frozen function of the step, the common base of the schedules in this package.

    .. math:: \eta_t = f(t), \qquad t = 0, 1, 2, \ldots

    Nothing has to inherit from it to be used as a rate: any callable ``step -> float`` will do. What the base
    adds is checked arguments, arrays of steps, equality, hashing, pickling, a ``repr`` that evaluates back,
    and a plot.

    Raises
    ------
    TypeError
        On a call with a step that is not an integer.
    ValueError
        On a call with a negative step.

    Notes
    -----
    An array of steps is evaluated by the same scalar code, one step after the other, so that a table made
    from a schedule holds exactly the bits of the single calls.

    Differs from MindSpore: not a network cell; computes in float64, not float32.

    References
    ----------
    ``mindspore.nn.learning_rate_schedule.LearningRateSchedule``, MindSpore 2.10.0.

    Examples
    --------
    >>> from numba_lamb.schedules import LearningRateSchedule, WarmUpLR
    >>> schedule = WarmUpLR(0.5, warmup_steps=2)
    >>> isinstance(schedule, LearningRateSchedule)
    True
    >>> schedule(1)
    0.25
    >>> schedule([0, 1, 2, 3])
    array([0.  , 0.25, 0.5 , 0.5 ])
    """

    __slots__ = ()

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        """Nothing: a frozen schedule has no state for PyTorch's ``LambdaLR`` to save, or to put back."""
        return _NoState()

    def __post_init__(self) -> None:
        for name, check in _field_checks(type(self)):
            object.__setattr__(self, name, check(name, getattr(self, name)))
        self._validate()

    def _validate(self) -> None:  # noqa: B027  (most schedules have no rule across arguments)
        """Check what concerns more than one argument."""

    @abstractmethod
    def _rate(self, step: int) -> float:
        """Return the rate of a step known to be an int >= 0."""

    @property
    def horizon(self) -> int:
        """Number of steps worth drawing, the schedule's own length where it has one, otherwise 1000."""
        return max(self._length(), 1)

    def _length(self) -> int:
        return 1000

    @overload
    def __call__(self, step: int | np.integer[Any]) -> float: ...
    @overload
    def __call__(self, step: Sequence[int] | npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]: ...
    def __call__(self, step: Any) -> float | npt.NDArray[np.float64]:
        """Return the rate of a step, or a float64 array of the rates of several.

        Parameters
        ----------
        step : int, or sequence or array of int
            Steps counted from 0.

        Returns
        -------
        float or numpy.ndarray
            A float for one step; a float64 array of the same shape for several.

        Raises
        ------
        TypeError
            If a step is not an integer (a bool is not one).
        ValueError
            If a step is negative.
        """
        if isinstance(step, np.ndarray) and step.ndim:
            rates = [self._rate(integer("step", one)) for one in step.ravel().tolist()]
            return np.array(rates, dtype=np.float64).reshape(step.shape)
        if isinstance(step, Sequence):
            return np.array([self._rate(integer("step", one)) for one in step], dtype=np.float64)
        return self._rate(integer("step", step))

    def plot(self, ax: "Axes | None" = None, steps: int | Sequence[int] | None = None) -> "Axes":
        """Draw the rate against the step.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; a new figure by default.
        steps : int or sequence of int, optional
            The first so many steps, or exactly these; by default the first ``horizon``.

        Returns
        -------
        matplotlib.axes.Axes
            The axes drawn on.

        Raises
        ------
        ImportError
            If no axes are given and Matplotlib is not installed.
        """
        if steps is None:
            steps = self.horizon
        if not isinstance(steps, Sequence | np.ndarray):
            steps = range(integer("steps", steps, low=1))
        rates = self(steps)
        if ax is None:
            try:
                from matplotlib import pyplot
            except ImportError as error:
                raise ImportError(f"plot needs Matplotlib: {how_to_install('demo')}") from error
            ax = pyplot.figure().add_subplot()
        ax.plot(steps, rates, label=type(self).__name__)
        ax.set_xlabel("step")
        ax.set_ylabel("learning rate")
        return ax


class _NoState(dict[str, Any]):
    """What an object without state saves, and takes back."""

    def update(self, *given: Any, **named: Any) -> None:
        """Raise unless there is nothing to take."""
        found = dict(*given, **named)
        if found:
            raise ValueError(f"a schedule must be given no state, since it is frozen, got {found!r}")


def length_of(given: Piece) -> int:
    """Return the number of steps worth drawing of a checked piece."""
    if isinstance(given, float):
        return 1
    if isinstance(given, tuple):
        return len(given)
    return given.horizon if isinstance(given, LearningRateSchedule) else 1000


@functools.cache
def _field_checks(cls: Any) -> tuple[tuple[str, Callable[[str, object], object]], ...]:
    """Return the check that each field of a schedule class carries in its annotation."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple((field.name, hints[field.name].__metadata__[0]) for field in fields(cls))
