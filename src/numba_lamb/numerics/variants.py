"""Whose formula: what the implementations of LAMB and LARS do differently, as data.

`numba_lamb.numerics.rules` has the arithmetic; a variant says which of it is used, with what numbers.
"""

import math
from dataclasses import dataclass

from numba_lamb.numerics.rules import (
    BY_BOTH,
    BY_FIRST,
    UNCORRECTED,
    UNGUARDED,
    ZERO_DECAY,
    ZERO_DENOMINATOR,
    ZERO_NORM,
)


@dataclass(frozen=True)
class LambVariant:
    """One formula of LAMB.

    Attributes
    ----------
    adapts : bool
        Whether there is a trust ratio at all.
    always_adapt : bool
        Whether layers without weight decay have one too.
    bias_correction : bool
        Whether moments are divided by ``1 - beta^t``.
    rate_correction : int
        What the rate is corrected by, of `numba_lamb.numerics.rules`.
    decoupled_decay : bool
        Whether weights shrink by ``lr*decay`` beforehand, in place of decay in the direction.
    weight_limit : float
        Upper bound of the weight norm in the ratio.
    epsilon_in_ratio : bool
        Whether ``eps`` is added to the ratio's denominator too.
    least, most : float
        Bounds of the ratio.
    """

    adapts: bool = True
    always_adapt: bool = True
    bias_correction: bool = True
    rate_correction: int = UNCORRECTED
    decoupled_decay: bool = False
    weight_limit: float = math.inf
    epsilon_in_ratio: bool = False
    least: float = 0.0
    most: float = math.inf


LAMB_VARIANTS = {
    "paper": LambVariant(),
    "apex": LambVariant(always_adapt=False),
    "timm": LambVariant(always_adapt=False),
    "adamw": LambVariant(adapts=False),
    "torch_optimizer": LambVariant(bias_correction=False, weight_limit=10.0),
    "pytorch_optimizer": LambVariant(
        bias_correction=False,
        rate_correction=BY_FIRST,
        decoupled_decay=True,
        weight_limit=10.0,
        epsilon_in_ratio=True,
    ),
    "deepspeed": LambVariant(bias_correction=False, rate_correction=BY_BOTH, least=0.01, most=10.0),
}


@dataclass(frozen=True)
class LarsVariant:
    """One formula of LARS.

    Attributes
    ----------
    eps : float
        The term in the ratio's denominator, where none is given.
    guard : int
        Where the ratio is 1, of `numba_lamb.numerics.rules`.
    rate_inside : bool
        Whether the rate is inside the momentum buffer.
    always_adapt : bool
        Whether layers without weight decay have a ratio too.
    """

    eps: float = 0.0
    guard: int = UNGUARDED
    rate_inside: bool = False
    always_adapt: bool = True


LARS_VARIANTS = {
    "mindspore": LarsVariant(eps=1e-5),
    "paper": LarsVariant(rate_inside=True),
    "paddle": LarsVariant(guard=ZERO_DECAY, rate_inside=True),
    "timm": LarsVariant(eps=1e-8, guard=ZERO_NORM, always_adapt=False),
    "pytorch_optimizer": LarsVariant(guard=ZERO_DENOMINATOR),
}
