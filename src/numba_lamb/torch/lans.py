"""Lans for PyTorch."""

from collections.abc import Callable

import torch

from numba_lamb.layout import Layer
from numba_lamb.methods.binding import leads_on
from numba_lamb.methods.docs import documented
from numba_lamb.methods.lans import LANS
from numba_lamb.torch.optimizer import LayerwiseOptimizer, ParamsT
from numba_lamb.torch.tensors import check_params


@documented(LANS, "torch")
class Lans(LayerwiseOptimizer):
    r"""LAMB on normalized gradients, looking ahead, as a PyTorch optimizer.

    For each parameter tensor :math:`w` with gradient :math:`g`, at its step
    :math:`t = 1, 2, \ldots`

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
    TypeError, ValueError
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
    >>> import torch
    >>> from numba_lamb.torch import Lans
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = torch.nn.init.constant_(model.weight, 2.0)
    >>> opt = Lans(model.named_parameters(), lr=0.1)
    >>> model(torch.tensor([[1.0, -1.0]])).sum().backward()
    >>> opt.step()
    >>> model.weight.data
    tensor([[1.8000, 2.2000]])
    >>> round(opt.stats()["gradient_norm/weight"], 4)
    1.4142
    """

    _method = LANS

    @leads_on("numba_lamb.torch", check_params)
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        weight_norm_bounds: tuple[float, float] | None = None,
        maximize: bool = False,
        grad_centralization: bool = False,
        decay_filter: Callable[[Layer], bool] | None = None,
        adapt_filter: Callable[[Layer], bool] | None = None,
        master: str | None = "split",
        moments: str | None = None,
        seed: int = 0,
        nonfinite: str = "propagate",
        fused_amp: bool = False,
    ) -> None:
        super().__init__(params, LANS.given(locals()), fused_amp)
