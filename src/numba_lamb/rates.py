"""What may be given as a learning rate or weight decay, and its value at a step."""

import math
import numbers
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

RateLike: TypeAlias = float | Sequence[float] | Iterable[float] | Callable[[int], float]
"""A number, a 0-d or 1-D array, an iterable with one value per step, or a callable of the 0-based step."""


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
    """

    def __init__(self, given: RateLike, name: str) -> None:
        self.given = given
        self.name = name
        self.number: float | None = None
        self.length: int | None = None
        self._value_at = self._reader(given)

    def __call__(self, step: int) -> float:
        """Return the rate at `step`, a finite number >= 0."""
        if self.number is not None:
            return self.number
        return self._checked(self._value_at(step), f" at step {step}")

    def _checked(self, value: Any, where: str = "") -> float:
        if isinstance(value, bool | complex | str) or not hasattr(value, "__float__"):
            raise TypeError(f"{self.name}{where} must be a real number, not {type(value).__name__}")
        number = float(value)
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{self.name}{where} must be finite and >= 0, not {number!r}")
        return number

    def _reader(self, given: Any) -> Callable[[int], Any]:
        if isinstance(given, numbers.Real):
            self.number = self._checked(given)
            return lambda step: given
        if callable(given):
            reader: Callable[[int], Any] = given
            return reader
        dimensions = getattr(given, "ndim", None)
        if dimensions == 0:
            self._checked(given)
            return lambda step: given
        if dimensions is not None and dimensions > 1:
            raise ValueError(f"{self.name} as an array must have 0 or 1 dimensions, not {dimensions}")
        if isinstance(given, str):
            raise ValueError(
                f"{self.name} must be a number, a table, or a callable, not the string {given!r}"
            )
        if isinstance(given, Mapping | set | frozenset) or not isinstance(given, Iterable):
            raise TypeError(
                f"{self.name} must be a number, an array, an iterable with one value per step, "
                f"or a callable of the step, not {type(given).__name__}"
            )
        if isinstance(given, Sequence) or dimensions == 1:
            self.length = len(given)  # type: ignore[arg-type]
            return lambda step: self._look_up(given, step)
        return self._puller(iter(given))

    def _look_up(self, table: Any, step: int) -> Any:
        if step >= len(table):
            raise IndexError(
                f"{self.name} is a table of {len(table)} values and has none for step {step} (steps count from "
                "0); numba_lamb.schedules.hold_last(table) goes on with its last value"
            )
        return table[step]

    def _puller(self, source: Iterator[float]) -> Callable[[int], Any]:
        pulled: list[float] = []

        def value_at(step: int) -> Any:
            while len(pulled) <= step:
                try:
                    pulled.append(next(source))
                except StopIteration:
                    break
            return self._look_up(pulled, step)

        return value_at


class RateBook:
    """The rates in use, one for each slot; what is given for two slots is one `Rate`.

    So a generator that two groups share is pulled once per step, and assigning a new number at every step
    leaves nothing behind.
    """

    def __init__(self) -> None:
        self._by_slot: dict[Hashable, Rate] = {}

    def get(self, slot: Hashable, given: Any, name: str) -> Rate:
        """Return the `Rate` for what is `given` in `slot` now."""
        rate = self._by_slot.get(slot)
        if rate is None or rate.given is not given:
            shared = (other for other in self._by_slot.values() if other.given is given)
            rate = self._by_slot[slot] = next(shared, None) or Rate(given, name)
        return rate
