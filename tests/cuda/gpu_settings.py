"""Optimizers whose layers have settings of their own, chosen at random, alike wherever the layers are."""

from collections.abc import Callable
from typing import Any

import numpy as np

from numba_lamb.kernels import columns
from numba_lamb.numerics import rules

Write = Callable[[Any, np.random.Generator], None]

COMMON = {
    columns.DECAYED: [0.0, 1.0, 0.5],
    columns.DECOUPLED: [0, 1],
    columns.SIGN: [1, -1],
    columns.CHECKED: [0, 1],
    columns.MAX_GRAD_NORM: [0.0, 0.5, 3.0, 1e6],
    columns.RATIO_EPS: [0.0, 1e-6, 0.1],
    columns.MIN_WEIGHT_NORM: [0.0, 0.0, 0.3],
    columns.MAX_WEIGHT_NORM: [np.inf, 10.0, 0.5],
    columns.MIN_RATIO: [0.0, 0.01, 0.9],
    columns.MAX_RATIO: [np.inf, 10.0, 0.95],
}
LAMB = {
    **COMMON,
    columns.BETA1_64: [0.0, 0.5, 0.9, 0.99],
    columns.BETA2_64: [0.7, 0.98, 0.999],
    columns.BIAS_CORRECTION: [0, 1],
    columns.RATE_CORRECTION: [rules.UNCORRECTED, rules.BY_FIRST, rules.BY_BOTH],
    columns.NORM_OF: [rules.DIRECTION, rules.EPS_IN_ROOT, rules.EPS_IN_ROOT_GUARDED, rules.UNDECAYED],
}
LARS = {
    **COMMON,
    columns.COEFFICIENT: [1e-3, 0.02, 1.0],
    columns.TRUST_CLIP: [0, 1],
    columns.RATE_INSIDE: [0, 1],
    columns.RATIO_OUTSIDE: [0, 0, 1],
    columns.DECAYED_NORM: [0, 1],
    columns.GUARD: [
        rules.UNGUARDED,
        rules.ZERO_NORM,
        rules.ZERO_DENOMINATOR,
        rules.ZERO_DECAY,
        rules.LEFT_ALONE,
    ],
}


def choose(part: Any, values: dict[int, list[float]], random: np.random.Generator) -> None:
    for column, choices in values.items():
        part.hyper64[:, column] = random.choice(choices, len(part.layers))
    adapts = [rules.NEVER, rules.WHERE_DECAYED, rules.ALWAYS, rules.ALWAYS]
    part.hyper64[:, columns.ADAPTS] = random.choice(adapts, len(part.layers))
    part.hyper[:, columns.RESCALE] *= part.hyper64[:, columns.SIGN]


def choose_for_lamb(part: Any, random: np.random.Generator) -> None:
    choose(part, LAMB, random)
    for beta, decay, complement in (
        (columns.BETA1, columns.BETA1_64, columns.COMPLEMENT1),
        (columns.BETA2, columns.BETA2_64, columns.COMPLEMENT2),
    ):
        part.hyper[:, beta] = part.hyper64[:, decay]
        part.hyper[:, complement] = 1.0 - part.hyper64[:, decay]


def choose_for_lars(part: Any, random: np.random.Generator) -> None:
    choose(part, LARS, random)
    part.hyper[:, columns.BETA1] = random.choice([0.0, 0.5, 0.9], len(part.layers))
    nesterov = random.choice([0, 1], len(part.layers))
    part.hyper[:, columns.VELOCITY] = np.where(nesterov, part.hyper[:, columns.BETA1], 1)
    part.hyper[:, columns.LOOKAHEAD] = nesterov


def with_settings(base: type, write: Callable[[Any], None]) -> Any:
    """The optimizer `base` whose settings are what `write` writes into each of its parts."""

    def write_columns(self: Any, parts: Any) -> Any:
        options = base._write_columns(self, parts)  # type: ignore[attr-defined]
        for part in parts:
            write(part)
            part.refresh_flags()
        return options

    return type(base.__name__, (base,), {"_write_columns": write_columns})


def seeded(write: Write, seed: int) -> Callable[[Any], None]:
    """The same choices for the same part, on the CPU and on the GPU."""
    return lambda part: write(part, np.random.default_rng([seed, part.dtype.itemsize]))
