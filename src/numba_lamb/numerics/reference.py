"""The specification: each optimizer's step on one layer in plain NumPy float64.

Written from the papers, sharing no code with the rules and kernels that are tested against it. The simplest
form that is right; nothing here is fast.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]


def global_norm(gradients: Iterable[ArrayLike | None], loss_scale: float = 1.0) -> float:
    """Return the L2 norm of all gradients of a step as one vector, without the loss scale."""
    given = [np.asarray(g, dtype=np.float64).ravel() / loss_scale for g in gradients if g is not None]
    return float(np.linalg.norm(np.concatenate([np.zeros(0), *given])))


def clipped(
    gradients: Sequence[ArrayLike | None], max_grad_norm: float, loss_scale: float = 1.0
) -> list[Float64 | None]:
    """Return the gradients scaled down to a global norm of `max_grad_norm` where theirs is larger.

    Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", Algorithm 1. The loss
    scale stays in them. Clipped gradients enter a step in place of the given ones, before all else.
    """
    n = global_norm(gradients, loss_scale)
    factor = max_grad_norm / n if n > max_grad_norm else 1.0
    return [None if g is None else factor * np.asarray(g, dtype=np.float64) for g in gradients]


def usable(
    gradients: Iterable[ArrayLike | None], bound: float, loss_scale: float = 1.0, clips_below: bool = False
) -> bool:
    """Return whether a step may be taken: all gradients are finite, and none can make its moment overflow.

    `bound` is what one may be without the loss scale; one that is clipped to less than that may be any number.
    """
    given = [np.asarray(g, dtype=np.float64) for g in gradients if g is not None]
    finite = all(np.isfinite(g).all() for g in given)
    return bool(finite and (clips_below or all((np.abs(g) / loss_scale <= bound).all() for g in given)))


class LambStep(NamedTuple):
    """What one LAMB step makes of one layer."""

    w: Float64
    m: Float64
    v: Float64
    trust_ratio: float
    weight_norm: float
    update_norm: float


class Formula(NamedTuple):
    """What implementations of LAMB do otherwise than the paper.

    ``rate_correction`` is ``"none"``, ``"first"`` or ``"both"``: whether the rate is divided by ``1 - beta1^t``,
    and multiplied by the root of ``1 - beta2^t`` too. ``norm_of`` is ``"direction"``, ``"eps in root"``,
    ``"eps in root, guarded"`` or ``"undecayed"``: whose norm the ratio divides by.
    """

    bias_correction: bool = True
    grad_averaging: bool = True
    rate_correction: str = "none"
    decoupled_decay: bool = False
    weight_limit: float = np.inf
    ratio_epsilon: float = 0.0
    least: float = 0.0
    most: float = np.inf
    weight_floor: float = 0.0
    norm_of: str = "direction"


def lamb(
    w: ArrayLike,
    g: ArrayLike,
    m: ArrayLike,
    v: ArrayLike,
    t: int,
    *,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    adapt: bool = True,
    formula: Formula = Formula(),  # noqa: B008  (immutable)
) -> LambStep:
    """Return one LAMB step on one layer.

    You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", Algorithm 2, with
    bias correction, an uncapped ratio and decay inside the direction. ``t`` counts from 1.
    """
    w, g, m, v = (np.asarray(array, dtype=np.float64) for array in (w, g, m, v))
    if formula.decoupled_decay:
        w = (1 - learning_rate * weight_decay) * w
        weight_decay = 0.0
    m = beta1 * m + (1 - beta1 if formula.grad_averaging else 1.0) * g
    v = beta2 * v + (1 - beta2) * np.square(g)
    m_hat = m / (1 - beta1**t) if formula.bias_correction else m
    v_hat = v / (1 - beta2**t) if formula.bias_correction else v
    u = m_hat / (np.sqrt(v_hat) + eps) + weight_decay * w
    weight_norm = float(np.linalg.norm(w.ravel()))
    other = u
    if adapt and formula.norm_of == "undecayed":
        other = m_hat / (np.sqrt(v_hat) + eps)
    elif adapt and formula.norm_of != "direction":
        other = m_hat / np.sqrt(v_hat + eps) + weight_decay * w
    update_norm = float(np.linalg.norm(other.ravel()))
    r = 1.0
    phi = min(max(weight_norm, formula.weight_floor), formula.weight_limit)
    stopped = formula.norm_of == "eps in root, guarded" and not g.any()
    if adapt and phi > 0 and update_norm > 0 and not stopped:
        r = float(np.clip(phi / (update_norm + formula.ratio_epsilon), formula.least, formula.most))
    if formula.rate_correction != "none":
        learning_rate = learning_rate / (1 - beta1**t)
    if formula.rate_correction == "both":
        learning_rate = learning_rate * np.sqrt(1 - beta2**t)
    return LambStep(w - learning_rate * r * u, m, v, r, weight_norm, update_norm)


class Trust(NamedTuple):
    """How LARS makes its ratio: whose formula, and its numbers."""

    variant: str
    coefficient: float
    epsilon: float
    clip: bool
    weight_floor: float = 0.0
    weight_limit: float = np.inf
    least: float = 0.0
    most: float = np.inf


RATE_INSIDE = ("paper", "paddle", "optax", "simclr", "tf-models", "mlperf", "mxnet")
RATIO_OUTSIDE = ("ipex",)
DECAY_IN_NORM = ("optax", "simclr", "tf-models", "barlowtwins", "vicreg", "dino", "moco-v3", "mae")
ONE_WHERE_A_NORM_IS_ZERO = (*DECAY_IN_NORM, "timm", "mlperf", "mxnet", "ipex")
LEFT_ALONE = ("larc", "larc-scale", "solo-learn", "lightning-bolts", "lightly", "torch_optimizer")


def lars_ratio(trust: Trust, w: Float64, g: Float64, weight_decay: float, learning_rate: float) -> float:
    """Return what LARS multiplies a layer's decayed gradient by, besides the rate."""
    name = trust.variant
    decayed = name in DECAY_IN_NORM
    weight_norm = float(np.linalg.norm(w.ravel()))
    gradient_norm = float(np.linalg.norm((g + weight_decay * w if decayed else g).ravel()))
    denominator = gradient_norm + trust.epsilon + (0.0 if decayed else weight_decay * weight_norm)
    phi = min(max(weight_norm, trust.weight_floor), trust.weight_limit)
    if name in LEFT_ALONE and phi == 0:
        return 1.0
    if name in LEFT_ALONE and gradient_norm == 0:
        # Neither the gradient, which is 0, nor decay.
        return 0.0
    adapted = {
        "paddle": weight_decay > 0 and phi > 0 and gradient_norm > 0,
        "pytorch_optimizer": phi > 0 and denominator > 0,
        **dict.fromkeys(ONE_WHERE_A_NORM_IS_ZERO, phi > 0 and gradient_norm > 0),
    }
    ratio = 1.0
    if adapted.get(name, True):
        ratio = 0.0
        if denominator > 0:
            ratio = float(np.clip(trust.coefficient * phi / denominator, trust.least, trust.most))
    return min(ratio / learning_rate, 1.0) if trust.clip else ratio


