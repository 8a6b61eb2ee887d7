"""Lars and Momentum for PyTorch: Momentum is LARS with ratio 1."""

from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any

import torch

from numba_lamb.kernels import columns
from numba_lamb.layout import Layer
from numba_lamb.numerics import rules
from numba_lamb.numerics.variants import LARS_VARIANTS
from numba_lamb.optimizers.binding import leads_on
from numba_lamb.torch.optimizer import LayerwiseOptimizer, ParamsT
from numba_lamb.torch.options import GroupRow, check_choice, check_common, check_flag, check_number
from numba_lamb.torch.tensors import check_params

_COMMON = ("momentum", "nesterov", "maximize", "max_grad_norm", "decay_filter", "nonfinite")
_MOMENTUM_OPTIONS = itemgetter(*_COMMON)
_LARS_OPTIONS = itemgetter(
    *_COMMON, "trust_coefficient", "eps", "variant", "always_adapt", "trust_clip", "adapt_filter"
)


def _momentum_row(where: str, group: Mapping[str, Any]) -> dict[int, float]:
    check_common(where, group)
    momentum = check_number(where, "momentum", group["momentum"], zero=True)
    check_flag(where, "nesterov", group["nesterov"])
    return {
        columns.BETA1: momentum,
        columns.VELOCITY: momentum if group["nesterov"] else 1.0,
        columns.LOOKAHEAD: 1.0 if group["nesterov"] else 0.0,
    }


def _bound(hyper: Mapping[int, float]) -> Callable[[float], float]:
    return partial(rules.momentum_bound, momentum=hyper[columns.BETA1])


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

    _kind = "Momentum"
    _moments = ("momentum_buffer",)
    _has_two_moments = False
    _statistics = (
        ("trust_ratio", columns.RATIO, False),
        ("weight_norm", columns.WEIGHT_NORM, True),
        ("gradient_norm", columns.UPDATE_NORM, True),
    )

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
        decay_filter: Callable[[Layer], bool] | None = None,
        nonfinite: str = "propagate",
        fused_amp: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "max_grad_norm": max_grad_norm,
            "decay_filter": decay_filter,
            "nonfinite": nonfinite,
        }
        super().__init__(params, defaults, fused_amp)

    def _options(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        options: tuple[Any, ...] = _MOMENTUM_OPTIONS(group)
        return options

    def _check_group(self, where: str, group: Mapping[str, Any]) -> GroupRow:
        hyper = _momentum_row(where, group)
        return GroupRow(bound=_bound(hyper), hyper=hyper)


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

    _kind = "Lars"
    _moments = ("momentum_buffer",)
    _has_two_moments = False
    _statistics = Momentum._statistics

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
        trust_clip: bool = False,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        decay_filter: Callable[[Layer], bool] | None = None,
        adapt_filter: Callable[[Layer], bool] | None = None,
        nonfinite: str = "propagate",
        fused_amp: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "variant": variant,
            "always_adapt": always_adapt,
            "trust_clip": trust_clip,
            "maximize": maximize,
            "max_grad_norm": max_grad_norm,
            "decay_filter": decay_filter,
            "adapt_filter": adapt_filter,
            "nonfinite": nonfinite,
        }
        super().__init__(params, defaults, fused_amp)

    def _options(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        options: tuple[Any, ...] = _LARS_OPTIONS(group)
        return options

    def _check_group(self, where: str, group: Mapping[str, Any]) -> GroupRow:
        hyper = _momentum_row(where, group)
        check_choice(where, "variant", group["variant"], LARS_VARIANTS)
        variant = LARS_VARIANTS[group["variant"]]
        check_flag(where, "always_adapt", group["always_adapt"], none=True)
        check_flag(where, "trust_clip", group["trust_clip"])
        if group["trust_clip"] and variant.rate_inside:
            raise ValueError(
                f"trust_clip{where} must be False in variant {group['variant']!r}, which has no clip"
            )
        eps = variant.epsilon if group["eps"] is None else check_number(where, "eps", group["eps"], zero=True)
        coefficient = check_number(where, "trust_coefficient", group["trust_coefficient"], zero=True)
        return GroupRow(
            bound=_bound(hyper),
            hyper=hyper,
            hyper64={
                columns.RATIO_EPS: eps,
                columns.COEFFICIENT: coefficient,
                columns.TRUST_CLIP: group["trust_clip"] or variant.trust_clip,
                columns.RATE_INSIDE: variant.rate_inside,
                columns.GUARD: variant.guard,
                columns.DECAYED_NORM: variant.decayed_norm,
                columns.RATIO_OUTSIDE: variant.ratio_outside,
            },
            adapts=True,
            always_adapt=variant.always_adapt if group["always_adapt"] is None else group["always_adapt"],
        )
