"""ScheduleLR: any PyTorch optimizer, driven by the schedules of this package."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch.optim.lr_scheduler import LRScheduler

from numba_lamb._text import shorten
from numba_lamb.foreign import kind_of
from numba_lamb.rates import Rate, unrounded

Rates: TypeAlias = float | Sequence[float] | Iterable[float] | Callable[[int], float]
"""A number, a table with one value per step, or a callable of the 0-based step."""
_SAVED = ("last_epoch", "_step_count", "_last_lr", "lr")


class ScheduleLR(LRScheduler):
    r"""Learning-rate scheduler that sets the rates of any PyTorch optimizer to those of a schedule.

    .. math:: \eta_t = f(t), \qquad t = 0, 1, 2, \ldots

    The rates are absolute: what the optimizer was made with has no effect. Call ``step()`` after each
    ``optimizer.step()``.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Whose groups get the rates, this package's or any other. A rate that is a tensor is filled in place.
    schedule : callable, table, number, or list of them
        :math:`f \ge 0`: any callable of the 0-based step, as every object of `numba_lamb.schedules` is; or a
        list, array or iterable with one value per step. One for all groups, also those that are added later, or a
        list with one for each group; a list of numbers alone is one table.
    last_epoch : int
        The step that was taken last; -1 before the first. Resuming does not need it: `load_state_dict` does.

    Raises
    ------
    TypeError, ValueError
        If an argument is refused, or at ``step()`` a rate is not a finite number >= 0.
    IndexError
        At ``step()`` if a table has no value for the step. That after a table's end keeps the last one, since
        loops call ``step()`` once more than they need a rate.

    Notes
    -----
    A checkpoint holds numbers alone, and loads with ``weights_only=True``; schedules belong to the program. The
    groups' rates are among them, so that scheduler and optimizer may be made and loaded in any order.

    In ``SequentialLR`` it counts from the step where its turn comes, as `numba_lamb.schedules.sequence` has it. In
    ``ChainedScheduler`` it must come first, and chaining what multiplies the last rate (``ExponentialLR``) gives
    no product over the steps: the rate is set anew in each. Multiply with `numba_lamb.schedules.scale` instead.

    References
    ----------
    ``torch.optim.lr_scheduler.LRScheduler``, PyTorch 2.13.

    Examples
    --------
    >>> import torch
    >>> from numba_lamb.schedules import WarmUpLR
    >>> from numba_lamb.torch import Lamb, ScheduleLR
    >>> model = torch.nn.Linear(2, 1)
    >>> opt = Lamb(model.parameters())
    >>> scheduler = ScheduleLR(opt, WarmUpLR(0.5, warmup_steps=2))
    >>> for _ in range(3):
    ...     model(torch.ones(1, 2)).sum().backward()
    ...     opt.step()
    ...     print(scheduler.get_last_lr())
    ...     scheduler.step()
    [0.0]
    [0.25]
    [0.5]
    >>> scheduler
    ScheduleLR(Lamb, WarmUpLR(learning_rate=0.5, warmup_steps=2), last_epoch=3)
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, schedule: Rates | Sequence[Rates], last_epoch: int = -1
    ) -> None:
        _check_optimizer(optimizer)
        _check_count("last_epoch", last_epoch)
        self._given = schedule
        own = _by_group(schedule)
        self._shared = own is None
        self._rates = (
            [Rate(_plain(schedule), "schedule")]
            if own is None
            else [Rate(_plain(given), f"schedule of group {index}") for index, given in enumerate(own)]
        )
        # Before PyTorch writes to the optimizer.
        self._values(len(optimizer.param_groups), last_epoch + 1)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return each group's rate at the current step, as a float."""
        return [*self._values(len(self.optimizer.param_groups), self.last_epoch)]

    def _values(self, groups: int, step: int) -> list[float]:
        if self._shared:
            return [_value(self._rates[0], step)] * groups
        if len(self._rates) != groups:
            raise ValueError(
                f"schedule must be one for all groups or a list of {groups}, one for each, got {len(self._rates)}"
            )
        return [_value(rate, step) for rate in self._rates]

    def state_dict(self) -> dict[str, Any]:
        """Return the steps and rates so far, as plain numbers; the schedules belong to the program."""
        return {
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "_last_lr": [float(rate) for rate in self._last_lr],
            "lr": [float(group["lr"]) for group in self.optimizer.param_groups],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned, into the optimizer's groups too; schedules stay as they are.

        Raises
        ------
        ValueError
            If `state_dict` is another scheduler's, or made for another number of groups; nothing has changed then.
        """
        groups = self.optimizer.param_groups
        if not isinstance(state_dict, Mapping) or set(state_dict) != set(_SAVED):
            found = list(state_dict) if isinstance(state_dict, Mapping) else kind_of(state_dict)
            raise ValueError(
                f"state_dict must be that of a ScheduleLR, with the keys {list(_SAVED)}, got {found}"
            )
        for key in ("last_epoch", "_step_count"):
            _check_count(f"state_dict[{key!r}]", state_dict[key])
        for key in ("lr", "_last_lr"):
            rates = state_dict[key]
            if not isinstance(rates, list) or len(rates) != len(groups) or not all(map(_is_rate, rates)):
                raise ValueError(
                    f"state_dict[{key!r}] must be a list of {len(groups)} finite floats >= 0, one for each group, "
                    f"got {shorten(repr(rates))}"
                )
        self.last_epoch, self._step_count = state_dict["last_epoch"], state_dict["_step_count"]
        for group, rate in zip(groups, state_dict["lr"], strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._last_lr = [
            torch.full_like(group["lr"], rate) if isinstance(group["lr"], torch.Tensor) else rate
            for group, rate in zip(groups, state_dict["_last_lr"], strict=True)
        ]

    def __repr__(self) -> str:
        schedule = shorten(repr(self._given))
        return f"ScheduleLR({type(self.optimizer).__name__}, {schedule}, last_epoch={self.last_epoch})"


def _check_optimizer(optimizer: object) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        way = "; it takes a schedule as learning_rate" if hasattr(optimizer, "learning_rate") else ""
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got a {kind_of(optimizer)}{way}")


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int >= -1, got {value!r}")
    if value < -1:
        raise ValueError(f"{name} must be an int >= -1, got {value}")


def _is_rate(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value) and unrounded(value) >= 0


def _by_group(schedule: Any) -> list[Any] | None:
    """Return the schedules of the groups, None if one is for all."""
    if isinstance(schedule, list | tuple) and not all(map(_is_number, schedule)):
        return list(schedule)
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | str) or getattr(value, "ndim", None) == 0


def _plain(given: Any) -> Any:
    """Return a tensor's numbers, wherever they are, and anything else as it is."""
    return given.tolist() if isinstance(given, torch.Tensor) else given


def _value(rate: Rate, step: int) -> float:
    """Return the rate at `step`; a table's last one also at the step after its end."""
    try:
        return rate(step)
    except IndexError:
        if rate.table is None or not 0 < step == len(rate.table):
            raise
        return rate(step - 1)
