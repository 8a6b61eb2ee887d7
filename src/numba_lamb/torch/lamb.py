"""Lamb for PyTorch."""

from collections.abc import Callable

import torch

from numba_lamb.layout import Layer
from numba_lamb.methods.lamb import LAMB
from numba_lamb.optimizers.binding import leads_on
from numba_lamb.torch.optimizer import LayerwiseOptimizer, ParamsT
from numba_lamb.torch.tensors import check_params


class Lamb(LayerwiseOptimizer):
    r"""Layer-wise adaptive moments for large batches, as a PyTorch optimizer.

    For each parameter tensor :math:`w` with gradient :math:`g`, at its step :math:`t = 1, 2, \ldots`

    .. math::

        m &\leftarrow \beta_1 m + (1-\beta_1)\,g, \qquad v \leftarrow \beta_2 v + (1-\beta_2)\,g^2 \\
        u &= \frac{m/(1-\beta_1^t)}{\sqrt{v/(1-\beta_2^t)} + \epsilon} + \lambda w \\
        r &= \lVert w\rVert / \lVert u\rVert \quad\text{(1 where either norm is 0)}, \qquad
        w \leftarrow w - \eta\, r\, u

    Parameters
    ----------
    params : iterable
        Tensors, ``(name, tensor)`` pairs or group dicts, as for every PyTorch optimizer: float32 or float64, on
        the CPU or on one CUDA GPU. They stay where they are and are updated in place. All options but
        `fused_amp` may stand in a group, and may be changed there between steps.
    lr : float or Tensor
        :math:`\eta >= 0`.
    betas : (float, float)
        :math:`\beta_1, \beta_2` in [0, 1); any sequence of two, which stays in the group as given.
    eps : float
        :math:`\epsilon >= 0`, added outside the root.
    weight_decay : float
        :math:`\lambda >= 0`, a part of :math:`u`.
    variant : str
        Whose formula, of the table in ``docs/moving-in.md``. It decides the defaults of the next three options.
    always_adapt : bool, optional
        Whether layers without weight decay have a trust ratio too; by default they have, but not in ``"apex"``,
        ``"timm"`` and ``"paddle"``.
    bias_correction : bool, optional
        Whether moments are divided by :math:`1-\beta^t`.
    decoupled_decay : bool, optional
        Whether :math:`w` is multiplied by :math:`1-\eta\lambda` before all else, in place of decay in :math:`u`.
    grad_averaging : bool
        Whether :math:`g` enters :math:`m` with the factor :math:`1-\beta_1`; False gives it the factor 1.
    trust_clip : bool
        Whether :math:`r` is at most 1.
    maximize : bool
        Whether to ascend.
    max_grad_norm : float, optional
        :math:`c > 0`: gradients are multiplied by :math:`\min(1, c/n)`, with :math:`n` the norm of all gradients
        of the groups that have a limit, as one vector. ``grad`` itself stays as it is.
    decay_filter : callable, optional
        Called with a `numba_lamb.Layer` (``name``, ``shape``, ``ndim``, ...); False exempts it from weight decay.
        By default nothing is exempt: there is no rule by name.
    adapt_filter : callable, optional
        Called with a `numba_lamb.Layer`; False keeps its ratio at 1.
    nonfinite : {"propagate", "skip", "raise"}
        What to do where a gradient is infinite or NaN: let it through unchecked as PyTorch does, leave the whole
        step out, or raise before anything changes. If groups differ, ``"raise"`` goes before ``"skip"``.
    fused_amp : bool
        Whether `torch.amp.GradScaler` leaves dividing by its scale, and skipping, to the step.

    Raises
    ------
    TypeError, ValueError
        If an argument is refused; the message names it, what was given, and what is allowed.

    References
    ----------
    Y. You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", ICLR 2020,
    Algorithm 2.

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
        nonfinite: str = "propagate",
        fused_amp: bool = False,
    ) -> None:
        super().__init__(params, LAMB.given(locals()), fused_amp)
