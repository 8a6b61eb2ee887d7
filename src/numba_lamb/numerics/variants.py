"""Whose formula: what the implementations of LAMB and LARS do differently, as data.

`numba_lamb.numerics.rules` has the arithmetic; a variant says which of it is used, with what numbers. Packages
that share a formula share one value.
"""

import math
from dataclasses import dataclass

from numba_lamb.numerics.rules import (
    BY_BOTH,
    BY_FIRST,
    DIRECTION,
    EPS_IN_ROOT,
    EPS_IN_ROOT_GUARDED,
    LEFT_ALONE,
    UNCORRECTED,
    UNDECAYED,
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
    weight_floor, weight_limit : float
        Bounds of the weight norm in the ratio.
    epsilon_in_ratio : bool
        Whether ``eps`` is added to the ratio's denominator too.
    least, most : float
        Bounds of the ratio.
    norm_of : int
        Whose norm the ratio divides by, of `numba_lamb.numerics.rules`.
    """

    adapts: bool = True
    always_adapt: bool = True
    bias_correction: bool = True
    rate_correction: int = UNCORRECTED
    decoupled_decay: bool = False
    weight_floor: float = 0.0
    weight_limit: float = math.inf
    epsilon_in_ratio: bool = False
    least: float = 0.0
    most: float = math.inf
    norm_of: int = DIRECTION


_ALGORITHM_2 = LambVariant()
_DECAYED_LAYERS = LambVariant(always_adapt=False)
_UNCORRECTED_MOMENTS = LambVariant(bias_correction=False)

LAMB_VARIANTS = {
    "paper": _ALGORITHM_2,
    # v1 of arXiv 1904.00962 bounds the ratio by 10, as its early ports do.
    "paper-v1": LambVariant(most=10.0),
    # Fong, Chen, Chen, arXiv 2011.13584: the ratio clipped at 1.
    "lambc": LambVariant(most=1.0),
    # csrc/multi_tensor_lamb.cu: a ratio where use_nvlamb or decay != 0.
    "apex": _DECAYED_LAYERS,
    "nvlamb": _ALGORITHM_2,
    "timm": _DECAYED_LAYERS,
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
    # alias.py of 0.2.8: scale_by_adam, decay, then the ratio, 1 where a norm is 0.
    "optax": _ALGORITHM_2,
    # TensorFlow Addons and the copy of it in the TensorFlow model garden.
    "tfa": _ALGORITHM_2,
    "tf-models": _ALGORITHM_2,
    # Keras 3: base_optimizer.py takes w - lr*decay*w before lamb.py, which knows no decay.
    "keras": LambVariant(decoupled_decay=True),
    # google-research/albert and ColossalAI leave the correction of the moments out.
    "albert": _UNCORRECTED_MOMENTS,
    "colossalai": _UNCORRECTED_MOMENTS,
    # fastai/optimizer.py: decoupled decay first, then min(r, 10).
    "fastai": LambVariant(decoupled_decay=True, most=10.0),
    # The Ascend operator; the CUDA kernel of 1.8 to 2.x, which divides by another norm than it applies; 1.x.
    "mindspore": _ALGORITHM_2,
    "mindspore-gpu": LambVariant(most=10.0, norm_of=EPS_IN_ROOT),
    "mindspore-1x": LambVariant(most=10.0, norm_of=EPS_IN_ROOT_GUARDED),
    # phi/kernels/impl/lamb_kernel_impl.h, always_adapt=False: a ratio where decay > 0.
    "paddle": _DECAYED_LAYERS,
    # optimizer/lamb.py: lower_bound and upper_bound of ||w|| are None unless asked for.
    "mxnet": _ALGORITHM_2,
    # gluonnlp/optimizer/lamb.py: bounds of ||w|| 1e-3 and 10, no correction.
    "gluonnlp": LambVariant(bias_correction=False, weight_floor=1e-3, weight_limit=10.0),
    # LambGradFunctor and LambUpdateFunctor: decay is in what is applied, and not in the norm.
    "oneflow": LambVariant(norm_of=UNDECAYED),
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
    decayed_norm : bool
        Whether the ratio divides by ``||g + decay*w||`` in place of ``||g|| + decay*||w||``.
    ratio_outside : bool
        Whether the ratio is outside the momentum buffer, with the rate.
    trust_clip : bool
        Whether the ratio is replaced by ``min(r/lr, 1)`` without being asked for.
    """

    eps: float = 0.0
    guard: int = UNGUARDED
    rate_inside: bool = False
    always_adapt: bool = True
    decayed_norm: bool = False
    ratio_outside: bool = False
    trust_clip: bool = False


_DECAYED_NORM = LarsVariant(guard=ZERO_NORM, decayed_norm=True)
_DECAYED_NORM_RATE_INSIDE = LarsVariant(guard=ZERO_NORM, decayed_norm=True, rate_inside=True)
_LARC_SCALE = LarsVariant(eps=1e-8, guard=LEFT_ALONE)
_BOLTS = LarsVariant(eps=1e-8, guard=LEFT_ALONE, always_adapt=False)

LARS_VARIANTS = {
    "mindspore": LarsVariant(eps=1e-5),
    "paper": LarsVariant(rate_inside=True),
    "paddle": LarsVariant(guard=ZERO_DECAY, rate_inside=True),
    "timm": LarsVariant(eps=1e-8, guard=ZERO_NORM, always_adapt=False),
    "pytorch_optimizer": LarsVariant(guard=ZERO_DENOMINATOR),
    # alias.py of 0.2.8: decay, ratio, rate, trace; SimCLR's lars_optimizer.py and its copy in the TensorFlow model
    # garden, with their default classic_momentum=True.
    "optax": _DECAYED_NORM_RATE_INSIDE,
    "simclr": _DECAYED_NORM_RATE_INSIDE,
    "tf-models": _DECAYED_NORM_RATE_INSIDE,
    # The class LARS of these repositories: q = eta*||w||/||g + decay*w||, the rate outside.
    "barlowtwins": _DECAYED_NORM,
    "vicreg": _DECAYED_NORM,
    "dino": _DECAYED_NORM,
    "moco-v3": _DECAYED_NORM,
    "mae": _DECAYED_NORM,
    # apex/parallel/LARC.py with clip and without; solo-learn's without clip_lars_lr.
    "larc": LarsVariant(eps=1e-8, guard=LEFT_ALONE, trust_clip=True),
    "larc-scale": _LARC_SCALE,
    "solo-learn": _LARC_SCALE,
    # Lightning Bolts and its descendants: nothing adapts without decay.
    "lightning-bolts": _BOLTS,
    "lightly": _BOLTS,
    "torch_optimizer": _BOLTS,
    # MLPerf's TensorFlow reference, whose epsilon 0 becomes Keras's 1e-7; MXNet's documented formula.
    "mlperf": LarsVariant(eps=1e-7, guard=ZERO_NORM, rate_inside=True),
    "mxnet": LarsVariant(eps=1e-8, guard=ZERO_NORM, rate_inside=True),
    # intel_extension_for_pytorch/optim/_lars.py, after LARS-ImageNet-PyTorch: -lr*r*buffer.
    "ipex": LarsVariant(guard=ZERO_NORM, ratio_outside=True),
}
