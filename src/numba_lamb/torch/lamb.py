"""Lamb for PyTorch."""

from collections.abc import Callable

import torch

from numba_lamb.layout import Layer
from numba_lamb.methods.binding import leads_on
from numba_lamb.methods.docs import documented
from numba_lamb.methods.lamb import LAMB
from numba_lamb.torch.optimizer import LayerwiseOptimizer, ParamsT
from numba_lamb.torch.tensors import check_params


@documented(LAMB, "torch")
class Lamb(LayerwiseOptimizer):
    r"""Layer-wise adaptive moments for large batches, as a PyTorch optimizer.

    For each parameter tensor :math:`w` with gradient :math:`g`, at its step
    :math:`t = 1, 2, \ldots`

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
    TypeError, ValueError
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
    >>> import torch
    >>> from numba_lamb.torch import Lamb
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = torch.nn.init.constant_(model.weight, 2.0)
    >>> opt = Lamb(model.named_parameters(), lr=0.1)
    >>> model(torch.tensor([[1.0, -1.0]])).sum().backward()
    >>> opt.step()
    >>> model.weight.data
    tensor([[1.8000, 2.2000]])
    >>> round(opt.stats()["trust_ratio/weight"], 4)
    2.0
    """

    _method = LAMB

    @leads_on("numba_lamb.torch", check_params)
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
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
        decay_filter: Callable[[Layer], bool] | None = None,
        adapt_filter: Callable[[Layer], bool] | None = None,
        master: str | None = "split",
        moments: str | None = None,
        seed: int = 0,
        nonfinite: str = "propagate",
        fused_amp: bool = False,
    ) -> None:
        super().__init__(params, LAMB.given(locals()), fused_amp)
