"""Lars and Momentum for PyTorch: Momentum is LARS with ratio 1."""

from collections.abc import Callable

import torch

from numba_lamb.layout import Layer
from numba_lamb.methods.lars import LARS, MOMENTUM
from numba_lamb.optimizers.binding import leads_on
from numba_lamb.torch.optimizer import LayerwiseOptimizer, ParamsT
from numba_lamb.torch.tensors import check_params


class Momentum(LayerwiseOptimizer):
    r"""Gradient descent with momentum, as a PyTorch optimizer: `torch.optim.SGD` without dampening.

    .. math::

        d = g + \lambda w, \qquad v \leftarrow \mu v + d, \qquad
        w \leftarrow w - \eta v \quad\text{or, Nesterov,}\quad w \leftarrow w - \eta\,(d + \mu v)

    Parameters
    ----------
    params, lr, maximize, max_grad_norm, decay_filter, nonfinite, fused_amp
        As for `Lamb`.
    momentum : float
        :math:`\mu >= 0`.
    weight_decay : float
        :math:`\lambda >= 0`, coupled: added to the gradient.
    nesterov : bool
        Whether to look ahead by one momentum step.

    Raises
    ------
    TypeError, ValueError
        If an argument is refused; the message names it, what was given, and what is allowed.

    References
    ----------
    I. Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013, with the
    rate outside the buffer as in PyTorch.

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
        nonfinite: str = "propagate",
        fused_amp: bool = False,
    ) -> None:
        super().__init__(params, MOMENTUM.given(locals()), fused_amp)


class Lars(LayerwiseOptimizer):
    r"""Layer-wise adaptive rate scaling, as a PyTorch optimizer.

    For each parameter tensor :math:`w` with gradient :math:`g`

    .. math::

        r = \frac{c\,\lVert w\rVert}{\lVert g\rVert + \lambda\lVert w\rVert + \epsilon}, \qquad
        v \leftarrow \mu v + r\,(g + \lambda w), \qquad w \leftarrow w - \eta v

    and Nesterov as in `Momentum`.

    Parameters
    ----------
    params, lr, maximize, max_grad_norm, decay_filter, adapt_filter, nonfinite, fused_amp
        As for `Lamb`.
    momentum : float
        :math:`\mu >= 0`.
    weight_decay : float
        :math:`\lambda >= 0`, coupled: added to the gradient.
    nesterov : bool
        Whether to look ahead by one momentum step.
    trust_coefficient : float
        :math:`c >= 0`.
    eps : float, optional
        :math:`\epsilon >= 0`; by default that of the variant.
    variant : str
        Whose formula, of the table in ``docs/moving-in.md``. ``"timm"``: :math:`\epsilon` 1e-8, :math:`r = 1`
        where a norm is 0. ``"mindspore"``: :math:`\epsilon` 1e-5.
        ``"paper"`` and ``"paddle"``: :math:`\epsilon` 0 and the rate inside the buffer,
        :math:`v \leftarrow \mu v + \eta r (g + \lambda w)`, :math:`w \leftarrow w - v`; in ``"paddle"``
        :math:`r = 1` where :math:`\lambda` or a norm is 0. ``"pytorch_optimizer"``: :math:`\epsilon` 0,
        :math:`r = 1` where :math:`\lVert w\rVert` or the denominator is 0.
    always_adapt : bool, optional
        Whether layers without weight decay have a trust ratio too; by default they have, but not in ``"timm"``,
        ``"lightning-bolts"``, ``"lightly"`` and ``"torch_optimizer"``.
    trust_clip : bool
        Whether :math:`r` is replaced by :math:`\min(r/\eta, 1)`, which makes the smaller of :math:`r` and
        :math:`\eta` the layer's rate, as ``"larc"`` does unasked. Not for variants with the rate inside.

    Raises
    ------
    TypeError, ValueError
        If an argument is refused; the message names it, what was given, and what is allowed.

    References
    ----------
    Y. You, I. Gitman, B. Ginsburg, "Large Batch Training of Convolutional Networks", 2017, Algorithm 1.

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
        nonfinite: str = "propagate",
        fused_amp: bool = False,
    ) -> None:
        super().__init__(params, LARS.given(locals()), fused_amp)
