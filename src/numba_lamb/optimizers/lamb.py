"""LAMB: Adam's direction, scaled in each layer by the ratio of weight norm to update norm."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.kernels import cpu, launch, rows
from numba_lamb.numerics import rules
from numba_lamb.optimizers.base import LayerFilter, Nonfinite, Optimizer, check_filter, check_float
from numba_lamb.optimizers.parts import Part
from numba_lamb.rates import RateLike


class Lamb(Optimizer):
    r"""Layer-wise adaptive moments for large batches, on NumPy arrays in place.

    For each layer with weights :math:`w`, gradient :math:`g` and step :math:`t = 1, 2, \ldots`

    .. math::

        m &\leftarrow \beta_1 m + (1-\beta_1)\,g, \qquad v \leftarrow \beta_2 v + (1-\beta_2)\,g^2 \\
        u &= \frac{m/(1-\beta_1^t)}{\sqrt{v/(1-\beta_2^t)} + \epsilon} + \lambda w \\
        r &= \lVert w\rVert / \lVert u\rVert \quad\text{(1 where either norm is 0)}, \qquad
        w \leftarrow w - \eta\, r\, u

    Parameters
    ----------
    params : mapping, iterable, or list of dict
        A mapping from name to array, ``(name, array)`` pairs, arrays (named ``param_0``, ...), or group
        dicts with ``params`` as any of these and optionally ``lr``, ``weight_decay`` and
        ``grad_centralization``; one more dict ``{"order_params": [...]}`` fixes the order that gradients are
        given in. Arrays are float32 or float64, C-contiguous and writable, and are updated in place.
    learning_rate : float, array, iterable or callable
        :math:`\eta >= 0`: a number, one value per step, or any callable of the 0-based step. Every
        `schedules` object is one.
    beta1, beta2 : float
        Decay rates of the moments, each in (0, 1).
    eps : float
        :math:`\epsilon > 0`, added outside the root.
    weight_decay : float, array, iterable or callable
        :math:`\lambda >= 0`, decoupled: a part of :math:`u`. Takes the forms of `learning_rate`.
    decay_filter : callable, optional
        Called with each `Layer` (``name``, ``shape``, ...); False exempts it from weight decay. By default
        layers whose name contains ``beta`` or ``gamma`` are exempt where no groups are given, none elsewhere.
    adapt_filter : callable, optional
        Called with each `Layer`; False keeps its ratio at 1, which makes it AdamW. By default every layer
        adapts.
    nonfinite : {"raise", "skip", "propagate"}
        What to do when a gradient holds an infinity or NaN: raise before anything changes, leave the step
        out, or let it through unchecked, which saves one reading of the gradients.
    num_threads : int, optional
        CPU threads; by default PyTorch's number where it is loaded, else as many CPUs as the process may
        use. The result's bits do not depend on it.

    Raises
    ------
    TypeError, ValueError, KeyError, RuntimeError
        If an argument is refused; the message names it, what was given, and what is allowed.

    References
    ----------
    Y. You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", ICLR 2020,
    Algorithm 2. The same formula as MindSpore's documented one, Paddle's with ``always_adapt`` and optax's.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_lamb as nl
    >>> w = np.array([3.0, 4.0], dtype=np.float32)
    >>> opt = nl.Lamb({"w": w}, learning_rate=0.1)
    >>> opt.step({"w": np.array([0.5, -0.5], dtype=np.float32)})
    >>> w.round(4)
    array([2.6464, 4.3536], dtype=float32)
    >>> round(opt.stats()["trust_ratio/w"], 4)
    3.5355
    """

    _state_names = ("m", "v")
    _number_names = ("beta1", "beta2", "eps")

    def __init__(
        self,
        params: Any,
        learning_rate: RateLike,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-6,
        weight_decay: RateLike = 0.0,
        *,
        decay_filter: LayerFilter | None = None,
        adapt_filter: LayerFilter | None = None,
        nonfinite: Nonfinite = "raise",
        num_threads: int | None = None,
    ) -> None:
        self._check_numbers({"beta1": beta1, "beta2": beta2, "eps": eps})
        self._beta1, self._beta2, self._eps = float(beta1), float(beta2), float(eps)
        check_filter("adapt_filter", adapt_filter)
        self._adapt_filter = adapt_filter
        super().__init__(
            params,
            learning_rate,
            weight_decay,
            decay_filter=decay_filter,
            nonfinite=nonfinite,
            num_threads=num_threads,
        )

    @property
    def beta1(self) -> float:
        """Decay rate of the first moment."""
        return self._beta1

    @property
    def beta2(self) -> float:
        """Decay rate of the second moment."""
        return self._beta2

    @property
    def eps(self) -> float:
        """Term added to the root of the second moment."""
        return self._eps

    def _check_numbers(self, numbers: Mapping[str, Any]) -> None:
        check_float("beta1", numbers["beta1"], below=1.0)
        check_float("beta2", numbers["beta2"], below=1.0)
        check_float("eps", numbers["eps"])

    def _write_constants(self, part: Part) -> None:
        adapts = self._adapt_filter
        part.scalars[:, rows.ADAPT] = [adapts is None or bool(adapts(layer)) for layer in part.layers]
        part.scalars[:, rows.BETA1] = self._beta1
        part.scalars[:, rows.COMPLEMENT1] = 1.0 - self._beta1
        part.scalars[:, rows.BETA2] = self._beta2
        part.scalars[:, rows.COMPLEMENT2] = 1.0 - self._beta2
        part.scalars[:, rows.EPS] = part.cast("eps", self._eps)

    def _write_decays(self, part: Part, decays: NDArray[np.float64]) -> None:
        part.scalars[:, rows.DECAY] = decays

    def _write_step(self, part: Part) -> None:
        if part.common_step is not None:
            part.scalars[:, rows.CORRECTION1] = rules.bias_correction(self._beta1, part.common_step + 1)
            part.scalars[:, rows.CORRECTION2] = rules.bias_correction(self._beta2, part.common_step + 1)
            return
        steps = part.steps.tolist()
        for column, beta in ((rows.CORRECTION1, self._beta1), (rows.CORRECTION2, self._beta2)):
            known = {step: rules.bias_correction(beta, step + 1) for step in set(steps)}
            part.scalars[:, column] = [known[step] for step in steps]

    def _run(self, part: Part) -> None:
        if len(part.row_table):
            # LAMB centralizes the gradient itself: factor 1, and no decay in it.
            factors = np.tile(np.array([1, 0], dtype=part.dtype), (len(part.layers), 1))
            part.update_row_means(factors, self._num_threads)
        launch.run(
            cpu.lamb_step,
            len(part.table.chunks),
            self._num_threads,
            part.addresses,
            part.scalars,
            part.rates,
            *part.gradient_tables,
            part.sums,
            part.norms,
            part.scales,
        )

    def stats(self) -> dict[str, float]:
        """Return each layer's norms and trust ratio at its last update, by ``"<quantity>/<name>"``.

        Quantities are ``trust_ratio``, ``weight_norm`` and ``update_norm`` (of :math:`u`). Layers that were
        not updated yet are absent. Ready for a logger as it is.
        """
        return {
            **self._stat("trust_ratio", rows.RATIO),
            **self._stat("weight_norm", rows.WEIGHT_NORM),
            **self._stat("update_norm", rows.UPDATE_NORM),
        }
