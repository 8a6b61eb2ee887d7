"""Lars and Momentum for PyTorch: Momentum is LARS with ratio 1."""

from collections.abc import Callable

import torch

from numba_lamb.layout import Layer
from numba_lamb.methods.binding import leads_on
from numba_lamb.methods.docs import documented
from numba_lamb.methods.lars import LARS, MOMENTUM
from numba_lamb.torch.optimizer import LayerwiseOptimizer, ParamsT
from numba_lamb.torch.tensors import check_params


@documented(MOMENTUM, "torch")
class Momentum(LayerwiseOptimizer):
    r"""Gradient descent with momentum: `torch.optim.SGD` without dampening.

    .. math::

        d = g + \lambda w, \qquad v \leftarrow \mu v + d, \qquad
        w \leftarrow w - \eta v

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
    Sutskever et al. keep the rate inside the buffer; here, as in PyTorch, it is
    outside, which differs where the rate changes.

    {ranges}

    References
    ----------
    I. Sutskever et al., "On the importance of initialization and momentum in
    deep learning", ICML 2013.

    Examples
    --------
    >>> import torch
    >>> from numba_lamb.torch import Momentum
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    >>> opt = Momentum([w], lr=0.1)
    >>> w.grad = torch.tensor([1.0, -1.0])
    >>> for _ in range(2):
    ...     opt.step()
    >>> w.data
    tensor([0.7100, 2.2900])
    """

    _method = MOMENTUM

    @leads_on("numba_lamb.torch", check_params)
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        grad_centralization: bool = False,
        decay_filter: Callable[[Layer], bool] | None = None,
        master: str | None = "split",
        moments: str | None = None,
        seed: int = 0,
        nonfinite: str = "propagate",
        fused_amp: bool = False,
    ) -> None:
        super().__init__(params, MOMENTUM.given(locals()), fused_amp)


@documented(LARS, "torch")
class Lars(LayerwiseOptimizer):
    r"""Layer-wise adaptive rate scaling, as a PyTorch optimizer.

    For each parameter tensor :math:`w` with gradient :math:`g`

    .. math::

        r = \frac{c\,\lVert w\rVert}
        {\lVert g\rVert + \lambda\lVert w\rVert + \epsilon}, \qquad
        v \leftarrow \mu v + r\,(g + \lambda w), \qquad w \leftarrow w - \eta v

    and Nesterov as in `Momentum`.

    Variants with the rate inside the buffer, ``"paper"`` among them, have
    :math:`v \leftarrow \mu v + \eta r (g + \lambda w)` and
    :math:`w \leftarrow w - v`. Where :math:`r` is 1, and what it divides by:
    ``numba-lamb variants``, ``docs/moving-in.md``.

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
    Y. You, I. Gitman, B. Ginsburg, "Large Batch Training of Convolutional
    Networks", 2017, Algorithm 1.

    Examples
    --------
    >>> import torch
    >>> from numba_lamb.torch import Lars
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> opt = Lars([w], lr=0.1, trust_coefficient=0.02, always_adapt=True)
    >>> w.grad = torch.tensor([0.6, 0.8])
    >>> opt.step()
    >>> w.data
    tensor([2.9940, 3.9920])
    """

    _method = LARS

    @leads_on("numba_lamb.torch", check_params)
    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        trust_coefficient: float = 1e-3,
        eps: float | None = None,
        variant: str = "timm",
        always_adapt: bool | None = None,
        trust_clip: bool | tuple[float, float] = False,
        weight_norm_bounds: tuple[float, float] | None = None,
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
        super().__init__(params, LARS.given(locals()), fused_amp)
