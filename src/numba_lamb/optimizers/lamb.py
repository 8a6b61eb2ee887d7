"""LAMB: Adam's direction, scaled in each layer by the ratio of weight norm to update norm."""

from collections.abc import Mapping
from typing import Any

from numba_lamb.groups import collect
from numba_lamb.methods.binding import leads_on
from numba_lamb.methods.docs import documented
from numba_lamb.methods.lamb import LAMB
from numba_lamb.optimizers.attributes import GroupOption
from numba_lamb.optimizers.base import LayerFilter, Nonfinite, Optimizer
from numba_lamb.rates import RateLike


@documented(LAMB, "numpy")
class Lamb(Optimizer):
    r"""Layer-wise adaptive moments for large batches, in place.

    On NumPy arrays, or on arrays of one GPU. For each layer with weights
    :math:`w`, gradient :math:`g` and step :math:`t = 1, 2, \ldots`

    .. math::

        m &\leftarrow \beta_1 m + (1-\beta_1)\,g, \qquad
        v \leftarrow \beta_2 v + (1-\beta_2)\,g^2 \\
        u &= \frac{m/(1-\beta_1^t)}{\sqrt{v/(1-\beta_2^t)} + \epsilon}
        + \lambda w \\
        r &= \lVert w\rVert / \lVert u\rVert \quad
        \text{(1 where either norm is 0)}, \qquad w \leftarrow w - \eta\, r\, u

    This is ``variant="paper"``; others differ in what ``numba-lamb variants``
    and ``docs/moving-in.md`` tell.

    Parameters
    ----------
    {parameters}

    Raises
    ------
    TypeError, ValueError, KeyError, RuntimeError
        If an argument is refused; the message names it, what was given, and
        what is allowed.

    Notes
    -----
    {ranges}

    References
    ----------
    Y. You et al., "Large Batch Optimization for Deep Learning: Training BERT in
    76 minutes", ICLR 2020, Algorithm 2.

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

    Clipped to norm 1, the gradient enters as (0.6, 0.8):

    >>> opt = nl.Lamb({"w": w}, learning_rate=0.1, max_grad_norm=1.0)
    >>> opt.step({"w": np.array([3.0, 4.0], dtype=np.float32)})
    >>> opt.stats()["grad_norm"]
    5.0
    >>> opt.state_dict()["layers"]["w"]["m"].round(4)
    array([0.06, 0.08], dtype=float32)
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
        variant: str = "paper",
        always_adapt: bool | None = None,
        bias_correction: bool | None = None,
        grad_averaging: bool = True,
        trust_clip: bool | tuple[float, float] = False,
        weight_norm_bounds: tuple[float, float] | None = None,
        decoupled_decay: bool | None = None,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        grad_centralization: bool = False,
        decay_filter: LayerFilter | None = None,
        adapt_filter: LayerFilter | None = None,
        master: str | None = "split",
        moments: str | None = None,
        seed: int = 0,
        nonfinite: Nonfinite | None = None,
        num_threads: int | None = None,
        capture_steps: int | None = None,
        comm: Any = None,
    ) -> None:
        options = LAMB.numpy_given(locals())
        super().__init__(LAMB, params, options, num_threads, capture_steps, comm)

    beta1 = GroupOption()
    beta2 = GroupOption()
    eps = GroupOption()
    variant = GroupOption()
    always_adapt = GroupOption()
    bias_correction = GroupOption()
    grad_averaging = GroupOption()
    trust_clip = GroupOption()
    weight_norm_bounds = GroupOption()
    decoupled_decay = GroupOption()
    adapt_filter = GroupOption()

    def stats(self) -> Mapping[str, float]:
        """Return each layer's norms and trust ratio, by ``"<quantity>/<name>"``.

        Quantities are ``trust_ratio``, ``weight_norm`` and ``update_norm``, which
        the ratio divides by, at the layer's last update. Layers that were not
        updated yet are absent. ``grad_norm`` is the last step's :math:`n`, where
        `max_grad_norm` was set. Ready for a logger as it is.
        """
        return super().stats()
