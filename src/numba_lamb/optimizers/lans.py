"""LANS: LAMB on normalized gradients, with a second direction that looks ahead as Nesterov's momentum does."""

from collections.abc import Mapping
from typing import Any

from numba_lamb.groups import collect
from numba_lamb.methods.lans import LANS
from numba_lamb.optimizers.attributes import GroupOption
from numba_lamb.optimizers.base import LayerFilter, Nonfinite, Optimizer
from numba_lamb.optimizers.binding import leads_on
from numba_lamb.rates import RateLike


class Lans(Optimizer):
    r"""LAMB with each layer's gradient normalized and Nesterov's look ahead, in place, on arrays as for `Lamb`.

    For each layer with weights :math:`w`, gradient :math:`g` and step :math:`t = 1, 2, \ldots`

    .. math::

        \tilde g &= g / \lVert g\rVert \quad\text{(0 where the norm is 0)}, \qquad
        m \leftarrow \beta_1 m + (1-\beta_1)\,\tilde g, \qquad v \leftarrow \beta_2 v + (1-\beta_2)\,\tilde g^2 \\
        s &= \sqrt{v/(1-\beta_2^t)} + \epsilon, \qquad u = \frac{m/(1-\beta_1^t)}{s} + \lambda w, \qquad
        c = \frac{\tilde g}{s} + \lambda w \\
        w &\leftarrow w - \eta\left[\beta_1 \frac{\phi(\lVert w\rVert)}{\lVert u\rVert}\, u
        + (1-\beta_1) \frac{\phi(\lVert w\rVert)}{\lVert c\rVert}\, c\right]
        \quad\text{(a ratio is 1 where one of its norms is 0)}

    Parameters
    ----------
    params : mapping, iterable, or list of dict
        As for `Lamb`: float32 or float64, updated in place.
    learning_rate : float, array, iterable or callable
        :math:`\eta >= 0`, in the forms that `Lamb` takes.
    beta1, beta2 : float
        Decay rates of the moments, each in (0, 1); :math:`\beta_1` is the share of :math:`u` in the step too.
    eps : float
        :math:`\epsilon > 0`, added outside the root. :math:`\tilde g` is small, so that it weighs more than in
        `Lamb`: an element of a layer of :math:`n` elements is about :math:`1/\sqrt n`.
    weight_decay : float, array, iterable or callable
        :math:`\lambda >= 0`, a part of both directions. Takes the forms of `learning_rate`.
    weight_norm_bounds : (float, float), optional
        :math:`\phi(z) = \min(\max(z, \text{low}), \text{high})`; by default :math:`\phi(z) = z`.
    maximize : bool
        Whether to climb in place of descending.
    grad_centralization : bool
        Whether each row's mean is taken from its gradient, before the gradient is normalized.
    decay_filter, adapt_filter : callable, optional
        As for `Lamb`; without adaptation both ratios are 1.
    nonfinite : {"raise", "skip", "propagate"}, optional
        As for `Lamb`.
    num_threads, capture_steps : int, optional
        As for `Lamb`.

    Raises
    ------
    TypeError, ValueError, KeyError, RuntimeError
        If an argument is refused; the message names it, what was given, and what is allowed.

    Notes
    -----
    There is no ``max_grad_norm``: a clip multiplies gradients by one factor, which normalizing takes out again.
    For the same reason the length of a layer's gradient, and what the loss was multiplied by, change nothing.

    The authors' CUDA kernel divides by :math:`\lVert g\rVert + \epsilon`; it leaves a gradient that is 0 at 0 too,
    of which MXNet's Python makes NaN. MXNet's :math:`c` is made of weights that :math:`u` was taken from already.

    References
    ----------
    S. Zheng, H. Lin, S. Zha, M. Li, "Accelerated Large Batch Optimization of BERT Pretraining in 54 minutes",
    arXiv 2006.13484, Algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_lamb as nl
    >>> w = np.array([3.0, 4.0], dtype=np.float32)
    >>> opt = nl.Lans({"w": w}, learning_rate=0.1)
    >>> opt.step({"w": np.array([0.5, -0.5], dtype=np.float32)})
    >>> w.round(4)
    array([2.6464, 4.3536], dtype=float32)
    >>> opt.state_dict()["layers"]["w"]["m"].round(4)
    array([ 0.0707, -0.0707], dtype=float32)
    """

    @leads_on("numba_lamb", collect)
    def __init__(
        self,
        params: Any,
        learning_rate: RateLike,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-6,
        weight_decay: RateLike = 0.0,
        *,
        weight_norm_bounds: tuple[float, float] | None = None,
        maximize: bool = False,
        grad_centralization: bool = False,
        decay_filter: LayerFilter | None = None,
        adapt_filter: LayerFilter | None = None,
        nonfinite: Nonfinite | None = None,
        num_threads: int | None = None,
        capture_steps: int | None = None,
    ) -> None:
        super().__init__(LANS, params, LANS.numpy_given(locals()), num_threads, capture_steps)

    beta1 = GroupOption("Decay rate of the first moment, and the share of its direction.")
    beta2 = GroupOption("Decay rate of the second moment.")
    eps = GroupOption("The term added to the root of the second moment.")
    weight_norm_bounds = GroupOption("Bounds of the weight norm in the trust ratios.")
    adapt_filter = GroupOption("Called with each `Layer`; False keeps its trust ratios at 1.")
    # Every optimizer has it but this one: reading and assigning tell so.
    max_grad_norm: Any = property()

    def stats(self) -> Mapping[str, float]:
        """Return each layer's norms and trust ratios at its last update, by ``"<quantity>/<name>"``.

        Quantities are ``trust_ratio`` and ``update_norm`` (of :math:`u`), ``gradient_trust_ratio`` and
        ``gradient_update_norm`` (of :math:`c`), ``weight_norm``, and ``gradient_norm``, before normalizing. Layers
        that were not updated yet are absent.
        """
        return super().stats()
