"""LANS as data."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from numba_lamb.kernels import columns
from numba_lamb.methods.checks import real
from numba_lamb.methods.lamb import LAMB
from numba_lamb.methods.options import STORAGE, Method, Row
from numba_lamb.methods.passes import ROW_MEANS, Pass
from numba_lamb.numerics import rules

_OF_LAMB = {option.name: option for option in LAMB.options}
# A clip multiplies a gradient that is normalized afterwards: max_grad_norm would have no effect. No source
# document states ranges of its own.
_OPTIONS = (
    _OF_LAMB["lr"],
    replace(_OF_LAMB["betas"], source_check=real(zero=True, below=1.0)),
    replace(_OF_LAMB["eps"], source_check=None),
    replace(
        _OF_LAMB["weight_decay"], meaning=r"The weight decay :math:`\lambda`, a part of both directions."
    ),
    replace(
        _OF_LAMB["weight_norm_bounds"],
        meaning="Bounds of the weight norm in both trust ratios, (low, high); None for none.",
    ),
    _OF_LAMB["maximize"],
    _OF_LAMB["grad_centralization"],
    _OF_LAMB["decay_filter"],
    replace(
        _OF_LAMB["adapt_filter"], meaning="Called with each `Layer`; False keeps both its trust ratios at 1."
    ),
    *STORAGE,
    _OF_LAMB["nonfinite"],
)


def _columns(options: Mapping[str, Any]) -> Row:
    (beta1, beta2), eps = options["betas"], options["eps"]
    lightest, heaviest = options["weight_norm_bounds"] or (0.0, math.inf)
    return Row(
        hyper={
            columns.BETA1: beta1,
            columns.COMPLEMENT1: rules.complement(beta1),
            columns.BETA2: beta2,
            columns.COMPLEMENT2: rules.complement(beta2),
            columns.EPS: eps,
        },
        hyper64={
            columns.BETA1_64: beta1,
            columns.BETA2_64: beta2,
            columns.BIAS_CORRECTION: True,
            columns.MIN_WEIGHT_NORM: lightest,
            columns.MAX_WEIGHT_NORM: heaviest,
        },
        bound=rules.lans_bound,
        adapts=rules.ALWAYS,
        held={columns.EPS: "eps"},
    )


LANS = Method(
    name="Lans",
    state=LAMB.state,
    numpy_state=LAMB.numpy_state,
    passes=(
        ROW_MEANS,
        Pass("lans_squares", "chunk", writes=(columns.GRADIENT_SQUARES,)),
        Pass("lans_normalize", "layer"),
        Pass(
            "lans_advance",
            "chunk",
            writes=(columns.WEIGHT_SQUARES, columns.UPDATE_SQUARES, columns.GRADIENT_UPDATE_SQUARES),
        ),
        Pass("lans_ratio", "layer"),
        Pass("lans_descend", "chunk"),
    ),
    needs_steps=True,
    centralizes_decay=False,
    statistics=(
        ("trust_ratio", columns.RATIO, False),
        ("gradient_trust_ratio", columns.GRADIENT_RATIO, False),
        ("weight_norm", columns.WEIGHT_NORM, False),
        ("update_norm", columns.UPDATE_NORM, False),
        ("gradient_update_norm", columns.GRADIENT_UPDATE_NORM, False),
        ("gradient_norm", columns.GRADIENT_NORM, False),
    ),
    options=_OPTIONS,
    columns=_columns,
)
