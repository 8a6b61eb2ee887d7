"""Momentum: heavy-ball and Nesterov gradient descent with coupled decay; LARS with ratio 1."""

from collections.abc import Mapping
from typing import Any

from numba_lamb.checks import check_float, check_number, passes
from numba_lamb.engine.bucket import Bucket
from numba_lamb.groups import collect
from numba_lamb.kernels import columns
from numba_lamb.numerics import rules
from numba_lamb.optimizers.base import LayerFilter, Nonfinite, Optimizer
from numba_lamb.optimizers.binding import leads_on
from numba_lamb.rates import RateLike


class Momentum(Optimizer):
    r"""Gradient descent with momentum, in place, on NumPy arrays or on arrays of one GPU.

    .. math::

        d = g / s + \lambda w, \qquad v \leftarrow \mu v + d, \qquad
        w \leftarrow w - \eta v \quad\text{or, Nesterov,}\quad w \leftarrow w - \eta\,(d + \mu v)

    with loss scale :math:`s`. The first step has :math:`v = d`.

    Parameters
    ----------
    params : mapping, iterable, or list of dict
        As for `Lamb`.
    learning_rate : float, array, iterable or callable
        :math:`\eta >= 0`, outside the momentum buffer: a number, one value per step, or any callable of the
        0-based step.
    momentum : float
        :math:`\mu >= 0`.
    weight_decay : float, array, iterable or callable
        :math:`\lambda >= 0`, coupled (L2): added to the gradient. Takes the forms of `learning_rate`.
    loss_scale : float
        :math:`s > 0` that the loss, and so the gradients, were multiplied by.
    use_nesterov : bool
        Whether to look ahead by one momentum step.
    decay_filter : callable, optional
        As for `Lamb`.
    max_grad_norm : float, optional
        :math:`c > 0`: as for `Lamb`, with :math:`n` the norm of all :math:`g/s` of a step; :math:`g/s` above
        becomes :math:`(c/n)\,g/s` where :math:`n > c`.
    nonfinite : {"raise", "skip", "propagate"}, optional
        As for `Lamb`.
    num_threads : int, optional
        As for `Lamb`.
    capture_steps : int, optional
        As for `Lamb`.

    Raises
    ------
    TypeError, ValueError, KeyError, RuntimeError
        If an argument is refused; the message names it, what was given, and what is allowed.

    Notes
    -----
    Sutskever et al. keep the rate inside the buffer; here, as in MindSpore, Paddle and PyTorch, it is outside,
    which differs where the rate changes. MindSpore's CPU kernel ignores ``use_nesterov``; this one does not.

    References
    ----------
    I. Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_lamb as nl
    >>> w = np.array([1.0, 2.0])
    >>> opt = nl.Momentum([w], learning_rate=0.1, momentum=0.9)
    >>> opt([np.array([1.0, -1.0])])
    (True,)
    >>> opt([np.array([1.0, -1.0])])
    (True,)
    >>> w
    array([0.71, 2.29])
    """

    _state_names = ("m",)
    _number_names = ("momentum", "loss_scale", "max_grad_norm")
    _statistics = (
        ("trust_ratio", columns.RATIO, False),
        ("weight_norm", columns.WEIGHT_NORM, True),
        ("gradient_norm", columns.UPDATE_NORM, True),
    )

    @leads_on("numba_lamb", collect)
    def __init__(
        self,
        params: Any,
        learning_rate: RateLike,
        momentum: float,
        weight_decay: RateLike = 0.0,
        loss_scale: float = 1.0,
        use_nesterov: bool = False,
        *,
        decay_filter: LayerFilter | None = None,
        max_grad_norm: float | None = None,
        nonfinite: Nonfinite | None = None,
        num_threads: int | None = None,
        capture_steps: int | None = None,
    ) -> None:
        self._check_numbers({"momentum": momentum, "loss_scale": loss_scale})
        if not isinstance(use_nesterov, bool):
            raise TypeError(f"use_nesterov must be a bool, not {type(use_nesterov).__name__}")
        self._momentum = float(momentum)
        self._loss_scale = float(loss_scale)
        self._use_nesterov = use_nesterov
        # What Lars sets: which layers adapt, and how their ratio is made.
        self._adapts: LayerFilter | None = None
        self._trust: dict[int, float] = {}
        super().__init__(
            params,
            learning_rate,
            weight_decay,
            decay_filter=decay_filter,
            max_grad_norm=max_grad_norm,
            nonfinite=nonfinite,
            num_threads=num_threads,
            capture_steps=capture_steps,
        )

    @property
    def momentum(self) -> float:
        """Decay rate of the momentum buffer."""
        return self._momentum

    @property
    def loss_scale(self) -> float:
        """What gradients are divided by."""
        return self._loss_scale

    @property
    def use_nesterov(self) -> bool:
        """Whether the step looks ahead."""
        return self._use_nesterov

    def _check_numbers(self, numbers: Mapping[str, Any]) -> None:
        check_float("momentum", numbers["momentum"], zero=True)
        check_number("loss_scale", numbers["loss_scale"])

    def _write_constants(self, bucket: Bucket) -> None:
        super()._write_constants(bucket)
        for column, value in self._trust.items():
            bucket.hyper64[:, column] = value
        adapts = self._adapts
        bucket.hyper[:, columns.ADAPT] = [
            adapts is not None and passes("lars_filter", adapts, layer) for layer in bucket.layers
        ]
        bucket.hyper[:, columns.BETA1] = bucket.cast("momentum", self._momentum)
        bucket.hyper[:, columns.RESCALE] = bucket.cast("1/loss_scale", 1.0 / self._loss_scale)
        bucket.hyper64[:, columns.BOUND] = rules.momentum_bound(bucket.largest, self._momentum)
        bucket.hyper[:, columns.VELOCITY] = self._momentum if self._use_nesterov else 1.0
        bucket.hyper[:, columns.LOOKAHEAD] = 1.0 if self._use_nesterov else 0.0
        if adapts is not None:
            # A layer that LARS passes over is not decayed either.
            bucket.hyper64[:, columns.DECAYED] *= bucket.hyper[:, columns.ADAPT]

    def stats(self) -> Mapping[str, float]:
        """Return each layer's statistics at its last update, by ``"<quantity>/<name>"``.

        ``trust_ratio`` for every updated layer (1 without LARS), and ``weight_norm`` and ``gradient_norm``
        (of the gradient without the loss scale, clipped) for those that LARS adapts, where they are computed.
        ``grad_norm`` is the last step's :math:`n`, where `max_grad_norm` was set.
        """
        return super().stats()
