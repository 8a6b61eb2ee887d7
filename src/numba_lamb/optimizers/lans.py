"""LANS: LAMB on normalized gradients, with a second direction that looks ahead as Nesterov's momentum does."""

from collections.abc import Mapping
from typing import Any

from numba_lamb.groups import collect
from numba_lamb.methods.binding import leads_on
from numba_lamb.methods.docs import documented
from numba_lamb.methods.lans import LANS
from numba_lamb.optimizers.attributes import GroupOption
from numba_lamb.optimizers.base import LayerFilter, Nonfinite, Optimizer
from numba_lamb.rates import RateLike


@documented(LANS, "numpy")
class Lans(Optimizer):
    r"""LAMB on normalized gradients, with Nesterov's look ahead, in place.

    On NumPy arrays, or on arrays of one GPU. For each layer with weights
    :math:`w`, gradient :math:`g` and step :math:`t = 1, 2, \ldots`

    .. math::

        \tilde g &= g / \lVert g\rVert \quad\text{(0 where the norm is 0)} \\
        m &\leftarrow \beta_1 m + (1-\beta_1)\,\tilde g, \qquad
        v \leftarrow \beta_2 v + (1-\beta_2)\,\tilde g^2 \\
        s &= \sqrt{v/(1-\beta_2^t)} + \epsilon, \qquad
        u = \frac{m/(1-\beta_1^t)}{s} + \lambda w, \qquad
        c = \frac{\tilde g}{s} + \lambda w \\
        r &= \phi(\lVert w\rVert) / \lVert u\rVert, \qquad
        r_c = \phi(\lVert w\rVert) / \lVert c\rVert \quad
        \text{(1 where a norm is 0)} \\
        w &\leftarrow w - \eta\,[\beta_1 r\, u + (1-\beta_1)\, r_c\, c]

    with :math:`\phi(z)` = :math:`z` within `weight_norm_bounds`.

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
    There is no ``max_grad_norm``: a clip multiplies gradients by one factor,
    which normalizing takes out again, as it does the length of a layer's
    gradient and a loss scale.

    The authors' CUDA kernel, ``FusedLANS``, divides by
    :math:`\lVert g\rVert + \epsilon`, normalizes only with
    ``normalize_grad=True``, and decays by 0.01 if no ``weight_decay`` is given;
    a gradient that is 0 stays 0 there too. MXNet's Python makes NaN of one, and
    its :math:`c` of weights that :math:`u` was taken from already.

    References
    ----------
    S. Zheng, H. Lin, S. Zha, M. Li, "Accelerated Large Batch Optimization of
    BERT Pretraining in 54 minutes", arXiv 2006.13484, Algorithm 2.

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
        master: str | None = "split",
        moments: str | None = None,
        seed: int = 0,
        nonfinite: Nonfinite | None = None,
        num_threads: int | None = None,
        capture_steps: int | None = None,
        comm: Any = None,
    ) -> None:
        super().__init__(LANS, params, LANS.numpy_given(locals()), num_threads, capture_steps, comm)

    beta1 = GroupOption()
    beta2 = GroupOption()
    eps = GroupOption()
    weight_norm_bounds = GroupOption()
    adapt_filter = GroupOption()
    # Every optimizer has it but this one: reading and assigning tell so.
    max_grad_norm: Any = property()

    def stats(self) -> Mapping[str, float]:
        """Return each layer's norms and trust ratios at its last update, by ``"<quantity>/<name>"``.

        Quantities are ``trust_ratio`` and ``update_norm`` (of :math:`u`), ``gradient_trust_ratio`` and
        ``gradient_update_norm`` (of :math:`c`), ``weight_norm``, and ``gradient_norm``, before normalizing. Layers
        that were not updated yet are absent.
        """
        return super().stats()
