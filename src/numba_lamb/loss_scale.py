"""DynamicLossScale: what a loss is multiplied by, as large as gradients allow."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from numba_lamb.engine.scale import Following
from numba_lamb.optimizers.base import Gradients, Optimizer


class DynamicLossScale:
    r"""A loss scale that falls where gradients overflow, and rises while they do not.

    With :math:`s` the scale, :math:`n` steps since it changed, and gradients of :math:`s` times the loss:

    .. math::

        s \leftarrow \max(\text{backoff} \cdot s,\ \text{minimum}) \quad\text{and}\quad n \leftarrow 0
        \quad\text{where the step is left out}

        s \leftarrow \min(\text{growth} \cdot s,\ \text{maximum}) \quad\text{and}\quad n \leftarrow 0
        \quad\text{after } n = \text{interval steps that were taken}

    Gradients that float16 holds reach down to 6e-8, and up to 65504: a scale moves them into that range.

    Parameters
    ----------
    optimizer : Lamb, Lans, Lars or Momentum
        Of `numba_lamb`, with ``nonfinite="skip"``. Its steps divide gradients by the scale, which for arrays on a
        GPU lies and follows there: nothing waits for it.
    initial : float, default 65536.0
        The first scale, from `minimum` to `maximum`.
    growth : float, default 2.0
        More than 1.
    backoff : float, default 0.5
        Between 0 and 1. Powers of 2 divide and multiply exactly.
    interval : int, default 2000
        Steps, at least 1.
    minimum, maximum : float, default 1.0 and 16777216.0
        Bounds of the scale, positive and finite.

    Raises
    ------
    TypeError, ValueError
        If an argument is refused.

    References
    ----------
    P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.2.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_lamb as nl
    >>> w = np.array([3.0, 4.0], dtype=np.float16)
    >>> opt = nl.Lamb({"w": w}, learning_rate=0.1, nonfinite="skip")
    >>> scale = nl.DynamicLossScale(opt)
    >>> with np.errstate(over="ignore"):
    ...     gradient = (np.array([1.5, 1e-3]) * scale.value).astype(np.float16)
    >>> scale.step({"w": gradient})
    False
    >>> scale.value
    32768.0
    >>> scale.step({"w": (np.array([1e-3, -1e-3]) * scale.value).astype(np.float16)})
    True
    >>> w
    array([2.646, 4.355], dtype=float16)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        initial: float = 65536.0,
        growth: float = 2.0,
        backoff: float = 0.5,
        interval: int = 2000,
        minimum: float = 1.0,
        maximum: float = 16777216.0,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer must be a numba_lamb.Lamb, Lans, Lars or Momentum, got a {type(optimizer).__name__}; "
                "PyTorch's have torch.amp.GradScaler"
            )
        _check("growth", growth, "a number > 1", lambda value: value > 1)
        _check("backoff", backoff, "a number > 0 and < 1", lambda value: 0 < value < 1)
        _check("minimum", minimum, "a number > 0", lambda value: value > 0)
        _check("maximum", maximum, f"a number >= {minimum!r}", lambda value: value >= minimum)
        self._bounds = f"a number >= {minimum!r} and <= {maximum!r}"
        _check("initial", initial, self._bounds, lambda value: minimum <= value <= maximum)
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f"interval must be an int >= 1, got {interval!r}")
        self._optimizer, self._interval = optimizer, interval
        self._minimum, self._maximum = float(minimum), float(maximum)
        following = Following(interval, float(growth), float(backoff), self._minimum, self._maximum)
        self._check_skips()
        self._scale = optimizer._backend.new_scale(following, float(initial))

    @property
    def value(self) -> float:
        """What the next loss is to be multiplied by; on a GPU this waits for it."""
        return self._scale.read()[0]

    @property
    def array(self) -> Any:
        """The same as a 0-d float32 array where the parameters are, which steps write to: nothing waits for it.

        On a GPU it has ``__cuda_array_interface__``, for `cupy.asarray` or `torch.as_tensor`.
        """
        return self._scale.array

    def step(self, gradients: Gradients, stream: object = None) -> bool:
        """Take a step of the optimizer with gradients of the scaled loss, and follow it with the scale.

        Parameters
        ----------
        gradients, stream
            As for the optimizer's `step`.

        Returns
        -------
        applied : bool
            Whether it was taken, on a GPU whether it was queued. A step that is left out changes nothing but the
            scale.
        """
        optimizer = self._optimizer
        with optimizer._lock:
            self._check_skips()
            plan = optimizer._plan
            plan.grad_scale, plan.scaler = self._scale.grad_scale, self._scale.scaler
            try:
                applied = optimizer._apply(gradients, stream)
            finally:
                plan.grad_scale = plan.scaler = 0
            self._scale.follow(applied)
        return applied

    def _check_skips(self) -> None:
        found = self._optimizer._groups.nonfinite()
        if found != "skip":
            raise ValueError(
                f"nonfinite must be 'skip' for a loss scale to follow the steps that are left out, got {found!r}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the scale and the steps since it changed; on a GPU this waits for it."""
        value, steps = self._scale.read()
        return {"value": value, "steps": steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned.

        Raises
        ------
        ValueError
            If it is nothing of the kind; nothing has changed then.
        """
        if not isinstance(state, Mapping) or {*state} != {"value", "steps"}:
            raise ValueError(f"state must have 'value' and 'steps', got {state!r}")
        value, steps = state["value"], state["steps"]
        _check("state['value']", value, self._bounds, lambda given: self._minimum <= given <= self._maximum)
        if isinstance(steps, bool) or not isinstance(steps, int) or not 0 <= steps < self._interval:
            raise ValueError(f"state['steps'] must be an int >= 0 and < {self._interval}, got {steps!r}")
        self._scale.write(float(value), steps)


def _check(name: str, value: Any, allowed: str, holds: Callable[[float], bool]) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not holds(value):
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
