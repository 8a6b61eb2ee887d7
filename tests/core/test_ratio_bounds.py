"""Bounds of the weight norm and of the ratio, of LAMB and of LARS, follow the reference."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import numba_lamb as nl
from numba_lamb.kernels import columns
from numba_lamb.numerics import reference, rules
from tests.cuda.gpu_settings import with_settings

bounds = st.fixed_dictionaries(
    {
        columns.MIN_WEIGHT_NORM: st.sampled_from([0.0, 1e-3, 0.5]),
        columns.MAX_WEIGHT_NORM: st.sampled_from([0.6, 10.0, np.inf]),
        columns.MIN_RATIO: st.sampled_from([0.0, 1e-3, 0.7]),
        columns.MAX_RATIO: st.sampled_from([0.8, 5.0, np.inf]),
    }
)
sizes = st.sampled_from([0.0, 1e-4, 0.1, 30.0])
ORDER = [columns.MIN_WEIGHT_NORM, columns.MAX_WEIGHT_NORM, columns.MIN_RATIO, columns.MAX_RATIO]
GUARDS = {"mindspore": rules.UNGUARDED, "timm": rules.ZERO_NORM, "larc": rules.LEFT_ALONE}


def written(settings_of: dict[int, float]) -> Any:
    def write(bucket: Any) -> None:
        for column, value in settings_of.items():
            bucket.hyper64[:, column] = value
        bucket.hyper64[:, columns.ADAPTS] = rules.ALWAYS

    return write


@settings(max_examples=60)
@given(bounds=bounds, size=sizes, seed=st.integers(0, 99))
def test_lamb(bounds: dict[int, float], size: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    w, zeros = size * random.standard_normal(40), np.zeros(40)
    param = w.copy()
    opt = with_settings(nl.Lamb, written(bounds))([param], 0.1, weight_decay=0.1)
    formula = reference.Formula(
        weight_floor=bounds[columns.MIN_WEIGHT_NORM],
        weight_limit=bounds[columns.MAX_WEIGHT_NORM],
        least=bounds[columns.MIN_RATIO],
        most=bounds[columns.MAX_RATIO],
    )
    expected = (w, zeros, zeros)
    for t in range(1, 4):
        g = random.standard_normal(40)
        opt.step([g])
        made = reference.lamb(
            *(expected[0], g, *expected[1:], t), learning_rate=0.1, weight_decay=0.1, formula=formula
        )
        expected = made[:3]
        assert opt.stats()["trust_ratio/param_0"] == pytest.approx(made.trust_ratio, rel=1e-12)
        np.testing.assert_allclose(param, expected[0], rtol=1e-12, atol=1e-14)


@settings(max_examples=60)
@given(
    bounds=bounds,
    variant=st.sampled_from(sorted(GUARDS)),
    clip=st.booleans(),
    size=sizes,
    still=st.booleans(),
    seed=st.integers(0, 99),
)
def test_lars(
    bounds: dict[int, float], variant: str, clip: bool, size: float, still: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    w, v = size * random.standard_normal(40), np.zeros(40)
    param = w.copy()
    own = {
        columns.COEFFICIENT: 0.5,
        columns.RATIO_EPS: 1e-8,
        columns.GUARD: GUARDS[variant],
        columns.TRUST_CLIP: clip,
    }
    opt = with_settings(nl.Momentum, written({**bounds, **own}))([param], 0.3, 0.9, weight_decay=0.1)
    trust = reference.Trust(variant, 0.5, 1e-8, clip, *(bounds[column] for column in ORDER))
    for _ in range(3):
        g = random.standard_normal(40) * (not still)
        opt.step([g])
        made = reference.momentum(w, g, v, learning_rate=0.3, momentum=0.9, weight_decay=0.1, trust=trust)
        w, v = made[:2]
        assert opt.stats()["trust_ratio/param_0"] == pytest.approx(made.trust_ratio, rel=1e-12)
        np.testing.assert_allclose(param, w, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("ratio", ["lamb", "lars"])
def test_a_nan_stays_one_and_a_1_is_not_bounded(ratio: str) -> None:
    def made(weight_norm: float, other: float, guard: int = rules.ZERO_NORM) -> float:
        if ratio == "lamb":
            return rules.lamb_ratio(weight_norm, other, 0.0, 10.0, 0.0, 0.01, 0.5)
        return rules.lars_ratio(weight_norm, other, 0.0, 1.0, 0.0, guard, 0.0, 10.0, 0.01, 0.5)

    assert np.isnan(made(1.0, np.nan, rules.UNGUARDED))
    assert np.isnan(made(np.nan, 1.0, rules.UNGUARDED))
    assert made(0.0, 1.0) == made(1.0, 0.0) == 1.0
    assert made(1.0, 1.0) == 0.5
    assert made(1.0, 1e6) == 0.01
