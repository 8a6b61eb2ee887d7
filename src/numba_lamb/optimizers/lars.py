"""LARS: Momentum whose step in each layer is scaled by the ratio of weight norm to gradient norm."""

from numba_lamb.foreign import is_torch_optimizer, kind_of
from numba_lamb.layout import Layer
from numba_lamb.methods.binding import leads_on
from numba_lamb.methods.checks import layer_filter
from numba_lamb.methods.docs import documented
from numba_lamb.methods.lars import LARS, MOMENTUM
from numba_lamb.optimizers.attributes import GroupOption
from numba_lamb.optimizers.base import LayerFilter
from numba_lamb.optimizers.momentum import Momentum


def adapted_by_name(layer: Layer) -> bool:
    """Return whether LARS adapts a layer by default: not where its name has `LayerNorm` or `bias`."""
    return "LayerNorm" not in layer.name and "bias" not in layer.name


def _check_optimizer(optimizer: object) -> None:
    if type(optimizer) is not Momentum:
        way = (
            "write Lars(Momentum(params, learning_rate, momentum)), or for PyTorch "
            "numba_lamb.torch.Lars(params, lr, momentum)"
        )
        if is_torch_optimizer(optimizer):
            way = "numba_lamb.torch.Lars(params, lr, momentum) takes its place"
        raise TypeError(
            "optimizer must be a numba_lamb.Momentum, with which Lars is one fused kernel, "
            f"got a {kind_of(optimizer)}; {way}"
        )


@documented(LARS, "numpy")
class Lars(Momentum):
    r"""Layer-wise adaptive rate scaling around a `Momentum`.

    For each layer that the filters accept, with :math:`g` already divided by
    the loss scale and clipped,

    .. math::

        r = \frac{c\,\lVert w\rVert}
        {\lVert g\rVert + \lambda\lVert w\rVert + \epsilon}, \qquad
        v \leftarrow \mu v + r\,(g + \lambda w), \qquad w \leftarrow w - \eta v

    and Nesterov as in `Momentum`; layers that `lars_filter` passes over take a
    plain momentum step without decay.

    Variants with the rate inside the buffer, ``"paper"`` among them, have
    :math:`v \leftarrow \mu v + \eta r (g + \lambda w)` and
    :math:`w \leftarrow w - v`. Where :math:`r` is 1, and what it divides by:
    ``numba-lamb variants``, ``docs/moving-in.md``.

    Parameters
    ----------
    {parameters}

    Raises
    ------
    TypeError
        If `optimizer` is not a `Momentum`, or an argument has the wrong type.
    ValueError
        If an argument is out of range.

    Notes
    -----
    With ``"mindspore"`` and ``"paper"`` a layer of zeros has ratio 0 and never
    moves: keep such layers (biases that start at zero) out by the filter. The
    wrapped optimizer must be a Momentum because both are one fused kernel;
    Adam's direction does not depend on the gradient's scale, so rescaling its
    gradients would do nothing: use `Lamb` for that. The paper's rate is
    ``schedules.PolynomialDecayLR(lr, 0.0, T, power=2.0)``.

    {ranges}

    References
    ----------
    Y. You, I. Gitman, B. Ginsburg, "Large Batch Training of Convolutional
    Networks", 2017, Algorithm 1; MindSpore 2.10 ``nn.LARS``.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_lamb as nl
    >>> w = np.array([3.0, 4.0])
    >>> momentum = nl.Momentum({"fc.weight": w}, 0.1, 0.9)
    >>> opt = nl.Lars(momentum, coefficient=0.02, epsilon=0.0)
    >>> opt({"fc.weight": np.array([0.6, 0.8])})
    (True,)
    >>> opt.stats()["trust_ratio/fc.weight"]
    0.1
    >>> w
    array([2.994, 3.992])
    """

    @leads_on("numba_lamb", _check_optimizer, inner=Momentum)
    def __init__(
        self,
        optimizer: Momentum,
        epsilon: float | None = None,
        coefficient: float = 1e-3,
        use_clip: bool | tuple[float, float] = False,
        lars_filter: LayerFilter | None = None,
        *,
        variant: str = "mindspore",
        always_adapt: bool | None = None,
        weight_norm_bounds: tuple[float, float] | None = None,
        adapt_filter: LayerFilter | None = None,
    ) -> None:
        _check_optimizer(optimizer)
        given = locals()
        layer_filter("lars_filter", "", lars_filter)
        with optimizer._lock:
            optimizer._become_lars(
                {key: given[key] for key in LARS.numpy_names if key not in MOMENTUM.numpy_names},
                lars_filter or adapted_by_name,
            )
        # One state under two names: whoever kept the wrapped optimizer sees the same steps.
        self.__dict__ = optimizer.__dict__

    epsilon = GroupOption()
    coefficient = GroupOption()
    use_clip = GroupOption()
    variant = GroupOption()
    always_adapt = GroupOption()
    weight_norm_bounds = GroupOption()
    adapt_filter = GroupOption()
