"""Momentum SGD and Adam in plain NumPy: baselines that LAMB is compared with, not part of the library.

Both are the textbook formulas, written for clarity. They take the same schedules and gradients as
`numba_lamb.Lamb` and update the parameters in place.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Schedule = Callable[[int], float]


class MomentumSGD:
    """SGD with heavy-ball momentum: ``v <- momentum * v + g``, ``w <- w - rate * v``."""

    def __init__(self, params: Mapping[str, NDArray[Any]], schedule: Schedule, momentum: float = 0.9) -> None:
        self._params = params
        self._schedule = schedule
        self._momentum = momentum
        self._steps = 0
        self._velocity = {name: np.zeros_like(array) for name, array in params.items()}

    def step(self, gradients: Mapping[str, NDArray[Any]], /) -> None:
        """Update the parameters in place."""
        rate = self._schedule(self._steps)
        self._steps += 1
        for name, weights in self._params.items():
            velocity = self._velocity[name]
            velocity *= self._momentum
            velocity += gradients[name]
            weights -= rate * velocity

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state."""
        return {"steps": self._steps, "velocity": _copies(self._velocity)}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Put back what `state_dict` returned."""
        self._steps = state["steps"]
        self._velocity = _copies(state["velocity"])


class Adam:
    """Adam (Kingma and Ba, 2015, algorithm 1).

    ``m <- b1 m + (1-b1) g``, ``v <- b2 v + (1-b2) g g``, ``w <- w - rate * m' / (sqrt(v') + eps)`` with
    ``m' = m / (1-b1^t)`` and ``v' = v / (1-b2^t)``, t counted from 1.
    """

    def __init__(
        self,
        params: Mapping[str, NDArray[Any]],
        schedule: Schedule,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
    ) -> None:
        self._params = params
        self._schedule = schedule
        self._beta1, self._beta2, self._eps = beta1, beta2, eps
        self._steps = 0
        self._first = {name: np.zeros_like(array) for name, array in params.items()}
        self._second = {name: np.zeros_like(array) for name, array in params.items()}

    def step(self, gradients: Mapping[str, NDArray[Any]], /) -> None:
        """Update the parameters in place."""
        rate = self._schedule(self._steps)
        self._steps += 1
        first_correction = 1 - self._beta1**self._steps
        second_correction = 1 - self._beta2**self._steps
        for name, weights in self._params.items():
            gradient, first, second = gradients[name], self._first[name], self._second[name]
            first *= self._beta1
            first += (1 - self._beta1) * gradient
            second *= self._beta2
            second += (1 - self._beta2) * gradient * gradient
            weights -= rate * (first / first_correction) / (np.sqrt(second / second_correction) + self._eps)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state."""
        return {"steps": self._steps, "first": _copies(self._first), "second": _copies(self._second)}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Put back what `state_dict` returned."""
        self._steps = state["steps"]
        self._first = _copies(state["first"])
        self._second = _copies(state["second"])


def _copies(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: array.copy() for name, array in arrays.items()}
