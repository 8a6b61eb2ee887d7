"""LAMB as data."""

from collections.abc import Mapping
from typing import Any

from numba_lamb.kernels import columns
from numba_lamb.methods.checks import choice, flag, flag_or_bounds, floating, pair, rate, real
from numba_lamb.methods.options import (
    ADAPT_FILTER,
    ALWAYS_ADAPT,
    DECAY_FILTER,
    WEIGHT_NORM_BOUNDS,
    Method,
    Option,
    Row,
    at_least_0,
    common,
    maybe_flag,
)
from numba_lamb.methods.passes import DECAY_WEIGHTS, ROW_MEANS, Pass
from numba_lamb.numerics import rules
from numba_lamb.numerics.variants import LAMB_VARIANTS


def _columns(options: Mapping[str, Any]) -> Row:
    (beta1, beta2), eps = options["betas"], options["eps"]
    variant = LAMB_VARIANTS[options["variant"]]
    lightest, heaviest = options["weight_norm_bounds"] or (variant.weight_floor, variant.weight_limit)
    clip = options["trust_clip"]
    least, most = clip if isinstance(clip, tuple) else (variant.least, variant.most)
    if clip is True:
        most = min(most, 1.0)
    return Row(
        hyper={
            columns.BETA1: beta1,
            columns.COMPLEMENT1: rules.complement(beta1) if options["grad_averaging"] else 1.0,
            columns.BETA2: beta2,
            columns.COMPLEMENT2: rules.complement(beta2),
            columns.EPS: eps,
        },
        hyper64={
            columns.DECOUPLED: options["decoupled_decay"],
            columns.RATIO_EPS: eps if variant.epsilon_in_ratio else 0.0,
            columns.BETA1_64: beta1,
            columns.BETA2_64: beta2,
            columns.BIAS_CORRECTION: options["bias_correction"],
            columns.RATE_CORRECTION: variant.rate_correction,
            columns.MIN_WEIGHT_NORM: lightest,
            columns.MAX_WEIGHT_NORM: heaviest,
            columns.NORM_OF: variant.norm_of,
            columns.MIN_RATIO: least,
            columns.MAX_RATIO: most,
        },
        bound=rules.second_moment_bound,
        adapts=rules.adapting(variant.adapts, options["always_adapt"]),
        held={columns.EPS: "eps"},
    )


LAMB = Method(
    name="Lamb",
    state=("exp_avg", "exp_avg_sq"),
    numpy_state=("m", "v"),
    passes=(
        DECAY_WEIGHTS,
        ROW_MEANS,
        Pass("lamb_advance", "chunk", writes=(columns.WEIGHT_SQUARES, columns.UPDATE_SQUARES)),
        Pass(
            "lamb_other_norm",
            "chunk",
            when="divides_by_others",
            writes=(columns.UPDATE_SQUARES, columns.GRADIENT_SQUARES),
        ),
        Pass("lamb_ratio", "layer"),
        Pass("lamb_descend", "chunk"),
    ),
    needs_steps=True,
    centralizes_decay=False,
    statistics=(
        ("trust_ratio", columns.RATIO, False),
        ("weight_norm", columns.WEIGHT_NORM, False),
        ("update_norm", columns.UPDATE_NORM, False),
    ),
    options=(
        Option("lr", 1e-3, rate, alias=("learning_rate",), meaning=r"The learning rate :math:`\eta`."),
        Option(
            "betas",
            (0.9, 0.999),
            pair(real(zero=True, below=1.0), "a pair of numbers >= 0 and < 1"),
            alias=("beta1", "beta2"),
            source_check=floating(below=1.0),
            meaning=r"Decay rates :math:`\beta_1, \beta_2` of the moments.",
        ),
        Option(
            "eps",
            1e-6,
            at_least_0,
            source_check=floating(),
            meaning=r"The term :math:`\epsilon` added to the root of the second moment.",
        ),
        Option(
            "weight_decay",
            0.0,
            rate,
            meaning=r"The weight decay :math:`\lambda`, a part of the direction :math:`u`.",
        ),
        Option("variant", "paper", choice(LAMB_VARIANTS), meaning="Whose formula."),
        ALWAYS_ADAPT,
        Option(
            "bias_correction",
            None,
            maybe_flag,
            in_variant=True,
            meaning=r"Whether moments are divided by :math:`1-\beta^t`.",
        ),
        Option(
            "grad_averaging",
            True,
            flag,
            meaning=r"Whether gradients enter the first moment times :math:`1-\beta_1`.",
        ),
        Option(
            "trust_clip",
            False,
            flag_or_bounds,
            meaning="Whether the trust ratio is at most 1; or its bounds, `(low, high)`, for the variant's.",
        ),
        WEIGHT_NORM_BOUNDS,
        Option(
            "decoupled_decay",
            None,
            maybe_flag,
            in_variant=True,
            meaning=r"Whether weights are multiplied by :math:`1-\eta\lambda` first, and :math:`u` has no decay.",
        ),
        *common(DECAY_FILTER, ADAPT_FILTER),
    ),
    columns=_columns,
    variants=LAMB_VARIANTS,
)
