"""Learning-rate schedules: frozen functions of the step.

A schedule is called with a step, counted from 0, or with an array of steps. All of them, and any other
callable ``step -> float``, serve as the ``learning_rate`` or ``weight_decay`` of an optimizer.

=========================== ==========================================================
module                      family
=========================== ==========================================================
``decay``                   decay by the step, after MindSpore
``tables``, ``piecewise``   the same by the epoch, as lists with one value per step
``warmup``, ``phases``      warm-up and what follows, after mindformers
``cosine``                  cosine curves, after mindformers
``layerwise``               rates that differ by layer
``samples``, ``paddle``     annealing by the samples processed, after Paddle v1
``warmbooting``             the cosine with warm boots
``compose``                 schedules made of others
``expression``              schedules from text
=========================== ==========================================================
"""

from ._base import LearningRateSchedule
from ._checks import Schedule
from .compose import clamp, hold_last, scale, sequence
from .cosine import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CosineWithRestartsAndWarmUpLR,
    CosineWithWarmUpLR,
)
from .decay import (
    CosineDecayLR,
    ExponentialDecayLR,
    InverseDecayLR,
    NaturalExpDecayLR,
    PolynomialDecayLR,
    WarmUpLR,
)
from .expression import parse
from .layerwise import LayerWiseCosineAnnealingLR, LearningRateWiseLayer
from .paddle import ManualAnnealingLR, PassManualAnnealingLR, annealing
from .phases import ConstantWithCoolDownLR, WarmUpStableDecayLR
from .piecewise import piecewise_constant_lr
from .samples import (
    CaffePolyAnnealingLR,
    ConstantAnnealingLR,
    DiscExpAnnealingLR,
    ExpAnnealingLR,
    LinearAnnealingLR,
    PolyAnnealingLR,
)
from .tables import (
    cosine_decay_lr,
    exponential_decay_lr,
    inverse_decay_lr,
    natural_exp_decay_lr,
    polynomial_decay_lr,
    warmup_lr,
)
from .warmbooting import CosineAnnealingWarmbootingLR, WarmbootingCosineLR
from .warmup import ConstantWarmUpLR, LinearWithWarmUpLR, PolynomialWithWarmUpLR

__all__ = [
    "CaffePolyAnnealingLR",
    "ConstantAnnealingLR",
    "ConstantWarmUpLR",
    "ConstantWithCoolDownLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CosineAnnealingWarmbootingLR",
    "CosineDecayLR",
    "CosineWithRestartsAndWarmUpLR",
    "CosineWithWarmUpLR",
    "DiscExpAnnealingLR",
    "ExpAnnealingLR",
    "ExponentialDecayLR",
    "InverseDecayLR",
    "LayerWiseCosineAnnealingLR",
    "LearningRateSchedule",
    "LearningRateWiseLayer",
    "LinearAnnealingLR",
    "LinearWithWarmUpLR",
    "ManualAnnealingLR",
    "NaturalExpDecayLR",
    "PassManualAnnealingLR",
    "PolyAnnealingLR",
    "PolynomialDecayLR",
    "PolynomialWithWarmUpLR",
    "Schedule",
    "WarmUpLR",
    "WarmUpStableDecayLR",
    "WarmbootingCosineLR",
    "annealing",
    "clamp",
    "cosine_decay_lr",
    "exponential_decay_lr",
    "hold_last",
    "inverse_decay_lr",
    "natural_exp_decay_lr",
    "parse",
    "piecewise_constant_lr",
    "polynomial_decay_lr",
    "scale",
    "sequence",
    "warmup_lr",
]
