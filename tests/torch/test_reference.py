"""The formulas by name and their options, as PyTorch's optimizers take them, follow the float64 reference."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_lamb.numerics import reference
from numba_lamb.numerics.variants import LAMB_VARIANTS, LARS_VARIANTS

pytestmark = pytest.mark.slow

RATE_CORRECTIONS = ("none", "first", "both")
NORMS = ("direction", "eps in root", "eps in root, guarded", "undecayed")

lamb_options = st.fixed_dictionaries(
    {
        "variant": st.sampled_from(sorted(LAMB_VARIANTS)),
        "always_adapt": st.sampled_from([None, True, False]),
        "bias_correction": st.sampled_from([None, True, False]),
        "decoupled_decay": st.sampled_from([None, True, False]),
        "grad_averaging": st.booleans(),
        "trust_clip": st.booleans(),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "eps": st.sampled_from([1e-6, 1e-3]),
    }
)


def chosen(options: dict[str, Any], name: str) -> bool:
    given_value = options[name]
    return getattr(LAMB_VARIANTS[options["variant"]], name) if given_value is None else given_value


def formula_of(options: dict[str, Any]) -> reference.Formula:
    variant = LAMB_VARIANTS[options["variant"]]
    return reference.Formula(
        bias_correction=chosen(options, "bias_correction"),
        grad_averaging=options["grad_averaging"],
        rate_correction=RATE_CORRECTIONS[variant.rate_correction],
        decoupled_decay=chosen(options, "decoupled_decay"),
        weight_limit=variant.weight_limit,
        ratio_epsilon=options["eps"] if variant.epsilon_in_ratio else 0.0,
        least=variant.least,
        most=min(variant.most, 1.0) if options["trust_clip"] else variant.most,
        weight_floor=variant.weight_floor,
        norm_of=NORMS[variant.norm_of],
    )


def tensor(values: np.ndarray) -> Any:
    return torch.nn.Parameter(torch.from_numpy(values.copy()))


@settings(max_examples=120)
@given(
    options=lamb_options,
    seed=st.integers(0, 99),
    size=st.sampled_from([0.0, 0.3, 30.0]),
    still=st.sampled_from([0, 2]),
)
def test_lamb(options: dict[str, Any], seed: int, size: float, still: int) -> None:
    """One step may have a gradient of zeros."""
    from numba_lamb.torch import Lamb

    rng = np.random.default_rng(seed)
    w, zeros = size * rng.standard_normal((7, 5)), np.zeros((7, 5))
    param = tensor(w)
    opt = Lamb([param], lr=0.02, **options)
    expected = (w, zeros, zeros)
    adapt = LAMB_VARIANTS[options["variant"]].adapts and (
        chosen(options, "always_adapt") or options["weight_decay"] > 0
    )
    for t in range(1, 5):
        g = rng.standard_normal((7, 5)) * (t != still)
        param.grad = torch.from_numpy(g)
        opt.step()
        made = reference.lamb(
            expected[0],
            g,
            *expected[1:],
            t,
            learning_rate=0.02,
            eps=options["eps"],
            weight_decay=options["weight_decay"],
            adapt=adapt,
            formula=formula_of(options),
        )
        expected = made[:3]
        assert opt.stats()["trust_ratio/param_0"] == pytest.approx(made.trust_ratio, rel=1e-12)
        state = opt.state[param]
        found = (param.detach(), state["exp_avg"], state["exp_avg_sq"])
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one.numpy(), other, rtol=1e-11, atol=1e-13 * max(size, 1.0))


@settings(max_examples=120)
@given(
    variant=st.sampled_from(sorted(LARS_VARIANTS)),
    decay=st.sampled_from([0.0, 0.1]),
    nesterov=st.booleans(),
    clip=st.booleans(),
    always=st.sampled_from([None, True, False]),
    zeros=st.sampled_from(["none", "weights", "gradient", "both"]),
    seed=st.integers(0, 99),
)
def test_lars(
    variant: str, decay: float, nesterov: bool, clip: bool, always: bool | None, zeros: str, seed: int
) -> None:
    from numba_lamb.torch import Lars

    formula = LARS_VARIANTS[variant]
    clip = clip and not formula.rate_inside
    rng = np.random.default_rng(seed)
    w, v = rng.standard_normal(40) * (zeros not in ("weights", "both")), np.zeros(40)
    param = tensor(w)
    opt = Lars(
        [param],
        lr=0.3,
        weight_decay=decay,
        nesterov=nesterov,
        variant=variant,
        trust_coefficient=0.1,
        trust_clip=clip,
        always_adapt=always,
    )
    adapts = (formula.always_adapt if always is None else always) or decay > 0
    trust = reference.Trust(variant, 0.1, formula.eps, clip or formula.trust_clip) if adapts else None
    for _ in range(3):
        g = rng.standard_normal(40) * (zeros not in ("gradient", "both"))
        param.grad = torch.from_numpy(g)
        opt.step()
        made = reference.momentum(
            w, g, v, learning_rate=0.3, momentum=0.9, weight_decay=decay, nesterov=nesterov, trust=trust
        )
        w, v = made[:2]
        np.testing.assert_allclose(param.detach().numpy(), w, rtol=1e-11, atol=1e-13)
        if trust is not None:
            assert opt.stats()["trust_ratio/param_0"] == pytest.approx(made.trust_ratio, rel=1e-12)
