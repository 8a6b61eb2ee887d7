"""LARS and Momentum as data: Momentum is LARS with ratio 1."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from numba_lamb.kernels import columns
from numba_lamb.methods.checks import choice, flag, flag_or_bounds, floating, maybe, rate
from numba_lamb.methods.options import (
    ADAPT_FILTER,
    ALWAYS_ADAPT,
    DECAY_FILTER,
    WEIGHT_NORM_BOUNDS,
    Method,
    Option,
    Refused,
    Row,
    at_least_0,
    common,
)
from numba_lamb.methods.passes import ROW_MEANS, Pass
from numba_lamb.numerics import rules
from numba_lamb.numerics.variants import LARS_VARIANTS

_STATISTICS = (
    ("trust_ratio", columns.RATIO, False),
    ("weight_norm", columns.WEIGHT_NORM, True),
    ("gradient_norm", columns.UPDATE_NORM, True),
)

_PASSES = (
    ROW_MEANS,
    Pass("lars_sums", "chunk", when="adapts", writes=(columns.WEIGHT_SQUARES, columns.UPDATE_SQUARES)),
    Pass("lars_ratio", "layer"),
    Pass("lars_update", "chunk"),
)


def _momentum(options: Mapping[str, Any]) -> Row:
    momentum = options["momentum"]
    velocity, lookahead = rules.momentum_weights(momentum, options["nesterov"])
    return Row(
        hyper={columns.BETA1: momentum, columns.VELOCITY: velocity, columns.LOOKAHEAD: lookahead},
        hyper64={},
        bound=partial(rules.momentum_bound, momentum=momentum),
        held={columns.BETA1: "momentum"},
    )


def _lars(options: Mapping[str, Any]) -> Row:
    variant, row = LARS_VARIANTS[options["variant"]], _momentum(options)
    clip = options["trust_clip"]
    least, most = clip if isinstance(clip, tuple) else (0.0, math.inf)
    lightest, heaviest = options["weight_norm_bounds"] or (0.0, math.inf)
    if clip is True and variant.rate_inside:
        reason = f"must be False in variant {options['variant']!r}, which has no clip, got True"
        raise Refused("trust_clip", reason)
    return Row(
        hyper=row.hyper,
        hyper64={
            columns.RATIO_EPS: options["eps"],
            columns.COEFFICIENT: options["trust_coefficient"],
            columns.TRUST_CLIP: clip is True or (clip is False and variant.trust_clip),
            columns.MIN_RATIO: least,
            columns.MAX_RATIO: most,
            columns.MIN_WEIGHT_NORM: lightest,
            columns.MAX_WEIGHT_NORM: heaviest,
            columns.RATE_INSIDE: variant.rate_inside,
            columns.GUARD: variant.guard,
            columns.DECAYED_NORM: variant.decayed_norm,
            columns.RATIO_OUTSIDE: variant.ratio_outside,
        },
        bound=row.bound,
        adapts=rules.adapting(True, options["always_adapt"]),
        held=row.held,
    )


_OPTIONS = (
    Option(
        "momentum",
        0.9,
        at_least_0,
        source_check=floating(zero=True),
        meaning=r"Decay rate :math:`\mu` of the momentum buffer.",
    ),
    Option(
        "weight_decay", 0.0, rate, meaning=r"The weight decay :math:`\lambda`, added to the gradient (L2)."
    ),
    Option(
        "nesterov",
        False,
        flag,
        alias=("use_nesterov",),
        meaning="Whether the step looks ahead by one momentum step:",
    ),
)


def _lr(default: float) -> Option:
    return Option("lr", default, rate, alias=("learning_rate",), meaning=r"The learning rate :math:`\eta`.")


MOMENTUM = Method(
    name="Momentum",
    state=("momentum_buffer",),
    numpy_state=("m",),
    passes=_PASSES,
    needs_steps=False,
    centralizes_decay=True,
    statistics=_STATISTICS,
    options=(_lr(1e-3), *_OPTIONS, *common(DECAY_FILTER)),
    columns=_momentum,
)
LARS = Method(
    name="Lars",
    state=("momentum_buffer",),
    numpy_state=("m",),
    passes=_PASSES,
    needs_steps=False,
    centralizes_decay=True,
    statistics=_STATISTICS,
    options=(
        _lr(1.0),
        *_OPTIONS,
        Option(
            "trust_coefficient",
            1e-3,
            at_least_0,
            alias=("coefficient",),
            source_check=floating(zero=True),
            meaning="The trust coefficient :math:`c`.",
        ),
        Option(
            "eps",
            None,
            maybe(at_least_0),
            alias=("epsilon",),
            source_check=maybe(floating(zero=True)),
            in_variant=True,
            meaning=r"The term :math:`\epsilon` added to the ratio's denominator.",
        ),
        Option("variant", "timm", choice(LARS_VARIANTS), meaning="Whose formula."),
        ALWAYS_ADAPT,
        Option(
            "trust_clip",
            False,
            flag_or_bounds,
            alias=("use_clip",),
            meaning=r"Whether :math:`r` is replaced by :math:`\min(r/\eta, 1)`, which makes the smaller of "
            r":math:`r` and :math:`\eta` the layer's rate; or bounds of :math:`r`, `(low, high)`. True is refused "
            "where the rate is inside the buffer.",
        ),
        WEIGHT_NORM_BOUNDS,
        *common(DECAY_FILTER, ADAPT_FILTER),
    ),
    columns=_lars,
    variants=LARS_VARIANTS,
)
