"""What may be given as a learning rate or weight decay, and its value at a step."""

import math
import numbers
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from numba_lamb.foreign import kind_of
from numba_lamb.memory.arrays import Storage, is_array, on_device, value_on_device
from numba_lamb.numerics.rules import ROUNDED_ZERO

RateLike: TypeAlias = float | Sequence[float] | Iterable[float] | Callable[[int], float]
"""A number, a 0-d or 1-D array, an iterable with one value per step, or a callable of the 0-based step."""

RATE_KEYS = ("lr", "weight_decay")
"""What a group has a rate for, by its keys."""

_FORMS = "a number, an array, an iterable with one value per step, or a callable of the step"
_NO_TABLES = (Mapping, set, frozenset, bytes, bytearray, memoryview)


def unrounded(rate: float) -> float:
    """Return 0 for a rate that is below 0 by rounding, as at the end of a schedule, else `rate`."""
    return 0.0 if ROUNDED_ZERO <= rate < 0 else rate


class Pulled:
    """What an iterator gave so far, and the rest of it: pulled as far as it is asked, and kept.

    Attributes
    ----------
    failure : (int, BaseException) or None
        The step at which the iterator raised, and what; a generator gives nothing more after that.
    """

    def __init__(self, source: Iterator[float]) -> None:
        self._source = source
        self._values: list[float] = []
        self.failure: tuple[int, BaseException] | None = None

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, step: int) -> float:
        return self._values[step]

    def pull(self, count: int) -> None:
        """Have `count` values, or all there are."""
        while len(self._values) < count:
            try:
                self._values.append(next(self._source))
            except StopIteration:
                return
            except BaseException as error:
                self.failure = len(self._values), error
                raise
            self.failure = None


class Rate:
    """A rate in any of its forms, evaluated at the 0-based step.

    Parameters
    ----------
    given : number, 0-d array, 1-D array, iterable or callable
        A number or 0-d array stays as it is (a 0-d array is read anew at each step). A 1-D array or an
        iterable has one value per step; iterators are pulled as far as needed and what they gave is kept, so
        endless ones work. A callable gets the step and returns the rate.
    name : str
        What errors call it.
    twin : Rate, optional
        A rate made from the same object: what it pulled from an iterator is shared.
    """

    def __init__(self, given: RateLike, name: str, twin: "Rate | None" = None) -> None:
        self.given = given
        self.name = name
        self.number: float | None = None
        self.length: int | None = None
        self.table: Any = None
        self.is_schedule = False
        """Whether the value depends on the step."""
        self.storage: Storage | None = None
        """Where the value lies, if that is a GPU's memory."""
        self._read = self._reader(given, twin)

    def __call__(self, step: int) -> float:
        """Return the rate at `step`, a finite number >= 0."""
        if self.number is not None:
            return self.number
        return self._checked(self._read(step), f" at step {step}")

    def _checked(self, value: Any, where: str = "") -> float:
        if getattr(value, "ndim", None) == 0 and not isinstance(value, np.ma.MaskedArray):
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{self.name}{where} must be a number >= 0 and finite, got a {kind_of(value)}")
        try:
            number = unrounded(float(value))
        except OverflowError:
            number = math.inf
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{self.name}{where} must be a number >= 0 and finite, got {number!r}")
        return number

    def _reader(self, given: Any, twin: "Rate | None") -> Callable[[int], Any]:
        if isinstance(given, type):
            raise TypeError(
                f"{self.name} must be a rate or an instance of a schedule, got the class {given.__name__}; "
                "give it its arguments"
            )
        dimensions = getattr(given, "ndim", None)
        if isinstance(given, numbers.Real | np.generic) and not isinstance(given, str | bytes):
            self.number = self._checked(given)
            return lambda step: given
        if is_array(given):
            storage = self.storage = on_device(self.name, given)
            if storage is not None:
                return lambda step: value_on_device(storage)
        if callable(given):
            self.is_schedule = True
            reader: Callable[[int], Any] = given
            return reader
        if isinstance(given, str):
            raise ValueError(f"{self.name} must be {_FORMS}, got {given!r}")
        if dimensions == 0:
            self._checked(given)
            return lambda step: given
        if dimensions is not None and dimensions > 1:
            raise ValueError(f"{self.name} must have at most 1 dimension as an array, got {dimensions}")
        if isinstance(given, _NO_TABLES) or not isinstance(given, Iterable):
            raise TypeError(f"{self.name} must be {_FORMS}, got a {kind_of(given)}")
        if isinstance(given, Sequence) or dimensions == 1:
            self.length = len(given)  # type: ignore[arg-type]
            table: Any = given
        else:
            table = twin.table if twin is not None else Pulled(iter(given))
        self.table = table
        self.is_schedule = True
        return lambda step: self._look_up(table, step)

    def _look_up(self, table: Any, step: int) -> Any:
        if isinstance(table, Pulled):
            table.pull(step + 1)
            if step >= len(table) and table.failure is not None:
                failed, error = table.failure
                raise RuntimeError(
                    f"{self.name} is an iterator that raised {type(error).__name__} at step {failed} and gives no "
                    "more values; assign another rate"
                ) from error
        if step >= len(table):
            raise IndexError(
                f"{self.name} is a table of {len(table)} values and has none for step {step} (steps count from "
                "0); numba_lamb.schedules.hold_last(table) goes on with its last value"
            )
        return table[step]


class RateCache:
    """The rates in use, one for each slot; slots that were given one iterator share what it gave.

    So a generator that two groups share is pulled once per step, and assigning a new number at every step
    leaves nothing behind.
    """

    def __init__(self) -> None:
        self._by_slot: dict[Hashable, Rate] = {}

    def known(self, slot: Hashable, given: Any) -> Rate | None:
        """Return the `Rate` that `slot` has, None if it is not for what is `given`."""
        rate = self._by_slot.get(slot)
        return rate if rate is not None and rate.given is given else None

    def get(self, slot: Hashable, given: Any, name: str) -> Rate:
        """Return the `Rate` for what is `given` in `slot` now."""
        rate = self._by_slot.get(slot)
        if rate is None or rate.given is not given:
            twin = next((other for other in self._by_slot.values() if other.given is given), None)
            rate = self._by_slot[slot] = Rate(given, name, twin)
        return rate
