"""Optimizers whose layers have settings of their own, chosen at random, alike wherever the layers are."""

from collections.abc import Callable
from typing import Any

import numpy as np

from numba_lamb.kernels import rows
from numba_lamb.numerics import rules

Write = Callable[[Any, np.random.Generator], None]

COMMON = {
    rows.DECAYED: [0.0, 1.0, 0.5],
    rows.OUTSIDE: [0, 1],
    rows.SIGN: [1, -1],
    rows.CHECKED: [0, 1],
    rows.LIMIT: [0.0, 0.5, 3.0, 1e6],
    rows.EPSILON: [0.0, 1e-6, 0.1],
}
LAMB = {
    **COMMON,
    rows.FIRST_DECAY: [0.0, 0.5, 0.9, 0.99],
    rows.SECOND_DECAY: [0.7, 0.98, 0.999],
    rows.CORRECTED: [0, 1],
    rows.RATE_CORRECTION: [rules.UNCORRECTED, rules.BY_FIRST, rules.BY_BOTH],
    rows.WEIGHT_LIMIT: [np.inf, 10.0, 0.5],
    rows.LEAST: [0.0, 0.01, 0.9],
    rows.MOST: [np.inf, 10.0, 0.95],
}
LARS = {
    **COMMON,
    rows.COEFFICIENT: [1e-3, 0.02, 1.0],
    rows.CLIP: [0, 1],
    rows.RATE_INSIDE: [0, 1],
    rows.GUARD: [rules.UNGUARDED, rules.ZERO_NORM, rules.ZERO_DENOMINATOR, rules.ZERO_DECAY],
}


def choose(part: Any, values: dict[int, list[float]], random: np.random.Generator) -> None:
    for column, choices in values.items():
        part.settings[:, column] = random.choice(choices, len(part.layers))
    part.scalars[:, rows.ADAPT] = random.choice([0, 1, 1], len(part.layers))
    part.scalars[:, rows.RESCALE] *= part.settings[:, rows.SIGN]


def choose_for_lamb(part: Any, random: np.random.Generator) -> None:
    choose(part, LAMB, random)
    for beta, decay, complement in (
        (rows.BETA1, rows.FIRST_DECAY, rows.COMPLEMENT1),
        (rows.BETA2, rows.SECOND_DECAY, rows.COMPLEMENT2),
    ):
        part.scalars[:, beta] = part.settings[:, decay]
        part.scalars[:, complement] = 1.0 - part.settings[:, decay]


def choose_for_lars(part: Any, random: np.random.Generator) -> None:
    choose(part, LARS, random)
    part.scalars[:, rows.BETA1] = random.choice([0.0, 0.5, 0.9], len(part.layers))
    nesterov = random.choice([0, 1], len(part.layers))
    part.scalars[:, rows.VELOCITY] = np.where(nesterov, part.scalars[:, rows.BETA1], 1)
    part.scalars[:, rows.LOOKAHEAD] = nesterov


def with_settings(base: type, write: Callable[[Any], None]) -> Any:
    """The optimizer `base` whose settings are what `write` writes into each of its parts."""

    def write_constants(self: Any, part: Any) -> None:
        base._write_constants(self, part)  # type: ignore[attr-defined]
        write(part)

    return type(base.__name__, (base,), {"_write_constants": write_constants})


def seeded(write: Write, seed: int) -> Callable[[Any], None]:
    """The same choices for the same part, on the CPU and on the GPU."""
    return lambda part: write(part, np.random.default_rng([seed, part.dtype.itemsize]))
