"""Momentum: heavy-ball and Nesterov gradient descent with coupled decay; LARS with ratio 1."""

from collections.abc import Mapping
from typing import Any

from numba_lamb.groups import collect
from numba_lamb.methods.binding import leads_on
from numba_lamb.methods.docs import documented
from numba_lamb.methods.lars import LARS, MOMENTUM
from numba_lamb.optimizers.attributes import GroupOption
from numba_lamb.optimizers.base import LayerFilter, Nonfinite, Optimizer, check_loss_scale
from numba_lamb.rates import RateLike


@documented(MOMENTUM, "numpy")
class Momentum(Optimizer):
    r"""Gradient descent with momentum, in place.

    On NumPy arrays, or on arrays of one GPU. With loss scale :math:`s`

    .. math::

        d = g/s + \lambda w, \qquad v \leftarrow \mu v + d, \qquad
        w \leftarrow w - \eta v

    The first step has :math:`v = d`. `max_grad_norm` clips :math:`g/s`.

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
    Sutskever et al. keep the rate inside the buffer; here, as in MindSpore,
    Paddle and PyTorch, it is outside, which differs where the rate changes.
    MindSpore's CPU kernel ignores ``use_nesterov``; this one does not.

    {ranges}

    References
    ----------
    I. Sutskever et al., "On the importance of initialization and momentum in
    deep learning", ICML 2013.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_lamb as nl
    >>> w = np.array([1.0, 2.0])
    >>> opt = nl.Momentum([w], learning_rate=0.1, momentum=0.9)
    >>> opt([np.array([1.0, -1.0])])
    (True,)
    >>> opt([np.array([1.0, -1.0])])
    (True,)
    >>> w
    array([0.71, 2.29])
    """

    _has_loss_scale = True

    @leads_on("numba_lamb", collect)
    def __init__(
        self,
        params: Any,
        learning_rate: RateLike,
        momentum: float,
        weight_decay: RateLike = 0.0,
        loss_scale: float = 1.0,
        use_nesterov: bool = False,
        *,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        grad_centralization: bool = False,
        decay_filter: LayerFilter | None = None,
        master: str | None = "split",
        moments: str | None = None,
        seed: int = 0,
        nonfinite: Nonfinite | None = None,
        num_threads: int | None = None,
        capture_steps: int | None = None,
        comm: Any = None,
    ) -> None:
        options = MOMENTUM.numpy_given(locals())
        self._loss_scale = check_loss_scale(loss_scale)
        super().__init__(MOMENTUM, params, options, num_threads, capture_steps, comm)

    momentum = GroupOption()
    use_nesterov = GroupOption()

    @property
    def loss_scale(self) -> float:
        """What gradients are divided by."""
        return self._loss_scale

    def _become_lars(self, options: Mapping[str, Any], lars_filter: LayerFilter) -> None:
        """Have steps be those of LARS with these options, or raise and change nothing."""
        groups, before = self._groups, self._lars_filter
        undo = groups.before()
        self._lars_filter = lars_filter
        try:
            groups.become(LARS, options)
            self._rewrite_columns()
        except BaseException:
            undo()
            self._lars_filter = before
            raise
        self._backend.place(self._plan)

    def stats(self) -> Mapping[str, float]:
        """Return each layer's statistics, by ``"<quantity>/<name>"``.

        At its last update ``trust_ratio`` for every updated layer (1 without
        LARS), and ``weight_norm`` and ``gradient_norm``, which the ratio divides
        by, for those that LARS adapts. ``grad_norm`` is the last step's :math:`n`,
        where `max_grad_norm` was set.
        """
        return super().stats()