class MomentumStep(NamedTuple):
    """What one Momentum or LARS step makes of one layer."""

    w: Float64
    v: Float64
    trust_ratio: float


def centralized(g: ArrayLike) -> Float64:
    """Return a gradient less its mean over all axes but the first."""
    g = np.asarray(g, dtype=np.float64)
    mean: Float64 = g.mean(axis=tuple(range(1, g.ndim)), keepdims=True)
    return g - mean


def momentum(
    w: ArrayLike,
    g: ArrayLike,
    v: ArrayLike,
    *,
    learning_rate: float,
    momentum: float,
    weight_decay: float = 0.0,
    loss_scale: float = 1.0,
    nesterov: bool = False,
    trust: Trust | None = None,
    centralize: bool = False,
) -> MomentumStep:
    """Return one step of Momentum, or of LARS where `trust` says how the ratio is made.

    You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", Algorithm 1 (variant ``paper``),
    the documented formulas of MindSpore's LARS and Paddle's LarsMomentum, and those of the packages and
    repositories that the variants are named after.
    """
    w, g, v = (np.asarray(array, dtype=np.float64) for array in (w, g, v))
    g = g / loss_scale
    ratio = 1.0 if trust is None else lars_ratio(trust, w, g, weight_decay, learning_rate)
    direction = g + weight_decay * w
    if centralize:
        direction = centralized(direction)
    name = "" if trust is None else trust.variant
    inside, outside = 1.0, learning_rate
    if name in RATE_INSIDE:
        inside, outside = learning_rate * ratio, 1.0
    elif name in RATIO_OUTSIDE:
        outside = learning_rate * ratio
    else:
        inside = ratio
    v = momentum * v + inside * direction
    u = inside * direction + momentum * v if nesterov else v
    return MomentumStep(w - outside * u, v, ratio)
