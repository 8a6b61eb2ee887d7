"""Scale: a loss scale that follows a backend's steps, where its arrays are."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np

from numba_lamb.numerics import rules


class Following(NamedTuple):
    """When and by what a loss scale changes: steps that were taken, factors, bounds."""

    interval: int
    growth: float
    backoff: float
    least: float
    most: float


class Scale(ABC):
    """A loss scale, float32, and the steps that were taken since it changed.

    Attributes
    ----------
    grad_scale, scaler : Any
        What a `Plan` is told of it.
    """

    grad_scale: Any
    scaler: int = 0

    @property
    @abstractmethod
    def array(self) -> Any:
        """The scale as a 0-d float32 array beside the parameters, which steps write to."""

    @abstractmethod
    def read(self) -> tuple[float, int]:
        """Return the scale and the steps, after waiting for the device."""

    @abstractmethod
    def write(self, value: float, steps: int) -> None:
        """Set both."""

    def follow(self, applied: bool) -> None:  # noqa: B027  (a GPU's kernels do it)
        """Follow a step that was applied or left out."""


class HostScale(Scale):
    """A loss scale in the CPU's memory."""

    def __init__(self, following: Following, value: float) -> None:
        self._following, self._steps = following, 0
        self._array = np.array(value, dtype=np.float32)

    @property
    def grad_scale(self) -> float:
        """The scale."""
        return float(self._array)

    @property
    def array(self) -> Any:
        """The scale as a 0-d float32 array."""
        return self._array

    def read(self) -> tuple[float, int]:
        """Return the scale and the steps."""
        return float(self._array), self._steps

    def write(self, value: float, steps: int) -> None:
        """Set both."""
        self._array[...], self._steps = value, steps

    def follow(self, applied: bool) -> None:
        """Follow a step that was applied or left out."""
        following, value, steps = self._following, float(self._array), self._steps + 1
        if not applied:
            value, steps = rules.reduced_scale(value, following.backoff, following.least), 0
        elif steps == following.interval:
            value, steps = rules.grown_scale(value, following.growth, following.most), 0
        self.write(value, steps)
